"""Names of variables in printed text: one name per variable, shared where the language wants a rebinding.

Text carries a value around a loop, or out of a branch, by rebinding one name.  The variables of a carried or
merged value therefore form a group under one name wherever their live ranges allow it; where they do not, the
printer assigns the name explicitly.  A group never rebinds a name inside of a loop or branch that does not
carry or merge it, since reading the text back would make it do so.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from .expr import Expr, Var
from .liveness import Frames, Liveness, Ranges, liveness, overlap, united
from .nodes import Block, For, If, Let, Region
from .rewrite import walk

RESERVED = frozenset({"pl", *keyword.kwlist, *dir(builtins)})


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
    """The printed name of every variable of a block.  ``given`` are variables that keep their own names."""

    def __init__(self, block: Block, given: Iterable[Var] = (), reserved: Iterable[str] = ()) -> None:
        self._given = tuple(given)
        self._live = liveness(block, self._given)
        self._groups = {v: _Group(v, self._live) for v in self._live.defined}
        self._fixed: set[Var] = set()  # loop variables and block indices are never rebound
        self._coalesce(block)
        self._taken = {*RESERVED, *reserved}
        self._names: dict[Var, str] = {}
        self._assign()

    def __getitem__(self, v: Var) -> str:
        return self._names[v]

    def rename(self, v: Var, name: str) -> None:
        self._names[v] = name

    def fresh(self, base: str) -> str:
        """A name that nothing else has."""
        name = base = _identifier(base)
        n = 0
        while name in self._taken:
            n += 1
            name = f"{base}_{n}"
        self._taken.add(name)
        return name

    # ------------------------------------------------------------------------------------ groups
    def _coalesce(self, block: Block) -> None:
        for s in walk(block):
            if isinstance(s, For):
                self._fixed.add(s.var)
                for c in s.carried:
                    self._join(c.param, c.result)
            elif isinstance(s, Region) and s.block is not None:
                self._fixed.add(s.block)
        edges = list(_edges(block))
        alike = [(a, b) for a, b in edges if a.name == b.name]
        for a, b in alike:
            self._join(a, b)
        self._fixed |= set(self._given)  # a parameter is only rebound where the user did so
        for a, b in edges:
            self._join(a, b)

    def _join(self, a: Var, b: Var) -> None:
        """Give two variables one name if that keeps the meaning of the text."""
        x, y = self._groups[a], self._groups[b]
        if x is y or a in self._fixed or b in self._fixed or overlap(x.ranges, y.ranges):
            return
        homes, phis = x.homes | y.homes, x.phis | y.phis
        shared = _common(homes)
        if any(frame.construct not in phis for home in homes for frame in home[shared:]):
            return
        x.absorb(y)
        for v in y.members:
            self._groups[v] = x

    # ------------------------------------------------------------------------------------ identifiers
    def _assign(self) -> None:
        given = set(self._given)
        for v in self._given:  # at the top, so that they get their names as they are
            name = _identifier(v.name)
            self._names[v] = name if name == "pl" or keyword.iskeyword(name) else self._claim(name)
            if self._names[v] == name and name not in self._taken:
                self._names[v] = self.fresh(name)
        done: set[int] = set()
        for v in sorted(self._live.defined, key=lambda v: (self._live.defined[v], v.uid)):
            group = self._groups[v]
            if id(group) in done:
                continue
            done.add(id(group))
            owner = next((m for m in group.members if m in given), None)
            if owner is not None:
                name = self._names[owner]
            else:
                name = self.fresh(Counter(m.name for m in group.members).most_common(1)[0][0])
            for m in group.members:
                self._names[m] = name

    def _claim(self, name: str) -> str:
        return name


def _edges(block: Block) -> Iterator[tuple[Var, Var]]:
    """Pairs that the text would like to have under one name, the most wanted first."""
    stmts = list(walk(block))
    for s in stmts:
        if isinstance(s, Let) and s.op.name == "array_set":
            yield from _pair(s.result, s.args[0])
    for s in stmts:
        if isinstance(s, For):
            for c in s.carried:
                yield from _pair(c.param, c.next)
        elif isinstance(s, If):
            for m in s.merged:
                yield from _pair(m.result, m.then)
                yield from _pair(m.result, m.orelse)
    for s in stmts:
        if isinstance(s, For):
            for c in s.carried:
                yield from _pair(c.param, c.init)


def _pair(a: Var, b: object) -> Iterator[tuple[Var, Var]]:
    if isinstance(b, Var):
        yield a, b


def _common(homes: set[Frames]) -> int:
    """Length of the common prefix."""
    first, *others = homes
    n = len(first)
    for home in others:
        n = next((i for i, (x, y) in enumerate(zip(first[:n], home, strict=False)) if x is not y), min(n, len(home)))
    return n


def _identifier(name: str) -> str:
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    return name if name[:1].isalpha() or name[:1] == "_" else f"v{name}"


def copies(pairs: Iterable[tuple[Var, Expr]], names: Names) -> Iterator[tuple[str, Expr]]:
    raise NotImplementedError
