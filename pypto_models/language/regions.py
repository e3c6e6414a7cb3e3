"""``with`` and pl.spmd loops: what one task runs, its options, and what its names mean afterwards."""

from __future__ import annotations

import ast
from typing import Any

from ..errors import Diag, UserError
from ..ir.expr import Expr, Var, free_vars
from ..ir.nodes import Block, Let, Region, RegionKind, RegionOptions, Scope, Unit
from ..ir.rewrite import defs, inner_defs, walk
from ..ir.types import INDEX, ScalarType, SplitMode, TaskType
from ..ops.registry import OpDef
from .arguments import task_ids
from .calls import arguments, known_keywords, unsupported
from .constructs import AutoChunk, Construct, Level, Role, Slots, Split, Unsupported
from .context import Context, Names, Undefined
from .operations import keyword_place
from .values import is_scalar, plain, show

_HINTS_AT = ("role", "no_dep_args", "dumps", "allow_early_resolve", "windowize")
_HINTS_SPMD = ("sync_start", "allow_early_resolve")


def with_(ctx: Context, node: ast.With) -> None:
    """``with pl.at | pl.spmd | pl.scope | pl.manual_scope (...) [as tid]:``."""
    item = node.items[0]
    call = item.context_expr
    marker = ctx.evaluate(call.func) if isinstance(call, ast.Call) else None
    if isinstance(marker, Unsupported):
        raise unsupported(ctx, marker, call)
    if not isinstance(call, ast.Call) or not isinstance(marker, Construct):
        raise ctx.error(
            Diag.SYNTAX,
            call,
            what="this context manager",
            fix="use pl.at, pl.spmd, pl.scope or pl.manual_scope",
        )
    if len(node.items) != 1:
        raise ctx.error(
            Diag.SYNTAX, node.items[1].context_expr, what="a second context manager", fix="nest the withs"
        )
    tid = item.optional_vars
    if tid is not None and not isinstance(tid, ast.Name):
        raise ctx.error(Diag.SYNTAX, tid, what="this `as` target", fix="name the task id: `as tid`")
    if marker.name in ("scope", "manual_scope"):
        _scope(ctx, node, call, marker)
    elif marker.name == "spmd":
        spmd(ctx, node, call, None, tid)
    elif marker.name == "at":
        _at(ctx, node, call, tid)
    else:
        raise ctx.error(Diag.SYNTAX, call, what=f"{marker} in a with", fix=f"write `for i in {marker}(...):`")


def _scope(ctx: Context, node: ast.With, call: ast.Call, marker: Construct) -> None:
    known_keywords(ctx, call, str(marker), arguments(ctx, call)[1], ())
    if ctx.place.region is not None:
        raise ctx.error(
            Diag.MISPLACED, call, what=str(marker), why=f"is inside of {ctx.place.region}",
            fix="scopes hold regions: open it outside",
        )  # fmt: skip
    block = ctx.branch(node.body)
    ctx.emit(Scope(marker.name == "manual_scope", block, ctx.span(node)))


def _at(ctx: Context, node: ast.With, call: ast.Call, tid: ast.Name | None) -> None:
    args, keywords = arguments(ctx, call)
    known_keywords(ctx, call, "pl.at", keywords, ("level", "optimizations", "deps", "name_hint", *_HINTS_AT))
    if len(args) > 2 or any(k in keywords for k in ("level", "role")[: len(args)]):
        raise ctx.error(
            Diag.BAD_CALL, call, op="pl.at", why="level and role are its only positional arguments",
            signature="pl.at(level, role, optimizations=[...], deps=[...], name_hint=...)",
        )  # fmt: skip
    keywords |= dict(zip(("level", "role"), args, strict=False))
    level, role = keywords.get("level"), keywords.get("role")
    if level not in (Level.CORE_GROUP, None):
        raise ctx.error(
            Diag.UNSUPPORTED, keyword_place(call, "level"), name=f"level={level or show(level)}",
            why="only core groups run regions", fix="use level=pl.Level.CORE_GROUP",
        )  # fmt: skip
    if role is not None and not isinstance(role, Role):
        raise ctx.error(
            Diag.BAD_ARGUMENT, keyword_place(call, "role"), op="pl.at", why=f"role is {show(role)}",
            fix="use pl.Role.AUTO, CUBE or VECTOR",
        )  # fmt: skip
    _not_nested(ctx, call, "pl.at")
    options, deps = _options(ctx, call, keywords, _HINTS_AT), _deps(ctx, call, keywords)
    with ctx.inside("pl.at", None):
        block = ctx.branch(node.body)
    _emit_region(ctx, node, RegionKind.AT, None, None, block, options, deps, tid)


def spmd(
    ctx: Context, node: ast.For | ast.With, call: ast.Call, target: str | None, tid: ast.Name | None
) -> None:
    """``for i in pl.spmd(n):`` and ``with pl.spmd(n) [as tid]:``: a grid of ``n`` independent blocks."""
    args, keywords = arguments(ctx, call)
    known = ("optimizations", "deps", "name_hint", "predicate", *_HINTS_SPMD)
    known_keywords(ctx, call, "pl.spmd", keywords, known)
    if "predicate" in keywords:
        raise ctx.error(
            Diag.UNSUPPORTED, keyword_place(call, "predicate"), name="pl.spmd(predicate=)",
            why="it is not implemented yet", fix="use an if in the body",
        )  # fmt: skip
    if "deps" in keywords and tid is None:
        raise ctx.error(
            Diag.BAD_CALL, keyword_place(call, "deps"), op="pl.spmd", why="deps= needs the `as` form",
            signature="with pl.spmd(n, deps=[...]) as tid:",
        )  # fmt: skip
    if len(args) != 1 or not is_scalar(args[0]) or not args[0].dtype.is_integer:
        why = f"the block count is {show(args[0])}" if len(args) == 1 else f"{len(args)} block counts"
        raise ctx.error(Diag.BAD_CALL, call, op="pl.spmd", why=why, signature="pl.spmd(n), n an integer")
    _not_nested(ctx, call, "pl.spmd")
    options, deps = _options(ctx, call, keywords, _HINTS_SPMD), _deps(ctx, call, keywords)
    block_var = Var(target or "block", ScalarType(INDEX), ctx.span(call))
    before = ctx.snapshot()
    with ctx.inside("pl.spmd", block_var):
        if target is not None:
            ctx.names[target] = block_var
        body = ctx.branch(node.body)
    _forget_block_values(ctx, before, body, block_var, node)
    _emit_region(ctx, node, RegionKind.SPMD, block_var, args[0], body, options, deps, tid)


def _forget_block_values(ctx: Context, before: Names, body: Block, block_var: Var, node: ast.stmt) -> None:
    """Values of one block mean nothing outside of the grid; reading one later is an error."""
    own = {block_var, *(v for s in walk(body) for v in (*defs(s), *inner_defs(s)))}
    for i, frame in enumerate(ctx.frames):
        for name, value in frame.names.items():
            if value is not before[i].get(name) and _depends(value, own):
                fix = "write it into a tensor with pl.assemble, one place per block"
                error = UserError(Diag.SPILL, ctx.span(node), {"name": name, "fix": fix})
                frame.names[name] = Undefined(error)


def _depends(value: Any, own: set[Var]) -> bool:
    if isinstance(value, tuple):
        return any(_depends(v, own) for v in value)
    return isinstance(value, Expr) and any(v in own for v in free_vars(value))


def _not_nested(ctx: Context, node: ast.AST, what: str) -> None:
    if ctx.place.region is not None:
        raise ctx.error(
            Diag.MISPLACED, node, what=what, why=f"is inside of {ctx.place.region}: regions do not nest",
            fix="close the outer region first",
        )  # fmt: skip


# ------------------------------------------------------------------------------------------ options
def _options(ctx: Context, call: ast.Call, keywords: dict[str, Any], hints: tuple[str, ...]) -> RegionOptions:
    mode, slots = SplitMode.NONE, 2
    given = keywords.get("optimizations")
    for o in given if isinstance(given, tuple) else () if given is None else (given,):
        if isinstance(o, Split) and isinstance(o.mode, SplitMode):
            mode, slots = o.mode, o.slot_num
        elif isinstance(o, Slots):
            slots = o.slot_num
        elif not isinstance(o, AutoChunk):
            raise ctx.error(
                Diag.BAD_ARGUMENT, keyword_place(call, "optimizations"), op="optimizations=",
                why=f"{show(o)} is not an optimization",
                fix="pl.split(pl.SplitMode.UP_DOWN), pl.cross_core_slot(slot_num=4) or pl.auto_chunk",
            )  # fmt: skip
    name = keywords.get("name_hint") or ""
    if not isinstance(name, str):
        raise ctx.error(
            Diag.BAD_ARGUMENT, keyword_place(call, "name_hint"), op="name_hint=", why=f"got {show(name)}",
            fix="use a string",
        )  # fmt: skip
    if not isinstance(plain(keywords.get("sync_start", False)), bool):
        raise ctx.error(
            Diag.BAD_ARGUMENT, keyword_place(call, "sync_start"), op="sync_start=",
            why=f"got {show(keywords['sync_start'])}", fix="use True or False",
        )  # fmt: skip
    kept = tuple((k, _hint(v)) for k, v in keywords.items() if k in hints and v is not None)
    return RegionOptions(name, mode, slots, kept)


def _hint(value: Any) -> object:
    """A hint as plain data: tensors by their names."""
    if isinstance(value, tuple):
        return tuple(_hint(v) for v in value)
    return value.name if isinstance(value, Var) else plain(value)


def _deps(ctx: Context, call: ast.Call, keywords: dict[str, Any]) -> tuple[Expr, ...]:
    with ctx.at(keyword_place(call, "deps")):
        return task_ids(keywords.get("deps"), "deps=")


def _emit_region(
    ctx: Context, node: ast.stmt, kind: RegionKind, block_var: Var | None, count: Expr | None, body: Block,
    options: RegionOptions, deps: tuple[Expr, ...], tid: ast.Name | None,
) -> None:  # fmt: skip
    tid_var = Var(tid.id, TaskType(), ctx.span(tid)) if tid is not None else None
    ctx.emit(Region(kind, block_var, count, body, options, tid_var, deps, unit_of(body), ctx.span(node)))
    if tid_var is not None:
        ctx.names[tid_var.name] = tid_var


def unit_of(body: Block) -> Unit:
    """CUBE with products only, MIXED with vector ops too, else VEC."""
    units = {s.op.unit for s in walk(body) if isinstance(s, Let) and isinstance(s.op, OpDef)}
    if Unit.CUBE not in units:
        return Unit.VEC
    return Unit.MIXED if Unit.VEC in units else Unit.CUBE
