"""One region as a kernel: statements, loops and branches, and the places where tiles become values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import gcd

from pypto_models.errors import InternalError
from pypto_models.ir.expr import Const, Expr, Var
from pypto_models.ir.nodes import Arg, Bind, Block, For, If, Let, LoopKind, Stmt
from pypto_models.ir.rewrite import uses
from pypto_models.ir.types import BOOL, DType, ScalarType, TensorType, TileType

from ..gpu.names import Names
from ..gpu.scan import lets, operands_of, sources, sources_of, stores_in
from ..gpu.tensors import View, multiple_of
from ..gpu.timing import END, START
from .beside import longest_run, statistics, wanted
from .bounds import at_most_once, most
from .choices import Slot, merge
from .layouts import POINTWISE, THREADS, Beside, Columns, Dealt, Layout, Planner, Rows, Spread
from .meeting import met, read_behind
from .order import NOTHING, Ahead, settled
from .places import Buffers, copy_call, offset, padded_pitch, runs, vectors
from .prefetch import Staged, trips_at_once
from .row_values import Chains, chains
from .rules import unsupported
from .runs import leads, load_runs
from .scalars import DSL_TYPES, dsl_type, literal, scalar
from .text import BARRIER, Text
from .tiles import Coordinates, Shared, Tile, inside
from .turns import OwnRing, Turns, loops_in_turns, take_turns
from .waiting import (
    ask,
    asks_soon,
    begins_apart,
    look_up_rings,
    reads,
    receive,
    settled_first,
    small,
    start_rings,
    wait_once,
)

Handler = Callable[["Kernel", Let], None]


class Kernel(Names):
    """Writes the body of one kernel.  ``views`` are the tensors known outside, ``handlers`` what ops do."""

    text: Text

    def __init__(
        self,
        views: Mapping[Var, View],
        handlers: Mapping[str, Handler],
        room: int = 0,
        ahead: Ahead = NOTHING,
        stamps: str = "",
        alias: Mapping[Var, frozenset[Var]] = {},
        together: frozenset[Var] = frozenset(),
    ) -> None:
        super().__init__(views, alias, Text())
        self.together = together  # loops, by their variables, that the warps do not take in turns
        self.turns: dict[int, Turns] = {}  # loops, by identity, that they do, and branches before these
        self.operands: dict[Var, str] = {}  # of products, that a loop in turns keeps in registers
        self.handlers = handlers
        self.room = room  # bytes of shared memory for prefetched tiles
        self.ahead = ahead  # what may be read before the wait
        self.stamps = stamps  # where a timing build notes when things happen
        self.noted = False
        self.divisors: dict[Expr, int] = {}  # numbers that divide variables
        self.limits: dict[Expr, int] = {}  # the largest values of variables
        self.waited = True  # for the kernels before; `run` begins without
        self.follows = False  # its blocks run in a launch that has waited
        self.early: set[Var] = set()  # base tensors that it reads before the wait
        self.tiles: dict[Var, Tile] = {}
        self.buffers = Buffers()
        self.soon: set[Var] = set()  # loads to be asked for together behind the wait
        self.asked: list[str] = []  # puts the tiles that were asked for in shared memory
        self.rings: dict[int, Staged] = {}  # of loops, by identity, whose first loads are under way
        self.ring_bytes = 0  # of tiles that run ahead
        self.stage_bytes = 0  # of one trip of the hungriest such loop
        self.uses: Counter[Expr] = Counter()
        self.plan = Planner({}, False)
        self.chains = Chains()
        self.behind: Mapping[int, frozenset[Var]] = {}  # what is read behind each write
        self.meets = False  # whether the trip begins that has to come to a barrier before it adds up
        self.cursor: tuple[Layout, str, Coordinates] | None = None  # the fragment element being written

    def run(self, prelude: Block, body: Block) -> None:
        """The statements of a whole kernel."""
        self.uses.update(uses((*prelude, *body)))
        self.turns = dict(loops_in_turns((*prelude, *body), self.together, self.uses))
        self.plan = Planner(self.uses, any(True for _ in operands_of(body)), self.turns)
        self.plan.longest = longest = longest_run((*prelude, *body))
        self.plan.beside = wanted(body, longest)
        self.plan.block((*prelude, *body))
        self.chains = chains((*prelude, *body), self.uses, self.plan)
        self.sources = set(sources_of((*prelude, *body)))
        self.behind = read_behind((*prelude, *body))
        self.waited = self.follows
        self.stamp(START)
        self.block((*prelude, *body))
        wait_once(self)
        self.stamp(END)
        self.buffers.pack(self.text.lines)

    def stamp(self, event: int) -> None:
        if self.stamps:
            self.text.line(f"block.stamp({self.stamps}, cta, {event})")

    # ------------------------------------------------------------------------------------------ names
    def write(self, x: Expr) -> str:
        return scalar(x, self.read)

    def dim(self, d: int | Expr) -> str:
        return str(d) if isinstance(d, int) else self.write(d)

    # ------------------------------------------------------------------------------------------ statements
    def block(self, body: Block) -> None:
        if self.waited:
            for s in body:
                self.stmt(s)
            return
        body = settled_first(self, body)
        for i, s in enumerate(body):
            ready = settled(s, self.ahead, self.views) and (not self.asked or reads(s))
            if not self.waited and not ready:
                start_rings(self, body[i:])
            elif not self.waited and isinstance(s, Let) and s.op.name == "load":
                look_up_rings(self, body[i:])
            self.stmt(s)

    def stmt(self, s: Stmt) -> None:
        if not self.waited:
            if settled(s, self.ahead, self.views):
                self.early |= {self.views[v].base for x in lets((s,)) for v in sources(x)}
            elif not isinstance(s, If) and not begins_apart(s):  # these wait where they must
                wait_once(self, hold=asks_soon(self, s))
        if not reads(s):
            receive(self)
            if self.meets and not self.later(s):  # behind the trip's loads, which are then all under way
                self.text.line(BARRIER)
                self.meets = False
        if isinstance(s, Let):
            self.let(s)
        elif isinstance(s, Bind):
            kind = dsl_type(s.value.dtype)
            self.divisors[s.var] = multiple_of(s.value, self.divisors)
            if (limit := most(s.value, self.limits)) is not None:
                self.limits[s.var] = limit
            self.names[s.var] = self.text.let(s.var.name, f"{kind}({self.write(s.value)})")
        elif isinstance(s, For):
            self.loop(s)
        elif isinstance(s, If):
            if id(s) not in self.turns:  # or the loop does it
                self.branch(s)
        else:
            raise InternalError(f"{type(s).__name__} inside of a region")

    def later(self, s: Stmt) -> bool:
        """Whether a statement is only worked out where its one reader is."""
        return isinstance(s, Let) and s.op.name in POINTWISE and all(self.uses[r] <= 1 for r in s.results)

    def let(self, s: Let) -> None:
        handler = self.handlers.get(s.op.name)
        if id(s) in self.chains.made:  # with the statistic that it follows from
            return
        if handler is None:
            raise unsupported(s, "no rule of this backend covers it")
        handler(self, s)
        for r in s.results:
            tile = self.tiles.get(r)
            if tile is not None and tile.uniform and s.op.name in POINTWISE:
                value = self.text.let(r.name, tile.at(self.text, ("0",) * len(tile.shape)))
                self.tiles[r] = replace(tile, at=lambda text, at, value=value: value)  # type: ignore[misc]
                continue
            # More than one reader: once.  A load is read at once, so that those of a thread wait together
            if tile is not None and tile.layout is not None and (self.uses[r] > 1 or s.op.name == "load"):
                self.tiles[r] = self.held(tile, r.name)
            elif tile is not None and s.op.name == "load" and self.asks(r, tile):
                ask(self, r, tile)

    def asks(self, x: Var, tile: Tile) -> bool:
        """Whether a load comes to shared memory with others: while there is nothing else to do, or soon."""
        return small(tile) if not self.waited else x in self.soon and tile.plain is not None

    # ------------------------------------------------------------------------------------------ loops
    def bounds(self, s: For) -> list[str]:
        """Start, end and step of a loop; what is known to divide its variable is noted."""
        self.divisors[s.var] = gcd(*(multiple_of(x, self.divisors) for x in (s.start, s.step)))
        return [f"Int32({self.write(x)})" for x in (s.start, s.stop, s.step)]

    def ring(self, s: For) -> Staged | None:
        """The ring of a loop, if its loads may run ahead."""
        if s.kind is not LoopKind.PIPELINE:
            return None
        return OwnRing.plan(self, s) if id(s) in self.turns else Staged.plan(self, s)

    def loop(self, s: For) -> None:
        t = self.text
        if id(s) in self.turns:
            take_turns(self, s, self.turns[id(s)])
            return
        tiles: list[tuple[Var, Tile, Expr]] = []
        scalars: list[tuple[Var, str, Expr]] = []
        self.settle_all(s.body)
        slots = [Slot.open(self, c) for c in s.carried if isinstance(c.param.type, TensorType)]
        for c in (c for c in s.carried if not isinstance(c.param.type, TensorType)):
            if isinstance(c.param.type, TileType):
                layout = self.plan.of(c.param)
                init = self.tile(c.init)
                place = self.own(init, c.param, layout)
                valid = self.static_valid(c.param.type, place.valid)
                self.tiles[c.param] = self.tiles[c.result] = replace(place, valid=valid)
                tiles.append((c.param, place, c.next))
            else:
                assert isinstance(c.param.type, ScalarType)
                name = t.let(c.param.name, f"{dsl_type(c.param.type.dtype)}({self.write(c.init)})")
                self.names[c.param] = self.names[c.result] = name
                scalars.append((c.param, name, c.next))
        bounds = self.bounds(s)
        staged = self.rings.get(id(s)) or self.ring(s)
        begun = staged is not None and staged.started
        for operand in operands_of(s.body):  # what every trip takes as it is, is made once
            if operand in self.tiles:  # a trip waits for what was asked for before its ring
                self.keep(operand, wait=staged is None or begun)
        if staged is not None and not begun:
            staged.prologue(self, s, bounds)
        self.rings.pop(id(s), None)
        single = staged is None and at_most_once(s, self.limits)
        var = bounds[0] if single else t.unique(s.var.name)
        self.names[s.var] = var
        outer, head = dict(self.tiles), len(t.lines)
        trips = f"for {var} in cutlass.range({', '.join(bounds)}, unroll=1):"
        with t.nested(f"if {bounds[0]} < {bounds[1]}:" if single else trips, loop=not single):
            for slot in slots:
                slot.enter(self)
            body = s.body if staged is None else staged.enter(self, s, var, bounds)
            self.loops += not single
            self.meets = any(isinstance(self.plan.of(x), Columns) for x in statistics(body))
            waited = self.waited
            self.block(body)
            receive(self)
            self.noted = self.noted or self.waited
            self.waited = waited  # there may be no trip
            self.meets = False
            self.loops -= not single
            nexts = []
            for p, name, after in scalars:
                assert isinstance(p.type, ScalarType)
                nexts.append(
                    (name, t.let(f"next_{p.name}", f"{dsl_type(p.type.dtype)}({self.write(after)})"))
                )
            taken = {place.registers for _, place, _ in tiles}
            new = [(p, place, self.settled(self.tile(n), place, taken)) for p, place, n in tiles]
            for p, place, value in new:
                self.assign(value, place, p)
            for name, text in [*nexts, *((x.where, x.next(self, s)) for x in slots)]:
                t.line(f"{name} = {text}")
            if staged is not None:
                staged.leave(self)
        self.tiles = outer
        for slot in slots:
            slot.leave(self)
        # The loads of several trips wait together where nothing in between makes the block wait
        waits = any(
            word in line for line in t.lines[head:] for word in ("cute.arch.", "block.copy", "block.store")
        )
        if not waits:
            t.lines[head] = t.lines[head].replace("unroll=1", f"unroll={trips_at_once(s.body)}")
        if staged is not None:
            t.line("cute.arch.cp_async_wait_group(0)")
            t.line(BARRIER)

    def settled(self, tile: Tile, place: Tile, taken: set[str]) -> Tile:
        """A loop's next value, held apart from what it will replace."""
        if place.layout is not None:
            return self.held(tile, "next", place.layout, fresh=tile.registers in taken)
        return self.stored(tile)

    def assign(self, value: Tile, place: Tile, var: Var) -> None:
        if place.layout is not None:
            with self.fragments(place.layout) as (i, at):
                self.text.line(f"{place.registers}[{i}] = {value.at(self.text, at)}")
        elif value.shared is not place.shared:
            assert place.shared is not None
            self.text.line(BARRIER)
            self.fill(value, place.shared, var)

    def own(self, tile: Tile, var: Var, layout: Layout) -> Tile:
        """A copy of the tile that a loop may overwrite."""
        if layout is not None:
            return self.held(tile, var.name, layout, fresh=True)
        place = self.place(var.name, tile.shape, tile.dtype)
        self.fill(tile, place, var)
        return self.from_shared(place, tile.shape, tile.valid)

    def static_valid(self, t: TileType, otherwise: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(o if v is None else self.dim(v) for v, o in zip(t.valid, otherwise, strict=True))

    def branch(self, s: If) -> None:
        t = self.text
        cond = f"Boolean({self.write(s.cond)})" if isinstance(s.cond, Const) else self.write(s.cond)
        self.settle_all((*s.then, *s.orelse))
        self.keep_shared((*s.then, *s.orelse))
        if self.ahead.all_but is not None and any(isinstance(m.result.type, TensorType) for m in s.merged):
            wait_once(self)  # which tensor is read is not known
        slots: list[tuple[Var, str | Tile]] = []
        for m in s.merged:
            v = m.result
            if isinstance(v.type, TensorType):
                continue  # known when the branches are written
            elif isinstance(v.type, TileType):
                layout = self.plan.of(v)
                if layout is not None:
                    zero = literal(0.0 if v.type.dtype.is_float else 0, v.type.dtype)
                    slots.append((v, self.registers(v.name, v.type.dtype, v.type.shape, layout, zero)))
                else:
                    place = self.place(v.name, v.type.shape, v.type.dtype)
                    slots.append((v, self.from_shared(place, v.type.shape, tuple(map(str, v.type.shape)))))
            else:
                assert isinstance(v.type, ScalarType)
                kind = v.type.dtype
                self.names[v] = t.let(
                    v.name, literal(False if kind == BOOL else 0.0 if kind.is_float else 0, kind)
                )
                slots.append((v, self.names[v]))
        arms = [(f"if {cond}:", s.then, "then")]
        if s.orelse or s.merged:
            arms.append(("else:", s.orelse, "orelse"))
        valid: dict[Var, list[str]] = {}
        for v, slot in slots:
            if isinstance(slot, Tile):
                assert isinstance(v.type, TileType)
                valid[v] = [t.let("valid", "Int32(0)") if d is None else self.dim(d) for d in v.type.valid]
        tiles, waited = dict(self.tiles), self.waited
        start, ends = len(t.lines), []
        before, behind = self.writes(), []
        for head, body, side in arms:
            with t.nested(head):
                self.tiles, self.waited = dict(tiles), waited
                self.since(before)
                self.block(body)
                receive(self)
                values = {m.result: getattr(m, side) for m in s.merged}
                for v, slot in slots:
                    if isinstance(slot, Tile):
                        tile = self.tile(values[v])
                        self.assign(
                            self.held(tile, v.name, slot.layout) if slot.layout is not None else tile, slot, v
                        )
                        for name, extent, d in zip(valid[v], tile.valid, v.type.valid, strict=True):  # type: ignore[union-attr]
                            if d is None:
                                t.line(f"{name} = Int32({extent})")
                    else:
                        assert isinstance(v.type, ScalarType)
                        t.line(f"{slot} = {dsl_type(v.type.dtype)}({self.write(values[v])})")
                ends.append(len(t.lines))
                behind.append(self.writes())
        self.since(before, *behind)
        self.noted = self.noted or self.waited
        self.tiles, self.waited = tiles, waited
        merge(self, s, start, ends)
        for v, slot in slots:
            if isinstance(slot, Tile):
                assert isinstance(v.type, TileType)
                self.tiles[v] = replace(slot, valid=tuple(valid[v]))

    def keep_shared(self, body: Block) -> None:
        """What products under a branch take, and others behind it: loaded once, before the branch."""
        inside = Counter(uses(body))
        for x in dict.fromkeys(operands_of(body)):
            if x in self.tiles and self.uses[x] > inside[x]:
                wait_once(self)
                self.keep(x)

    # ------------------------------------------------------------------------------------------ tiles
    def tile(self, x: Arg) -> Tile:
        if not isinstance(x, Var) or x not in self.tiles:
            raise InternalError(f"{x!r} is no tile of this kernel")
        return self.tiles[x]

    # --- registers
    @contextmanager
    def fragments(self, layout: Spread | Beside) -> Iterator[tuple[str, Coordinates]]:
        """A loop over the elements of a layout that this thread holds: its index and coordinates."""
        t = self.text
        i, r = t.unique("i"), t.unique("r")
        outer = self.cursor
        with t.nested(f"for {i} in cutlass.range_constexpr({layout.registers}):"):
            if isinstance(layout, Rows):
                t.line(f"{r} = {layout.of.row(i)}")
                self.cursor = (layout, i, (r, "0"))
                partial = isinstance(layout.of, Dealt) and layout.of.guard is not None
                with self.when(f"{r} < {layout.of.rows}" if partial else None):
                    yield i, (r, "0")
            elif isinstance(layout, Columns):
                t.line(f"{r} = {layout.column(i)}")
                self.cursor = (layout, i, ("0", r))
                yield i, ("0", r)
            else:
                c = t.unique("c")
                row, column = layout.coordinates(i)
                t.line(f"{r} = {row}")
                t.line(f"{c} = {column}")
                self.cursor = (layout, i, (r, c))
                with self.when(layout.guard and layout.guard.format(r=r, c=c)):
                    yield i, (r, c)
        self.cursor = outer

    @contextmanager
    def when(self, *tests: str | None) -> Iterator[None]:
        """What follows only where all conditions hold; those that are None do."""
        found = [x for x in tests if x]
        if found:
            with self.text.nested(f"if {' & '.join(f'({x})' for x in found)}:"):
                yield
        else:
            yield

    def registers(
        self, name: str, dtype: DType, shape: tuple[int, ...], layout: Spread | Beside, start: str = ""
    ) -> Tile:
        """A tile in registers, not yet written (or filled with ``start``)."""
        reg = self.text.let(
            f"{name}_regs",
            f"cute.make_rmem_tensor(cute.make_layout({layout.registers}), {DSL_TYPES[dtype.name]})",
        )
        if start:
            self.text.line(f"{reg}.fill({start})")

        def at(text: Text, c: Coordinates) -> str:
            if self.cursor is None or (len(shape) > 1 and shape[0] > 1 and self.cursor[2][0] != c[0]):
                raise InternalError(f"{name} is asked for an element that this thread may not hold")
            held, i, (row, column) = self.cursor
            if isinstance(layout, Rows):
                if isinstance(held, Rows) and layout.beside(held.of):
                    return f"{reg}[{i}]"
                if held is None or isinstance(held, Rows | Columns) or not layout.beside(held):
                    raise InternalError(f"{name} is asked for beside another tile than its own")
                return f"{reg}[{held.row_of(i)}]"
            if isinstance(layout, Columns) and held == layout.of:
                return f"{reg}[{i} % {layout.of.run}]"
            if held != layout or c[1] != column:
                raise InternalError(f"{name} is asked for another element than this thread's")
            return f"{reg}[{i}]"

        return Tile(shape, dtype, tuple(map(str, shape)), at, layout=layout, registers=reg)

    def held(self, tile: Tile, name: str, layout: Layout = None, fresh: bool = False) -> Tile:
        """The tile in registers; a FREE one takes ``layout``, and ``fresh`` ones are no other tile's."""
        layout = layout or tile.layout
        assert layout is not None
        if tile.layout not in (None, layout):
            tile = self.stored(tile, name)
        if tile.registers and tile.layout == layout and not fresh:
            return tile
        new = replace(self.registers(name, tile.dtype, tile.shape, layout), valid=tile.valid)
        if isinstance(layout, Dealt | Columns) and tile.plain is not None and runs(tile, layout):
            load_runs(self, tile, layout, new.registers)
            return new
        with self.fragments(layout) as (i, at):
            value = self.guarded(tile, at) if tile.reads else tile.value(self.text, at)
            self.text.line(f"{new.registers}[{i}] = {value}")
        return new

    # --- shared memory
    def place(self, name: str, shape: tuple[int, ...], dtype: DType, stages: int = 1) -> Shared:
        """A new buffer; two-byte rows are padded by 16 bytes, so that rows start in different banks."""
        pitch = padded_pitch(shape[-1], dtype)
        rows = 1
        for d in shape[:-1]:
            rows *= d
        pointer = self.text.unique(f"{name}_tile")
        self.buffers.add(pointer, dtype, stages * rows * pitch)
        return Shared(pointer, dtype, pitch)

    def from_shared(self, place: Shared, shape: tuple[int, ...], valid: tuple[str, ...]) -> Tile:
        def at(text: Text, c: Coordinates) -> str:
            return f"block.element({place.name}, {offset(c, shape, place.pitch)})[0]"

        return Tile(shape, place.dtype, valid, at, shared=place)

    def fill(self, tile: Tile, place: Shared, name: Var | str, wait: bool = True, meet: bool = True) -> None:
        """Write a tile's elements into a buffer that nothing reads any more, all threads together.

        Without ``wait``, what can be copied asynchronously is only asked for; without ``meet``, no barrier.
        """
        t = self.text
        t.part()
        if tile.plain is not None and vectors(tile, place):
            t.line(copy_call(tile, place, place.name, now=bool(self.rings)))
            if not self.rings:  # groups end in order: to wait for this one were to wait for the rings
                t.line("cute.arch.cp_async_commit_group()")
                if not wait:
                    return
                t.line("cute.arch.cp_async_wait_group(0)")
        elif tile.layout is not None:
            with self.fragments(tile.layout) as (i, at), self.when(leads(tile.layout, i, at)):
                self.put_shared(tile, at, place)
        else:
            with self.elements(tile.shape) as at:
                self.put_shared(tile, at, place)
        if meet:
            t.line(BARRIER)

    def put_shared(self, tile: Tile, at: Coordinates, place: Shared) -> None:
        value = self.guarded(tile, at)
        self.text.line(f"block.element({place.name}, {offset(at, tile.shape, place.pitch)})[0] = {value}")

    @contextmanager
    def elements(self, shape: tuple[int, ...]) -> Iterator[Coordinates]:
        """A loop over all elements, dealt to the threads in row-major order."""
        count = 1
        for d in shape:
            count *= d
        i = self.text.unique("i")
        with self.text.nested(
            f"for {i} in cutlass.range(tid, {count}, {THREADS}, unroll={2 if count > THREADS else 1}):"
        ):
            yield self.split_index(i, shape)

    def guarded(self, tile: Tile, at: Coordinates) -> str:
        """The element, or zero where the tile has none."""
        test = inside(tile, at)
        if test is None:
            return tile.value(self.text, at)
        out = self.text.let("v", literal(0.0 if tile.dtype.is_float else 0, tile.dtype))
        with self.text.nested(f"if {test}:"):
            self.text.line(f"{out} = {tile.value(self.text, at)}")
        return out

    def split_index(self, i: str, shape: tuple[int, ...]) -> Coordinates:
        """Coordinates of the i-th element, row-major."""
        out: list[str] = []
        step = 1
        for n, d in enumerate(reversed(shape)):
            outermost = all(x == 1 for x in shape[: len(shape) - n - 1])
            if d == 1:
                out.append("0")
            else:
                text = i if step == 1 else f"{i} // {step}"
                out.append(self.text.let("c", text if outermost else f"{text} % {d}"))
            step *= d
        return tuple(reversed(out))

    def stored(self, tile: Tile, name: str = "value", wait: bool = True, meet: bool = True) -> Tile:
        """The tile, in shared memory; without ``wait`` it may still be on its way."""
        if tile.shared is not None:
            return tile
        place = self.place(name, tile.shape, tile.dtype)
        self.fill(tile, place, name, wait, meet)
        return self.from_shared(place, tile.shape, tile.valid)

    def keep(self, var: Arg, wait: bool = True, meet: bool = True) -> Tile:
        """The tile of a variable, from here on in shared memory."""
        tile = self.stored(self.tile(var), getattr(var, "name", "value"), wait, meet)
        self.tiles[var] = tile  # type: ignore[index]
        return tile

    def free(self, tile: Tile, name: str = "value") -> Tile:
        """A tile that any thread may ask for any element of."""
        return tile if tile.layout is None else self.stored(tile, name)

    def settle_all(self, body: Block) -> None:
        """Before a loop or a branch that writes."""
        for x in stores_in(body):
            known = [self.views[x].base] if x in self.views else []
            for base in known or {b for tile in self.tiles.values() for b in tile.reads}:
                self.settle(base)

    def settle(self, written: Var) -> None:
        """Before a write to a tensor: what still reads from it is read now."""
        for var, tile in list(self.tiles.items()):
            if self.uses[var] > 0 and any(self.same(written, x) for x in tile.reads):
                self.tiles[var] = (
                    self.held(tile, var.name) if tile.layout is not None else self.stored(tile, var.name)
                )

    def before_write(self, written: Var, alone: bool = False) -> None:
        """All threads have read what they still need of a tensor before one of them writes to it."""
        self.settle(written)
        if self.clashes(written, alone):
            names = {n for base, n in self.pointers.items() if self.same(base, written)}
            if self.chosen or not met(self.text, {self.pointer(written), *names}):
                self.text.line(BARRIER)

    def after_write(self, s: Let, written: Var) -> None:
        """What other threads read behind a write, they read when it is there."""
        if self.may_read(written, self.behind[id(s)]):
            self.text.line(BARRIER)
