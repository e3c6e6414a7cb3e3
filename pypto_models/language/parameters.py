"""Parameters of an entry: types from annotations, ``bind_dynamic`` and example arguments; named constants."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import torch

from ..errors import Diag, UserError
from ..ir.expr import DimVar, Var
from ..ir.nodes import Direction, Param
from ..ir.types import DTYPES, INDEX, DType, ScalarType, TensorType
from . import annotations as types
from .context import POISON, Context
from .inlining import annotation_value, show_extent
from .kernel import MISSING, Kernel
from .lookup import find_global, is_language_member, resolve

_FROM_TORCH: dict[torch.dtype, DType] = {
    getattr(torch, d.torch_name): d
    for d in DTYPES
    if d.torch_name and hasattr(torch, d.torch_name) and d != INDEX
}


def parameters(ctx: Context, kernel: Kernel, args: tuple[Any, ...]) -> tuple[Param, ...]:
    """The parameters, bound to their names.  ``args`` are example arguments, or empty."""
    spec = kernel.node.args
    nodes = [*spec.posonlyargs, *spec.args]
    if spec.vararg or spec.kwarg or spec.kwonlyargs:
        raise ctx.error(
            Diag.SYNTAX, kernel.node, what="an entry with *, ** or keyword-only parameters",
            fix="an entry has positional parameters only",
        )  # fmt: skip
    if args and len(args) != len(nodes):
        raise ctx.error(
            Diag.BAD_CALL, kernel.node, op=kernel.name,
            why=f"{len(args)} arguments for {len(nodes)} parameters",
            signature=f"{kernel.name}({', '.join(n.arg for n in nodes)})",
        )  # fmt: skip
    dynamic = dict(_dynamic_dims(ctx, kernel))
    params = []
    for node, given in zip(nodes, args or (None,) * len(nodes), strict=True):
        try:
            param = _parameter(ctx, node, given, dynamic)
        except UserError as error:
            ctx.names[node.arg] = POISON
            ctx.report(error)
            continue
        params.append(param)
        ctx.names[node.arg] = param.var
    return tuple(params)


def _dynamic_dims(ctx: Context, kernel: Kernel) -> Iterator[tuple[tuple[str, int], DimVar]]:
    """``x.bind_dynamic(axis, D)`` statements of the body."""
    for node in ast.walk(kernel.node):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        base = node.func.value
        if node.func.attr != "bind_dynamic" or not isinstance(base, ast.Name):
            continue
        axis, dim = node.args if len(node.args) == 2 else (None, None)
        extent = resolve(ctx, dim) if dim is not None else MISSING
        value = axis.value if isinstance(axis, ast.Constant) else None
        if not isinstance(value, int) or not isinstance(extent, DimVar):
            raise ctx.error(
                Diag.BAD_CALL, node, op="bind_dynamic", why="needs a constant axis and a pl.dynamic extent",
                signature="tensor.bind_dynamic(axis, D)",
            )  # fmt: skip
        yield (base.id, value), extent


def _parameter(ctx: Context, node: ast.arg, given: Any, dynamic: dict[tuple[str, int], DimVar]) -> Param:
    wanted: Any = annotation_value(ctx, node.annotation) if node.annotation is not None else None
    direction = Direction.IN
    if isinstance(wanted, types.Directed):
        wanted, direction = wanted.inner, wanted.direction
    span = ctx.span(node)
    if isinstance(wanted, types.ScalarAnnotation) and direction is Direction.IN:
        if hasattr(given, "shape") and tuple(given.shape) != ():
            raise ctx.error(
                Diag.ANNOTATION, node, name=node.arg, why=f"the argument is a tensor {list(given.shape)}",
                fix="pass a number, or annotate it as a pl.Tensor",
            )  # fmt: skip
        return Param(Var(node.arg, ScalarType(wanted.dtype or INDEX), span), direction)
    if not isinstance(wanted, types.TensorAnnotation):
        raise ctx.error(
            Diag.ANNOTATION, node, name=node.arg, why="an entry needs to know what it is",
            fix="annotate it: pl.Tensor[[M, N], pl.FP32], pl.Out[...], pl.InOut[...] or pl.Scalar[pl.INT32]",
        )  # fmt: skip
    if given is not None and not hasattr(given, "shape"):
        raise ctx.error(
            Diag.ANNOTATION, node, name=node.arg, why=f"the argument is {given!r}, not a tensor",
            fix="pass a torch tensor, or annotate it as a pl.Scalar",
        )  # fmt: skip
    return Param(Var(node.arg, _tensor_type(ctx, node, wanted, given, dynamic), span), direction)


def _tensor_type(
    ctx: Context,
    node: ast.arg,
    wanted: types.TensorAnnotation,
    given: Any,
    dynamic: dict[tuple[str, int], DimVar],
) -> TensorType:
    actual = tuple(int(d) for d in given.shape) if given is not None else None
    actual_dtype = _FROM_TORCH.get(given.dtype) if given is not None else None
    shape = wanted.shape if wanted.shape is not None else actual
    dtype = wanted.dtype or actual_dtype
    if shape is None or dtype is None:
        raise ctx.error(
            Diag.ANNOTATION, node, name=node.arg, why="its shape or dtype is not known",
            fix="give it in the annotation, or compile with example arguments",
        )  # fmt: skip
    bad = [axis for name, axis in dynamic if name == node.arg and not 0 <= axis < len(shape)]
    if bad:
        raise ctx.error(
            Diag.ANNOTATION, node, name=node.arg, why=f"bind_dynamic names axis {bad[0]} of {len(shape)}",
            fix="count axes from 0",
        )  # fmt: skip
    dims = tuple(_extent(ctx, node, axis, dynamic.get((node.arg, axis), d)) for axis, d in enumerate(shape))
    if actual is not None:
        _check_actual(ctx, node, dims, dtype, actual, actual_dtype or given.dtype)
    return TensorType(dims, dtype)


def _extent(ctx: Context, node: ast.arg, axis: int, d: Any) -> int | DimVar:
    if d is types.RUNTIME:
        return DimVar(f"{node.arg}_dim{axis}")
    if isinstance(d, DimVar) or (isinstance(d, int) and not isinstance(d, bool) and d > 0):
        return d
    raise ctx.error(
        Diag.ANNOTATION, node, name=node.arg, why=f"the extent {d!r} of axis {axis} is not one",
        fix="use a positive constant or pl.dynamic(...)",
    )  # fmt: skip


def _check_actual(
    ctx: Context, node: ast.arg, dims: tuple[Any, ...], dtype: DType, actual: tuple[int, ...], given: Any
) -> None:
    if given != dtype:
        raise ctx.error(
            Diag.ANNOTATION, node, name=node.arg, why=f"the argument is {given}, the annotation says {dtype}",
            fix="convert the argument",
        )  # fmt: skip
    bad = len(actual) != len(dims) or any(
        isinstance(d, int) and d != a for d, a in zip(dims, actual, strict=True)
    )
    if bad:
        shown = ", ".join(show_extent(d) for d in dims)
        raise ctx.error(
            Diag.ANNOTATION, node, name=node.arg,
            why=f"the argument is {list(actual)}, the annotation says [{shown}]",
            fix="pass a tensor of that shape, or make the extent pl.dynamic",
        )  # fmt: skip


# ------------------------------------------------------------------------------------------ constants
def check_constants(ctx: Context, kernel: Kernel) -> None:
    """Refuse names in ``constants`` that neither the kernel nor anything it calls reads."""
    read = constant_names(kernel)
    for name in ctx.constants.keys() - read:
        known = ", ".join(sorted(read)) or "none"
        ctx.report(UserError(Diag.UNUSED_CONSTANT, kernel.span, {"name": name, "known": known}))


def constant_names(kernel: Kernel) -> set[str]:
    """Names that ``constants`` may replace: those that the kernel, or one that it inlines, reads."""
    return _constants(kernel, set())


def _constants(kernel: Kernel, seen: set[Kernel]) -> set[str]:
    """Names of module constants in the source of a kernel and of the kernels that it names."""
    seen.add(kernel)
    found: set[str] = set()
    for node in ast.walk(kernel.node):
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        value = find_global(kernel, node)
        if isinstance(value, Kernel):
            found |= _constants(value, seen) if value not in seen else set()
        elif isinstance(value, bool | int | float | DType) and not is_language_member(kernel, node):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return found
