"""Matrix products on the cube unit: fp32 accumulation for floats, int32 for integers.

Only the valid rectangles take part: the result is valid on (rows of lhs, columns of rhs), and the valid
extents of the contraction must agree.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import Diag, user_error
from ..ir.expr import Expr
from ..ir.nodes import Let, Unit
from ..ir.types import BF16, FP8E8M0, FP16, FP32, INT8, INT16, INT32, UINT8, DType, TileType
from .common import common_dtype, describe, require, require_rank2, same_dim, tile_type
from .registry import Cost, Kind, OpDef, OpParam, Sample, T, op
from .value import TileValue, promoted, torch_dtype

_OPERANDS = (INT8, UINT8, INT16, INT32)  # and floats


def _shape(name: str, lhs: Expr, rhs: Expr, a_trans: bool, b_trans: bool) -> TileType:
    a, b = tile_type(lhs), tile_type(rhs)
    require_rank2(name, a, b)
    for t in (a, b):
        require(
            t.dtype in _OPERANDS or t.dtype.is_float and t.dtype != FP8E8M0, Diag.DTYPE, f"pl.{name}",
            f"an operand is {describe(t)}", f"operands are floats, {', '.join(map(str, _OPERANDS))}",
        )  # fmt: skip
    m, ka = (1, 0) if a_trans else (0, 1)
    kb, n = (1, 0) if b_trans else (0, 1)
    if a.shape[ka] != b.shape[kb]:
        transposed = a.shape[ka] == b.shape[n]
        raise user_error(
            Diag.SHAPE, op=f"pl.{name}",
            why=f"the inner extents differ: lhs {describe(a)} gives K = {a.shape[ka]}, "
            f"rhs {describe(b)} gives K = {b.shape[kb]}",
            fix=f"pass b_trans={not b_trans}" if transposed else "slice both operands with one K extent",
        )  # fmt: skip
    require(
        a.dtype.is_float == b.dtype.is_float, Diag.DTYPE, f"pl.{name}",
        f"the operands are {a.dtype} and {b.dtype}", "cast both to float, or both to integer",
    )  # fmt: skip
    known = isinstance(a.valid[ka], int) and isinstance(b.valid[kb], int)
    require(
        not known or same_dim(a.valid[ka], b.valid[kb]), Diag.SHAPE, f"pl.{name}",
        f"the valid inner extents differ: {a.valid[ka]} and {b.valid[kb]}",
        "fill the shorter one with pl.fillpad, or give both one valid shape",
    )  # fmt: skip
    dtype = common_dtype(name, a.dtype, b.dtype)
    return TileType((a.shape[m], b.shape[n]), dtype, (a.valid[m], b.valid[n]))


def _infer(lhs: Expr, rhs: Expr, out_dtype: DType | None, a_trans: bool, b_trans: bool, nz: bool) -> TileType:
    t = _shape("matmul", lhs, rhs, a_trans, b_trans)
    if t.dtype.is_float:
        ok, default, choices = out_dtype is None or out_dtype.is_float, t.dtype, "a float type"
    else:
        ok, default, choices = out_dtype in (None, INT32), INT32, "INT32"
    require(
        ok, Diag.DTYPE, "pl.matmul", f"out_dtype={out_dtype} of a product of {t.dtype}",
        f"the product is {choices}: pl.cast the result",
    )  # fmt: skip
    return TileType(t.shape, out_dtype or default, t.valid)


def _infer_acc(acc: Expr, lhs: Expr, rhs: Expr, a_trans: bool, b_trans: bool, init: Expr | None) -> TileType:
    t, c = _shape("matmul_acc", lhs, rhs, a_trans, b_trans), tile_type(acc)
    want = FP32 if t.dtype.is_float else INT32
    require(
        c.shape == t.shape, Diag.SHAPE, "pl.matmul_acc",
        f"the accumulator is {describe(c)}, the product {list(t.shape)}",
        f"create it as pl.create_tensor({list(t.shape)}, pl.{want})",
    )  # fmt: skip
    require(
        c.dtype == want, Diag.DTYPE, "pl.matmul_acc", f"the accumulator is {c.dtype}, it must be {want}",
        f"use out_dtype=pl.{want} in the first pl.matmul, or create it with pl.{want}",
    )  # fmt: skip
    return TileType(c.shape, c.dtype, t.valid)


def product(lhs: TileValue, rhs: TileValue, a_trans: bool, b_trans: bool) -> torch.Tensor:
    """The product of the valid rectangles, in fp32 or int32."""
    a, b = lhs.read(), rhs.read()
    if a_trans:
        a = a.t()
    if b_trans:
        b = b.t()
    if a.shape[1] != b.shape[0]:
        raise user_error(
            Diag.INVALID_READ, op="the matrix product", tensor="an operand",
            why=f"{a.shape[1]} inner elements of lhs are valid and {b.shape[0]} of rhs",
            fix="fill the shorter one with pl.fillpad, or give both one valid shape",
        )  # fmt: skip
    if a.dtype.is_floating_point:
        return a.float() @ b.float()
    return (a.to(torch.int32) @ b.to(torch.int32)).to(torch.int32)


def _reference(
    lhs: TileValue, rhs: TileValue, out_dtype: DType | None, a_trans: bool, b_trans: bool, nz: bool
) -> TileValue:
    out = product(lhs, rhs, a_trans, b_trans)
    if out_dtype is not None:
        out = out.to(torch_dtype(out_dtype))
    elif out.dtype == torch.float32:
        out = out.to(promoted(lhs.data.dtype, rhs.data.dtype))
    return TileValue(out, (lhs.shape[int(a_trans)], rhs.shape[int(not b_trans)]))


def _reference_acc(
    acc: TileValue, lhs: TileValue, rhs: TileValue, a_trans: bool, b_trans: bool, init: Any
) -> TileValue:
    out = product(lhs, rhs, a_trans, b_trans)
    if not init:
        out = acc.read(tuple(out.shape)) + out
    return TileValue(out, acc.shape)


def _cost(let: Let) -> Cost:
    lhs, out = tile_type(let.arg("lhs")), tile_type(let.result)
    return Cost(flops=2 * out.elements * lhs.shape[0 if let.arg("a_trans") else 1])


def _split(axis: int, let: Let) -> str | None:
    return None  # the cube unit always works on whole tiles


_LHS, _RHS = OpParam("lhs", Kind.TILE), OpParam("rhs", Kind.TILE)
_A_TRANS, _B_TRANS = OpParam("a_trans", Kind.BOOL, False), OpParam("b_trans", Kind.BOOL, False)

MATMUL = op(
    "matmul", _LHS, _RHS, OpParam("out_dtype", Kind.DTYPE, None), _A_TRANS, _B_TRANS,
    OpParam("c_matrix_nz", Kind.BOOL, False),
    doc="lhs [M, K] @ rhs [K, N], accumulated in fp32 (int32 for integers).  With ``a_trans`` lhs is [K, M], "
    "with ``b_trans`` rhs is [N, K].  The result is ``out_dtype``, by default the promoted operand type.  "
    "fp32 operands multiply in true fp32.  ``c_matrix_nz`` is a layout hint.",
    infer=_infer, unit=Unit.CUBE, reference=_reference, cost=_cost, split=_split,
    samples=(
        Sample((T((16, 32), BF16), T((32, 16), BF16)), (("out_dtype", FP32),)),
        Sample((T((16, 32), BF16), T((48, 32), BF16)), (("out_dtype", FP32), ("b_trans", True))),
        Sample((T((32, 16), FP32), T((32, 16), FP32)), (("a_trans", True),)),
        Sample(
            (T((16, 32), BF16, (5, 20)), T((16, 32), BF16, (9, 20))), (("out_dtype", FP32), ("b_trans", True))
        ),
        Sample((T((16, 32), INT8, low=-9, high=9), T((32, 32), INT8, low=-9, high=9))),
        Sample((T((16, 32), FP16), T((32, 16), FP16))),
    ),
)  # fmt: skip

MATMUL_ACC = op(
    "matmul_acc", OpParam("acc", Kind.TILE), _LHS, _RHS, _A_TRANS, _B_TRANS,
    OpParam("init_cond", Kind.SCALAR, None),
    doc="acc + lhs @ rhs, with ``a_trans`` and ``b_trans`` as in pl.matmul.  acc is fp32 (int32 for "
    "integers).  Where ``init_cond`` is true the old acc is ignored, so that it needs no initial value.",
    infer=_infer_acc, unit=Unit.CUBE, reference=_reference_acc, cost=_cost, split=_split, inplace=("acc",),
    combine="add",
    samples=(
        Sample((T((16, 16), FP32), T((16, 32), BF16), T((32, 16), BF16))),
        Sample((T((16, 16), FP32), T((16, 32), BF16), T((16, 32), BF16)), (("b_trans", True),)),
        Sample((T((16, 16), FP32), T((32, 16), BF16), T((32, 16), BF16)), (("a_trans", True),)),
        Sample((T((16, 32), INT32), T((16, 32), INT8, low=-9, high=9), T((32, 32), INT8, low=-9, high=9))),
    ),
)  # fmt: skip

OPS: tuple[OpDef, ...] = (MATMUL, MATMUL_ACC)
