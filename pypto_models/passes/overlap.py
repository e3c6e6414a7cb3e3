"""Whether two accesses of two tasks may touch one element.

Two boxes are apart if on some axis one provably ends before the other starts.  What both tasks share (run-
time extents, arguments, the trip of a common sequential loop) cancels in the difference of their starts; all
else (blocks, inner loops, iterations of parallel loops) differs for each task and is taken over its range.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.expr import Var
from ..ir.graph import Access, Affine, AxisIndex, Interval, Loop
from .affine import Definitions, add, bounds, scale


@dataclass(frozen=True)
class Meeting:
    """Which instances of two tasks are compared.

    ``shared``: loops around both, outer first; ``sequential``: those of them that run trip after trip.
    ``carried``: the first task in one trip of this loop, the second in a later one; None: in the same trip.
    """

    shared: tuple[Var, ...]
    sequential: frozenset[Var]
    carried: Loop | None = None


def overlap(d: Definitions, a: Access, b: Access, where: Meeting) -> str | None:
    """The text of the common box of two accesses to one buffer, or None if they are apart."""
    made_in = d.homes[a.tensor].loops
    if not _same_buffer(a, b, made_in, where):
        return None
    same = _same_loops(where, made_in)
    if any(_apart(d, i, j, same, where.carried) for i, j in zip(a.index, b.index, strict=False)):
        return None
    return _common(a, b)


def _same_buffer(a: Access, b: Access, made_in: tuple[Var, ...], where: Meeting) -> bool:
    """A buffer made inside of a loop is another one in each trip.

    An access that reaches it through a carried reference touches the one of some trips ago (its lag).
    """
    for loop in where.shared:
        if loop not in made_in:
            continue
        first, second = dict(a.lags).get(loop, 0), dict(b.lags).get(loop, 0)
        if where.carried is not None and loop is where.carried.var:
            return second is None or (first is not None and second > first)
        if first != second and not (first is None and second != 0) and not (second is None and first != 0):
            return False
    return True


def _same_loops(where: Meeting, made_in: tuple[Var, ...]) -> frozenset[Var]:
    """Loops whose variable has one value on both sides; the carrying loop is handled by its shift."""
    if where.carried is None:
        return where.sequential | frozenset(made_in).intersection(where.shared)
    outer = where.shared[: where.shared.index(where.carried.var)]
    return where.sequential.intersection(outer) | frozenset(made_in).intersection(outer)


def _apart(d: Definitions, a: AxisIndex, b: AxisIndex, same: frozenset[Var], carried: Loop | None) -> bool:
    """True if the ranges of one axis have no element in common."""
    if _ends_before(a.hull, b.hull) or _ends_before(b.hull, a.hull):
        return True
    return any(
        low is not None and low >= 0
        for low in (
            *(_gap(d, end, b.start, same, carried, 1) for end in _ends(d, a)),
            *(_gap(d, end, a.start, same, carried, -1) for end in _ends(d, b)),
        )
    )


def _ends_before(a: Interval, b: Interval) -> bool:
    return a[1] is not None and b[0] is not None and a[1] <= b[0]


def _ends(d: Definitions, x: AxisIndex) -> tuple[Affine, ...]:
    end = x.start + d.affine(x.extent)
    return (end,) if x.limit is None or x.limit == x.extent else (end, x.start + x.limit)


def _gap(
    d: Definitions, end: Affine, start: Affine, same: frozenset[Var], carried: Loop | None, order: int
) -> int | None:
    """The least value of ``start - end``; ``order`` is 1 if ``start`` is of the later trip, -1 if ``end``."""
    known = same | {carried.var} if carried is not None else same
    difference: Interval = (0, 0)
    common = Affine()
    for form, sign, later in ((start, 1, order > 0), (end, -1, order < 0)):
        shared = []
        for atom, c in form.terms:
            plain = carried is None or atom is carried.var or d.same(atom, same)
            if plain and d.same(atom, known):
                shared.append((atom, c))
                if carried is not None and later and atom is carried.var:
                    difference = add(difference, scale(_shift(d, carried), c * sign))
            else:
                difference = add(difference, scale(bounds(atom, d.ranges), c * sign))
        common = common + Affine(tuple(shared), form.const) * sign
    return add(difference, bounds(common, d.ranges))[0]


def _shift(d: Definitions, loop: Loop) -> Interval:
    """How far the loop variable is ahead in a later trip."""
    if loop.step is None:
        return (None, None)
    last = d.bounds(loop.trips)[1]
    return scale((1, None if last is None else max(1, last - 1)), loop.step)


def _common(a: Access, b: Access) -> str:
    if not a.index or not b.index:
        return "[...]"
    return f"[{', '.join(_common_axis(i, j) for i, j in zip(a.index, b.index, strict=True))}]"


def _common_axis(a: AxisIndex, b: AxisIndex) -> str:
    if str(a) == str(b):
        return str(a)
    low = max(a.hull[0] or 0, b.hull[0] or 0)
    ends = [e for e in (a.hull[1], b.hull[1]) if e is not None]
    return f"{low}:{min(ends)}" if ends else str(b)
