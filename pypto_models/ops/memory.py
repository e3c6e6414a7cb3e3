"""Ops that make, view, load and store data.

A tensor in global memory is a buffer; ``slice`` of it is a view outside of a region and a load inside.
``assemble`` writes a tile's valid rectangle, into a tensor (a store) or into another tile (an insert).
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import Diag, user_error
from ..ir.expr import Expr, Var, as_dim, binary, dim_expr, index
from ..ir.nodes import Let, Unit
from ..ir.types import BF16, FP32, INT32, Dim, DType, Mem, ScalarType, TensorType, TileType
from .common import describe, require, smaller, static_shape, tensor_type, tile_type
from .elementwise import pad_number
from .registry import Access, Cost, Effect, Kind, OpDef, OpParam, Sample, T, op
from .value import GlobalMemory, TileValue, torch_dtype

Index = tuple[Expr, ...]


# --------------------------------------------------------------------------------------------- helpers
def _rank(name: str, rank: int, what: str, given: tuple[object, ...]) -> None:
    require(
        len(given) == rank, Diag.SHAPE, f"pl.{name}", f"{what} has {len(given)} entries, the operand {rank} axes",
        f"give {rank} entries",
    )  # fmt: skip


def _in_bounds(name: str, extents: tuple[Dim, ...], offset: Index, size: tuple[Dim, ...]) -> None:
    """Refuse an access that is provably out of bounds."""
    for axis, (extent, start, count) in enumerate(zip(extents, offset, size, strict=True)):
        end = as_dim(binary("+", start, dim_expr(count)))
        low = as_dim(start)
        if smaller(extent, end) or smaller(low, 0):
            raise user_error(
                Diag.OUT_OF_BOUNDS, op=f"pl.{name}",
                why=f"elements {low}..{end} of axis {axis}, which has {extent}",
                fix="slice takes sizes first, then offsets; clamp=True or valid_shape= cut the end off",
            )  # fmt: skip


def _dropped(shape: tuple[Any, ...], drop_dims: tuple[int, ...] | None) -> tuple[Any, ...]:
    return tuple(d for i, d in enumerate(shape) if i not in (drop_dims or ()))


def _valid_dims(
    name: str, shape: tuple[int, ...], extents: tuple[Dim, ...], offset: Index, valid: Index | None, clamp: bool
) -> tuple[Dim, ...]:
    out: list[Dim] = []
    for axis, size in enumerate(shape):
        v: Expr = index(size) if valid is None else valid[axis]
        if clamp:
            room = binary("max", binary("-", dim_expr(extents[axis]), offset[axis]), index(0))
            v = binary("min", v, room)
        d = as_dim(v)
        require(
            not smaller(size, d) and not smaller(d, 0), Diag.SHAPE, f"pl.{name}",
            f"valid_shape is {d} on axis {axis}, the tile has {size}", "valid_shape lies within the shape",
        )  # fmt: skip
        out.append(d)
    return tuple(out)


def _check_valid(name: str, valid: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """The run-time side of :func:`_valid_dims`."""
    if any(not 0 <= v <= d for v, d in zip(valid, shape, strict=True)):
        raise user_error(
            Diag.SHAPE, op=f"pl.{name}", why=f"the valid shape is {list(valid)}, the tile has {list(shape)}",
            fix="bound run-time extents with pl.min and pl.max",
        )  # fmt: skip


def _move_cost(let: Let) -> Cost:
    """Bytes that the access moves: the whole box, since the valid part is known only at run time."""
    total = 0
    for a in _access_of(let):
        n = tensor_type(a.tensor).dtype.bytes
        for d in a.shape:
            n *= d if isinstance(d, int) else 1
        total += n
    return Cost(bytes=total)


def _access_of(let: Let) -> tuple[Access, ...]:
    op_def = let.op
    return op_def.access(let) if isinstance(op_def, OpDef) else ()


def _in(region: bool, *kinds: type) -> Any:
    return lambda first, inside: isinstance(first, kinds) and inside == region


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
    t: Expr, shape: Index, offset: Index, valid: Index | None, drop: tuple[int, ...] | None, pad: Any, clamp: bool
) -> TensorType:
    base = tensor_type(t)
    _rank("slice", base.rank, "the shape", shape)
    _rank("slice", base.rank, "the offset", offset)
    require(
        valid is None and pad is None and not clamp, Diag.BAD_ARGUMENT, "pl.slice",
        "valid_shape, pad_value and clamp make a tile, and outside of a region a slice is a view",
        "slice inside of the region",
    )  # fmt: skip
    dims = tuple(as_dim(d) for d in shape)
    _in_bounds("slice", base.shape, offset, dims)
    return TensorType(_dropped(dims, drop), base.dtype)


def _view_reference(t: GlobalMemory, shape: Any, offset: Any, valid: Any, drop: Any, pad: Any, clamp: Any) -> Any:
    out = t.view(offset, shape)
    return out if not drop else out.reshape(_dropped(shape, drop))


def _load_infer(
    t: Expr, shape: Index, offset: Index, valid: Index | None, drop: tuple[int, ...] | None, pad: Any, clamp: bool
) -> TileType:
    base = tensor_type(t)
    _rank("slice", base.rank, "the shape", shape)
    _rank("slice", base.rank, "the offset", offset)
    if valid is not None:
        _rank("slice", base.rank, "valid_shape", valid)
    dims = static_shape("slice", shape)
    live = _valid_dims("slice", dims, base.shape, offset, valid, clamp)
    _in_bounds("slice", base.shape, offset, live)
    dropped = _dropped(dims, drop)
    return TileType(dropped, base.dtype, dropped if pad is not None else _dropped(live, drop))


def _load_reference(
    t: GlobalMemory, shape: Any, offset: Any, valid: Any, drop: Any, pad: Any, clamp: bool
) -> TileValue:
    live = valid if valid is not None else shape
    if valid is not None:
        _check_valid("slice", valid, shape)
    if clamp:
        live = tuple(min(v, max(e - o, 0)) for v, e, o in zip(live, t.shape, offset, strict=True))
    data = t.load(offset, live)
    if pad is not None and tuple(live) != tuple(shape):
        full = torch.full(shape, pad_number(pad, data.dtype), dtype=data.dtype)
        full[tuple(slice(0, d) for d in live)] = data
        data = full
    if drop:
        data = data.reshape(_dropped(tuple(data.shape), drop))
        shape = _dropped(shape, drop)
    return TileValue(data, tuple(shape))


def _load_access(let: Let) -> tuple[Access, ...]:
    base = let.arg("t")
    shape, offset, valid = let.arg("shape"), let.arg("offset"), let.arg("valid_shape")
    dims = tuple(as_dim(d) for d in shape)  # type: ignore[union-attr, arg-type]
    live = tuple(as_dim(d) for d in valid) if valid is not None else dims  # type: ignore[union-attr, arg-type]
    if let.arg("clamp"):
        live = tile_type(let.result).valid if not let.arg("drop_dims") else (None,) * len(dims)  # type: ignore[assignment]
    return (Access(base, Effect.READ, offset, dims, live),)  # type: ignore[arg-type]


def _extract_infer(
    t: Expr, shape: Index, offset: Index, valid: Index | None, drop: tuple[int, ...] | None, pad: Any, clamp: bool
) -> TileType:
    base = tile_type(t)
    _rank("slice", base.rank, "the shape", shape)
    _rank("slice", base.rank, "the offset", offset)
    dims = static_shape("slice", shape)
    live = _valid_dims("slice", dims, base.shape, offset, valid, clamp)
    _in_bounds("slice", base.shape, offset, live)
    cut: list[Dim | None] = []
    for axis, v in enumerate(live):
        whole = base.valid[axis] == base.shape[axis]
        b = base.valid[axis]
        room = None if b is None else as_dim(binary("max", binary("-", dim_expr(b), offset[axis]), index(0)))
        cut.append(v if whole else None if room is None else as_dim(binary("min", dim_expr(v), dim_expr(room))))
    dropped = _dropped(dims, drop)
    return TileType(dropped, base.dtype, dropped if pad is not None else _dropped(tuple(cut), drop))


def _extract_reference(
    t: TileValue, shape: Any, offset: Any, valid: Any, drop: Any, pad: Any, clamp: bool
) -> TileValue:
    live = valid if valid is not None else shape
    if valid is not None:
        _check_valid("slice", valid, shape)
    for o, s, e in zip(offset, live, t.shape, strict=True):
        if o < 0 or (o + s > e and not clamp):
            raise user_error(
                Diag.BOUNDS, op="pl.slice", access="reads", tensor="a tile", index=list(offset),
                extents=list(t.shape), fix="clamp=True or valid_shape= cut the end off",
            )  # fmt: skip
    box = tuple(slice(o, o + s) for o, s in zip(offset, live, strict=True))
    data = t.data[box]
    written = t.written[box] if t.written is not None else None
    if pad is not None and tuple(data.shape) != tuple(shape):
        full = torch.full(shape, pad_number(pad, data.dtype), dtype=data.dtype)
        full[tuple(slice(0, d) for d in data.shape)] = data
        data = full
    if drop:
        data = data.reshape(_dropped(tuple(data.shape), drop))
        written = written.reshape(data.shape) if written is not None else None
        shape = _dropped(shape, drop)
    return TileValue(data, tuple(shape), written)


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
    "view", OpParam("t", Kind.TENSOR), *_SLICE, spelling="slice",
    doc="Outside of a region: a view of a tensor, no data moves.",
    infer=_view_infer, unit=Unit.NONE, reference=_view_reference, accepts=_in(False, TensorType), outside=True,
    alias="t",
)  # fmt: skip
LOAD = op(
    "load", OpParam("t", Kind.TENSOR), *_SLICE, spelling="slice",
    doc="Inside a region: load the box of ``shape`` at ``offset`` into a tile.  ``valid_shape`` marks the live "
    "rectangle; the rest is undefined until pl.fillpad (``pad_value`` fills at once).  An access that is "
    "provably out of bounds is an error unless ``clamp`` cuts the valid rectangle at the tensor's end.  "
    "``t[a:b, i]`` is sugar.",
    infer=_load_infer, unit=Unit.NONE, reference=_load_reference, access=_load_access, cost=_move_cost,
    accepts=_in(True, TensorType),
)  # fmt: skip
EXTRACT = op(
    "extract", OpParam("t", Kind.TILE), *_SLICE, spelling="slice",
    doc="A box of a tile, as a new tile.",
    infer=_extract_infer, reference=_extract_reference, accepts=_in(True, TileType),
    split=_whole_on_axis("slice"),
    samples=(
        Sample((T((16, 32), FP32), (8, 16), (8, 16))),
        Sample((T((16, 32), BF16, (10, 32)), (8, 16), (8, 0))),
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
        f"the target is {describe(target)} and the source {describe(s)}", "reshape the source to the target's rank",
    )  # fmt: skip
    _rank("assemble", target.rank, "the offset", offset)
    require(
        s.dtype == target.dtype, Diag.DTYPE, "pl.assemble",
        f"the target is {target.dtype} and the source {s.dtype}", f"pl.cast(source, pl.{target.dtype})",
    )  # fmt: skip
    live = tuple(v if isinstance(v, int) else 0 for v in s.valid)
    _in_bounds("assemble", target.shape, offset, live)
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
    whole = s.is_full and s.shape == t.shape
    return TileType(t.shape, t.dtype, t.shape if whole else t.valid)


def _insert_reference(target: TileValue, source: TileValue, offset: Any, atomic: str) -> TileValue:
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
    doc="Write the valid rectangle of ``source`` into ``target`` at ``offset``, in place, and give ``target`` "
    "back.  ``t[a:b, :] = v`` is sugar.  ``atomic=pl.AtomicType.Add`` adds, in no particular order; the target "
    "must be zeroed before.  Note that ``out = value`` only rebinds a Python name.",
    infer=_store_infer, unit=Unit.NONE, reference=_store_reference, access=_store_access, cost=_move_cost,
    accepts=_in(True, TensorType),
)  # fmt: skip
INSERT = op(
    "insert", OpParam("target", Kind.TILE), *_ASSEMBLE, spelling="assemble",
    doc="Write a tile into a box of a tile.",
    infer=_insert_infer, reference=_insert_reference, accepts=_in(True, TileType), inplace=("target",),
    mutates="target",
    split=_whole_on_axis("assemble"),
    samples=(
        Sample((T((16, 32), FP32), T((8, 16), FP32), (8, 16))),
        Sample((T((16, 32), FP32), T((8, 16), FP32, (3, 5)), (2, 7))),
    ),
)  # fmt: skip


# --------------------------------------------------------------------------------------------- create
def _create_infer(shape: Index, dtype: DType, layout: Any, manual: bool, init: Expr | None) -> TensorType:
    return TensorType(tuple(as_dim(d) for d in shape), dtype)


def _create_tile_infer(shape: Index, dtype: DType, layout: Any, manual: bool, init: Expr | None) -> TileType:
    dims = static_shape("create_tensor", shape)
    return TileType(dims, dtype, dims)


def _create_tile_reference(shape: Any, dtype: DType, layout: Any, manual: bool, init: Any) -> TileValue:
    data = torch.zeros(shape, dtype=torch_dtype(dtype))
    if init is not None:
        return TileValue(data + init, tuple(shape))
    return TileValue(data, tuple(shape), torch.zeros(shape, dtype=torch.bool))


_CREATE = (
    OpParam("shape", Kind.INDEX),
    OpParam("dtype", Kind.DTYPE),
    OpParam("layout", Kind.CHOICE, "ND", ("ND", "NZ")),
    OpParam("manual_dep", Kind.BOOL, False),
    OpParam("init_value", Kind.SCALAR, None),
)
CREATE = op(
    "create", *_CREATE, spelling="create_tensor",
    doc="Outside of a region: a tensor in global memory, undefined unless ``init_value`` is given.",
    infer=_create_infer, unit=Unit.NONE, accepts=lambda first, inside: not inside, outside=True,
)  # fmt: skip
CREATE_TILE = op(
    "create_tile", *_CREATE, spelling="create_tensor",
    doc="Inside a region: a tile without a value, the place of an accumulator.",
    infer=_create_tile_infer, unit=Unit.NONE, reference=_create_tile_reference,
    accepts=lambda first, inside: inside,
)  # fmt: skip


def _full_infer(shape: Index, dtype: DType, value: Expr) -> TileType:
    dims = static_shape("full", shape)
    return TileType(dims, dtype, dims)


def _full_reference(shape: Any, dtype: DType, value: Any) -> TileValue:
    return TileValue(torch.full(shape, value, dtype=torch_dtype(dtype)), tuple(shape))


FULL = op(
    "full", OpParam("shape", Kind.INDEX), OpParam("dtype", Kind.DTYPE), OpParam("value", Kind.SCALAR),
    doc="A tile with one value everywhere.", infer=_full_infer, reference=_full_reference,
    samples=(Sample(((16, 32), FP32, 1.5)), Sample(((8, 8), INT32, 3))),
)  # fmt: skip


# --------------------------------------------------------------------------------------------- reshape
def _same_count(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool | None:
    """Whether two shapes hold the same number of elements; None if that is known at run time only."""
    x: Expr = index(1)
    y: Expr = index(1)
    for d in a:
        x = binary("*", x, dim_expr(d))
    for d in b:
        y = binary("*", y, dim_expr(d))
    xa, ya = as_dim(x), as_dim(y)
    return xa == ya if isinstance(xa, int) and isinstance(ya, int) else None


def _check_count(a: TensorType | TileType, shape: tuple[Dim, ...]) -> None:
    require(
        _same_count(a.shape, shape) is not False, Diag.SHAPE, "pl.reshape",
        f"{describe(a)} does not have the elements of {list(shape)}", "the product of the extents stays the same",
    )  # fmt: skip


def _view_reshape_infer(t: Expr, shape: Index) -> TensorType:
    base, dims = tensor_type(t), tuple(as_dim(d) for d in shape)
    _check_count(base, dims)
    return TensorType(dims, base.dtype)


def _view_reshape_reference(t: GlobalMemory, shape: Any) -> Any:
    return t.reshape(shape)


def _reshape_infer(x: Expr, shape: Index) -> TileType:
    t, dims = tile_type(x), static_shape("reshape", shape)
    _check_count(t, dims)
    if t.is_full:
        return TileType(dims, t.dtype, dims)
    # A partly valid tile keeps its meaning only while rows stay rows
    require(
        t.rank == len(dims) and t.shape == dims, Diag.SHAPE, "pl.reshape",
        f"{describe(t)} has a valid rectangle, which a reshape to {list(dims)} would tear apart",
        "pl.fillpad it first",
    )  # fmt: skip
    return TileType(dims, t.dtype, t.valid)


def _reshape_reference(x: TileValue, shape: Any) -> TileValue:
    data = x.read()
    if x.valid != x.shape and tuple(shape) != x.shape:
        raise user_error(
            Diag.INVALID_READ, op="pl.reshape", tensor="a tile",
            why=f"only {list(x.valid)} of {list(x.shape)} is valid", fix="pl.fillpad it first",
        )  # fmt: skip
    return TileValue(data.reshape(shape) if x.valid == x.shape else data, tuple(shape))


def _reshape_split(axis: int, let: Let) -> str | None:
    old, new = tile_type(let.args[0]), tile_type(let.result)
    if old.shape == new.shape:
        return None
    if axis == 0 and old.shape[0] % 2 == 0 and new.shape[0] % 2 == 0:
        return None  # row-major: the first half of the rows is the first half of the elements on both sides
    if old.shape[axis] == 1 and (new.rank <= axis or new.shape[axis] == 1):
        return None
    return f"it moves elements of {describe(old)} across the lanes of {describe(new)}"


_SHAPE_ONLY = OpParam("shape", Kind.INDEX)
VIEW_RESHAPE = op(
    "view_reshape", OpParam("t", Kind.TENSOR), _SHAPE_ONLY, spelling="reshape",
    doc="A tensor with other extents, row-major, no data moves.", infer=_view_reshape_infer, unit=Unit.NONE,
    reference=_view_reshape_reference, accepts=lambda first, inside: isinstance(first, TensorType), outside=True,
    alias="t",
)  # fmt: skip
RESHAPE = op(
    "reshape", OpParam("x", Kind.TILE), _SHAPE_ONLY, doc="A tile with other extents, row-major, zero copy.",
    infer=_reshape_infer, reference=_reshape_reference, accepts=_in(True, TileType), split=_reshape_split,
    alias="x",
    samples=(Sample((T((16, 32), FP32), (32, 16))), Sample((T((1, 64), BF16), (4, 16)))),
)  # fmt: skip


def _validshape_infer(x: Expr, rows: Expr, cols: Expr) -> TileType:
    t = tile_type(x)
    require(t.rank == 2, Diag.SHAPE, "pl.set_validshape", f"needs two axes, got {describe(t)}", "reshape it first")
    live = tuple(as_dim(d) for d in (rows, cols))
    for d, old, extent in zip(live, t.valid, t.shape, strict=True):
        require(
            not smaller(extent, d) and (old is None or not smaller(old, d)), Diag.SHAPE, "pl.set_validshape",
            f"{d} is more than the {old} valid elements of {describe(t)}",
            "the valid rectangle can only shrink; pl.fillpad makes elements valid",
        )  # fmt: skip
    return TileType(t.shape, t.dtype, live)


def _validshape_reference(x: TileValue, rows: int, cols: int) -> TileValue:
    _check_valid("set_validshape", (rows, cols), x.shape)
    return TileValue(x.read((rows, cols)), x.shape)


SET_VALIDSHAPE = op(
    "set_validshape", OpParam("x", Kind.TILE), OpParam("rows", Kind.SCALAR), OpParam("cols", Kind.SCALAR),
    doc="Shrink the valid rectangle to [rows, cols]; no data moves.", infer=_validshape_infer,
    reference=_validshape_reference, alias="x",
    samples=(Sample((T((16, 32), FP32), 5, 17)),),
)  # fmt: skip


def _transpose_infer(x: Expr, axis1: Expr, axis2: Expr) -> TileType:
    t = tile_type(x)
    require(
        t.rank == 2, Diag.SHAPE, "pl.transpose", f"needs two axes, got {describe(t)}", "reshape it first"
    )  # fmt: skip
    return TileType(t.shape[::-1], t.dtype, t.valid[::-1])


def _transpose_reference(x: TileValue, axis1: int, axis2: int) -> TileValue:
    return TileValue(x.read().t().contiguous(), x.shape[::-1])


def _transpose_split(axis: int, let: Let) -> str | None:
    t = tile_type(let.args[0])
    return None if t.shape[axis] == 1 and t.shape[1 - axis] == 1 else "it moves elements across the split axis"


TRANSPOSE = op(
    "transpose", OpParam("x", Kind.TILE), OpParam("axis1", Kind.SCALAR), OpParam("axis2", Kind.SCALAR),
    doc="Exchange the two axes of a tile.", infer=_transpose_infer, reference=_transpose_reference,
    split=_transpose_split, samples=(Sample((T((16, 32), FP32), 0, 1)), Sample((T((16, 32), BF16, (5, 9)), 0, 1))),
)  # fmt: skip


# --------------------------------------------------------------------------------------------- one element
_AT = OpParam("index", Kind.INDEX)


def _read_infer(t: Expr, at: Index) -> ScalarType:
    base: Any = t.type if isinstance(t, Var) else None
    _rank("read", len(base.shape), "the index", at)
    _in_bounds("read", tuple(base.shape), at, (1,) * len(at))
    return ScalarType(base.dtype)


def _read_tensor_reference(t: GlobalMemory, at: Any) -> Any:
    return t.load(at, (1,) * len(at)).item()


def _read_tile_reference(t: TileValue, at: Any) -> Any:
    return t.read()[at].item() if all(0 <= i < d for i, d in zip(at, t.valid, strict=True)) else _bad_tile_read(t, at)


def _bad_tile_read(t: TileValue, at: Any) -> None:
    raise user_error(
        Diag.INVALID_READ, op="pl.read", tensor="a tile",
        why=f"element {list(at)} of the valid {list(t.valid)}", fix="guard the index",
    )  # fmt: skip


def _element(effect: Effect, name: str) -> Any:
    def access(let: Let) -> tuple[Access, ...]:
        at: Any = let.arg("index")
        one = (1,) * len(at)
        tensor: Any = let.arg(name)
        return (Access(tensor, effect, at, one, one),)

    return access


def _no_element_split(axis: int, let: Let) -> str | None:
    t = tile_type(let.args[0])
    if t.rank <= axis or t.shape[axis] == 1:
        return None
    return f"one element of {describe(t)} lives in one lane only"


READ = op(
    "read_tensor", OpParam("t", Kind.TENSOR), _AT, spelling="read",
    doc="One element of a tensor as a scalar; ``t[i, j]`` is sugar.", infer=_read_infer, unit=Unit.NONE,
    reference=_read_tensor_reference, access=_element(Effect.READ, "t"), cost=_move_cost, outside=True,
    accepts=lambda first, inside: isinstance(first, TensorType), namespaces=("", "tensor"),
)  # fmt: skip
READ_TILE = op(
    "read_tile", OpParam("t", Kind.TILE), _AT, spelling="read", doc="One element of a tile as a scalar.",
    infer=_read_infer, reference=_read_tile_reference, accepts=_in(True, TileType), split=_no_element_split,
)  # fmt: skip


def _write_infer(t: Expr, at: Index, value: Expr) -> None:
    base = tensor_type(t)
    _rank("write", base.rank, "the index", at)
    _in_bounds("write", base.shape, at, (1,) * len(at))


def _write_reference(t: GlobalMemory, at: Any, value: Any) -> None:
    t.store(at, torch.tensor(value).reshape((1,) * len(at)), False)


WRITE = op(
    "write_tensor", OpParam("t", Kind.TENSOR), _AT, OpParam("value", Kind.SCALAR), spelling="write",
    doc="Write one element of a tensor.  A bulk store and a scalar write to one tensor do not mix in a region.",
    infer=_write_infer, unit=Unit.VEC, reference=_write_reference, access=_element(Effect.WRITE, "t"),
    cost=_move_cost, accepts=_in(True, TensorType), namespaces=("", "tensor"),
)  # fmt: skip


def _write_tile_infer(t: Expr, at: Index, value: Expr) -> TileType:
    base = tile_type(t)
    _rank("write", base.rank, "the index", at)
    _in_bounds("write", base.shape, at, (1,) * len(at))
    return TileType(base.shape, base.dtype, base.valid)


def _write_tile_reference(t: TileValue, at: Any, value: Any) -> TileValue:
    one = torch.full((1,) * len(at), value, dtype=t.data.dtype)
    return _insert_reference(t, TileValue(one, (1,) * len(at)), at, "none")


WRITE_TILE = op(
    "write_tile", OpParam("t", Kind.TILE), _AT, OpParam("value", Kind.SCALAR), spelling="write",
    doc="Write one element of a tile.", infer=_write_tile_infer, reference=_write_tile_reference,
    accepts=_in(True, TileType), split=_no_element_split, inplace=("t",), mutates="t",
)  # fmt: skip


# --------------------------------------------------------------------------------------------- move
def _move_infer(x: Expr, target_memory: Mem) -> TileType:
    return tile_type(x).with_(space=target_memory)


def _move_reference(x: TileValue, target_memory: Mem) -> TileValue:
    return x


MOVE = op(
    "move", OpParam("x", Kind.TILE), OpParam("target_memory", Kind.MEM),
    doc="Move a tile to another memory space; values stay.  The compiler inserts these between the cube and the "
    "vector part of a mixed region.", infer=_move_infer, unit=Unit.NONE, reference=_move_reference,
    samples=(Sample((T((16, 32), FP32), Mem.Vec)),),
)  # fmt: skip

OPS: tuple[OpDef, ...] = (
    VIEW, LOAD, EXTRACT, STORE, INSERT, CREATE, CREATE_TILE, FULL, VIEW_RESHAPE, RESHAPE, SET_VALIDSHAPE,
    TRANSPOSE, READ, READ_TILE, WRITE, WRITE_TILE, MOVE,
)  # fmt: skip
