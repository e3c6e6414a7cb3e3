"""User errors with a place and a fix, kept apart from internal errors.

A :class:`Diag` member is one kind of user mistake: a stable code, a message and a fix, both templates.
A :class:`UserError` is one occurrence of it, with the :class:`Span` of the user's source.
:class:`InternalError` means that the compiler is wrong, never the user.
"""

from __future__ import annotations

import linecache
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True)
class Span:
    """A range of source text: 1-based lines, 0-based columns, end exclusive."""

    file: str
    line: int
    col: int = 0
    end_line: int = 0
    end_col: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col + 1}"

    def excerpt(self) -> str:
        """The source line with a caret under the range; empty if the source is not at hand."""
        text = linecache.getline(self.file, self.line).rstrip("\n")
        if not text.strip():
            return ""
        end = self.end_col if self.end_line == self.line and self.end_col > self.col else len(text)
        width = max(1, min(end, len(text)) - self.col)
        gutter = f"{self.line:5d} | "
        return f"{gutter}{text}\n{' ' * (len(gutter) + self.col)}{'^' * width}"


NOWHERE = Span("<generated>", 0)


class Diag(Enum):
    """Catalogue of user mistakes: ``(message, fix)`` templates, filled by :class:`UserError` fields."""

    def __new__(cls, message: str, fix: str) -> Diag:
        # The position keeps members with equal templates apart: an Enum would make them one.
        member = object.__new__(cls)
        member._value_ = (message, fix, len(cls.__members__))
        return member

    # --- front end: Python subset and names
    SYNTAX = ("{what} is not part of the kernel language", "{fix}")
    NOT_A_KERNEL = (
        "{what} is not a kernel",
        "decorate the function with @pl.jit, or with @pl.jit.inline to call it from a kernel",
    )
    NO_SOURCE = ("the source of {name} is not available", "define the kernel in a file, not at a prompt")
    UNDEFINED = ("the name {name!r} is not defined here", "{fix}")
    NOT_ON_EVERY_PATH = (
        "{name!r} is not defined on every path that reaches this use",
        "give {name!r} a value before the {construct} on line {line}",
    )
    NOT_CONSTANT = ("{what} must be known at compile time", "{fix}")
    UNUSED_CONSTANT = ("no kernel reads the constant {name!r}", "known constants: {known}")
    # --- front end: calls, types, placement
    UNKNOWN_OP = ("unknown operation {name!r}", "{fix}")
    UNSUPPORTED = ("{name} of pypto.language is not supported: {why}", "{fix}")
    UNKNOWN_KEYWORD = ("{op} has no parameter {keyword!r}", "{op} takes: {known}")
    BAD_CALL = ("{op}: {why}", "signature: {signature}")
    BAD_ARGUMENT = ("{op}: {why}", "{fix}")
    SHAPE = ("{op}: {why}", "{fix}")
    DTYPE = ("{op}: {why}", "{fix}")
    MISPLACED = ("{what} {why}", "{fix}")
    ANNOTATION = ("{name!r}: {why}", "{fix}")
    CARRIED_TYPE = (
        "{name!r} changes its type in this {construct}: {before} before, {after} after",
        "keep one shape and dtype, or use another name",
    )
    OUT_NOT_WRITTEN = (
        "nothing writes the Out parameter {name!r}",
        "write it with pl.assemble({name}, value, offset) or {name}[...] = value; "
        "`{name} = ...` only rebinds the Python name",
    )
    OUT_OF_BOUNDS = ("{op}: {why}", "{fix}")
    RECURSION = ("{name} calls itself", "kernels are inlined: write a loop instead")
    # --- passes
    SPLIT = (
        "{op} cannot run under SplitMode.{mode}: {why}",
        "use pl.SplitMode.{other}, or move this op out of the region",
    )
    BACKEND_OP = ("{op} has no lowering on the backend {backend}: {why}", "{fix}")
    BUDGET = (
        "region {region!r} needs {need} bytes of {space} ({tile}: {bytes} bytes), {target} has {limit}",
        "{fix}",
    )
    ALIGNMENT = ("{what} on {target}: {why}", "{fix}")
    RESIDENCY = (
        "region {region!r} starts its {blocks} blocks at once (sync_start=True), and {target} runs at most "
        "{fit}: {why}",
        "launch {fit} blocks or fewer and loop over the work in each; or drop sync_start=True, if no block "
        "waits for another",
    )
    NO_PATH = ("{what}: {target} cannot move data from {source} to {dest}", "{fix}")
    SPILL = ("{name!r} is defined per block and cannot be read outside of its region", "{fix}")
    SPILL_VALID = (
        "axis {axis} of the valid rectangle of {name!r} depends on {what}, unknown outside of its region",
        "pl.fillpad the tile before the region ends, or compute the extent before the region",
    )
    # --- hazards
    SPLIT_DIFFERS = (
        "region {region!r} gives another result under SplitMode.{mode}: {tensor}{index} differs",
        "this is a bug of an op's split rule: use pl.SplitMode.NONE and report it",
    )
    RACE = (
        "{first} and {second} of {scope} touch {tensor}{index}, and nothing orders them",
        "give each its own part of {tensor}, or end the region in between",
    )
    HAZARD = (
        "{kind} hazard: {second} touches {tensor}{index} after {first}, and {target} does not order them",
        "pass the task id of {first} in deps=, or use another tensor",
    )
    # --- targets, tiling, arguments
    UNKNOWN_TARGET = ("unknown {kind} {name!r}", "known: {known}")
    NOT_COVERED = ("the backend {backend} does not cover {target}: {why}", "use {known}")
    TILING = ("{file}: {why}", "{fix}")
    CHECKPOINT = ("{file}: {why}", "{fix}")
    MISSING_EXTRA = ("{what} needs {package}, which is not installed", "pip install 'pypto-models[{extra}]'")
    NO_FIGURE = (
        "{target} has no figure {name!r}, which the cost model needs",
        "measure it and write it under figures: in the target's file, or under assumed: a round number",
    )
    ARGUMENT = ("argument {name!r}: {why}", "{fix}")
    # --- simulation
    UNINITIALISED = ("{op} reads {tensor}{index}, which was never written", "{fix}")
    INVALID_READ = ("{op} reads outside the valid region of {tensor}: {why}", "{fix}")
    BOUNDS = ("{op} {access} {tensor}{index} outside of its extents {extents}", "{fix}")
    ARITHMETIC = ("{op}: {why}", "{fix}")


class PyptoError(Exception):
    """Base of every error this package raises on purpose."""


@dataclass
class UserError(PyptoError, ValueError):
    """One user mistake at one place.  ``str()`` gives file, line, caret, message and fix."""

    diag: Diag
    span: Span
    fields: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def code(self) -> str:
        return self.diag.name.lower().replace("_", "-")

    @property
    def message(self) -> str:
        return self.diag.value[0].format(**self.fields)

    @property
    def fix(self) -> str:
        return self.diag.value[1].format(**self.fields)

    def __str__(self) -> str:
        place = f"{self.span}: " if self.span.line else ""  # an argument has no line
        lines = [f"{place}error[{self.code}]: {self.message}"]
        excerpt = self.span.excerpt()
        if excerpt:
            lines.append(excerpt)
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        lines += [f"  note: {n}" for n in self.notes]
        return "\n".join(lines)

    def __hash__(self) -> int:
        return id(self)


def user_error(diag: Diag, span: Span | None = None, /, **fields: object) -> UserError:
    """Make a :class:`UserError`; without a span, the one of :func:`located` is used."""
    return UserError(diag, span or _current_span(), fields)


class InternalError(PyptoError):
    """A bug of the compiler.  The message says which invariant broke and where the user's line is."""


class _Places(threading.local):
    """Of each thread: kernels may be compiled side by side."""

    def __init__(self) -> None:
        self.stack: list[Span] = []


_places = _Places()


@contextmanager
def located(span: Span) -> Iterator[None]:
    """Give errors raised inside the place ``span``, so that rules need not pass it along."""
    _places.stack.append(span)
    try:
        yield
    finally:
        _places.stack.pop()


def _current_span() -> Span:
    return _places.stack[-1] if _places.stack else NOWHERE
