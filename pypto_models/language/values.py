"""Values of the front end: how Python constants enter, what type a value has, how messages show it."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeGuard

from ..ir.expr import Const, Expr, Var, convert
from ..ir.types import (
    BOOL,
    FP32,
    ArrayType,
    DType,
    ScalarType,
    TaskType,
    TensorType,
    TileType,
    Type,
)
from ..ops.common import describe


def lift(value: Any) -> Any:
    """A Python constant as a value of the front end: numbers become IR constants, lists become tuples."""
    if isinstance(value, bool):
        return Const(value, BOOL)
    if isinstance(value, int) and not isinstance(value, Enum):
        return Const(value)
    if isinstance(value, float):
        return Const(value, FP32)
    if isinstance(value, list | tuple):
        return tuple(lift(v) for v in value)
    return value


def plain(value: Any) -> Any:
    """The Python number of a constant; anything else as it is."""
    return value.value if isinstance(value, Const) else value


def type_of(value: Any) -> Type | None:
    """The IR type of a value; None for compile-time objects."""
    if isinstance(value, Var):
        return value.type
    return ScalarType(value.dtype) if isinstance(value, Expr) else None


def is_data(value: Any) -> TypeGuard[Var]:
    """True for tensors and tiles."""
    return isinstance(value, Var) and isinstance(value.type, TensorType | TileType)


def is_scalar(value: Any) -> TypeGuard[Expr]:
    return isinstance(type_of(value), ScalarType)


def adapt(value: Expr, dtype: DType) -> Expr:
    """A scalar as ``dtype``; other values as they are."""
    return convert(value, dtype) if is_scalar(value) else value


def show(value: Any) -> str:
    """A value for messages."""
    t = type_of(value)
    if isinstance(value, Var) and isinstance(t, TensorType):
        return f"the tensor {value.name} {describe(t)}"
    if isinstance(value, Var) and isinstance(t, TileType):
        return f"the tile {value.name} {describe(t)}"
    if isinstance(value, Const):
        return repr(value.value)
    if isinstance(t, ScalarType):
        return f"a {t.dtype} scalar"
    if isinstance(t, TaskType):
        return "a task id"
    if isinstance(t, ArrayType):
        return f"an array of {t.size}"
    if isinstance(value, tuple):
        return f"a list of {len(value)}"
    return "nothing" if value is None else str(value)


def show_type(value: Any) -> str:
    """What kind of value it is, for messages about names that change their type."""
    t = type_of(value)
    if isinstance(t, TensorType):
        return f"a tensor {describe(t)}"
    return f"a tile {describe(t)}" if isinstance(t, TileType) else show(value)
