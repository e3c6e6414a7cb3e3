"""``for``: range, parallel and pipeline become loops, unroll repeats its body, spmd is a region."""

from __future__ import annotations

import ast
from typing import Any

from ..errors import Diag
from ..ir.expr import Const, Expr, Var, index
from ..ir.nodes import Block, For, LoopKind
from ..ir.types import INDEX, ScalarType
from .calls import known_keywords, unsupported
from .constructs import LOOPS, Construct, Unsupported
from .context import Context, Undefined
from .joins import LoopJoin, not_on_every_path
from .regions import spmd
from .values import plain

_KEYWORDS = {"range": (), "parallel": ("chunk", "chunk_policy"), "pipeline": ("stage",), "unroll": ()}


def for_(ctx: Context, node: ast.For) -> None:
    """``for i in <construct>(...):``."""
    if node.orelse:
        raise ctx.error(
            Diag.SYNTAX, node.orelse[0], what="for ... else", fix="put the statements after the loop"
        )
    call, target = node.iter, node.target
    if not isinstance(call, ast.Call):
        raise ctx.error(
            Diag.SYNTAX, call, what="this iterator",
            fix="write `for i in pl.range(n):` (or parallel, pipeline, unroll, spmd)",
        )  # fmt: skip
    if not isinstance(target, ast.Name):
        raise ctx.error(Diag.SYNTAX, target, what="this loop variable", fix="use one name")
    marker = ctx.evaluate(call.func)
    if isinstance(marker, Unsupported):
        raise unsupported(ctx, marker, call)
    if marker is range:
        raise ctx.error(
            Diag.SYNTAX, call, what="Python's range()", fix="use pl.range, or pl.unroll for a static loop"
        )
    if not isinstance(marker, Construct) or marker.name not in (*LOOPS, "spmd"):
        raise ctx.error(
            Diag.SYNTAX,
            call,
            what="this iterator",
            fix="use pl.range, pl.parallel, pl.pipeline, pl.unroll or pl.spmd",
        )
    if marker.name == "spmd":
        spmd(ctx, node, call, target.id, None)
        return
    known_keywords(ctx, call, str(marker), _evaluated(ctx, call), _KEYWORDS[marker.name])
    bounds = _bounds(ctx, call, marker)
    if marker.name == "unroll":
        _unroll(ctx, node, call, target.id, bounds)
    else:
        _loop(ctx, node, call, LoopKind(marker.name), target, bounds)


def _evaluated(ctx: Context, call: ast.Call) -> dict[str, Any]:
    return {str(k.arg): ctx.evaluate(k.value) for k in call.keywords}


def _bounds(ctx: Context, call: ast.Call, marker: Construct) -> tuple[Expr, Expr, Expr]:
    """Start, stop and step."""
    if not 1 <= len(call.args) <= 3:
        raise ctx.error(
            Diag.BAD_CALL, call, op=str(marker), why=f"{len(call.args)} bounds",
            signature=f"{marker}(stop) or {marker}(start, stop, step)",
        )  # fmt: skip
    values = [ctx.integer(a) for a in call.args]
    start, stop = (index(0), values[0]) if len(values) == 1 else (values[0], values[1])
    step = values[2] if len(values) == 3 else index(1)
    if isinstance(step, Const) and step.value <= 0:
        raise ctx.error(
            Diag.BAD_ARGUMENT,
            call.args[2],
            op=str(marker),
            why=f"the step is {step.value}",
            fix="use a positive step",
        )
    return start, stop, step


def _loop(
    ctx: Context,
    node: ast.For,
    call: ast.Call,
    kind: LoopKind,
    target: ast.Name,
    bounds: tuple[Expr, Expr, Expr],
) -> None:
    region = ctx.place.region
    if kind is LoopKind.PARALLEL and region is not None:
        raise ctx.error(
            Diag.MISPLACED, call, what="pl.parallel launches tasks, and this loop",
            why=f"is inside of {region}", fix="use pl.range or pl.pipeline inside of a region",
        )  # fmt: skip
    if kind is LoopKind.PIPELINE and region is None:
        raise ctx.error(
            Diag.MISPLACED, call, what="pl.pipeline overlaps loads with compute, and this loop",
            why="is outside of any region", fix="use pl.range outside, or open the region before the loop",
        )  # fmt: skip
    stage = _stage(ctx, call)
    span = ctx.span(node)
    var = Var(target.id, ScalarType(INDEX), ctx.span(target))
    join = LoopJoin(ctx, ctx.snapshot(), span, kind is LoopKind.PARALLEL)

    def body() -> Block:
        ctx.names[var.name] = var
        block = ctx.branch(node.body)
        ctx.names[var.name] = Undefined(not_on_every_path(var.name, "loop", span))
        return block

    block, carried = join.run(assigned_names(node.body) - {var.name}, body)
    ctx.names[var.name] = Undefined(not_on_every_path(var.name, "loop", span))
    ctx.emit(For(kind, var, *bounds, carried, block, stage, span))


def _stage(ctx: Context, call: ast.Call) -> int:
    for k in call.keywords:
        if k.arg == "stage":
            value = plain(ctx.evaluate(k.value))
            if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
                return value
            raise ctx.error(Diag.NOT_CONSTANT, k, what="stage=", fix="use a constant of at least 1")
    return 1


def _unroll(ctx: Context, node: ast.For, call: ast.Call, name: str, bounds: tuple[Expr, Expr, Expr]) -> None:
    values = [int(b.value) for b in bounds if isinstance(b, Const)]
    if len(values) != 3:
        raise ctx.error(
            Diag.NOT_CONSTANT,
            call,
            what="the bounds of pl.unroll",
            fix="use pl.range for a run-time trip count",
        )
    for i in range(*values):
        ctx.names[name] = Const(i)
        ctx.rules.statements(ctx, node.body)
    ctx.names[name] = Undefined(not_on_every_path(name, "loop", ctx.span(node)))


def assigned_names(body: list[ast.stmt]) -> set[str]:
    """Names that a list of statements binds or changes in place through a subscript."""
    names: set[str] = set()
    for stmt in body:
        for node in ast.walk(stmt):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
            ):
                names.add(node.value.id)
    return names
