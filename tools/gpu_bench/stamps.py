"""When the launches of a timing build ran, from what their CTAs have noted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tools.gpu_bench.report import Region

START, WAITED, ARRIVED, END = range(4)  # as in backends/gpu/timing.py


@dataclass(frozen=True)
class Launch:
    """A kernel, and the microseconds that what it must move takes at the ceiling."""

    kernel: str
    floor_us: float = 0.0


@dataclass(frozen=True)
class Span:
    """A launch in ns: the first start, the first data (`streams`) or end of a wait, and the last end."""

    ctas: int
    start: int
    data: int
    end: int
    streams: bool


def span_of(stamps: Tensor) -> Span | None:
    """Of one launch, `[CTAs, events]` in ns, 0 where nothing was noted; None if it did not run."""
    ran = stamps[stamps[:, START] > 0]
    if not len(ran):
        return None

    def first(event: int) -> int | None:
        noted = ran[:, event][ran[:, event] > 0]
        return int(noted.min()) if len(noted) else None

    start, arrived = int(ran[:, START].min()), first(ARRIVED)
    data = arrived if arrived is not None else first(WAITED)
    return Span(len(ran), start, start if data is None else data, int(ran[:, END].max()), arrived is not None)


def timeline(
    subject: str, launches: Sequence[Launch], samples: Sequence[Sequence[Tensor]]
) -> tuple[list[Region], float]:
    """The launches, each against the end of the one that ran before it, and the median gap before weights.

    `samples` holds for every replay the stamps `[launches, CTAs, events]` of all layers in the order in which
    they ran last; the first launch of a layer follows the last one of the layer before.
    """
    found: dict[int, list[tuple[Span, int]]] = {}
    for layers in samples:
        before: Span | None = None
        for stamps in layers:
            for i in range(len(launches)):
                span = span_of(stamps[i])
                if span is None:
                    continue
                if before is not None:
                    found.setdefault(i, []).append((span, before.end))
                before = span
    regions = []
    for i, pairs in sorted(found.items()):
        us = [((s.start - e) / 1e3, (s.data - e) / 1e3, (s.end - e) / 1e3) for s, e in pairs]
        start, gap, end = (statistics.median(column) for column in zip(*us, strict=True))
        last = pairs[-1][0]
        kernel, floor = launches[i].kernel, launches[i].floor_us
        regions.append(Region(subject, kernel, last.ctas, start, gap, end, last.streams, floor))
    gaps = [(s.data - e) / 1e3 for pairs in found.values() for s, e in pairs if s.streams]
    return regions, statistics.median(gaps) if gaps else float("nan")
