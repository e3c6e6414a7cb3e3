"""Calls of operations: choose the overload, bind and convert the arguments, infer types, emit."""

from __future__ import annotations

import ast
import difflib
from typing import Any

from ..errors import Diag, Span, UserError
from ..ops import REGISTRY
from ..ops.registry import OpDef
from .arguments import convert_argument
from .constructs import OpMarker
from .context import Context
from .values import show, type_of


def call_op(
    ctx: Context, marker: OpMarker, args: list[Any], keywords: dict[str, Any], node: ast.AST, hint: str
) -> Any:
    """Elaborate ``pl.<op>(*args, **keywords)``; the result is its variable, or the target of a store."""
    op_def = _choose(ctx, marker, args, keywords, node)
    bound = bind(ctx, marker, op_def, args, keywords, node)
    with ctx.at(node) as span:
        return emit(ctx, op_def, bound, span, hint)


def emit(ctx: Context, op_def: OpDef, bound: tuple[Any, ...], span: Span, hint: str = "") -> Any:
    """Emit one op on converted arguments; type errors are at the place of :func:`~..errors.located`."""
    result = op_def.infer(*bound)
    if result is None:
        ctx.let(op_def, bound, (), "", span)
        return bound[0]
    let = ctx.let(op_def, bound, (result,), hint or op_def.spelling, span)
    if op_def.mutates is not None:
        ctx.rebind(bound[op_def.index(op_def.mutates)], let.result)
    return let.result


def _choose(
    ctx: Context, marker: OpMarker, args: list[Any], keywords: dict[str, Any], node: ast.AST
) -> OpDef:
    """The overload that takes the first argument where the call stands."""
    overloads = REGISTRY.overloads(marker.namespace, marker.name)
    inside = ctx.place.region is not None
    for o in overloads:
        kind = type_of(_first(o, args, keywords))
        if o.accepts is None or o.accepts(kind, inside):
            if not inside and not o.outside:
                raise _misplaced(ctx, marker, node)
            return o
    for o in overloads:
        if o.accepts is not None and o.accepts(type_of(_first(o, args, keywords)), not inside):
            raise _misplaced(ctx, marker, node)
    given = _first(overloads[0], args, keywords)
    why = f"the first argument is {show(given)}" if args or keywords else "it has no argument"
    raise ctx.error(
        Diag.BAD_ARGUMENT, node, op=str(marker), why=why,
        fix="expected a tensor" + (" or a tile" if len(overloads) > 1 else ""),
    )  # fmt: skip


def _first(op_def: OpDef, args: list[Any], keywords: dict[str, Any]) -> Any:
    if args:
        return args[0]
    names = (op_def.params[0].name, *op_def.params[0].synonyms) if op_def.params else ()
    return next((keywords[n] for n in names if n in keywords), None)


def _misplaced(ctx: Context, marker: OpMarker, node: ast.AST) -> UserError:
    return ctx.error(
        Diag.MISPLACED, node, what=f"{marker} computes on a core, and this call",
        why="is outside of any region",
        fix="put it into `with pl.at(level=pl.Level.CORE_GROUP):` or a pl.spmd body",
    )  # fmt: skip


def bind(
    ctx: Context, marker: OpMarker, op_def: OpDef, args: list[Any], keywords: dict[str, Any], node: ast.AST
) -> tuple[Any, ...]:
    """Arguments in parameter order, each converted to what its :class:`~..ops.registry.Kind` says."""
    name, params = str(marker), op_def.params
    signature = op_def.signature.replace(f"pl.{op_def.spelling}", name, 1)
    if len(args) > len(params):
        raise ctx.error(
            Diag.BAD_CALL, node, op=name, why=f"{len(args)} arguments, it takes at most {len(params)}",
            signature=signature,
        )  # fmt: skip
    places = _places(node, args)
    given: dict[str, Any] = {p.name: a for p, a in zip(params, args, strict=False)}
    where = {p.name: place for p, place in zip(params, places, strict=False)}
    renamed = {other: p.name for p in params for other in p.synonyms}
    for spelled, value in keywords.items():
        place, key = keyword_place(node, spelled), renamed.get(spelled, spelled)
        if key not in op_def.param_names:
            known = ", ".join(op_def.param_names) or "nothing"
            error = ctx.error(Diag.UNKNOWN_KEYWORD, place, op=name, keyword=key, known=known)
            error.notes += [
                f"did you mean {k!r}?" for k in difflib.get_close_matches(key, op_def.param_names, 1)
            ]
            raise error
        if key in given:
            raise ctx.error(Diag.BAD_CALL, place, op=name, why=f"{key!r} is given twice", signature=signature)
        given[key], where[key] = value, place
    missing = [p.name for p in params if p.required and p.name not in given]
    if missing:
        raise ctx.error(
            Diag.BAD_CALL, node, op=name, why=f"missing {', '.join(missing)}", signature=signature
        )
    bound: list[Any] = []
    for p in params:
        if p.name not in given:
            bound.append(p.default)
            continue
        with ctx.at(where[p.name]) as span:
            bound.append(convert_argument(ctx, name, p, given[p.name], span))
    return tuple(bound)


def _places(node: ast.AST, args: list[Any]) -> list[ast.AST]:
    """Where each positional argument stands in the source; sugar has only the whole expression."""
    if isinstance(node, ast.Call) and len(node.args) == len(args):
        return list(node.args)
    if isinstance(node, ast.BinOp) and len(args) == 2:
        return [node, node]
    return [node] * len(args)


def keyword_place(node: ast.AST, key: str) -> ast.AST:
    """Where a keyword argument stands in a call."""
    found = [k for k in node.keywords if k.arg == key] if isinstance(node, ast.Call) else []
    return found[0] if found else node
