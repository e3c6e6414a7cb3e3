"""Execution of a split mixed region: two vector lanes, each on half of the split axis.

A tile variable with ``type.split`` is two values.  Lane 0 owns the first half, rounded up, lane 1 the rest.
An op on split tiles runs once per lane, with its arguments narrowed here: shapes to the lane's extents,
offsets into global memory moved by the lane's start, valid extents cut to the lane's share.  Operands with
one element on the split axis are whole and both lanes read them.  ``move`` splits (cube to vector) and joins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from pypto_models.errors import InternalError
from pypto_models.ir.expr import Const, Expr, Var, binary, index
from pypto_models.ir.nodes import Arg, Let, Operation
from pypto_models.ir.types import SplitMode, TileType
from pypto_models.ops import memory, slicing
from pypto_models.ops.value import TileValue

LANES = (0, 1)


def is_split(x: object) -> bool:
    """True for a tile variable that is held as two lanes."""
    return isinstance(x, Var) and isinstance(x.type, TileType) and x.type.split is not SplitMode.NONE


def split_axis(let: Let) -> int | None:
    """The halved axis of an op on split tiles; None if the op runs once."""
    axes = {v.type.split.axis for v in (*let.results, *let.args) if is_split(v)}  # type: ignore[union-attr]
    if not axes:
        return None
    if len(axes) > 1:
        raise InternalError(f"{let.op.name} at {let.span} mixes tiles that are split on different axes")
    return axes.pop()


def lane_extent(extent: int, lane: int) -> int:
    """Elements of a halved axis that a lane owns."""
    half = (extent + 1) // 2
    return half if lane == 0 else extent - half


def lane_let(let: Let, axis: int, lane: int) -> Let:
    """The op as one lane runs it.  Variables stay: each lane reads its own half of a split one."""
    for a in let.args:
        if is_split(a) or not isinstance(a, Var) or not isinstance(a.type, TileType):
            continue
        if a.type.rank > axis and a.type.shape[axis] > 1:
            raise InternalError(f"{let.op.name} at {let.span}: {a} is not split as the other tiles are")
    for r in let.results:
        if not is_split(r):
            raise InternalError(f"{let.op.name} at {let.span}: {r} is not split as its operands are")
    rule = _RULES.get(let.op)
    return rule(let, axis, lane) if rule is not None else let


# ------------------------------------------------------------------------------------------ run time
def split_tile(x: TileValue, axis: int) -> tuple[TileValue, TileValue]:
    """The two lanes of a tile."""
    half = lane_extent(x.shape[axis], 0)
    live = x.data.shape[axis]
    first, rest = min(half, live), max(live - half, 0)

    def part(start: int, count: int, extent: int) -> TileValue:
        shape = (*x.shape[:axis], extent, *x.shape[axis + 1 :])
        written = None if x.written is None else x.written.narrow(axis, start, count)
        return TileValue(x.data.narrow(axis, start, count), shape, written)

    return part(0, first, half), part(first, rest, x.shape[axis] - half)


def join_tile(low: TileValue, high: TileValue, axis: int) -> TileValue:
    """The tile of two lanes."""
    shape = (*low.shape[:axis], low.shape[axis] + high.shape[axis], *low.shape[axis + 1 :])
    if high.data.shape[axis] == 0:
        return TileValue(low.data, shape, low.written)
    if low.data.shape[axis] != low.shape[axis]:
        raise InternalError(f"lane 0 has {list(low.valid)} of {list(low.shape)}, lane 1 {list(high.valid)}")
    written = None
    if low.written is not None or high.written is not None:
        written = torch.cat([_mask(low), _mask(high)], axis)
    return TileValue(torch.cat([low.data, high.data], axis), shape, written)


def _mask(x: TileValue) -> torch.Tensor:
    return torch.ones_like(x.data, dtype=torch.bool) if x.written is None else x.written


# ------------------------------------------------------------------------------------------ arguments
def _with(let: Let, **changes: Arg) -> Let:
    args = tuple(changes.get(name, a) for name, a in zip(let.op.param_names, let.args, strict=True))
    return replace(let, args=args)


def _exprs(let: Let, name: str) -> tuple[Expr, ...]:
    arg = let.arg(name)
    if not isinstance(arg, tuple):
        raise InternalError(f"{let.op.name} at {let.span}: {name} is not a list")
    return arg


def _put(xs: tuple[Expr, ...], axis: int, x: Expr) -> tuple[Expr, ...]:
    return (*xs[:axis], x, *xs[axis + 1 :])


def _share(valid: Expr, extent: int, lane: int) -> Expr:
    """A lane's part of a valid extent.  What is out of range stays so in one lane, so that it is noticed."""
    half = index(lane_extent(extent, 0))
    if lane == 0:
        return binary("min", valid, half)
    return binary("max", binary("-", valid, half), index(0))


def _box(let: Let, axis: int, lane: int) -> Let:
    """load and extract: the lane's part of the box.  A tile's own lanes start at 0."""
    dropped = let.arg("drop_dims")
    kept = [i for i in range(len(_exprs(let, "shape"))) if not isinstance(dropped, tuple) or i not in dropped]
    axis = kept[axis]
    shape, offset, valid = _exprs(let, "shape"), _exprs(let, "offset"), let.arg("valid_shape")
    extent = shape[axis]
    if not isinstance(extent, Const):
        raise InternalError(f"{let.op.name} at {let.span}: the extent of a tile is not constant")
    n = int(extent.value)
    start = 0 if let.op is slicing.EXTRACT or lane == 0 else lane_extent(n, 0)
    if isinstance(valid, tuple):
        valid = _put(_exprs(let, "valid_shape"), axis, _share(_exprs(let, "valid_shape")[axis], n, lane))
    return _with(
        let,
        shape=_put(shape, axis, index(lane_extent(n, lane))),
        offset=_put(offset, axis, binary("+", offset[axis], index(start))),
        valid_shape=valid,
    )


def _store(let: Let, axis: int, lane: int) -> Let:
    source = let.arg("source")
    if lane == 0 or not isinstance(source, Var) or not isinstance(source.type, TileType):
        return let
    offset = _exprs(let, "offset")
    start = index(lane_extent(source.type.shape[axis], 0))
    return _with(let, offset=_put(offset, axis, binary("+", offset[axis], start)))


def _result_shape(let: Let, axis: int, lane: int) -> Let:
    result = let.result.type
    if not isinstance(result, TileType):
        raise InternalError(f"{let.op.name} at {let.span} gives no tile")
    shape = _put(tuple(index(d) for d in result.shape), axis, index(lane_extent(result.shape[axis], lane)))
    return _with(let, shape=shape)


def _valid(let: Let, axis: int, lane: int) -> Let:
    name = ("rows", "cols")[axis]
    x, valid = let.arg("x"), let.arg(name)
    if not isinstance(x, Var) or not isinstance(x.type, TileType) or not isinstance(valid, Expr):
        raise InternalError(f"{let.op.name} at {let.span} has no tile")
    return _with(let, **{name: _share(valid, x.type.shape[axis], lane)})


_RULES: dict[Operation, Callable[[Let, int, int], Let]] = {
    slicing.LOAD: _box,
    slicing.EXTRACT: _box,
    slicing.STORE: _store,
    memory.FULL: _result_shape,
    memory.CREATE_TILE: _result_shape,
    memory.RESHAPE: _result_shape,
    memory.SET_VALIDSHAPE: _valid,
}
