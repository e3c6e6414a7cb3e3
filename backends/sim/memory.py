"""Global memory of the simulator: buffers that know what was written, and views that check every access.

A :class:`Buffer` is one tensor in global memory.  Scratch and Out tensors start poisoned: the data is NaN (or
an extreme integer) and a mask remembers which elements a program has written; the mask is allocated at the
first partial write and dropped when every element is known to be written.  A :class:`View` is what the
OpDef references see (``ops.value.GlobalMemory``): a start, extents and strides over one buffer, no data of
its own.  Errors are raised without a place; the machine adds the op and the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from operator import mul
from typing import Protocol

import torch

from pypto_models.errors import Diag, UserError, user_error
from pypto_models.ops.value import Extents, first_false


class Watcher(Protocol):
    """Told of accesses as strided boxes of a buffer; ``effect`` is read, write or atomic."""

    def note(
        self, buffer: Buffer, effect: str, start: int, extents: Extents, strides: Extents
    ) -> None: ...


class Buffer:
    """A contiguous tensor in global memory.

    ``stable`` buffers are written by nothing in the program, so that loads need no copy.  ``complete`` means
    that every element is defined.  A buffer that is not ``checked`` takes every access as it comes.
    """

    __slots__ = (
        "name", "data", "shape", "stable", "complete", "base", "watch", "checked", "_mask", "_recount",
    )  # fmt: skip

    def __init__(
        self, name: str, data: torch.Tensor, *, defined: bool, stable: bool = False, checked: bool = True
    ) -> None:
        self.name = name
        self.data = data
        self.shape: Extents = tuple(int(d) for d in data.shape)
        self.stable = stable
        self.checked = checked
        self.complete = defined or not checked or data.numel() == 0
        self.base = int(data.storage_offset())
        self.watch: Watcher | None = None  # told of every access while one is set
        self._mask: torch.Tensor | None = None
        self._recount = data.numel()  # elements that stores must still bring before counting again can pay
        if checked and not defined:
            poison(data)

    def view(self) -> View:
        """The whole buffer."""
        kind = View if self.checked else UncheckedView
        return kind(self, self.base, self.shape, self.data.stride(), (0,) * len(self.shape))

    def first_unwritten(self, extents: Extents, strides: Extents, start: int) -> list[int] | None:
        """Place within a box of its first element that was never written; None if all were."""
        if self.complete:
            return None
        if self._mask is None:
            return [0] * len(extents) if prod(extents) else None
        box = self._mask.as_strided(extents, strides, start - self.base)
        return None if bool(box.all()) else first_false(box)

    def mark(self, extents: Extents, strides: Extents, start: int) -> None:
        """Remember that a box was written."""
        size, count = self.data.numel(), prod(extents)
        if count < size:
            if self._mask is None:
                self._mask = torch.zeros(self.shape, dtype=torch.bool)
            self._mask.as_strided(extents, strides, start - self.base).fill_(True)
            self._recount -= count
            if self._recount > 0:
                return
            # Stores may overlap, so their sizes only bound what is written: count, but not at every store.
            missing = size - int(self._mask.sum())
            self._recount = max(missing, size // 8)
            if missing:
                return
        self.complete = True
        self._mask = None

    def place(self, position: int) -> list[int] | None:
        """Index of the element at a storage position; None outside of the buffer."""
        flat = position - self.base
        if not 0 <= flat < self.data.numel():
            return None
        index: list[int] = []
        for extent in reversed(self.shape):
            index.append(flat % extent)
            flat //= extent
        return index[::-1]


class View:
    """A rectangle of a buffer, or a reshaped one; implements ``ops.value.GlobalMemory``."""

    __slots__ = ("buffer", "start", "shape", "strides", "origin")

    def __init__(
        self, buffer: Buffer, start: int, shape: Extents, strides: Extents, origin: Extents | None
    ) -> None:
        self.buffer = buffer
        self.start = start  # of the first element, in the storage of buffer.data
        self.shape = shape
        self.strides = strides
        self.origin = origin  # index of the first element, where axes are still those of the buffer

    def load(self, offsets: Extents, extents: Extents) -> torch.Tensor:
        """The box at ``offsets``; a copy unless the program never writes the buffer."""
        at = self.start
        for offset, count, extent, stride in zip(offsets, extents, self.shape, self.strides, strict=True):
            if offset < 0 or count < 0 or offset + count > extent:
                return self._nothing("reads", offsets, extents)
            at += offset * stride
        buffer = self.buffer
        if buffer.watch is not None:
            buffer.watch.note(buffer, "read", at, extents, self.strides)
        box = buffer.data.as_strided(extents, self.strides, at)
        if buffer.stable:
            return box
        if not buffer.complete:
            self._require_written(extents, at)
        return box.clone()

    def store(self, offsets: Extents, data: torch.Tensor, atomic: bool) -> None:
        """Write ``data`` at ``offsets``; an atomic add rounds to the buffer's type at each add."""
        at, extents = self.start, tuple(data.shape)
        for offset, count, extent, stride in zip(offsets, extents, self.shape, self.strides, strict=True):
            if offset < 0 or offset + count > extent:
                self._nothing("writes", offsets, extents)
                return
            at += offset * stride
        buffer = self.buffer
        if buffer.watch is not None:
            buffer.watch.note(buffer, "atomic" if atomic else "write", at, extents, self.strides)
        box = buffer.data.as_strided(extents, self.strides, at)
        if atomic:
            if not buffer.complete:
                self._require_written(extents, at)
            box.add_(data)
            return
        box.copy_(data)
        if not buffer.complete:
            buffer.mark(extents, self.strides, at)

    def view(self, offsets: Extents, extents: Extents) -> View:
        at = self.start
        for offset, count, extent, stride in zip(offsets, extents, self.shape, self.strides, strict=True):
            if offset < 0 or count < 0 or offset + count > extent:
                self._nothing("takes", offsets, extents)
                at = self.start  # an empty view may lie anywhere
                break
            at += offset * stride
        origin = self.origin
        if origin is not None:
            origin = tuple(a + b for a, b in zip(origin, offsets, strict=True))
        return View(self.buffer, at, tuple(extents), self.strides, origin)

    def reshape(self, shape: Extents) -> View:
        shape = tuple(shape)
        if prod(shape) != prod(self.shape):
            raise user_error(
                Diag.SHAPE, op="pl.reshape",
                why=f"{list(self.shape)} does not have the elements of {list(shape)}",
                fix="the product of the extents stays the same",
            )  # fmt: skip
        try:
            strides = self.tensor().view(shape).stride()
        except RuntimeError:  # torch's only way to say that no strides describe the result
            raise user_error(
                Diag.BAD_ARGUMENT, op="pl.reshape",
                why=f"the view {list(self.shape)} of {self.buffer.name} {list(self.buffer.shape)} has gaps "
                f"between its rows, so that {list(shape)} would need a copy",
                fix="reshape the whole tensor before slicing it, or reshape a tile inside of a region",
            ) from None  # fmt: skip
        origin = self.origin if shape == self.shape else None
        return type(self)(self.buffer, self.start, shape, strides, origin)

    def tensor(self) -> torch.Tensor:
        """The view as a torch tensor on the buffer's memory."""
        return self.buffer.data.as_strided(self.shape, self.strides, self.start)

    # ------------------------------------------------------------------------------------------ errors
    def _require_written(self, extents: Extents, at: int) -> None:
        inside = self.buffer.first_unwritten(extents, self.strides, at)
        if inside is None:
            return
        position = at + sum(i * s for i, s in zip(inside, self.strides, strict=True))
        raise user_error(
            Diag.UNINITIALISED, op="this operation", tensor=self.buffer.name,
            index=self.buffer.place(position),
            fix="write it first: a skipped block, a dead row or a padded lane leaves a hole",
        )  # fmt: skip

    def _nothing(self, access: str, offsets: Extents, extents: Extents) -> torch.Tensor:
        """An out-of-bounds box: an error, unless it has no element and so touches nothing."""
        if 0 in extents and min(extents) == 0:
            return torch.empty(extents, dtype=self.buffer.data.dtype)
        raise self._outside(access, offsets, extents)

    def _outside(self, access: str, offsets: Extents, extents: Extents) -> UserError:
        buffer = self.buffer
        whole = self.origin is not None and self.shape == buffer.shape
        error = user_error(
            Diag.BOUNDS, op="this operation", access=access, index=show_box(offsets, extents),
            tensor=buffer.name if whole else f"a view of {buffer.name}", extents=list(self.shape),
            fix="clamp=True or valid_shape= cut a box off at the end; a dead row needs an `if` around the op",
        )  # fmt: skip
        if not whole:
            start = f"{buffer.name}{self._in_buffer(offsets)}"
            error.notes.append(f"the box starts at {start}; {buffer.name} is {list(buffer.shape)}")
        return error

    def _in_buffer(self, offsets: Sequence[int]) -> list[int] | str:
        if self.origin is not None:
            return [a + b for a, b in zip(self.origin, offsets, strict=True)]
        position = self.start + sum(o * s for o, s in zip(offsets, self.strides, strict=True))
        return self.buffer.place(position) or " (past its end)"


class UncheckedView(View):
    """A view that trusts every offset, to measure what the checks cost."""

    __slots__ = ()

    def load(self, offsets: Extents, extents: Extents) -> torch.Tensor:
        box = self._box(offsets, extents)
        return box if self.buffer.stable else box.clone()

    def store(self, offsets: Extents, data: torch.Tensor, atomic: bool) -> None:
        box = self._box(offsets, tuple(data.shape))
        if atomic:
            box.add_(data)
        else:
            box.copy_(data)

    def view(self, offsets: Extents, extents: Extents) -> View:
        at = self.start + sum(map(mul, offsets, self.strides))
        return UncheckedView(self.buffer, at, tuple(extents), self.strides, None)

    def _box(self, offsets: Extents, extents: Extents) -> torch.Tensor:
        if 0 in extents:  # it touches nothing, and may lie anywhere
            return self.buffer.data.new_empty(extents)
        at = self.start + sum(map(mul, offsets, self.strides))
        return self.buffer.data.as_strided(extents, self.strides, at)


def show_box(offsets: Extents, extents: Extents) -> str:
    """``[3, 0:256]``: a box as the user would slice it."""
    parts = (str(o) if n == 1 else f"{o}:{o + n}" for o, n in zip(offsets, extents, strict=True))
    return f"[{', '.join(parts)}]"


def poison(data: torch.Tensor) -> None:
    """Fill with what no program computes by accident: NaN, or the extreme of an integer type."""
    dtype = data.dtype
    if dtype.is_floating_point and dtype.itemsize == 1:
        data.view(torch.uint8).fill_(0x7F if dtype != torch.float8_e8m0fnu else 0xFF)
    elif dtype.is_floating_point:
        data.fill_(float("nan"))
    elif dtype == torch.bool:
        data.fill_(True)
    else:
        info = torch.iinfo(dtype)
        data.fill_(info.min if info.min else info.max)


def create(
    name: str, shape: Extents, dtype: torch.dtype, init: int | float | None, checked: bool = True
) -> View:
    """``pl.create_tensor`` outside of a region: poisoned scratch, or filled with ``init``."""
    if min(shape, default=0) < 0:
        raise user_error(
            Diag.SHAPE, op="pl.create_tensor", why=f"{name} would be {list(shape)}",
            fix="keep run-time extents at 0 or more: pl.max(n, 0)",
        )  # fmt: skip
    if init is None:
        return Buffer(name, torch.empty(shape, dtype=dtype), defined=False, checked=checked).view()
    return Buffer(name, torch.full(shape, init, dtype=dtype), defined=True, checked=checked).view()
