"""Arguments of operations: each is converted to what the parameter's :class:`~..ops.registry.Kind` says.

A wrong argument is an error at the place of :func:`~..errors.located`, which is the argument's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any

from ..errors import Diag, Span, UserError, user_error
from ..ir.expr import Const, Expr, Var, dim_expr, index
from ..ir.types import TASK_ID, ArrayType, DType, Mem, ScalarType, TaskType, TensorType, TileType
from ..ops import REGISTRY
from ..ops.registry import Kind, OpParam
from .context import Context
from .values import is_scalar, show, type_of

Converter = Callable[[str, OpParam, Any], Any]


def convert_argument(ctx: Context, op: str, param: OpParam, value: Any, span: Span) -> Any:
    """``value`` as ``param`` wants it; a tensor given for a tile is loaded whole."""
    if value is None and param.default is None:
        return None
    wants_tile = param.kind in (Kind.TILE, Kind.TILE_OR_SCALAR)
    if wants_tile and isinstance(value, Var) and isinstance(value.type, TensorType):
        return load_whole(ctx, value, op, span)
    return _CONVERTERS[param.kind](op, param, value)


def load_whole(ctx: Context, tensor: Var, op: str, span: Span) -> Var:
    """A tensor used as a tile operand is loaded whole."""
    t = tensor.type
    if not isinstance(t, TensorType) or not all(isinstance(d, int) for d in t.shape):
        raise user_error(
            Diag.NOT_CONSTANT, span,
            what=f"the shape of the tensor {tensor.name!r}, which {op} needs whole on chip,",
            fix=f"slice a tile of it: pl.slice({tensor.name}, [rows, cols], [row, col])",
        )  # fmt: skip
    load = REGISTRY["load"]
    shape = tuple(dim_expr(d) for d in t.shape)
    args = (tensor, shape, tuple(index(0) for _ in shape), None, None, None, False)
    result = load.infer(*args)
    return ctx.let(load, args, () if result is None else (result,), tensor.name, span).result


# ------------------------------------------------------------------------------------------ one per kind
def _wrong(op: str, param: OpParam, value: Any, wanted: str) -> UserError:
    return user_error(
        Diag.BAD_ARGUMENT, op=op, why=f"{param.name} is {show(value)}", fix=f"expected {wanted}"
    )


def _typed(wanted: type, what: str) -> Converter:
    def check(op: str, param: OpParam, value: Any) -> Any:
        if isinstance(type_of(value), wanted):
            return value
        raise _wrong(op, param, value, what)

    return check


def _tile_or_scalar(op: str, param: OpParam, value: Any) -> Any:
    if is_scalar(value) or isinstance(type_of(value), TileType):
        return value
    raise _wrong(op, param, value, "a tile or a scalar")


def _scalar(op: str, param: OpParam, value: Any) -> Any:
    if is_scalar(value) or isinstance(type_of(value), TaskType):
        return value
    raise _wrong(op, param, value, "a scalar")


def _index(op: str, param: OpParam, value: Any) -> tuple[Expr, ...]:
    values = value if isinstance(value, tuple) else (value,) if is_scalar(value) else None
    if values is None:
        raise _wrong(op, param, value, "a list such as [16, 128]")
    for v in values:
        t = type_of(v)
        if not isinstance(t, ScalarType) or not t.dtype.is_integer:
            raise _wrong(op, param, v, "integers or index scalars")
    return tuple(values)


def _static(op: str, param: OpParam, value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(v, Const) and v.dtype.is_integer for v in values):
        raise _wrong(op, param, value, "a list of constant integers")
    return tuple(int(v.value) for v in values)


def _tasks(op: str, param: OpParam, value: Any) -> tuple[Expr, ...]:
    return task_ids(value, f"{op}: {param.name}")


def task_ids(value: Any, what: str) -> tuple[Expr, ...]:
    """A list of task ids and arrays of them; None entries stand for "no task"."""
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    for v in values:
        t = type_of(v)
        known = isinstance(t, TaskType) or (isinstance(t, ArrayType) and t.elem == TASK_ID)
        if v is not None and not known:
            raise user_error(
                Diag.BAD_ARGUMENT,
                op=what,
                why=f"{show(v)} is not a task id",
                fix="use `as tid` and deps=[tid]",
            )
    return tuple(v for v in values if v is not None)


def _dtype(op: str, param: OpParam, value: Any) -> DType:
    if isinstance(value, DType) and (value != TASK_ID or op == "pl.array.create"):
        return value
    raise _wrong(op, param, value, "a dtype such as pl.FP32")


def _mem(op: str, param: OpParam, value: Any) -> Mem:
    if isinstance(value, Mem):
        return value
    raise _wrong(op, param, value, "a memory space such as pl.Mem.Vec")


def _bool(op: str, param: OpParam, value: Any) -> bool:
    if isinstance(value, Const):
        return bool(value.value)
    raise _wrong(op, param, value, "a constant True or False")


def _pad(op: str, param: OpParam, value: Any) -> str | float:
    if isinstance(value, Enum) and value.value in ("zero", "min", "max"):
        return str(value.value)
    if isinstance(value, Const) and math.isinf(value.value):
        return float(value.value)
    if isinstance(value, Const) and value.value == 0:
        return "zero"
    raise _wrong(op, param, value, "pl.PadValue.zero, min or max, or 0 or +-inf")


def _choice(op: str, param: OpParam, value: Any) -> Any:
    given = value.value if isinstance(value, Enum | Const) else value
    by_number = param.name == "mode" and isinstance(given, int) and not isinstance(given, bool)
    if by_number and 0 <= given < len(param.choices):  # pypto numbers the rounding modes in this order
        given = param.choices[int(given)]
    if given in param.choices:
        return given
    raise user_error(
        Diag.BAD_ARGUMENT, op=op, why=f"{param.name}={given!r} is not a choice",
        fix=f"one of {', '.join(map(repr, param.choices))}",
    )  # fmt: skip


_CONVERTERS: dict[Kind, Converter] = {
    Kind.TILE: _typed(TileType, "a tile"),
    Kind.TILE_OR_SCALAR: _tile_or_scalar,
    Kind.TENSOR: _typed(TensorType, "a tensor"),
    Kind.ARRAY: _typed(ArrayType, "an array"),
    Kind.SCALAR: _scalar,
    Kind.INDEX: _index,
    Kind.STATIC: _static,
    Kind.TASKS: _tasks,
    Kind.DTYPE: _dtype,
    Kind.MEM: _mem,
    Kind.BOOL: _bool,
    Kind.CHOICE: _choice,
    Kind.PAD: _pad,
}
