"""State of one elaboration: frames of names, the block being built, where we are, what went wrong.

Values of names are IR expressions (scalars, tiles, tensors, task ids, arrays), Python constants (dtypes,
enums, strings), tuples of values, markers, kernels, or :class:`Undefined`.

The rules for expressions and statements are spread over several files and need each other.  They meet here:
:class:`Rules` holds the three entry points, and everything else calls ``ctx.evaluate``, ``ctx.branch`` and
``ctx.rules.inline``.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..errors import Diag, Span, UserError, located
from ..ir.expr import Expr, Var
from ..ir.nodes import Block, Let, Operation, Stmt
from ..ir.types import ScalarType, Type
from .kernel import Kernel
from .values import show, type_of

Names: TypeAlias = "list[dict[str, Any]]"


@dataclass(frozen=True)
class Undefined:
    """A name without a value on some path; reading it raises ``error`` at the place of the read."""

    error: UserError

    def read_at(self, span: Span) -> UserError:
        return UserError(self.error.diag, span, dict(self.error.fields), list(self.error.notes))


@dataclass(frozen=True)
class Poisoned:
    """The value of something that already has an error; what depends on it stays silent."""


POISON = Poisoned()


class Suppressed(Exception):
    """An operand is poisoned: its error is already reported."""


@dataclass
class Frame:
    """The names of one kernel being elaborated, and where it was called."""

    kernel: Kernel
    names: dict[str, Any] = field(default_factory=dict)
    call: Span | None = None


@dataclass(frozen=True)
class Place:
    """Where the statement under elaboration stands."""

    region: str | None = None  # the construct, "pl.at" or "pl.spmd", or None outside
    block: Var | None = None  # the index of the spmd grid


@dataclass(frozen=True)
class Rules:
    """The entry points of the front end."""

    evaluate: Callable[[Context, ast.expr, str], Any]
    statements: Callable[[Context, list[ast.stmt]], None]
    inline: Callable[[Context, Kernel, list[Any], dict[str, Any], ast.Call], Any]


class Context:
    """Builder and symbol table.  ``collect`` gathers errors statement by statement instead of stopping."""

    def __init__(self, rules: Rules, constants: dict[str, Any] | None = None, collect: bool = False) -> None:
        self.rules = rules
        self.constants = dict(constants or {})
        self.collect = collect
        self.errors: list[UserError] = []
        self.warnings: list[str] = []
        self.placeholders: set[Var] = set()  # tiles of pl.create_tensor: no element has a value yet
        self.mutated: set[Var] = set()  # tiles and arrays that an op changed in place
        self.frames: list[Frame] = []
        self.place = Place()
        self._blocks: list[list[Stmt]] = []

    # ------------------------------------------------------------------------------------ frames and names
    @property
    def frame(self) -> Frame:
        return self.frames[-1]

    @property
    def names(self) -> dict[str, Any]:
        return self.frames[-1].names

    @contextmanager
    def in_frame(self, frame: Frame) -> Iterator[None]:
        self.frames.append(frame)
        try:
            yield
        finally:
            self.frames.pop()

    def snapshot(self) -> Names:
        """The names of every frame, to come back to."""
        return [dict(f.names) for f in self.frames]

    def restore(self, saved: Names) -> None:
        for frame, names in zip(self.frames, saved, strict=True):
            frame.names = dict(names)

    def rebind(self, old: Var, new: Var) -> None:
        """An op changed ``old`` in place: every name bound to it, in every frame, now means ``new``."""
        self.mutated.add(old)
        for frame in self.frames:
            for name, value in frame.names.items():
                frame.names[name] = _replaced(value, old, new)

    # ------------------------------------------------------------------------------------ rules
    def evaluate(self, node: ast.expr, hint: str = "") -> Any:
        """The value of an expression; ``hint`` names the variable if the expression is an op."""
        return self.rules.evaluate(self, node, hint)

    def scalar(self, node: ast.expr) -> Expr:
        """An expression that must be a scalar."""
        value = self.evaluate(node)
        if isinstance(value, Expr) and isinstance(type_of(value), ScalarType):
            return value
        raise self.error(
            Diag.BAD_ARGUMENT, node, op="this expression", why=f"got {show(value)}", fix="expected a scalar"
        )

    def integer(self, node: ast.expr) -> Expr:
        """An expression that must be an integer: a bound, an index, a count."""
        value = self.scalar(node)
        if value.dtype.is_integer:
            return value
        raise self.error(
            Diag.BAD_ARGUMENT, node, op="this expression", why=f"got {show(value)}",
            fix="expected an integer: divide with //, or pl.cast(x, pl.INDEX)",
        )  # fmt: skip

    def branch(self, body: list[ast.stmt]) -> Block:
        """The block of a list of statements."""
        with self.new_block() as block:
            self.rules.statements(self, body)
        return tuple(block)

    # ------------------------------------------------------------------------------------ building
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

    def let(
        self, op: Operation, args: tuple[Any, ...], types: tuple[Type, ...], name: str, span: Span
    ) -> Let:
        stmt = Let(tuple(Var(name, t, span) for t in types), op, args, span)
        if op.name == "create_tile":
            self.placeholders.update(stmt.results)
        self.emit(stmt)
        return stmt

    # ------------------------------------------------------------------------------------ places and errors
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
        """Record an error and go on, or raise it.  One mistake in a loop or in two calls is one error."""
        for frame in reversed(self.frames[1:]):
            note = f"in the inline kernel {frame.kernel.name}, called at {frame.call}"
            if note not in error.notes:
                error.notes.append(note)
        if not self.collect:
            raise error
        if all((e.span, e.message) != (error.span, error.message) for e in self.errors):
            self.errors.append(error)

    def warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)


def _replaced(value: Any, old: Var, new: Var) -> Any:
    if value is old:
        return new
    if isinstance(value, tuple) and any(_replaced(v, old, new) is not v for v in value):
        return tuple(_replaced(v, old, new) for v in value)
    return value
