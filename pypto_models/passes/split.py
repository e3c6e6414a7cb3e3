"""Divide the vector part of mixed regions over two vector lanes: UP_DOWN by rows, LEFT_RIGHT by columns.

Needs: memory spaces (after infer_memory).
Gives: in a mixed region with a split mode, every Vec tile with more than one element on the split axis has
``type.split`` set.  Such a tile is halved, lane 0 holding the first half; one with a single element on that
axis is held whole by both lanes.  A move to Vec divides a tile, a move to Mat joins it, and each lane loads
and stores its own half.  Pure regions and ``SplitMode.NONE`` are left as they are.

Raises ``Diag.SPLIT`` at the first op that does not give the same result on halves.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import Diag, user_error
from ..ir.expr import Var
from ..ir.nodes import Function, Let, Region, Unit
from ..ir.rewrite import Rewriter, rewrite_regions, walk
from ..ir.types import Mem, SplitMode, TileType
from ..ops import OpDef
from ..target import Target


def run(fn: Function, target: Target) -> Function:
    body = rewrite_regions(fn.body, split_region)
    return fn if body is fn.body else replace(fn, body=body)


def split_region(region: Region) -> Region:
    """The region with the types of its ``options.split``; the same object if nothing is to divide."""
    mode = region.options.split
    if region.unit is not Unit.MIXED or mode is SplitMode.NONE:
        return region
    check(region, mode)
    splitter = _Splitter(mode)
    body = splitter.block(region.body)
    return replace(region, body=body) if splitter.env else region


def check(region: Region, mode: SplitMode) -> None:
    """Raise a user error at the first vector op that ``mode`` would break."""
    found = refusal(region, mode)
    if found is None:
        return
    let, why = found
    other = SplitMode.LEFT_RIGHT if mode is SplitMode.UP_DOWN else SplitMode.UP_DOWN
    if refusal(region, other) is not None:
        other = SplitMode.NONE
    raise user_error(
        Diag.SPLIT, let.span, op=f"pl.{let.op.spelling}", mode=mode.name, why=why, other=other.name
    )  # fmt: skip


def refusal(region: Region, mode: SplitMode) -> tuple[Let, str] | None:
    """The first op of a region that ``mode`` would break, and the reason."""
    axis = mode.axis
    if axis is None:
        return None
    for s in walk(region.body):
        if isinstance(s, Let) and (why := _refusal(s, axis)) is not None:
            return s, why
    return None


def _refusal(let: Let, axis: int) -> str | None:
    op = let.op
    tiles = [x.type for x in (*let.args, *let.results) if isinstance(x, Var) and isinstance(x.type, TileType)]
    vector = [t for t in tiles if t.space is Mem.Vec]
    if not isinstance(op, OpDef) or not vector:
        return None
    if op.name == "store" and let.arg("atomic") == "add" and not _divided(vector[0], axis):
        return "both lanes hold the whole tile, so that each would add it"
    return op.split(axis, let) if op.unit is Unit.VEC else None


def _divided(t: TileType, axis: int) -> bool:
    return t.space is Mem.Vec and t.rank > axis and t.shape[axis] > 1


class _Splitter(Rewriter):
    def __init__(self, mode: SplitMode) -> None:
        super().__init__()
        self.mode = mode

    def var(self, v: Var) -> Var:
        axis = self.mode.axis
        if axis is None or not isinstance(v.type, TileType) or v.type.split is self.mode:
            return v
        if not _divided(v.type, axis):
            return v
        new = Var(v.name, v.type.with_(split=self.mode), v.span)
        self.env[v] = new
        return new
