"""Which tensors two blocks of one grid, or two iterations of one parallel loop, may touch at the same place.

Needs a task graph.  Gives, for every grid axis, the tensors that are written under it and for which it could
not be proved that different blocks touch different elements.  The proof looks at the affine forms of the
indices: a block index, or its quotient and remainder, that moves a box by at least its width on some axis.
What is not proved is not wrong: the simulator watches those tensors while it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement

from ..ir.expr import Binary, Const, Expr, Var, free_vars
from ..ir.graph import Access, Affine, AxisIndex, Interval, Task, TaskGraph
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
