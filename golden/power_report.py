"""What a measurement of power found: by class, by source line, and one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from pypto_models.faults import SCORED, FaultClass

OVERALL, PER_CLASS, EQUIVALENT = 0.98, 0.90, 0.05
"""What a good comparison reaches: caught overall, caught in each class, and at most so many equivalent."""


@dataclass(frozen=True)
class Outcome:
    """One fault and what became of it: ``status`` is caught, missed or equivalent; ``detail`` says how."""

    kind: str
    site: int
    what: str
    file: str
    line: int
    status: str
    detail: str

    @property
    def key(self) -> tuple[str, int, str]:
        return self.kind, self.site, self.what


@dataclass(frozen=True)
class Tally:
    """Counts of one class, line or whole."""

    caught: int
    missed: int
    equivalent: int

    @property
    def total(self) -> int:
        return self.caught + self.missed + self.equivalent

    @property
    def power(self) -> float:
        """The part caught of the faults that are not equivalent; 1 if there is none."""
        return self.caught / (self.caught + self.missed) if self.caught + self.missed else 1.0


@dataclass(frozen=True)
class PowerReport:
    """All outcomes of one kernel.  Changes of rounding mode are only caught or missed."""

    name: str
    cases: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def scored(self) -> tuple[Outcome, ...]:
        """Without changes of rounding mode, which stand apart."""
        names = {c.name for c in SCORED}
        return tuple(o for o in self.outcomes if o.kind in names)

    @property
    def total(self) -> Tally:
        return _tally(self.scored)

    def by_class(self) -> dict[FaultClass, Tally]:
        """Every class, also those that the kernel has no place for."""
        return {c: _tally(o for o in self.outcomes if o.kind == c.name) for c in FaultClass}

    def by_line(self) -> dict[tuple[str, int], Tally]:
        """Per source line, in the order of files and lines."""
        lines = sorted({(o.file, o.line) for o in self.scored})
        return {at: _tally(o for o in self.scored if (o.file, o.line) == at) for at in lines}

    def shortfalls(self) -> list[str]:
        """What falls short of a good comparison; empty if nothing does."""
        found = []
        total = self.total
        if total.power < OVERALL:
            found.append(f"{total.power:.1%} of the faults are caught, {OVERALL:.0%} are asked for")
        for kind, tally in self.by_class().items():
            if kind in SCORED and tally.power < PER_CLASS:
                found.append(f"{kind.value}: {tally.power:.1%} are caught, {PER_CLASS:.0%} are asked for")
        if total.total and total.equivalent / total.total > EQUIVALENT:
            share = total.equivalent / total.total
            found.append(f"{share:.1%} of the faults are called equivalent, {EQUIVALENT:.0%} are allowed")
        return found

    def summary(self) -> str:
        """One line."""
        t = self.total
        return (
            f"{self.name}: power {t.power:.1%}: {t.total} faults, {t.caught} caught, {t.missed} missed, "
            f"{t.equivalent} equivalent ({self.seconds:.0f} s)"
        )

    def tables(self) -> Iterator[Table]:
        """Classes, then the source lines on which something was not caught, then each such fault."""
        columns = ("class", "faults", "caught", "missed", "equivalent", "power")
        table = Table(*columns, title=f"power of {self.name}")
        for kind, tally in self.by_class().items():
            apart = kind not in SCORED
            if apart:
                table.add_section()
            power = f"{tally.power:.1%}" if tally.total else "no place for it"
            low = tally.power < PER_CLASS and not apart
            label = f"{kind.value} (apart)" if apart else kind.value
            table.add_row(label, *_cells(tally), power, style="red" if low else None)
        total = self.total
        table.add_section()
        table.add_row("all", *_cells(total), f"{total.power:.1%}")
        yield table
        rest = [o for o in self.scored if o.status != "caught"]
        if rest:
            listed = Table("source line", "class", "fault", "", "why", title="not caught")
            for o in sorted(rest, key=lambda o: (o.status != "missed", o.file, o.line)):
                place = f"{_short(o.file)}:{o.line}"
                listed.add_row(place, FaultClass[o.kind].value, o.what, o.status, o.detail)
            yield listed

    def to_json(self) -> dict[str, Any]:
        """Figures and every outcome, for a file."""
        return {
            "name": self.name,
            "cases": list(self.cases),
            "seconds": round(self.seconds, 1),
            "total": _numbers(self.total),
            "classes": {c.name: _numbers(t) for c, t in self.by_class().items()},
            "lines": [{"file": f, "line": n, **_numbers(t)} for (f, n), t in self.by_line().items()],
            "shortfalls": self.shortfalls(),
            "faults": [asdict(o) for o in self.outcomes],
        }


def _tally(outcomes: Iterable[Outcome]) -> Tally:
    counts = Counter(o.status for o in outcomes)
    return Tally(counts["caught"], counts["missed"], counts["equivalent"])


def _cells(t: Tally) -> list[str]:
    return [str(n) for n in (t.total, t.caught, t.missed, t.equivalent)]


def _numbers(t: Tally) -> dict[str, Any]:
    return {**asdict(t), "total": t.total, "power": round(t.power, 4)}


def _short(file: str) -> str:
    """The last two parts of a path."""
    return "/".join(file.split("/")[-2:])
