"""Statements: from Python's syntax tree to IR, with inlining, unrolling and constant ``if`` done on the way."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

from ..errors import Diag, UserError
from ..ir.expr import Binary, Const, Expr, Unary, Var, convert, dim_expr, index
from ..ir.nodes import Bind, Block, For, If, Let, LoopKind, Region, RegionKind, RegionOptions, Scope, Unit
from ..ir.rewrite import walk
from ..ir.types import INDEX, ArrayType, DType, ScalarType, SplitMode, TaskType, TensorType, TileType
from ..ops import REGISTRY
from ..ops.registry import OpDef
from . import annotations as ann
from .calls import call_op, emit, show, type_of
from .constructs import AutoChunk, Construct, OpMarker, Slots, Split, Unsupported
from .context import POISON, Context, Frame, Suppressed, Undefined, frozen
from .expressions import box, evaluate, scalar, unsupported
from .joins import LoopJoin, merge_branches
from .kernel import Kernel

MAX_DEPTH = 64


class _Return(Exception):
    """Not an error: marks that a kernel returned, with its value."""


def statements(ctx: Context, body: list[ast.stmt]) -> None:
    """Elaborate statements in order into the current block."""
    for node in body:
        try:
            _statement(ctx, node)
        except UserError as error:
            _poison_targets(ctx, node)
            ctx.report(error)
        except Suppressed:
            _poison_targets(ctx, node)


def _statement(ctx: Context, node: ast.stmt) -> None:
    rule = _RULES.get(type(node))
    if rule is None:
        fixes = {
            ast.While: "use pl.range with a trip count", ast.AugAssign: "write x = x + ...",
            ast.Break: "guard the rest of the body with an if", ast.Continue: "use an if",
            ast.FunctionDef: "define it outside and decorate it with @pl.jit.inline", ast.Try: "kernels do not raise",
        }  # fmt: skip
        raise ctx.error(
            Diag.SYNTAX, node, what=f"the statement `{type(node).__name__.lower()}`",
            fix=fixes.get(type(node), "use assignments, for, if, with and calls"),
        )  # fmt: skip
    rule(ctx, node)


def _poison_targets(ctx: Context, node: ast.stmt) -> None:
    for name in assigned_names([node]):
        ctx.names[name] = POISON


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


# ------------------------------------------------------------------------------------------ assignments
def _assign(ctx: Context, node: ast.Assign) -> None:
    if len(node.targets) != 1:
        raise ctx.error(Diag.SYNTAX, node, what="a chained assignment", fix="assign one name at a time")
    target = node.targets[0]
    hint = target.id if isinstance(target, ast.Name) else ""
    value = evaluate(ctx, node.value, hint)
    _bind(ctx, target, value, node)


def _annotated(ctx: Context, node: ast.AnnAssign) -> None:
    if node.value is None or not isinstance(node.target, ast.Name):
        raise ctx.error(Diag.SYNTAX, node, what="this annotation", fix="write `name: type = value`")
    value = evaluate(ctx, node.value, node.target.id)
    _bind(ctx, node.target, value, node)
    wanted = evaluate(ctx, node.annotation)
    bound = ctx.names[node.target.id]
    if isinstance(wanted, ann.TileAnnotation) and isinstance(bound, Var) and isinstance(bound.type, TileType):
        _check_shape(ctx, node, node.target.id, wanted, bound.type)
        if wanted.space is not None or wanted.split is not SplitMode.NONE:
            _retype(ctx, bound, bound.type.with_(space=wanted.space, split=wanted.split))
    elif isinstance(wanted, ann.TensorAnnotation) and isinstance(type_of(bound), TensorType | TileType):
        _check_shape(ctx, node, node.target.id, wanted, type_of(bound))


def _retype(ctx: Context, var: Var, new_type: TileType) -> None:
    """Give the variable that was just defined the space and split of its annotation."""
    new = Var(var.name, new_type, var.span)
    for i in range(len(ctx.block) - 1, -1, -1):
        stmt = ctx.block[i]
        if isinstance(stmt, Let) and var in stmt.results:
            ctx.block[i] = replace(stmt, results=tuple(new if v is var else v for v in stmt.results))
            ctx.rebind(var, new)
            return


def _bind(ctx: Context, target: ast.expr, value: Any, node: ast.stmt) -> None:
    if isinstance(target, ast.Name):
        ctx.names[target.id] = _named(ctx, target.id, value, node)
    elif isinstance(target, ast.Tuple):
        if not isinstance(value, tuple) or len(value) != len(target.elts):
            raise ctx.error(
                Diag.SHAPE, node, op="assignment", why=f"{len(target.elts)} names for {show(value)}",
                fix="one name for each value",
            )  # fmt: skip
        for t, v in zip(target.elts, value, strict=True):
            _bind(ctx, t, v, node)
    elif isinstance(target, ast.Subscript):
        _write_subscript(ctx, target, value, node)
    else:
        raise ctx.error(Diag.SYNTAX, target, what="this assignment target", fix="assign to a name or a slice")


def _named(ctx: Context, name: str, value: Any, node: ast.stmt) -> Any:
    """A computed scalar gets a variable of its own, so that the printed program keeps the user's names."""
    if isinstance(value, Binary | Unary):
        var = Var(name, ScalarType(value.dtype), ctx.span(node))
        ctx.emit(Bind(var, value, ctx.span(node)))
        return var
    return value


def _write_subscript(ctx: Context, target: ast.Subscript, value: Any, node: ast.stmt) -> None:
    base = evaluate(ctx, target.value)
    kind = type_of(base)
    if isinstance(kind, ArrayType):
        with ctx.at(target) as span:
            at = (scalar(ctx, target.slice),)
            emit(ctx, REGISTRY["array_set"], (base, at, value), span, base.name)
        return
    if not isinstance(kind, TensorType | TileType):
        raise ctx.error(
            Diag.BAD_ARGUMENT, node, op="subscript", why=f"{show(base)} cannot be written",
            fix="write to a tensor, a tile or an array",
        )  # fmt: skip
    sizes, offsets, dropped = box(ctx, base, target)
    if len(dropped) == len(sizes):
        call_op(ctx, OpMarker("write"), [base, tuple(offsets), value], {}, node, base.name)
        return
    source = type_of(value)
    if isinstance(source, TileType):
        sizes_known = [s.value if isinstance(s, Const) else None for s in sizes]
        squeezed = [s for a, s in enumerate(sizes_known) if a not in dropped]
        if list(source.shape) == squeezed and dropped:
            value = call_op(ctx, OpMarker("reshape"), [value, tuple(sizes)], {}, node, "")
        elif list(source.shape) != sizes_known and None not in sizes_known:
            raise ctx.error(
                Diag.SHAPE, node, op="subscript", why=f"the slice is {sizes_known}, the value {list(source.shape)}",
                fix="slice as much as you write",
            )  # fmt: skip
    elif isinstance(source, ScalarType):
        raise ctx.error(
            Diag.BAD_ARGUMENT, node, op="subscript", why="a scalar cannot fill a slice",
            fix="write a tile: pl.full(shape, dtype, value)",
        )  # fmt: skip
    call_op(ctx, OpMarker("assemble"), [base, value, tuple(offsets)], {}, node, base.name)


def _expression(ctx: Context, node: ast.Expr) -> None:
    if isinstance(node.value, ast.Constant):
        return  # a docstring
    evaluate(ctx, node.value)


def _pass(ctx: Context, node: ast.Pass) -> None:
    return


# ------------------------------------------------------------------------------------------ if
def _if(ctx: Context, node: ast.If) -> None:
    cond = scalar(ctx, node.test)
    if isinstance(cond, Const):
        statements(ctx, node.body if cond.value else node.orelse)
        return
    before = ctx.snapshot()
    then = _branch(ctx, node.body)
    after_then = ctx.snapshot()
    ctx.restore(before)
    orelse = _branch(ctx, node.orelse)
    after_else = ctx.snapshot()
    span = ctx.span(node)
    merged = merge_branches(ctx, before, after_then, after_else, span)
    ctx.emit(If(cond, then, orelse, merged, span))


def _branch(ctx: Context, body: list[ast.stmt]) -> Block:
    with ctx.new_block() as block:
        statements(ctx, body)
    return frozen(block)


# ------------------------------------------------------------------------------------------ for
def _for(ctx: Context, node: ast.For) -> None:
    if node.orelse:
        raise ctx.error(Diag.SYNTAX, node, what="for ... else", fix="put the statements after the loop")
    call = node.iter
    marker = evaluate(ctx, call.func) if isinstance(call, ast.Call) else None
    if not isinstance(call, ast.Call) or not isinstance(node.target, ast.Name):
        raise ctx.error(
            Diag.SYNTAX, node, what="this for loop", fix="write `for i in pl.range(n):` (or parallel, pipeline, unroll, spmd)"
        )
    if isinstance(marker, Unsupported):
        raise unsupported(ctx, marker, call)
    if marker is range:
        raise ctx.error(Diag.SYNTAX, call, what="Python's range()", fix="use pl.range, or pl.unroll for a static loop")
    if not isinstance(marker, Construct):
        raise ctx.error(Diag.SYNTAX, call, what="this iterator", fix="use pl.range, pl.parallel, pl.pipeline, pl.unroll or pl.spmd")
    args = [scalar(ctx, a) for a in call.args]
    keywords = {str(k.arg): evaluate(ctx, k.value) for k in call.keywords}
    if marker.name == "spmd":
        _spmd(ctx, node, call, args, keywords, node.target.id, None)
    elif marker.name == "unroll":
        _unroll(ctx, node, call, args)
    else:
        _loop(ctx, node, call, marker, args, keywords)


def _bounds(ctx: Context, call: ast.Call, args: list[Expr]) -> tuple[Expr, Expr, Expr]:
    if len(args) == 1:
        return index(0), args[0], index(1)
    if len(args) in (2, 3):
        return args[0], args[1], args[2] if len(args) == 3 else index(1)
    raise ctx.error(
        Diag.BAD_CALL, call, op=ast.unparse(call.func), why=f"{len(args)} bounds", signature="(stop) or (start, stop, step)"
    )  # fmt: skip


_LOOP_KEYWORDS = {"range": (), "parallel": ("chunk", "chunk_policy"), "pipeline": ("stage",)}


def _loop(
    ctx: Context, node: ast.For, call: ast.Call, marker: Construct, args: list[Expr], keywords: dict[str, Any]
) -> None:
    start, stop, step = _bounds(ctx, call, args)
    _known_keywords(ctx, call, str(marker), keywords, _LOOP_KEYWORDS[marker.name])
    inside = ctx.place.region is not None
    if marker.name == "parallel" and inside:
        raise ctx.error(
            Diag.MISPLACED, call, what="pl.parallel launches tasks, and this loop", why=f"is inside of {ctx.place.region}",
            fix="use pl.range or pl.pipeline inside of a region",
        )  # fmt: skip
    if marker.name == "pipeline" and not inside:
        raise ctx.error(
            Diag.MISPLACED, call, what="pl.pipeline overlaps loads with compute, and this loop",
            why="is outside of any region", fix="use pl.range outside, or open the region before the loop",
        )  # fmt: skip
    if isinstance(step, Const) and step.value <= 0:
        raise ctx.error(Diag.BAD_ARGUMENT, call, op=str(marker), why=f"the step is {step.value}", fix="use a positive step")
    stage = _constant_int(ctx, call, "stage", keywords.get("stage", Const(1)))
    span = ctx.span(node)
    var = Var(node.target.id, ScalarType(INDEX), ctx.span(node.target))  # type: ignore[attr-defined]
    join = LoopJoin(ctx, ctx.snapshot(), span)

    def body() -> Block:
        ctx.names[var.name] = var
        return _branch(ctx, node.body)

    block, carried = join.run(assigned_names(node.body), body)
    ctx.names.pop(var.name, None)
    kind = LoopKind(marker.name)
    if kind is LoopKind.PARALLEL and carried:
        name = carried[0].result.name
        raise ctx.error(
            Diag.SPILL, node, name=name, fix="the iterations of pl.parallel are independent: write into a tensor with pl.assemble"
        )  # fmt: skip
    ctx.emit(For(kind, var, start, stop, step, carried, block, stage, span))


def _unroll(ctx: Context, node: ast.For, call: ast.Call, args: list[Expr]) -> None:
    bounds = _bounds(ctx, call, args)
    if not all(isinstance(b, Const) for b in bounds):
        raise ctx.error(Diag.NOT_CONSTANT, call, what="the bounds of pl.unroll", fix="use pl.range for a run-time trip count")
    values = [int(b.value) for b in bounds if isinstance(b, Const)]
    for i in range(*values):
        ctx.names[node.target.id] = Const(i)  # type: ignore[attr-defined]
        statements(ctx, node.body)


def _known_keywords(
    ctx: Context, node: ast.AST, what: str, keywords: dict[str, Any], known: tuple[str, ...]
) -> None:
    for key in keywords:
        if key not in known:
            raise ctx.error(
                Diag.UNKNOWN_KEYWORD, node, op=what, keyword=key, known=", ".join(known) or "no keywords"
            )  # fmt: skip


def _constant_int(ctx: Context, node: ast.AST, what: str, value: Any) -> int:
    if isinstance(value, Const):
        return int(value.value)
    raise ctx.error(Diag.NOT_CONSTANT, node, what=f"{what}=", fix="use a constant")


# ------------------------------------------------------------------------------------------ regions
_HINTS_AT = ("role", "no_dep_args", "dumps", "allow_early_resolve", "windowize")
_HINTS_SPMD = ("sync_start", "allow_early_resolve")


def _with(ctx: Context, node: ast.With) -> None:
    if len(node.items) != 1 or not isinstance(node.items[0].context_expr, ast.Call):
        raise ctx.error(Diag.SYNTAX, node, what="this with statement", fix="open one pl.at, pl.spmd or pl.scope at a time")
    item = node.items[0]
    call = item.context_expr
    assert isinstance(call, ast.Call)
    marker = evaluate(ctx, call.func)
    if isinstance(marker, Unsupported):
        raise unsupported(ctx, marker, call)
    if not isinstance(marker, Construct):
        raise ctx.error(Diag.SYNTAX, node, what="this context manager", fix="use pl.at, pl.spmd, pl.scope or pl.manual_scope")
    tid = item.optional_vars.id if isinstance(item.optional_vars, ast.Name) else None
    args = [evaluate(ctx, a) for a in call.args]
    keywords = {str(k.arg): evaluate(ctx, k.value) for k in call.keywords}
    if marker.name in ("scope", "manual_scope"):
        block = _branch(ctx, node.body)
        ctx.emit(Scope(marker.name == "manual_scope", block, ctx.span(node)))
    elif marker.name == "spmd":
        _spmd(ctx, node, call, args, keywords, None, tid)
    else:
        _at(ctx, node, call, args, keywords, tid)


def _at(
    ctx: Context, node: ast.With, call: ast.Call, args: list[Any], keywords: dict[str, Any], tid: str | None
) -> None:
    _known_keywords(ctx, call, "pl.at", keywords, ("level", "optimizations", "deps", "name_hint", *_HINTS_AT))
    level = keywords.get("level", args[0] if args else None)
    if getattr(level, "name", None) not in ("CORE_GROUP", None):
        raise ctx.error(
            Diag.UNSUPPORTED, call, name=f"pl.Level.{getattr(level, 'name', level)}", why="only core groups run regions",
            fix="use level=pl.Level.CORE_GROUP",
        )  # fmt: skip
    _not_nested(ctx, node, "pl.at")
    options = _options(ctx, call, keywords, _HINTS_AT)
    with ctx.inside("pl.at", None):
        block = _branch(ctx, node.body)
    _emit_region(ctx, node, RegionKind.AT, None, None, block, options, keywords, tid)


def _spmd(
    ctx: Context, node: ast.For | ast.With, call: ast.Call, args: list[Any], keywords: dict[str, Any],
    target: str | None, tid: str | None,
) -> None:  # fmt: skip
    _known_keywords(ctx, call, "pl.spmd", keywords, ("optimizations", "deps", "name_hint", "predicate", *_HINTS_SPMD))
    if "predicate" in keywords:
        raise ctx.error(Diag.UNSUPPORTED, call, name="pl.spmd(predicate=)", why="it is not implemented yet", fix="use an if in the body")
    if "deps" in keywords and tid is None:
        raise ctx.error(
            Diag.BAD_CALL, call, op="pl.spmd", why="deps= needs the `as` form",
            signature="with pl.spmd(n, deps=[...]) as tid:",
        )  # fmt: skip
    if len(args) != 1:
        raise ctx.error(Diag.BAD_CALL, call, op="pl.spmd", why=f"{len(args)} block counts", signature="pl.spmd(n)")
    _not_nested(ctx, node, "pl.spmd")
    options = _options(ctx, call, keywords, _HINTS_SPMD)
    block_var = Var(target or "block", ScalarType(INDEX), ctx.span(call))
    before = ctx.snapshot()
    with ctx.inside("pl.spmd", block_var):
        if target is not None:
            ctx.names[target] = block_var
        body = _branch(ctx, node.body)
    _forget_block_values(ctx, before, node)
    _emit_region(ctx, node, RegionKind.SPMD, block_var, args[0], body, options, keywords, tid)


def _forget_block_values(ctx: Context, before: list[dict[str, Any]], node: ast.stmt) -> None:
    """Values of one block mean nothing outside of the grid; reading one later is an error."""
    after = ctx.snapshot()
    ctx.restore(before)
    for i, frame in enumerate(after):
        for name, value in frame.items():
            old = before[i].get(name)
            if value is old or (isinstance(type_of(value), TensorType) and old is not None):
                continue
            if value is not None and value == old:
                continue
            fix = "write it into a tensor with pl.assemble, one place per block"
            error = UserError(Diag.SPILL, ctx.span(node), {"name": name, "fix": fix})
            ctx.frames[i].names[name] = Undefined(error)


def _not_nested(ctx: Context, node: ast.stmt, what: str) -> None:
    if ctx.place.region is not None:
        raise ctx.error(
            Diag.MISPLACED, node, what=what, why=f"is inside of {ctx.place.region}: regions do not nest",
            fix="close the outer region first",
        )  # fmt: skip


def _options(ctx: Context, call: ast.Call, keywords: dict[str, Any], hints: tuple[str, ...]) -> RegionOptions:
    mode, slots = SplitMode.NONE, 2
    for o in keywords.get("optimizations") or ():
        if isinstance(o, Split):
            mode, slots = o.mode, o.slot_num
        elif isinstance(o, Slots):
            slots = o.slot_num
        elif not isinstance(o, AutoChunk):
            raise ctx.error(
                Diag.BAD_ARGUMENT, call, op="optimizations=", why=f"{show(o)} is not an optimization",
                fix="pl.split(pl.SplitMode.UP_DOWN), pl.cross_core_slot(slot_num=4) or pl.auto_chunk",
            )  # fmt: skip
    name = keywords.get("name_hint", "")
    if not isinstance(name, str):
        raise ctx.error(Diag.BAD_ARGUMENT, call, op="name_hint=", why=f"got {show(name)}", fix="use a string")
    kept = tuple(
        (k, v.value if isinstance(v, Const) else v) for k, v in keywords.items() if k in hints and v is not None
    )
    return RegionOptions(name, mode, slots, kept)


def _emit_region(
    ctx: Context, node: ast.stmt, kind: RegionKind, block_var: Var | None, count: Expr | None, body: Block,
    options: RegionOptions, keywords: dict[str, Any], tid: str | None,
) -> None:  # fmt: skip
    deps = tuple(d for d in keywords.get("deps") or () if d is not None)
    for d in deps:
        if not isinstance(type_of(d), TaskType | ArrayType):
            raise ctx.error(Diag.BAD_ARGUMENT, node, op="deps=", why=f"{show(d)} is not a task id", fix="use `as tid` and deps=[tid]")
    tid_var = Var(tid, TaskType(), ctx.span(node)) if tid else None
    ctx.emit(Region(kind, block_var, count, body, options, tid_var, deps, unit_of(body), ctx.span(node)))
    if tid_var is not None:
        ctx.names[tid_var.name] = tid_var


def unit_of(body: Block) -> Unit:
    """CUBE with products only, MIXED with vector ops too, else VEC."""
    units = {s.op.unit for s in walk(body) if isinstance(s, Let) and isinstance(s.op, OpDef)}
    if Unit.CUBE not in units:
        return Unit.VEC
    return Unit.MIXED if Unit.VEC in units else Unit.CUBE


# ------------------------------------------------------------------------------------------ calls of kernels
def inline(ctx: Context, fn: Kernel, args: list[Any], keywords: dict[str, Any], node: ast.Call) -> Any:
    """Splice an inline kernel: its parameters are names for the arguments."""
    if any(f.kernel is fn for f in ctx.frames):
        raise ctx.error(Diag.RECURSION, node, name=fn.name)
    spec = fn.node.args
    params = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]
    signature = f"{fn.name}({', '.join(p.arg for p in params)})"
    if spec.vararg or spec.kwarg:
        raise ctx.error(Diag.SYNTAX, node, what="* or ** parameters", fix="name the parameters")
    positional = len(spec.posonlyargs) + len(spec.args)
    if len(args) > positional:
        raise ctx.error(Diag.BAD_CALL, node, op=fn.name, why=f"{len(args)} positional arguments", signature=signature)
    given = {p.arg: a for p, a in zip(params, args, strict=False)}
    for key, value in keywords.items():
        if key not in {p.arg for p in params}:
            raise ctx.error(Diag.UNKNOWN_KEYWORD, node, op=fn.name, keyword=key, known=", ".join(p.arg for p in params))
        if key in given:
            raise ctx.error(Diag.BAD_CALL, node, op=fn.name, why=f"{key!r} is given twice", signature=signature)
        given[key] = value
    ctx.frames.append(Frame(fn))
    try:
        _defaults(ctx, spec, given)
        missing = [p.arg for p in params if p.arg not in given]
        if missing:
            frame = ctx.frames.pop()
            error = ctx.error(Diag.BAD_CALL, node, op=fn.name, why=f"missing {', '.join(missing)}", signature=signature)
            ctx.frames.append(frame)
            raise error
        for p in params:
            ctx.names[p.arg] = _admit_argument(ctx, p, given[p.arg], node)
        return body_value(ctx, fn)
    finally:
        ctx.frames.pop()


def _defaults(ctx: Context, spec: ast.arguments, given: dict[str, Any]) -> None:
    positional = [*spec.posonlyargs, *spec.args]
    pairs = list(zip(positional[len(positional) - len(spec.defaults) :], spec.defaults, strict=True))
    pairs += [(p, d) for p, d in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if d is not None]
    for p, d in pairs:
        if p.arg not in given:
            given[p.arg] = evaluate(ctx, d)


def annotation_of(ctx: Context, param: ast.arg) -> Any:
    """The evaluated annotation of a parameter; a string annotation is parsed first."""
    node = param.annotation
    if node is None:
        return None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        inner = ast.parse(node.value, mode="eval").body
        for n in ast.walk(inner):
            ast.copy_location(n, node)
        node = inner
    return evaluate(ctx, node)


def _admit_argument(ctx: Context, param: ast.arg, value: Any, call: ast.Call) -> Any:
    """Check an argument of an inline kernel against the parameter's annotation."""
    wanted = annotation_of(ctx, param)
    if isinstance(wanted, ann.Directed):
        warning = f"{ctx.span(param)}: Out/InOut on the parameter {param.arg!r} of an inline kernel has no effect"
        if warning not in ctx.warnings:
            ctx.warnings.append(warning)
        wanted = wanted.inner
    if isinstance(wanted, ann.ScalarAnnotation) and isinstance(type_of(value), ScalarType):
        return convert(value, wanted.dtype) if wanted.dtype and isinstance(value, Const) else value
    if isinstance(wanted, ann.TensorAnnotation | ann.TileAnnotation):
        if not isinstance(type_of(value), TensorType | TileType):
            raise ctx.error(
                Diag.ANNOTATION, param, name=param.arg, why=f"got {show(value)} for a tensor",
                fix=f"see the call on line {call.lineno}",
            )  # fmt: skip
        _check_shape(ctx, param, param.arg, wanted, type_of(value))
    return value


def _check_shape(ctx: Context, node: ast.AST, name: str, wanted: Any, got: TensorType | TileType) -> None:
    if wanted.dtype is not None and wanted.dtype != got.dtype:
        raise ctx.error(
            Diag.ANNOTATION, node, name=name, why=f"it is {got.dtype}, annotated as {wanted.dtype}", fix="make them agree"
        )  # fmt: skip
    if wanted.shape is None:
        return
    same = len(wanted.shape) == len(got.shape) and all(
        not (isinstance(w, int) and isinstance(g, int)) or w == g for w, g in zip(wanted.shape, got.shape, strict=True)
    )
    if not same:
        raise ctx.error(
            Diag.ANNOTATION, node, name=name,
            why=f"its shape is {[show_extent(d) for d in got.shape]}, annotated as {[show_extent(d) for d in wanted.shape]}",
            fix="make them agree, or leave the annotation bare: pl.Tensor",
        )  # fmt: skip


def show_extent(d: Any) -> str:
    return str(d) if isinstance(d, int) else getattr(d, "name", "?")


def body_value(ctx: Context, fn: Kernel) -> Any:
    """Elaborate a kernel's body in the current frame; the value of its final return."""
    if len(ctx.frames) > MAX_DEPTH:
        raise ctx.error(Diag.RECURSION, fn.node, name=fn.name)
    body = fn.node.body
    last = body[-1]
    if not isinstance(last, ast.Return):
        statements(ctx, body)
        return None
    statements(ctx, body[:-1])
    if last.value is None:
        return None
    try:
        return evaluate(ctx, last.value)
    except UserError as error:
        ctx.report(error)
    except Suppressed:
        if len(ctx.frames) > 1:
            raise
    return POISON


def _return(ctx: Context, node: ast.Return) -> None:
    raise ctx.error(Diag.SYNTAX, node, what="a return before the end", fix="return once, at the end of the kernel")


_RULES: dict[type[ast.stmt], Any] = {
    ast.Assign: _assign,
    ast.AnnAssign: _annotated,
    ast.Expr: _expression,
    ast.Pass: _pass,
    ast.If: _if,
    ast.For: _for,
    ast.With: _with,
    ast.Return: _return,
}
_ = (DType, dim_expr)
