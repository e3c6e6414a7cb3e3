"""What a run says while it runs and what it returns."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from golden.program import Progress as Callback

Status = Literal["PASS", "FAIL", "SKIPPED"]


@dataclass(frozen=True)
class TensorReport:
    """The verdict on one tensor.

    ``role`` says how it is passed: ``input`` (only read), ``inout`` or ``output``. ``rule`` names the
    comparison. ``detail`` is the reason of a FAIL or SKIPPED, or what a comparator adds to a PASS.
    ``max_error`` and ``worst_index`` locate the largest absolute error (``inf`` for NaN or Inf), if values
    were compared.
    """

    name: str
    status: Status
    role: str
    shape: tuple[int, ...]
    dtype: str
    rule: str
    detail: str = ""
    max_error: float | None = None
    worst_index: tuple[int, ...] | None = None

    def line(self) -> str:
        """One line, without its reason."""
        what = self.rule
        if self.max_error is not None:
            what += f", max abs error {self.max_error:.3g}"
            what += f" at {list(self.worst_index)}" if self.worst_index is not None and self.max_error else ""
        if self.status == "PASS" and self.detail:
            what += f", {self.detail}"
        return f"'{self.name}' {self.status}  shape={self.shape} dtype={self.dtype} ({what})"


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run.

    ``status`` is PASS only if every tensor that the kernel may change was compared, could have failed, and
    agreed, and no other tensor changed. SKIPPED is a run that shows nothing: ``passed`` is then False and
    ``error`` says why. The exception is ``compile_only``, which was asked for: SKIPPED with ``passed`` True,
    so that scripts exit with 0. ``execution_time`` is the whole run in seconds, ``stage_times`` its parts.
    """

    passed: bool
    error: str | None = None
    execution_time: float | None = None
    work_dir: Path | None = None
    status: Status = "FAIL"
    reports: dict[str, TensorReport] = field(default_factory=dict)
    stage_times: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        seconds = "" if self.execution_time is None else f" ({self.execution_time:.2f}s)"
        return f"{self.status}{seconds}" + (f": {self.error}" if self.error else "")


def say(text: str) -> None:
    """One line of the run's log, on stdout."""
    print(f"[RUN] {text}", flush=True)


class Log:
    """The stages of one run: printed as they happen, and timed."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.times: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Print the beginning and, unless an exception passes through, the end of a stage."""
        say(f"{name} ...")
        start = time.perf_counter()
        yield
        self.times[name] = time.perf_counter() - start
        say(f"{name} done ({self.times[name]:.2f}s)")

    def result(
        self,
        status: Status,
        error: str | None = None,
        *,
        passed: bool | None = None,
        note: str = "",
        reports: dict[str, TensorReport] | None = None,
        work_dir: Path | None = None,
    ) -> RunResult:
        """Close the run. A FAIL prints no last line: the caller prints ``error`` and exits with 1."""
        seconds = self.elapsed
        if status != "FAIL":
            say(f"{status} ({seconds:.2f}s{', ' + note if note else ''})")
        return RunResult(
            passed=status == "PASS" if passed is None else passed,
            error=error,
            execution_time=seconds,
            work_dir=work_dir,
            status=status,
            reports=reports or {},
            stage_times=dict(self.times),
        )


@contextmanager
def progress_bar(every: float = 5.0) -> Iterator[Callback]:
    """A callback for a program to report through: a bar on a terminal, else a line at most every ``every``
    seconds."""
    console = Console(file=sys.stdout)
    if console.is_terminal:
        columns = (TextColumn("[RUN]   {task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
            task = bar.add_task("starting", total=None)

            def draw(done: int, total: int, label: str) -> None:
                bar.update(task, completed=done, total=total, description=label)

            yield draw
        return
    last = time.perf_counter()

    def write(done: int, total: int, label: str) -> None:
        nonlocal last
        if time.perf_counter() - last >= every:
            last = time.perf_counter()
            say(f"  {done}/{total} {label}")

    yield write
