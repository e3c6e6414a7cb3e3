"""Which tasks a ``deps=`` waits for: task ids followed through names, arrays, loops, branches and task_dummy.

A task id that only some paths bind counts where it must be the task: in both branches of an ``if``, or the
task runs in that branch only.  An array element set at an unknown index counts for every index, as arrays of
ids are filled by the loop that launches the tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ..ir.expr import Const, Expr, Var
from ..ir.graph import Guard
from ..ir.nodes import LoopKind
from ..ir.rewrite import arg_exprs
from ..ir.types import ArrayType
from .affine import Definitions

Wait: TypeAlias = tuple[int, Var | None]  # a task, and the loop of whose earlier trips it is the task
Waits: TypeAlias = frozenset[Wait]


@dataclass(frozen=True)
class _Elements:
    """An array of ids: what is known by index, and what may be at any index."""

    known: Mapping[int, Waits] = field(default_factory=dict)
    rest: Waits = frozenset()

    def all(self) -> Waits:
        return self.rest.union(*self.known.values())

    def join(self, other: _Elements) -> _Elements:
        keys = {*self.known, *other.known}
        known = {k: self.known.get(k, frozenset()) | other.known.get(k, frozenset()) for k in keys}
        return _Elements(known, self.rest | other.rest)


@dataclass(frozen=True)
class TaskIds:
    """``launched`` maps the id of each region to its task; ``guards`` are those of every task by index."""

    d: Definitions
    launched: Mapping[Var, int]
    deps: Mapping[int, tuple[Expr, ...]]
    guards: Mapping[int, frozenset[tuple[int, bool]]]
    branches: Mapping[int, int]  # id of an If -> its key in guards

    def waits(self, task: int) -> Waits:
        """What the ``deps=`` of a task wait for."""
        return frozenset(w for x in self.deps[task] for w in self._of(x, frozenset()))

    def _of(self, x: Expr, open_: frozenset[Var]) -> Waits:
        if not isinstance(x, Var) or x in open_:
            return frozenset()
        if x in self.launched:
            return frozenset({(self.launched[x], None)})
        if isinstance(x.type, ArrayType):
            return self._elements(x, open_).all()
        if x in self.d.carried:
            loop, c = self.d.carried[x]
            inner = self._of(c.next, open_ | {c.param})
            if x is c.param:
                return self._of(c.init, open_) | self._later(inner, loop.var)
            # After the loop the id is that of the last trip: earlier ones are done if each waits for the last
            chained = {w for w in inner if w[1] is None and (w[0], loop.var) in self.waits(w[0])}
            return frozenset(chained)
        if x in self.d.merged:
            stmt, m = self.d.merged[x]
            then, orelse = self._of(m.then, open_), self._of(m.orelse, open_)
            key = self.branches[id(stmt)]
            return frozenset(
                {w for w in then if w in orelse or (key, True) in self.guards[w[0]]}
                | {w for w in orelse if w in then or (key, False) in self.guards[w[0]]}
            )
        let = self.d.lets.get(x)
        if let is None:
            return frozenset()
        if let.op.name == "array_get":
            array, at = let.arg("array"), let.arg("index")
            if not isinstance(array, Var):
                return frozenset()
            elements = self._elements(array, open_)
            i = at[0] if isinstance(at, tuple) else None
            if isinstance(i, Const):
                return elements.known.get(int(i.value), frozenset()) | elements.rest
            return elements.all()
        return frozenset(w for a in let.args for y in arg_exprs(a) for w in self._of(y, open_))

    def _later(self, waits: Waits, loop: Var) -> Waits:
        """Ids of this trip, seen from the next; parallel iterations never wait."""
        if self.d.loops[loop].kind is LoopKind.PARALLEL:
            return frozenset()
        return frozenset((task, carried or loop) for task, carried in waits)

    def _elements(self, x: Var, open_: frozenset[Var]) -> _Elements:
        if x in open_:
            return _Elements()
        if x in self.d.carried:
            loop, c = self.d.carried[x]
            if not isinstance(c.init, Var) or not isinstance(c.next, Var):
                return _Elements()
            start = self._elements(c.init, open_)
            body = self._elements(c.next, open_ | {c.param})
            if x is c.param:
                later = {k: self._later(w, loop.var) for k, w in body.known.items()}
                body = _Elements(later, self._later(body.rest, loop.var))
            return start.join(body)
        if x in self.d.merged:
            m = self.d.merged[x][1]
            sides = [self._elements(s, open_) for s in (m.then, m.orelse) if isinstance(s, Var)]
            return sides[0].join(sides[1]) if len(sides) == 2 else _Elements()
        let = self.d.lets.get(x)
        if let is None or let.op.name != "array_set":
            return _Elements()
        array, at, value = let.arg("array"), let.arg("index"), let.arg("value")
        old = self._elements(array, open_) if isinstance(array, Var) else _Elements()
        new = self._of(value, open_) if isinstance(value, Expr) else frozenset()
        i = at[0] if isinstance(at, tuple) else None
        if isinstance(i, Const):
            return _Elements({**old.known, int(i.value): new}, old.rest)
        return _Elements(old.known, old.rest | new)


def guard_keys(guards: tuple[Guard, ...]) -> frozenset[tuple[int, bool]]:
    return frozenset((g.key, g.branch) for g in guards)
