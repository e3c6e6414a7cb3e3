"""Walking and rewriting the IR.  "Unchanged" is the same object, so sharing survives a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from .expr import Expr, Var, free_vars, substitute
from .nodes import Arg, Bind, Block, Carried, For, If, Let, Merged, Region, Return, Scope, Stmt


def walk(block: Block) -> Iterator[Stmt]:
    """Every statement, outer before inner, in program order."""
    for stmt in block:
        yield stmt
        for inner in children(stmt):
            yield from walk(inner)


def children(stmt: Stmt) -> tuple[Block, ...]:
    if isinstance(stmt, If):
        return (stmt.then, stmt.orelse)
    if isinstance(stmt, For | Region | Scope):
        return (stmt.body,)
    return ()


def with_children(stmt: Stmt, blocks: tuple[Block, ...]) -> Stmt:
    if isinstance(stmt, If):
        return replace(stmt, then=blocks[0], orelse=blocks[1])
    if isinstance(stmt, For | Region | Scope):
        return replace(stmt, body=blocks[0])
    return stmt


def arg_exprs(arg: Arg) -> Iterator[Expr]:
    if isinstance(arg, Expr):
        yield arg
    elif isinstance(arg, tuple):
        for a in arg:
            yield from arg_exprs(a)


def operands(stmt: Stmt) -> Iterator[Expr]:
    """Expressions that the statement itself reads, without those of its blocks."""
    if isinstance(stmt, Let):
        for a in stmt.args:
            yield from arg_exprs(a)
    elif isinstance(stmt, Bind):
        yield stmt.value
    elif isinstance(stmt, For):
        yield from (stmt.start, stmt.stop, stmt.step)
        yield from (c.init for c in stmt.carried)
    elif isinstance(stmt, If):
        yield stmt.cond
    elif isinstance(stmt, Region):
        if stmt.count is not None:
            yield stmt.count
        yield from stmt.deps
    elif isinstance(stmt, Return):
        yield from stmt.values


def exits(stmt: Stmt) -> Iterator[Expr]:
    """Expressions read at the end of the statement's blocks: loop ``next`` values, branch values."""
    if isinstance(stmt, For):
        yield from (c.next for c in stmt.carried)
    elif isinstance(stmt, If):
        for m in stmt.merged:
            yield m.then
            yield m.orelse


def uses(block: Block) -> Iterator[Var]:
    """Every variable use in a block, nested ones included."""
    for stmt in walk(block):
        for x in operands(stmt):
            yield from free_vars(x)
        for x in exits(stmt):
            yield from free_vars(x)


def defs(stmt: Stmt) -> tuple[Var, ...]:
    """Variables that are in scope after the statement."""
    if isinstance(stmt, Let):
        return stmt.results
    if isinstance(stmt, Bind):
        return (stmt.var,)
    if isinstance(stmt, For):
        return tuple(c.result for c in stmt.carried)
    if isinstance(stmt, If):
        return tuple(m.result for m in stmt.merged)
    if isinstance(stmt, Region):
        return (stmt.tid,) if stmt.tid is not None else ()
    return ()


def inner_defs(stmt: Stmt) -> tuple[Var, ...]:
    """Variables that the statement defines for its own block: loop variable, carried, block index."""
    if isinstance(stmt, For):
        return (stmt.var, *(c.param for c in stmt.carried))
    if isinstance(stmt, Region):
        return (stmt.block,) if stmt.block is not None else ()
    return ()


@dataclass
class Rewriter:
    """Rebuilds a block.  Subclasses override ``stmt`` to replace or drop statements.

    ``env`` maps old variables to what replaces them; every read goes through it.
    """

    env: dict[Var, Expr] = field(default_factory=dict)

    def expr(self, x: Expr) -> Expr:
        return substitute(x, self.env) if self.env else x

    def arg(self, a: Arg) -> Arg:
        if isinstance(a, Expr):
            return self.expr(a)
        if isinstance(a, tuple):
            items: tuple[Any, ...] = a
            return tuple(self.expr(x) if isinstance(x, Expr) else x for x in items)
        return a

    def var(self, v: Var) -> Var:
        """A defined variable; override to change its type (and record it in ``env``)."""
        return v

    def block(self, block: Block) -> Block:
        out: list[Stmt] = []
        for s in block:
            new = self.stmt(s)
            out.extend((new,) if not isinstance(new, tuple) else new)
        same = len(out) == len(block) and all(a is b for a, b in zip(out, block, strict=True))
        return block if same else tuple(out)

    def stmt(self, s: Stmt) -> Stmt | Block:
        return self.descend(s)

    def descend(self, s: Stmt) -> Stmt:
        """Rewrite the operands and blocks of one statement."""
        if isinstance(s, Let):
            args = tuple(self.arg(a) for a in s.args)
            return replace(s, args=args, results=tuple(self.var(v) for v in s.results))
        if isinstance(s, Bind):
            value = self.expr(s.value)
            return replace(s, value=value, var=self.var(s.var))
        if isinstance(s, For):
            start, stop, step = self.expr(s.start), self.expr(s.stop), self.expr(s.step)
            inits = [self.expr(c.init) for c in s.carried]
            var, params = self.var(s.var), [self.var(c.param) for c in s.carried]
            body = self.block(s.body)
            nexts = [self.expr(c.next) for c in s.carried]
            carried = tuple(
                Carried(p, i, n, self.var(c.result))
                for p, i, n, c in zip(params, inits, nexts, s.carried, strict=True)
            )
            return replace(s, var=var, start=start, stop=stop, step=step, carried=carried, body=body)
        if isinstance(s, If):
            cond = self.expr(s.cond)
            then, orelse = self.block(s.then), self.block(s.orelse)
            merged = tuple(
                Merged(self.var(m.result), self.expr(m.then), self.expr(m.orelse)) for m in s.merged
            )
            return replace(s, cond=cond, then=then, orelse=orelse, merged=merged)
        if isinstance(s, Region):
            count = self.expr(s.count) if s.count is not None else None
            deps = tuple(self.expr(d) for d in s.deps)
            block = self.var(s.block) if s.block is not None else None
            body = self.block(s.body)
            tid = self.var(s.tid) if s.tid is not None else None
            return replace(s, count=count, deps=deps, block=block, body=body, tid=tid)
        if isinstance(s, Scope):
            return replace(s, body=self.block(s.body))
        return replace(s, values=tuple(self.expr(v) for v in s.values))


def rewrite_regions(block: Block, fn: Callable[[Region], Region]) -> Block:
    """Replace every region by ``fn(region)``."""

    class _Regions(Rewriter):
        def stmt(self, s: Stmt) -> Stmt | Block:
            if isinstance(s, Region):
                return fn(s)
            inner = children(s)
            if not inner:
                return s
            new = tuple(self.block(b) for b in inner)
            return s if all(a is b for a, b in zip(new, inner, strict=True)) else with_children(s, new)

    return _Regions().block(block)
