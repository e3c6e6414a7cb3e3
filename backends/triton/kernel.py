"""One region as a kernel: statements, loops and branches, and what its tiles are called.

Every tile is a value of Triton: made where its statement stands, named, and never changed but by a loop that
carries it.  Which thread holds what is Triton's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from pypto_models.errors import InternalError
from pypto_models.ir.expr import Const, Expr, Var
from pypto_models.ir.nodes import Arg, Bind, Block, For, If, Let, LoopKind, Stmt
from pypto_models.ir.types import BOOL, DType, ScalarType, TensorType, TileType

from ..gpu.names import Names
from ..gpu.scan import lets, sources_of, stores_in
from ..gpu.tensors import View
from .choices import Slot, merge
from .pads import Pads
from .rules import unsupported
from .text import Text
from .types import Scalars

Handler = Callable[["Kernel", Let], None]


@dataclass(frozen=True, eq=False)
class Tile:
    """``name`` is a value of extents ``pads``, of which the first ``shape`` are the tile's.

    ``valid`` are the texts of the valid extents.  ``clean``: what is not valid is zero.
    """

    name: str
    shape: tuple[int, ...]
    pads: tuple[int, ...]
    dtype: DType
    valid: tuple[str, ...]
    clean: bool = False


class Kernel(Names):
    """Writes the body of one kernel.  ``views`` are the tensors known outside, ``handlers`` what ops do.

    ``stages`` of loads are under way in a loop that runs ahead, where they fit ``room`` bytes of shared
    memory.
    """

    def __init__(
        self,
        views: Mapping[Var, View],
        handlers: Mapping[str, Handler],
        alias: Mapping[Var, frozenset[Var]],
        stages: int = 1,
        room: int = 0,
    ) -> None:
        super().__init__(views, alias, Text())
        self.handlers = handlers
        self.stages, self.room = stages, room
        self.tiles: dict[Var, Tile] = {}
        self.natural: set[Expr] = set()  # scalars that are never negative
        self.scalars = Scalars(self.read, self.natural)
        self.write, self.value = self.scalars.write, self.scalars.value
        self.pads = Pads()
        self.axes: dict[str, str] = {}  # coordinates along axes, which the kernel begins with
        self.largest = 0  # elements of its largest tile
        self.products = False  # whether it has any

    def run(self, prelude: Block, body: Block) -> None:
        """The statements of a whole kernel."""
        self.pads.block((*prelude, *body))
        self.sources = set(sources_of((*prelude, *body)))
        self.block((*prelude, *body))
        self.text.lines[:0] = [f"    {name} = {text}" for text, name in self.axes.items()]

    # ------------------------------------------------------------------------------------------ names
    def passed(self, x: Var, name: str) -> str:
        return f"({name} != 0)" if x.dtype == BOOL else name

    def dim(self, d: int | Expr) -> str:
        return str(d) if isinstance(d, int) else self.write(d)

    # ------------------------------------------------------------------------------------- statements
    def block(self, body: Block) -> None:
        for s in body:
            self.stmt(s)

    def stmt(self, s: Stmt) -> None:
        if isinstance(s, Let):
            handler = self.handlers.get(s.op.name)
            if handler is None:
                raise unsupported(s, "no rule of this backend covers it")
            handler(self, s)
        elif isinstance(s, Bind):
            if self.scalars.not_negative(s.value):
                self.natural.add(s.var)
            self.names[s.var] = self.text.let(s.var.name, self.value(s.value))
        elif isinstance(s, For):
            self.loop(s)
        elif isinstance(s, If):
            self.branch(s)
        else:
            raise InternalError(f"{type(s).__name__} inside of a region")

    # ------------------------------------------------------------------------------------------ loops
    def loop(self, s: For) -> None:
        t = self.text
        held: list[tuple[str, Expr, Callable[[Expr], str]]] = []  # name, next value, its text
        slots = [Slot.open(self, c) for c in s.carried if isinstance(c.param.type, TensorType)]
        for c in s.carried:
            kind = c.param.type
            if isinstance(kind, TileType):
                init = self.tile(c.init)
                name = t.let(c.param.name, init.name)
                valid, moving = self.carried_valid(kind, init)
                held.append((name, c.next, lambda x: self.tile(x).name))
                for axis, extent in moving:
                    held.append((extent, c.next, lambda x, axis=axis: self.extent(self.tile(x), axis)))  # type: ignore[misc]
                self.tiles[c.param] = Tile(name, init.shape, init.pads, init.dtype, valid)
                self.tiles[c.result] = self.tiles[c.param]
            elif isinstance(kind, ScalarType):
                name = t.let(c.param.name, self.value(c.init))
                self.names[c.param] = self.names[c.result] = name
                held.append((name, c.next, self.value))
        start, stop, step = (self.write(x) for x in (s.start, s.stop, s.step))
        if self.scalars.not_negative(s.start) and isinstance(s.step, Const) and s.step.value > 0:
            self.natural.add(s.var)
        self.names[s.var] = var = t.unique(s.var.name)
        stages = self.stages_of(s)
        outer = dict(self.tiles)
        with t.nested(f"for {var} in tl.range({start}, {stop}, {step}, num_stages={stages}):"):
            for slot in slots:
                slot.enter(self)
            self.loops += 1
            self.block(s.body)
            self.loops -= 1
            nexts = [(name, text(x)) for name, x, text in held]
            nexts += [(slot.where, slot.next(self, s)) for slot in slots]
            changed = [(name, value) for name, value in nexts if name != value]
            if changed:  # at once: one may be another's next
                t.line(f"{', '.join(n for n, _ in changed)} = {', '.join(v for _, v in changed)}")
        self.tiles = outer
        for slot in slots:
            slot.leave(self)

    def carried_valid(self, kind: TileType, init: Tile) -> tuple[tuple[str, ...], list[tuple[int, str]]]:
        """The valid extents of a tile that a loop carries, and those that may differ from trip to trip."""
        valid, moving = [], []
        for axis, d in enumerate(kind.valid):
            if d is None:
                name = self.text.let("valid", self.extent(init, axis))
                moving.append((axis, name))
                valid.append(name)
            else:
                valid.append(self.dim(d))
        return tuple(valid), moving

    def extent(self, tile: Tile, axis: int) -> str:
        return f"tl.cast({tile.valid[axis]}, tl.int32)"

    def stages_of(self, s: For) -> int:
        """How many trips of a loop are under way: all but one have the tiles of their loads in memory."""
        if s.kind is not LoopKind.PIPELINE or self.writes_what_it_reads(s):
            return 1
        trip = 1  # bytes
        for x in lets(s.body):
            if x.op.name == "load" and isinstance(x.result.type, TileType):
                trip += prod(self.pads.of(x.result)) * x.result.type.dtype.bytes
        return min(self.stages, 1 + self.room // trip)

    def writes_what_it_reads(self, s: For) -> bool:
        """Whether a trip may read what the trip before has written: then no load runs ahead."""
        written = [self.views.get(x) for x in stores_in(s.body)]
        read = [self.views.get(x) for x in sources_of(s.body)]
        return bool(written) and any(
            w is None or r is None or self.same(w.base, r.base) for w in written for r in read
        )

    def branch(self, s: If) -> None:
        t = self.text
        if isinstance(s.cond, Const):
            self.taken(s)
            return
        slots: list[tuple[Var, str, list[str]]] = []
        for m in s.merged:
            v = m.result
            if isinstance(v.type, TileType):
                extents = [t.unique("valid") for d in v.type.valid if d is None]
                slots.append((v, t.unique(v.name), extents))
            elif isinstance(v.type, ScalarType):
                slots.append((v, t.unique(v.name), []))
        tiles, ends = dict(self.tiles), []
        before, behind = self.writes(), []
        arms = [(f"if {self.write(s.cond)}:", s.then, "then")]
        if s.orelse or s.merged:
            arms.append(("else:", s.orelse, "orelse"))
        for head, body, side in arms:
            with t.nested(head):
                self.tiles = dict(tiles)
                self.since(before)
                self.block(body)
                values = {m.result: getattr(m, side) for m in s.merged}
                for v, name, extents in slots:
                    if isinstance(v.type, TileType):
                        tile = self.tile(values[v])
                        t.line(f"{name} = {tile.name}")
                        rest = iter(extents)
                        for axis, d in enumerate(v.type.valid):
                            if d is None:
                                t.line(f"{next(rest)} = {self.extent(tile, axis)}")
                    else:
                        t.line(f"{name} = {self.value(values[v])}")
                ends.append(len(t.lines))
                behind.append(self.writes())
        self.since(before, *behind)
        self.tiles = tiles
        merge(self, s, ends)
        for v, name, extents in slots:
            if isinstance(v.type, TileType):
                rest = iter(extents)
                valid = tuple(next(rest) if d is None else self.dim(d) for d in v.type.valid)
                self.tiles[v] = Tile(name, v.type.shape, self.pads.of(v), v.type.dtype, valid)
            else:
                self.names[v] = name

    def taken(self, s: If) -> None:
        """A branch that is known."""
        assert isinstance(s.cond, Const)
        side = "then" if s.cond.value else "orelse"
        self.block(getattr(s, side))
        for m in s.merged:
            v, value = m.result, getattr(m, side)
            if isinstance(v.type, TileType):
                self.tiles[v] = self.tile(value)
            elif isinstance(v.type, TensorType):
                self.views[v] = self.view_of(value)
            else:
                self.names[v] = self.text.let(v.name, self.value(value))

    # ------------------------------------------------------------------------------------------ tiles
    def tile(self, x: Arg) -> Tile:
        if not isinstance(x, Var) or x not in self.tiles:
            raise InternalError(f"{x!r} is no tile of this kernel")
        return self.tiles[x]

    def keep(
        self, result: Var, text: str, valid: tuple[str, ...], clean: bool = False, name: str | None = None
    ) -> Tile:
        """The tile of a variable, from the text of its value."""
        kind = result.type
        assert isinstance(kind, TileType)
        pads = self.pads.of(result)
        tile = Tile(self.text.let(name or result.name, text), kind.shape, pads, kind.dtype, valid, clean)
        self.largest = max(self.largest, prod(pads))
        self.tiles[result] = tile
        return tile

    def static_valid(self, t: TileType, otherwise: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(o if v is None else self.dim(v) for v, o in zip(t.valid, otherwise, strict=True))

    def along(self, pads: tuple[int, ...], axis: int) -> str:
        """The coordinate along an axis, as a tile that meets others of these extents."""
        if pads[axis] == 1:
            return "0"
        place = ", ".join(":" if i == axis else "None" for i in range(len(pads)))
        text = f"tl.arange(0, {pads[axis]})" + (f"[{place}]" if len(pads) > 1 else "")
        if text not in self.axes:
            self.axes[text] = self.text.unique(f"{'dbrc'[axis - len(pads)]}{pads[axis]}")
        return self.axes[text]

    def inside(self, pads: tuple[int, ...], valid: tuple[str, ...]) -> str | None:
        """The mask of the elements below ``valid``; None if all are."""
        tests = [
            f"({self.along(pads, i)} < {v})" if pads[i] > 1 else f"({v} > 0)"
            for i, v in enumerate(valid)
            if v != str(pads[i])
        ]
        return " & ".join(tests) if len(tests) > 1 else tests[0][1:-1] if tests else None

    def cleaned(self, tile: Tile) -> str:
        """The value with zeros for what is not valid."""
        mask = None if tile.clean else self.inside(tile.pads, tile.valid)
        return tile.name if mask is None else self.text.let("live", f"tl.where({mask}, {tile.name}, 0)")

    def widened(self, tile: Tile) -> str:
        """The value in the type that arithmetic runs in."""
        return (
            f"{tile.name}.to(tl.float32)" if tile.dtype.is_float and tile.dtype.name != "FP32" else tile.name
        )

    # ------------------------------------------------------------------------------------------ order
    def before_write(self, written: Var, alone: bool = False) -> None:
        """All threads are done with a tensor before one of them writes to it; ``alone``: a single element."""
        if self.clashes(written, alone):
            self.text.line(self.text.barrier)

    def order(self, base: Var) -> None:
        if self.may_read(base):
            self.text.line(self.text.barrier)
