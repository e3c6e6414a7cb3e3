"""What each op is on a GPU: the element of its result in terms of the elements of its operands."""

from __future__ import annotations

from pypto_models.errors import Diag, Span, UserError, user_error
from pypto_models.ir.nodes import Let
from pypto_models.ir.types import FP32, DType

from .scalars import DSL_TYPES

BINARY: dict[str, str] = {
    "add": "({a} + {b})", "sub": "({a} - {b})", "mul": "({a} * {b})", "div": "({a} / {b})",
    "maximum": "block.larger({a}, {b})", "minimum": "block.smaller({a}, {b})",
}  # fmt: skip

# exp and rsqrt are the GPU's approximations.  Relative errors: rsqrt 2^-22.4, exp of x 2^-22 + |x| 2^-23,
# since x log2(e) is rounded (the PTX manual on ex2 and rsqrt; tests/backends/on_gpu/test_functions.py).
UNARY: dict[str, str] = {
    "neg": "(-{a})",
    "abs": "cute.math.absf({a})",
    "exp": "cute.math.exp({a}, fastmath=True)",
    "log": "cute.math.log({a})",
    "sqrt": "cute.math.sqrt({a})",
    "rsqrt": "cute.math.rsqrt({a}, fastmath=True)",
    "recip": "block.reciprocal({a})",
}


EXACT = {"rsqrt": "(Float32(1.0) / cute.math.sqrt({a}))"}  # where `high_precision` asks for it


def unary(s: Let, dtype: DType) -> str:
    """The template of an op of one operand with a result of this type."""
    if s.op.name in EXACT and s.arg("high_precision"):
        return EXACT[s.op.name]
    return "block.larger({a}, -{a})" if s.op.name == "abs" and dtype.is_integer else UNARY[s.op.name]


def binary(name: str, dtype: DType) -> str:
    """The template of an op of two operands with a result of this type: integers divide towards zero."""
    return "block.quotient({a}, {b})" if name == "div" and dtype.is_integer else BINARY[name]


COMPARE = ("==", "!=", "<", "<=", ">", ">=")

REDUCE = {
    "row_sum": (1, "sum"), "row_max": (1, "max"), "row_min": (1, "min"), "row_argmax": (1, "argmax"),
    "col_sum": (0, "sum"), "col_max": (0, "max"), "col_min": (0, "min"),
}  # fmt: skip


def wide(dtype: DType) -> str:
    """The type that arithmetic on ``dtype`` runs in: narrow floats compute in fp32, integers as they are."""
    return "Float32" if dtype.is_float else DSL_TYPES[dtype.name]


def refused(span: Span, what: str, why: str, fix: str) -> UserError:
    """The error for something that this backend cannot lower."""
    return user_error(Diag.BACKEND_OP, span, op=what, backend="cute", why=why, fix=fix)


def unsupported(let: Let, why: str) -> UserError:
    """The error for an op that this backend has no lowering for."""
    return refused(let.span, let.op.name, why, "write it with other ops, or run it on another backend")


def arithmetic(template: str, result: DType, *operands: tuple[str, DType]) -> str:
    """An elementwise op: operands widened, the result rounded once to its type."""
    names = dict(
        zip(
            "ab",
            (f"{wide(result)}({v})" if d != FP32 or result != FP32 else v for v, d in operands),
            strict=False,
        )
    )
    value = template.format(**names)
    return value if DSL_TYPES[result.name] == wide(result) else f"{DSL_TYPES[result.name]}({value})"
