"""``t[a:b, i]``: reads are slices or single elements, writes are assembles or single elements."""

from __future__ import annotations

import ast
from typing import Any

from ..errors import Diag
from ..ir.expr import Const, DimVar, Expr, Var, difference, dim_expr, index
from ..ir.types import ArrayType, TensorType, TileType
from ..ops import REGISTRY
from .annotations import Array, InOut, Out, Scalar, Tensor, Tile
from .arguments import load_whole
from .constructs import OpMarker, Unsupported
from .context import Context
from .lookup import resolve
from .operations import call_op, emit
from .values import is_data, is_scalar, plain, show, type_of

_ANNOTATIONS = (Array, InOut, Out, Scalar, Tensor, Tile)


def read(ctx: Context, node: ast.Subscript, hint: str) -> Any:
    """The value of ``base[...]``."""
    base = ctx.evaluate(node.value)
    kind = type_of(base)
    if isinstance(base, Unsupported):
        return base
    if isinstance(base, type) and base in _ANNOTATIONS:
        return base[_annotation_item(ctx, node.slice)]  # type: ignore[index]
    if isinstance(base, tuple):
        return _tuple_item(ctx, base, node)
    if isinstance(base, Var) and isinstance(kind, ArrayType):
        at = _array_index(ctx, kind, node)
        with ctx.at(node) as span:
            return emit(ctx, REGISTRY["array_get"], (base, at), span, hint or f"{base.name}_at")
    if is_data(base):
        sizes, offsets, dropped = _box(ctx, base, node)
        if len(dropped) == len(sizes):
            return call_op(ctx, OpMarker("read"), [base, tuple(offsets)], {}, node, hint or base.name)
        keywords = {"drop_dims": tuple(index(a) for a in dropped)} if dropped else {}
        args = [base, tuple(sizes), tuple(offsets)]
        return call_op(ctx, OpMarker("slice"), args, keywords, node, hint or base.name)
    raise ctx.error(
        Diag.BAD_ARGUMENT, node, op="subscript", why=f"{show(base)} has no elements",
        fix="only tensors, tiles, arrays and tuples do",
    )  # fmt: skip


def write(ctx: Context, target: ast.Subscript, value: Any, node: ast.stmt) -> None:
    """``base[...] = value``, in place."""
    base = ctx.evaluate(target.value)
    kind = type_of(base)
    if isinstance(base, Var) and isinstance(kind, ArrayType):
        at = _array_index(ctx, kind, target)
        with ctx.at(node) as span:
            emit(ctx, REGISTRY["array_set"], (base, at, value), span, base.name)
        return
    if not is_data(base):
        raise ctx.error(
            Diag.BAD_ARGUMENT, target, op="subscript", why=f"{show(base)} cannot be written",
            fix="write to a tensor, a tile or an array",
        )  # fmt: skip
    sizes, offsets, dropped = _box(ctx, base, target)
    if len(dropped) == len(sizes):
        call_op(ctx, OpMarker("write"), [base, tuple(offsets), value], {}, node, base.name)
        return
    if is_scalar(value):
        raise ctx.error(
            Diag.BAD_ARGUMENT, node, op="subscript", why="a scalar cannot fill a slice",
            fix="write a tile: pl.full(shape, dtype, value)",
        )  # fmt: skip
    if isinstance(value, Var) and isinstance(value.type, TensorType) and ctx.place.region is not None:
        value = load_whole(ctx, value, "subscript", ctx.span(node))
    if isinstance(value, Var) and isinstance(value.type, TileType):
        value = _fitted(ctx, value, sizes, dropped, node)
    call_op(ctx, OpMarker("assemble"), [base, value, tuple(offsets)], {}, node, base.name)


def _fitted(ctx: Context, value: Var, sizes: list[Expr], dropped: list[int], node: ast.stmt) -> Any:
    """The tile with the extents of the slice: axes that a scalar index dropped come back with extent 1."""
    shape = list(value.type.shape) if isinstance(value.type, TileType) else []
    wanted = [s.value if isinstance(s, Const) else None for s in sizes]
    if dropped and shape == [s for a, s in enumerate(wanted) if a not in dropped]:
        return call_op(ctx, OpMarker("reshape"), [value, tuple(sizes)], {}, node, value.name)
    if None not in wanted and shape != wanted:
        raise ctx.error(
            Diag.SHAPE, node, op="subscript", why=f"the slice is {wanted}, the value {shape}",
            fix="slice as much as you write",
        )  # fmt: skip
    return value


def _box(ctx: Context, base: Var, node: ast.Subscript) -> tuple[list[Expr], list[Expr], list[int]]:
    """Sizes, offsets and the axes with a scalar index, of ``base[...]``."""
    kind = base.type
    shape = kind.shape if isinstance(kind, TensorType | TileType) else ()
    parts = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if len(parts) > len(shape):
        raise ctx.error(
            Diag.SHAPE,
            node,
            op="subscript",
            why=f"{len(parts)} indices for {len(shape)} axes",
            fix="drop some",
        )
    sizes: list[Expr] = []
    offsets: list[Expr] = []
    dropped: list[int] = []
    for axis, extent in enumerate(shape):
        part = parts[axis] if axis < len(parts) else ast.Slice()
        if isinstance(part, ast.Slice):
            if part.step is not None:
                raise ctx.error(Diag.SYNTAX, part, what="a slice with a step", fix="slices are lo:hi")
            low = ctx.integer(part.lower) if part.lower is not None else index(0)
            high = ctx.integer(part.upper) if part.upper is not None else dim_expr(extent)
            sizes.append(difference(high, low))
            offsets.append(low)
        else:
            sizes.append(index(1))
            offsets.append(ctx.integer(part))
            dropped.append(axis)
    return sizes, offsets, dropped


def _array_index(ctx: Context, kind: ArrayType, node: ast.Subscript) -> tuple[Expr]:
    at = ctx.integer(node.slice)
    if isinstance(at, Const) and not 0 <= at.value < kind.size:
        raise ctx.error(
            Diag.OUT_OF_BOUNDS, node, op="subscript", why=f"element {at.value} of an array of {kind.size}",
            fix="keep the index within the size given to pl.array.create",
        )  # fmt: skip
    return (at,)


def _tuple_item(ctx: Context, base: tuple[Any, ...], node: ast.Subscript) -> Any:
    at = ctx.evaluate(node.slice)
    if isinstance(at, Const) and -len(base) <= at.value < len(base):
        return base[int(at.value)]
    raise ctx.error(
        Diag.NOT_CONSTANT, node, what="the index of a tuple", fix=f"a constant from 0 to {len(base) - 1}"
    )


def _annotation_item(ctx: Context, node: ast.expr) -> Any:
    """``[[dims], dtype]`` of a type annotation: plain Python values, run-time extents allowed."""
    if isinstance(node, ast.Tuple):
        return tuple(_annotation_item(ctx, e) for e in node.elts)
    if isinstance(node, ast.List):
        return [_annotation_item(ctx, e) for e in node.elts]
    found = resolve(ctx, node)
    if isinstance(found, DimVar):
        return found
    value = ctx.evaluate(node)
    if isinstance(value, Unsupported):
        raise ctx.error(Diag.UNSUPPORTED, node, name=str(value), why=value.why, fix=value.fix)
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    return plain(value)
