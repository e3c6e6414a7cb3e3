"""The text of addresses: where a view starts, in int64, and where the elements of a box lie."""

from __future__ import annotations

from pypto_models.ir.expr import Const, Expr

from ..gpu.tensors import View
from .types import Scalars, wide

SMALL = 2**31  # what an offset in a box stays below, to be worked out in 32 bits


def start_of(view: View, x: Scalars) -> str:
    """The element offset of a view in its base."""
    return " + ".join(times(wide(x, i), x, s) for i, s in view.offsets) or "0"


def element_at(view: View, x: Scalars, coordinates: tuple[Expr, ...]) -> str:
    """The element offset of a coordinate in the view's base."""
    parts = [] if not view.offsets else [start_of(view, x)]
    for c, s in zip(coordinates, view.strides, strict=True):
        if not (isinstance(c, Const) and c.value == 0):
            parts.append(times(wide(x, c), x, s))
    return " + ".join(parts) or "0"


def times(text: str, x: Scalars, stride: Expr) -> str:
    if stride == Const(1):
        return text
    return f"{text} * {stride.value if isinstance(stride, Const) else wide(x, stride)}"


def step_along(coordinate: str, extent: int, x: Scalars, stride: Expr) -> str:
    """The offset of each element along an axis of a box."""
    if stride == Const(1):
        return coordinate
    if isinstance(stride, Const):
        small = abs(int(stride.value)) * extent < SMALL
        return f"{coordinate if small else f'{coordinate}.to(tl.int64)'} * {stride.value}"
    return f"{coordinate} * {wide(x, stride)}"
