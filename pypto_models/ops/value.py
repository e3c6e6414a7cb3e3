"""Run-time values of the OpDef references: tiles as torch tensors, global memory behind a protocol."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import torch

from ..errors import Diag, InternalError, user_error
from ..ir.types import DTYPES, INDEX, DType, promote

Extents: TypeAlias = tuple[int, ...]


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch dtype of an element type; types without one are an internal error here."""
    if dtype.torch_name is None or not hasattr(torch, dtype.torch_name):
        raise InternalError(f"{dtype} has no torch counterpart")
    found = getattr(torch, dtype.torch_name)
    if not isinstance(found, torch.dtype):
        raise InternalError(f"torch.{dtype.torch_name} is not a dtype")
    return found


_OF_TORCH = {torch_dtype(d): d for d in DTYPES if d.torch_name is not None and d != INDEX}


def promoted(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """What :func:`~..ir.types.promote` makes of two element types."""
    return a if a == b else torch_dtype(promote(_OF_TORCH[a], _OF_TORCH[b]))


class TileValue:
    """A tile: ``data`` holds exactly the valid rectangle of a tile of extents ``shape``.

    Elements outside of ``data`` do not exist, so that reading them is always noticed.  ``written`` marks the
    elements that a partial write has defined (None: all of them).
    """

    __slots__ = ("data", "shape", "written")

    def __init__(self, data: torch.Tensor, shape: Extents, written: torch.Tensor | None = None) -> None:
        self.data = data
        self.shape = shape
        self.written = written

    @property
    def valid(self) -> Extents:
        return tuple(self.data.shape)

    def read(self, extents: Extents | None = None) -> torch.Tensor:
        """The elements ``[0:extents]`` (default: the valid ones); an undefined one among them is an error."""
        data = self.data
        if self.written is not None and not bool(self.written.all()):
            raise user_error(
                Diag.UNINITIALISED, op="this operation", tensor="the tile",
                index=first_false(self.written), fix="write the whole tile first", operand=self,
            )  # fmt: skip
        if extents is None or extents == tuple(data.shape):
            return data
        if any(e > d for e, d in zip(extents, data.shape, strict=True)):
            raise user_error(
                Diag.INVALID_READ, op="this operation", tensor="a tile",
                why=f"it needs {list(extents)}, only {list(data.shape)} of {list(self.shape)} is valid",
                fix="fill the rest with pl.fillpad, or give the operands one valid shape", operand=self,
            )  # fmt: skip
        return data[tuple(slice(0, e) for e in extents)]


def filled(op: str, shape: Extents, value: Any, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of one value; an integer that the type cannot hold is an error."""
    if not dtype.is_floating_point and dtype != torch.bool:
        require_range(op, value, dtype)
    return torch.full(shape, value, dtype=dtype)


def require_range(op: str, value: int, dtype: torch.dtype) -> None:
    """Refuse an integer that the integer type cannot hold."""
    info = torch.iinfo(dtype)
    if not info.min <= value <= info.max:
        raise user_error(
            Diag.ARITHMETIC, op=op, why=f"{value} is not within {info.min}..{info.max}",
            fix="bound it with pl.min and pl.max, or use a wider type",
        )  # fmt: skip


def first_false(mask: torch.Tensor) -> list[int]:
    """Index of the first False element."""
    flat = int((~mask).flatten().to(torch.uint8).argmax())
    place: list[int] = []
    for extent in reversed(mask.shape):
        place.append(flat % extent)
        flat //= extent
    return place[::-1]


class GlobalMemory(Protocol):
    """A tensor in global memory, or a view of one, as the references see it.

    Every access is checked by the implementation: bounds against run-time extents, never-written elements.
    """

    @property
    def shape(self) -> Extents: ...

    def load(self, offsets: Extents, extents: Extents) -> torch.Tensor: ...

    def store(self, offsets: Extents, data: torch.Tensor, atomic: bool) -> None: ...

    def view(self, offsets: Extents, extents: Extents) -> GlobalMemory: ...

    def reshape(self, shape: Extents) -> GlobalMemory: ...
