"""Live ranges of the tiles of a region, as sets of program points.

Every statement has a position p with two points: 2p, where it reads, and 2p + 1, where it writes.  An operand
that dies at p is live at 2p only and the result starts at 2p + 1, so the two may share storage.  A loop takes
a position at its head, where carried values take their initial ones, and one at its end, where they take the
next ones; a branch of an ``if`` takes one at its end, where merged values are assigned.

A set of points is a Python integer used as a bit set: bit i is point i.  Ranges are exact: a tile that only
one branch reads is dead in the other, and one that a loop reads from outside is live in all of the loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..ir.expr import Const, Expr, Var
from ..ir.nodes import Block, For, If, Let, LoopKind, Stmt
from ..ir.rewrite import arg_exprs, children, uses
from ..ir.types import TileType


def read_point(position: int) -> int:
    return 1 << (2 * position)


def write_point(position: int) -> int:
    return 1 << (2 * position + 1)


def points_between(first: int, last: int) -> int:
    """The set of points ``first`` to ``last``, both included."""
    return (1 << (last + 1)) - (1 << first)


@dataclass(frozen=True, eq=False)
class Node:
    """A statement with its positions.  ``ends`` are those of the ends of its blocks; ``loop`` encloses it."""

    stmt: Stmt
    position: int
    blocks: tuple[tuple[Node, ...], ...] = ()
    ends: tuple[int, ...] = ()
    loop: Loop | None = None


@dataclass(eq=False)
class Loop:
    """A loop that encloses statements: the positions of its head and, once numbered, its end."""

    stmt: For
    head: int
    end: int = -1

    @property
    def interior(self) -> int:
        """The points of one trip: after the carried values arrive, before they are handed on."""
        return points_between(2 * self.head + 2, 2 * self.end - 1)

    @property
    def stages(self) -> int:
        """Trips in flight at once: the pipeline's stages, at most the trips that there are."""
        if self.stmt.kind is not LoopKind.PIPELINE:
            return 1
        trips = trip_count(self.stmt)
        return max(1, self.stmt.stage if trips is None else min(self.stmt.stage, trips))


def trip_count(loop: For) -> int | None:
    """Trips of a loop with constant bounds, else None."""
    bounds = (loop.start, loop.stop, loop.step)
    if not all(isinstance(b, Const) for b in bounds):
        return None
    return len(range(*(int(b.value) for b in bounds if isinstance(b, Const))))


@dataclass
class Liveness:
    """``nodes`` in program order, outer before inner; ``live[v]`` the points at which the tile v is live."""

    nodes: list[Node] = field(default_factory=list)
    live: dict[Var, int] = field(default_factory=dict)


def analyse(block: Block) -> Liveness:
    """Number the statements of a region's body and find the live ranges of its tiles."""
    out = Liveness()
    top = _number(block, None, [0], out.nodes)
    _Backward(out.live).block(top, set())
    return out


def tiles(exprs: Iterable[object]) -> list[Var]:
    return [x for x in exprs if isinstance(x, Var) and isinstance(x.type, TileType)]


def tile_operands(let: Let) -> list[Var]:
    return tiles(x for a in let.args for x in arg_exprs(a))


def _number(block: Block, loop: Loop | None, clock: list[int], nodes: list[Node]) -> tuple[Node, ...]:
    def tick() -> int:
        clock[0] += 1
        return clock[0] - 1

    out: list[Node] = []
    for s in block:
        position, slot = tick(), len(nodes)
        nodes.append(Node(s, position))  # replaced below: inner statements come after it
        blocks: list[tuple[Node, ...]] = []
        ends: list[int] = []
        around = Loop(s, position) if isinstance(s, For) else loop
        for inner in children(s):
            blocks.append(_number(inner, around, clock, nodes))
            ends.append(tick())
        if isinstance(s, For) and around is not None:
            (around.end,) = ends
        nodes[slot] = Node(s, position, tuple(blocks), tuple(ends), loop)
        out.append(nodes[slot])
    return tuple(out)


@dataclass
class _Backward:
    """One backward walk; in SSA with structured control flow no iteration is needed."""

    live: dict[Var, int]

    def _mark(self, point: int, tiles: Iterable[Var]) -> None:
        for v in tiles:
            self.live[v] = self.live.get(v, 0) | point

    def block(self, nodes: tuple[Node, ...], after: set[Var]) -> set[Var]:
        """The tiles live before ``nodes``, given those live after."""
        live = set(after)
        for node in reversed(nodes):
            if isinstance(node.stmt, For):
                live = self._for(node, node.stmt, live)
            elif isinstance(node.stmt, If):
                live = self._if(node, node.stmt, live)
            elif isinstance(node.stmt, Let):
                live = self._let(node, node.stmt, live)
        return live

    def _let(self, node: Node, s: Let, after: set[Var]) -> set[Var]:
        results = set(tiles(s.results))
        self._mark(write_point(node.position), after | results)
        before = (after - results) | set(tile_operands(s))
        self._mark(read_point(node.position), before)
        return before

    def _for(self, node: Node, s: For, after: set[Var]) -> set[Var]:
        (end,) = node.ends
        params, results = set(tiles(c.param for c in s.carried)), set(tiles(c.result for c in s.carried))
        inside = set(_defined(s.body)) | params
        read = {v for v in tiles([*uses(s.body), *(c.next for c in s.carried)]) if v not in inside}
        through = (after - results) | read
        at_end = through | set(tiles(c.next for c in s.carried))
        self._mark(write_point(end), through | results)
        self._mark(read_point(end), at_end)
        (body,) = node.blocks
        before_body = self.block(body, at_end)
        self._mark(write_point(node.position), before_body | params | through)
        before = through | set(tiles(c.init for c in s.carried))
        self._mark(read_point(node.position), before)
        return before

    def _if(self, node: Node, s: If, after: set[Var]) -> set[Var]:
        results = set(tiles(m.result for m in s.merged))
        before: set[Var] = set()
        values: tuple[list[Expr], ...] = ([m.then for m in s.merged], [m.orelse for m in s.merged])
        for body, end, value in zip(node.blocks, node.ends, values, strict=True):
            at_end = (after - results) | set(tiles(value))
            self._mark(write_point(end), (after - results) | results)
            self._mark(read_point(end), at_end)
            before |= self.block(body, at_end)
        self._mark(read_point(node.position) | write_point(node.position), before)
        return before


def _defined(block: Block) -> Iterable[Var]:
    for s in block:
        if isinstance(s, Let):
            yield from s.results
        elif isinstance(s, For):
            yield from (v for c in s.carried for v in (c.param, c.result))
        elif isinstance(s, If):
            yield from (m.result for m in s.merged)
        for inner in children(s):
            yield from _defined(inner)
