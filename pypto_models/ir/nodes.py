"""Statements of the function IR: structured, in SSA, frozen, each with a span.

    Stmt = Let(results, op, args)            one operation
         | Bind(var, value)                  one named scalar
         | For(kind, var, start, stop, step, carried, body)
         | If(cond, then, orelse, merged)
         | Region(kind, block, count, body)  what one task runs: pl.at, pl.spmd
         | Scope(manual, body)               pl.scope, pl.manual_scope
         | Return(values)

A name that a loop rebinds is a :class:`Carried`: ``param`` inside the body, starting as ``init``, becoming
``next`` after each trip, and read as ``result`` after the loop.  A name that the branches of an ``if`` bind
is a :class:`Merged`.  Tensors in global memory are buffers with identity: writes are effects of ops, and
every variable of a tensor type names a buffer or a view of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from ..errors import NOWHERE, InternalError, Span
from .expr import Expr, Var
from .types import DType, Mem, SplitMode

Arg: TypeAlias = (
    "Expr | tuple[Expr, ...] | tuple[Var, ...] | DType | Mem | Enum | str | bool | int | float | None"
)


@dataclass(frozen=True, eq=False)
class Operation:
    """What a :class:`Let` applies.  The op registry derives its OpDef from this; identity is the op."""

    name: str
    spelling: str  # how the language writes it: several ops may share one spelling
    param_names: tuple[str, ...]

    def index(self, param: str) -> int:
        if param not in self.param_names:
            raise InternalError(f"{self.name} has no parameter {param}")
        return self.param_names.index(param)

    def __repr__(self) -> str:
        return f"<op {self.name}>"


@dataclass(frozen=True)
class Let:
    """``results = op(args)``.  ``args`` follow ``op.params`` one to one; absent ones are None."""

    results: tuple[Var, ...]
    op: Operation
    args: tuple[Arg, ...]
    span: Span = NOWHERE

    @property
    def result(self) -> Var:
        (var,) = self.results
        return var

    def arg(self, name: str) -> Arg:
        return self.args[self.op.index(name)]


@dataclass(frozen=True)
class Bind:
    """``var = value`` for a scalar expression that the user named."""

    var: Var
    value: Expr
    span: Span = NOWHERE


class LoopKind(Enum):
    RANGE = "range"
    PARALLEL = "parallel"
    PIPELINE = "pipeline"


@dataclass(frozen=True)
class Carried:
    param: Var
    init: Expr
    next: Expr
    result: Var


@dataclass(frozen=True)
class For:
    kind: LoopKind
    var: Var
    start: Expr
    stop: Expr
    step: Expr
    carried: tuple[Carried, ...]
    body: Block
    stage: int = 1
    span: Span = NOWHERE


@dataclass(frozen=True)
class Merged:
    result: Var
    then: Expr
    orelse: Expr


@dataclass(frozen=True)
class If:
    cond: Expr
    then: Block
    orelse: Block
    merged: tuple[Merged, ...]
    span: Span = NOWHERE


class RegionKind(Enum):
    """The construct that opened the region."""

    AT = "at"
    SPMD = "spmd"


class Unit(Enum):
    """Where an op, or a whole region, runs."""

    NONE = "none"
    VEC = "vec"
    CUBE = "cube"
    MIXED = "mixed"


@dataclass(frozen=True)
class RegionOptions:
    """Keywords of pl.at and pl.spmd.  ``hints`` do not change results and are kept for printing."""

    name_hint: str = ""
    split: SplitMode = SplitMode.NONE
    slot_num: int = 2
    hints: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Region:
    """One task, or a grid of ``count`` tasks with index ``block``.

    ``tid`` names the launched task; ``deps`` are task ids or arrays of them that must finish before.
    ``unit`` is decided when memory spaces are inferred.
    """

    kind: RegionKind
    block: Var | None
    count: Expr | None
    body: Block
    options: RegionOptions = field(default_factory=RegionOptions)
    tid: Var | None = None
    deps: tuple[Expr, ...] = ()
    unit: Unit = Unit.NONE
    span: Span = NOWHERE

    @property
    def name(self) -> str:
        return self.options.name_hint or f"{self.kind.value}_line{self.span.line}"


@dataclass(frozen=True)
class Scope:
    manual: bool
    body: Block
    span: Span = NOWHERE


@dataclass(frozen=True)
class Return:
    values: tuple[Expr, ...]
    span: Span = NOWHERE


Stmt: TypeAlias = Let | Bind | For | If | Region | Scope | Return
Block: TypeAlias = tuple[Stmt, ...]


class Direction(Enum):
    IN = "in"
    OUT = "out"
    INOUT = "inout"


@dataclass(frozen=True)
class Param:
    var: Var
    direction: Direction

    @property
    def name(self) -> str:
        return self.var.name


@dataclass(frozen=True)
class Function:
    """An entry kernel after elaboration: everything inlined, constants folded, types known."""

    name: str
    params: tuple[Param, ...]
    body: Block
    span: Span = NOWHERE
