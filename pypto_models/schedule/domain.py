"""Region domains: what a schedule may change about a region, as facts.

A source block is a unit of meaning, not a CTA.  A :class:`RegionDomain` says how large the region's space is
(block, row and column axes with their granules), what its loops are (contraction, reduction, independent,
sequential), where each operand lives and how its index moves, which accumulators the matmuls make, which
vector ops follow on them, and which op forbids to halve or merge rows or columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, TypeAlias

from ..errors import Span
from ..ir.expr import Expr, Var, as_dim, binary, dim_expr
from ..ir.graph import Access, AxisIndex, Loop, Task, TaskGraph, dim_text
from ..ir.nodes import Direction, Let, Unit
from ..ir.rewrite import walk
from ..ir.types import Dim, TensorType, TileType
from ..ops import OpDef
from .carried import CarriedValue, Flow, LoopClass, flow

Role: TypeAlias = Literal["weight", "cache", "produced", "out", "scratch"]


@dataclass(frozen=True)
class Axis:
    """An axis of the region's space.

    ``block``: one axis of the grid.  ``row``, ``column``: the last two axes of a stored tensor, in steps of
    ``granule`` elements; ``moved_by`` names the grid axes and loops that move the tile along it.  ``extent``
    is an int, a run-time expression, or None if only the tile or data decide it.
    """

    kind: Literal["block", "row", "column"]
    name: str
    granule: int
    extent: Dim | None
    moved_by: tuple[str, ...] = ()

    @property
    def static(self) -> bool:
        return isinstance(self.extent, int)

    def __str__(self) -> str:
        moved = f" by {', '.join(self.moved_by)}" if self.moved_by else ""
        return f"{self.kind} {self.name}: {dim_text(self.extent)} in steps of {self.granule}{moved}"


@dataclass(frozen=True)
class InnerLoop:
    """A loop of the region, its class and what it carries."""

    loop: Loop
    kind: LoopClass
    carried: tuple[CarriedValue, ...]

    def __str__(self) -> str:
        carried = ", ".join(f"{c.name} ({c.op or 'sequential'})" for c in self.carried) or "nothing"
        return f"{self.loop}: {self.kind}, carries {carried}, line {self.loop.span.line}"


@dataclass(frozen=True)
class Operand:
    """A tensor in global memory as one block sees it.

    * ``map``: affine, quasi-affine, paged (through ``tables``) or whole; ``index`` is its text.
    * ``row_bytes``: contiguous bytes along the last axis (``contiguous_axis``) in one access.
    * ``block_bytes``: bytes that one block touches at most, int or run-time expression.
    * ``role``: never written in the program (weight), read and written (cache), made by the regions in
      ``producers`` (produced), written here (out: a parameter, scratch: not).
    * ``streams``: its index moves with a contraction loop.  ``moves_with``: all inner loops that move it.
    """

    tensor: Var
    effect: str
    map: str
    index: str
    tables: tuple[str, ...]
    tile: tuple[Dim, ...]
    contiguous_axis: int
    row_bytes: int | None
    block_bytes: Dim
    role: Role
    producers: tuple[str, ...]
    streams: bool
    moves_with: tuple[str, ...]
    line: int

    def __str__(self) -> str:
        notes = [self.role + (f" by {', '.join(self.producers)}" if self.producers else "")]
        notes.append(self.map + (f" through {', '.join(self.tables)}" if self.tables else ""))
        notes.append(f"{dim_text(self.row_bytes)} bytes a row, {dim_text(self.block_bytes)} a block")
        moves = f"{'streams' if self.streams else 'moves'} with {', '.join(self.moves_with)}"
        notes += [moves] if self.moves_with else []
        return f"{self.effect} {self.tensor.name}{self.index}: {', '.join(notes)}"


@dataclass(frozen=True)
class Accumulator:
    """A matmul result: what stays in MMA fragments.  ``loop`` is the contraction loop that builds it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    loop: str | None

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} {self.dtype}" + (f" over {self.loop}" if self.loop else "")


@dataclass(frozen=True)
class Step:
    """An op with its place in the source; ``why`` for one that forbids re-blocking."""

    op: str
    span: Span
    why: str = ""

    @property
    def line(self) -> int:
        return self.span.line

    def __str__(self) -> str:
        place = f"{PurePath(self.span.file).name}:{self.line}"
        return f"{self.op} ({place}{': ' if self.why else ''}{self.why})"

    def to_json(self) -> dict[str, Any]:
        return {"op": self.op, "file": PurePath(self.span.file).name, "line": self.line, "why": self.why}


@dataclass(frozen=True)
class RegionDomain:
    """Everything a schedule needs to know of one region."""

    task: Task
    axes: tuple[Axis, ...]
    loops: tuple[InnerLoop, ...]
    operands: tuple[Operand, ...]
    accumulators: tuple[Accumulator, ...]
    epilogue: tuple[Step, ...]
    row_blockers: tuple[Step, ...]
    column_blockers: tuple[Step, ...]

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def reblockable(self) -> bool:
        """True if rows or columns may be divided or merged: every op keeps its result then."""
        return not self.row_blockers or not self.column_blockers

    @property
    def read_bytes(self) -> Dim:
        """Bytes that one block reads."""
        total: Expr = dim_expr(0)
        for o in self.operands:
            if o.effect == "read":
                total = binary("+", total, dim_expr(o.block_bytes))
        return as_dim(total)

    def describe(self) -> str:
        t = self.task
        split = f", split {t.split.name}" if t.split.axis is not None else ""
        out = [f"{t.name}: {t.unit.value}{split}, line {t.span.line}"]
        out += [f"  axis     {a}" for a in self.axes]
        out += [f"  loop     {x}" for x in self.loops]
        out += [f"  operand  {o}" for o in self.operands]
        out += [f"  acc      {a}" for a in self.accumulators]
        if self.epilogue:
            out.append(f"  epilogue {', '.join(map(str, self.epilogue))}")
        for name, blockers in (("rows", self.row_blockers), ("columns", self.column_blockers)):
            out.append(f"  {name:8s} " + (f"fixed by {blockers[0]}" if blockers else "may be re-blocked"))
        return "\n".join(out) + "\n"

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.name, "unit": self.task.unit.value, "reblockable": self.reblockable,
            "read_bytes": _json(self.read_bytes),
            "axes": [
                {"kind": a.kind, "name": a.name, "granule": a.granule, "extent": _json(a.extent),
                 "static": a.static, "moved_by": list(a.moved_by)}
                for a in self.axes
            ],
            "loops": [
                {**x.loop.to_json(), "class": x.kind,
                 "carried": [{"name": c.name, "kind": c.kind, "op": c.op} for c in x.carried]}
                for x in self.loops
            ],
            "operands": [
                {"tensor": o.tensor.name, "effect": o.effect, "map": o.map, "index": o.index,
                 "tables": list(o.tables), "tile": [_json(d) for d in o.tile],
                 "contiguous_axis": o.contiguous_axis, "row_bytes": o.row_bytes,
                 "block_bytes": _json(o.block_bytes), "role": o.role, "producers": list(o.producers),
                 "streams": o.streams, "moves_with": list(o.moves_with), "line": o.line}
                for o in self.operands
            ],
            "accumulators": [
                {"name": a.name, "shape": list(a.shape), "dtype": a.dtype, "loop": a.loop}
                for a in self.accumulators
            ],
            "epilogue": [s.to_json() for s in self.epilogue],
            "row_blockers": [s.to_json() for s in self.row_blockers],
            "column_blockers": [s.to_json() for s in self.column_blockers],
        }  # fmt: skip


def _json(d: Dim | None) -> int | str | None:
    return d if d is None or isinstance(d, int) else dim_text(d)


def region_domains(graph: TaskGraph) -> tuple[RegionDomain, ...]:
    """The domain of every task, in program order."""
    return tuple(region_domain(graph, t) for t in graph.tasks)


def region_domain(graph: TaskGraph, task: Task) -> RegionDomain:
    f = flow(task.region)
    loops = tuple(_inner_loop(f, task, x) for x in task.inner)
    lets = [s for s in walk(task.region.body) if isinstance(s, Let) and isinstance(s.op, OpDef)]
    cube = task.unit in (Unit.CUBE, Unit.MIXED)
    accumulators = f.accumulators() if cube else ()
    return RegionDomain(
        task,
        _axes(task),
        loops,
        tuple(_operands(graph, task, f, loops)),
        tuple(_accumulator(v, loop.var.name if loop else None) for v, loop in accumulators),
        tuple(Step(s.op.name, s.span) for s in f.epilogue()) if cube else (),
        _blockers(0, lets),
        _blockers(1, lets),
    )


def describe(domains: Iterable[RegionDomain]) -> str:
    """All domains as one text."""
    return "\n".join(d.describe() for d in domains)


# ------------------------------------------------------------------------------------------------- axes
def _axes(task: Task) -> tuple[Axis, ...]:
    found = [Axis("block", g.name, 1, g.extent) for g in task.grid]
    for a in task.writes:
        for kind, axis in (("row", -2), ("column", -1)):
            if len(a.index) >= -axis and a.index[axis].limit is not None:
                new = _axis(task, kind, a.tensor.name, a.index[axis])  # type: ignore[arg-type]
                if new not in found:
                    found.append(new)
    return tuple(found)


def _axis(task: Task, kind: Literal["row", "column"], name: str, x: AxisIndex) -> Axis:
    granule = x.limit or 1
    moved = tuple(v.name for v in dict.fromkeys(x.start.variables()))
    if not x.exact:
        return Axis(kind, name, granule, None, moved)
    if not moved:
        return Axis(kind, name, granule, x.extent)
    # One loop or grid axis moves the tile by its own extent
    (atom, coefficient), *others = x.start.terms
    movers = [(g.var, g.step, g.extent) for g in task.grid]
    movers += [(y.var, y.step, y.trips) for y in (*task.inner, *task.loops)]
    for var, step, count in movers:
        if var is atom and not others and coefficient * (step or 0) == granule:
            return Axis(kind, name, granule, as_dim(binary("*", dim_expr(count), dim_expr(granule))), moved)
    known = x.hull[0] is not None and x.hull[1] is not None
    return Axis(kind, name, granule, (x.hull[1] or 0) - (x.hull[0] or 0) if known else None, moved)


# ------------------------------------------------------------------------------------------------ loops
def _inner_loop(f: Flow, task: Task, loop: Loop) -> InnerLoop:
    carried = f.carried(f.loops[loop.var])
    kinds = {c.kind for c in carried}
    kind: LoopClass = "sequential"
    if not carried:
        kind = "independent" if _separate_writes(f, task, loop) else "sequential"
    elif kinds == {"contraction"}:
        kind = "contraction"
    elif kinds <= {"contraction", "reduction"}:
        kind = "reduction"
    return InnerLoop(loop, kind, carried)


def _separate_writes(f: Flow, task: Task, loop: Loop) -> bool:
    """True if the trips of a loop write different elements of tensors that the loop does not read."""
    inside = [a for a in task.writes if loop.var in a.loops]
    read = {a.tensor for a in task.reads if loop.var in a.loops}
    return all(a.tensor not in read and any(_steps_over(f, a, x, loop) for x in a.index) for a in inside)


def _steps_over(f: Flow, a: Access, x: AxisIndex, loop: Loop) -> bool:
    """True if each trip moves the box by its own extent or more, and nothing else in the loop moves it."""
    varying = frozenset(a.loops[a.loops.index(loop.var) :]) | _of_trip(f, loop.var)
    others = [atom for atom, _ in x.start.terms if atom is not loop.var]
    stride = abs(x.start.coefficient(loop.var) * (loop.step or 0))
    return x.limit is not None and stride >= x.limit and not any(f.reaches(y, varying) for y in others)


# --------------------------------------------------------------------------------------------- operands
def _operands(graph: TaskGraph, task: Task, f: Flow, loops: tuple[InnerLoop, ...]) -> Iterable[Operand]:
    seen: set[tuple[Any, ...]] = set()
    for a in (*task.reads, *task.writes):
        key = (a.tensor, a.effect, a.index, a.tile, a.why)
        if a.launch or key in seen:
            continue
        seen.add(key)
        yield _operand(graph, task, f, loops, a)


def _operand(graph: TaskGraph, task: Task, f: Flow, loops: tuple[InnerLoop, ...], a: Access) -> Operand:
    starts = [i.start.expr() for i in a.index]
    around = [x for x in loops if x.loop.var in a.loops]
    moving = [x for x in around if any(f.reaches(s, _of_trip(f, x.loop.var)) for s in starts)]
    size: Expr = dim_expr(a.dtype.bytes)
    for n in (*a.tile, *(x.loop.trips for x in moving)):
        size = binary("*", size, dim_expr(n))
    rank = len(a.tensor.type.shape) if isinstance(a.tensor.type, TensorType) else 0
    last = a.index[-1].limit if a.index else None
    return Operand(
        tensor=a.tensor, effect=a.effect, map=a.map, index=a.box, tables=tuple(t.name for t in a.tables),
        tile=a.tile, contiguous_axis=rank - 1, row_bytes=None if last is None else last * a.dtype.bytes,
        block_bytes=as_dim(size), role=_role(graph, task, a), producers=_producers(graph, task, a),
        streams=any(x.kind == "contraction" for x in moving),
        moves_with=tuple(x.loop.var.name for x in moving), line=a.span.line,
    )  # fmt: skip


def _of_trip(f: Flow, var: Var) -> frozenset[Var]:
    """What is different in each trip: the loop variable and what the loop carries."""
    return frozenset({var, *(c.param for c in f.loops[var].carried)})


def _producers(graph: TaskGraph, task: Task, a: Access) -> tuple[str, ...]:
    if a.effect != "read":
        return ()
    return tuple(t.name for t in graph.producers(task, a.tensor) if t is not task)


def _role(graph: TaskGraph, task: Task, a: Access) -> Role:
    params = {p.var: p.direction for p in graph.function.params}
    if a.tensor not in params:
        return "produced" if _producers(graph, task, a) else "scratch"
    written = any(w.tensor is a.tensor for t in graph.tasks for w in t.writes)
    if not written:
        return "weight"
    if params[a.tensor] is not Direction.OUT:
        read = any(r.tensor is a.tensor for t in graph.tasks for r in t.reads)
        return "cache" if read or params[a.tensor] is Direction.INOUT else "out"
    return "produced" if _producers(graph, task, a) else "out"


def _accumulator(v: Var, loop: str | None) -> Accumulator:
    t = v.type
    shape, dtype = (t.shape, t.dtype.name) if isinstance(t, TileType) else ((), "")
    return Accumulator(v.name, shape, dtype, loop)


def _blockers(axis: int, lets: list[Let]) -> tuple[Step, ...]:
    """Ops whose result changes if an axis is divided, from their split rules; a line inlined twice is one."""
    found = []
    for s in lets:
        why = s.op.split(axis, s) if isinstance(s.op, OpDef) else None
        if why is not None:
            found.append(Step(s.op.name, s.span, why))
    return tuple(dict.fromkeys(found))
