"""What each op is in Triton: its result in terms of its operands, which are fp32 or integers."""

from __future__ import annotations

from pypto_models.errors import Diag, Span, UserError, user_error
from pypto_models.ir.nodes import Let
from pypto_models.ir.types import DType

from .types import TYPES

BINARY: dict[str, str] = {
    "add": "{a} + {b}",
    "sub": "{a} - {b}",
    "mul": "{a} * {b}",
    "div": "tl.div_rn({a}, {b})",
    "maximum": "tl.maximum({a}, {b}, propagate_nan=tl.PropagateNan.ALL)",
    "minimum": "tl.minimum({a}, {b}, propagate_nan=tl.PropagateNan.ALL)",
}
INTEGER = BINARY | {
    "div": "{a} // {b}",  # towards zero, as Triton divides
    "maximum": "tl.maximum({a}, {b})",
    "minimum": "tl.minimum({a}, {b})",
}

UNARY: dict[str, str] = {
    "neg": "-{a}",
    "abs": "tl.abs({a})",
    "exp": "tl.exp({a})",
    "log": "tl.log({a})",
    "sqrt": "tl.sqrt_rn({a})",
    "rsqrt": "tl.div_rn(1.0, tl.sqrt_rn({a}))",
    "recip": "tl.div_rn(1.0, {a})",
}

COMPARE = ("==", "!=", "<", "<=", ">", ">=")

REDUCE = {
    "row_sum": (1, "sum"), "row_max": (1, "max"), "row_min": (1, "min"), "row_argmax": (1, "argmax"),
    "col_sum": (0, "sum"), "col_max": (0, "max"), "col_min": (0, "min"),
}  # fmt: skip


def binary(name: str, dtype: DType) -> str:
    """The template of an op of two operands with a result of this type."""
    return (BINARY if dtype.is_float else INTEGER)[name]


def as_type(value: str, old: DType, new: DType) -> str:
    """A conversion that rounds to nearest even, or is exact."""
    return value if old == new else f"{value}.to({TYPES[new.name]})"


def refused(span: Span, what: str, why: str, fix: str) -> UserError:
    """The error for something that this backend cannot lower."""
    return user_error(Diag.BACKEND_OP, span, op=what, backend="triton", why=why, fix=fix)


def unsupported(let: Let, why: str) -> UserError:
    """The error for an op that this backend has no lowering for."""
    return refused(let.span, let.op.name, why, "write it with other ops, or run it on another backend")
