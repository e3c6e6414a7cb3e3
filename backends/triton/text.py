"""The text of a Triton kernel: the names that it must not take, and its barrier."""

from __future__ import annotations

from ..gpu import text


class Text(text.Text):
    reserved = frozenset({"triton", "tl", "tile", "float", "range", "min", "max"})
    barrier = "tl.debug_barrier()"
