"""Loops whose trips the warps of a block take in turn, each with tiles and a ring of its own.

A tile of 16 rows is little work for eight warps: to share it they meet at barriers several times a trip.
Where the loop keeps an online softmax (gpu/softmax.py), warp w of W takes trips w, w + W, w + 2 W, ... alone:
scores, weights and sums stay in its registers, and it waits for nothing but its own loads.  Behind the loop
the warps leave what they carry in shared memory, and the block joins it, in a fixed order, with what the loop
began with.  Where a branch before the loop makes a step of the same softmax, the last of these warps does it,
before its trips.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pypto_models.errors import InternalError
from pypto_models.ir.expr import Expr, Var
from pypto_models.ir.nodes import Arg, Block, Carried, For, If, Let, LoopKind, Stmt
from pypto_models.ir.rewrite import defs, uses
from pypto_models.ir.types import BF16, FP32, TileType
from pypto_models.ops import REGISTRY

from ..gpu.scan import lets, operands_of, stores_in
from ..gpu.softmax import OnlineSoftmax, first_step, online_softmax
from ..gpu.timing import ARRIVED
from .layouts import WARPS, Fragment, Layout, Rows, of_the_block
from .prefetch import MOST_STAGES, Staged, run_ahead
from .scalars import DSL_TYPES
from .text import BARRIER
from .tiles import Shared, Tile

if TYPE_CHECKING:
    from .kernel import Kernel

LOWEST = "Float32(-3.4028234663852886e+38)"  # finite: exp of the difference of two is 1, and not NaN
ENOUGH = 1 << 17  # bytes of a block's rings: 64 KB under way keep the memory busy
MOST_HELD = 128  # registers of what a warp carries with the operands that it keeps


class Together(Exception):
    """A loop, by its variable, that the warps of a block cannot take in turns."""

    def __init__(self, loop: Var) -> None:
        super().__init__(loop)
        self.loop = loop


@dataclass(frozen=True)
class Turns:
    """A loop taken in turns: what it carries, and the branch that makes a step of it before, if one does."""

    loop: Var
    softmax: OnlineSoftmax
    first: If | None = None
    step: OnlineSoftmax | None = None


def loops_in_turns(
    body: Block, apart: frozenset[Var], count: Mapping[Expr, int]
) -> Iterator[tuple[int, Turns]]:
    """The loops of a block that may be taken in turns, by identity, without those over ``apart``; and the
    branches that these begin with.  ``count``: how often each value is read.
    """
    for i, s in enumerate(body):
        if isinstance(s, If):
            yield from loops_in_turns(s.then, apart, count)
            yield from loops_in_turns(s.orelse, apart, count)
        elif isinstance(s, For):
            found = online_softmax(s) if s.kind is LoopKind.PIPELINE and s.var not in apart else None
            if found is not None and all(map(of_one_warp, lets(s.body))):
                turns = with_first(body[:i], s, found, count)
                yield id(s), turns
                if turns.first is not None:
                    yield id(turns.first), turns
            else:
                yield from loops_in_turns(s.body, apart, count)


def with_first(before: Block, s: For, softmax: OnlineSoftmax, count: Mapping[Expr, int]) -> Turns:
    """A loop taken in turns, behind these statements."""
    for i, x in enumerate(before):
        step = first_step(x, s, softmax) if isinstance(x, If) else None
        if step is None or any(count[m.result] > 1 for m in x.merged):  # type: ignore[union-attr]
            continue
        if not any(stores_in(before[i:])) and all(map(of_one_warp, lets((x,)))):
            return Turns(s.var, softmax, x, step)  # type: ignore[arg-type]
    return Turns(s.var, softmax)


def of_one_warp(x: Let) -> bool:
    """Whether a statement is no product, or one that a warp does alone."""
    if x.op.name not in ("matmul", "matmul_acc"):
        return True
    kind = x.result.type
    return (
        x.op.name == "matmul"
        and not x.arg("a_trans")
        and isinstance(kind, TileType)
        and kind.shape[1] % 16 == 0
    )


@dataclass
class OwnRing(Staged):
    """A ring for each of the ``takers`` first warps of a block.  All slots are asked for at the start, and
    the slot of a trip again when the trip is over.
    """

    first: str = ""  # of a warp's trips
    stop: str = ""
    step: str = ""
    now: tuple[For, str] | None = None  # the loop and its variable

    @staticmethod
    def plan(k: Kernel, s: For) -> OwnRing:
        """As many warps as have room for two slots each, and slots until the block has ENOUGH."""
        found = run_ahead(k, s)
        if found is None:
            raise Together(s.var)
        loads, scalars, size = found
        takers = WARPS
        while takers > 1 and k.room < 2 * takers * size:
            takers //= 2
        stages = min(MOST_STAGES, max(2, -(-ENOUGH // (takers * size))), k.room // (takers * size))
        if takers == 1 or stages < 2:
            raise Together(s.var)
        return OwnRing(loads, scalars, stages, warps=1, takers=takers)

    def at(self, place: Shared, tile: Tile, slot: str) -> str:
        return f"{place.name} + (warp * {self.stages} + {slot}) * {tile.shape[0] * place.pitch}"

    def look_up(self, k: Kernel, s: For, bounds: list[str]) -> None:
        t = k.text
        start, self.stop, step = bounds
        self.first = t.let("own_first", f"{start} + warp * {step}")
        if self.takers < WARPS:
            with t.nested(f"if warp >= {self.takers}:"):
                t.line(f"{self.first} = {self.stop}")
        self.step = t.let("own_step", f"{self.takers} * {step}")
        self.look(k, s, self.first, self.step, self.stop, self.stages + 1)

    def enter(self, k: Kernel, s: For, var: str, bounds: list[str]) -> Block:
        t = k.text
        t.line(f"cute.arch.cp_async_wait_group({self.stages - 1})")
        t.line("cute.arch.sync_warp()")
        if k.stamps:
            with t.nested(f"if {var} == {self.first}:"):
                k.stamp(ARRIVED)
        self.now = (s, var)
        return self.here(k, s, var)

    def leave(self, k: Kernel) -> None:
        if self.now is None:
            raise InternalError("a ring is left that was not entered")
        (s, var), t = self.now, k.text
        t.line("cute.arch.sync_warp()")
        self.issue(k, s, t.let("ahead", f"{var} + {self.stages} * {self.step}"), self.stop, self.slot)
        if self.held:
            self.read_ahead(k, s, t.let("ahead", f"{var} + {self.stages + 1} * {self.step}"), self.stop)
        k.names[s.var] = var
        super().leave(k)


def take_turns(k: Kernel, s: For, turns: Turns) -> None:
    """The loop, and what its trips come to."""
    t, softmax = k.text, turns.softmax
    ring = k.rings[id(s)] = k.rings.get(id(s)) or OwnRing.plan(k, s)
    if not isinstance(ring, OwnRing):
        raise InternalError("a loop in turns has a ring of the block")
    if not ring.started:
        ring.prologue(k, s, k.bounds(s))
    carried = (softmax.maximum, *softmax.sums)
    spare = MOST_HELD - sum(held_by(k.plan.of(c.param)) for c in carried)
    if spare < 0:
        raise Together(s.var)
    for x in dict.fromkeys(operands_of(s.body)):
        if x in k.tiles:
            keep_operand(k, x, spare)
    own = {c.param: one_warp(k, c, LOWEST if c is softmax.maximum else "Float32(0.0)", s) for c in carried}
    if turns.first is not None and turns.step is not None:
        take_first(k, turns.first, turns.step, own, s, ring.takers - 1)
    k.tiles.update(own)
    del k.rings[id(s)]
    var = t.unique(s.var.name)
    k.names[s.var] = var
    outer, head = dict(k.tiles), len(t.lines)
    with t.nested(
        f"for {var} in cutlass.range({ring.first}, {ring.stop}, {ring.step}, unroll=1):", loop=True
    ):
        k.loops += 1
        k.block(accumulated(ring.enter(k, s, var, []), k.uses))
        k.loops -= 1
        taken = {place.registers for place in own.values()}
        for c, value in [(c, k.settled(k.tile(c.next), own[c.param], taken)) for c in carried]:
            k.assign(value, own[c.param], c.param)
        ring.leave(k)
    if any(line.strip() == BARRIER for line in t.lines[head:]):
        raise Together(s.var)  # something in it needs the whole block
    k.tiles = outer
    k.operands.clear()
    t.line("cute.arch.cp_async_wait_group(0)")
    t.line(BARRIER)
    began: dict[Var, Expr] = {c.param: c.init for c in carried}
    if turns.step is not None:
        before: dict[Expr, Expr] = {x.result: x.init for x in (turns.step.maximum, *turns.step.sums)}
        began = {x: before[init] for x, init in began.items()}
    join(k, softmax, own, began, ring.takers)


def take_first(k: Kernel, s: If, step: OnlineSoftmax, own: dict[Var, Tile], loop: For, warp: int) -> None:
    """A step before the loop, by one warp, which begins its trips with what it leaves.

    The block makes what the products take, and the rest is as in a trip.
    """
    t = k.text
    carried = (step.maximum, *step.sums)
    begins = {c.result: own[x.param] for c in carried for x in loop.carried if x.init == c.result}
    later: set[Expr] = {c.param for c in carried}
    ready: list[Stmt] = []
    rest: list[Stmt] = []
    for x in s.then:
        behind = not later.isdisjoint(uses((x,))) or (isinstance(x, Let) and x.op.name == "matmul")
        (rest if behind else ready).append(x)
        if behind:
            later |= set(defs(x))
    tiles = dict(k.tiles)
    with t.nested(f"if {k.write(s.cond)}:"):
        k.block(tuple(ready))
        for operand in dict.fromkeys(operands_of(s.then)):
            if operand in k.tiles:
                k.keep(operand, meet=False)
        t.line(BARRIER)
        with t.nested(f"if warp == {warp}:"):
            head = len(t.lines)
            k.tiles.update((c.param, begins[c.result]) for c in carried)  # the join counts what it began with
            k.block(accumulated(tuple(rest), k.uses))
            taken = {place.registers for place in own.values()}
            for c, value in [(c, k.settled(k.tile(c.next), begins[c.result], taken)) for c in carried]:
                k.assign(value, begins[c.result], c.param)
    if any(line.strip() == BARRIER for line in t.lines[head:]):
        raise Together(loop.var)
    k.tiles = tiles


def accumulated(body: Block, count: Mapping[Expr, int]) -> Block:
    """The body with products that are only added to something summed onto it, in the same registers."""
    made = {x.result: x for x in body if isinstance(x, Let) and len(x.results) == 1}

    def only(v: Arg) -> list[Let]:
        """The product that a value is, with the moves behind it, if nothing else reads them."""
        x = made.get(v) if isinstance(v, Var) and count[v] == 1 else None
        if x is not None and x.op.name == "move":
            rest = only(x.args[0])
            return [*rest, x] if rest else []
        return [x] if x is not None and x.op.name == "matmul" else []

    gone: set[int] = set()
    changed: dict[int, Let] = {}
    for x in body:
        if not isinstance(x, Let) or x.op.name != "add":
            continue
        for onto, value in (x.args, x.args[::-1]):
            found = only(value)
            if found and isinstance(onto, Var) and isinstance(onto.type, TileType):
                lhs, rhs, b_trans = (found[0].arg(n) for n in ("lhs", "rhs", "b_trans"))
                sums = REGISTRY["matmul_acc"]
                changed[id(x)] = replace(x, op=sums, args=(onto, lhs, rhs, False, b_trans, None))
                gone |= {id(y) for y in found}
                break
    return tuple(changed.get(id(x), x) for x in body if id(x) not in gone)


def one_warp(k: Kernel, c: Carried, start: str, s: For) -> Tile:
    """What a warp carries, from ``start`` on."""
    layout, kind = k.plan.of(c.param), c.param.type
    if layout is None or not isinstance(kind, TileType):
        raise Together(s.var)
    tile = k.registers(c.param.name, FP32, kind.shape, layout, start)
    return Tile(
        tile.shape,
        tile.dtype,
        k.static_valid(kind, tile.valid),
        tile.at,
        registers=tile.registers,
        layout=layout,
    )


def held_by(layout: Layout) -> int:
    return 0 if layout is None else layout.registers


def keep_operand(k: Kernel, x: Var, spare: int) -> None:
    """An operand that every trip takes: in shared memory, and in registers if there are ``spare`` ones."""
    tile = k.keep(x)
    assert tile.shared is not None
    (m, depth), dtype = tile.shape, tile.dtype
    if dtype == BF16 and m % 16 == 0 and depth % 16 == 0 and m * depth // 64 <= spare:
        call = f"fragments.operand({tile.shared.name}, {tile.shared.pitch}, {m}, {depth})"
        k.operands[x] = k.text.let(f"{x.name}_held", call)


def product(k: Kernel, s: Let, layout: Fragment) -> Tile:
    """A product of one warp in its registers, maybe added to what the accumulator is."""
    t, x = k.text, s.arg("lhs")
    a, b = k.tile(x), k.tile(s.arg("rhs"))
    (m, depth), b_trans = a.shape, bool(s.arg("b_trans"))
    if b.shared is None:
        b = k.stored(b)
    assert isinstance(x, Var) and b.shared is not None
    call = "fragments.multiply"
    if x in k.operands:
        left = k.operands[x]
    elif isinstance(a.layout, Fragment):  # the fragments of a result are those of an operand
        kind = f"cute.make_rmem_tensor(cute.make_layout({a.layout.registers}), {DSL_TYPES[a.dtype.name]})"
        left = t.let(f"{x.name}_held", kind)
        with k.fragments(a.layout) as (i, at):
            t.line(f"{left}[{i}] = {k.guarded(a, at)}")
    else:
        a = k.stored(a)
        assert a.shared is not None
        call, left = "fragments.multiply_shared", f"{a.shared.name}, {a.shared.pitch}"
    start = "Float32(0.0)" if s.op.name == "matmul" else ""
    sums = k.registers(s.result.name, FP32, (m, layout.columns), layout, start)
    if not start:
        acc = k.tile(s.arg("acc"))
        with k.fragments(layout) as (i, at):
            value = k.guarded(acc, at) if acc.reads else acc.value(t, at)
            t.line(f"{sums.registers}[{i}] = {value}")
    right = f"{b.shared.name}, {b.shared.pitch}, {b_trans}"
    t.line(f"{call}({left}, {right}, {sums.registers}, {m}, {layout.columns}, {depth})")
    out = s.result.type
    assert isinstance(out, TileType)
    valid = k.static_valid(out, (a.valid[0], b.valid[0] if b_trans else b.valid[1]))
    return replace(sums, valid=valid)


def join(
    k: Kernel, softmax: OnlineSoftmax, own: dict[Var, Tile], before: Mapping[Var, Expr], takers: int
) -> None:
    """What the warps carry and what there was ``before`` them, as tiles of the block."""
    t = k.text
    carried = (softmax.maximum, *softmax.sums)
    parts = {}
    for c in carried:
        parts[c] = t.unique(f"{c.param.name}_parts")
        k.buffers.add(parts[c], FP32, takers * 32 * own[c.param].layout.registers)  # type: ignore[union-attr]
    with k.when(f"warp < {takers}" if takers < WARPS else None):
        for c in carried:
            tile = own[c.param]
            count, vector = held_by(tile.layout), 2 if isinstance(tile.layout, Rows) else 4
            t.line(f"fragments.leave({parts[c]}, {tile.registers}, {count}, {vector})")
    t.line(BARRIER)
    scale = ""
    for c in carried:
        layout = of_the_block(own[c.param].layout)
        assert isinstance(layout, Rows | Fragment)
        began = k.tile(before[c.param])
        fits = began.layout in (None, layout)
        made = k.held(began if fits else k.stored(began, c.result.name), c.result.name, layout, fresh=True)
        k.tiles[c.result] = made
        rows = layout.row_registers if isinstance(layout, Fragment) else layout.registers
        if c is softmax.maximum:
            scale = t.let("scale", f"fragments.scales({parts[c]}, {made.registers}, {takers}, {rows})")
        elif isinstance(layout, Rows):
            t.line(f"fragments.join_columns({parts[c]}, {made.registers}, {scale}, {takers}, {rows})")
        else:
            shape = f"{rows}, {layout.columns}"
            t.line(f"fragments.join_fragments({parts[c]}, {made.registers}, {scale}, {takers}, {shape})")
