"""Scalar expressions: index arithmetic over constants, run-time extents and SSA variables.

Expressions are pure trees.  The constructors fold constants, so that ``3 * 16`` is the constant 48 and
``x * 1`` is ``x``; nothing else is rewritten, so that the user's spelling survives in the printed text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ..errors import NOWHERE, Diag, InternalError, Span, user_error
from .types import BOOL, FP32, INDEX, Dim, DType, ScalarType, Type, promote

Number: TypeAlias = int | float | bool

_ids = itertools.count()


@dataclass(frozen=True, eq=False)
class Expr:
    """Base of scalar expressions.  Constants and trees compare by value, variables by identity."""

    @property
    def dtype(self) -> DType:
        raise InternalError(f"{type(self).__name__} has no dtype")


@dataclass(frozen=True)
class Const(Expr):
    value: Number
    type: DType = INDEX

    @property
    def dtype(self) -> DType:
        return self.type


@dataclass(frozen=True)
class DimVar(Expr):
    """A run-time extent of a parameter: ``pl.dynamic(name)``.  At least 1, fixed for one launch."""

    name: str

    @property
    def dtype(self) -> DType:
        return INDEX


@dataclass(frozen=True, eq=False)
class Var(Expr):
    """An SSA variable.  Identity is the variable; the name is only what the user wrote."""

    name: str
    type: Type
    span: Span = NOWHERE
    uid: int = field(default_factory=lambda: next(_ids))

    @property
    def dtype(self) -> DType:
        if not isinstance(self.type, ScalarType):
            raise InternalError(f"{self.name} is not a scalar but {self.type}")
        return self.type.dtype

    def __repr__(self) -> str:
        return f"{self.name}#{self.uid}"


@dataclass(frozen=True)
class Binary(Expr):
    op: str
    lhs: Expr
    rhs: Expr

    @property
    def dtype(self) -> DType:
        if self.op in COMPARISONS or self.op in ("and", "or"):
            return BOOL
        a, b = self.lhs.dtype, self.rhs.dtype
        if self.op == "/" and a.is_integer and b.is_integer:
            return FP32
        if a == INDEX or b == INDEX:  # integer literals are INDEX and adapt to the other side
            return b if a == INDEX else a
        return promote(a, b)


@dataclass(frozen=True)
class Unary(Expr):
    """``-x``, ``not x``, or ``cast`` to ``to``."""

    op: str
    operand: Expr
    to: DType | None = None

    @property
    def dtype(self) -> DType:
        if self.op == "not":
            return BOOL
        return self.to if self.to is not None else self.operand.dtype


COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")

_FOLD: dict[str, Callable[[Number, Number], Number]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
    "min": min,
    "max": max,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "and": lambda a, b: bool(a) and bool(b),
    "or": lambda a, b: bool(a) or bool(b),
}


def apply(op: str, a: Number, b: Number) -> Number:
    """The value of ``a op b``: ``//`` and ``%`` floor, ``/`` is a float; a zero divisor is an error."""
    if op in ("//", "%", "/") and b == 0:
        raise user_error(Diag.ARITHMETIC, op=op, why="the divisor is 0", fix="guard it with pl.max(x, 1)")
    return _FOLD[op](a, b)


def binary(op: str, lhs: Expr, rhs: Expr) -> Expr:
    """``lhs op rhs`` with constants folded and neutral elements dropped."""
    node = Binary(op, lhs, rhs)
    if isinstance(lhs, Const) and isinstance(rhs, Const):
        value = apply(op, lhs.value, rhs.value)
        fraction = isinstance(value, float) and node.dtype.is_integer  # 2 ** -1
        return Const(value, FP32 if fraction else node.dtype)
    one_sided = isinstance(lhs, Const) or isinstance(rhs, Const)
    if one_sided and node.dtype.is_integer:
        left = lhs.value if isinstance(lhs, Const) else None
        right = rhs.value if isinstance(rhs, Const) else None
        if (op in ("+", "-") and right == 0) or (op in ("*", "//") and right == 1):
            return lhs
        if (op == "+" and left == 0) or (op == "*" and left == 1):
            return rhs
        if op == "*" and (left == 0 or right == 0):
            return Const(0, node.dtype)
    if op in ("and", "or"):
        for one, other in ((lhs, rhs), (rhs, lhs)):
            if isinstance(one, Const):
                return other if one.value == (op == "and") else one
    if op in ("min", "max", "and", "or") and lhs == rhs:
        return lhs
    return node


def negate(x: Expr) -> Expr:
    return Const(-x.value, x.dtype) if isinstance(x, Const) else Unary("-", x)


def logical_not(x: Expr) -> Expr:
    return Const(not x.value, BOOL) if isinstance(x, Const) else Unary("not", x)


def convert(x: Expr, to: DType) -> Expr:
    """``pl.cast`` of a scalar: a float becomes an integer by truncation."""
    if x.dtype == to:
        return x
    if isinstance(x, Const):
        return Const(float(x.value) if to.is_float else int(x.value), to)
    return Unary("cast", x, to)


def index(value: int | Expr) -> Expr:
    return value if isinstance(value, Expr) else Const(value)


def dim_expr(dim: Dim) -> Expr:
    return index(dim)


def as_dim(x: Expr) -> Dim:
    """A constant expression as an int, any other as it is."""
    return int(x.value) if isinstance(x, Const) else x


def free_vars(x: Expr) -> Iterator[Var]:
    """Variables of an expression, left to right, repeated as they occur."""
    if isinstance(x, Var):
        yield x
    elif isinstance(x, Binary):
        yield from free_vars(x.lhs)
        yield from free_vars(x.rhs)
    elif isinstance(x, Unary):
        yield from free_vars(x.operand)


def substitute(x: Expr, env: Mapping[Var, Expr]) -> Expr:
    """Replace variables; the same object comes back when nothing changed."""
    if isinstance(x, Var):
        return env.get(x, x)
    if isinstance(x, Binary):
        a, b = substitute(x.lhs, env), substitute(x.rhs, env)
        return x if a is x.lhs and b is x.rhs else binary(x.op, a, b)
    if isinstance(x, Unary):
        a = substitute(x.operand, env)
        if a is x.operand:
            return x
        if x.op == "cast" and x.to is not None:
            return convert(a, x.to)
        return negate(a) if x.op == "-" else logical_not(a)
    return x


def linear(x: Expr) -> tuple[dict[Expr, int], int]:
    """``x`` as a sum of atoms with integer factors and a constant."""
    if isinstance(x, Const):
        return {}, int(x.value)
    if isinstance(x, Binary) and x.op in ("+", "-"):
        (ta, ca), (tb, cb) = linear(x.lhs), linear(x.rhs)
        sign = 1 if x.op == "+" else -1
        terms = dict(ta)
        for atom, factor in tb.items():
            terms[atom] = terms.get(atom, 0) + sign * factor
        return {a: f for a, f in terms.items() if f}, ca + sign * cb
    if isinstance(x, Binary) and x.op == "*":
        for scale, other in ((x.lhs, x.rhs), (x.rhs, x.lhs)):
            if isinstance(scale, Const):
                terms, const = linear(other)
                factor = int(scale.value)
                return {a: f * factor for a, f in terms.items() if f * factor}, const * factor
    if isinstance(x, Unary) and x.op == "-":
        terms, const = linear(x.operand)
        return {a: -f for a, f in terms.items()}, -const
    return {x: 1}, 0


def difference(a: Expr, b: Expr) -> Expr:
    """``a - b``, a constant where the run-time terms cancel: the extent of ``t[i : i + 16]``."""
    terms, const = linear(binary("-", a, b))
    return binary("-", a, b) if terms else Const(const)


def evaluate(x: Expr, lookup: Callable[[Expr], Number]) -> Number:
    """The value of an expression; ``lookup`` gives the values of :class:`Var` and :class:`DimVar`."""
    if isinstance(x, Const):
        return x.value
    if isinstance(x, Binary):
        return apply(x.op, evaluate(x.lhs, lookup), evaluate(x.rhs, lookup))
    if isinstance(x, Unary):
        value = evaluate(x.operand, lookup)
        if x.op == "not":
            return not value
        if x.op == "-":
            return -value
        return float(value) if x.dtype.is_float else int(value)
    return lookup(x)
