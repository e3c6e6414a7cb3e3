"""State of one elaboration: frames of names, the block being built, where we are, what went wrong.

Values of names are IR expressions (scalars, tiles, tensors, task ids, arrays), Python constants (dtypes,
enums, strings), tuples of values, markers, kernels, or :class:`Undefined`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import Diag, Span, UserError, located
from ..ir.expr import Expr, Var
from ..ir.nodes import Block, Let, Operation, Stmt
from ..ir.types import Type
from .kernel import Kernel


@dataclass(frozen=True)
class Undefined:
    """A name without a value on some path; reading it raises ``error``."""

    error: UserError


@dataclass(frozen=True)
class Poisoned:
    """The value of something that already has an error; what depends on it stays silent."""


POISON = Poisoned()


class Suppressed(Exception):
    """An operand is poisoned: its error is already reported."""


@dataclass
class Frame:
    """The names of one kernel being elaborated."""

    kernel: Kernel
    names: dict[str, Any] = field(default_factory=dict)


@dataclass
class Place:
    """Where the statement under elaboration stands."""

    region: str | None = None  # the construct, "pl.at" or "pl.spmd", or None outside
    block: Var | None = None  # the index of the spmd grid


class Context:
    """Builder and symbol table.  ``collect`` gathers errors statement by statement instead of stopping."""

    def __init__(self, constants: dict[str, Any] | None = None, collect: bool = False) -> None:
        self.constants = dict(constants or {})
        self.used_constants: set[str] = set()
        self.collect = collect
        self.errors: list[UserError] = []
        self.warnings: list[str] = []
        self.placeholders: set[Var] = set()  # tiles of pl.create_tensor: no element has a value yet
        self.frames: list[Frame] = []
        self.place = Place()
        self._blocks: list[list[Stmt]] = []

    # --- frames and names
    @property
    def frame(self) -> Frame:
        return self.frames[-1]

    @property
    def names(self) -> dict[str, Any]:
        return self.frames[-1].names

    def snapshot(self) -> list[dict[str, Any]]:
        """The names of every frame, to come back to."""
        return [dict(f.names) for f in self.frames]

    def restore(self, saved: list[dict[str, Any]]) -> None:
        for frame, names in zip(self.frames, saved, strict=True):
            frame.names = dict(names)

    def rebind(self, old: Var, new: Var) -> None:
        """An op changed ``old`` in place: every name bound to it, in every frame, now means ``new``."""
        for frame in self.frames:
            for name, value in frame.names.items():
                frame.names[name] = _replaced(value, old, new)

    # --- building
    @property
    def block(self) -> list[Stmt]:
        return self._blocks[-1]

    @contextmanager
    def new_block(self) -> Iterator[list[Stmt]]:
        self._blocks.append([])
        try:
            yield self._blocks[-1]
        finally:
            self._blocks.pop()

    @contextmanager
    def inside(self, region: str, block: Var | None) -> Iterator[None]:
        saved, self.place = self.place, Place(region, block)
        try:
            yield
        finally:
            self.place = saved

    def emit(self, stmt: Stmt) -> None:
        self.block.append(stmt)

    def let(self, op: Operation, args: tuple[Any, ...], types: tuple[Type, ...], name: str, span: Span) -> Let:
        stmt = Let(tuple(Var(name, t, span) for t in types), op, args, span)
        if op.name == "create_tile":
            self.placeholders.add(stmt.result)
        self.emit(stmt)
        return stmt

    # --- places and errors
    def span(self, node: ast.AST) -> Span:
        n: Any = node
        return Span(self.frame.kernel.file, n.lineno, n.col_offset, n.end_lineno or 0, n.end_col_offset or 0)

    @contextmanager
    def at(self, node: ast.AST) -> Iterator[Span]:
        span = self.span(node)
        with located(span):
            yield span

    def error(self, diag: Diag, node: ast.AST, **fields: object) -> UserError:
        return UserError(diag, self.span(node), fields)

    def report(self, error: UserError) -> None:
        """Record an error and go on, or raise it."""
        for frame in reversed(self.frames[1:]):
            note = f"in the inline kernel {frame.kernel.name}"
            if note not in error.notes:
                error.notes.append(note)
        if not self.collect:
            raise error
        self.errors.append(error)


def _replaced(value: Any, old: Var, new: Var) -> Any:
    if value is old:
        return new
    if isinstance(value, tuple) and any(_replaced(v, old, new) is not v for v in value):
        return tuple(_replaced(v, old, new) for v in value)
    return value


def frozen(block: list[Stmt]) -> Block:
    return tuple(block)


def is_ir(value: Any) -> bool:
    return isinstance(value, Expr)
