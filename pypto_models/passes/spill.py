"""Values that live across regions go through global memory.

Needs: the front end's function, where a tile or scalar of one region may be read in another.
Gives: a function whose regions exchange data through tensors only, so that each is a task of its own.

* A tile: ``create`` before the region, ``store`` at its end, ``load`` at the start of every region that reads
  it.  A run-time valid rectangle is stored as it is and loaded with ``valid_shape=``; its expressions must
  be known to the orchestration.
* A scalar: a tensor of one element; regions read it on their own, loop bounds and grid extents through a
  ``read_tensor`` after the region.
* A tile that a loop or an ``if`` of the orchestration carries becomes a reference to such a tensor.
* A view made inside of a region moves before it.

A value of one block of a grid, or of one iteration of ``pl.parallel``, is nobody else's: Diag.SPILL.
A function without such values comes back as the same object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..errors import Diag, InternalError, Span, user_error
from ..ir.expr import Const, Expr, Var, convert, dim_expr, free_vars, index
from ..ir.nodes import Bind, Block, Carried, For, Function, If, Let, LoopKind, Merged, Region, Stmt
from ..ir.rewrite import Rewriter, children, defs, exits, inner_defs, operands, uses, walk
from ..ir.types import INDEX, INT64, DType, ScalarType, TensorType, TileType
from ..ops import REGISTRY

if TYPE_CHECKING:
    from ..target import Target


def run(fn: Function, target: Target) -> Function:
    """``fn`` with every value that crosses regions in global memory; ``fn`` itself if none does."""
    leaks = _Leaks()
    for p in fn.params:
        leaks.home[p.var] = _Home()
    leaks.block(fn.body, _Home())
    if not leaks.found:
        return fn
    return replace(fn, body=_Spill(leaks=leaks).block(fn.body))


@dataclass(frozen=True)
class _Home:
    """Where a variable is defined: region (by identity) and the parallel loops around it."""

    region: Region | None = None
    parallel: tuple[Var, ...] = ()


@dataclass
class _Leaks:
    """Values that are read outside of the region that defines them."""

    home: dict[Var, _Home] = field(default_factory=dict)
    lets: dict[Var, Let] = field(default_factory=dict)
    found: dict[Var, None] = field(default_factory=dict)
    by_orchestration: set[Var] = field(default_factory=set)

    def block(self, block: Block, home: _Home) -> None:
        for s in block:
            self._uses(operands(s), home, s.span)
            inside = home
            if isinstance(s, Region):
                inside = replace(home, region=s)
            elif isinstance(s, For) and s.kind is LoopKind.PARALLEL:
                inside = replace(home, parallel=(*home.parallel, s.var))
            for v in inner_defs(s):
                self.home[v] = inside
            for inner in children(s):
                self.block(inner, inside)
            # What the end of a loop body or branch hands out is read by the statement itself
            self._uses(exits(s), inside if isinstance(s, For) else home, s.span)
            for v in defs(s):
                self.home[v] = home
                if isinstance(s, Let):
                    self.lets[v] = s
                if home.region is None and isinstance(s, For | If) and isinstance(v.type, TileType):
                    self._carried(v, s)

    def _carried(self, v: Var, s: For | If) -> None:
        """A tile that a loop or branch of the orchestration hands on: a reference from now on."""
        if isinstance(s, For) and s.kind is LoopKind.PARALLEL:
            raise user_error(
                Diag.SPILL, s.span, name=v.name,
                fix="iterations of pl.parallel are independent: use pl.range, or write a tensor",
            )  # fmt: skip
        self.found[v] = None
        for c in s.carried if isinstance(s, For) else ():
            if c.result is v:
                self.found[c.param] = None

    def _uses(self, exprs: Iterable[Expr], home: _Home, span: Span) -> None:
        for x in exprs:
            for v in free_vars(x):
                made = self.home.get(v, _Home())
                if made.region is None or made.region is home.region:
                    continue
                if not isinstance(v.type, TileType | ScalarType | TensorType):
                    raise InternalError(f"{v.name} at {span} crosses regions as {v.type}")
                per_block = made.region.count is not None
                if per_block or made.parallel != home.parallel[: len(made.parallel)]:
                    owner = "block of the grid" if per_block else "iteration of pl.parallel"
                    raise user_error(
                        Diag.SPILL, span, name=v.name,
                        fix=f"each {owner} has its own: pl.assemble it into a tensor that is created before, "
                        "and slice that tensor here",
                    )  # fmt: skip
                self.found[v] = None
                if home.region is None:
                    self.by_orchestration.add(v)


@dataclass
class _Spill(Rewriter):
    """Rewrites the orchestration; regions get their loads in front and their stores at the end."""

    leaks: _Leaks = field(default_factory=_Leaks)
    buffers: dict[Var, Var] = field(default_factory=dict)  # spilled value -> its tensor

    def stmt(self, s: Stmt) -> Stmt | Block:
        if isinstance(s, Region):
            return self._region(s)
        if isinstance(s, For):
            return self._loop(s)
        if isinstance(s, If):
            return self._branch(s)
        return self.descend(s)

    def expr(self, x: Expr) -> Expr:
        """An expression of the orchestration: a tile that it hands on is the reference to its tensor."""
        if isinstance(x, Var) and x in self.buffers and isinstance(x.type, TileType):
            return self.buffers[x]
        return super().expr(x)

    # ------------------------------------------------------------------------------------------ regions
    def _region(self, s: Region) -> Block:
        own = [v for v in self.leaks.found if self.leaks.home[v].region is s]
        before = [let for v in own if isinstance(v.type, TensorType) for let in self._hoisted(v, s)]
        hoisted = {let.result for let in before}
        values = [v for v in own if not isinstance(v.type, TensorType) and not self._placeholder(v)]
        creates = [self._create(v, s.span) for v in values]
        count = super().expr(s.count) if s.count is not None else None
        deps = tuple(super(_Spill, self).expr(x) for x in s.deps)
        loads, body = self._loads(s)
        kept = tuple(x for x in body if not (isinstance(x, Let) and any(r in hoisted for r in x.results)))
        stores = tuple(self._store(v, s.span) for v in values)
        region = replace(s, count=count, deps=deps, body=(*loads, *kept, *stores))
        asked = [v for v in values if v in self.leaks.by_orchestration]
        return (*before, *creates, region, *(x for v in asked for x in self._read(v, s.span, self.env)))

    def _placeholder(self, v: Var) -> bool:
        """A tile without a value has nothing to store: the region that uses it makes its own."""
        let = self.leaks.lets.get(v)
        return let is not None and let.op is REGISTRY["create_tile"] and let.arg("init_value") is None

    def _loads(self, s: Region) -> tuple[tuple[Stmt, ...], Block]:
        """Loads of the spilled values that a region reads, and its body reading them."""
        loads: list[Stmt] = []
        inside = Rewriter(dict(self.env))
        for v in dict.fromkeys(uses(s.body)):
            home = self.leaks.home.get(v)
            if v not in self.leaks.found or (home is not None and home.region is s):
                continue
            if isinstance(v.type, ScalarType):
                loads += self._read(v, s.span, inside.env) if v not in self.env else ()
            elif isinstance(v.type, TileType) and self._placeholder(v):
                local = Var(v.name, v.type, v.span)
                inside.env[v] = local
                loads.append(replace(self.leaks.lets[v], results=(local,)))
            elif isinstance(v.type, TileType):
                loads.append(self._load(v, s.span, inside.env))
        return tuple(loads), inside.block(s.body)

    def _hoisted(self, v: Var, s: Region) -> tuple[Let, ...]:
        """The views that lead to a tensor variable made in the region, to stand before it."""
        let = self.leaks.lets.get(v)
        inner = {w for stmt in walk(s.body) for w in (*defs(stmt), *inner_defs(stmt))}
        needs = [] if let is None else [w for x in operands(let) for w in free_vars(x) if w in inner]
        views = [w for w in needs if isinstance(w.type, TensorType)]
        if let is None or let.op.name not in ("view", "view_reshape") or len(views) < len(needs):
            raise user_error(
                Diag.SPILL, v.span, name=v.name,
                fix="make the view outside of the region, from values that are known there",
            )  # fmt: skip
        return (*(x for w in views for x in self._hoisted(w, s)), let)

    # ----------------------------------------------------------------------------------- loops, branches
    def _loop(self, s: For) -> For:
        start, stop, step = (super(_Spill, self).expr(x) for x in (s.start, s.stop, s.step))
        inits = [self.expr(c.init) for c in s.carried]
        params = [self._reference(c.param) for c in s.carried]
        body = self.block(s.body)
        carried = tuple(
            Carried(p, init, self.expr(c.next), self._reference(c.result))
            for c, p, init in zip(s.carried, params, inits, strict=True)
        )
        return replace(s, start=start, stop=stop, step=step, carried=carried, body=body)

    def _branch(self, s: If) -> If:
        cond = super().expr(s.cond)
        then, orelse = self.block(s.then), self.block(s.orelse)
        sides = [(self.expr(m.then), self.expr(m.orelse)) for m in s.merged]
        merged = tuple(Merged(self._reference(m.result), *xy) for m, xy in zip(s.merged, sides, strict=True))
        return replace(s, cond=cond, then=then, orelse=orelse, merged=merged)

    def _reference(self, v: Var) -> Var:
        """The variable of a carried value: for a tile, a new one that refers to a tensor."""
        return self._buffer(v) if isinstance(v.type, TileType) else v

    def _buffer(self, v: Var) -> Var:
        self.buffers[v] = buffer = Var(f"{v.name}_gm", _buffer_type(v), v.span)
        return buffer

    # ---------------------------------------------------------------------------------------- statements
    def _create(self, v: Var, span: Span) -> Let:
        buffer = self._buffer(v)
        shape = tuple(dim_expr(n) for n in _buffer_type(v).shape)
        return Let((buffer,), REGISTRY["create"], (shape, _buffer_type(v).dtype, "ND", False, None), span)

    def _store(self, v: Var, span: Span) -> Let:
        buffer = self.buffers[v]
        value: Expr = self.env.get(v, v)
        zeros = tuple(index(0) for _ in _buffer_type(v).shape)
        if isinstance(v.type, ScalarType):
            value = v if buffer.type == TensorType((1,), v.type.dtype) else convert(v, _stored(v.type.dtype))
            return Let((), REGISTRY["write_tensor"], (buffer, zeros, value), span)
        return Let((), REGISTRY["store"], (buffer, v, zeros, "none"), span)

    def _read(self, v: Var, span: Span, env: dict[Var, Expr]) -> tuple[Stmt, ...]:
        """Read a spilled scalar back; ``env`` then maps it to what was read."""
        if not isinstance(v.type, ScalarType):
            return ()
        read = Var(v.name, ScalarType(_stored(v.type.dtype)), v.span)
        let = Let((read,), REGISTRY["read_tensor"], (self.buffers[v], (index(0),)), span)
        if read.type == v.type:
            env[v] = read
            return (let,)
        env[v] = back = Var(v.name, v.type, v.span)
        return (let, Bind(back, convert(read, v.type.dtype), span))

    def _load(self, v: Var, span: Span, env: dict[Var, Expr]) -> Let:
        t = v.type
        if not isinstance(t, TileType):
            raise InternalError(f"{v.name} is loaded as {t}")
        valid = None if t.is_full else tuple(self._valid(v, axis, env) for axis in range(t.rank))
        live = t if valid is None else t.with_(valid=tuple(_dim(x) for x in valid))
        env[v] = tile = Var(v.name, live, v.span)
        shape, zeros = tuple(index(n) for n in t.shape), tuple(index(0) for _ in t.shape)
        return Let((tile,), REGISTRY["load"], (self.buffers[v], shape, zeros, valid, None, None, False), span)

    def _valid(self, v: Var, axis: int, env: Mapping[Var, Expr]) -> Expr:
        """The valid extent of a spilled tile, as the region that loads it can compute it."""
        extent = v.type.valid[axis] if isinstance(v.type, TileType) else None
        unknown = "its extent" if extent is None else None
        if extent is not None:
            for w in free_vars(dim_expr(extent)):
                home = self.leaks.home.get(w, _Home())
                if home.region is not None and w not in env:
                    unknown = repr(w.name)
        if extent is None or unknown is not None:
            raise user_error(Diag.SPILL_VALID, v.span, name=v.name, axis=axis, what=unknown)
        return Rewriter(dict(env)).expr(dim_expr(extent))


def _dim(x: Expr) -> int | Expr:
    return int(x.value) if isinstance(x, Const) else x


def _stored(dtype: DType) -> DType:
    """The element type that holds a scalar in memory: an index is 64 bits wide."""
    return INT64 if dtype == INDEX else dtype


def _buffer_type(v: Var) -> TensorType:
    if isinstance(v.type, TileType):
        return TensorType(v.type.shape, v.type.dtype)
    if isinstance(v.type, ScalarType):
        return TensorType((1,), _stored(v.type.dtype))
    raise InternalError(f"{v.name} has no place in memory: {v.type}")
