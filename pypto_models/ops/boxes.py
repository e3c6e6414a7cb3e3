"""Boxes: the checks and costs shared by ops that read or write a rectangle of a tensor or a tile."""

from __future__ import annotations

from typing import Any

from ..errors import Diag, user_error
from ..ir.expr import Expr, as_dim, binary, dim_expr, index
from ..ir.nodes import Let
from ..ir.types import Dim
from .common import require, show_dim, smaller, tensor_type
from .registry import Access, Cost, OpDef

Index = tuple[Expr, ...]


def check_rank(name: str, rank: int, what: str, given: tuple[object, ...]) -> None:
    """Refuse a list that does not have one entry per axis."""
    require(
        len(given) == rank, Diag.SHAPE, f"pl.{name}",
        f"{what} has {len(given)} entries, the operand {rank} axes", f"give {rank} entries",
    )  # fmt: skip


def check_in_bounds(
    name: str, extents: tuple[Dim, ...], offset: Index, size: tuple[Dim, ...], fix: str = ""
) -> None:
    """Refuse an access that is provably out of bounds."""
    for axis, (extent, start, count) in enumerate(zip(extents, offset, size, strict=True)):
        end, low = as_dim(binary("+", start, dim_expr(count))), as_dim(start)
        if smaller(extent, end) or smaller(low, 0):
            raise user_error(
                Diag.OUT_OF_BOUNDS, op=f"pl.{name}",
                why=f"elements {show_dim(low)}..{show_dim(end)} of axis {axis}, which has {show_dim(extent)}",
                fix=fix or "indices run from 0 to the extent",
            )  # fmt: skip


SLICE_FIX = "slice takes sizes first, then offsets; clamp=True or valid_shape= cut the end off"


def check_dropped(name: str, shape: tuple[Dim, ...], drop_dims: tuple[int, ...] | None) -> None:
    """Refuse to drop an axis that does not exist or has more than one element."""
    for axis in drop_dims or ():
        known = 0 <= axis < len(shape)
        require(
            known and shape[axis] == 1, Diag.SHAPE, f"pl.{name}",
            f"drop_dims has axis {axis}, which has {show_dim(shape[axis])} elements" if known
            else f"drop_dims has axis {axis} of a shape with {len(shape)}",
            "drop axes of one element",
        )  # fmt: skip


def dropped(shape: tuple[Any, ...], drop_dims: tuple[int, ...] | None) -> tuple[Any, ...]:
    """Extents without the axes in ``drop_dims``."""
    return tuple(d for i, d in enumerate(shape) if i not in (drop_dims or ()))


def valid_dims(
    name: str,
    shape: tuple[int, ...],
    extents: tuple[Dim, ...],
    offset: Index,
    valid: Index | None,
    clamp: bool,
) -> tuple[Dim, ...]:
    """The valid rectangle of a box of ``shape`` at ``offset``; ``clamp`` cuts it at ``extents``."""
    out: list[Dim] = []
    for axis, size in enumerate(shape):
        v: Expr = index(size) if valid is None else valid[axis]
        if clamp:
            room = binary("max", binary("-", dim_expr(extents[axis]), offset[axis]), index(0))
            v = binary("min", v, room)
        d = as_dim(v)
        require(
            not smaller(size, d) and not smaller(d, 0), Diag.SHAPE, f"pl.{name}",
            f"valid_shape is {show_dim(d)} on axis {axis}, the tile has {size}",
            "valid_shape lies within the shape",
        )  # fmt: skip
        out.append(d)
    return tuple(out)


def check_valid(name: str, valid: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """The run-time side of :func:`valid_dims`."""
    if any(not 0 <= v <= d for v, d in zip(valid, shape, strict=True)):
        raise user_error(
            Diag.SHAPE, op=f"pl.{name}", why=f"the valid shape is {list(valid)}, the tile has {list(shape)}",
            fix="bound run-time extents with pl.min and pl.max",
        )  # fmt: skip


def move_cost(let: Let) -> Cost:
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


def accepts(region: bool, *kinds: type) -> Any:
    """The overload for a first operand of these types, inside or outside of regions."""
    return lambda first, inside: isinstance(first, kinds) and inside == region
