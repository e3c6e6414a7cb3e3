"""In place of a GPU and its bundles: a device that takes a microsecond for every call, and the simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from backends.gpu.bundle import parameters
from backends.gpu.timing import STAMPS
from pypto_models.compile import compile
from tools.gpu_bench.catalogue import ENTRIES


@dataclass
class Slow:
    """Runs each of the calls once; replays take 1, 2 and 3 us a call in turn."""

    graphs: list[int] = field(default_factory=list)
    free_bytes: int = 1 << 24
    l2_bytes: int = 0

    def moved(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def seconds(self, calls: Sequence[Callable[[], object]], replays: int) -> list[float]:
        for call in dict.fromkeys(calls):
            call()
        self.graphs.append(len(calls))
        return [len(calls) * (1 + i % 3) * 1e-6 for i in range(replays)]


Spoil = Callable[[Mapping[str, Any]], None]


@dataclass
class Simulated:
    """A program of the bench at its tiny size, run by the simulator; `spoil` changes what it has written."""

    manifest: Any
    program: Any
    spoil: Spoil | None = None

    def __call__(self, args: Mapping[str, Any]) -> None:
        self.program.executable({n: t for n, t in args.items() if n != STAMPS})
        if self.spoil is not None:
            self.spoil(args)


def simulated(name: str, spoil: Spoil | None = None) -> Simulated:
    """The program `name` of the catalogue."""
    entry = ENTRIES[name]
    constants = entry.constants(entry.kind.configs["tiny"], "h200sim")
    program = compile(entry.kernel, platform="h200sim", constants=constants, schedules={})
    given = parameters(program.compiled.function)
    return Simulated(
        SimpleNamespace(name=entry.kernel.name, parameters=given, launches=(), backend="cute"), program, spoil
    )


def folders(root: Path, *names: str) -> Path:
    """A folder that looks as if it held bundles of these programs."""
    for name in names:
        folder = root / name.replace("/", "-")
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("")
    return root


def loader(**spoils: Spoil) -> Callable[[Path], Simulated]:
    """What loads them; `spoils` by the name of a folder, with _ for -."""

    def load(folder: Path) -> Simulated:
        return simulated(folder.name.replace("-", "/"), spoils.get(folder.name.replace("-", "_")))

    return load
