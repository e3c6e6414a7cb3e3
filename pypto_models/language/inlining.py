"""Inline kernels are spliced into their caller: parameters are names for the arguments, which are checked."""

from __future__ import annotations

import ast
from typing import Any

from ..errors import Diag, Span, UserError
from ..ir.expr import Const
from ..ir.types import TASK_ID, ArrayType, DType, ScalarType, TaskType, TensorType, TileType
from . import annotations as types
from .constructs import Unsupported
from .context import POISON, Context, Frame, Suppressed
from .kernel import Kernel
from .operations import keyword_place
from .values import adapt, is_scalar, show, type_of

_BARE: dict[Any, Any] = {
    types.Tensor: types.TensorAnnotation(),
    types.Tile: types.TileAnnotation(),
    types.Scalar: types.ScalarAnnotation(),
    types.Array: types.ArrayAnnotation(),
}


def inline(ctx: Context, fn: Kernel, args: list[Any], keywords: dict[str, Any], node: ast.Call) -> Any:
    """Elaborate ``fn`` with these arguments in place of the call; its value is that of its final return."""
    if any(f.kernel is fn for f in ctx.frames):
        raise ctx.error(Diag.RECURSION, node, name=fn.name)
    spec = fn.node.args
    if spec.vararg or spec.kwarg:
        raise ctx.error(
            Diag.SYNTAX, node, what=f"* or ** parameters (of {fn.name})", fix="name the parameters"
        )
    params = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]
    given, where = _bind(ctx, fn, params, args, keywords, node)
    caller = ctx.frame
    call = ctx.span(node)
    places = {name: ctx.span(place) for name, place in where.items()}
    with ctx.in_frame(Frame(fn, call=call)):
        for p in params:
            if p.arg not in given:
                given[p.arg] = ctx.evaluate(_default(spec, p.arg))
        for p in params:
            ctx.names[p.arg] = _argument(ctx, caller, p, given[p.arg], places.get(p.arg, call))
        return body_value(ctx, fn)


def _bind(
    ctx: Context, fn: Kernel, params: list[ast.arg], args: list[Any], keywords: dict[str, Any], node: ast.Call
) -> tuple[dict[str, Any], dict[str, ast.AST]]:
    """Arguments by parameter name, and where each stands in the call."""
    spec = fn.node.args
    names = [p.arg for p in params]
    signature = f"{fn.name}({', '.join(names)})"
    if len(args) > len(spec.posonlyargs) + len(spec.args):
        raise ctx.error(
            Diag.BAD_CALL, node, op=fn.name, why=f"{len(args)} positional arguments", signature=signature
        )
    given: dict[str, Any] = dict(zip(names, args, strict=False))
    where: dict[str, ast.AST] = dict(zip(names, node.args, strict=False))
    for key, value in keywords.items():
        place = keyword_place(node, key)
        if key not in names:
            raise ctx.error(Diag.UNKNOWN_KEYWORD, place, op=fn.name, keyword=key, known=", ".join(names))
        if key in given:
            raise ctx.error(
                Diag.BAD_CALL, place, op=fn.name, why=f"{key!r} is given twice", signature=signature
            )
        given[key], where[key] = value, place
    missing = [n for n in names if n not in given and _default(spec, n) is None]
    if missing:
        raise ctx.error(
            Diag.BAD_CALL, node, op=fn.name, why=f"missing {', '.join(missing)}", signature=signature
        )
    return given, where


def _default(spec: ast.arguments, name: str) -> Any:
    """The expression of a parameter's default, or None."""
    positional = [*spec.posonlyargs, *spec.args]
    first = len(positional) - len(spec.defaults)
    found = {p.arg: d for p, d in zip(positional[first:], spec.defaults, strict=True)}
    found |= {p.arg: d for p, d in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if d is not None}
    return found.get(name)


def _argument(ctx: Context, caller: Frame, param: ast.arg, value: Any, place: Span) -> Any:
    """Check an argument against the parameter's annotation; errors point at the call."""
    if param.annotation is None:
        return value
    wanted = annotation_value(ctx, param.annotation)
    if isinstance(wanted, types.Directed):
        ctx.warn(
            f"{ctx.span(param)}: Out/InOut on the parameter {param.arg!r} of an inline kernel has no effect: "
            "inline kernels change their arguments in place"
        )
        wanted = wanted.inner
    try:
        return admit(ctx, wanted, value, param.arg, param, param)
    except UserError as error:
        note = f"the parameter is declared at {ctx.span(param)}"
        raise UserError(error.diag, place, error.fields, [note]) from None


# ------------------------------------------------------------------------------------------ annotations
def annotation_value(ctx: Context, node: ast.expr) -> Any:
    """The evaluated annotation; a string annotation is parsed first."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            inner = ast.parse(node.value, mode="eval").body
        except SyntaxError:
            raise ctx.error(
                Diag.SYNTAX, node, what=f"the annotation {node.value!r}", fix="write a type such as pl.Tensor"
            ) from None
        for n in ast.walk(inner):
            ast.copy_location(n, node)
        node = inner
    value = ctx.evaluate(node)
    if isinstance(value, Unsupported):
        raise ctx.error(Diag.UNSUPPORTED, node, name=str(value), why=value.why, fix=value.fix)
    return _BARE.get(value, value) if isinstance(value, type) else value


def admit(ctx: Context, wanted: Any, value: Any, name: str, node: ast.AST, where: ast.AST) -> Any:
    """``value`` as the annotation ``wanted`` says: literals take its dtype, everything else is checked."""
    kind = type_of(value)
    if isinstance(wanted, types.ScalarAnnotation):
        return _admit_scalar(ctx, wanted.dtype, value, name, node)
    if isinstance(wanted, types.TensorAnnotation | types.TileAnnotation):
        if not isinstance(kind, TensorType | TileType):
            what = "a tensor" if isinstance(wanted, types.TensorAnnotation) else "a tile"
            raise ctx.error(
                Diag.ANNOTATION, node, name=name, why=f"got {show(value)} for {what}", fix="make them agree"
            )
        _check_extents(ctx, wanted, kind, name, node)
    elif isinstance(wanted, types.ArrayAnnotation):
        fits = (
            isinstance(kind, ArrayType)
            and wanted.size in (None, kind.size)
            and wanted.elem in (None, kind.elem)
        )
        if not fits:
            raise ctx.error(
                Diag.ANNOTATION, node, name=name, why=f"got {show(value)} for an array of {wanted.size}",
                fix="make them agree",
            )  # fmt: skip
    else:
        raise ctx.error(
            Diag.ANNOTATION, where, name=name, why=f"{show(wanted)} is not a type of the language",
            fix="use pl.Tensor, pl.Tile, pl.Scalar or pl.Array",
        )  # fmt: skip
    return value


def _admit_scalar(ctx: Context, dtype: DType | None, value: Any, name: str, node: ast.AST) -> Any:
    kind = type_of(value)
    if dtype == TASK_ID and isinstance(kind, TaskType):
        return value
    if not isinstance(kind, ScalarType) or dtype == TASK_ID:
        raise ctx.error(
            Diag.ANNOTATION, node, name=name,
            why=f"got {show(value)} for {'a scalar' if dtype is None else dtype}", fix="make them agree",
        )  # fmt: skip
    if dtype is None or kind.dtype == dtype:
        return value
    narrows = kind.dtype.is_float and not dtype.is_float
    if narrows or not (isinstance(value, Const) or (kind.dtype.is_integer and dtype.is_integer)):
        raise ctx.error(
            Diag.ANNOTATION, node, name=name, why=f"got {show(value)}, annotated as {dtype}",
            fix=f"convert it: pl.cast(x, pl.{dtype})",
        )  # fmt: skip
    return adapt(value, dtype) if isinstance(value, Const) and is_scalar(value) else value


def _check_extents(
    ctx: Context, wanted: types.TensorAnnotation | types.TileAnnotation, got: TensorType | TileType,
    name: str, node: ast.AST,
) -> None:  # fmt: skip
    if wanted.dtype is not None and wanted.dtype != got.dtype:
        raise ctx.error(
            Diag.ANNOTATION, node, name=name, why=f"it is {got.dtype}, annotated as {wanted.dtype}",
            fix=f"make them agree: pl.cast(x, pl.{wanted.dtype}), or another annotation",
        )  # fmt: skip
    if wanted.shape is None:
        return
    same = len(wanted.shape) == len(got.shape) and all(
        not (isinstance(w, int) and isinstance(g, int)) or w == g
        for w, g in zip(wanted.shape, got.shape, strict=True)
    )
    if not same:
        shown = [show_extent(d) for d in got.shape], [show_extent(d) for d in wanted.shape]
        raise ctx.error(
            Diag.ANNOTATION, node, name=name,
            why=f"its shape is [{', '.join(shown[0])}], annotated as [{', '.join(shown[1])}]",
            fix="make them agree, or leave the annotation bare: pl.Tensor",
        )  # fmt: skip


def show_extent(d: Any) -> str:
    return str(d) if isinstance(d, int) else getattr(d, "name", "?")


# ------------------------------------------------------------------------------------------ the body
def body_value(ctx: Context, fn: Kernel) -> Any:
    """Elaborate a kernel's body in the current frame; the value of its final return, None without one."""
    *first, last = fn.node.body
    if not isinstance(last, ast.Return):
        ctx.rules.statements(ctx, [*first, last])
        return None
    ctx.rules.statements(ctx, first)
    if last.value is None:
        return None
    try:
        return ctx.evaluate(last.value)
    except UserError as error:
        ctx.report(error)
    except Suppressed:
        pass  # the error is reported already: the caller gets a poisoned value
    return POISON
