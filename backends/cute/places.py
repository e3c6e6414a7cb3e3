"""Places of tiles in shared memory, and the text of addresses in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pypto_models.ir.types import DType

from .layouts import WARPS, Columns, Dealt
from .packing import packed
from .scalars import DSL_TYPES
from .tiles import Coordinates, Shared, Tile

SHARED = "shared"  # the pointer to the shared memory of a kernel


@dataclass
class Buffers:
    """Tiles in shared memory; ``pack`` finds their places when the text that uses them is complete."""

    kinds: dict[str, DType] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # bytes
    lines: list[str] = field(default_factory=list)
    bytes: int = 0

    def add(self, name: str, dtype: DType, elements: int) -> None:
        self.kinds[name] = dtype
        self.sizes[name] = elements * dtype.bytes

    def pack(self, text: Sequence[str]) -> None:
        places, self.bytes = packed(text, self.sizes)
        self.lines = [
            f"{name} = cute.recast_ptr({SHARED} + {at}, dtype={DSL_TYPES[self.kinds[name].name]})"
            for name, at in places.items()
        ]


def allocated(size: int) -> list[str]:
    """The lines at the head of a kernel that takes ``size`` bytes of shared memory."""
    buffer = f"smem.allocate_tensor(Int8, cute.make_layout({size}), 128).iterator"
    return ["smem = utils.SmemAllocator()", f"{SHARED} = {buffer}"] if size else []


def padded_pitch(columns: int, dtype: DType) -> int:
    return columns + 8 if dtype.bytes == 2 and columns % 16 == 0 else columns


def vectors(tile: Tile, place: Shared) -> bool:
    """Whether a load can go to shared memory in 16-byte pieces."""
    per = 16 // tile.dtype.bytes
    whole = tile.valid[-1] == str(tile.shape[-1])
    return len(tile.shape) == 2 and whole and tile.shape[1] % per == 0 and place.pitch % per == 0


def runs(tile: Tile, layout: Dealt | Columns) -> bool:
    """Whether the runs of a dealt tile are aligned vectors of up to 16 bytes in global memory."""
    size = layout.run * tile.dtype.bytes
    return tile.valid[1] == str(tile.shape[1]) and layout.run > 1 and (size <= 16 or size == 32)


def copy_call(tile: Tile, place: Shared, to: str, warps: int = WARPS, now: bool = False) -> str:
    """A copy of rows to shared memory, by the block or one warp: asynchronous, or by the block ``now``."""
    assert tile.plain is not None
    pointer, pitch, rows = tile.plain
    return (
        f"block.copy_rows{'_now' if now else ''}({pointer}, {pitch}, {to}, {place.pitch}, Int32({rows}), "
        f"{tile.shape[0]}, {tile.shape[1]}, {16 // tile.dtype.bytes}{f', {warps}' if warps < WARPS else ''})"
    )


def offset(at: Coordinates, shape: tuple[int, ...], pitch: int) -> str:
    """The element of a coordinate in a row-major buffer whose last axis has ``pitch`` elements."""
    strides = strides_of(shape, pitch)
    parts = [c if s == 1 else f"{c} * {s}" for c, s in zip(at, strides, strict=True) if c != "0"]
    return " + ".join(parts) or "0"


def strides_of(shape: tuple[int, ...], pitch: int) -> list[int]:
    out, step = [1], pitch
    for d in reversed(shape[:-1]):
        out.append(step)
        step *= d
    return list(reversed(out))
