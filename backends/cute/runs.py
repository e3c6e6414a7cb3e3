"""Moves between global memory and registers, a run of neighbours at a time, and who makes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .layouts import Columns, Dealt, Layout, Rows
from .scalars import literal
from .tiles import Coordinates, Tile

if TYPE_CHECKING:
    from .kernel import Kernel


def leads(layout: Layout, n: str, at: Coordinates) -> str | None:
    """The condition of one thread of those that hold the ``n``-th element; None if it is one thread's."""
    if isinstance(layout, Rows):
        return layout.of.leads.format(n=n, r=at[0])
    return layout.leads if isinstance(layout, Columns) else None


def load_runs(k: Kernel, tile: Tile, layout: Dealt | Columns, to: str) -> None:
    """A load whose threads each read runs of neighbours into the registers ``to``, one instruction a run."""
    assert tile.plain is not None
    pointer, pitch, rows = tile.plain
    if rows != tile.valid[0]:
        k.text.line(f"{to}.fill({literal(0.0 if tile.dtype.is_float else 0, tile.dtype)})")
    with _runs(k, layout, pointer, pitch, rows if rows != str(tile.shape[0]) else None) as (n, where):
        k.text.line(f"block.load_run({where}, {to}, {n} * {layout.run}, {layout.run})")


def store_runs(k: Kernel, tile: Tile, layout: Dealt | Columns, to: str, pitch: int) -> None:
    """The other way: a tile in registers to the box that begins at ``to``."""
    live = tile.valid[0] if tile.valid[0] != str(tile.shape[0]) else None
    with (
        k.when(leads(layout, "0", ("0", "0"))),
        _runs(k, layout, to, str(pitch), live) as (n, where),
    ):
        k.text.line(f"block.store_run({where}, {tile.registers}, {n} * {layout.run}, {layout.run})")


@contextmanager
def _runs(
    k: Kernel, layout: Dealt | Columns, pointer: str, pitch: str, rows: str | None
) -> Iterator[tuple[str, str]]:
    """A loop over the runs of this thread that are among the first ``rows`` rows: its number and address.

    Where columns stay, addresses are one sum apart by constants.
    """
    t = k.text
    if isinstance(layout, Columns):
        with k.when(rows and f"0 < {rows}"):
            yield "0", f"{pointer} + {layout.of.start[1]}"
        return
    n, r, c = t.unique("n"), t.unique("r"), t.unique("c")
    row, column = layout.coordinates(f"({n} * {layout.run})")
    first = ""
    if layout.stays:
        first = t.let("own", f"{pointer} + (Int64({layout.start[0]}) * {pitch} + {layout.start[1]})")
    with t.nested(f"for {n} in cutlass.range_constexpr({layout.row_registers}):"):
        if not first or rows or layout.guard:
            t.line(f"{r} = {row}")
        if not first:
            t.line(f"{c} = {column}")
        with k.when(layout.guard and layout.guard.format(r=r, c=c), rows and f"{r} < {rows}"):
            if first:
                yield n, f"{first} + Int64({n} * {layout.step * int(pitch)})"
            else:
                yield n, f"{pointer} + (Int64({r}) * {pitch} + {c})"
