"""A timeline as Chrome trace events, which Perfetto (ui.perfetto.dev) opens.

One process holds the tasks, and one each core its blocks and its pipes, a thread per row.  Times are in
microseconds.  All events are complete ones (``ph: X``), sorted by time; those of one thread do not overlap.
"""

from __future__ import annotations

from typing import Any

from .machine import Timeline
from .operations import Pipe

TASKS = 0  # the process of the tasks; core i is process i + 1
BLOCKS = 0  # the thread of a core's blocks; pipe p is thread p + 1


def trace_events(timeline: Timeline, title: str) -> dict[str, Any]:
    """The whole trace file as a JSON object."""
    events = [*_tasks(timeline), *_blocks(timeline), *_operations(timeline)]
    events.sort(key=lambda e: (e["ts"], e["pid"], e["tid"], -e["dur"]))
    used = sorted({(e["pid"], e["tid"]) for e in events})
    return {
        "traceEvents": [*_names(used), *events],
        "displayTimeUnit": "ns",
        "otherData": {"title": title, "note": "an estimate of the cost model, not a measurement"},
    }


def _names(used: list[tuple[int, int]]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for pid in dict.fromkeys(pid for pid, _ in used):
        name = "tasks" if pid == TASKS else f"core {pid - 1}"
        out.append({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}})
        out.append(
            {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
        )
    for pid, tid in used:
        row = f"tasks {tid}" if pid == TASKS else "blocks" if tid == BLOCKS else Pipe(tid - 1).name.lower()
        out.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": row}})
    return out


def _event(name: str, pid: int, tid: int, start: float, end: float, **args: Any) -> dict[str, Any]:
    # Rounded ends, not rounded durations: what touches in the timeline touches in the file.
    ts, last = round(start * 1e6, 6), round(end * 1e6, 6)
    return {
        "ph": "X",
        "name": name,
        "pid": pid,
        "tid": tid,
        "ts": ts,
        "dur": round(last - ts, 6),
        "args": args,
    }


def _tasks(timeline: Timeline) -> list[dict[str, Any]]:
    """Every run on the first row that is free."""
    rows: list[float] = []
    out = []
    order = sorted(range(len(timeline.runs)), key=lambda i: (timeline.times[i].start, i))
    for i in order:
        r, t = timeline.runs[i], timeline.times[i]
        row = next((k for k, end in enumerate(rows) if end <= t.start), len(rows))
        rows[row : row + 1] = [t.end]
        out.append(
            _event(
                r.name,
                TASKS,
                row,
                t.start,
                t.end,
                unit=r.task.unit.value,
                line=r.task.span.line,
                blocks=len(r.blocks),
                memory_bytes=r.memory_bytes,
                flops=r.flops,
                launched_us=round(t.released * 1e6, 6),
                after=[timeline.runs[b].name for b in r.after],
            )  # fmt: skip
        )
    return out


def _blocks(timeline: Timeline) -> list[dict[str, Any]]:
    return [
        _event(timeline.runs[b.run].name, b.core + 1, BLOCKS, b.start, b.end, block=b.block)
        for b in timeline.blocks
        if b.end > b.start
    ]


def _operations(timeline: Timeline) -> list[dict[str, Any]]:
    out = []
    for s in timeline.slices:
        o = s.operation
        amount = {"bytes": o.bytes} if s.pipe.is_transfer else {"flops": o.flops}
        out.append(
            _event(o.label, s.core + 1, s.pipe + 1, s.start, s.end, line=o.place, block=s.block, **amount)
        )
    return out
