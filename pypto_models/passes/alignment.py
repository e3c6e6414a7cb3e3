"""What a scratchpad target demands of the extents of tiles.

* Vec: a row of a tile fills whole blocks of ``tile_align_bytes``.  A column [M, 1] is stored as one run of M
  elements, so it is its M elements that do.  A tile of a single element is padded and always legal.  Under a
  split the tile of one lane counts.
* Matmul operands: whole fractals, M and N in its rows, K in its row bytes.

Extents are those of the tile; the valid rectangle inside may be anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..errors import Diag, UserError, user_error
from ..ir.expr import Var
from ..ir.nodes import Let, Region, Unit
from ..ir.rewrite import walk
from ..ir.types import Mem, TileType
from ..ops import OpDef
from ..target import Fractal, Target


def findings(region: Region, target: Target) -> Iterator[UserError]:
    """Every tile of a region that ``target`` cannot hold, in program order."""
    for s in walk(region.body):
        if not isinstance(s, Let):
            continue
        if target.tile_align_bytes is not None:
            for v in s.results:
                if isinstance(v.type, TileType) and v.type.space is Mem.Vec:
                    yield from _rows(s, v, v.type, target.tile_align_bytes, target)
        if target.fractal is not None and isinstance(s.op, OpDef) and s.op.unit is Unit.CUBE:
            yield from _fractals(s, target.fractal, target)


def show(v: Var, t: TileType) -> str:
    """``'x' [16, 256] FP32``, with the part of one lane if the tile is split."""
    text = f"{v.name!r} {list(t.shape)} {t.dtype}"
    return text if t.lane_shape() == t.shape else f"{text}, {list(t.lane_shape())} in each lane,"


def _rows(s: Let, v: Var, t: TileType, block: int, target: Target) -> Iterator[UserError]:
    lane = t.lane_shape()
    column = lane[-1] == 1
    run = math.prod(lane) if column else lane[-1]
    if run == 1 or run * t.dtype.bytes % block == 0:
        return
    granule = block // t.dtype.bytes
    axis = 0 if column else t.rank - 1
    if t.split.axis == axis:
        granule *= 2
    extent = -(-t.shape[axis] // granule) * granule
    what = "column" if column else "row"
    unsplit = "" if t.split.axis != axis else ", or another pl.SplitMode"
    valid = ", ".join("?" if not isinstance(d, int) else str(d) for d in t.valid)
    yield user_error(
        Diag.ALIGNMENT, s.span, what=f"tile {show(v, t)}", target=target.name,
        why=f"its {what} of {run * t.dtype.bytes} bytes is not a multiple of {block}",
        fix=f"use {extent} {'rows' if axis == 0 else 'columns'} and "
        f"pl.set_validshape({v.name}, {valid}){unsplit}",
    )  # fmt: skip


def _fractals(s: Let, fractal: Fractal, target: Target) -> Iterator[UserError]:
    lhs, rhs = s.arg("lhs"), s.arg("rhs")
    for x, inner, outer_name in (
        (lhs, 0 if s.arg("a_trans") else 1, "M"),
        (rhs, 1 if s.arg("b_trans") else 0, "N"),
    ):
        if not isinstance(x, Var) or not isinstance(x.type, TileType):
            continue
        t = x.type
        for axis, name in ((1 - inner, outer_name), (inner, "K")):
            granule = fractal.rows if axis != inner else max(1, fractal.row_bytes // t.dtype.bytes)
            if t.shape[axis] % granule == 0:
                continue
            extent = -(-t.shape[axis] // granule) * granule
            yield user_error(
                Diag.ALIGNMENT, s.span, what=f"operand {show(x, t)} of pl.{s.op.spelling}",
                target=target.name, why=f"{name} = {t.shape[axis]} is not a multiple of {granule}",
                fix=f"use {extent} {'rows' if axis == 0 else 'columns'} with valid_shape= or "
                "pl.set_validshape, and pl.fillpad where the rest takes part",
            )  # fmt: skip
