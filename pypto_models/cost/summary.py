"""A timeline in figures: per task its time, bound and share of the bandwidth, and the critical path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .machine import Timeline
from .operations import Pipe

BUSY = 0.5  # a pipe busy for less of the time of its cores does not bound a task: waiting does


@dataclass(frozen=True)
class TaskSummary:
    """All launches of one task.

    * ``seconds``: from the end of what a launch waits for to the end of its last block, launch cost included.
    * ``busy``: of the time of its blocks, the share in which each pipe was at work.
    * ``bound``: the busiest pipe; ``launch`` if that takes more than the blocks do; ``latency`` if no pipe is
      busy for half of the time.
    * ``roofline``: the time that its bytes take at the memory bandwidth, of ``seconds``.
    """

    name: str
    unit: str
    line: int
    launches: int
    blocks: int
    cores: int
    start: float
    end: float
    seconds: float
    busy: dict[str, float]
    bound: str
    bytes: int
    flops: int
    roofline: float
    critical: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "unit": self.unit, "line": self.line, "launches": self.launches,
            "blocks": self.blocks, "cores": self.cores,
            "start_us": self.start * 1e6, "end_us": self.end * 1e6, "us": self.seconds * 1e6,
            "busy": self.busy, "bound": self.bound, "bytes": self.bytes, "flops": self.flops,
            "roofline": self.roofline, "critical": self.critical,
        }  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """``floor`` is the time that all bytes take at the memory bandwidth, in seconds."""

    seconds: float
    floor: float
    tasks: tuple[TaskSummary, ...]
    critical_path: tuple[str, ...]

    @property
    def roofline(self) -> float:
        return self.floor / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "us": self.seconds * 1e6, "floor_us": self.floor * 1e6, "roofline": self.roofline,
            "tasks": [t.to_json() for t in self.tasks], "critical_path": list(self.critical_path),
        }  # fmt: skip


def summarise(timeline: Timeline) -> Summary:
    path = timeline.critical_path()
    tasks: dict[int, list[int]] = {}
    for i, r in enumerate(timeline.runs):
        tasks.setdefault(r.task.index, []).append(i)
    busy: dict[tuple[int, Pipe], float] = {}
    for s in timeline.slices:
        busy[s.run, s.pipe] = busy.get((s.run, s.pipe), 0.0) + s.end - s.start
    found = tuple(
        _task(timeline, runs, busy, not set(runs).isdisjoint(path)) for _, runs in sorted(tasks.items())
    )
    floor = sum(t.bytes for t in found) / timeline.rates.memory
    return Summary(timeline.seconds, floor, found, tuple(timeline.runs[i].name for i in path))


def _task(
    timeline: Timeline, runs: list[int], busy: dict[tuple[int, Pipe], float], critical: bool
) -> TaskSummary:
    members = set(runs)
    task = timeline.runs[runs[0]].task
    blocks = [b for b in timeline.blocks if b.run in members]
    occupied = sum(b.end - b.start for b in blocks)
    shares = {
        p.name.lower(): sum(busy.get((r, p), 0.0) for r in runs) / occupied if occupied else 0.0 for p in Pipe
    }
    times = [timeline.times[r] for r in runs]
    seconds = sum(t.end - t.allowed for t in times)
    launching = sum(t.released - t.allowed for t in times)
    size = sum(timeline.runs[r].memory_bytes for r in runs)
    return TaskSummary(
        name=task.name, unit=task.unit.value, line=task.span.line, launches=len(runs), blocks=len(blocks),
        cores=len({b.core for b in blocks if b.end > b.start}), start=min(t.start for t in times),
        end=max(t.end for t in times), seconds=seconds, busy=shares,
        bound=_bound(shares, launching, seconds), bytes=size,
        flops=sum(timeline.runs[r].flops for r in runs),
        roofline=size / timeline.rates.memory / seconds if seconds else 0.0, critical=critical,
    )  # fmt: skip


def _bound(shares: dict[str, float], launching: float, seconds: float) -> str:
    if launching >= seconds - launching:
        return "launch"
    pipe = max(shares, key=lambda p: shares[p])
    return pipe if shares[pipe] >= BUSY else "latency"
