"""Conversions between element types, in every rounding mode of the language (`pypto_models.ops.rounding`)."""

from __future__ import annotations

from pypto_models.ir.nodes import Let
from pypto_models.ir.types import BOOL, FP32, INT32, DType

from .handlers import handles, operands, pointwise, result_type
from .kernel import Kernel
from .rules import unsupported
from .scalars import DSL_TYPES, literal
from .tiles import as_type

NEAREST = ("rint", "none")  # ties to even
WHOLE = {
    "none": "cute.math.roundeven", "rint": "cute.math.roundeven", "floor": "cute.math.floor",
    "ceil": "cute.math.ceil", "trunc": "cute.math.trunc", "round": "cute.math.round",
}  # fmt: skip


@handles("cast")
def _cast(k: Kernel, s: Let) -> None:
    out = result_type(s)
    layout, (x,) = operands(k, s)
    mode = str(s.arg("mode"))
    k.tiles[s.result] = pointwise(
        layout, out, lambda t, c: rounded(s, x.value(t, c), x.dtype, out.dtype, mode), x
    )


def rounded(s: Let, value: str, old: DType, new: DType, mode: str) -> str:
    """The text of ``value`` as ``new``; integers saturate."""
    if old == new:
        return value
    if new == BOOL:
        return f"({value} != {literal(0.0 if old.is_float else 0, old)})"
    if new.is_integer:
        return whole(s, value, old, new, mode)
    exact = old.is_float or old.bits <= 16  # in fp32
    if exact and new != FP32 and mode not in NEAREST:
        return f"block.narrowed(Float32({value}), {DSL_TYPES[new.name]}, {mode!r})"
    if not exact and mode not in (*NEAREST, "round"):
        raise unsupported(s, f"rounding mode {mode!r} from {old} to {new}: integers go to the nearest")
    return as_type(value, old, new)


def whole(s: Let, value: str, old: DType, new: DType, mode: str) -> str:
    """A number as an integer type, at its ends where it is beyond them."""
    if old.is_float:
        if mode not in WHOLE:
            raise unsupported(s, f"rounding mode {mode!r} to an integer")
        value = f"{WHOLE[mode]}(Float32({value}))"
        if new.bits >= 32:  # the conversion saturates
            return f"{DSL_TYPES[new.name]}({value})"
        old, value = INT32, f"Int32({value})"
    low, high = limits(new)
    first, last = limits(old)
    if low > first:
        value = f"block.larger({value}, {literal(low, old)})"
    if high < last:
        value = f"block.smaller({value}, {literal(high, old)})"
    return as_type(value, old, new)


def limits(dtype: DType) -> tuple[int, int]:
    if dtype == BOOL:
        return 0, 1
    if dtype.kind == "uint":
        return 0, 2**dtype.bits - 1
    return -(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1) - 1
