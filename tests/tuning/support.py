"""A backend that compiles nothing and a device that only claims to measure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pypto_models.backend import Compiled, KernelRow, Progress
from pypto_models.compile import backend_table
from pypto_models.errors import Diag, user_error
from pypto_models.ir.printer import format_function
from pypto_models.target import Target
from pypto_models.tuning.device import Call


@dataclass
class Kept:
    """A program that knows what it was made with."""

    compiled: Compiled
    kernels: tuple[KernelRow, ...] = ()

    def __call__(self, args: Mapping[str, Any], progress: Progress | None = None) -> Any:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        folder.mkdir()
        values = {name: dict(o.values) for name, o in self.compiled.overrides.items()}
        key = format_function(self.compiled.function)
        (folder / "program.json").write_text(json.dumps({"values": values, "key": key}))
        PROGRAMS[key] = self.compiled


PROGRAMS: dict[str, Compiled] = {}
"""What was kept, by its text."""


class Toy:
    """Keeps programs; refuses a tile of 1024."""

    name = "toy"
    native = True

    def covers(self, target: Target) -> str | None:
        return None if target.gpu is not None else "it keeps programs of GPUs"

    def unusable(self) -> str | None:
        return None

    def build(self, compiled: Compiled, *args: Any, **options: Any) -> Kept:
        return Kept(compiled)

    def bundle(self, compiled: Compiled, progress: Progress | None = None, **options: Any) -> Kept:
        if "1024" in format_function(compiled.function):
            raise user_error(Diag.ARGUMENT, None, name="toy", why="a tile of 1024", fix="a smaller one")
        return Kept(compiled)

    def open(self, folder: Path) -> Any:
        raise user_error(Diag.ARGUMENT, None, name="toy", why="it runs nowhere", fix="use the stand-in")


@dataclass
class StandIn:
    """Runs a variant on the simulator; its time is ``times(values)``, and ``break_it`` spoils its results.

    ``dies_at``: the number of measurements after which the process is killed.
    """

    times: Callable[[dict[str, Any]], float]
    break_it: Callable[[dict[str, Any], Mapping[str, Any]], None] = lambda values, args: None
    dies_at: int | None = None
    lost: bool = False
    loaded: list[dict[str, Any]] = field(default_factory=list)
    name: str = "stand-in"
    torch_name: str = "cpu"
    free_bytes: int = 2**30
    l2_bytes: int = 2**10

    def load(self, folder: Path) -> Callable[[Mapping[str, Any]], object]:
        found = json.loads((folder / "program.json").read_text())
        values: dict[str, Any] = next(iter(found["values"].values()), {})
        self.loaded.append(values)
        if self.dies_at is not None and len(self.loaded) > self.dies_at:
            raise KeyboardInterrupt
        compiled = PROGRAMS[found["key"]]

        def program(args: Mapping[str, Any]) -> None:
            backend_table()["sim"].build(compiled)(args)
            self.break_it(values, args)

        return program

    def seconds(self, calls: Sequence[Call], replays: int) -> list[float]:
        return [self.times(self.loaded[-1]) * len(calls)] * replays

    def alive(self) -> bool:
        return not self.lost
