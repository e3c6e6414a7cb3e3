"""The folder of a tuning: what is to be measured (plan.json and programs), and what was (results.jsonl).

    plan.json              parts with their arguments and variants
    reference/<part>.pt    what each part must compute, from the simulator
    programs/<digest>/     one compiled program for each variant, as the backend keeps programs
    results.jsonl          one line for each event of a run, appended as it happens
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Diag, Span, UserError
from .data import Argument

FORMAT = 1
PLAN, RESULTS = "plan.json", "results.jsonl"
ATTEMPTS = 2  # that end without a result, before a variant counts as failed

Value = int | str


@dataclass(frozen=True)
class Variant:
    """One way to run a part: ``values`` of its schedule or of constants, ``folder`` of its program.

    ``default``: what the compiler does by itself.  ``estimate_us``: of the cost model.
    """

    name: str
    values: dict[str, Value]
    folder: str
    estimate_us: float
    default: bool = False


@dataclass(frozen=True)
class Refused:
    """A variant that could not be built, and why."""

    part: str
    values: dict[str, Value]
    why: str


@dataclass(frozen=True)
class Part:
    """Regions that run as one program.

    ``kind``: what its variants change, the ``schedule`` of its region or constants of the ``source``.
    ``sizes``: of its product, for which alone the choice holds.  ``bytes``: what a launch reads and writes.
    """

    name: str
    kind: str
    regions: tuple[str, ...]
    arguments: tuple[Argument, ...]
    sizes: dict[str, int]
    variants: tuple[Variant, ...]

    @property
    def bytes(self) -> int:
        return sum(a.bytes for a in self.arguments)

    @property
    def reference(self) -> str:
        return f"reference/{self.name}.pt"


@dataclass(frozen=True)
class Plan:
    """A tuning: the kernel, the platform whose device runs it, and its parts."""

    file: str
    kernel: str
    target: str
    backend: str
    parts: tuple[Part, ...]
    refused: tuple[Refused, ...] = ()
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        data = asdict(self)
        (folder / PLAN).write_text(json.dumps(data, indent=1) + "\n")

    @staticmethod
    def read(folder: Path) -> Plan:
        """Raises a user error if the folder holds no tuning of this format."""
        path = folder / PLAN
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise KeyError(f"format {data['format']}, this version reads {FORMAT}")
            parts = tuple(_part(p) for p in data["parts"])
            refused = tuple(Refused(**r) for r in data["refused"])
            return Plan(**data | {"parts": parts, "refused": refused})
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            fix = "make it with: pypto-models tune plan FILE -p TARGET -o DIR"
            fields = {"file": str(path), "why": f"this is no tuning ({error})", "fix": fix}
            raise UserError(Diag.TILING, Span(str(path), 0), dict(fields)) from error


def _part(data: dict[str, Any]) -> Part:
    return Part(
        **data
        | {
            "regions": tuple(data["regions"]),
            "arguments": tuple(Argument.from_json(a) for a in data["arguments"]),
            "variants": tuple(Variant(**v) for v in data["variants"]),
        }
    )


@dataclass(frozen=True)
class Result:
    """What became of a variant: ``status`` ok, wrong or failed; microseconds of a launch."""

    part: str
    variant: str
    folder: str
    status: str
    why: str = ""
    us: float = 0.0
    least_us: float = 0.0
    most_us: float = 0.0
    device: str = ""
    date: str = ""


@dataclass
class Results:
    """The log of a run, which another process may go on with."""

    folder: Path
    found: dict[tuple[str, str], Result] = field(default_factory=dict)
    started: dict[tuple[str, str], int] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> Results:
        """What is known so far.  The last line of a run that was killed may be torn, and is left out."""
        results = Results(folder)
        for event in _events(folder / RESULTS):
            key = (event["part"], event["folder"])
            if event.get("status") == "started":
                results.started[key] = results.started.get(key, 0) + 1
            else:
                results.found[key] = Result(**event)
        return results

    def of(self, part: Part, variant: Variant) -> Result | None:
        """The result of a variant; one that never came back counts as failed."""
        key = (part.name, variant.folder)
        if key in self.found:
            return self.found[key]
        if self.started.get(key, 0) >= ATTEMPTS:
            why = f"{ATTEMPTS} processes ended while they ran it"
            return Result(part.name, variant.name, variant.folder, "failed", why)
        return None

    def start(self, part: Part, variant: Variant) -> None:
        event = {"part": part.name, "variant": variant.name, "folder": variant.folder, "status": "started"}
        self._append(event)

    def add(self, result: Result) -> None:
        self._append(asdict(result))
        self.found[(result.part, result.folder)] = result

    def _append(self, event: dict[str, Any]) -> None:
        path = self.folder / RESULTS
        torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
        with path.open("a") as file:
            file.write(("\n" if torn else "") + json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _events(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue  # torn by a kill: its variant is measured again
        yield event
