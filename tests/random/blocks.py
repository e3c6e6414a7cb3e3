"""The torch side of a random program: one tensor holds a tile for every block at once.

``data[b]`` is the tile of block ``b``, and a loop inside of a block is more blocks: a grid of tiles is plain
torch on a few large tensors.  What is outside of the valid rectangle is NaN (or whatever was there, for
integers): reductions and stores look at the mask, so a mistake of the generator shows as NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Extent = Tensor | None  # valid elements of an axis in each block; None: all of them


@dataclass(frozen=True)
class Blocks:
    """``data`` is [blocks, *tile]; ``valid`` has an entry for each axis of the tile."""

    data: Tensor
    valid: tuple[Extent, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape[1:])

    def mask(self) -> Tensor:
        """True for valid elements; [blocks, *tile]."""
        mask = torch.ones(self.data.shape, dtype=torch.bool)
        for axis, live in enumerate(self.valid):
            if live is not None:
                at = torch.arange(self.shape[axis]).reshape(_along(axis, len(self.shape)))
                mask = mask & (at < live.reshape(-1, *[1] * len(self.shape)))
        return mask

    def filled(self, value: float) -> Tensor:
        """The data with ``value`` where it is not valid."""
        if all(v is None for v in self.valid):
            return self.data
        return torch.where(self.mask(), self.data, torch.tensor(value, dtype=self.data.dtype))

    def with_data(self, data: Tensor) -> Blocks:
        return Blocks(data, self.valid)

    def repeated(self, n: int) -> Blocks:
        """Every block ``n`` times: the tile as a loop of ``n`` trips sees it."""
        valid = tuple(None if v is None else v.repeat_interleave(n, 0) for v in self.valid)
        return Blocks(self.data.repeat_interleave(n, 0), valid)


def _along(axis: int, rank: int) -> list[int]:
    """The shape of an index along one axis of [blocks, *tile]."""
    return [1, *(-1 if a == axis else 1 for a in range(rank))]


def _places(offsets: Sequence[Tensor], shape: Sequence[int], extents: Sequence[int]) -> list[Tensor]:
    """Indices of a box in every block, held within the extents."""
    rank = len(shape)
    return [
        (o.reshape(-1, *[1] * rank) + torch.arange(n).reshape(_along(a, rank))).clamp(0, max(e - 1, 0))
        for a, (o, n, e) in enumerate(zip(offsets, shape, extents, strict=True))
    ]


def gather(full: Tensor, offsets: Sequence[Tensor], shape: Sequence[int], valid: Sequence[Extent]) -> Blocks:
    """The box of ``shape`` at each block's offsets, of which ``valid`` is live."""
    data = full[tuple(_places(offsets, shape, full.shape))]
    blocks = Blocks(data, tuple(valid))
    return Blocks(blocks.filled(float("nan")), blocks.valid) if data.is_floating_point() else blocks


def scatter(full: Tensor, offsets: Sequence[Tensor], blocks: Blocks, add: bool = False) -> None:
    """Write (or add) the valid rectangle of every block into ``full``."""
    mask = blocks.mask()
    places = [p.expand(mask.shape)[mask] for p in _places(offsets, blocks.shape, full.shape)]
    full.index_put_(tuple(places), blocks.data[mask], accumulate=add)


def product(a: Blocks, b: Blocks) -> Tensor:
    """Matrix products of the valid rectangles, in fp32 or int32."""
    x, y = a.filled(0), b.filled(0)
    if x.is_floating_point():
        return x.float() @ y.float()
    return (x.int().unsqueeze(3) * y.int().unsqueeze(1)).sum(2, dtype=torch.int32)


def computed(fn: Callable[..., Tensor], *xs: Tensor) -> Tensor:
    """An elementwise float op: fp32 inside, one rounding to the common type of the operands."""
    dtype = xs[0].dtype
    for x in xs[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    if not dtype.is_floating_point:
        return fn(*(x.to(dtype) for x in xs))
    return fn(*(x.float() for x in xs)).to(dtype)


def cast(x: Tensor, to: torch.dtype, mode: str) -> Tensor:
    """``pl.cast``, for the pairs of types and modes that the generator draws."""
    if x.dtype == to:
        return x
    if to.is_floating_point:
        if to == torch.bfloat16 and x.dtype == torch.float32 and mode not in ("none", "rint"):
            return _to_bf16(x, mode)
        return x.to(to)
    if not x.dtype.is_floating_point:
        info = torch.iinfo(to)
        return x.long().clamp(info.min, info.max).to(to)
    info = torch.iinfo(to)
    return _whole(torch.nan_to_num(x.double()), mode).clamp(info.min, info.max).to(to)


def _to_bf16(x: Tensor, mode: str) -> Tensor:
    """By the bits: a float is sign and magnitude, and bf16 its upper half."""
    bits = x.view(torch.int32)
    down = bits & -65536
    inexact = (bits & 65535) != 0
    up = down + 65536
    negative = bits < 0
    chosen = {
        "trunc": down,
        "round": torch.where((bits & 65535) >= 32768, up, down),
        "floor": torch.where(inexact & negative, up, down),
        "ceil": torch.where(inexact & ~negative, up, down),
        "odd": torch.where(inexact, down | 65536, down),
    }[mode]
    return torch.where(x.isnan(), x, chosen.view(torch.float32)).to(torch.bfloat16)


def _whole(x: Tensor, mode: str) -> Tensor:
    """Doubles rounded to whole numbers."""
    if mode in ("none", "rint"):
        return x.round()
    if mode == "round":
        return x.sign() * (x.abs() + 0.5).floor()
    if mode == "odd":
        return torch.where(x.trunc() == x, x, 2 * (x / 2).floor() + 1)
    return {"floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc}[mode](x)
