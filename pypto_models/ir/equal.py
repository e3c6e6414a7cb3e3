"""Structural equality of functions: up to the names of variables, and without regard to spans.

Both functions are walked side by side, with a one-to-one correspondence of their variables.  The carried
values of a loop and the merged values of an ``if`` are sets, whose order only follows from names: two of them
are paired when the first read pairs their variables.  Of those that nothing reads only the number counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from .expr import Binary, Const, Expr, Unary, Var, dim_expr, index
from .nodes import Bind, Block, Carried, For, Function, If, Let, Merged, Region, Return, Scope, Stmt
from .printer import format_expr, format_head, format_type
from .types import TensorType, TileType, Type


def equal(a: Function, b: Function) -> bool:
    """Whether two functions are the same program."""
    return difference(a, b) is None


def difference(a: Function, b: Function) -> str | None:
    """The first difference, with its place in the program; None if the functions are equal."""
    try:
        _Comparison().function(a, b)
    except _Different as found:
        return str(found)
    return None


class _Different(Exception):
    """Not an error: carries the first difference out of the walk."""


Join: TypeAlias = Carried | Merged


class _Comparison:
    def __init__(self) -> None:
        self.there: dict[Var, Var] = {}  # variables of a, to those of b
        self.back: dict[Var, Var] = {}
        # Variables of carried and merged values that no read has paired yet, with their loop or if
        self.open_a: dict[Var, tuple[For | If, Join]] = {}
        self.open_b: dict[Var, tuple[For | If, Join]] = {}
        self.twins: dict[int, Stmt] = {}  # statements of a, by identity, to those of b
        self.running: dict[int, list[tuple[Carried, Carried]]] = {}  # loops of a that are being walked
        self.place: list[str | tuple[int, Stmt]] = []

    # ------------------------------------------------------------------------------------ reporting
    @contextmanager
    def inside(self, what: str | tuple[int, Stmt]) -> Iterator[None]:
        self.place.append(what)
        yield
        self.place.pop()  # a difference leaves by exception, with its text made

    def here(self) -> str:
        return " / ".join(p if isinstance(p, str) else f"{p[0]}. `{format_head(p[1])}`" for p in self.place)

    def differ(self, what: str, a: object, b: object) -> _Different:
        return _Different(f"{self.here()}: {what}: {a} and {b}")

    def same(self, what: str, a: object, b: object) -> None:
        if type(a) is not type(b) or not (a == b or _both_nan(a, b)):
            raise self.differ(what, a, b)

    # ------------------------------------------------------------------------------------ values
    def var(self, what: str, a: Var, b: Var) -> None:
        """Two reads of variables."""
        if a in self.there or b in self.back:
            if self.there.get(a) is not b:
                raise self.differ(what, a.name, b.name)
        elif a in self.open_a and b in self.open_b:
            self.pair(what, a, b)
        elif a is not b:  # both undefined here: the same variable, or a difference
            raise self.differ(what, a.name, b.name)

    def define(self, what: str, a: Var | None, b: Var | None) -> None:
        if a is None or b is None:
            if a is not b:
                raise self.differ(what, a.name if a else None, b.name if b else None)
            return
        self.type(f"the type of {a.name}", a.type, b.type)
        self.there[a], self.back[b] = b, a

    def expr(self, what: str, a: Expr, b: Expr) -> None:
        if isinstance(a, Var) and isinstance(b, Var):
            self.var(what, a, b)
        elif type(a) is not type(b):
            raise self.differ(what, format_expr(a), format_expr(b))
        elif isinstance(a, Binary) and isinstance(b, Binary):
            if a.op != b.op:
                raise self.differ(what, format_expr(a), format_expr(b))
            self.expr(what, a.lhs, b.lhs)
            self.expr(what, a.rhs, b.rhs)
        elif isinstance(a, Unary) and isinstance(b, Unary):
            if (a.op, a.to) != (b.op, b.to):
                raise self.differ(what, format_expr(a), format_expr(b))
            self.expr(what, a.operand, b.operand)
        elif isinstance(a, Const) and isinstance(b, Const):
            if a.type != b.type or not (a.value == b.value or _both_nan(a.value, b.value)):
                raise self.differ(what, format_expr(a), format_expr(b))
        elif a != b:
            raise self.differ(what, format_expr(a), format_expr(b))

    def exprs(self, what: str, a: Sequence[Expr], b: Sequence[Expr]) -> None:
        self.same(f"the number of {what}s", len(a), len(b))
        for x, y in zip(a, b, strict=True):
            self.expr(what, x, y)

    def type(self, what: str, a: Type, b: Type) -> None:
        if not isinstance(a, TensorType | TileType) or not isinstance(b, TensorType | TileType):
            if a != b:
                raise self.differ(what, _type(a), _type(b))
            return
        plain = type(a) is type(b) and a.dtype == b.dtype and a.rank == b.rank
        if isinstance(a, TileType) and isinstance(b, TileType):
            plain = plain and (a.shape, a.space, a.split) == (b.shape, b.space, b.split)
        if not plain:
            raise self.differ(what, _type(a), _type(b))
        for x, y in zip(a.shape, b.shape, strict=True):
            if isinstance(x, int) and isinstance(y, int) and x != y:
                raise self.differ(what, _type(a), _type(b))
            self.expr(what, dim_expr(x), dim_expr(y))
        if isinstance(a, TileType) and isinstance(b, TileType):
            for v, w in zip(a.valid, b.valid, strict=True):
                if v is None or w is None:
                    self.same(f"{what}, valid", v, w)
                else:
                    self.expr(f"{what}, valid", index(v), index(w))

    def arg(self, what: str, a: Any, b: Any) -> None:
        if isinstance(a, Expr) and isinstance(b, Expr):
            self.expr(what, a, b)
        elif isinstance(a, tuple) and isinstance(b, tuple):
            self.same(f"the length of {what}", len(a), len(b))
            for x, y in zip(a, b, strict=True):
                self.arg(what, x, y)
        else:
            self.same(what, a, b)

    # ------------------------------------------------------------------------------------ program
    def function(self, a: Function, b: Function) -> None:
        with self.inside(a.name):
            self.same("the name", a.name, b.name)
            self.same("the number of parameters", len(a.params), len(b.params))
            for p, q in zip(a.params, b.params, strict=True):
                self.define("a parameter", p.var, q.var)
                self.same(f"the direction of {p.name}", p.direction.value, q.direction.value)
            self.block(a.body, b.body)

    def block(self, a: Block, b: Block) -> None:
        for i, (s, t) in enumerate(zip(a, b, strict=False), 1):
            with self.inside((i, s)):
                self.same("the kind of statement", type(s).__name__, type(t).__name__)
                self.stmt(s, t)
        if len(a) != len(b):
            rest = a[len(b) :] or b[len(a) :]
            which = "first" if len(a) > len(b) else "second"
            raise _Different(f"{self.here()}: only the {which} goes on with `{format_head(rest[0])}`")

    def stmt(self, a: Stmt, b: Stmt) -> None:
        if isinstance(a, Let) and isinstance(b, Let):
            self.let(a, b)
        elif isinstance(a, Bind) and isinstance(b, Bind):
            self.expr("the value", a.value, b.value)
            self.define("the variable", a.var, b.var)
        elif isinstance(a, For) and isinstance(b, For):
            self.loop(a, b)
        elif isinstance(a, If) and isinstance(b, If):
            self.branches(a, b)
        elif isinstance(a, Region) and isinstance(b, Region):
            self.region(a, b)
        elif isinstance(a, Scope) and isinstance(b, Scope):
            self.same("manual", a.manual, b.manual)
            self.block(a.body, b.body)
        elif isinstance(a, Return) and isinstance(b, Return):
            self.exprs("returned value", a.values, b.values)

    def let(self, a: Let, b: Let) -> None:
        if a.op is not b.op:
            raise self.differ("the op", a.op.name, b.op.name)
        for name, x, y in zip(a.op.param_names, a.args, b.args, strict=True):
            self.arg(name, x, y)
        self.same("the number of results", len(a.results), len(b.results))
        for v, w in zip(a.results, b.results, strict=True):
            self.define("the result", v, w)

    def region(self, a: Region, b: Region) -> None:
        self.same("the kind of region", a.kind.value, b.kind.value)
        self.arg("the count", a.count, b.count)
        self.exprs("dependency", a.deps, b.deps)
        for key in ("name_hint", "split", "slot_num"):
            self.same(key, getattr(a.options, key), getattr(b.options, key))
        self.arg("the hints", a.options.hints, b.options.hints)
        self.same("the unit", a.unit.value, b.unit.value)
        self.define("the block index", a.block, b.block)
        self.block(a.body, b.body)
        self.define("the task id", a.tid, b.tid)

    def loop(self, a: For, b: For) -> None:
        self.same("the kind of loop", a.kind.value, b.kind.value)
        for key in ("start", "stop", "step"):
            self.expr(key, getattr(a, key), getattr(b, key))
        self.same("stage", a.stage, b.stage)
        self.same("the number of carried values", len(a.carried), len(b.carried))
        self.define("the loop variable", a.var, b.var)
        self.twins[id(a)] = b
        self.open_a |= {v: (a, c) for c in a.carried for v in (c.param, c.result)}
        self.open_b |= {v: (b, c) for c in b.carried for v in (c.param, c.result)}
        self.running[id(a)] = []
        self.block(a.body, b.body)
        for c, d in self.running.pop(id(a)):
            self.expr(f"the next value of {c.param.name}", c.next, d.next)

    def branches(self, a: If, b: If) -> None:
        self.expr("the condition", a.cond, b.cond)
        with self.inside("then"):
            self.block(a.then, b.then)
        with self.inside("else"):
            self.block(a.orelse, b.orelse)
        self.same("the number of merged values", len(a.merged), len(b.merged))
        self.twins[id(a)] = b
        self.open_a |= {m.result: (a, m) for m in a.merged}
        self.open_b |= {m.result: (b, m) for m in b.merged}

    def pair(self, what: str, v: Var, w: Var) -> None:
        """Two variables of open joins: the joins must be one, and their values agree."""
        (stmt_a, a), (stmt_b, b) = self.open_a[v], self.open_b[w]
        alike = self.twins[id(stmt_a)] is stmt_b and (v is a.result) == (w is b.result)
        if not alike:
            raise self.differ(what, v.name, w.name)
        name = a.result.name
        for x, y in ((a.result, b.result), *self.params(a, b)):
            del self.open_a[x], self.open_b[y]
            self.define("the joined value", x, y)
        if isinstance(a, Merged) and isinstance(b, Merged):
            self.expr(f"{name} of the then branch", a.then, b.then)
            self.expr(f"{name} of the else branch", a.orelse, b.orelse)
        elif isinstance(a, Carried) and isinstance(b, Carried):
            self.expr(f"the initial value of {name}", a.init, b.init)
            if id(stmt_a) in self.running:  # its next value may not be defined yet
                self.running[id(stmt_a)].append((a, b))
            else:
                self.expr(f"the next value of {name}", a.next, b.next)

    @staticmethod
    def params(a: Join, b: Join) -> Iterator[tuple[Var, Var]]:
        if isinstance(a, Carried) and isinstance(b, Carried):
            yield a.param, b.param


def _both_nan(a: object, b: object) -> bool:
    return isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)


def _type(t: Type) -> str:
    valid = "" if not isinstance(t, TileType) or t.is_full else f" valid {[_extent(v) for v in t.valid]}"
    return f"{format_type(t)}{valid}"


def _extent(d: Any) -> str:
    return "?" if d is None else format_expr(index(d))
