"""Types of the IR: element types, tensors in global memory, tiles on chip, scalars, task ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .expr import Expr


@dataclass(frozen=True)
class DType:
    """An element type.  ``kind`` is one of float, int, uint, bool, index, task."""

    name: str
    bits: int
    kind: str
    torch_name: str | None = None

    @property
    def bytes(self) -> int:
        """Bytes of one element; sub-byte types are not addressable and have no torch counterpart."""
        return max(1, self.bits // 8)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint", "index", "bool")

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"pl.{self.name}"


BOOL = DType("BOOL", 8, "bool", "bool")
INT8 = DType("INT8", 8, "int", "int8")
INT16 = DType("INT16", 16, "int", "int16")
INT32 = DType("INT32", 32, "int", "int32")
INT64 = DType("INT64", 64, "int", "int64")
UINT8 = DType("UINT8", 8, "uint", "uint8")
UINT16 = DType("UINT16", 16, "uint", "uint16")
UINT32 = DType("UINT32", 32, "uint", "uint32")
UINT64 = DType("UINT64", 64, "uint", "uint64")
FP16 = DType("FP16", 16, "float", "float16")
BF16 = DType("BF16", 16, "float", "bfloat16")
FP32 = DType("FP32", 32, "float", "float32")
FP8E4M3FN = DType("FP8E4M3FN", 8, "float", "float8_e4m3fn")
FP8E5M2 = DType("FP8E5M2", 8, "float", "float8_e5m2")
FP8E8M0 = DType("FP8E8M0", 8, "float", "float8_e8m0fnu")
INDEX = DType("INDEX", 64, "index", "int64")
TASK_ID = DType("TASK_ID", 64, "task")

DTYPES: tuple[DType, ...] = (
    BOOL, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64,
    FP16, BF16, FP32, FP8E4M3FN, FP8E5M2, FP8E8M0, INDEX, TASK_ID,
)  # fmt: skip


def promote(a: DType, b: DType) -> DType:
    """Result type of a binary tile op: float beats integer, then wider, then signed."""
    if a == b:
        return a

    def rank(d: DType) -> tuple[bool, int, bool]:
        return (d.is_float, d.bits, d.kind != "uint")

    return max(a, b, key=rank)


class Mem(Enum):
    """Memory spaces.  GPU targets map Mat/Left/Right to shared memory, Acc/Vec to registers."""

    DDR = "DDR"
    Vec = "Vec"
    Mat = "Mat"
    Left = "Left"
    Right = "Right"
    Acc = "Acc"
    Bias = "Bias"


class SplitMode(Enum):
    """How the vector part of a mixed region is divided over two vector lanes."""

    NONE = "NONE"
    UP_DOWN = "UP_DOWN"
    LEFT_RIGHT = "LEFT_RIGHT"

    @property
    def axis(self) -> int | None:
        """The halved axis: 0 rows, 1 columns, None for no split."""
        return {"NONE": None, "UP_DOWN": 0, "LEFT_RIGHT": 1}[self.name]


Dim: TypeAlias = "int | Expr"


@dataclass(frozen=True)
class TensorType:
    """A tensor in global memory, or a view of one.  An extent is an int or a run-time expression."""

    shape: tuple[Dim, ...]
    dtype: DType

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class TileType:
    """A tile on chip.

    ``valid`` is the live rectangle ``[0:valid[i]]`` per axis; None on an axis means that it is only known
    at run time.  ``space`` is None until memory spaces are inferred.  ``split`` says on which axis the
    tile is halved over the two vector lanes of a mixed region.
    """

    shape: tuple[int, ...]
    dtype: DType
    valid: tuple[Dim | None, ...]
    space: Mem | None = None
    split: SplitMode = SplitMode.NONE

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_full(self) -> bool:
        """True if every element is valid by construction."""
        return self.valid == self.shape

    @property
    def elements(self) -> int:
        n = 1
        for d in self.shape:
            n *= d
        return n

    @property
    def bytes(self) -> int:
        """Bytes of the whole tile (both lanes)."""
        return self.elements * self.dtype.bytes

    def lane_shape(self) -> tuple[int, ...]:
        """Shape held by one vector lane: the split axis halved, rounded up."""
        axis = self.split.axis
        if axis is None:
            return self.shape
        return tuple((d + 1) // 2 if i == axis else d for i, d in enumerate(self.shape))

    def with_(self, **changes: object) -> TileType:
        return replace(self, **changes)  # type: ignore[arg-type]


def tile(shape: tuple[int, ...], dtype: DType, valid: tuple[Dim | None, ...] | None = None) -> TileType:
    return TileType(shape, dtype, shape if valid is None else valid)


@dataclass(frozen=True)
class ScalarType:
    dtype: DType


@dataclass(frozen=True)
class TaskType:
    """The id of a launched task; ``deps=`` takes these."""


@dataclass(frozen=True)
class ArrayType:
    """A small array of task ids or scalars, indexed at compile time or by a loop variable."""

    size: int
    elem: DType


Type: TypeAlias = TensorType | TileType | ScalarType | TaskType | ArrayType
