"""Give buffers addresses in one memory space, so that buffers live at the same time do not overlap.

First fit in several orders, and the best result is kept.  It is optimal where it meets the lower bound, the
most bytes live at one point; else the order is improved by moving the highest buffer to the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_ROUNDS = 64


@dataclass(frozen=True)
class Item:
    """``size`` bytes, a multiple of the alignment, needed at the points of the bit set ``live``."""

    size: int
    live: int


def align_up(size: int, align: int) -> int:
    return -(-size // align) * align


def pack(items: Sequence[Item]) -> tuple[list[int], int]:
    """Offsets of ``items`` and the end of the highest, in bytes."""
    bound, _ = busiest_point(items)
    order = list(range(len(items)))
    by_size = sorted(order, key=lambda i: (-items[i].size, _first(items[i])))
    by_time = sorted(order, key=lambda i: (_first(items[i]), -items[i].size))
    by_length = sorted(order, key=lambda i: (-items[i].live.bit_count(), -items[i].size))
    best: tuple[list[int], int] | None = None
    for start in (by_size, by_time, by_length):
        current = start
        for _ in range(_ROUNDS):
            offsets, peak = _first_fit(items, current)
            if best is None or peak < best[1]:
                best = (offsets, peak)
            if best[1] == bound:
                return best
            top = max(current, key=lambda i: offsets[i] + items[i].size)
            if current[0] == top:
                break
            current = [top, *(i for i in current if i != top)]
    return best if best is not None else ([], 0)


def busiest_point(items: Sequence[Item]) -> tuple[int, int]:
    """The most bytes that are live at one point, and that point: no packing needs less."""
    edges = sorted({e for x in items for e in _restarts(x.live)})
    best = (0, 0)
    for point in edges:
        total = sum(x.size for x in items if x.live >> point & 1)
        best = max(best, (total, -point))
    return best[0], -best[1]


def _first(item: Item) -> int:
    """The first point at which an item is live."""
    return (item.live & -item.live).bit_length() - 1


def _restarts(live: int) -> list[int]:
    """Points where a range starts: live there and not before.  Totals only grow at such points."""
    starts = live & ~(live << 1)
    out = []
    while starts:
        low = starts & -starts
        out.append(low.bit_length() - 1)
        starts ^= low
    return out


def _first_fit(items: Sequence[Item], order: Sequence[int]) -> tuple[list[int], int]:
    offsets = [0] * len(items)
    placed: list[int] = []
    peak = 0
    for i in order:
        busy = sorted(
            (offsets[j], offsets[j] + items[j].size) for j in placed if items[j].live & items[i].live
        )
        at = 0
        for low, high in busy:
            if at + items[i].size <= low:
                break
            at = max(at, high)
        offsets[i] = at
        placed.append(i)
        peak = max(peak, at + items[i].size)
    return offsets, peak
