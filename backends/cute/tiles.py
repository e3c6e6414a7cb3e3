"""Tiles as functions of their coordinates.

A tile is not stored when it is made.  It knows how to write the value of its element (r, c), and asks its
operands for theirs; elementwise ops, broadcasts, slices, reshapes, casts and loads are only compositions.  A
value is computed where something needs it: at a store, a reduction, a product, or where a loop carries it.
So a chain of vector ops behind a product runs on the product's fragments in registers, and anywhere else in
the registers of the thread that owns the element, with nothing in between in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pypto_models.ir.expr import Var
from pypto_models.ir.types import DType

from .layouts import Layout
from .scalars import DSL_TYPES
from .text import Text

Coordinates = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Shared:
    """A tile in shared memory: row-major, ``pitch`` elements per row of its last axis."""

    name: str  # of the pointer
    dtype: DType
    pitch: int


@dataclass(frozen=True, eq=False)
class Tile:
    """``at(text, coordinates)`` writes what it needs and gives the element as an expression of ``dtype``.

    ``valid`` are the texts of the valid extents.  ``reads`` names the tensors that the element still comes
    from, so that a later write to one of them forces the tile into memory first.  ``plain`` says, for a load
    that nothing changed, where its first element is and how many rows are there (pointer, pitch, rows); valid
    rows that are not there are zero.
    """

    shape: tuple[int, ...]
    dtype: DType
    valid: tuple[str, ...]
    at: Callable[[Text, Coordinates], str]
    reads: frozenset[Var] = frozenset()
    shared: Shared | None = None
    plain: tuple[str, str, str] | None = None
    uniform: bool = False  # one value everywhere, which all threads know
    registers: str = ""  # the name of its register array
    layout: Layout = None  # of whom it may be asked: anyone, or the threads that hold its fragments

    def value(self, text: Text, at: Coordinates) -> str:
        """The element, written once per run of lines."""
        return text.once((id(self), at), "v", self.at(text, at)) if not self.uniform else self.at(text, at)

    @property
    def full(self) -> bool:
        return self.valid == tuple(str(d) for d in self.shape)


def inside(tile: Tile, at: Coordinates) -> str | None:
    """The condition that a coordinate is valid; None if all are."""
    tests = [f"({a} < {v})" for a, v, d in zip(at, tile.valid, tile.shape, strict=True) if v != str(d)]
    return " & ".join(tests) if tests else None


def as_type(value: str, old: DType, new: DType) -> str:
    """A conversion that the DSL rounds to nearest even, or exactly."""
    return value if old == new else f"{DSL_TYPES[new.name]}({value})"
