"""Loops that launch regions a constant number of times, written out: each trip has names of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pypto_models.ir.expr import Const, Expr, Var, as_dim, dim_expr
from pypto_models.ir.nodes import Bind, Block, For, Function, Region, Stmt
from pypto_models.ir.rewrite import Rewriter, walk
from pypto_models.ir.types import Dim, TensorType, TileType


def has_region(body: Block) -> bool:
    return any(isinstance(s, Region) for s in walk(body))


def unrolled(function: Function) -> Function:
    return replace(function, body=_Unroll().block(function.body))


def renamed(body: Block) -> Block:
    """The statements with names of their own for what they define."""
    return _Unroll(depth=1).block(body)


@dataclass
class _Unroll(Rewriter):
    depth: int = 0  # of loops that are being written out

    def __post_init__(self) -> None:
        self.constants: dict[Var, Const] = {}

    def stmt(self, s: Stmt) -> Stmt | Block:
        if isinstance(s, For) and has_region(s.body):
            bounds = [self.constant(x) for x in (s.start, s.stop, s.step)]
            if None not in bounds:
                return self.trips(s, range(*(b for b in bounds if b is not None)))
        new = self.descend(s)
        if isinstance(new, Bind) and isinstance(new.value, Const):
            self.constants[new.var] = new.value
        return new

    def constant(self, x: Expr) -> int | None:
        value = self.expr(x)
        value = self.constants.get(value, value) if isinstance(value, Var) else value
        return int(value.value) if isinstance(value, Const) else None

    def trips(self, s: For, trips: range) -> Block:
        out: list[Stmt] = []
        now = {c.param: self.expr(c.init) for c in s.carried}
        self.depth += 1
        for trip in trips:
            self.env |= {s.var: Const(trip), **now}
            out += self.block(s.body)
            now = {c.param: self.expr(c.next) for c in s.carried}
        self.depth -= 1
        self.env |= {c.result: now[c.param] for c in s.carried}
        return tuple(out)

    def var(self, v: Var) -> Var:
        if not self.depth:
            return v
        t = v.type
        if isinstance(t, TileType):
            t = replace(t, valid=tuple(None if d is None else self.dim(d) for d in t.valid))
        elif isinstance(t, TensorType):
            t = replace(t, shape=tuple(map(self.dim, t.shape)))
        new = Var(v.name, t, v.span)
        self.env[v] = new
        return new

    def dim(self, d: Dim) -> Dim:
        return as_dim(self.expr(dim_expr(d)))
