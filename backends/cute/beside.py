"""Rows and columns that a region loads to use them beside a dealt tile: where they should live.

``row_expand_mul(tile, column)`` needs the column's element of each of its rows.  If each thread holds the
elements of its own rows, it can ask for them together with the tile, long before they are needed, and once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from pypto_models.ir.expr import Var
from pypto_models.ir.nodes import Block, Let
from pypto_models.ir.types import TileType

from ..gpu.scan import lets
from .layouts import COLUMN_STATISTICS, POINTWISE, Beside, Columns, Dealt, Rows


def longest_run(body: Block) -> int:
    """Neighbours that a thread should take together: 16 bytes of the type that most loaded bytes have."""
    most: Counter[int] = Counter()
    for s in lets(body):
        t = s.result.type if s.op.name == "load" else None
        if isinstance(t, TileType):
            most[t.dtype.bytes] += t.elements * t.dtype.bytes
    return min(8, 16 // most.most_common(1)[0][0]) if most else 8


def wanted(body: Block, longest: int) -> dict[Var, Beside]:
    """The layouts of rows and columns that are only needed beside tiles dealt in one way.

    They are operands of ``row_expand_*`` and ``col_expand_*``, and what these are computed from elementwise.
    """
    made = {s.result: s for s in lets(body) if len(s.results) == 1}
    found: dict[Var, Beside] = {}
    clashing: set[Var] = set()
    todo = list(_beside_tiles(made.values(), longest))
    while todo:
        var, layout = todo.pop()
        if var in found:
            if found[var] != layout:
                clashing.add(var)
            continue
        found[var] = layout
        s = made.get(var)
        if s is not None and s.op.name in POINTWISE:
            todo += [(x, layout) for x in s.args if _shape(x) == _shape(var) and isinstance(x, Var)]
    return {v: layout for v, layout in found.items() if v not in clashing}


def statistics(body: Block) -> Iterator[Var]:
    """The sums and extremes of columns that each run of the block works out."""
    return (s.result for s in body if isinstance(s, Let) and s.op.name in COLUMN_STATISTICS)


def _beside_tiles(body: Iterable[Let], longest: int) -> Iterator[tuple[Var, Beside]]:
    """The operands that are repeated along the rows or columns of a dealt tile."""
    for s in body:
        name, shape = s.op.name, _shape(s.result)
        dealt = Dealt.of(shape, longest) if name.startswith(("row_expand", "col_expand")) and shape else None
        x = s.args[1] if dealt is not None else None
        if dealt is None or not isinstance(x, Var) or dealt.rows == 1:
            continue
        if name.startswith("row_expand") and _shape(x) == (dealt.rows, 1):
            yield x, Rows(dealt)
        elif name.startswith("col_expand") and dealt.stays and _shape(x) == (1, dealt.columns):
            yield x, Columns(dealt)


def _shape(x: object) -> tuple[int, ...]:
    return x.type.shape if isinstance(x, Var) and isinstance(x.type, TileType) else ()
