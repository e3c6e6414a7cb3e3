"""The task graph of a function: regions with their grids, what they touch, and what orders them.

Needs: a function with regions in its orchestration, tiles not crossing them (after ``spill``).
Gives: :class:`~..ir.graph.TaskGraph`.

A conflict is a pair of tasks that may touch one element, at least one of them writing it.  The run time
turns the kinds in ``target.orders`` into dependencies, except next to a ``manual_scope``, where it neither
looks up nor records what a task touches.  ``deps=`` adds dependencies.  A conflict that none of this orders,
directly or through other tasks that are sure to run, is a hazard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from ..ir.expr import Binary, DimVar, Expr, Unary, Var, free_vars
from ..ir.graph import (
    Access,
    Affine,
    Capture,
    Conflict,
    ConflictKind,
    Dependency,
    GridAxis,
    Guard,
    Loop,
    Task,
    TaskGraph,
    expr_text,
)
from ..ir.nodes import Block, For, Function, If, LoopKind, Region, Scope
from ..ir.rewrite import exits, operands, uses, walk
from ..ir.types import ScalarType
from .access import launch_accesses, region_accesses
from .affine import Definitions, definitions
from .overlap import Meeting, overlap
from .task_ids import TaskIds, guard_keys

if TYPE_CHECKING:
    from ..target import Target

_STRENGTH = ("constant", "extent", "argument", "index", "data")


def build(fn: Function, target: Target) -> TaskGraph:
    """The task graph of ``fn`` as the run time of ``target`` orders it (``target.orders``)."""
    d = definitions(fn)
    found = _Collector(d)
    found.block(fn.body, _Place())
    tasks, places = _with_deps(d, found)
    conflicts = tuple(_conflicts(d, tasks, places))
    inferred = [
        c for c in conflicts
        if c.kind in target.orders and not tasks[c.first].manual and not tasks[c.second].manual
    ]  # fmt: skip
    dependencies = _dependencies(inferred, found.waits)
    taken = {id(c) for c in inferred}
    hazards = tuple(c for c in conflicts if id(c) not in taken and not _ordered(tasks, dependencies, c))
    return TaskGraph(fn, target.name, tasks, conflicts, dependencies, hazards)


# ------------------------------------------------------------------------------------------------ tasks
@dataclass(frozen=True)
class _Place:
    """What stands around a statement of the orchestration."""

    loops: tuple[For, ...] = ()
    guards: tuple[tuple[Guard, tuple[Var, ...]], ...] = ()  # with the loops around the condition
    launch: tuple[Expr, ...] = ()  # what the orchestration evaluates to get here
    manual: bool = False


class _Collector:
    """Walks the orchestration and makes a task of every region."""

    def __init__(self, d: Definitions) -> None:
        self.d = d
        self.tasks: list[Task] = []
        self.places: list[_Place] = []
        self.branches: dict[int, int] = {}
        self.waits: dict[int, frozenset[tuple[int, Var | None]]] = {}
        self._names: dict[str, int] = {}
        self._keys = 0

    def block(self, block: Block, place: _Place) -> None:
        for s in block:
            if isinstance(s, Region):
                self._task(s, place)
            elif isinstance(s, For):
                self.block(s.body, self._in_loop(s, place))
            elif isinstance(s, If):
                self._keys += 1
                self.branches[id(s)] = key = self._keys
                for branch, body in ((True, s.then), (False, s.orelse)):
                    guard = Guard(key, branch, expr_text(s.cond))
                    self.block(body, self._guarded(place, guard, (s.cond,)))
            elif isinstance(s, Scope):
                self.block(s.body, replace(place, manual=place.manual or s.manual))

    def _guarded(self, place: _Place, guard: Guard, launch: tuple[Expr, ...]) -> _Place:
        around = tuple(x.var for x in place.loops)
        return replace(place, guards=(*place.guards, (guard, around)), launch=(*place.launch, *launch))

    def _in_loop(self, s: For, place: _Place) -> _Place:
        low, _ = self.d.bounds(self.d.loop(s).trips)
        if low is None or low < 1:
            self._keys += 1
            guard = Guard(self._keys, True, f"{s.var.name} makes a trip")
            place = self._guarded(place, guard, (s.start, s.stop, s.step))
        return replace(place, loops=(*place.loops, s))

    def _task(self, region: Region, place: _Place) -> None:
        d = self.d
        grid = []
        for s in place.loops:
            if s.kind is LoopKind.PARALLEL:
                loop = d.loop(s)
                grid.append(GridAxis(s.var.name, "parallel", s.var, loop.trips, loop.step))
        if region.count is not None:
            name = region.block.name if region.block is not None else "block"
            grid.append(GridAxis(name, "spmd", region.block, d.affine(region.count).dim()))
        captured = _captured(d, region)
        counts = (region.count,) if region.count is not None else ()
        accesses = launch_accesses(d, (*place.launch, *counts, *captured)) + region_accesses(d, region)
        number = self._names[region.name] = self._names.get(region.name, 0) + 1
        task = Task(
            index=len(self.tasks),
            name=region.name if number == 1 else f"{region.name}_{number}",
            region=region,
            grid=tuple(grid),
            loops=tuple(d.loop(s) for s in place.loops if s.kind is not LoopKind.PARALLEL),
            inner=tuple(d.loop(s) for s in walk(region.body) if isinstance(s, For)),
            reads=tuple(a for a in accesses if a.effect == "read"),
            writes=tuple(a for a in accesses if a.effect != "read"),
            captures=tuple(_capture(d, x) for x in captured),
            guards=tuple(g for g, _ in place.guards),
            manual=place.manual,
        )
        self.tasks.append(task)
        self.places.append(place)


def _with_deps(d: Definitions, found: _Collector) -> tuple[tuple[Task, ...], list[_Place]]:
    """The tasks with their ``deps=`` resolved."""
    ids = TaskIds(
        d,
        {t.region.tid: t.index for t in found.tasks if t.region.tid is not None},
        {t.index: t.region.deps for t in found.tasks},
        {t.index: guard_keys(t.guards) for t in found.tasks},
        found.branches,
    )
    found.waits = {t.index: ids.waits(t.index) for t in found.tasks}
    tasks = tuple(replace(t, deps=tuple(sorted({w[0] for w in found.waits[t.index]}))) for t in found.tasks)
    return tasks, found.places


def _captured(d: Definitions, region: Region) -> tuple[Expr, ...]:
    """Scalars and run-time extents of the orchestration that a region reads, in order of use."""
    found: dict[Expr, None] = {}
    for v in uses(region.body):
        if isinstance(v.type, ScalarType) and d.homes[v].region is not region:
            found[v] = None
    for s in walk(region.body):
        for x in (*operands(s), *exits(s)):
            found.update(dict.fromkeys(_extents(x)))
    return tuple(found)


def _extents(x: Expr) -> Iterator[DimVar]:
    if isinstance(x, DimVar):
        yield x
    elif isinstance(x, Binary):
        yield from _extents(x.lhs)
        yield from _extents(x.rhs)
    elif isinstance(x, Unary):
        yield from _extents(x.operand)


def _capture(d: Definitions, x: Expr) -> Capture:
    integer = x.dtype.is_integer
    form: Affine | Expr = d.affine(x) if integer else d.binds.get(x, x) if isinstance(x, Var) else x
    kind = max(_origins(d, x, set()), key=_STRENGTH.index)
    tables = d.tables(x) if kind == "data" else ()
    text = str(form) if isinstance(form, Affine) else expr_text(form)
    return Capture(expr_text(x), kind, text, tables)  # type: ignore[arg-type]


def _origins(d: Definitions, x: Expr, seen: set[Var]) -> set[str]:
    """What a scalar is made of, in the words of :class:`Capture`."""
    out = {"extent"} if any(_extents(x)) else {"constant"}
    for v in free_vars(x):
        if v in seen:
            continue
        seen.add(v)
        if v in d.binds:
            out |= _origins(d, d.binds[v], seen)
        elif v in d.loops or v in d.carried:
            out |= {"index", *(_origins(d, d.carried[v][1].next, seen) if v in d.carried else ())}
        elif v in d.merged:
            merged = d.merged[v][1]
            out |= _origins(d, merged.then, seen) | _origins(d, merged.orelse, seen)
        else:
            out.add("data" if v in d.lets else "argument")
    return out


# ------------------------------------------------------------------------------------------- conflicts
def _conflicts(d: Definitions, tasks: tuple[Task, ...], places: list[_Place]) -> Iterator[Conflict]:
    for second in tasks:
        for first in tasks[: second.index]:
            yield from _between(d, first, second, places, None)
        for loop in second.loops:
            for first in tasks:
                if any(x.var is loop.var for x in first.loops):
                    yield from _between(d, first, second, places, loop)


def _between(
    d: Definitions, first: Task, second: Task, places: list[_Place], carried: Loop | None
) -> Iterator[Conflict]:
    """The conflicts of two tasks, the first of each kind and buffer."""
    here, there = places[first.index], places[second.index]
    if _exclusive(here, there, carried) or (carried is not None and carried.trips in (0, 1)):
        return
    pairs = zip(here.loops, there.loops, strict=False)
    shared = [s for s, _ in takewhile(lambda pair: pair[0] is pair[1], pairs)]
    sequential = frozenset(s.var for s in shared if s.kind is not LoopKind.PARALLEL)
    where = Meeting(tuple(s.var for s in shared), sequential, carried)
    seen: set[tuple[str, Var]] = set()
    for a in (*first.writes, *first.reads):
        for b in (*second.reads, *second.writes):
            kind = _kind(a, b)
            if kind is None or a.tensor is not b.tensor or (kind, a.tensor) in seen:
                continue
            box = overlap(d, a, b, where)
            if box is not None:
                seen.add((kind, a.tensor))
                yield Conflict(
                    kind, first.index, second.index, (first.name, second.name), a.tensor, box, a.span, b.span,
                    carried.var if carried else None,
                )  # fmt: skip


def _kind(a: Access, b: Access) -> ConflictKind | None:
    """What the second access does to the first.  Atomic adds commute; a read at launch is over at launch."""
    if a.effect == "read":
        return None if b.effect == "read" or a.launch else "WAR"
    if b.effect == "read":
        return "RAW"
    return None if a.effect == b.effect == "atomic" else "WAW"


def _exclusive(a: _Place, b: _Place, carried: Loop | None) -> bool:
    """True if the tasks are in different branches of one ``if`` and so never both run.

    Not so in two trips of a loop around that ``if``.
    """
    others = {g.key: g.branch for g, _ in b.guards}
    return any(
        others.get(g.key, g.branch) is not g.branch
        for g, around in a.guards
        if carried is None or carried.var not in around
    )


# ------------------------------------------------------------------------------------------------ order
def _dependencies(
    inferred: list[Conflict], waits: dict[int, frozenset[tuple[int, Var | None]]]
) -> tuple[Dependency, ...]:
    """One dependency for each pair of tasks and carrying loop, with all its reasons."""
    why: dict[tuple[int, int, Var | None], dict[str, None]] = {}
    for c in inferred:
        why.setdefault((c.first, c.second, c.carried_by), {})[f"{c.kind} {c.tensor.name}"] = None
    for task, found in waits.items():
        for before, carried in sorted(found, key=lambda w: (w[0], w[1] is not None)):
            why.setdefault((before, task, carried), {})["deps="] = None
    ordered = sorted(why.items(), key=lambda item: (item[0][1], item[0][0], item[0][2] is not None))
    return tuple(Dependency(a, b, tuple(reasons), carried) for (a, b, carried), reasons in ordered)


def _ordered(tasks: tuple[Task, ...], dependencies: tuple[Dependency, ...], c: Conflict) -> bool:
    """True if a path of dependencies leads from the first task to the second.

    For a carried conflict the path takes one carried edge, from the earlier trip to the later.  A task on
    the way counts only if it runs whenever the two do.
    """
    first, second = guard_keys(tasks[c.first].guards), guard_keys(tasks[c.second].guards)
    goal = (c.second, c.carried_by is not None)
    todo = [(c.first, False)]
    seen = set(todo)
    while todo:
        at, crossed = todo.pop()
        for e in dependencies:
            if e.before != at or e.carried_by not in (None, c.carried_by):
                continue
            if e.carried_by is not None and crossed:
                continue
            state = (e.after, crossed or e.carried_by is not None)
            if state == goal:
                return True
            runs = second if state[1] else first if c.carried_by is not None else first | second
            if state not in seen and guard_keys(tasks[e.after].guards) <= runs:
                seen.add(state)
                todo.append(state)
    return False


__all__ = ["TaskGraph", "build"]
