"""Which tensors two blocks of one grid, or two iterations of one parallel loop, may touch at the same place.

Needs a task graph.  Gives, for every grid axis, the tensors that are written under it and for which it could
not be proved that different blocks touch different elements.  The proof looks at the affine forms of the
indices: a block index, or its quotient and remainder, that moves a box by at least its width on some axis.
What is not proved is not wrong: the simulator watches those tensors while it runs.  :func:`certain_races`
gives those that are wrong whatever the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement

from ..ir.expr import Binary, Const, Expr, Var, free_vars
from ..ir.graph import Access, Affine, AxisIndex, GridAxis, Interval, Task, TaskGraph
from .affine import Definitions, add, bounds, definitions, scale


def suspects(graph: TaskGraph) -> dict[Var, frozenset[Var]]:
    """For every spmd index and parallel loop variable, the tensors whose accesses are not proved apart."""
    d = definitions(graph.function)
    found: dict[Var, set[Var]] = {}
    under: dict[Var, list[Task]] = {}
    for task in graph.tasks:
        for axis in task.grid:
            if axis.var is not None:
                under.setdefault(axis.var, []).append(task)
    for var, tasks in under.items():
        found[var] = {a.tensor for a, b in _pairs(tasks) if _shared(d, a, var) and not apart(d, a, b, var)}
    return {var: frozenset(tensors) for var, tensors in found.items()}


_MEMBERS = 64  # of a grid axis that certain_races looks at


@dataclass(frozen=True)
class Race:
    """Two members of a grid axis that touch ``tensor[index]`` in every run, and one of them writes it."""

    scope: str
    members: tuple[str, str]
    first: Access
    second: Access
    index: tuple[int, ...]

    def describe(self) -> str:
        one, other = self.members
        return (
            f"{one} and {other} of {self.scope} touch {self.first.tensor.name}{list(self.index)}: "
            f"{self.first} at {self.first.span}, {self.second} at {self.second.span}"
        )


def certain_races(graph: TaskGraph) -> tuple[Race, ...]:
    """Races that follow from the indices alone: constant boxes that move by less than their width.

    One for each grid axis and tensor.  Only accesses that every member makes count, in tasks that always run.
    """
    d = definitions(graph.function)
    found = []
    for task in graph.tasks:
        for axis in task.grid if not task.guards else ():
            seen: set[Var] = set()
            for a, b in _pairs([task]):
                if axis.var is None or a.tensor in seen or not _shared(d, a, axis.var):
                    continue
                race = _certain(task, axis, axis.var, a, b) or _certain(task, axis, axis.var, b, a)
                if race is not None:
                    seen.add(a.tensor)
                    found.append(race)
    return tuple(found)


def _certain(task: Task, axis: GridAxis, var: Var, a: Access, b: Access) -> Race | None:
    """The race of member 0 by ``a`` with the first member whose ``b`` meets it; None if none is certain."""
    if axis.step is None or not isinstance(axis.extent, int) or a.loops or b.loops:
        return None
    boxes = [_fixed(x, var) for x in (a, b)]
    factors = [i.start.coefficient(var) for i in a.index]
    if None in boxes or factors != [j.start.coefficient(var) for j in b.index]:
        return None
    if axis.kind == "parallel" and any(factors):
        return None  # iteration 0 does not have index 0 there
    first, other = (box for box in boxes if box is not None)
    for k in range(1, min(axis.extent, _MEMBERS)):
        moved = [(low + f * axis.step * k, n) for (low, n), f in zip(other, factors, strict=True)]
        lows = [max(i, j) for (i, _), (j, _) in zip(first, moved, strict=True)]
        highs = [min(i + n, j + m) for (i, n), (j, m) in zip(first, moved, strict=True)]
        if all(low < high for low, high in zip(lows, highs, strict=True)):
            unit, of = ("block", "region") if axis.kind == "spmd" else ("iteration", "the loop around region")
            return Race(f"{of} {task.name!r}", (f"{unit} 0", f"{unit} {k}"), a, b, tuple(lows))
    return None


def _fixed(x: Access, var: Var) -> list[tuple[int, int]] | None:
    """Start and extent on every axis at ``var`` = 0; None if not constant, or not touched in every run."""
    rest = [_without(i.start, var) for i in x.index]
    if not x.always or not x.exact or not all(r.is_constant for r in rest):
        return None
    extents = [i.extent for i in x.index]
    if not all(isinstance(n, int) for n in extents):
        return None
    return [(r.const, n) for r, n in zip(rest, extents, strict=True) if isinstance(n, int)]


def _pairs(tasks: list[Task]) -> Iterator[tuple[Access, Access]]:
    """Pairs of accesses to one tensor of which at least one writes, and not both add atomically."""
    accesses = [a for t in tasks for a in (*t.reads, *t.writes) if not a.launch]
    for a, b in combinations_with_replacement(accesses, 2):
        effects = {a.effect, b.effect}
        if a.tensor is b.tensor and effects - {"read"} and effects != {"atomic"}:
            yield a, b


def _shared(d: Definitions, a: Access, var: Var) -> bool:
    """False for a buffer that every iteration of the loop makes anew."""
    return var not in d.homes[a.tensor].loops


def apart(d: Definitions, a: Access, b: Access, var: Var) -> bool:
    """True if ``a`` under one value of ``var`` and ``b`` under another provably have no element in common."""
    axes = [_Axis(d, i, j, var) for i, j in zip(a.index, b.index, strict=False)]
    if any(axis.never_meets for axis in axes):
        return True
    if any(axis.separates(var) for axis in axes):
        return True
    # Different values differ in their quotient by some K, or have one quotient and differ in the remainder
    for quotient in {q for axis in axes for q in axis.digits if q.op == "//"}:
        remainder = Binary("%", quotient.lhs, quotient.rhs)
        if any(axis.separates(quotient) for axis in axes) and any(
            axis.separates(remainder, equal=quotient) for axis in axes
        ):
            return True
    return False


class _Axis:
    """One axis of two boxes: their starts and extents, split into what depends on ``var`` and the rest."""

    def __init__(self, d: Definitions, a: AxisIndex, b: AxisIndex, var: Var) -> None:
        self.d = d
        self.var = var
        self.starts = (a.start, b.start)
        self.extents = (_extent(d, a), _extent(d, b))
        self.digits = frozenset(
            atom
            for form in self.starts
            for atom, _ in form.terms
            if isinstance(atom, Binary) and atom.lhs is var and isinstance(atom.rhs, Const)
        )
        self.never_meets = _before(a.hull, b.hull) or _before(b.hull, a.hull)

    def separates(self, digit: Expr, equal: Expr | None = None) -> bool:
        """True if two different values of ``digit`` move the boxes past each other.

        ``equal`` is another digit that has one value on both sides.
        """
        factors = [form.coefficient(digit) for form in self.starts]
        if factors[0] != factors[1] or factors[0] == 0:
            return False
        width = self._spread(digit, equal)
        return width is not None and abs(factors[0]) >= width

    def _spread(self, digit: Expr, equal: Expr | None) -> int | None:
        """The least step that keeps the boxes apart, whatever the other terms are; None if unbounded."""
        forms = [_without(form, digit) for form in self.starts]
        difference = forms[0] - forms[1]
        rest: Interval = (0, 0)
        for form, sign in ((forms[0], 1), (forms[1], -1)):
            for atom, c in form.terms:
                if not self._cancels(atom, difference, equal):
                    rest = add(rest, scale(bounds(atom, self.d.ranges), c * sign))
        rest = add(rest, (difference.const, difference.const))
        low, high = rest
        if low is None or high is None or None in self.extents:
            return None
        first, second = (e for e in self.extents if e is not None)
        return max(high + first, -low + second)

    def _cancels(self, atom: Expr, difference: Affine, equal: Expr | None) -> bool:
        """True if the atom has one value on both sides and one factor in both starts."""
        if difference.coefficient(atom) != 0:
            return False
        if equal is not None and atom == equal:
            return True
        return all(
            v is not self.var and self.d.homes[v].region is None and self.var not in self.d.homes[v].loops
            for v in free_vars(atom)
        )


def _without(form: Affine, digit: Expr) -> Affine:
    return Affine(tuple((a, c) for a, c in form.terms if a != digit), form.const)


def _extent(d: Definitions, x: AxisIndex) -> int | None:
    return x.limit if x.limit is not None else d.bounds(x.extent)[1]


def _before(a: Interval, b: Interval) -> bool:
    return a[1] is not None and b[0] is not None and a[1] <= b[0]
