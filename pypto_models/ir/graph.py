"""The task graph, the second level of the IR: regions, what they touch, and what orders them.

These are records.  ``passes/task_graph.py`` computes them from a function; backends, the simulator and
``schedule/`` read them.  Every record has a text form (``str`` or ``describe()``) and ``to_json()``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ..errors import NOWHERE, InternalError, Span
from .expr import Binary, Const, DimVar, Expr, Unary, Var, binary, free_vars, index
from .nodes import Function, LoopKind, Region, Unit
from .types import Dim, DType, SplitMode, TensorType

Interval: TypeAlias = "tuple[int | None, int | None]"
Effect: TypeAlias = Literal["read", "write", "atomic"]
ConflictKind: TypeAlias = Literal["RAW", "WAW", "WAR"]

_PRECEDENCE = {
    "or": 1, "and": 2, "==": 3, "!=": 3, "<": 3, "<=": 3, ">": 3, ">=": 3,
    "+": 4, "-": 4, "*": 5, "/": 5, "//": 5, "%": 5, "**": 7,
}  # fmt: skip


def expr_text(x: Expr, level: int = 0) -> str:
    """An expression as Python writes it, with the names of its variables."""
    if isinstance(x, Const):
        return str(x.value)
    if isinstance(x, Var | DimVar):
        return x.name
    if isinstance(x, Unary):
        if x.op == "cast":
            return f"{x.to}({expr_text(x.operand)})"
        return f"{'not ' if x.op == 'not' else x.op}{expr_text(x.operand, 6)}"
    if not isinstance(x, Binary):
        raise InternalError(f"no text for {type(x).__name__}")
    if x.op in ("min", "max"):
        return f"{x.op}({expr_text(x.lhs)}, {expr_text(x.rhs)})"
    rank = _PRECEDENCE[x.op]
    body = f"{expr_text(x.lhs, rank)} {x.op} {expr_text(x.rhs, rank + 1)}"
    return f"({body})" if rank < level else body


def dim_text(d: Dim | None) -> str:
    return "?" if d is None else expr_text(index(d))


def _dim_json(d: Dim | None) -> int | str | None:
    return d if d is None or isinstance(d, int) else expr_text(d)


def is_atom(x: Expr) -> bool:
    return isinstance(x, Var | DimVar)


@dataclass(frozen=True)
class Affine:
    """``const + sum(coefficient * atom)`` over the integers.

    An atom is a variable, a run-time extent, or an opaque expression (floor division, remainder, min, max,
    product of two variables).  Terms are sorted, so that equal forms are equal objects.
    """

    terms: tuple[tuple[Expr, int], ...] = ()
    const: int = 0

    @staticmethod
    def of(terms: Mapping[Expr, int], const: int = 0) -> Affine:
        kept = [(atom, c) for atom, c in terms.items() if c]
        return Affine(tuple(sorted(kept, key=lambda t: (expr_text(t[0]), repr(t[0])))), const)

    @property
    def is_constant(self) -> bool:
        return not self.terms

    def coefficient(self, atom: Expr) -> int:
        return next((c for a, c in self.terms if a == atom), 0)

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.terms, self.const + other)
        sums = dict(self.terms)
        for atom, c in other.terms:
            sums[atom] = sums.get(atom, 0) + c
        return Affine.of(sums, self.const + other.const)

    def __mul__(self, factor: int) -> Affine:
        return Affine.of({a: c * factor for a, c in self.terms}, self.const * factor)

    def __sub__(self, other: Affine | int) -> Affine:
        return self + other * -1

    def divided(self, divisor: int) -> Affine | None:
        """The exact quotient, or None if a coefficient is not a multiple."""
        if self.const % divisor or any(c % divisor for _, c in self.terms):
            return None
        return Affine(tuple((a, c // divisor) for a, c in self.terms), self.const // divisor)

    def variables(self) -> Iterator[Var]:
        for atom, _ in self.terms:
            yield from free_vars(atom)

    def expr(self) -> Expr:
        """The form as an expression: negative terms last, so that it reads as a person writes it."""
        out: Expr | None = None
        for atom, c in sorted(self.terms, key=lambda t: t[1] < 0):
            if out is None:
                out = binary("*", index(c), atom) if c != 1 else atom
            else:
                term = binary("*", index(abs(c)), atom) if abs(c) != 1 else atom
                out = binary("+" if c > 0 else "-", out, term)
        if out is None:
            return index(self.const)
        return binary("+" if self.const >= 0 else "-", out, index(abs(self.const)))

    def dim(self) -> Dim:
        return self.const if self.is_constant else self.expr()

    def __str__(self) -> str:
        return expr_text(self.expr())


@dataclass(frozen=True)
class AxisIndex:
    """``[start, start + extent)`` on one axis of a tensor.

    ``limit`` bounds a run-time extent; ``hull`` covers the elements of every block and trip, end exclusive.
    ``exact`` is False where it may be fewer elements: a valid extent that only the tile knows, torn rows.
    """

    start: Affine
    extent: Dim
    limit: int | None
    hull: Interval
    exact: bool = True

    def __str__(self) -> str:
        if self.start.is_constant and isinstance(self.extent, int):
            return f"{self.start.const}:{self.start.const + self.extent}"
        return str(self.start) if self.extent == 1 else f"{self.start} : +{dim_text(self.extent)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "start": str(self.start), "extent": _dim_json(self.extent), "hull": list(self.hull),
            "exact": self.exact,
        }  # fmt: skip


@dataclass(frozen=True)
class Access:
    """What one op of a region touches of one buffer, as a function of the grid and the loops.

    * ``tensor``: the buffer, a parameter or the result of ``create``; views are resolved.
    * ``index``: one entry per axis of ``tensor``; empty if any element may be meant (``why`` says why).
    * ``tile``: extents of the box in the op, in the axes of the view that it names; the static valid ones.
    * ``tables``: tensors whose elements the index depends on (a block table), else empty.
    * ``loops``: variables of the region's loops around the op, outer first.
    * ``always``: False under an ``if``, or where the buffer is one of several.
    * ``launch``: the orchestration reads the element, before the task starts.
    * ``lags``: for a reference carried by a loop, how many trips ago its buffer was made (None: unknown).
    """

    tensor: Var
    effect: Effect
    index: tuple[AxisIndex, ...]
    tile: tuple[Dim, ...]
    op: str
    span: Span
    tables: tuple[Var, ...] = ()
    loops: tuple[Var, ...] = ()
    always: bool = True
    launch: bool = False
    lags: tuple[tuple[Var, int | None], ...] = ()
    why: str = ""

    @property
    def exact(self) -> bool:
        """False if ``index`` covers more than the op touches."""
        return bool(self.index) and all(i.exact for i in self.index)

    @property
    def map(self) -> str:
        """``paged`` (needs a table), ``affine``, ``quasi-affine`` (with //, %, min, max), or ``whole``."""
        if not self.index:
            return "whole"
        if self.tables:
            return "paged"
        return "affine" if all(is_atom(a) for ix in self.index for a, _ in ix.start.terms) else "quasi-affine"

    @property
    def dtype(self) -> DType:
        t = self.tensor.type
        if not isinstance(t, TensorType):
            raise InternalError(f"{self.tensor.name} is not a tensor")
        return t.dtype

    @property
    def box(self) -> str:
        return f"[{', '.join(map(str, self.index))}]" if self.index else "[...]"

    def __str__(self) -> str:
        notes = [self.map] if self.map != "affine" else []
        notes += [f"by {t.name}" for t in self.tables]
        notes += ["at least"] if self.index and not self.exact else []
        notes += [self.why] if self.why else []
        return f"{self.effect} {self.tensor.name}{self.box}" + (f" ({', '.join(notes)})" if notes else "")

    def to_json(self) -> dict[str, Any]:
        return {
            "tensor": self.tensor.name, "effect": self.effect, "map": self.map, "exact": self.exact,
            "index": [i.to_json() for i in self.index],
            "tile": [_dim_json(d) for d in self.tile], "dtype": self.dtype.name,
            "tables": [t.name for t in self.tables], "loops": [v.name for v in self.loops],
            "always": self.always, "launch": self.launch, "op": self.op, "line": self.span.line,
            "why": self.why,
        }  # fmt: skip


@dataclass(frozen=True)
class Loop:
    """A loop with its trip count; ``step`` is None where it is not a constant."""

    var: Var
    kind: LoopKind
    start: Affine
    step: int | None
    trips: Dim
    stage: int = 1
    span: Span = NOWHERE

    def __str__(self) -> str:
        return f"{self.var.name} in {self.kind.value}({dim_text(self.trips)} trips)"

    def to_json(self) -> dict[str, Any]:
        return {
            "var": self.var.name, "kind": self.kind.value, "start": str(self.start), "step": self.step,
            "trips": _dim_json(self.trips), "stage": self.stage, "line": self.span.line,
        }  # fmt: skip


@dataclass(frozen=True)
class GridAxis:
    """One axis of a task's grid: the blocks of an spmd, or the iterations of a parallel loop around it."""

    name: str
    kind: Literal["parallel", "spmd"]
    var: Var | None
    extent: Dim
    step: int | None = 1

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "extent": _dim_json(self.extent), "step": self.step}


@dataclass(frozen=True)
class Capture:
    """A scalar of the orchestration that a region reads: constant, extent, argument, index or data."""

    name: str
    kind: Literal["constant", "extent", "argument", "index", "data"]
    value: str
    tables: tuple[Var, ...] = ()

    def to_json(self) -> dict[str, Any]:
        tables = [t.name for t in self.tables]
        return {"name": self.name, "kind": self.kind, "value": self.value, "tables": tables}


@dataclass(frozen=True)
class Guard:
    """A condition under which a task runs: a branch of an ``if``, or a loop that may make no trip."""

    key: int
    branch: bool
    text: str


@dataclass(frozen=True)
class Task:
    """One region with its grid.  ``name`` is unique in the graph; ``deps`` are indices of tasks."""

    index: int
    name: str
    region: Region
    grid: tuple[GridAxis, ...] = ()
    loops: tuple[Loop, ...] = ()
    inner: tuple[Loop, ...] = ()
    reads: tuple[Access, ...] = ()
    writes: tuple[Access, ...] = ()
    captures: tuple[Capture, ...] = ()
    deps: tuple[int, ...] = ()
    guards: tuple[Guard, ...] = ()
    manual: bool = False

    @property
    def unit(self) -> Unit:
        return self.region.unit

    @property
    def split(self) -> SplitMode:
        return self.region.options.split

    @property
    def span(self) -> Span:
        return self.region.span

    def to_json(self) -> dict[str, Any]:
        return {
            "index": self.index, "name": self.name, "unit": self.unit.value, "split": self.split.name,
            "line": self.span.line, "grid": [g.to_json() for g in self.grid],
            "loops": [x.to_json() for x in self.loops], "inner": [x.to_json() for x in self.inner],
            "reads": [a.to_json() for a in self.reads], "writes": [a.to_json() for a in self.writes],
            "captures": [c.to_json() for c in self.captures], "deps": list(self.deps),
            "guards": [{"text": g.text, "branch": g.branch} for g in self.guards], "manual": self.manual,
        }  # fmt: skip


@dataclass(frozen=True)
class Conflict:
    """Two tasks may touch one element of ``tensor``: ``first`` must be done before ``second`` starts.

    ``first`` and ``second`` are indices of tasks, ``names`` their names.  With ``carried_by`` the first runs
    in one trip of that sequential loop and the second in a later one, else both in the same trip.
    """

    kind: ConflictKind
    first: int
    second: int
    names: tuple[str, str]
    tensor: Var
    box: str
    first_span: Span
    second_span: Span
    carried_by: Var | None = None

    def describe(self) -> str:
        """What collides, and the source line of each side."""
        verb = {"RAW": "reads what", "WAW": "writes what", "WAR": "overwrites what"}[self.kind]
        done = "reads" if self.kind == "WAR" else "writes"
        later = f" in an earlier trip of {self.carried_by.name}" if self.carried_by else ""
        return (
            f"{self.kind}: {self.names[1]} {verb} {self.names[0]} {done}{later}: "
            f"{self.tensor.name}{self.box}, first at {self.first_span}, then at {self.second_span}"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "first": self.first, "second": self.second, "tensor": self.tensor.name,
            "box": self.box, "first_line": self.first_span.line, "second_line": self.second_span.line,
            "carried_by": self.carried_by.name if self.carried_by else None,
        }  # fmt: skip


@dataclass(frozen=True)
class Dependency:
    """All blocks of task ``before`` finish before any block of ``after`` starts.

    Both in the same trip of the sequential loops around both; with ``carried_by`` in a later one.
    """

    before: int
    after: int
    why: tuple[str, ...]
    carried_by: Var | None = None

    def to_json(self) -> dict[str, Any]:
        carried = self.carried_by.name if self.carried_by else None
        return {"before": self.before, "after": self.after, "why": list(self.why), "carried_by": carried}


@dataclass(frozen=True)
class TaskGraph:
    """Tasks in program order.  ``hazards`` are the conflicts that none of the ``dependencies`` orders."""

    function: Function
    target: str
    tasks: tuple[Task, ...]
    conflicts: tuple[Conflict, ...] = ()
    dependencies: tuple[Dependency, ...] = ()
    hazards: tuple[Conflict, ...] = field(default=())

    def task(self, name: str) -> Task:
        for t in self.tasks:
            if t.name == name:
                return t
        raise KeyError(f"no task {name!r}; tasks: {', '.join(t.name for t in self.tasks)}")

    def producers(self, task: Task, tensor: Var) -> tuple[Task, ...]:
        """Tasks whose writes to ``tensor`` the task may read, in program order."""
        mine = [c for c in self.conflicts if c.second == task.index and c.tensor is tensor]
        return tuple(self.tasks[i] for i in sorted({c.first for c in mine if c.kind == "RAW"}))

    def describe(self) -> str:
        """The tasks, what each touches, the dependencies and the hazards, as a readable listing."""
        out = [f"task graph of {self.function.name} for {self.target}: {len(self.tasks)} tasks"]
        for t in self.tasks:
            out.append(f"\n[{t.index}] {t.name}: {_kind_text(t)}, {_grid_text(t)}, line {t.span.line}")
            out += [f"    for {x}" for x in t.loops]
            out += [f"    if {g.text}" if g.branch else f"    if not ({g.text})" for g in t.guards]
            out += [f"    {a}" for a in _distinct(t.reads + t.writes)]
            out += [f"    takes {c.name} = {c.value} ({_capture_text(c)})" for c in t.captures]
            for d in self.dependencies:
                if d.after == t.index:
                    later = f", carried by {d.carried_by.name}" if d.carried_by else ""
                    out.append(f"    after {self.tasks[d.before].name} ({', '.join(d.why)}{later})")
        out.append(f"\nhazards: {len(self.hazards)}")
        out += ["  " + h.describe() for h in self.hazards]
        return "\n".join(out) + "\n"

    def to_json(self) -> dict[str, Any]:
        return {
            "function": self.function.name, "target": self.target, "tasks": [t.to_json() for t in self.tasks],
            "conflicts": [c.to_json() for c in self.conflicts],
            "dependencies": [d.to_json() for d in self.dependencies],
            "hazards": [c.to_json() for c in self.hazards],
        }  # fmt: skip


def _kind_text(t: Task) -> str:
    return t.unit.value + (f" {t.split.name}" if t.split is not SplitMode.NONE else "")


def _grid_text(t: Task) -> str:
    if not t.grid:
        return "one block"
    return "grid " + " x ".join(f"{g.name}:{dim_text(g.extent)}" for g in t.grid)


def _capture_text(c: Capture) -> str:
    return f"{c.kind} of {', '.join(t.name for t in c.tables)}" if c.tables else c.kind


def _distinct(accesses: tuple[Access, ...]) -> list[str]:
    return list(dict.fromkeys(map(str, accesses)))
