"""Which tiles of a region share a buffer.

Tiles share one if they are never live at the same time and it saves a copy or a buffer:

* a view (reshape, set_validshape) is the buffer of its operand;
* a loop-carried value is updated in place, and a merged one is assigned in place, where the tiles involved
  do not interfere; else it is copied where it is assigned;
* an elementwise result takes over the buffer of an operand that dies there, if it fits (``OpDef.inplace``).

A tile that crosses between the units stays in its slot of the ring and shares with its views only.  A tile
that a pipelined loop loads has one buffer for each trip in flight, so it shares only with tiles of that trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import InternalError
from ..ir.expr import Expr, Var
from ..ir.nodes import For, If, Let
from ..ir.types import Mem, TileType
from ..ops import OpDef
from ..target import CROSSINGS
from .liveness import Liveness, Loop, Node, points_between, read_point, tile_operands, tiles, write_point


def tile_type(v: Var) -> TileType:
    if not isinstance(v.type, TileType) or v.type.space is None:
        raise InternalError(f"{v!r} at {v.span} has no memory space; run infer_memory first")
    return v.type


def space_of(v: Var) -> Mem:
    space = tile_type(v).space
    if space is None:
        raise InternalError(f"{v!r} has no memory space")
    return space


def storage(t: TileType) -> int:
    """Bytes that one lane holds of a tile.  Accumulators are 4 bytes wide, whatever the result type."""
    n = 1
    for d in t.lane_shape():
        n *= d
    return n * (4 if t.space is Mem.Acc else t.dtype.bytes)


@dataclass(eq=False)
class Storage:
    """Tiles that share a buffer.  ``live`` is the set of points at which it is needed.

    ``crosses``: the tiles lie in a slot of the ring.  ``exchange``: no tile lies here, it is room to exchange
    two carried values.  ``pipelines`` are the pipelined loops whose loads lie here.
    """

    members: list[Var]
    live: int
    space: Mem
    crosses: bool = False
    exchange: bool = False
    pipelines: list[Loop] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return max(storage(tile_type(v)) for v in self.members)

    @property
    def largest(self) -> Var:
        return max(self.members, key=lambda v: storage(tile_type(v)))

    @property
    def count(self) -> int:
        """Copies: the trips in flight of the pipelined loop that loads it."""
        return max((loop.stages for loop in self.pipelines), default=1)


def crosses(let: Let) -> bool:
    """True for a move between the cube and the vector part."""
    if let.op.name != "move":
        return False
    (source,), (dest,) = tile_operands(let), let.results
    return (space_of(source), space_of(dest)) in CROSSINGS


def coalesce(liveness: Liveness) -> list[Storage]:
    """The buffers of a region, in the order of their first definition."""
    return _Coalescer(liveness).run()


class _Coalescer:
    def __init__(self, liveness: Liveness) -> None:
        self.nodes = liveness.nodes
        self.of = {v: Storage([v], live, space_of(v)) for v, live in liveness.live.items()}
        self.scratch: list[Storage] = []

    def run(self) -> list[Storage]:
        lets = [(n, n.stmt) for n in self.nodes if isinstance(n.stmt, Let)]
        for node, let in lets:
            self._describe(node, let)
        for node in self.nodes:
            if isinstance(node.stmt, For):
                for c in node.stmt.carried:
                    self._join(c.param, c.result)
        for node in reversed(self.nodes):  # inner before outer
            if isinstance(node.stmt, For):
                self._carried(node, node.stmt)
            elif isinstance(node.stmt, If):
                self._merged(node, node.stmt)
        for _, let in lets:
            self._in_place(let)
        for node, let in lets:
            for v in _takes_over(let):
                if not tiles(let.results) or self.of[v] is not self.of[let.result]:
                    self.of[v].live |= write_point(node.position)
        unique = list(dict.fromkeys(self.of.values()))
        for s in unique:
            for loop in s.pipelines:
                s.live |= points_between(2 * loop.head + 1, 2 * loop.end)
        return sorted([*unique, *self.scratch], key=lambda s: (s.live & -s.live, s.members[0].uid))

    # ---- single statements
    def _describe(self, node: Node, let: Let) -> None:
        takeable = _takes_over(let)
        for v in tile_operands(let):
            if v not in takeable:  # read while the result is written
                self.of[v].live |= write_point(node.position)
        for v in tiles(let.results):
            if let.op.name == "load" and node.loop is not None and node.loop.stages > 1:
                self.of[v].pipelines.append(node.loop)
                # It is loaded ahead, so its slot is taken from the start of the trip.
                self.of[v].live |= points_between(2 * node.loop.head + 2, 2 * node.position)
            self.of[v].crosses = crosses(let)
        viewed = _viewed(let)
        if viewed is not None:
            self._unite(self.of[viewed], self.of[let.result])

    def _in_place(self, let: Let) -> None:
        for v in _takes_over(let):
            a, b = self.of[v], self.of[let.result]
            if a is b or self._may_share(a, b):
                self._unite(a, b)
                return

    # ---- values assigned in several places
    def _carried(self, node: Node, s: For) -> None:
        (end,) = node.ends
        carried = [c for c in s.carried if tiles([c.param])]
        for c in carried:
            self._try_join(c.next, c.param)
            self._try_join(c.init, c.param)
        for c in carried:
            self._copied(c.init, c.param, write_point(node.position))
            self._copied(c.next, c.param, write_point(end))
        self._exchange([(c.param, c.next) for c in carried], read_point(end) | write_point(end))

    def _merged(self, node: Node, s: If) -> None:
        for m in s.merged:
            self._try_join(m.then, m.result)
            self._try_join(m.orelse, m.result)
        for m in s.merged:
            for value, end in zip((m.then, m.orelse), node.ends, strict=True):
                self._copied(value, m.result, write_point(end))

    def _copied(self, source: Expr, dest: Var, point: int) -> None:
        """A copy reads its source while it writes its destination."""
        for v in tiles([source]):
            if self.of[v] is not self.of[dest]:
                self.of[v].live |= point

    def _exchange(self, copies: Sequence[tuple[Var, Expr]], points: int) -> None:
        """Carried values that exchange their buffers (a, b = b, a) need one more for a moment."""
        after = {
            self.of[p]: self.of[v] for p, x in copies for v in tiles([x]) if self.of[v] is not self.of[p]
        }
        done: set[Storage] = set()
        for start in after:
            ring = [start]
            while ring[-1] in after and after[ring[-1]] not in ring:
                ring.append(after[ring[-1]])
            if after.get(ring[-1]) is start and start not in done:
                done.update(ring)
                biggest = max(ring, key=lambda s: s.bytes)
                self.scratch.append(Storage([biggest.largest], points, biggest.space, exchange=True))

    # ---- union
    def _may_share(self, a: Storage, b: Storage) -> bool:
        if a.space is not b.space or a.crosses or b.crosses or a.live & b.live:
            return False
        return not any(y.live & ~loop.interior for x, y in ((a, b), (b, a)) for loop in x.pipelines)

    def _join(self, x: Expr, y: Expr) -> None:
        if tiles([x, y]):
            self._unite(self.of[x], self.of[y])  # type: ignore[index]

    def _try_join(self, x: Expr, y: Expr) -> None:
        if len(tiles([x, y])) == 2:
            a, b = self.of[x], self.of[y]  # type: ignore[index]
            if a is not b and self._may_share(a, b):
                self._unite(a, b)

    def _unite(self, a: Storage, b: Storage) -> None:
        if a is b:
            return
        a.members += b.members
        a.live |= b.live
        a.crosses |= b.crosses
        a.pipelines += b.pipelines
        for v in b.members:
            self.of[v] = a


def _viewed(let: Let) -> Var | None:
    """The tile whose buffer the result is: the operand of a view, or of a move within one space."""
    alias = let.op.alias if isinstance(let.op, OpDef) else None
    name = "x" if let.op.name == "move" else alias
    if name is None or not tiles(let.results):
        return None
    x = let.arg(name)
    return x if isinstance(x, Var) and tiles([x]) and space_of(x) is space_of(let.result) else None


def _takes_over(let: Let) -> list[Var]:
    """Operands whose buffer the result may take over, if they die here: same space, and large enough."""
    if not isinstance(let.op, OpDef) or len(tiles(let.results)) != 1:
        return []
    out = tile_type(let.result)
    named = [(name, a) for name, a in zip(let.op.param_names, let.args, strict=True) if tiles([a])]
    usable = [
        v for name, v in named
        if name in let.op.inplace and isinstance(v, Var) and space_of(v) is out.space
        and storage(out) <= storage(tile_type(v))
    ]  # fmt: skip
    also = [v for name, v in named if name not in let.op.inplace]
    return [v for v in usable if v not in also]
