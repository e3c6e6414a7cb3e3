"""Scalar expressions and element types in CuTe DSL."""

from __future__ import annotations

from collections.abc import Callable

from pypto_models.errors import InternalError
from pypto_models.ir.expr import Binary, Const, DimVar, Expr, Unary, Var
from pypto_models.ir.types import DType

# An index counts rows, columns or blocks and stays below 2^31: the launcher checks every extent.  Offsets of
# elements are Int64 (see tensors.py).
DSL_TYPES = {
    "INDEX": "Int32", "INT32": "Int32", "INT64": "Int64", "INT16": "Int16", "INT8": "Int8", "BOOL": "Boolean",
    "UINT8": "Uint8", "UINT16": "Uint16", "UINT32": "Uint32", "FP32": "Float32", "BF16": "BFloat16",
    "FP16": "Float16",
}  # fmt: skip


def dsl_type(dtype: DType) -> str | None:
    """The DSL's name of an element type; None if a kernel cannot hold it."""
    return DSL_TYPES.get(dtype.name)


def literal(value: float | int | bool, dtype: DType) -> str:
    """A constant of a type."""
    name = DSL_TYPES[dtype.name]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f"{name}(float({str(value)!r}))"
    return f"{name}({value!r})"


def scalar(x: Expr, read: Callable[[Expr], str]) -> str:
    """The text of an expression; ``read`` names variables and run-time extents."""
    if isinstance(x, Const):
        return repr(x.value) if x.dtype.is_integer and x.dtype.name != "BOOL" else literal(x.value, x.dtype)
    if isinstance(x, Var | DimVar):
        return read(x)
    if isinstance(x, Unary):
        a = scalar(x.operand, read)
        if x.op == "cast":
            return f"{DSL_TYPES[x.dtype.name]}({a})"
        if x.op == "not":
            return f"({a} == Boolean(False))"
        return f"(-{a})"
    if not isinstance(x, Binary):
        raise InternalError(f"no text for {type(x).__name__}")
    a, b = scalar(x.lhs, read), scalar(x.rhs, read)
    if x.op in ("min", "max"):
        return f"{x.op}({typed(x.lhs, a)}, {typed(x.rhs, b)})"
    if x.op == "%":  # the DSL's % truncates, the language's floors
        return f"({a} - {a} // {b} * {b})"
    if x.op == "/":
        return f"(Float32({a}) / Float32({b}))"
    if x.op in ("and", "or"):
        return f"({typed(x.lhs, a)} {'&' if x.op == 'and' else '|'} {typed(x.rhs, b)})"
    return f"({a} {x.op} {b})"


def typed(x: Expr, text: str) -> str:
    """``text`` as a value of the DSL: a bare literal has no type there."""
    return f"{DSL_TYPES[x.dtype.name]}({text})" if isinstance(x, Const) else text
