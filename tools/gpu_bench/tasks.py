"""Running tasks one after another, each within its time; what raises becomes a row."""

from __future__ import annotations

import fnmatch
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from tools.gpu_bench.report import Report, Row


@dataclass(frozen=True)
class Task:
    """A part of the bench; what it raises is put under its `subject` and `program`."""

    subject: str
    program: str
    run: Callable[[], object]

    @property
    def name(self) -> str:
        """What --only selects by."""
        return f"{self.subject}: {self.program}"


class TooLong(Exception):
    """A task has used up its time."""


def selected(tasks: Iterable[Task], only: Sequence[str]) -> list[Task]:
    """Those whose name holds, or matches, one of `only`; without any, all."""
    return [t for t in tasks if not only or any(o in t.name or fnmatch.fnmatch(t.name, o) for o in only)]


def run_all(tasks: Sequence[Task], report: Report, seconds: float = 0.0) -> None:
    """Run them; what raises, or takes longer than `seconds` (0: no limit), becomes a row with its error."""
    for task in tasks:
        try:
            with limited(seconds):
                task.run()
        except Exception as error:
            report.add(Row(task.subject, task.program, why=short(error)))


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TooLong inside after so many seconds, never for 0.

    A wait for the device ends first: only Python can be interrupted.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"stopped after {seconds:g} s; --seconds gives more")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def short(error: BaseException) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
