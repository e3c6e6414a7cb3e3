"""The text of addresses: where a view starts and where its elements lie, as Int64."""

from __future__ import annotations

from collections.abc import Callable

from pypto_models.ir.expr import Const, Expr

from ..gpu.tensors import View

Write = Callable[[Expr], str]
"""Gives the text of a scalar expression."""


def start_of(view: View, write: Write) -> str:
    """The element offset of a view in its base."""
    return " + ".join(f"Int64({write(i)}) * {_stride(write, s)}" for i, s in view.offsets) or "Int64(0)"


def element_at(view: View, write: Write, start: str, coordinates: tuple[str, ...]) -> str:
    """The element offset of a coordinate of a view that starts at ``start``."""
    parts = [start] if start != "Int64(0)" else []
    for c, s in zip(coordinates, view.strides, strict=True):
        if c == "0":
            continue
        parts.append(f"Int64({c})" if s == Const(1) else f"Int64({c}) * {_stride(write, s)}")
    return " + ".join(parts) or "Int64(0)"


def _stride(write: Write, s: Expr) -> str:
    return str(s.value) if isinstance(s, Const) else f"Int64({write(s)})"
