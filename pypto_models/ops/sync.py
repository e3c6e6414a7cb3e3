"""Task ids: arrays of them and the join node.  They order tasks and carry no data."""

from __future__ import annotations

from typing import Any

from ..errors import Diag, user_error
from ..ir.expr import Expr, Var
from ..ir.nodes import Unit
from ..ir.types import TASK_ID, ArrayType, DType, ScalarType, TaskType, Type
from .common import require
from .registry import Kind, OpDef, OpParam, op


def _create_infer(size: tuple[int, ...], dtype: DType) -> ArrayType:
    require(
        len(size) == 1 and size[0] > 0, Diag.BAD_ARGUMENT, "pl.array.create", f"the size is {list(size)}",
        "give one positive constant",
    )  # fmt: skip
    return ArrayType(size[0], dtype)


def _create_reference(size: tuple[int, ...], dtype: DType) -> tuple[Any, ...]:
    return (None,) * size[0]


def _element_type(array: Expr) -> ArrayType:
    if not isinstance(array, Var) or not isinstance(array.type, ArrayType):
        raise user_error(
            Diag.DTYPE, op="subscript", why="only arrays, tiles and tensors have elements",
            fix="make the array with pl.array.create(n, pl.TASK_ID)",
        )  # fmt: skip
    return array.type


def _get_infer(array: Expr, index: tuple[Expr, ...]) -> Type:
    elem = _element_type(array).elem
    return TaskType() if elem == TASK_ID else ScalarType(elem)


def _get_reference(array: tuple[Any, ...], index: tuple[int, ...]) -> Any:
    return _checked(array, index)[index[0]]


def _checked(array: tuple[Any, ...], index: tuple[int, ...]) -> tuple[Any, ...]:
    if not 0 <= index[0] < len(array):
        raise user_error(
            Diag.BOUNDS, op="subscript", access="touches", tensor="an array", index=list(index),
            extents=[len(array)], fix="keep the index within the size given to pl.array.create",
        )  # fmt: skip
    return array


def _set_infer(array: Expr, index: tuple[Expr, ...], value: Expr) -> ArrayType:
    return _element_type(array)


def _set_reference(array: tuple[Any, ...], index: tuple[int, ...], value: Any) -> tuple[Any, ...]:
    i = index[0]
    return (*_checked(array, index)[:i], value, *array[i + 1 :])


def _dummy_infer(deps: tuple[Expr, ...]) -> TaskType:
    return TaskType()


def _dummy_reference(deps: tuple[Any, ...]) -> None:
    return None


_ARRAY = OpParam("array", Kind.ARRAY)
_INDEX = OpParam("index", Kind.INDEX)

OPS: tuple[OpDef, ...] = (
    op(
        "array_create", OpParam("size", Kind.STATIC), OpParam("dtype", Kind.DTYPE), spelling="create",
        doc="An array of task ids (or scalars), indexed by constants and unrolled loop variables.",
        infer=_create_infer, unit=Unit.NONE, reference=_create_reference, outside=True, namespaces=("array",),
    ),
    op(
        "array_get", _ARRAY, _INDEX, doc="An element of an array; written ``array[i]``.", infer=_get_infer,
        unit=Unit.NONE, reference=_get_reference, outside=True, namespaces=("array",), spelling="get",
    ),
    op(
        "array_set", _ARRAY, _INDEX, OpParam("value", Kind.SCALAR),
        doc="The array with one element replaced; written ``array[i] = v``.", infer=_set_infer,
        unit=Unit.NONE, reference=_set_reference, outside=True, namespaces=("array",), spelling="set",
        mutates="array",
    ),
    op(
        "task_dummy", OpParam("deps", Kind.TASKS, ()),
        doc="A task that does nothing and finishes after ``deps``.", infer=_dummy_infer, unit=Unit.NONE,
        reference=_dummy_reference, outside=True, namespaces=("system",),
    ),
)  # fmt: skip
