"""Calls: kernels, operations, intrinsics such as pl.min and pl.tensor.dim, and the few builtins."""

from __future__ import annotations

import ast
from typing import Any

from ..errors import Diag, UserError
from ..ir.expr import Const, Expr, binary, convert, dim_expr, negate
from ..ir.types import FP32, INDEX, DType, TensorType, TileType
from .constructs import Construct, Intrinsic, Marker, OpMarker, Unsupported, cross_core_slot, split
from .context import POISON, Context
from .kernel import Kernel
from .lookup import BUILTINS, BindDynamic
from .operations import call_op, keyword_place
from .values import is_scalar, plain, show, type_of


def call(ctx: Context, node: ast.Call, hint: str) -> Any:
    """The value of a call."""
    fn = ctx.evaluate(node.func)
    if isinstance(fn, BindDynamic):
        return None
    if isinstance(fn, Unsupported):
        raise unsupported(ctx, fn, node)
    args, keywords = arguments(ctx, node)
    if isinstance(fn, Kernel):
        return _call_kernel(ctx, fn, args, keywords, node)
    if isinstance(fn, OpMarker):
        return _call_marker(ctx, fn, args, keywords, node, hint)
    if isinstance(fn, Intrinsic):
        return _intrinsic(ctx, fn, args, keywords, node)
    if isinstance(fn, Construct):
        raise ctx.error(
            Diag.SYNTAX,
            node,
            what=f"{fn} as an expression",
            fix=f"use `for ... in {fn}(...)` or `with {fn}(...)`",
        )
    if fn in (split, cross_core_slot):
        return _optimization(ctx, fn, args, keywords, node)
    if fn in BUILTINS.values():
        return _builtin(ctx, fn, args, keywords, node)
    raise ctx.error(Diag.NOT_A_KERNEL, node.func, what=repr(ast.unparse(node.func)))


def arguments(ctx: Context, node: ast.Call) -> tuple[list[Any], dict[str, Any]]:
    """The evaluated arguments of a call."""
    if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
        raise ctx.error(Diag.SYNTAX, node, what="* and ** in a call", fix="write the arguments out")
    return [ctx.evaluate(a) for a in node.args], {str(k.arg): ctx.evaluate(k.value) for k in node.keywords}


def known_keywords(
    ctx: Context, node: ast.Call, what: str, keywords: dict[str, Any], known: tuple[str, ...]
) -> None:
    """Refuse keywords that a construct does not have."""
    for key in keywords:
        if key not in known:
            shown = ", ".join(known) or "no keywords"
            raise ctx.error(Diag.UNKNOWN_KEYWORD, keyword_place(node, key), op=what, keyword=key, known=shown)


def unsupported(ctx: Context, fn: Unsupported, node: ast.AST) -> UserError:
    return ctx.error(Diag.UNSUPPORTED, node, name=str(fn), why=fn.why, fix=fn.fix)


def _call_kernel(ctx: Context, fn: Kernel, args: list[Any], keywords: dict[str, Any], node: ast.Call) -> Any:
    if not fn.inline:
        raise ctx.error(
            Diag.MISPLACED, node, what=f"the entry {fn.name}", why="cannot be called from another kernel",
            fix="decorate it with @pl.jit.inline",
        )  # fmt: skip
    return ctx.rules.inline(ctx, fn, args, keywords, node)


def _optimization(ctx: Context, fn: Any, args: list[Any], keywords: dict[str, Any], node: ast.Call) -> Any:
    try:
        return fn(*[plain(a) for a in args], **{k: plain(v) for k, v in keywords.items()})
    except TypeError as error:  # Python binds the arguments of these two
        signature = "pl.split(mode, slot_num=2)" if fn is split else "pl.cross_core_slot(slot_num)"
        raise ctx.error(
            Diag.BAD_CALL, node, op=f"pl.{fn.__name__}", why=str(error), signature=signature
        ) from None


# ------------------------------------------------------------------------------------------ scalars by ops
_SCALAR_OPS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "maximum": "max", "minimum": "min"}


def _call_marker(
    ctx: Context, fn: OpMarker, args: list[Any], keywords: dict[str, Any], node: ast.Call, hint: str
) -> Any:
    """An operation; ``pl.cast``, ``pl.add`` and their kin on scalars are scalar arithmetic."""
    x = args[0] if args else keywords.get("x", keywords.get("input"))
    if fn.name == "cast" and is_scalar(x):
        return _cast_scalar(ctx, x, args, keywords, node)
    if fn.name in _SCALAR_OPS and len(args) == 2 and not keywords and all(is_scalar(a) for a in args):
        with ctx.at(node):
            return binary(_SCALAR_OPS[fn.name], args[0], args[1])
    return call_op(ctx, fn, args, keywords, node, hint)


def _cast_scalar(ctx: Context, x: Expr, args: list[Any], keywords: dict[str, Any], node: ast.Call) -> Expr:
    known_keywords(ctx, node, "pl.cast", keywords, ("x", "input", "target_type", "mode"))
    to = args[1] if len(args) > 1 else keywords.get("target_type")
    if not isinstance(to, DType) or to.kind == "task":
        why = "missing target_type" if to is None else f"target_type is {show(to)}"
        raise ctx.error(Diag.BAD_CALL, node, op="pl.cast", why=why, signature="pl.cast(x, pl.INDEX)")
    return convert(x, to)


# ------------------------------------------------------------------------------------------ intrinsics
def _intrinsic(ctx: Context, fn: Intrinsic, args: list[Any], keywords: dict[str, Any], node: ast.Call) -> Any:
    if fn.name == "dim":
        return _dim(ctx, fn, args, keywords, node)
    known_keywords(ctx, node, str(fn), keywords, ())
    if fn.name in ("min", "max"):
        return _fold(ctx, fn.name, args, node)
    if fn.name == "const":
        if len(args) == 2 and isinstance(args[0], Const) and isinstance(args[1], DType):
            return Const(args[0].value, args[1])
        raise ctx.error(
            Diag.BAD_CALL,
            node,
            op=str(fn),
            why="it takes a number and a dtype",
            signature="pl.const(value, dtype)",
        )
    if ctx.place.block is None:
        raise ctx.error(
            Diag.MISPLACED,
            node,
            what=str(fn),
            why="is outside of a pl.spmd grid",
            fix="use it in a pl.spmd body",
        )
    return ctx.place.block


def _dim(ctx: Context, fn: Intrinsic, args: list[Any], keywords: dict[str, Any], node: ast.Call) -> Expr:
    known_keywords(ctx, node, str(fn), keywords, ("t", "axis"))
    values = [*args, *(keywords[k] for k in ("t", "axis")[len(args) :] if k in keywords)]
    kind = type_of(values[0]) if len(values) == 2 else None
    if not isinstance(kind, TensorType | TileType) or not isinstance(values[1], Const):
        raise ctx.error(
            Diag.BAD_CALL, node, op=str(fn), why="needs a tensor and a constant axis",
            signature="pl.tensor.dim(tensor, axis)",
        )  # fmt: skip
    axis = int(values[1].value)
    if not -kind.rank <= axis < kind.rank:
        raise ctx.error(
            Diag.SHAPE, node, op=str(fn), why=f"axis {axis} of {kind.rank} axes", fix="count axes from 0"
        )
    return dim_expr(kind.shape[axis])


def _fold(ctx: Context, name: str, args: list[Any], node: ast.AST) -> Expr:
    """``pl.min`` or ``pl.max`` of two or more scalars."""
    if len(args) < 2:
        raise ctx.error(
            Diag.BAD_CALL, node, op=f"pl.{name}", why="needs two scalars", signature=f"pl.{name}(a, b)"
        )
    for a in args:
        if not is_scalar(a):
            other = {"min": "minimum", "max": "maximum"}[name]
            raise ctx.error(
                Diag.BAD_ARGUMENT, node, op=f"pl.{name}", why=f"got {show(a)}; pl.{name} is for scalars",
                fix=f"the elementwise op is pl.{other}",
            )  # fmt: skip
    result: Expr = args[0]
    for a in args[1:]:
        result = binary(name, result, a)
    return result


# ------------------------------------------------------------------------------------------ builtins
def _builtin(ctx: Context, fn: Any, args: list[Any], keywords: dict[str, Any], node: ast.Call) -> Any:
    x = args[0] if len(args) == 1 and not keywords else None
    if fn in (min, max) and not keywords:
        return _fold(ctx, fn.__name__, args, node)
    if fn is len and isinstance(x, tuple):
        return Const(len(x))
    if fn in (int, float) and is_scalar(x):
        return convert(x, INDEX if fn is int else FP32)
    if fn is float and isinstance(x, str):
        return _float(ctx, x, node)
    if fn is abs and is_scalar(x):
        return binary("max", x, negate(x))
    if fn is abs and x is not None:
        return call_op(ctx, OpMarker("abs"), args, {}, node, "")
    raise ctx.error(
        Diag.SYNTAX, node, what=f"Python's {fn.__name__}() here", fix="use pl.range, pl.min, pl.max, pl.cast"
    )


def _float(ctx: Context, text: str, node: ast.Call) -> Const:
    try:
        return Const(float(text), FP32)
    except ValueError:
        raise ctx.error(
            Diag.BAD_ARGUMENT, node, op="float()", why=f"{text!r} is not a number", fix='write float("-inf")'
        ) from None


def listcomp(ctx: Context, node: ast.ListComp, hint: str) -> Any:
    """``[tids[k] for k in range(N)]``: unrolled at compile time."""
    gen = node.generators[0]
    call = gen.iter
    iterates = isinstance(call, ast.Call) and ctx.evaluate(call.func) in (range, _PL_RANGE, _PL_UNROLL)
    if len(node.generators) != 1 or gen.ifs or not isinstance(gen.target, ast.Name) or not iterates:
        raise ctx.error(
            Diag.SYNTAX,
            node,
            what="this list comprehension",
            fix="write [x[k] for k in range(N)] with a constant N",
        )
    bounds = [ctx.evaluate(a) for a in call.args] if isinstance(call, ast.Call) else []
    if not bounds or not all(isinstance(b, Const) for b in bounds):
        raise ctx.error(
            Diag.NOT_CONSTANT, call, what="the range of a list comprehension", fix="use a constant"
        )
    name = gen.target.id
    saved = ctx.names.pop(name, POISON)
    items = []
    for k in range(*(int(b.value) for b in bounds)):
        ctx.names[name] = Const(k)
        items.append(ctx.evaluate(node.elt))
    ctx.names.pop(name, None)
    if saved is not POISON:
        ctx.names[name] = saved
    return tuple(items)


_PL_RANGE: Marker = Construct("range")
_PL_UNROLL: Marker = Construct("unroll")
