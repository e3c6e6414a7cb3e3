"""The scalars of the orchestration: what the host knows, and what kernels work out again at their start."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from pypto_models.ir.expr import Binary, Const, DimVar, Expr, Unary, Var, binary, free_vars, negate
from pypto_models.ir.nodes import Block, Stmt
from pypto_models.ir.rewrite import defs, uses
from pypto_models.ir.types import INDEX, INT32, INT64

from .scan import lets, stores_in
from .tensors import View

_OPS = ("+", "-", "*", "//", "%", "min", "max")


def host_value(x: Expr, known: Collection[Var]) -> Expr | None:
    """An integer that the launcher can work out, from extents and the variables ``known``, or None."""
    if isinstance(x, Const):
        return x if type(x.value) is int else None
    if isinstance(x, DimVar):
        return x
    if isinstance(x, Var):
        return x if x in known and x.dtype.is_integer else None
    if isinstance(x, Unary) and x.op in ("cast", "-"):
        a = host_value(x.operand, known)
        if a is None or x.op == "-":
            return a and negate(a)
        return a if x.to in (INDEX, INT32, INT64) else None
    if isinstance(x, Binary) and x.op in _OPS:
        a, b = host_value(x.lhs, known), host_value(x.rhs, known)
        return None if a is None or b is None else binary(x.op, a, b)
    return None


def at_least_one(x: Expr) -> bool:
    """True if a count is sure to be positive: it only grows with the extents, which are at least 1."""
    return monotone(x) and least(x) >= 1


def none_if_negative(x: Expr) -> Expr:
    """The blocks of a launch whose count may come out negative."""
    return x if monotone(x) and least(x) >= 0 else binary("max", x, Const(0))


def monotone(x: Expr) -> bool:
    if isinstance(x, Binary):
        if x.op == "//":
            return monotone(x.lhs) and isinstance(x.rhs, Const) and x.rhs.value > 0
        if x.op == "-":
            return monotone(x.lhs) and isinstance(x.rhs, Const) and least(x.lhs) >= x.rhs.value
        return x.op in ("+", "*", "min", "max") and monotone(x.lhs) and monotone(x.rhs)
    return isinstance(x, DimVar) or (isinstance(x, Const) and x.value >= 0)


def least(x: Expr) -> int:
    """The value of a monotone expression where all extents are 1."""
    if isinstance(x, Binary):
        a, b = Const(least(x.lhs)), Const(least(x.rhs))
        value = binary(x.op, a, b)
        assert isinstance(value, Const)
        return int(value.value)
    return int(x.value) if isinstance(x, Const) else 1


def with_places(needed: Iterable[Expr], views: Mapping[Var, View]) -> set[Expr]:
    """Variables, and what the places of the tensors among them depend on."""
    out: set[Expr] = set(needed)
    for v in tuple(out):
        if isinstance(v, Var) and v in views:
            view = views[v]
            out.add(view.base)
            out |= {w for pair in view.offsets for x in pair for w in free_vars(x)}
            out |= {w for x in view.strides for w in free_vars(x)}
    return out


def slice_of(statements: list[Stmt], needed: Iterable[Expr], views: Mapping[Var, View]) -> Block:
    """The statements that ``needed`` depends on, in order."""
    out: list[Stmt] = []
    wanted = with_places(needed, views)
    for s in reversed(statements):
        if not wanted.isdisjoint(defs(s)):
            out.append(s)
            wanted |= with_places(uses((s,)), views)
    return tuple(reversed(out))


class Stale(Exception):
    """A scalar that is read again after something else was written there: ``let`` is the id of the read."""

    def __init__(self, let: int) -> None:
        super().__init__(let)
        self.let = let


class Scalars:
    """What the orchestration reads from tensors, and whether it is still there when a kernel reads it again.

    ``kept`` are the reads (by id) whose results kernels keep: those that :class:`Stale` named before.
    """

    def __init__(self, roots: Mapping[Var, frozenset[Var]], kept: frozenset[int]) -> None:
        self.roots = roots
        self.kept = kept
        self.read_at: dict[int, int] = {}  # how many kernels there were when a read came by
        self.wrote: list[frozenset[Var]] = []  # by kernel
        self.used: list[tuple[int, frozenset[Var]]] = []  # reads of kernels, by id, and their tensors

    def keeps(self, s: Stmt) -> bool:
        return any(id(x) in self.kept for x in lets((s,)))

    def note(self, s: Stmt) -> None:
        self.read_at |= {id(x): len(self.wrote) for x in lets((s,)) if x.op.name == "read_tensor"}

    def names(self, v: object) -> frozenset[Var]:
        return self.roots.get(v, frozenset((v,))) if isinstance(v, Var) else frozenset()

    def check(self, prelude: Block, body: Block) -> None:
        """A kernel that begins with ``prelude``; what it writes counts: its blocks do not start together."""
        self.wrote.append(frozenset(w for v in stores_in(body) for w in self.names(v)))
        for x in lets(prelude):
            if id(x) in self.read_at:
                source = self.names(x.args[0])
                if any(not source.isdisjoint(w) for w in self.wrote[self.read_at[id(x)] :]):
                    raise Stale(id(x))
                self.used.append((id(x), source))

    def enter(self) -> tuple[int, int]:
        """A loop begins."""
        self.wrote.append(frozenset())
        return len(self.wrote), len(self.used)

    def leave(self, since: tuple[int, int]) -> None:
        """A loop ends: its next trip reads again what was read before it."""
        written = frozenset(v for w in self.wrote[since[0] :] for v in w)
        for read, source in self.used[since[1] :]:
            if self.read_at[read] < since[0] and not source.isdisjoint(written):
                raise Stale(read)
