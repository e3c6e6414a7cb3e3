"""Element types and scalar expressions in Triton."""

from __future__ import annotations

from collections.abc import Callable, Collection

from pypto_models.errors import InternalError
from pypto_models.ir.expr import Binary, Const, DimVar, Expr, Unary, Var
from pypto_models.ir.types import BOOL, FP32, INDEX, INT32, INT64, DType

# An index counts rows, columns or blocks and stays below 2^31: the launcher checks every extent.  Where
# elements are in a tensor is worked out in int64.
TYPES = {
    "INDEX": "tl.int32", "INT32": "tl.int32", "INT64": "tl.int64", "INT16": "tl.int16", "INT8": "tl.int8",
    "BOOL": "tl.int1", "UINT8": "tl.uint8", "UINT16": "tl.uint16", "UINT32": "tl.uint32",
    "FP32": "tl.float32", "BF16": "tl.bfloat16", "FP16": "tl.float16",
}  # fmt: skip


def type_name(dtype: DType) -> str | None:
    """Triton's name of an element type; None if a kernel cannot hold it."""
    return TYPES.get(dtype.name)


def number(value: float | int | bool, dtype: DType) -> str:
    """A constant as it stands in an expression of tensors."""
    if dtype.is_float:
        value = float(value)
        if value != value or value in (float("inf"), float("-inf")):
            return f'float("{value}")'
    return repr(value)


def scalar_type(dtype: DType) -> str:
    """The type that a kernel holds a scalar in: small integers are not to wrap where they meet."""
    return "tl.int32" if dtype.is_integer and dtype.bits < 32 and dtype != BOOL else TYPES[dtype.name]


def typed(value: float | int | bool, dtype: DType) -> str:
    """A constant as a scalar."""
    return f"tl.full((), {number(value, dtype)}, {scalar_type(dtype)})"


class Scalars:
    """The text of scalar expressions; ``read`` names variables and run-time extents."""

    def __init__(self, read: Callable[[Expr], str], natural: Collection[Expr]) -> None:
        self.read = read
        self.natural = natural  # variables that are never negative

    def write(self, x: Expr) -> str:
        if isinstance(x, Const):
            return number(x.value, x.dtype)
        if isinstance(x, Var | DimVar):
            return self.read(x)
        if isinstance(x, Unary):
            a = self.write(x.operand)
            if x.op == "cast":
                return a if same(x.operand.dtype, x.dtype) else f"tl.cast({a}, {TYPES[x.dtype.name]})"
            return f"({a} == 0)" if x.op == "not" else f"(-{a})"
        if not isinstance(x, Binary):
            raise InternalError(f"no text for {type(x).__name__}")
        a, b = self.write(x.lhs), self.write(x.rhs)
        if x.op in ("min", "max"):
            nan = ", propagate_nan=tl.PropagateNan.ALL" if x.dtype.is_float else ""
            return f"tl.{x.op}imum({self.known(x.lhs, a)}, {b}{nan})"
        if x.op in ("//", "%"):
            if self.not_negative(x.lhs) and self.not_negative(x.rhs):
                return f"({a} {x.op} {b})"
            if isinstance(x.rhs, Const) and power_of_two(int(x.rhs.value)):  # the bits round down
                n = int(x.rhs.value)
                return f"({a} >> {n.bit_length() - 1})" if x.op == "//" else f"({a} & {n - 1})"
            return f"tile.floor{'div' if x.op == '//' else 'mod'}({a}, {b})"
        if x.op == "/":
            return f"tl.div_rn(tl.cast({a}, tl.float32), tl.cast({b}, tl.float32))"
        if x.op in ("and", "or"):
            return f"({self.known(x.lhs, a)} {'&' if x.op == 'and' else '|'} {self.known(x.rhs, b)})"
        return f"({a} {x.op} {b})"

    def known(self, x: Expr, text: str) -> str:
        """``text`` as a value that has a type: a bare literal has none."""
        return typed(x.value, x.dtype) if isinstance(x, Const) else text

    def value(self, x: Expr) -> str:
        """The expression as a scalar of its type."""
        if isinstance(x, Const):
            return typed(x.value, x.dtype)
        if x.dtype in (INDEX, INT32, BOOL, FP32):  # what the operators of scalars give by themselves
            return self.write(x)
        return f"tl.cast({self.write(x)}, {scalar_type(x.dtype)})"

    def not_negative(self, x: Expr) -> bool:
        if isinstance(x, Const):
            return x.value >= 0
        if isinstance(x, DimVar) or x in self.natural:
            return True
        if isinstance(x, Unary):
            return x.op == "cast" and x.dtype.is_integer and self.not_negative(x.operand)
        if isinstance(x, Binary):
            both = self.not_negative(x.lhs), self.not_negative(x.rhs)
            if x.op == "max":
                return any(both)
            return x.op in ("+", "*", "//", "%", "min") and all(both)
        return False


def power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


def same(a: DType, b: DType) -> bool:
    """Whether a scalar of one type is already one of the other."""
    return a == b or {a, b} == {INDEX, INT32}


def wide(x: Scalars, value: Expr) -> str:
    """An index as int64, for places of elements."""
    text = x.write(value)
    return text if isinstance(value, Const) or value.dtype == INT64 else f"tl.cast({text}, tl.int64)"
