"""Assignments, ``if``, expression statements."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

from ..errors import Diag
from ..ir.expr import Binary, Const, Unary, Var
from ..ir.nodes import Bind, If, Let
from ..ir.types import ScalarType, SplitMode, TileType
from . import annotations as types
from . import subscripts
from .context import Context
from .inlining import admit, annotation_value
from .joins import merge_branches
from .values import show


# ------------------------------------------------------------------------------------------ assignments
def assign(ctx: Context, node: ast.Assign) -> None:
    """``name = value``, ``a, b = values``, ``base[...] = value``."""
    if len(node.targets) != 1:
        raise ctx.error(Diag.SYNTAX, node, what="a chained assignment", fix="assign one name at a time")
    target = node.targets[0]
    value = ctx.evaluate(node.value, target.id if isinstance(target, ast.Name) else "")
    _bind(ctx, target, value, node)


def _bind(ctx: Context, target: ast.expr, value: Any, node: ast.stmt) -> None:
    if isinstance(target, ast.Name):
        ctx.names[target.id] = _named(ctx, target.id, value, node)
    elif isinstance(target, ast.Tuple | ast.List):
        if not isinstance(value, tuple) or len(value) != len(target.elts):
            raise ctx.error(
                Diag.SHAPE, target, op="assignment", why=f"{len(target.elts)} names for {show(value)}",
                fix="one name for each value",
            )  # fmt: skip
        for t, v in zip(target.elts, value, strict=True):
            _bind(ctx, t, v, node)
    elif isinstance(target, ast.Subscript):
        subscripts.write(ctx, target, value, node)
    else:
        raise ctx.error(Diag.SYNTAX, target, what="this assignment target", fix="assign to a name or a slice")


def _named(ctx: Context, name: str, value: Any, node: ast.stmt) -> Any:
    """A computed scalar gets a variable of its own, so that the printed program keeps the user's names."""
    if isinstance(value, Binary | Unary):
        var = Var(name, ScalarType(value.dtype), ctx.span(node))
        ctx.emit(Bind(var, value, ctx.span(node)))
        return var
    return value


def annotated(ctx: Context, node: ast.AnnAssign) -> None:
    """``name: type = value``: the type is checked, and a tile takes its memory space and split from it."""
    if node.value is None or not isinstance(node.target, ast.Name):
        raise ctx.error(Diag.SYNTAX, node, what="this annotation", fix="write `name: type = value`")
    name = node.target.id
    value = ctx.evaluate(node.value, name)
    wanted = annotation_value(ctx, node.annotation)
    value = admit(ctx, wanted, value, name, node.value, node.annotation)
    if isinstance(wanted, types.TileAnnotation) and (wanted.space or wanted.split is not SplitMode.NONE):
        value = _placed(ctx, value, wanted)
    _bind(ctx, node.target, value, node)


def _placed(ctx: Context, value: Any, wanted: types.TileAnnotation) -> Any:
    """The tile of the statement just emitted, with the space and split of its annotation."""
    last = ctx.block[-1] if ctx.block else None
    if not isinstance(value, Var) or not isinstance(value.type, TileType):
        return value
    if not isinstance(last, Let) or value not in last.results:
        return value
    new = Var(value.name, value.type.with_(space=wanted.space, split=wanted.split), value.span)
    ctx.block[-1] = replace(last, results=tuple(new if v is value else v for v in last.results))
    ctx.rebind(value, new)
    if value in ctx.placeholders:
        ctx.placeholders.add(new)
    return new


def expression(ctx: Context, node: ast.Expr) -> None:
    """A call for its effect, or a docstring."""
    if isinstance(node.value, ast.Constant):
        return
    ctx.evaluate(node.value)


def pass_(ctx: Context, node: ast.Pass) -> None:
    """Nothing."""


def return_(ctx: Context, node: ast.Return) -> None:
    """A return anywhere but at the end; the last one is the kernel's value (see :mod:`.inlining`)."""
    raise ctx.error(
        Diag.SYNTAX, node, what="a return before the end", fix="return once, at the end of the kernel"
    )


# ------------------------------------------------------------------------------------------ if
def if_(ctx: Context, node: ast.If) -> None:
    """A constant condition selects its branch and the other is not even looked at; else both are kept."""
    cond = ctx.scalar(node.test)
    if isinstance(cond, Const):
        ctx.rules.statements(ctx, node.body if cond.value else node.orelse)
        return
    before = ctx.snapshot()
    then = ctx.branch(node.body)
    after_then = ctx.snapshot()
    ctx.restore(before)
    orelse = ctx.branch(node.orelse)
    after_else = ctx.snapshot()
    span = ctx.span(node)
    ctx.emit(If(cond, then, orelse, merge_branches(ctx, before, after_then, after_else, span), span))
