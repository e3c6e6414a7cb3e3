"""Runs a region on a memory plan, with a tag for every value: no value may be lost before its last read.

This is an oracle for the plan that knows nothing of live ranges.  Each definition writes its tag over the
bytes that the plan gives to the tile, each read finds its tag there.  Loops run three trips, or as many as
their bounds say; which branch of an ``if`` runs is random.  A pipelined loop issues the loads of later trips
ahead, as many as there are stages.  Tiles that cross between units have no address of their own: a slot of
the ring is taken by the move, and the ring must never run out of slots.
"""

from __future__ import annotations

import random

from pypto_models.errors import InternalError
from pypto_models.ir.expr import Const, Expr, Var
from pypto_models.ir.nodes import Block, For, If, Let, LoopKind, Region, Stmt
from pypto_models.ir.types import Mem, TileType
from pypto_models.ops import OpDef
from pypto_models.passes.plan_memory import Buffer, RegionPlan

GRANULE = 32
MOST_TRIPS = 4


class Clobbered(AssertionError):
    """The plan lets two values share bytes that both need."""


def is_tile(x: object) -> bool:
    return isinstance(x, Var) and isinstance(x.type, TileType)


def size_of(v: Var) -> int:
    t = v.type
    assert isinstance(t, TileType)
    elements = 1
    for i, d in enumerate(t.shape):
        elements *= -(-d // 2) if t.split.axis == i else d
    return elements * (4 if t.space is Mem.Acc else t.dtype.bytes)


def trips_of(s: For) -> int:
    bounds = (s.start, s.stop, s.step)
    if all(isinstance(b, Const) for b in bounds):
        return min(MOST_TRIPS, len(range(*(int(b.value) for b in bounds if isinstance(b, Const)))))
    return 3


class Machine:
    def __init__(self, plan: RegionPlan, seed: int) -> None:
        self.random = random.Random(seed)
        self.memory = {m: [0] * (s.peak // GRANULE + 1) for m, s in plan.spaces.items()}
        self.home: dict[int, Buffer] = {u: b for s in plan.spaces.values() for b in s.buffers for u in b.uids}
        self.slot: dict[int, int] = {}  # of a buffer with several copies, by its uid: the one of this trip
        self.value: dict[Var, int] = {}
        self.ahead: dict[tuple[Var, int], int] = {}
        self.trip: list[tuple[For, int]] = []
        self.tags = 0

    def run(self, region: Region) -> None:
        self.block(region.body)

    # ---- memory
    def fresh(self) -> int:
        self.tags += 1
        return self.tags

    def crosses(self, v: Var) -> bool:
        return self.home[v.uid].name.startswith("ring of ")

    def place(self, v: Var, slot: int | None = None) -> tuple[Mem, int, int]:
        """Space, first and last byte (exclusive) of a tile."""
        b, t = self.home[v.uid], v.type
        assert isinstance(t, TileType) and t.space is not None
        at = b.offset + b.bytes * (self.slot.get(b.uid, 0) if slot is None else slot)
        assert size_of(v) <= b.bytes
        return t.space, at, at + size_of(v)

    def granules(self, v: Var, slot: int | None = None) -> tuple[list[int], range]:
        space, low, high = self.place(v, slot)
        assert low % GRANULE == 0
        return self.memory[space], range(low // GRANULE, -(-high // GRANULE))

    def write(self, v: Var, tag: int, slot: int | None = None) -> None:
        self.value[v] = tag
        if not self.crosses(v):
            cells, where = self.granules(v, slot)
            for i in where:
                cells[i] = tag

    def read(self, v: Var, by: object) -> int:
        tag = self.value[v]
        if not self.crosses(v):
            cells, where = self.granules(v)
            if any(cells[i] != tag for i in where):
                raise Clobbered(f"{v!r} {v.type} was overwritten before {by} reads it")
        return tag

    # ---- statements
    def block(self, block: Block) -> None:
        for s in block:
            self.stmt(s)

    def stmt(self, s: Stmt) -> None:
        if isinstance(s, Let):
            self.let(s)
        elif isinstance(s, For):
            self.loop(s)
        elif isinstance(s, If):
            taken = self.random.random() < 0.5
            self.block(s.then if taken else s.orelse)
            self.assign([(m.result, m.then if taken else m.orelse) for m in s.merged], s)

    def let(self, s: Let) -> None:
        named = [(n, a) for n, a in zip(s.op.param_names, s.args, strict=True) if is_tile(a)]
        tags = [self.read(a, s.op.name) for _, a in named if isinstance(a, Var)]
        if not s.results or not is_tile(s.results[0]):
            return
        out = s.results[0]
        assert isinstance(s.op, OpDef)
        if s.op.alias is not None or self.stays(s, out):
            self.value[out] = tags[0]
            self.read(out, s.op.name)
            return
        if self.trip and s.op.name == "load" and (out, self.trip[-1][1]) in self.ahead:
            self.value[out] = self.ahead.pop((out, self.trip[-1][1]))
            self.read(out, s.op.name)
            return
        for name, a in named:
            if isinstance(a, Var) and not self.crosses(a) and not self.crosses(out):
                self.check_overlap(s, name, a, out)
        self.write(out, self.fresh())

    def stays(self, s: Let, out: Var) -> bool:
        """True for a move within one space onto the bytes of its operand: it does nothing."""
        x = s.args[0]
        if s.op.name != "move" or not isinstance(x, Var) or self.crosses(x) or self.crosses(out):
            return False
        return self.place(x) == self.place(out)

    def check_overlap(self, s: Let, name: str, a: Var, out: Var) -> None:
        assert isinstance(s.op, OpDef)
        (m, low, high), (n, start, end) = self.place(a), self.place(out)
        if m is not n or high <= start or end <= low:
            return
        if name not in s.op.inplace or low != start or size_of(out) > size_of(a):
            raise Clobbered(f"{s.op.name} writes {out!r} over its operand {a!r}")

    def assign(self, pairs: list[tuple[Var, Expr]], s: Stmt) -> None:
        """Assign at once: all values are read before the first is written."""
        tiles = [(v, x) for v, x in pairs if isinstance(x, Var) and is_tile(x)]
        tags = [(v, self.read(x, type(s).__name__)) for v, x in tiles]
        for v, tag in tags:
            self.write(v, tag)
        for v, _ in tags:
            self.read(v, type(s).__name__)

    # ---- loops
    def loop(self, s: For) -> None:
        loads = (
            [t.result for t in direct(s.body) if t.op.name == "load"] if s.kind is LoopKind.PIPELINE else []
        )
        loads = [v for v in loads if self.home[v.uid].count > 1]
        count = trips_of(s)
        stages = max((self.home[v.uid].count for v in loads), default=1)
        self.assign([(c.param, c.init) for c in s.carried], s)
        for i in range(min(stages - 1, count)):
            self.issue(loads, i)
        for i in range(count):
            if stages > 1 and i + stages - 1 < count:
                self.issue(loads, i + stages - 1)
            for v in loads:
                self.slot[self.home[v.uid].uid] = i % self.home[v.uid].count
            self.trip.append((s, i))
            self.block(s.body)
            self.trip.pop()
            self.assign([(c.param, c.next) for c in s.carried], s)
        self.ahead = {k: tag for k, tag in self.ahead.items() if k[0] not in loads}
        for c in s.carried:
            if is_tile(c.param):
                self.value[c.result] = self.value[c.param]
                self.read(c.result, "the end of a loop")

    def issue(self, loads: list[Var], trip: int) -> None:
        for v in loads:
            tag = self.fresh()
            kept = self.value.get(v)
            self.write(v, tag, trip % self.home[v.uid].count)
            self.ahead[v, trip] = tag
            if kept is not None:
                self.value[v] = kept


def direct(block: Block) -> list[Let]:
    """Ops of a block and of its branches, not of its loops."""
    out: list[Let] = []
    for s in block:
        if isinstance(s, Let):
            out.append(s)
        elif isinstance(s, If):
            out += direct(s.then) + direct(s.orelse)
        elif not isinstance(s, For) and hasattr(s, "body"):
            raise InternalError(f"unexpected {type(s).__name__} in a region")
    return out


def check_plan(region: Region, plan: RegionPlan, runs: int = 4) -> None:
    """Raise :class:`Clobbered` if some run of the region loses a value."""
    for seed in range(runs):
        Machine(plan, seed).run(region)
