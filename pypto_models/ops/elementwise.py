"""Elementwise ops on tiles: unary, binary with a tile or a scalar, and the row and column broadcasts.

The result's valid rectangle is the first operand's.  Floats narrower than fp32 compute in fp32 and round
once, ties to even; integers wrap at their width.  Operands of two types compute in the common one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import Diag, user_error
from ..ir.expr import Expr
from ..ir.types import BF16, FP8E5M2, FP8E8M0, FP16, FP32, INT8, INT32, UINT16, DType, TileType
from . import rounding
from .common import (
    common_dtype,
    describe,
    elements_cost,
    is_tile,
    require,
    require_float,
    require_number,
    require_rank2,
    require_scalar,
    tile_type,
)
from .registry import Kind, OpDef, OpParam, Sample, T, op
from .value import TileValue, promoted, torch_dtype

Unary = Callable[[torch.Tensor], torch.Tensor]
BinaryFn = Callable[[torch.Tensor, Any], torch.Tensor]

X = OpParam("x", Kind.TILE, synonyms=("input",))
LHS = OpParam("lhs", Kind.TILE)


def _like(x: TileType, dtype: DType | None = None) -> TileType:
    return TileType(x.shape, dtype or x.dtype, x.valid)


def _compute(fn: Callable[..., torch.Tensor], dtype: torch.dtype, *xs: Any) -> torch.Tensor:
    """``fn`` in fp32 for floats, in int64 for integers: torch has no arithmetic on every narrow type."""
    wide = torch.float32 if dtype.is_floating_point else torch.int64
    # A conversion to the same type costs as much as the op on a small tile, so it is left out
    args = [x.to(wide) if isinstance(x, torch.Tensor) and x.dtype != wide else x for x in xs]
    out = fn(*args)
    return out if out.dtype == dtype else out.to(dtype)


def _unary(
    name: str,
    doc: str,
    fn: Unary,
    integers: bool = False,
    low: float = -2.0,
    in_place: bool = True,
    **extra: Any,
) -> OpDef:
    def infer(x: Expr, *_: Any) -> TileType:
        (require_number if integers else require_float)(name, tile_type(x))
        return _like(tile_type(x))

    def reference(x: TileValue, *_: Any) -> TileValue:
        data = x.read()
        return TileValue(_compute(fn, data.dtype, data), x.shape)

    params = extra.pop("params", ())
    samples = [Sample((T((16, 32), FP32, low=low),)), Sample((T((16, 32), FP32, (5, 17), low=low),))]
    samples.append(Sample((T((16, 32), BF16, low=low),)))
    if integers:
        samples.append(Sample((T((8, 8), INT32, low=-9, high=9),)))
    return op(
        name, X, *params, doc=doc, infer=infer, reference=reference, cost=elements_cost,
        inplace=("x",) if in_place else (), samples=tuple(samples),
    )  # fmt: skip


# Associative, so that the trips of a loop may be combined in any order
_COMBINE = {"add": "add", "mul": "mul", "maximum": "max", "minimum": "min"}


def _binary(name: str, doc: str, fn: BinaryFn) -> OpDef:
    def infer(lhs: Expr, rhs: Expr) -> TileType:
        a = tile_type(lhs)
        require_number(name, a)
        if not is_tile(rhs):
            require_scalar(name, a.dtype, rhs)
            return _like(a)
        b = tile_type(rhs)
        require_number(name, b)
        if a.shape != b.shape:
            raise user_error(
                Diag.SHAPE, op=f"pl.{name}", why=f"the shapes differ: {describe(a)} and {describe(b)}",
                fix=_broadcast_hint(name, a, b),
            )  # fmt: skip
        return _like(a, common_dtype(name, a.dtype, b.dtype))

    def reference(lhs: TileValue, rhs: TileValue | int | float) -> TileValue:
        a = lhs.read()
        if not isinstance(rhs, TileValue):
            return TileValue(_compute(fn, a.dtype, a, rhs), lhs.shape)
        b = rhs.read(tuple(a.shape))
        dtype = promoted(a.dtype, b.dtype)
        return TileValue(_compute(fn, dtype, a, b), lhs.shape)

    divides = name == "div"
    low = 0.5 if divides else -2.0
    return op(
        name, LHS, OpParam("rhs", Kind.TILE_OR_SCALAR), doc=doc, infer=infer, reference=reference,
        cost=elements_cost, inplace=("lhs", "rhs"), combine=_COMBINE.get(name),
        samples=(
            Sample((T((16, 32), FP32), T((16, 32), FP32, low=low))),
            Sample((T((16, 32), FP32, (3, 20)), T((16, 32), FP32, (9, 32), low=low))),
            Sample((T((16, 32), BF16), T((16, 32), FP32, low=low))),
            Sample((T((16, 32), FP32), 1.5)),
            Sample((T((16, 32), INT32, low=-9, high=9), T((16, 32), INT8, low=1, high=9))),
            Sample((T((16, 32), UINT16, low=0, high=9), 3)),
        ),
    )  # fmt: skip


def _broadcast_hint(name: str, a: TileType, b: TileType) -> str:
    if a.rank == 2 and b.rank == 2 and name in ("add", "sub", "mul", "div"):
        if b.shape == (a.shape[0], 1):
            return f"broadcast a column over the row: pl.row_expand_{name}(lhs, rhs)"
        if b.shape == (1, a.shape[1]):
            return f"broadcast a row over the rows: pl.col_expand_{name}(lhs, rhs)"
    return "both operands need one shape; broadcasts are spelled pl.row_expand_* and pl.col_expand_*"


def _second(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return b.expand(a.shape).clone()  # a tile is stored element by element, and may be changed in place


def _expand(name: str, doc: str, fn: BinaryFn, along_rows: bool) -> OpDef:
    """``along_rows``: rhs is a column [M, 1], repeated along each row; else a row [1, N], repeated down."""

    def infer(lhs: Expr, rhs: Expr) -> TileType:
        a, b = tile_type(lhs), tile_type(rhs)
        require_rank2(name, a, b)
        require_number(name, a, b)
        want = (a.shape[0], 1) if along_rows else (1, a.shape[1])
        require(
            b.shape == want, Diag.SHAPE, f"pl.{name}",
            f"lhs is {describe(a)}, so rhs must be {list(want)}, got {describe(b)}",
            "use the other broadcast (row_expand takes [M, 1], col_expand takes [1, N]) or pl.reshape",
        )  # fmt: skip
        return _like(a, common_dtype(name, a.dtype, b.dtype))

    def reference(lhs: TileValue, rhs: TileValue) -> TileValue:
        # A plain broadcast takes only the extents of its target, which may be a tile without a value
        a = lhs.data if fn is _second else lhs.read()
        b = rhs.read((a.shape[0], 1) if along_rows else (1, a.shape[1]))
        dtype = promoted(a.dtype, b.dtype)
        return TileValue(_compute(fn, dtype, a, b), lhs.shape)

    vector = (16, 1) if along_rows else (1, 32)
    part = (5, 1) if along_rows else (1, 20)
    return op(
        name, LHS, OpParam("rhs", Kind.TILE), doc=doc, infer=infer, reference=reference, cost=elements_cost,
        inplace=("lhs",),
        samples=(
            Sample((T((16, 32), FP32), T(vector, FP32, low=0.5))),
            Sample((T((16, 32), FP32, (5, 20)), T(vector, FP32, part, low=0.5))),
            Sample((T((16, 32), BF16), T(vector, FP32, low=0.5))),
        ),
    )  # fmt: skip


def _cast_infer(x: Expr, target_type: DType, mode: str) -> TileType:
    return _like(tile_type(x), target_type)


def _cast_reference(x: TileValue, target_type: DType, mode: str) -> TileValue:
    return TileValue(rounding.convert(x.read(), torch_dtype(target_type), mode), x.shape)


def require_pad(name: str, dtype: DType, pad_value: str | float) -> None:
    """Refuse a pad value that the type does not have."""
    number = isinstance(pad_value, str)
    require(
        number or dtype in (FP16, BF16, FP32, FP8E5M2), Diag.DTYPE, f"pl.{name}",
        f"{dtype} has no infinity", "pad with pl.PadValue.min or pl.PadValue.max",
    )  # fmt: skip
    require(
        pad_value != "zero" or dtype != FP8E8M0, Diag.DTYPE, f"pl.{name}", f"{dtype} has no zero",
        "pad with pl.PadValue.min",
    )  # fmt: skip


def _fillpad_infer(x: Expr, pad_value: str | float) -> TileType:
    t = tile_type(x)
    require_pad("fillpad", t.dtype, pad_value)
    return TileType(t.shape, t.dtype, t.shape)


def pad_number(pad_value: str | float, dtype: torch.dtype) -> float | int:
    """The number of a pad value: ``zero``, ``min`` and ``max`` are 0 and the finite limits of the type."""
    if isinstance(pad_value, str):
        if dtype == torch.bool:
            return int(pad_value == "max")
        info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
        return {"zero": 0, "min": info.min, "max": info.max}[pad_value]
    return pad_value


def _fillpad_reference(x: TileValue, pad_value: str | float) -> TileValue:
    data = x.read()
    if x.valid == x.shape:
        return x
    out = torch.full(x.shape, pad_number(pad_value, data.dtype), dtype=data.dtype)
    out[tuple(slice(0, d) for d in data.shape)] = data
    return TileValue(out, x.shape)


_COMPARE = (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge)


def _cmp_infer(lhs: Expr, rhs: Expr, cmp_type: int) -> TileType:
    a = tile_type(lhs)
    require_number("cmp", a)
    if not is_tile(rhs):
        require_scalar("cmp", a.dtype, rhs)
    else:
        require_number("cmp", tile_type(rhs))
        common_dtype("cmp", a.dtype, tile_type(rhs).dtype)
        require(
            tile_type(rhs).shape == a.shape, Diag.SHAPE, "pl.cmp",
            f"the shapes differ: {describe(a)} and {describe(tile_type(rhs))}", "compare tiles of one shape",
        )  # fmt: skip
    return _like(a)


def _cmp_reference(lhs: TileValue, rhs: TileValue | float, cmp_type: int) -> TileValue:
    a = lhs.read()
    b = rhs.read(tuple(a.shape)) if isinstance(rhs, TileValue) else rhs
    dtype = promoted(a.dtype, b.dtype) if isinstance(b, torch.Tensor) else a.dtype
    return TileValue(_compute(_COMPARE[cmp_type], dtype, a, b).to(a.dtype), lhs.shape)


CAST = op(
    "cast", X, OpParam("target_type", Kind.DTYPE),
    OpParam("mode", Kind.CHOICE, "round", tuple(rounding.MODES)),
    doc="Convert the element type.  ``mode`` is the rounding: none, rint (ties to even), round (ties away, "
    "the default), floor, ceil, trunc, odd.  The simulator rounds as ``mode`` says; GPU backends round ties "
    "to even in every nearest mode.",
    infer=_cast_infer, reference=_cast_reference, cost=elements_cost, inplace=("x",),
    samples=(
        Sample((T((16, 32), FP32), BF16), (("mode", "rint"),)),
        Sample((T((16, 32), FP32), BF16)),
        Sample((T((16, 32), FP32, (4, 9)), FP16), (("mode", "trunc"),)),
        Sample((T((16, 32), FP32, low=-9, high=9), INT32), (("mode", "floor"),)),
        Sample((T((16, 32), BF16), FP32)),
        Sample((T((8, 8), INT32, low=-9, high=9), FP32)),
    ),
)  # fmt: skip

FILLPAD = op(
    "fillpad", OpParam("x", Kind.TILE, synonyms=("value",)), OpParam("pad_value", Kind.PAD, "zero"),
    doc="Fill the elements outside of the valid rectangle with ``pad_value`` (pl.PadValue.zero, min, max, or "
    "0 and +-inf); the result is valid everywhere.  min and max are the finite limits of the type.",
    infer=_fillpad_infer, reference=_fillpad_reference, cost=elements_cost, inplace=("x",),
    samples=(
        Sample((T((16, 32), FP32, (5, 17)),)),
        Sample((T((16, 32), FP32, (5, 32)), "min")),
        Sample((T((16, 32), INT32, (16, 3), low=-9, high=9), "max")),
    ),
)  # fmt: skip

CMP = op(
    "cmp", LHS, OpParam("rhs", Kind.TILE_OR_SCALAR), OpParam("cmp_type", Kind.CHOICE, 0, (0, 1, 2, 3, 4, 5)),
    doc="Compare elementwise, as ``cmp_type`` says: 0 eq, 1 ne, 2 lt, 3 le, 4 gt, 5 ge.  Gives 0 or 1 in the "
    "type of ``lhs``.",
    infer=_cmp_infer, reference=_cmp_reference, cost=elements_cost, inplace=("lhs",),
    samples=tuple(
        Sample((T((16, 32), INT32, low=-3, high=3), T((16, 32), INT32, low=-3, high=3)), (("cmp_type", i),))
        for i in range(6)
    )
    + (
        Sample((T((16, 32), FP32), 0.0), (("cmp_type", 5),)),
        Sample((T((16, 32), FP32, (3, 9)), T((16, 32), BF16)), (("cmp_type", 2),)),
    ),
)  # fmt: skip


def _recip(x: torch.Tensor) -> torch.Tensor:
    return torch.reciprocal(x)


def _divide(a: torch.Tensor, b: Any) -> torch.Tensor:
    return torch.div(a, b, rounding_mode=None if a.dtype.is_floating_point else "trunc")


OPS: tuple[OpDef, ...] = (
    _binary(
        "add", "lhs + rhs, elementwise; rhs is a tile of the same shape or a scalar.", lambda a, b: a + b
    ),
    _binary("sub", "lhs - rhs, elementwise.", lambda a, b: a - b),
    _binary("mul", "lhs * rhs, elementwise.", lambda a, b: a * b),
    _binary("div", "lhs / rhs, elementwise; integers truncate.", _divide),
    _binary(
        "maximum", "The larger of lhs and rhs, elementwise.",
        lambda a, b: torch.maximum(a, b if isinstance(b, torch.Tensor) else torch.full_like(a, b)),
    ),
    _binary(
        "minimum", "The smaller of lhs and rhs, elementwise.",
        lambda a, b: torch.minimum(a, b if isinstance(b, torch.Tensor) else torch.full_like(a, b)),
    ),
    _unary("neg", "-x.", torch.neg, integers=True),
    _unary("abs", "The absolute value.", torch.abs, integers=True),
    _unary("exp", "e to the x.", torch.exp),
    _unary("log", "The natural logarithm.", torch.log, low=0.1),
    _unary("sqrt", "The square root.", torch.sqrt, low=0.0),
    # The instructions for rsqrt and recip on Ascend read their operand while they write (pypto issue 515)
    _unary(
        "rsqrt", "1 / sqrt(x).  ``high_precision`` asks the target for its exact sequence; the simulator is "
        "exact either way.", torch.rsqrt, low=0.1, params=(OpParam("high_precision", Kind.BOOL, False),),
        in_place=False,
    ),
    _unary("recip", "1 / x.", _recip, low=0.1, in_place=False),
    _expand("row_expand_add", "t[M, N] + v[M, 1], v repeated along each row.", lambda a, b: a + b, True),
    _expand("row_expand_sub", "t[M, N] - v[M, 1], v repeated along each row.", lambda a, b: a - b, True),
    _expand("row_expand_mul", "t[M, N] * v[M, 1], v repeated along each row.", lambda a, b: a * b, True),
    _expand("row_expand_div", "t[M, N] / v[M, 1], v repeated along each row.", _divide, True),
    _expand("col_expand_add", "t[M, N] + v[1, N], v repeated down the rows.", lambda a, b: a + b, False),
    _expand("col_expand_sub", "t[M, N] - v[1, N], v repeated down the rows.", lambda a, b: a - b, False),
    _expand("col_expand_mul", "t[M, N] * v[1, N], v repeated down the rows.", lambda a, b: a * b, False),
    _expand("col_expand_div", "t[M, N] / v[1, N], v repeated down the rows.", _divide, False),
    _expand(
        "row_expand", "v[M, 1] repeated along each row, in the extents and the valid rectangle of t[M, N]; "
        "the elements of t do not matter.", _second, True,
    ),
    _expand(
        "col_expand", "v[1, N] repeated down the rows, in the extents and the valid rectangle of t[M, N]; "
        "the elements of t do not matter.", _second, False,
    ),
    CAST,
    FILLPAD,
    CMP,
)  # fmt: skip
