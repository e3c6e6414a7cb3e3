"""What a schedule moves: bytes of every weight by CTA, x, partial sums; and what of it lies in whole lines.

The figures are those of one launch.  They follow from the mapping that :class:`~.record.Stream` defines; the
tests hold them against an enumeration of its cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .record import Schedule, Stream


@dataclass(frozen=True)
class Traffic:
    """Bytes of one launch.

    * ``by_cta``: what each CTA reads of the streamed operands; ``cores`` is the number that could work.
      CTA b runs on core ``b % cores``.
    * ``x_bytes``: what all CTAs together read of the shared operand, mostly from L2.
    * ``written_bytes``, ``merged_bytes``: partial sums written, and read again by whoever finishes.
    * ``whole_lines``: every copy covers whole lines of global memory (tensors begin at line boundaries).
    """

    by_cta: tuple[int, ...]
    cores: int
    x_bytes: int
    written_bytes: int
    merged_bytes: int
    whole_lines: bool

    @property
    def total(self) -> int:
        return sum(self.by_cta)

    @property
    def busiest(self) -> int:
        """What one core reads, at most."""
        return max(sum(self.by_cta[c :: max(self.cores, 1)]) for c in range(max(self.cores, 1)))

    @property
    def mean(self) -> float:
        """Bytes per core, whether it has a CTA or not: an idle core counts against the balance."""
        return self.total / max(self.cores, 1)

    @property
    def imbalance(self) -> float:
        """The busiest core's bytes over the mean; 1 is perfect."""
        return self.busiest / self.mean if self.total else 1.0

    def to_json(self) -> dict[str, Any]:
        return {
            "weight_bytes": self.total, "busiest_bytes": self.busiest, "imbalance": round(self.imbalance, 4),
            "x_bytes": self.x_bytes, "written_bytes": self.written_bytes, "merged_bytes": self.merged_bytes,
            "whole_lines": self.whole_lines,
        }  # fmt: skip


def stream_traffic(schedule: Schedule, cores: int, line_bytes: int = 128) -> Traffic:
    """The traffic of a schedule of the form ``stream``."""
    s = schedule.stream
    if s is None:
        raise ValueError(f"{schedule.region} is no stream")
    quanta = -(-s.n // s.quantum)
    each, more = divmod(quanta, s.units)  # quanta of a unit, and units with one more
    counts = [len(range(g, s.units, s.walkers)) for g in range(s.walkers)]
    columns = [s.quantum * (c * each + len(range(g, more, s.walkers))) for g, c in enumerate(counts)]
    columns[(s.units - 1) % s.walkers] -= quanta * s.quantum - s.n
    widths = [b - a for a, b in zip(s.cuts, s.cuts[1:], strict=False)]
    unit = s.element_bytes * len(s.weights)
    by_cta = tuple(c * w * unit for c in columns for w in widths)
    alone = 1 if s.owner == "cta" else s.warps_n  # x shares the warp's ring
    passes = sum(counts) * alone if s.x_place == "ring" else s.walkers
    x_bytes = s.rows * s.k * s.element_bytes * passes * (s.warps_n if s.x_place == "registers" else 1)
    partial = schedule.workspace.bytes if schedule.workspace is not None else 0
    written = partial * (s.slices if s.across == "red" else 1)
    return Traffic(by_cta, cores, x_bytes, written, partial, whole_lines(s, line_bytes))


def whole_lines(s: Stream, line_bytes: int) -> bool:
    """True if every row piece of every cell begins and ends at a line."""
    size = s.element_bytes
    for w in s.weights:
        if w.pitch_bytes % line_bytes or w.column * size % line_bytes:
            return False
    if s.major == "n":
        return all(x * size % line_bytes == 0 for x in (s.granule, s.columns, s.n))
    if s.owner == "cta":
        return all(x * size % line_bytes == 0 for x in (*s.cuts, s.step))
    edges = {x for i in range(s.slices) for kw in range(s.warps_k) for x in s.warp_range(i, kw)}
    return all(x * size % line_bytes == 0 for x in (*edges, s.step))


def item_traffic(schedule: Schedule, item_bytes: Sequence[int], cores: int) -> Traffic:
    """The traffic of a schedule of the form ``items`` or ``blocks`` for one launch.

    ``item_bytes``: what each source block loads, as the arguments of that launch decide it; their number is
    the run-time grid.
    """
    ctas = min(schedule.ctas, len(item_bytes))
    by_cta = tuple(sum(item_bytes[c::ctas]) for c in range(ctas))
    pages = schedule.items.pages if schedule.items is not None else ()
    whole = all(p.row_bytes % 128 == 0 for p in pages)
    return Traffic(by_cta, cores, 0, 0, 0, whole)
