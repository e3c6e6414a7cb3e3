"""What was measured: rows, the table that is printed, and the JSON file that grows with every row."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.gpu_bench.check import Error, Verdict
from tools.gpu_bench.measure import Timing

PASS, FAIL, ERROR, UNCHECKED = "PASS", "FAIL", "ERROR", "-"

OURS, TIMED = "ours", "ours, timing build"


def ours_on(backend: str, name: str = OURS) -> str:
    """What our programs are called; those of the first backend, CuTe DSL, need not say so."""
    return name if backend == "cute" else f"{name} ({backend})"


@dataclass(frozen=True)
class Ceiling:
    """Bytes per second of the best kernel that only reads, which one that was, and those of ``torch.sum``."""

    rate: float
    how: str
    torch_sum: float

    def us(self, count: int) -> float:
        """Microseconds that so many bytes take."""
        return count / self.rate * 1e6


@dataclass(frozen=True)
class Row:
    """One subject run by one program.

    ``bytes`` is what it must move at least, ``floor_us`` the time of that at the ceiling; ``verdicts`` are
    empty where nothing was compared, and ``why`` says what is to be said, such as an error.
    """

    subject: str
    program: str
    timing: Timing | None = None
    bytes: int = 0
    floor_us: float = 0.0
    verdicts: tuple[Verdict, ...] = ()
    why: str = ""
    failed: bool = False

    @property
    def share(self) -> float | None:
        """Part of the time that the floor takes."""
        return self.floor_us / self.timing.us if self.timing is not None and self.timing.us > 0 else None

    @property
    def status(self) -> str:
        if self.failed or not all(v.passed for v in self.verdicts):
            return FAIL
        if self.timing is None:
            return ERROR
        return PASS if self.verdicts else UNCHECKED

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "subject": self.subject, "program": self.program, "status": self.status, "why": self.why,
            "us": self.timing and self.timing.us, "least_us": self.timing and self.timing.least,
            "most_us": self.timing and self.timing.most, "bytes": self.bytes, "floor_us": self.floor_us,
            "share_of_floor": self.share, "errors": [asdict(v) for v in self.verdicts],
        }  # fmt: skip

    @staticmethod
    def parse(made: Mapping[str, Any]) -> Row:
        """The row of which `report` has made this."""
        timing = None if made["us"] is None else Timing(made["us"], made["least_us"], made["most_us"])
        verdicts = tuple(
            Verdict(e["name"], Error(**e["error"]), Error(**e["torch"]), e["passed"]) for e in made["errors"]
        )
        failed = made["status"] == FAIL and all(v.passed for v in verdicts)
        return Row(
            made["subject"], made["program"], timing, made["bytes"], made["floor_us"], verdicts, made["why"],
            failed,
        )  # fmt: skip


@dataclass(frozen=True)
class Region:
    """A launch of a timing build; microseconds, medians over layers and replays.

    All times count from the end of the last CTA of the launch before it: its first CTA's ``start``; its first
    data (``gap``), or the end of its wait where it ``streams`` nothing; the ``end`` of its last CTA.  That is
    what it adds to the layer, to be held against ``floor_us``.
    """

    subject: str
    kernel: str
    ctas: int
    start: float
    gap: float
    end: float
    streams: bool
    floor_us: float = 0.0

    @property
    def share(self) -> float:
        """Part of what it adds that the floor takes."""
        return self.floor_us / self.end if self.end > 0 else 0.0

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass
class Report:
    """Rows as they come; `file` is rewritten after each."""

    file: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    gaps: dict[str, float] = field(default_factory=dict)
    say: Callable[[str], Any] = lambda text: print(text, flush=True)
    started: float = field(default_factory=time.monotonic)

    def note(self, text: str) -> None:
        """A line of progress."""
        clock = time.strftime("%H:%M:%S", time.gmtime())
        self.say(f"[{clock} +{time.monotonic() - self.started:6.1f}s] {text}")

    def add(self, row: Row) -> Row:
        self.rows.append(row)
        self.note(line(row))
        self.write()
        return row

    def add_regions(self, subject: str, regions: Iterable[Region], gap: float) -> None:
        """The launches of a timing build, and the median ``gap`` of those that stream weights; NaN: none."""
        regions = tuple(regions)
        self.regions += regions
        if math.isnan(gap):
            self.note(f"{subject}: {len(regions)} launches")
        else:
            self.gaps[subject] = gap
            self.note(f"{subject}: {gap:.2f} us from the last end of a kernel to the next weights, median")
        self.write()

    def find(self, subject: str, program: str) -> Row | None:
        """The last such row."""
        return next((r for r in reversed(self.rows) if (r.subject, r.program) == (subject, program)), None)

    @staticmethod
    def parse(made: Mapping[str, Any]) -> Report:
        """The report of which `report` has made this."""
        about = {n: v for n, v in made.items() if n not in ("seconds", "rows", "regions", "gaps_us")}
        rows = [Row.parse(r) for r in made["rows"]]
        return Report(None, about, rows, [Region(**r) for r in made["regions"]], made["gaps_us"])

    @property
    def failed(self) -> bool:
        """Whether something was wrong; a peer that raises is not."""
        return any(r.status == FAIL or (r.status == ERROR and r.program.startswith(OURS)) for r in self.rows)

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            **self.about,
            "seconds": time.monotonic() - self.started,
            "rows": [r.report() for r in self.rows],
            "regions": [r.report() for r in self.regions],
            "gaps_us": self.gaps,
        }

    def write(self) -> None:
        if self.file is None:
            return
        aside = self.file.with_name(self.file.name + ".new")
        aside.write_text(json.dumps(self.report(), indent=1) + "\n")
        os.replace(aside, self.file)


def line(row: Row) -> str:
    """A row as progress."""
    parts = [f"{row.subject}: {row.program}"]
    if row.timing is not None:
        parts.append(f"{row.timing.us:.1f} us")
    if row.share is not None and row.floor_us:
        parts.append(f"{row.share:.1%} of the floor")
    parts.append(row.status)
    for v in row.verdicts:
        if not v.passed:
            parts.append(f"{v.name}: error {errors(v)}")
    return "  ".join(parts) + (f"  ({row.why})" if row.why else "")


def errors(v: Verdict) -> str:
    """Errors beside torch's own."""
    return f"max {v.error.most:.2e} of {v.torch.most:.2e}, rms {v.error.rms:.2e} of {v.torch.rms:.2e}"


WHY = 80  # characters of a reason in the table; the JSON has all of it
HEADINGS = ("subject", "program", "us", "least", "most", "floor us", "of the floor",
            "max error", "torch's", "rms error", "torch's", "check")  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row of the table; of several tensors the one whose RMS error is largest beside torch's."""
    t = row.timing
    times = ["", "", ""] if t is None else [f"{t.us:.1f}", f"{t.least:.1f}", f"{t.most:.1f}"]
    floor = [f"{row.floor_us:.1f}" if row.floor_us else "", ""]
    if row.share is not None and row.floor_us:
        floor[1] = f"{row.share:.1%}"
    found = ["", "", "", ""]
    if row.verdicts:
        v = max(row.verdicts, key=_badness)
        found = [f"{x:.1e}" for x in (v.error.most, v.torch.most, v.error.rms, v.torch.rms)]
    status = row.status + (f": {row.why.replace('|', '/')[:WHY]}" if row.why else "")
    return [row.subject, row.program, *times, *floor, *found, status]


def _badness(v: Verdict) -> float:
    if math.isnan(v.error.rms):
        return math.inf
    return v.error.rms / v.torch.rms if v.torch.rms else v.error.rms


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, aligned; all but the first two columns and the last are numbers."""
    every = [list(headings), *map(list, rows)]
    widths = [max(len(r[i]) for r in every) for i in range(len(headings))]

    def cell(text: str, i: int) -> str:
        return text.ljust(widths[i]) if i < 2 or i == len(headings) - 1 else text.rjust(widths[i])

    lines = ["| " + " | ".join(cell(x, i) for i, x in enumerate(r)) + " |" for r in every]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i < 2 or i == len(widths) - 1 else ":")
                          for i, w in enumerate(widths)) + "|"  # fmt: skip
    return "\n".join([lines[0], rule, *lines[1:]])


def tables(report: Report) -> str:
    """All that the command prints at its end."""
    ceiling = report.about.get("ceiling")
    parts = [] if ceiling is None else [
        f"Read ceiling {ceiling['bytes_per_s'] / 1e12:.3f} TB/s ({ceiling['how']}); "
        f"torch.sum {ceiling['torch_sum'] / 1e12:.3f} TB/s."
    ]  # fmt: skip
    parts.append(table(HEADINGS, [cells(r) for r in by_subject(report.rows)]))
    if report.regions:
        headings = ("subject", "kernel", "CTAs", "start", "first data", "end", "floor us", "of the floor",
                    "streams")  # fmt: skip
        rows = [
            [r.subject, r.kernel, str(r.ctas), f"{r.start:+.2f}", f"{r.gap:+.2f}", f"{r.end:+.2f}",
             *([f"{r.floor_us:.1f}", f"{r.share:.0%}"] if r.floor_us else ["", ""]),
             "weights" if r.streams else ""]
            for r in report.regions
        ]  # fmt: skip
        parts.append("Launches, us after the end of the last CTA before them:")
        parts.append(table(headings, rows))
        gaps = ", ".join(f"{us:.2f} us ({name})" for name, us in report.gaps.items())
        parts.append(f"From the last end of a kernel to the first weights of the next, median: {gaps}.")
    return "\n\n".join(parts)


def by_subject(rows: Sequence[Row]) -> list[Row]:
    """Rows of one subject together, in the order in which subjects first came."""
    order = {s: i for i, s in enumerate(dict.fromkeys(r.subject for r in rows))}
    return sorted(rows, key=lambda r: order[r.subject])
