"""``slice`` and ``assemble``: moving a box of a tensor or a tile.

A tensor in global memory is a buffer; ``slice`` of it is a view outside of a region and a load inside.
``assemble`` writes a tile's valid rectangle, into a tensor (a store) or into another tile (an insert).
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import Diag, user_error
from ..ir.expr import Expr, as_dim, binary, dim_expr, index
from ..ir.nodes import Let, Unit
from ..ir.types import BF16, FP32, Dim, TensorType, TileType
from .boxes import (
    SLICE_FIX,
    Index,
    accepts,
    check_dropped,
    check_in_bounds,
    check_rank,
    check_valid,
    dropped,
    move_cost,
    valid_dims,
)
from .common import describe, require, show_dim, smaller, static_shape, tensor_type, tile_type
from .elementwise import pad_number, require_pad
from .registry import Access, Effect, Kind, OpDef, OpParam, Sample, T, op
from .value import Extents, GlobalMemory, TileValue

# --------------------------------------------------------------------------------------------- slice
_SLICE = (
    OpParam("shape", Kind.INDEX),
    OpParam("offset", Kind.INDEX),
    OpParam("valid_shape", Kind.INDEX, None),
    OpParam("drop_dims", Kind.STATIC, None),
    OpParam("pad_value", Kind.PAD, None),
    OpParam("clamp", Kind.BOOL, False),
)


def _view_infer(
    t: Expr,
    shape: Index,
    offset: Index,
    valid: Index | None,
    drop: tuple[int, ...] | None,
    pad: Any,
    clamp: bool,
) -> TensorType:
    base = tensor_type(t)
    check_rank("slice", base.rank, "the shape", shape)
    check_rank("slice", base.rank, "the offset", offset)
    require(
        valid is None and pad is None and not clamp, Diag.BAD_ARGUMENT, "pl.slice",
        "valid_shape, pad_value and clamp make a tile, and outside of a region a slice is a view",
        "slice inside of the region",
    )  # fmt: skip
    dims = tuple(as_dim(d) for d in shape)
    require(
        not any(smaller(d, 1) for d in dims), Diag.SHAPE, "pl.slice",
        f"the view would be [{', '.join(show_dim(d) for d in dims)}]", "every extent is at least 1",
    )  # fmt: skip
    check_dropped("slice", dims, drop)
    check_in_bounds("slice", base.shape, offset, dims, SLICE_FIX)
    return TensorType(dropped(dims, drop), base.dtype)


def _view_reference(
    t: GlobalMemory, shape: Any, offset: Any, valid: Any, drop: Any, pad: Any, clamp: Any
) -> Any:
    out = t.view(offset, shape)
    return out if not drop else out.reshape(dropped(shape, drop))


def _load_infer(
    t: Expr,
    shape: Index,
    offset: Index,
    valid: Index | None,
    drop: tuple[int, ...] | None,
    pad: Any,
    clamp: bool,
) -> TileType:
    base = tensor_type(t)
    check_rank("slice", base.rank, "the shape", shape)
    check_rank("slice", base.rank, "the offset", offset)
    if valid is not None:
        check_rank("slice", base.rank, "valid_shape", valid)
    if pad is not None:
        require_pad("slice", base.dtype, pad)
    dims = static_shape("slice", shape)
    check_dropped("slice", dims, drop)
    live = valid_dims("slice", dims, base.shape, offset, valid, clamp)
    check_in_bounds("slice", base.shape, offset, live, SLICE_FIX)
    kept = dropped(dims, drop)
    return TileType(kept, base.dtype, kept if pad is not None else dropped(live, drop))


def _load_reference(
    t: GlobalMemory, shape: Any, offset: Any, valid: Any, drop: Any, pad: Any, clamp: bool
) -> TileValue:
    live = valid if valid is not None else shape
    if valid is not None:
        check_valid("slice", valid, shape)
    if clamp:
        live = tuple(min(v, max(e - o, 0)) for v, e, o in zip(live, t.shape, offset, strict=True))
    return _boxed(t.load(offset, live), None, tuple(shape), drop, pad)


def _boxed(
    data: torch.Tensor, written: torch.Tensor | None, shape: Extents, drop: Any, pad: Any
) -> TileValue:
    """The tile of a box: padded to ``shape`` and without the axes in ``drop``."""
    if pad is not None and tuple(data.shape) != shape:
        box = tuple(slice(0, d) for d in data.shape)
        full = torch.full(shape, pad_number(pad, data.dtype), dtype=data.dtype)
        full[box] = data
        if written is not None:
            mask = torch.ones(shape, dtype=torch.bool)
            mask[box] = written
            written = mask
        data = full
    if drop:
        if any(data.shape[axis] == 0 for axis in drop):
            raise user_error(
                Diag.INVALID_READ, op="pl.slice", tensor="its operand",
                why="an axis that drop_dims removes has no valid element",
                fix="guard the slice with an `if`",
            )  # fmt: skip
        data, shape = data.reshape(dropped(tuple(data.shape), drop)), dropped(shape, drop)
        written = written.reshape(data.shape) if written is not None else None
    return TileValue(data, shape, written)


def _load_access(let: Let) -> tuple[Access, ...]:
    base: Any = let.arg("t")
    shape, offset, valid = let.arg("shape"), let.arg("offset"), let.arg("valid_shape")
    dims: Any = tuple(as_dim(d) for d in shape)  # type: ignore[union-attr, arg-type]
    live = valid_dims("slice", dims, base.type.shape, offset, valid, bool(let.arg("clamp")))  # type: ignore[arg-type]
    return (Access(base, Effect.READ, offset, dims, live),)  # type: ignore[arg-type]


def _extract_infer(
    t: Expr,
    shape: Index,
    offset: Index,
    valid: Index | None,
    drop: tuple[int, ...] | None,
    pad: Any,
    clamp: bool,
) -> TileType:
    base = tile_type(t)
    check_rank("slice", base.rank, "the shape", shape)
    check_rank("slice", base.rank, "the offset", offset)
    if valid is not None:
        check_rank("slice", base.rank, "valid_shape", valid)
    if pad is not None:
        require_pad("slice", base.dtype, pad)
    dims = static_shape("slice", shape)
    check_dropped("slice", dims, drop)
    live = valid_dims("slice", dims, base.shape, offset, valid, clamp)
    check_in_bounds("slice", base.shape, offset, live, SLICE_FIX)
    cut: list[Dim | None] = []
    for axis, v in enumerate(live):
        whole = base.valid[axis] == base.shape[axis]
        b = base.valid[axis]
        room = None if b is None else as_dim(binary("max", binary("-", dim_expr(b), offset[axis]), index(0)))
        cut.append(
            v if whole else None if room is None else as_dim(binary("min", dim_expr(v), dim_expr(room)))
        )
    kept = dropped(dims, drop)
    return TileType(kept, base.dtype, kept if pad is not None else dropped(tuple(cut), drop))


def _extract_reference(
    t: TileValue, shape: Any, offset: Any, valid: Any, drop: Any, pad: Any, clamp: bool
) -> TileValue:
    live = valid if valid is not None else shape
    if valid is not None:
        check_valid("slice", valid, shape)
    for o, s, e in zip(offset, live, t.shape, strict=True):
        if o < 0 or (o + s > e and not clamp):
            raise user_error(
                Diag.BOUNDS, op="pl.slice", access="reads", tensor="a tile", index=list(offset),
                extents=list(t.shape), fix="clamp=True or valid_shape= cut the end off",
            )  # fmt: skip
    box = tuple(slice(o, o + s) for o, s in zip(offset, live, strict=True))
    written = t.written[box] if t.written is not None else None
    return _boxed(t.data[box], written, tuple(shape), drop, pad)


def _whole_on_axis(name: str) -> Any:
    """Split rule of a box in a tile: legal only where the box spans the whole split axis."""

    def split(axis: int, let: Let) -> str | None:
        big = tile_type(let.args[0])
        small = tile_type(let.arg("source")) if name == "assemble" else tile_type(let.result)
        if big.rank <= axis or big.shape[axis] == 1:
            return None
        offset = let.arg("offset")
        start = offset[axis] if isinstance(offset, tuple) else None
        if big.rank == small.rank and big.shape[axis] == small.shape[axis] and start == index(0):
            return None
        return f"it takes a part of the split axis of {describe(big)}"

    return split


VIEW = op(
    "view", OpParam("t", Kind.TENSOR, synonyms=("input",)), *_SLICE, spelling="slice",
    doc="Outside of a region: a view of a tensor, no data moves.",
    infer=_view_infer, unit=Unit.NONE, reference=_view_reference, accepts=accepts(False, TensorType),
    outside=True, alias="t",
)  # fmt: skip
LOAD = op(
    "load", OpParam("t", Kind.TENSOR, synonyms=("input",)), *_SLICE, spelling="slice",
    doc="Inside a region: load the box of ``shape`` at ``offset`` into a tile.  ``valid_shape`` marks the "
    "live rectangle; the rest is undefined until pl.fillpad (``pad_value`` fills at once).  An access that "
    "is provably out of bounds is an error unless ``clamp`` cuts the valid rectangle at the tensor's end.  "
    "``drop_dims`` removes axes of one element.  ``t[a:b, i]`` is sugar.",
    infer=_load_infer, unit=Unit.NONE, reference=_load_reference, access=_load_access, cost=move_cost,
    accepts=accepts(True, TensorType),
)  # fmt: skip
EXTRACT = op(
    "extract", OpParam("t", Kind.TILE, synonyms=("input",)), *_SLICE, spelling="slice",
    doc="Of a tile: the box of ``shape`` at ``offset``, as a new tile; what is valid of it stays valid.",
    infer=_extract_infer, reference=_extract_reference, accepts=accepts(True, TileType),
    split=_whole_on_axis("slice"),
    samples=(
        Sample((T((16, 32), FP32), (8, 16), (8, 16))),
        Sample((T((16, 32), BF16, (10, 32)), (8, 16), (8, 0))),
        Sample((T((16, 32), FP32), (8, 32), (4, 0))),
    ),
)  # fmt: skip


# --------------------------------------------------------------------------------------------- assemble
_ASSEMBLE = (
    OpParam("source", Kind.TILE),
    OpParam("offset", Kind.INDEX),
    OpParam("atomic", Kind.CHOICE, "none", ("none", "add")),
)

_ATOMIC_TYPES = ("FP32", "BF16", "FP16", "INT32", "INT16", "INT8")


def _check_assemble(target: TensorType | TileType, source: Expr, offset: Index, atomic: str) -> None:
    s = tile_type(source)
    require(
        s.rank == target.rank, Diag.SHAPE, "pl.assemble",
        f"the target is {describe(target)} and the source {describe(s)}",
        "reshape the source to the target's rank",
    )  # fmt: skip
    check_rank("assemble", target.rank, "the offset", offset)
    require(
        s.dtype == target.dtype, Diag.DTYPE, "pl.assemble",
        f"the target is {target.dtype} and the source {s.dtype}", f"pl.cast(source, pl.{target.dtype})",
    )  # fmt: skip
    live = tuple(v if isinstance(v, int) else 0 for v in s.valid)
    check_in_bounds("assemble", target.shape, offset, live)
    require(
        atomic == "none" or target.dtype.name in _ATOMIC_TYPES, Diag.DTYPE, "pl.assemble",
        f"there is no atomic add for {target.dtype}", f"atomic targets: {', '.join(_ATOMIC_TYPES)}",
    )  # fmt: skip


def _store_infer(target: Expr, source: Expr, offset: Index, atomic: str) -> None:
    _check_assemble(tensor_type(target), source, offset, atomic)


def _store_reference(target: GlobalMemory, source: TileValue, offset: Any, atomic: str) -> None:
    target.store(offset, source.read(), atomic == "add")


def _store_access(let: Let) -> tuple[Access, ...]:
    s = tile_type(let.arg("source"))
    effect = Effect.ATOMIC if let.arg("atomic") == "add" else Effect.WRITE
    return (Access(let.arg("target"), effect, let.arg("offset"), s.shape, s.valid),)  # type: ignore[arg-type]


def _insert_infer(target: Expr, source: Expr, offset: Index, atomic: str) -> TileType:
    t = tile_type(target)
    require(
        atomic == "none", Diag.BAD_ARGUMENT, "pl.assemble", "a tile is private to its block",
        "drop atomic=, or assemble into a tensor",
    )  # fmt: skip
    _check_assemble(t, source, offset, atomic)
    s = tile_type(source)
    if s.is_full and s.shape == t.shape:
        return TileType(t.shape, t.dtype, t.shape)
    ends = (as_dim(binary("+", o, dim_expr(d))) for o, d in zip(offset, s.shape, strict=True))
    within = all(
        v == d or (isinstance(v, int) and isinstance(e, int) and e <= v)
        for v, d, e in zip(t.valid, t.shape, ends, strict=True)
    )
    # A write past the valid rectangle may or may not complete the tile.
    return TileType(t.shape, t.dtype, t.valid if within else (None,) * t.rank)


def insert_reference(target: TileValue, source: TileValue, offset: Any, atomic: str) -> TileValue:
    part = source.read()
    end = tuple(o + d for o, d in zip(offset, part.shape, strict=True))
    if any(o < 0 for o in offset) or any(e > s for e, s in zip(end, target.shape, strict=True)):
        raise user_error(
            Diag.BOUNDS, op="pl.assemble", access="writes", tensor="a tile", index=list(offset),
            extents=list(target.shape), fix="the source lies within the target tile",
        )  # fmt: skip
    box = tuple(slice(o, e) for o, e in zip(offset, end, strict=True))
    data = target.data
    written = target.written
    if any(e > v for e, v in zip(end, target.valid, strict=True)):  # the write goes past the valid rectangle
        grown = torch.zeros(target.shape, dtype=data.dtype)
        mask = torch.zeros(target.shape, dtype=torch.bool)
        old = tuple(slice(0, v) for v in target.valid)
        grown[old] = data
        mask[old] = True if written is None else written
        data, written = grown, mask
    data = data.clone()
    data[box] = part
    if written is not None:
        written = written.clone()
        written[box] = True
        written = None if bool(written.all()) else written
    return TileValue(data, target.shape, written)


STORE = op(
    "store", OpParam("target", Kind.TENSOR), *_ASSEMBLE, spelling="assemble",
    doc="Write the valid rectangle of ``source`` into ``target`` at ``offset``, in place, and give "
    "``target`` back.  ``t[a:b, :] = v`` is sugar.  ``atomic=pl.AtomicType.Add`` adds, in no particular "
    "order; the target must be zeroed before.  Note that ``out = value`` only rebinds a Python name.",
    infer=_store_infer, unit=Unit.NONE, reference=_store_reference, access=_store_access, cost=move_cost,
    accepts=accepts(True, TensorType),
)  # fmt: skip
INSERT = op(
    "insert", OpParam("target", Kind.TILE), *_ASSEMBLE, spelling="assemble",
    doc="Into a tile: write the valid rectangle of ``source`` at ``offset``, in place.",
    infer=_insert_infer, reference=insert_reference, accepts=accepts(True, TileType), inplace=("target",),
    mutates="target",
    split=_whole_on_axis("assemble"),
    samples=(
        Sample((T((16, 32), FP32), T((8, 16), FP32), (8, 16))),
        Sample((T((16, 32), FP32), T((8, 16), FP32, (3, 5)), (2, 7))),
        Sample((T((16, 32), FP32), T((16, 8), FP32), (0, 16))),
    ),
)  # fmt: skip

OPS: tuple[OpDef, ...] = (VIEW, LOAD, EXTRACT, STORE, INSERT)
