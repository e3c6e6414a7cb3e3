"""Tensors in global memory: a base tensor, an element offset and strides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from types import MappingProxyType

from pypto_models.ir.expr import Binary, Const, Expr, Unary, Var, as_dim, binary, dim_expr, index
from pypto_models.ir.nodes import Let
from pypto_models.ir.types import Dim, DType, TensorType

from .refusal import Refused
from .scan import indices


@dataclass(frozen=True)
class View:
    """A tensor or a view of one; it starts where the products of the pairs in ``offsets`` sum up to."""

    base: Var
    shape: tuple[Dim, ...]
    strides: tuple[Expr, ...]
    offsets: tuple[tuple[Expr, Expr], ...] = ()

    @staticmethod
    def whole(var: Var) -> View:
        assert isinstance(var.type, TensorType)
        return View(var, var.type.shape, row_major(var.type.shape))

    @property
    def dense(self) -> bool:
        return self.strides == row_major(self.shape)

    def moved(self, shape: tuple[Dim, ...], at: tuple[Expr, ...], dropped: tuple[int, ...] = ()) -> View:
        """The box of ``shape`` that starts at ``at``, without the axes in ``dropped``."""
        new = tuple((i, s) for i, s in zip(at, self.strides, strict=True) if not is_zero(i))
        kept = [i for i in range(len(shape)) if i not in dropped]
        return View(
            self.base,
            tuple(shape[i] for i in kept),
            tuple(self.strides[i] for i in kept),
            (*self.offsets, *new),
        )

    def reshaped(self, shape: tuple[Dim, ...]) -> View:
        return View(self.base, shape, row_major(shape), self.offsets)


def viewed(s: Let, views: Mapping[Var, View]) -> View:
    """What a statement that makes a view gives."""
    view = views[s.arg("t")]  # type: ignore[index]
    shape = tuple(as_dim(x) for x in indices(s, "shape"))
    if s.op.name == "view":
        return view.moved(shape, indices(s, "offset"), tuple(s.arg("drop_dims") or ()))  # type: ignore[arg-type]
    if not view.dense:
        fix = "write it with other ops, or run it on another backend"
        raise Refused(s.span, s.op.name, "a view with gaps cannot be given other extents", fix)
    return view.reshaped(shape)


Divisors = Mapping[Expr, int]  # of variables


def multiple_of(x: Expr, known: Divisors = MappingProxyType({})) -> int:
    """The largest number known to divide an index; 0 for the constant 0, which all numbers divide."""
    if isinstance(x, Const):
        return abs(int(x.value))
    if x in known:
        return known[x]
    if isinstance(x, Unary) and x.op == "cast" and x.dtype.is_integer and x.operand.dtype.is_integer:
        return multiple_of(x.operand, known)
    if isinstance(x, Binary):
        a, b = multiple_of(x.lhs, known), multiple_of(x.rhs, known)
        if x.op == "*":
            return a * b
        if x.op in ("+", "-", "min", "max"):
            return gcd(a, b)
        if x.op == "%":
            return gcd(a, b)
        if x.op == "//" and isinstance(x.rhs, Const) and b and a % b == 0:
            return a // b
    return 1


def is_zero(x: Expr) -> bool:
    return isinstance(x, Const) and x.value == 0


def row_major(shape: tuple[Dim, ...]) -> tuple[Expr, ...]:
    """Strides in elements."""
    out: list[Expr] = []
    step: Expr = index(1)
    for d in reversed(shape):
        out.append(step)
        step = binary("*", step, dim_expr(d))
    return tuple(reversed([index(as_dim(s)) for s in out]))


def view_dtype(view: View) -> DType:
    assert isinstance(view.base.type, TensorType)
    return view.base.type.dtype


def aligned_pitch(box: View, known: Divisors = MappingProxyType({})) -> int | None:
    """The pitch of a box whose rows all start at multiples of 16 bytes, as far as can be known; else None."""
    per = 16 // view_dtype(box).bytes
    if len(box.shape) != 2 or box.strides[1] != Const(1):
        return None
    pitch = box.strides[0]
    if not isinstance(pitch, Const) or pitch.value % per:
        return None
    starts = all(multiple_of(i, known) * multiple_of(s, known) % per == 0 for i, s in box.offsets)
    return int(pitch.value) if starts else None
