"""Ops that make tensors and tiles, give them other extents, and move tiles between memory spaces."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import Diag, user_error
from ..ir.expr import Const, Expr, as_dim, binary, dim_expr, index
from ..ir.nodes import Let, Unit
from ..ir.types import BF16, FP32, INT16, INT32, UINT16, UINT32, Dim, DType, Mem, TensorType, TileType
from .boxes import Index, accepts, check_valid
from .common import (
    describe,
    elements_cost,
    require,
    require_scalar,
    show_dim,
    singleton,
    smaller,
    static_shape,
    tensor_type,
    tile_type,
)
from .registry import Kind, OpDef, OpParam, Sample, T, op
from .value import GlobalMemory, TileValue, filled, require_range, torch_dtype


# --------------------------------------------------------------------------------------------- create
def _create_infer(shape: Index, dtype: DType, layout: Any, manual: bool, init: Expr | None) -> TensorType:
    if init is not None:
        require_scalar("create_tensor", dtype, init)
    return TensorType(tuple(as_dim(d) for d in shape), dtype)


def _create_tile_infer(shape: Index, dtype: DType, layout: Any, manual: bool, init: Expr | None) -> TileType:
    dims = static_shape("create_tensor", shape)
    if init is not None:
        require_scalar("create_tensor", dtype, init)
    return TileType(dims, dtype, dims)


def _create_tile_reference(shape: Any, dtype: DType, layout: Any, manual: bool, init: Any) -> TileValue:
    if init is not None:
        return TileValue(filled("pl.create_tensor", shape, init, torch_dtype(dtype)), tuple(shape))
    data = torch.zeros(shape, dtype=torch_dtype(dtype))
    return TileValue(data, tuple(shape), torch.zeros(shape, dtype=torch.bool))


_CREATE = (
    OpParam("shape", Kind.INDEX),
    OpParam("dtype", Kind.DTYPE),
    OpParam("layout", Kind.CHOICE, "ND", ("ND", "NZ")),
    OpParam("manual_dep", Kind.BOOL, False),
    OpParam("init_value", Kind.SCALAR, None),
)
CREATE = op(
    "create", *_CREATE, spelling="create_tensor",
    doc="Outside of a region: a tensor in global memory, undefined unless ``init_value`` is given.  "
    "``layout`` and ``manual_dep`` are hints; results do not change.",
    infer=_create_infer, unit=Unit.NONE, accepts=lambda first, inside: not inside, outside=True,
)  # fmt: skip
CREATE_TILE = op(
    "create_tile", *_CREATE, spelling="create_tensor",
    doc="Inside a region: a tile without a value, the place of an accumulator.",
    infer=_create_tile_infer, unit=Unit.NONE, reference=_create_tile_reference,
    accepts=lambda first, inside: inside,
)  # fmt: skip


def _full_infer(shape: Index, dtype: DType, value: Expr) -> TileType:
    dims = static_shape("full", shape)
    require_scalar("full", dtype, value)
    return TileType(dims, dtype, dims)


def _full_reference(shape: Any, dtype: DType, value: Any) -> TileValue:
    return TileValue(filled("pl.full", shape, value, torch_dtype(dtype)), tuple(shape))


FULL = op(
    "full", OpParam("shape", Kind.INDEX), OpParam("dtype", Kind.DTYPE), OpParam("value", Kind.SCALAR),
    doc="A tile with one value everywhere.", infer=_full_infer, reference=_full_reference,
    samples=(Sample(((16, 32), FP32, 1.5)), Sample(((8, 8), INT32, 3))),
)  # fmt: skip


_RAMPS = (INT16, INT32, UINT16, UINT32)  # what the instruction counts in


def _last(start: Any, n: int, descending: bool) -> Any:
    """The last number of a ramp of ``n``."""
    return start - (n - 1) if descending else start + (n - 1)


def _arange_infer(start: Expr, shape: Index, dtype: DType, descending: bool) -> TileType:
    dims = static_shape("arange", shape)
    require(
        len(dims) == 2 and dims[0] == 1 and dims[1] > 1, Diag.SHAPE, "pl.arange",
        f"it makes one row of two elements or more, got {list(dims)}",
        "make [1, N], and repeat it down the rows with pl.col_expand",
    )  # fmt: skip
    require(
        dtype in _RAMPS, Diag.DTYPE, "pl.arange", f"it counts in {', '.join(map(str, _RAMPS))}, got {dtype}",
        f"count in pl.INT32, then pl.cast(ramp, pl.{dtype})",
    )  # fmt: skip
    if isinstance(start, Const) and start.dtype.is_integer:
        for end in (start.value, _last(start.value, dims[1], descending)):
            require_scalar("arange", dtype, Const(end))
    else:
        require(
            start.dtype == dtype, Diag.DTYPE, "pl.arange",
            f"start is {start.dtype} and the elements are {dtype}", f"pl.cast(start, pl.{dtype})",
        )  # fmt: skip
    return TileType(dims, dtype, dims)


def _arange_reference(start: int, shape: Any, dtype: DType, descending: bool) -> TileValue:
    element = torch_dtype(dtype)
    end = _last(start, shape[1], descending)
    for limit in (start, end):  # Python's integers: a start beyond 64 bits is found too
        require_range("pl.arange", limit, element)
    step = -1 if descending else 1
    return TileValue(torch.arange(start, end + step, step)[None].to(element), tuple(shape))


def _arange_split(axis: int, let: Let) -> str | None:
    return "each lane would count from start" if axis == 1 else None


ARANGE = op(
    "arange", OpParam("start", Kind.SCALAR), OpParam("shape", Kind.INDEX), OpParam("dtype", Kind.DTYPE),
    OpParam("descending", Kind.BOOL, False),
    doc="One row [1, N] of the integers ``start``, ``start + 1``, ..., or with ``descending`` ``start``, "
    "``start - 1``, ...  ``dtype`` is INT16, INT32, UINT16 or UINT32, and a ``start`` that is known at run "
    "time only has that type.  A ramp that leaves the type is an error; it does not wrap.",
    infer=_arange_infer, reference=_arange_reference, cost=elements_cost, split=_arange_split,
    samples=(
        Sample((0, (1, 32), INT32)),
        Sample((5, (1, 32), INT32), (("descending", True),)),
        Sample((-(2**15), (1, 16), INT16)),
        Sample((2**32 - 1, (1, 16), UINT32, True)),
    ),
)  # fmt: skip


# --------------------------------------------------------------------------------------------- reshape
def _same_count(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool | None:
    """Whether two shapes hold the same number of elements; None if that is known at run time only."""
    x: Expr = index(1)
    y: Expr = index(1)
    for d in a:
        x = binary("*", x, dim_expr(d))
    for d in b:
        y = binary("*", y, dim_expr(d))
    xa, ya = as_dim(x), as_dim(y)
    return xa == ya if isinstance(xa, int) and isinstance(ya, int) else None


def _check_count(a: TensorType | TileType, shape: tuple[Dim, ...]) -> None:
    require(
        _same_count(a.shape, shape) is not False, Diag.SHAPE, "pl.reshape",
        f"{describe(a)} does not have the elements of [{', '.join(map(show_dim, shape))}]",
        "the product of the extents stays the same",
    )  # fmt: skip


def _view_reshape_infer(t: Expr, shape: Index) -> TensorType:
    base, dims = tensor_type(t), tuple(as_dim(d) for d in shape)
    _check_count(base, dims)
    return TensorType(dims, base.dtype)


def _view_reshape_reference(t: GlobalMemory, shape: Any) -> Any:
    return t.reshape(shape)


def _reshape_infer(x: Expr, shape: Index) -> TileType:
    t, dims = tile_type(x), static_shape("reshape", shape)
    _check_count(t, dims)
    if t.is_full:
        return TileType(dims, t.dtype, dims)
    live = _regrouped(t.shape, t.valid, dims)
    if live is None:
        raise user_error(
            Diag.SHAPE, op="pl.reshape",
            why=f"{describe(t)} has a valid rectangle, which a reshape to {list(dims)} would tear apart",
            fix="pl.fillpad it first",
        )  # fmt: skip
    return TileType(dims, t.dtype, live)


def _regrouped(old: tuple[int, ...], valid: tuple[Any, ...], new: tuple[int, ...]) -> tuple[Any, ...] | None:
    """The valid extents after a reshape that only adds or drops axes of extent 1; None for any other."""
    if old == new:
        return valid
    axes = [(d, v) for d, v in zip(old, valid, strict=True) if d != 1]
    whole = all(v == 1 for d, v in zip(old, valid, strict=True) if d == 1)
    if not whole or [d for d, _ in axes] != [d for d in new if d != 1]:
        return None
    rest = iter(axes)
    return tuple(1 if d == 1 else next(rest)[1] for d in new)


def _reshape_reference(x: TileValue, shape: Any) -> TileValue:
    dims = tuple(shape)
    live = dims if x.valid == x.shape else _regrouped(x.shape, x.valid, dims)
    if live is None:
        raise user_error(
            Diag.INVALID_READ, op="pl.reshape", tensor="a tile",
            why=f"only {list(x.valid)} of {list(x.shape)} is valid", fix="pl.fillpad it first",
        )  # fmt: skip
    return TileValue(x.read().reshape(live), dims)


def _reshape_split(axis: int, let: Let) -> str | None:
    old, new = tile_type(let.args[0]), tile_type(let.result)
    if old.shape == new.shape or (singleton(old, axis) and singleton(new, axis)):
        return None
    halves = not singleton(old, axis) and not singleton(new, axis)
    if halves and old.shape[:axis] == new.shape[:axis] and old.shape[axis] % 2 == new.shape[axis] % 2 == 0:
        return None  # row-major: the first half of the axis is the same elements on both sides
    return f"it moves elements of {describe(old)} across the lanes of {describe(new)}"


_X = OpParam("x", Kind.TILE, synonyms=("input",))
_SHAPE_ONLY = OpParam("shape", Kind.INDEX)
VIEW_RESHAPE = op(
    "view_reshape", OpParam("t", Kind.TENSOR, synonyms=("input",)), _SHAPE_ONLY, spelling="reshape",
    doc="A tensor with other extents, row-major, no data moves.", infer=_view_reshape_infer, unit=Unit.NONE,
    reference=_view_reshape_reference, accepts=lambda first, inside: isinstance(first, TensorType),
    outside=True, alias="t",
)  # fmt: skip
RESHAPE = op(
    "reshape", _X, _SHAPE_ONLY, doc="A tile with other extents, row-major, zero copy.",
    infer=_reshape_infer, reference=_reshape_reference, accepts=accepts(True, TileType), split=_reshape_split,
    alias="x",
    samples=(
        Sample((T((16, 32), FP32), (32, 16))),
        Sample((T((1, 64), BF16), (4, 16))),
        Sample((T((16, 1), FP32), (1, 16))),
        Sample((T((16, 32), FP32), (16, 4, 8))),
    ),
)  # fmt: skip


def _validshape_infer(x: Expr, rows: Expr, cols: Expr) -> TileType:
    t = tile_type(x)
    require(
        t.rank == 2, Diag.SHAPE, "pl.set_validshape", f"needs two axes, got {describe(t)}", "reshape it first"
    )
    require(
        rows.dtype.is_integer and cols.dtype.is_integer, Diag.DTYPE, "pl.set_validshape",
        "the valid extents are not integers", "use integers or index scalars",
    )  # fmt: skip
    live = tuple(as_dim(d) for d in (rows, cols))
    for d, old, extent in zip(live, t.valid, t.shape, strict=True):
        require(
            not smaller(extent, d) and (old is None or not smaller(old, d)), Diag.SHAPE, "pl.set_validshape",
            f"{show_dim(d)} is more than the {show_dim(old)} valid elements of {describe(t)}",
            "the valid rectangle can only shrink; pl.fillpad makes elements valid",
        )  # fmt: skip
    return TileType(t.shape, t.dtype, live)


def _validshape_reference(x: TileValue, rows: int, cols: int) -> TileValue:
    check_valid("set_validshape", (rows, cols), x.shape)
    return TileValue(x.read((rows, cols)), x.shape)


SET_VALIDSHAPE = op(
    "set_validshape", _X, OpParam("rows", Kind.SCALAR), OpParam("cols", Kind.SCALAR),
    doc="Shrink the valid rectangle to [rows, cols]; no data moves.", infer=_validshape_infer,
    unit=Unit.NONE, reference=_validshape_reference, alias="x",
    samples=(Sample((T((16, 32), FP32), 5, 17)),),
)  # fmt: skip


def _transpose_infer(x: Expr, axis1: Expr, axis2: Expr) -> TileType:
    t = tile_type(x)
    require(
        t.rank == 2, Diag.SHAPE, "pl.transpose", f"needs two axes, got {describe(t)}", "reshape it first"
    )  # fmt: skip
    require(
        {as_dim(axis1), as_dim(axis2)} in ({0, 1}, {0, -1}, {1, -2}, {-1, -2}), Diag.BAD_ARGUMENT,
        "pl.transpose", "it exchanges two different axes of a tile", "write pl.transpose(x, 0, 1)",
    )  # fmt: skip
    return TileType(t.shape[::-1], t.dtype, t.valid[::-1])


def _transpose_reference(x: TileValue, axis1: int, axis2: int) -> TileValue:
    return TileValue(x.read().t().contiguous(), x.shape[::-1])


def _transpose_split(axis: int, let: Let) -> str | None:
    if all(d == 1 for d in tile_type(let.args[0]).shape):
        return None
    return "it moves elements across the split axis"


TRANSPOSE = op(
    "transpose", _X, OpParam("axis1", Kind.SCALAR), OpParam("axis2", Kind.SCALAR),
    doc="Exchange the two axes of a tile.", infer=_transpose_infer, reference=_transpose_reference,
    split=_transpose_split,
    samples=(Sample((T((16, 32), FP32), 0, 1)), Sample((T((16, 32), BF16, (5, 9)), 0, 1))),
)  # fmt: skip


# --------------------------------------------------------------------------------------------- move
def _move_infer(x: Expr, target_memory: Mem) -> TileType:
    return tile_type(x).with_(space=target_memory)


def _move_reference(x: TileValue, target_memory: Mem) -> TileValue:
    return x


MOVE = op(
    "move", _X, OpParam("target_memory", Kind.MEM),
    doc="Move a tile to another memory space; values stay.  The compiler inserts these between the cube and "
    "the vector part of a mixed region.", infer=_move_infer, unit=Unit.NONE, reference=_move_reference,
    samples=(Sample((T((16, 32), FP32), Mem.Vec)),),
)  # fmt: skip

OPS: tuple[OpDef, ...] = (
    CREATE, CREATE_TILE, FULL, ARANGE, VIEW_RESHAPE, RESHAPE, SET_VALIDSHAPE, TRANSPOSE, MOVE,
)  # fmt: skip
