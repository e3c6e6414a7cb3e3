"""SSA at joins: names that a loop rebinds, names that the branches of an ``if`` bind.

A name is a temporary until something reads it across the join.  A join that cannot be made (another shape, a
value on one path only) therefore leaves the name without a value, and the first read of it is the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ..errors import Diag, InternalError, Span, UserError
from ..ir.expr import Const, Expr, Var, free_vars
from ..ir.nodes import Block, Carried, For, If, Merged, Stmt
from ..ir.rewrite import Rewriter, defs, exits, inner_defs, operands, walk
from ..ir.types import INDEX, ArrayType, Dim, ScalarType, TensorType, TileType, Type
from ..ops.common import same_dim
from .context import Context, Names, Poisoned, Undefined
from .values import adapt, show_type, type_of

Key: TypeAlias = "tuple[int, str]"  # frame and name


def join_types(a: Type | None, b: Type | None) -> Type | None:
    """One type for a value that is ``a`` or ``b``; None if there is none.

    Valid extents that differ become unknown, a memory space that only one names is left to the compiler, and
    an index literal takes the type of the other scalar.
    """
    if isinstance(a, TileType) and isinstance(b, TileType):
        if None in (a.space, b.space):
            a, b = replace(a, space=None), replace(b, space=None)
        if (a.shape, a.dtype, a.space, a.split) != (b.shape, b.dtype, b.space, b.split):
            return None
        valid: tuple[Dim | None, ...] = tuple(
            x if same_dim(x, y) else None for x, y in zip(a.valid, b.valid, strict=True)
        )
        return replace(a, valid=valid)
    if isinstance(a, ScalarType) and isinstance(b, ScalarType):
        for one, other in ((a, b), (b, a)):
            if one.dtype == INDEX and other.dtype.kind in ("int", "uint", "index"):
                return other
    return a if a == b else None


def _as(value: Any, t: Type) -> Expr:
    """A joined value as the type of the join: an index literal takes the dtype of the other side."""
    if not isinstance(value, Expr):
        raise InternalError(f"{value!r} is joined as {t}")
    return adapt(value, t.dtype) if isinstance(t, ScalarType) else value


# ------------------------------------------------------------------------------------------ loops
@dataclass
class _Web:
    """Names bound to one value when the loop begins: an op that changes it in place changes it for all."""

    keys: list[Key]
    type: Type

    @property
    def name(self) -> str:
        return self.keys[-1][1]


@dataclass
class LoopJoin:
    """Builds the carried values of one loop; ``parallel`` loops carry nothing but arrays of task ids.

    ``run`` elaborates the body with parameters for the names that it rebinds, again until their types hold
    for every trip.  A tensor is carried only if the name ends up on another buffer, since in-place writes
    need no carrying.
    """

    ctx: Context
    before: Names
    span: Span
    parallel: bool = False

    def run(self, assigned: set[str], body: Callable[[], Block]) -> tuple[Block, tuple[Carried, ...]]:
        """The body's block and the carried values; names then mean what they do after the loop."""
        own = len(self.before) - 1
        webs: list[_Web] = []
        for name, value in self.before[own].items():
            if name in assigned and not isinstance(type_of(value), TensorType):
                self._add((own, name), webs)
        lost: dict[Key, Undefined] = {}  # names without one meaning in every trip
        while True:
            params = self._enter(webs, lost)
            errors = len(self.ctx.errors)
            block = body()
            after = self.ctx.snapshot()
            if not self._grow(webs, lost, params, block, after, assigned):
                return self._finish(webs, lost, params, block, after)
            del self.ctx.errors[errors:]

    def _add(self, key: Key, webs: list[_Web]) -> None:
        """Carry a name, and with it the other names of its tile or array."""
        value = self._at(self.before, key)
        t = type_of(value)
        if t is None or any(key in w.keys for w in webs):
            return
        shared = isinstance(t, TileType | ArrayType)
        names = [(i, n) for i, frame in enumerate(self.before) for n, v in frame.items() if v is value]
        webs.append(_Web(sorted(names) if shared else [key], t))

    @staticmethod
    def _at(names: Names, key: Key) -> Any:
        return names[key[0]].get(key[1])

    def _bind(self, keys: Iterable[Key], value: Any) -> None:
        for i, name in keys:
            self.ctx.frames[i].names[name] = value

    def _enter(self, webs: list[_Web], lost: dict[Key, Undefined]) -> list[Var]:
        self.ctx.restore(self.before)
        params = [Var(w.name, w.type, self.span) for w in webs]
        for w, param in zip(webs, params, strict=True):
            self._bind(w.keys, param)
        for key, undefined in lost.items():
            self._bind([key], undefined)
        return params

    def _grow(
        self, webs: list[_Web], lost: dict[Key, Undefined], params: list[Var], block: Block, after: Names,
        assigned: set[str],
    ) -> bool:  # fmt: skip
        """Extend what is carried by what the body turned out to rebind; False if nothing is new."""
        grown = False
        for w, param in zip(list(webs), params, strict=True):
            parts = self._parts(w, after)
            init, value = self._at(self.before, w.keys[0]), self._at(after, w.keys[0])
            joined = self._joined(init, w.type, type_of(value), block)
            if len(parts) > 1:
                if param in self.ctx.mutated:
                    parts = self._one_meaning(parts, lost, assigned)
                webs.remove(w)
                webs += parts
                grown = True
            elif joined is not None and joined != w.type:
                w.type, grown = joined, True
        for i, frame in enumerate(self.before):
            for name, init in frame.items():
                key, value = (i, name), after[i].get(name)
                known = key in lost or any(key in w.keys for w in webs)
                silent = isinstance(value, Poisoned | Undefined) or isinstance(init, Poisoned | Undefined)
                if known or silent or value is init or value == init:
                    continue
                if type_of(init) is not None and type_of(value) is not None:
                    self._add(key, webs)
                else:
                    lost[key] = Undefined(self._clash(name, init, None))
                grown = True
        return grown

    def _parts(self, web: _Web, after: Names) -> list[_Web]:
        """The web, divided by what its names are bound to after a trip."""
        parts: dict[int, _Web] = {}
        for key in web.keys:
            part = parts.setdefault(id(self._at(after, key)), _Web([], web.type))
            part.keys.append(key)
        return list(parts.values())

    def _one_meaning(
        self, parts: list[_Web], lost: dict[Key, Undefined], assigned: set[str]
    ) -> list[_Web]:
        """One part of a tile's names goes on: the loop changes the tile in place and rebinds that part.

        The others name the tile of the first trip only, so that they mean nothing that a loop could carry.
        """
        kept = next((p for p in parts if any(name in assigned for _, name in p.keys)), parts[0])
        for part in parts:
            if part is kept:
                continue
            for key in part.keys:
                why = f"names the same tile as {kept.name!r}, which this loop changes in place and rebinds"
                fields = {"what": f"{key[1]!r}", "why": why, "fix": "give each its own tile before the loop"}
                lost[key] = Undefined(UserError(Diag.MISPLACED, self.span, dict(fields)))
        return [kept]

    def _joined(self, init: Any, start: Type, after: Type | None, block: Block) -> Type | None:
        """The type of a carried value that enters as ``start`` and leaves a trip as ``after``.

        A placeholder has no elements of its own, so that the trip decides its valid extents, if they are
        known before the loop.
        """
        joined = join_types(start, after)
        fresh = init in self.ctx.placeholders and start == type_of(init)
        if fresh and isinstance(joined, TileType) and isinstance(after, TileType) and joined != start:
            extents = {v for d in after.valid if isinstance(d, Expr) for v in free_vars(d)}
            own = {v for s in walk(block) for v in (*defs(s), *inner_defs(s))}
            if None not in after.valid and not extents & own:
                return replace(joined, valid=after.valid)
        return joined

    def _finish(
        self, webs: list[_Web], lost: dict[Key, Undefined], params: list[Var], block: Block, after: Names
    ) -> tuple[Block, tuple[Carried, ...]]:
        self.ctx.restore(self.before)
        for key, undefined in lost.items():
            self._bind([key], undefined)
        carried: list[Carried] = []
        unchanged: dict[Var, Expr] = {}
        inits = [self._at(self.before, w.keys[0]) for w in webs]
        ends = [self._at(after, w.keys[0]) for w in webs]
        errors = [self._refusal(*x) for x in zip(webs, params, inits, ends, strict=True)]
        # What cannot be carried is passed on to nobody, so that a temporary in a nest of loops stays one
        passed_on = [x for x, e in zip(ends, errors, strict=True) if e is None]
        reads = self._reads(block, passed_on) if webs else {}
        for w, param, init, value, error in zip(webs, params, inits, ends, errors, strict=True):
            if value is param:
                unchanged[param] = init
                continue
            if isinstance(value, Poisoned):
                self._bind(w.keys, value)
                continue
            if error is not None:
                if param in reads:
                    raise Undefined(error).read_at(reads[param])
                self._bind(w.keys, Undefined(error))
                continue
            result = Var(w.name, param.type, self.span)
            self._bind(w.keys, result)
            start, end = (_as(x, param.type) for x in (init, value))
            carried.append(Carried(param, start, end, result))
        self._forget(after, {*lost, *(key for w in webs for key in w.keys)})
        if unchanged:
            rewriter = Rewriter(env=unchanged)
            block = rewriter.block(block)
            carried = [replace(c, next=rewriter.expr(c.next)) for c in carried]
        return block, tuple(carried)

    def _reads(self, block: Block, ends: list[Any]) -> dict[Var, Span]:
        """Variables that the block or the next trip reads, with the first place.

        Joins that nothing reads are left out: they come from names used as temporaries.
        """
        passed_on = {v for x in ends if isinstance(x, Expr) for v in free_vars(x)}
        found: dict[Var, Span] = {}
        for s in walk(drop_dead_joins(block, passed_on)):
            for x in (*operands(s), *exits(s)):
                for v in free_vars(x):
                    found.setdefault(v, s.span)
        for v in passed_on:
            found.setdefault(v, self.span)
        return found

    def _refusal(self, web: _Web, param: Var, init: Any, value: Any) -> UserError | None:
        """Why the name cannot be carried, if it cannot."""
        if value is param or isinstance(value, Poisoned):
            return None
        if isinstance(value, Undefined):
            return value.error
        if self.parallel and not isinstance(param.type, ArrayType):
            fields = {
                "what": f"{web.name!r}",
                "why": "would be carried from one iteration of pl.parallel to the next",
                "fix": "iterations are independent: use pl.range, or write into a tensor with pl.assemble",
            }  # fmt: skip
            return UserError(Diag.MISPLACED, self.span, dict(fields))
        if join_types(param.type, type_of(value)) != param.type:
            return self._clash(web.name, init, value)
        return None

    def _forget(self, after: Names, carried: set[Key]) -> None:
        """Names that only the body binds have no value if there is no trip."""
        for i, frame in enumerate(after):
            for name, value in frame.items():
                before = self.before[i].get(name)
                fresh = name not in self.before[i]
                if isinstance(value, Poisoned):
                    self.ctx.frames[i].names[name] = value
                elif isinstance(before, Undefined):
                    self.ctx.frames[i].names[name] = before
                elif fresh:
                    self.ctx.frames[i].names[name] = Undefined(not_on_every_path(name, "loop", self.span))
                elif (i, name) not in carried and not fresh and value is not before and value != before:
                    self.ctx.frames[i].names[name] = (
                        value if isinstance(value, Undefined) else Undefined(self._clash(name, before, value))
                    )

    def _clash(self, name: str, init: Any, value: Any) -> UserError:
        after = "another value" if value is None else show_type(value)
        fields = {"name": name, "construct": "loop", "before": show_type(init), "after": after}
        return UserError(Diag.CARRIED_TYPE, self.span, dict(fields))


def not_on_every_path(name: str, construct: str, span: Span) -> UserError:
    return UserError(Diag.NOT_ON_EVERY_PATH, span, {"name": name, "construct": construct, "line": span.line})


# ------------------------------------------------------------------------------------------ branches
def merge_branches(ctx: Context, before: Names, then: Names, orelse: Names, span: Span) -> tuple[Merged, ...]:
    """Bind every name to its value after an ``if``: unchanged, merged, or undefined on one path."""
    merged: list[Merged] = []
    made: dict[tuple[object, object], Var] = {}
    ctx.restore(before)
    for i, frame in enumerate(ctx.frames):
        for name in sorted(then[i].keys() | orelse[i].keys()):
            a, b = then[i].get(name), orelse[i].get(name)
            if a is b or (a is not None and a == b):
                frame.names[name] = a
                continue
            frame.names[name] = _merge(name, a, b, span, merged, made)
    return tuple(merged)


def _merge(
    name: str, a: Any, b: Any, span: Span, merged: list[Merged], made: dict[tuple[object, object], Var]
) -> Any:
    for kind in (Poisoned, Undefined):
        for value in (a, b):
            if isinstance(value, kind):
                return value
    if a is None or b is None:
        return Undefined(not_on_every_path(name, "if", span))
    joined = join_types(type_of(a), type_of(b))
    if joined is None or not isinstance(a, Expr) or not isinstance(b, Expr):
        fields = {"name": name, "construct": "if", "before": show_type(a), "after": show_type(b)}
        return Undefined(UserError(Diag.CARRIED_TYPE, span, dict(fields)))
    key = (_identity(a), _identity(b))
    if key not in made:
        made[key] = Var(name, joined, span)
        merged.append(Merged(made[key], _as(a, joined), _as(b, joined)))
    return made[key]


def _identity(x: Expr) -> object:
    """Names bound to one variable stay bound to one variable."""
    return (x.value, x.type) if isinstance(x, Const) else x


# ------------------------------------------------------------------------------------------ dead joins
class _DropJoins(Rewriter):
    """Drops carried and merged values that nothing reads."""

    def __init__(self, read: set[Var]) -> None:
        super().__init__()
        self.read = read

    def stmt(self, s: Stmt) -> Stmt | Block:
        if isinstance(s, If):
            s = replace(s, merged=tuple(m for m in s.merged if m.result in self.read))
        elif isinstance(s, For):
            s = replace(s, carried=tuple(c for c in s.carried if {c.param, c.result} & self.read))
        return self.descend(s)


def drop_dead_joins(body: Block, needed: Iterable[Var] = ()) -> Block:
    """Remove carried and merged values that are never read; they come from names used as temporaries.

    A value that only goes round and round, also through several loops, is not read.  ``needed`` are variables
    that something after the block reads.
    """
    fed_by: dict[Var, tuple[Expr, ...]] = {}  # joined value -> what it is joined of
    read = set(needed)
    for s in walk(body):
        direct = list(operands(s))
        if isinstance(s, For):
            direct = [s.start, s.stop, s.step]
            for c in s.carried:
                fed_by[c.param] = fed_by[c.result] = (c.init, c.next)
        elif isinstance(s, If):
            fed_by |= {m.result: (m.then, m.orelse) for m in s.merged}
        read.update(v for x in direct for v in free_vars(x))
    pending = [v for v in read if v in fed_by]
    while pending:
        found = {v for x in fed_by[pending.pop()] for v in free_vars(x)} - read
        read |= found
        pending += (v for v in found if v in fed_by)
    return body if read.issuperset(fed_by) else _DropJoins(read).block(body)
