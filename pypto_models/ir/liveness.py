"""Live ranges of the variables of a block, as intervals over one numbering of the program text.

Each statement has a position; a construct has further ones for its blocks' ends.  A variable is live from
its definition up to its last use: ``[lo, hi)``, so that a value read and a value defined by one statement do
not overlap.  A variable that a loop body reads from outside is live in the whole body; one that only one
branch of an ``if`` reads is live in that branch only.  A loop-carried or merged variable is also live at the
points that assign it: the end of the loop body, the end of each branch.

Regions and scopes are no blocks of their own here: what they define is in scope after them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from .expr import Expr, Var, free_vars
from .nodes import Block, For, If, Region, Scope, Stmt
from .rewrite import defs, operands

Ranges: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(eq=False)
class Frame:
    """A block with a scope of its own: the program, a loop body, one branch.

    ``head`` is the position up to which a variable of the block around it is live if this block reads it.
    ``construct`` is the number of the loop or the ``if``; both branches of an ``if`` share it.
    """

    construct: int
    start: int
    head: int
    loop: bool = False
    end: int = 0


Frames: TypeAlias = tuple[Frame, ...]


@dataclass
class Liveness:
    """``ranges`` of every variable, the blocks around its definition (``homes``, outermost first), the
    construct whose carried or merged value it is (``phis``), and the variables that the block only reads."""

    free: tuple[Var, ...] = ()
    defined: dict[Var, int] = field(default_factory=dict)
    homes: dict[Var, Frames] = field(default_factory=dict)
    phis: dict[Var, int] = field(default_factory=dict)
    ranges: dict[Var, Ranges] = field(default_factory=dict)

    def live_after_definition_of(self, result: Var, v: Var) -> bool:
        """Whether ``v`` is still needed once the statement that defines ``result`` has run."""
        at = self.defined[result]
        return any(lo <= at < hi for lo, hi in self.ranges.get(v, ()))


def liveness(block: Block, params: Iterable[Var] = ()) -> Liveness:
    """Live ranges in ``block``.  Variables that it reads and does not define count as ``params``."""
    return _Walk().run(block, tuple(params))


def overlap(a: Ranges, b: Ranges) -> bool:
    """Whether two sorted lists of intervals share a position."""
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i][0] < b[j][1] and b[j][0] < a[i][1]:
            return True
        if a[i][1] <= b[j][1]:
            i += 1
        else:
            j += 1
    return False


def united(*parts: Iterable[tuple[int, int]]) -> Ranges:
    """The union of intervals: sorted, disjoint, not adjacent."""
    out: list[tuple[int, int]] = []
    for lo, hi in sorted(interval for part in parts for interval in part):
        if out and lo <= out[-1][1]:
            out[-1] = (out[-1][0], max(hi, out[-1][1]))
        elif lo < hi:
            out.append((lo, hi))
    return tuple(out)


class _Walk:
    def __init__(self) -> None:
        self.now = 0
        self.constructs = 0
        self.out = Liveness()
        self.reads: list[tuple[Var, int, Frames]] = []
        self.writes: list[tuple[Var, int]] = []

    def run(self, block: Block, params: tuple[Var, ...]) -> Liveness:
        root = Frame(construct=0, start=0, head=0)
        for v in params:
            self.define(v, 0, (root,))
        self.block(block, (root,))
        root.end = self.tick() + 1
        parts: dict[Var, list[tuple[int, int]]] = {}
        self.out.free = tuple(dict.fromkeys(v for v, _, _ in self.reads if v not in self.out.defined))
        for v in self.out.free:
            self.define(v, 0, (root,))
        for v, at in self.out.defined.items():
            parts[v] = [(at, at + 1)]
        for v, at in self.writes:
            parts[v].append((at, at + 1))
        for v, at, frames in self.reads:
            parts[v] += self.between(v, at, frames)
        self.out.ranges = {v: united(p) for v, p in parts.items()}
        return self.out

    def between(self, v: Var, use: int, frames: Frames) -> Iterable[tuple[int, int]]:
        """Intervals from the definition of ``v`` to a use inside ``frames``."""
        home = self.out.homes[v]
        start = self.out.defined[v]
        if frames[: len(home)] != home:  # out of scope, which the verifier reports
            yield (start, use)
            return
        for frame in reversed(frames[len(home) :]):
            yield (frame.start, frame.end if frame.loop else use)
            use = frame.head
        yield (start, use)

    def tick(self) -> int:
        self.now += 2
        return self.now

    def define(self, v: Var, at: int, frames: Frames) -> None:
        self.out.defined[v] = at
        self.out.homes[v] = frames

    def read(self, x: Expr, at: int, frames: Frames) -> None:
        self.reads += [(v, at, frames) for v in free_vars(x)]

    def block(self, block: Block, frames: Frames) -> None:
        for s in block:
            self.stmt(s, frames)

    def stmt(self, s: Stmt, frames: Frames) -> None:
        at = self.tick()
        if isinstance(s, For):
            self.loop(s, at, frames)
        elif isinstance(s, If):
            self.branches(s, at, frames)
        else:
            for x in operands(s):
                self.read(x, at, frames)
            for v in defs(s):
                self.define(v, at, frames)
            if isinstance(s, Region) and s.block is not None:
                self.define(s.block, at + 1, frames)
            if isinstance(s, Region | Scope):
                self.block(s.body, frames)

    def loop(self, s: For, at: int, frames: Frames) -> None:
        for x in operands(s):
            self.read(x, at, frames)
        self.constructs += 1
        body = Frame(self.constructs, start=at + 2, head=at + 2, loop=True)
        inner = (*frames, body)
        for v in (s.var, *(c.param for c in s.carried)):
            self.define(v, at, inner)
        self.block(s.body, inner)
        end = self.tick()
        body.end = end + 1
        after = self.tick()
        for c in s.carried:
            self.read(c.next, end, inner)
            self.writes.append((c.param, end))
            self.define(c.result, after, frames)
            self.out.phis[c.param] = self.out.phis[c.result] = body.construct

    def branches(self, s: If, at: int, frames: Frames) -> None:
        self.read(s.cond, at, frames)
        self.constructs += 1
        construct = self.constructs
        start = at + 1
        for block, values in ((s.then, [m.then for m in s.merged]), (s.orelse, [m.orelse for m in s.merged])):
            frame = Frame(construct, start, head=at + 1)
            inner = (*frames, frame)
            self.block(block, inner)
            end = self.tick()
            frame.end = start = end + 1
            for m, value in zip(s.merged, values, strict=True):
                self.read(value, end, inner)
                self.writes.append((m.result, end))
        after = self.tick()
        for m in s.merged:
            self.define(m.result, after, frames)
            self.out.phis[m.result] = construct
