"""Reductions of a tile along one axis, over its valid rectangle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..errors import Diag, UserError, user_error
from ..ir.expr import Expr
from ..ir.nodes import Let
from ..ir.types import BF16, FP32, INT32, TileType
from .common import elements_cost, require_float, require_rank2, tile_type
from .registry import Kind, OpDef, OpParam, Sample, T, op
from .value import TileValue

Reduce = Callable[[torch.Tensor, int], torch.Tensor]

X = OpParam("x", Kind.TILE, synonyms=("input",))


def _sum(x: torch.Tensor, axis: int) -> torch.Tensor:
    return x.sum(dim=axis, keepdim=True)


def _max(x: torch.Tensor, axis: int) -> torch.Tensor:
    return x.amax(dim=axis, keepdim=True)


def _min(x: torch.Tensor, axis: int) -> torch.Tensor:
    return x.amin(dim=axis, keepdim=True)


def _kept(shape: Sequence[int], axis: int) -> tuple[int, int]:
    """Extents of the result."""
    return (shape[0], 1) if axis == 1 else (1, shape[1])


def _nothing_to_reduce(name: str) -> UserError:
    return user_error(
        Diag.INVALID_READ, op=f"pl.{name}", tensor="a tile",
        why="there is no valid element to reduce", fix="guard the call, or pl.fillpad first",
    )  # fmt: skip


def _split(axis: int, split_axis: int, let: Let) -> str | None:
    if split_axis == axis and tile_type(let.args[0]).shape[axis] > 1:
        return f"it reduces along the split axis ({'columns' if axis else 'rows'})"
    return None


def _reduction(name: str, axis: int, fn: Reduce, combine: str, doc: str) -> OpDef:
    def infer(x: Expr) -> TileType:
        t = tile_type(x)
        require_rank2(name, t)
        require_float(name, t)
        if axis == 1:
            return TileType((t.shape[0], 1), t.dtype, (t.valid[0], 1))
        return TileType((1, t.shape[1]), t.dtype, (1, t.valid[1]))

    def reference(x: TileValue) -> TileValue:
        data = x.read()
        if data.shape[1 - axis] == 0:  # no row at all: nothing to reduce, and nothing to complain about
            return TileValue(data.new_empty(_kept(data.shape, axis)), _kept(x.shape, axis))
        if data.shape[axis] == 0 and combine != "add":
            raise _nothing_to_reduce(name)
        out = fn(data.float(), axis).to(data.dtype)
        return TileValue(out, _kept(x.shape, axis))

    return op(
        name, X, doc=doc, infer=infer, reference=reference, cost=elements_cost,
        split=partial(_split, axis), combine=combine,
        samples=(
            Sample((T((16, 32), FP32),)),
            Sample((T((16, 32), FP32, (5, 17)),)),
            Sample((T((16, 32), BF16),)),
        ),
    )  # fmt: skip


def _argmax_infer(x: Expr) -> TileType:
    t = tile_type(x)
    require_rank2("row_argmax", t)
    require_float("row_argmax", t)
    return TileType((t.shape[0], 1), INT32, (t.valid[0], 1))


def _argmax_reference(x: TileValue) -> TileValue:
    data = x.read()
    shape = _kept(x.shape, 1)
    if data.shape[0] == 0:
        return TileValue(torch.empty((0, 1), dtype=torch.int32), shape)
    if data.shape[1] == 0:
        raise _nothing_to_reduce("row_argmax")
    # torch gives the first of equal maxima, and a NaN counts as one
    return TileValue(data.float().argmax(dim=1, keepdim=True).to(torch.int32), shape)


ROW_ARGMAX = op(
    "row_argmax", X,
    doc="Index of the largest element of each row: [M, N] to [M, 1] INT32.  Of equal ones the lowest index "
    "counts, and only valid elements take part.",
    infer=_argmax_infer, reference=_argmax_reference, cost=elements_cost, split=partial(_split, 1),
    samples=(
        Sample((T((16, 32), FP32),)),
        Sample((T((16, 32), FP32, (5, 17)),)),
        Sample((T((16, 32), BF16, low=-2.0, high=-1.0),)),  # a few numbers, so that maxima are equal
    ),
)  # fmt: skip


OPS: tuple[OpDef, ...] = (
    _reduction("row_sum", 1, _sum, "add", "Sum of each row: [M, N] to [M, 1]; half types add in fp32."),
    _reduction("row_max", 1, _max, "max", "Maximum of each row: [M, N] to [M, 1]."),
    _reduction("row_min", 1, _min, "min", "Minimum of each row: [M, N] to [M, 1]."),
    ROW_ARGMAX,
    _reduction("col_sum", 0, _sum, "add", "Sum of each column: [M, N] to [1, N]; half types add in fp32."),
    _reduction("col_max", 0, _max, "max", "Maximum of each column: [M, N] to [1, N]."),
    _reduction("col_min", 0, _min, "min", "Minimum of each column: [M, N] to [1, N]."),
)
