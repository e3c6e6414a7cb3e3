"""SSA at joins: names that a loop rebinds, names that the branches of an ``if`` bind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import Diag, Span, UserError
from ..ir.expr import Const, Expr, Var, free_vars
from ..ir.nodes import Block, Carried, Merged
from ..ir.rewrite import Rewriter, uses
from ..ir.types import ArrayType, Dim, ScalarType, TaskType, TensorType, TileType, Type
from ..ops.common import describe, same_dim
from .calls import type_of
from .context import Context, Undefined

Names = list[dict[str, Any]]


def show_type(value: Any) -> str:
    t = type_of(value)
    if isinstance(t, TensorType | TileType):
        return describe(t)
    return "a scalar" if isinstance(t, ScalarType) else type(t or value).__name__


def join_types(a: Type | None, b: Type | None) -> Type | None:
    """One type for a value that is ``a`` or ``b``: valid extents that differ become unknown; None if unequal."""
    if isinstance(a, TileType) and isinstance(b, TileType):
        if (a.shape, a.dtype, a.space, a.split) != (b.shape, b.dtype, b.space, b.split):
            return None
        valid: tuple[Dim | None, ...] = tuple(
            x if same_dim(x, y) else None for x, y in zip(a.valid, b.valid, strict=True)
        )
        return replace(a, valid=valid)
    if isinstance(a, ScalarType) and isinstance(b, ScalarType):
        if a.dtype == b.dtype or (a.dtype.is_integer and b.dtype.is_integer):
            return b if a.dtype.name == "INDEX" else a
        return None
    return a if a == b else None


def joinable(value: Any) -> bool:
    return isinstance(type_of(value), TileType | TensorType | ScalarType | TaskType | ArrayType)


@dataclass
class LoopJoin:
    """Builds the carried values of one loop.

    ``run`` elaborates the body with given parameters for carried names.  Tiles, scalars and arrays that the
    body rebinds are carried; a tensor is carried only if the name ends up on another buffer, since in-place
    writes need no carrying.
    """

    ctx: Context
    before: Names
    span: Span

    def run(self, assigned: set[str], body: Callable[[], Block]) -> tuple[Block, tuple[Carried, ...]]:
        ctx = self.ctx
        candidates = {
            (i, n)
            for i, frame in enumerate(self.before)
            for n, v in frame.items()
            if n in assigned and i == len(self.before) - 1 and joinable(v) and not isinstance(type_of(v), TensorType)
        }
        loose: dict[tuple[int, str], Type] = {}  # names whose valid extents change from trip to trip
        for _ in range(4 + 2 * sum(len(f) for f in self.before)):
            params = self._enter(candidates, loose)
            errors = len(ctx.errors)
            block = body()
            after = ctx.snapshot()
            grown = self._changed(after) - candidates
            wider = {k for k in candidates - loose.keys() if self._widens(params[k], self._at(after, k))}
            if not grown and not wider:
                return self._finish(block, params, after)
            del ctx.errors[errors:]
            candidates = candidates | grown
            loose |= {k: self._loosened(k, params[k], self._at(after, k)) for k in wider}
        raise UserError(
            Diag.SYNTAX, self.span, {"what": "a loop whose names keep changing their kind", "fix": "simplify it"}
        )

    def _at(self, names: Names, key: tuple[int, str]) -> Any:
        return names[key[0]].get(key[1])

    def _loosened(self, key: tuple[int, str], param: Var, value: Any) -> Type:
        """The type of a carried tile whose valid extents differ between entry and trip.

        A placeholder has no elements of its own, so that the trip decides, if its extents are known before
        the loop; any other extent becomes unknown until run time.
        """
        t = type_of(value)
        outer = {v for frame in self.before for v in frame.values() if isinstance(v, Var)}
        extents = [v for d in t.valid if isinstance(d, Expr) for v in free_vars(d)]
        if self._at(self.before, key) in self.ctx.placeholders and all(v in outer for v in extents):
            return replace(param.type, valid=t.valid)
        joined = join_types(param.type, t)
        return joined if joined is not None else param.type

    def _enter(
        self, candidates: set[tuple[int, str]], loose: dict[tuple[int, str], Type]
    ) -> dict[tuple[int, str], Var]:
        self.ctx.restore(self.before)
        params: dict[tuple[int, str], Var] = {}
        for key in sorted(candidates):
            init = self._at(self.before, key)
            params[key] = Var(key[1], loose.get(key, type_of(init)), self.span)
            self.ctx.frames[key[0]].names[key[1]] = params[key]
        return params

    def _changed(self, after: Names) -> set[tuple[int, str]]:
        """Names bound before the loop that end up on another value."""
        return {
            (i, n)
            for i, frame in enumerate(self.before)
            for n, v in frame.items()
            if joinable(v) and joinable(after[i].get(n)) and after[i][n] is not v and after[i][n] != v
        }

    @staticmethod
    def _widens(param: Var, value: Any) -> bool:
        joined = join_types(param.type, type_of(value))
        return isinstance(joined, TileType) and joined != param.type

    def _finish(
        self, block: Block, params: dict[tuple[int, str], Var], after: Names
    ) -> tuple[Block, tuple[Carried, ...]]:
        self.ctx.restore(self.before)
        read = set(uses(block))
        carried: list[Carried] = []
        unchanged: dict[Var, Expr] = {}
        for key, param in params.items():
            init, value = self._at(self.before, key), self._at(after, key)
            names = self.ctx.frames[key[0]].names
            if value is param:
                unchanged[param] = init
                continue
            joined = join_types(param.type, type_of(value))
            if joined is None or not isinstance(value, Expr):
                error = value.error if isinstance(value, Undefined) else self._clash(key[1], init, value)
                if param in read:
                    raise error
                names[key[1]] = Undefined(error)
                continue
            result = Var(key[1], joined, self.span)
            carried.append(Carried(param, init, value, result))
            names[key[1]] = result
        for i, frame in enumerate(after):  # names that only the body binds have no value if there is no trip
            for n in frame.keys() - self.before[i].keys():
                self.ctx.frames[i].names[n] = Undefined(
                    UserError(
                        Diag.NOT_ON_EVERY_PATH, self.span, {"name": n, "construct": "loop", "line": self.span.line}
                    )
                )
        if unchanged:
            rewriter = Rewriter(env=unchanged)
            block = rewriter.block(block)
            carried = [
                replace(c, next=rewriter.expr(c.next), init=c.init) for c in carried
            ]
        return block, tuple(carried)

    def _clash(self, name: str, init: Any, value: Any) -> UserError:
        return UserError(
            Diag.CARRIED_TYPE, self.span,
            {"name": name, "construct": "loop", "before": show_type(init), "after": show_type(value)},
        )  # fmt: skip


def merge_branches(ctx: Context, before: Names, then: Names, orelse: Names, span: Span) -> tuple[Merged, ...]:
    """Bind every name to its value after an ``if``: unchanged, merged, or undefined on one path."""
    merged: list[Merged] = []
    made: dict[tuple[int, int], Var] = {}
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
    name: str, a: Any, b: Any, span: Span, merged: list[Merged], made: dict[tuple[int, int], Var]
) -> Any:
    for value in (a, b):
        if isinstance(value, Undefined):
            return value
    if a is None or b is None:
        fields = {"name": name, "construct": "if", "line": span.line}
        return Undefined(UserError(Diag.NOT_ON_EVERY_PATH, span, dict(fields)))
    joined = join_types(type_of(a), type_of(b)) if joinable(a) and joinable(b) else None
    if joined is None or not isinstance(a, Expr) or not isinstance(b, Expr):
        fields = {"name": name, "construct": "if", "before": show_type(a), "after": show_type(b)}
        return Undefined(UserError(Diag.CARRIED_TYPE, span, fields))
    key = (_identity(a), _identity(b))
    if key not in made:
        made[key] = Var(name, joined, span)
        merged.append(Merged(made[key], a, b))
    return made[key]


def _identity(x: Expr) -> int:
    return x.uid if isinstance(x, Var) else hash((type(x), x)) if isinstance(x, Const) else id(x)
