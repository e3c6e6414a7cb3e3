"""What the language's types look like in Python: ``pl.Tensor[[16, 128], pl.BF16]`` and its kin.

Annotations are data for the front end.  They are evaluated both by Python, when a module is imported, and by
the front end, which substitutes constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..ir.expr import DimVar
from ..ir.nodes import Direction
from ..ir.types import DType, Mem, SplitMode

# In a kernel's body a parameter is a value with attributes and operators, which only the front end knows.
if TYPE_CHECKING:
    _Value = Any
else:
    _Value = object


class _Runtime:
    """``pl.RUNTIME``: an anonymous run-time extent."""

    def __repr__(self) -> str:
        return "pl.RUNTIME"


RUNTIME = _Runtime()


@dataclass(frozen=True)
class TensorAnnotation:
    """``shape`` entries are ints, :class:`DimVar` or RUNTIME; None: the shape comes from the call."""

    shape: tuple[Any, ...] | None = None
    dtype: DType | None = None


@dataclass(frozen=True)
class TileAnnotation:
    shape: tuple[int, ...] | None = None
    dtype: DType | None = None
    space: Mem | None = None
    split: SplitMode = SplitMode.NONE


@dataclass(frozen=True)
class ScalarAnnotation:
    dtype: DType | None = None


@dataclass(frozen=True)
class ArrayAnnotation:
    size: int | None = None
    elem: DType | None = None


@dataclass(frozen=True)
class Directed:
    inner: TensorAnnotation
    direction: Direction


def _as_tuple(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


class Tensor(_Value):
    """``pl.Tensor[[dims], dtype]``: a tensor in global memory.  A bare one takes the caller's shape."""

    def __class_getitem__(cls, key: Any) -> TensorAnnotation:
        shape, *rest = _as_tuple(key)
        return TensorAnnotation(tuple(shape), rest[0] if rest else None)


class Tile(_Value):
    """``pl.Tile[[dims], dtype, space, split]``: a tile on chip."""

    def __class_getitem__(cls, key: Any) -> TileAnnotation:
        shape, *rest = _as_tuple(key)
        space = next((r for r in rest if isinstance(r, Mem)), None)
        split = next((r for r in rest if isinstance(r, SplitMode)), SplitMode.NONE)
        return TileAnnotation(tuple(shape), rest[0] if rest else None, space, split)


class Scalar(_Value):
    """``pl.Scalar[dtype]``: a scalar argument."""

    def __class_getitem__(cls, key: Any) -> ScalarAnnotation:
        return ScalarAnnotation(key)


class Array(_Value):
    """``pl.Array[n, dtype]``: a small array of task ids or scalars."""

    def __class_getitem__(cls, key: Any) -> ArrayAnnotation:
        size, elem = _as_tuple(key)
        return ArrayAnnotation(size, elem)


def _tensor(key: Any) -> TensorAnnotation:
    return TensorAnnotation() if key is Tensor else key


class Out:
    """``pl.Out[pl.Tensor[...]]``: the kernel writes it and never reads what was there."""

    def __class_getitem__(cls, key: Any) -> Directed:
        return Directed(_tensor(key), Direction.OUT)


class InOut:
    """``pl.InOut[pl.Tensor[...]]``: the kernel reads and writes it."""

    def __class_getitem__(cls, key: Any) -> Directed:
        return Directed(_tensor(key), Direction.INOUT)


def dynamic(name: str) -> DimVar:
    """A named run-time extent for annotations and ``bind_dynamic``; one name is one extent in a kernel."""
    return DimVar(name)
