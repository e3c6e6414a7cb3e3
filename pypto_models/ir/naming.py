"""Names of variables in printed text: one name per variable, shared where the language wants a rebinding.

Text carries a value around a loop, or out of a branch, by rebinding one name.  The variables of a carried or
merged value therefore form a group under one name wherever their live ranges allow it; where they do not, the
printer assigns the name explicitly.  A group never rebinds a name inside of a loop or branch that does not
carry or merge it, since reading the text back would make it do so.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from .expr import Var
from .liveness import Frames, Liveness, Ranges, liveness, overlap, united
from .nodes import Block, For, If, Let, Region
from .rewrite import walk
from .signature import definition

RESERVED = frozenset({"pl", "min", "max", "abs", "range", "len", "int", "float", *keyword.kwlist})


class _Group:
    """Variables under one name."""

    def __init__(self, v: Var, live: Liveness) -> None:
        self.members: list[Var] = [v]
        self.ranges: Ranges = live.ranges[v]
        self.homes: set[Frames] = {live.homes[v]}
        self.phis: set[int] = {live.phis[v]} if v in live.phis else set()

    def absorb(self, other: _Group) -> None:
        self.members += other.members
        self.ranges = united(self.ranges, other.ranges)
        self.homes |= other.homes
        self.phis |= other.phis


class Names:
    """The printed name of every variable of a block.

    ``params`` and the variables that the block reads from outside keep their own names where they can.
    """

    def __init__(self, block: Block, params: Iterable[Var] = (), reserved: Iterable[str] = ()) -> None:
        self._live = liveness(block, params)
        self._given = tuple(dict.fromkeys((*params, *self._live.free)))
        self._groups = {v: _Group(v, self._live) for v in self._live.defined}
        self._coalesce(block)
        self._taken = {*RESERVED, *reserved}
        self._names: dict[Var, str] = {}
        self._assign()

    def __getitem__(self, v: Var) -> str:
        return self._names.get(v, v.name)

    def rename(self, v: Var, name: str) -> None:
        """From here on ``v`` is called ``name``."""
        self._names[v] = name

    def fresh(self, base: str) -> str:
        """A name that nothing else has."""
        return unique(base, self._taken)

    # ------------------------------------------------------------------------------------ groups
    def _coalesce(self, block: Block) -> None:
        fixed: list[Var] = []  # loop variables and block indices are never rebound
        for s in walk(block):
            if isinstance(s, For):
                fixed.append(s.var)
                for c in s.carried:
                    self._join(c.param, c.result)
            elif isinstance(s, Region) and s.block is not None:
                fixed.append(s.block)
        self._reuse(fixed)
        edges = [(a, b) for a, b in _edges(block) if a not in fixed and b not in fixed]
        self._join_all([(a, b) for a, b in edges if a.name == b.name])
        given = set(self._given)  # a parameter is only rebound where the user did so
        self._join_all([(a, b) for a, b in edges if a not in given and b not in given])

    def _reuse(self, indices: list[Var]) -> None:
        """One name for loop variables that the user called alike, unless their loops nest."""
        alike: dict[str, list[_Group]] = {}
        for v in indices:
            home = self._live.homes[v]
            groups = alike.setdefault(v.name, [])
            for g in groups:
                if not any(home[: len(h)] == h or h[: len(home)] == home for h in g.homes):
                    g.absorb(self._groups[v])
                    self._groups[v] = g
                    break
            else:
                groups.append(self._groups[v])

    def _join_all(self, edges: list[tuple[Var, Var]]) -> None:
        while any([self._join(a, b) for a, b in edges]):  # a list: one join may make another one legal
            pass

    def _join(self, a: Var, b: Var) -> bool:
        """Give two variables one name if that keeps the meaning of the text; True if it is new."""
        x, y = self._groups[a], self._groups[b]
        if x is y or overlap(x.ranges, y.ranges):
            return False
        homes, phis = x.homes | y.homes, x.phis | y.phis
        shared = _common(homes)
        if any(frame.construct not in phis for home in homes for frame in home[shared:]):
            return False
        x.absorb(y)
        for v in y.members:
            self._groups[v] = x
        return True

    # ------------------------------------------------------------------------------------ identifiers
    def _assign(self) -> None:
        names = {v: self.fresh(v.name) for v in self._given}
        order = self._live.defined
        for v in sorted(order, key=lambda v: (order[v], v.uid)):
            if v in self._names:
                continue
            members = sorted(self._groups[v].members, key=lambda m: order[m])
            name = next((names[m] for m in members if m in names), None)
            if name is None:
                name = self.fresh(Counter(m.name for m in members).most_common(1)[0][0])
            self._names.update(dict.fromkeys(members, name))


def _edges(block: Block) -> Iterator[tuple[Var, Var]]:
    """Pairs that should have one name, the most wanted first."""
    stmts = list(walk(block))
    for s in stmts:
        if isinstance(s, Let) and (target := mutated(s)) is not None:
            yield s.result, target
    for s in stmts:
        if isinstance(s, For):
            yield from ((c.param, c.next) for c in s.carried if isinstance(c.next, Var))
        elif isinstance(s, If):
            yield from ((m.result, x) for m in s.merged for x in (m.then, m.orelse) if isinstance(x, Var))
    for s in stmts:
        if isinstance(s, For):
            yield from ((c.param, c.init) for c in s.carried if isinstance(c.init, Var))


def mutated(let: Let) -> Var | None:
    """The tile or array that the op changes in place, if it does."""
    param = definition(let.op).mutates
    target = let.arg(param) if param is not None else None
    return target if isinstance(target, Var) else None


def _common(homes: set[Frames]) -> int:
    """Length of the common prefix."""
    first, *others = homes
    n = len(first)
    for home in others:
        n = min(n, len(home))
        n = next((i for i in range(n) if first[i] is not home[i]), n)
    return n


def unique(base: str, taken: set[str]) -> str:
    """``base`` as an identifier, numbered if it is taken; taken from now on."""
    base = re.sub(r"\W", "_", base, flags=re.ASCII)
    base = name = base if base[:1].isalpha() or base[:1] == "_" else f"v{base}"
    n = 0
    while name in taken:
        n += 1
        name = f"{base}_{n}"
    taken.add(name)
    return name
