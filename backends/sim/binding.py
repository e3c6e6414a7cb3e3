"""From the arguments of a launch to buffers: types, run-time extents, aliasing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from pypto_models.errors import Diag, UserError, user_error
from pypto_models.ir.expr import DimVar, Expr, Number, Var, evaluate
from pypto_models.ir.nodes import Direction, Function, Param
from pypto_models.ir.types import Dim, DType, ScalarType, TensorType
from pypto_models.ops.common import describe
from pypto_models.ops.value import torch_dtype

from .memory import Buffer, View


@dataclass(frozen=True)
class Binding:
    """``values`` of the parameters in order, and the run-time extents."""

    values: tuple[View | Number, ...]
    dims: dict[Expr, Number]


def bind(
    function: Function, args: Mapping[str, Any], written: frozenset[Var], checked: bool = True
) -> Binding:
    """Check the arguments and make their buffers.

    Out tensors are poisoned, In tensors that the program writes become private copies.  Every mismatch is a
    ``Diag.ARGUMENT`` error that names the argument, what it should be and what was given.
    """
    known = [p.name for p in function.params]
    for name in args:
        if name not in known:
            fix = f"parameters: {', '.join(known)}"
            raise _wrong(function, name, "the kernel has no such parameter", fix)
    for p in function.params:
        if p.name not in args:
            raise _wrong(function, p.name, "it is missing", f"pass {_expected(p)}")
    dims: dict[Expr, Number] = {}
    owner: dict[Expr, str] = {}
    for p in function.params:
        if isinstance(p.var.type, TensorType):
            _check_tensor(function, p, p.var.type, args[p.name], dims, owner)
    _check_extents(function, args, dims)
    _check_aliasing(function, args, written)
    scalars = {
        p: _scalar(function, p, p.var.type.dtype, args[p.name])
        for p in function.params
        if isinstance(p.var.type, ScalarType)
    }
    # Making an Out buffer poisons the caller's tensor, so nothing may be refused from here on
    values = tuple(
        scalars[p] if p in scalars else _buffer(p, args[p.name].detach(), p.var in written, checked).view()
        for p in function.params
    )
    return Binding(values, dims)


def _buffer(p: Param, data: torch.Tensor, written: bool, checked: bool) -> Buffer:
    if p.direction is Direction.IN:
        own = data.clone() if written else data
        return Buffer(p.name, own, defined=True, stable=not written, checked=checked)
    return Buffer(p.name, data, defined=p.direction is Direction.INOUT, checked=checked)


def _wrong(function: Function, name: str, why: str, fix: str) -> UserError:
    span = next((p.var.span for p in function.params if p.name == name), function.span)
    return user_error(Diag.ARGUMENT, span, name=name, why=why, fix=fix)


def _expected(p: Param) -> str:
    t = p.var.type
    return f"a tensor {describe(t)}" if isinstance(t, TensorType) else f"a number ({t.dtype})"  # type: ignore[union-attr]


def _check_tensor(
    function: Function, p: Param, t: TensorType, given: Any, dims: dict[Expr, Number], owner: dict[Expr, str]
) -> None:
    if not isinstance(given, torch.Tensor):
        why = f"expected {_expected(p)}, got {type(given).__name__}"
        raise _wrong(function, p.name, why, "pass a torch tensor")
    shown = f"{list(given.shape)} {str(given.dtype).removeprefix('torch.')}"
    dtype = torch_dtype(t.dtype)
    if given.dtype != dtype:
        raise _wrong(function, p.name, f"expected {_expected(p)}, got {shown}", f"pass {p.name}.to({dtype})")
    if given.device.type != "cpu":
        fix = f"the simulator runs on the CPU: pass {p.name}.cpu()"
        raise _wrong(function, p.name, f"it is on {given.device}", fix)
    if len(given.shape) != t.rank:
        raise _wrong(function, p.name, f"expected {_expected(p)}, got {shown}", f"pass {t.rank} axes")
    if not given.is_contiguous():
        raise _wrong(
            function, p.name, f"{shown} is not contiguous (strides {list(given.stride())})",
            f"pass {p.name}.contiguous(); an output needs a contiguous tensor of its own",
        )  # fmt: skip
    for axis, (dim, extent) in enumerate(zip(t.shape, given.shape, strict=True)):
        if not isinstance(dim, DimVar):
            continue
        if extent == 0:
            raise _wrong(
                function, p.name, f"axis {axis} ({dim.name}) has no element: {shown}",
                "a run-time extent is at least 1; do not launch for an empty batch",
            )  # fmt: skip
        if dims.setdefault(dim, extent) != extent:
            raise _wrong(
                function, p.name, f"axis {axis} is {dim.name} = {dims[dim]} by {owner[dim]!r}, got {shown}",
                f"axes declared {dim.name} have one extent",
            )  # fmt: skip
        owner.setdefault(dim, p.name)


def _check_extents(function: Function, args: Mapping[str, Any], dims: Mapping[Expr, Number]) -> None:
    """Constant extents, and those computed from run-time ones."""

    def value(dim: Dim) -> Number:
        return dim if isinstance(dim, int) else evaluate(dim, lambda x: dims[x])

    for p in function.params:
        t = p.var.type
        if not isinstance(t, TensorType):
            continue
        given = list(args[p.name].shape)
        want = [value(d) for d in t.shape]
        if want != given:
            axis = next(i for i, (a, b) in enumerate(zip(want, given, strict=True)) if a != b)
            raise _wrong(
                function, p.name, f"expected {_expected(p)}, got {given}: axis {axis} must be {want[axis]}",
                "pass a tensor of the declared shape",
            )  # fmt: skip


def _check_aliasing(function: Function, args: Mapping[str, Any], written: frozenset[Var]) -> None:
    """No argument may share memory with one that the launch changes."""
    ranges = []
    for p in function.params:
        if isinstance(p.var.type, TensorType) and args[p.name].numel() > 0:
            t = args[p.name]
            changes = p.direction is Direction.OUT or (p.direction is Direction.INOUT and p.var in written)
            ranges.append((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), changes, p.name))
    for i, (start, end, changes, name) in enumerate(ranges):
        for other_start, other_end, other_changes, other in ranges[:i]:
            if start < other_end and other_start < end and (changes or other_changes):
                target, source = (name, other) if changes else (other, name)
                raise _wrong(
                    function, target, f"the kernel writes it, and it shares memory with {source!r}",
                    f"pass a tensor of its own, or declare one InOut parameter for both: {source}.clone()",
                )  # fmt: skip


def _scalar(function: Function, p: Param, dtype: DType, given: Any) -> Number:
    boxed = isinstance(given, torch.Tensor | np.ndarray | np.generic) and prod(given.shape) == 1
    value = given.item() if boxed else given
    if not isinstance(value, bool | int | float):
        why = f"expected {_expected(p)}, got {type(given).__name__}"
        raise _wrong(function, p.name, why, "pass a number")
    if dtype.is_float:
        return float(value)
    if isinstance(value, float):
        raise _wrong(function, p.name, f"expected {_expected(p)}, got {value!r}", "pass an integer")
    signed = dtype.kind not in ("uint", "bool")
    bits = (1 if dtype.kind == "bool" else dtype.bits) - signed
    low, high = -(2**bits) if signed else 0, 2**bits - 1
    if not low <= value <= high:
        why = f"{value} is not within {low}..{high} of {dtype}"
        raise _wrong(function, p.name, why, "pass a value in range")
    return bool(value) if dtype.kind == "bool" else int(value)
