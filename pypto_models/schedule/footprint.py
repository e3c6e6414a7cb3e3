"""What the tiles of a region take at most: registers, shared memory, and scratch of its reductions."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ..ir.expr import Var
from ..ir.liveness import liveness
from ..ir.nodes import Let, Region
from ..ir.rewrite import walk
from ..ir.types import Mem, TileType

_IN_REGISTERS = (Mem.Vec, Mem.Acc, None)


@dataclass(frozen=True)
class Footprint:
    """Bytes of one block, at the point where most are live.

    ``register_bytes``: values of vector and accumulator tiles; ``shared_bytes``: operands of products.
    ``widest``: elements of the largest tile.  ``row_values``: the most results of a reduction along rows
    (each warp leaves one partial of each), ``column_values`` of one along columns.
    """

    register_bytes: int
    shared_bytes: int
    widest: int
    row_values: int
    column_values: int

    def scratch(self, warps: int) -> int:
        """Bytes to combine the partial results of ``warps`` warps, in two halves used in turn."""
        return 2 * 4 * warps * max(self.row_values, self.column_values) if warps > 1 else 0


def footprint(region: Region, elsewhere: Collection[Var] = ()) -> Footprint:
    """The footprint without the tiles ``elsewhere``, which lie in a ring."""
    ranges = liveness(region.body).ranges
    tiles = {v: v.type for v in ranges if isinstance(v.type, TileType) and v not in elsewhere}
    registers = _peak((ranges[v], t.bytes) for v, t in tiles.items() if t.space in _IN_REGISTERS)
    shared = _peak((ranges[v], t.bytes) for v, t in tiles.items() if t.space not in _IN_REGISTERS)
    rows = columns = 0
    for s in walk(region.body):
        if isinstance(s, Let) and len(s.results) == 1 and isinstance(out := s.result.type, TileType):
            sources = [a.type for a in s.args if isinstance(a, Var) and isinstance(a.type, TileType)]
            if out.rank == 2 and sources and sources[0].rank == 2:
                source = sources[0]
                if out.shape[1] == 1 < source.shape[1] and out.shape[0] == source.shape[0]:
                    rows = max(rows, out.shape[0])
                if out.shape[0] == 1 < source.shape[0] and out.shape[1] == source.shape[1]:
                    columns = max(columns, out.shape[1])
    widest = max((t.elements for t in tiles.values()), default=1)
    return Footprint(registers, shared, widest, rows, columns)


def _peak(live: Iterator[tuple[tuple[tuple[int, int], ...], int]]) -> int:
    events: dict[int, int] = {}
    for ranges, size in live:
        for low, high in ranges:
            if high > low:
                events[low] = events.get(low, 0) + size
                events[high] = events.get(high, 0) - size
    now = most = 0
    for at in sorted(events):
        now += events[at]
        most = max(most, now)
    return most
