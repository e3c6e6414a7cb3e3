"""Loops whose loads run ahead: the ring of tiles in shared memory that keeps the memory pipe full."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pypto_models.errors import InternalError
from pypto_models.ir.expr import Expr, Var, as_dim, free_vars, index
from pypto_models.ir.nodes import Bind, Block, For, If, Let, Stmt
from pypto_models.ir.rewrite import uses
from pypto_models.ir.types import TileType

from ..gpu.scan import lets, reads_only, sources, stores_in
from ..gpu.tensors import aligned_pitch
from ..gpu.timing import ARRIVED
from .layouts import THREADS, WARPS
from .order import settled
from .places import copy_call, padded_pitch, vectors
from .scalars import DSL_TYPES
from .text import BARRIER
from .tiles import Shared, Tile

if TYPE_CHECKING:
    from .kernel import Kernel

MOST_STAGES = 4
FEW = 8  # elements of tiles that a thread loads in a trip, at most, for MANY_TRIPS to be unrolled
MANY_TRIPS = 8
SOME_TRIPS = 2


@dataclass
class Staged:
    """A loop whose loads run ahead of it: a ring of ``stages`` slots in shared memory for each load.

    A load may run ahead if its address depends on the loop variable, memory that the loop does not write and
    values from outside, but on nothing that the loop carries.
    """

    loads: tuple[Let, ...]
    scalars: tuple[Stmt, ...]  # what the addresses need, in order
    stages: int
    places: dict[Var, Shared] = field(default_factory=dict)
    warps: int = WARPS  # that share a slot
    takers: int = 1  # that have rings of their own
    first_trips: list[tuple[str, dict[Var, str]]] = field(default_factory=list)  # and what they looked up
    started: bool = False
    behind: For | None = None  # its loop, if it begins behind tiles that are asked for
    slot: str = ""
    held: dict[Var, str] = field(default_factory=dict)  # elements that addresses need, read a trip early

    @staticmethod
    def plan(k: Kernel, s: For) -> Staged | None:
        found = run_ahead(k, s)
        if found is None:
            return None
        loads, scalars, size = found
        stages = min(MOST_STAGES, k.room // size)
        return Staged(loads, scalars, stages) if stages >= 2 else None

    def early(self, k: Kernel, s: For, later: set[Expr], written: list[Var]) -> bool:
        """Whether its first loads may begin now: before the wait, and before statements that define ``later``
        and write to ``written``.
        """
        first = (*self.scalars, *self.loads)
        needs = {*uses(first), *(v for x in (s.start, s.stop, s.step) for v in free_vars(x))}
        if needs & later or not all(settled(st, k.ahead, k.views) for st in first):
            return False
        bases = {k.views[v].base for x in lets(first) for v in sources(x)}
        if not all(w in k.views and not k.same(b, k.views[w].base) for b in bases for w in written):
            return False
        k.early |= bases
        return True

    def issue(self, k: Kernel, s: For, var: str, stop: str, slot: str) -> None:
        """Begin the loads of trip ``var`` into ``slot``; a trip that is not there begins nothing."""
        names = dict(k.names)
        with k.text.nested(f"if {var} < {stop}:"):
            k.names[s.var] = var
            self.addresses(k)
            for load in self.loads:
                k.handlers["load"](k, load)
                tile = k.tiles.pop(load.result)
                place = self.places[load.result]
                if tile.plain is None or not vectors(tile, place):
                    raise InternalError(f"the load of {load.result.name} cannot run ahead")
                k.text.line(copy_call(tile, place, self.at(place, tile, slot), self.warps))
        k.text.line("cute.arch.cp_async_commit_group()")
        k.names = names

    def at(self, place: Shared, tile: Tile, slot: str) -> str:
        """Where a slot of the ring of a load begins."""
        return f"{place.name} + {slot} * {tile.shape[0] * place.pitch}"

    def addresses(self, k: Kernel) -> None:
        """The scalars of the trip to begin, with the elements that an earlier trip has read for it."""
        for st in self.scalars:
            if isinstance(st, Let) and st.result in self.held:
                k.names[st.result] = self.held[st.result]
            else:
                k.stmt(st)

    def read_ahead(self, k: Kernel, s: For, var: str, stop: str) -> None:
        """Read the elements that the addresses of trip ``var`` need: nothing waits for them in this one."""
        names, now = dict(k.names), self.held
        with k.text.nested(f"if {var} < {stop}:"):
            k.names[s.var] = var
            self.held = {}
            self.addresses(k)
            self.held = now
            for v, name in now.items():
                k.text.line(f"{name} = {k.names[v]}")
        k.names = names

    def look_up(self, k: Kernel, s: For, bounds: list[str]) -> None:
        """Read what the addresses of the first trips need, all at once."""
        self.look(k, s, bounds[0], bounds[2], bounds[1], self.stages)

    def look(self, k: Kernel, s: For, first: str, step: str, stop: str, trips: int) -> None:
        """Trips ``first``, ``first`` + ``step``, ..: the last of them begins in the loop."""
        for d in range(trips):
            trip = k.text.let("ahead", f"{first} + {d} * {step}")
            self.held = {}
            for st in self.scalars:
                if isinstance(st, Let):
                    dtype = DSL_TYPES[st.result.type.dtype.name]  # type: ignore[union-attr]
                    self.held[st.result] = k.text.let(f"{st.result.name}_ahead", f"{dtype}(0)")
            if self.held:
                self.read_ahead(k, s, trip, stop)
            self.first_trips.append((trip, self.held))

    def prologue(self, k: Kernel, s: For, bounds: list[str]) -> None:
        """Begin the loads of the first trips."""
        if not self.first_trips:
            self.look_up(k, s, bounds)
        self.started = True
        k.text.part()
        self.claim(k)
        for d, (trip, held) in enumerate(self.first_trips[:-1]):
            self.held = held
            self.issue(k, s, trip, bounds[1], str(d))
        self.held = self.first_trips[-1][1]
        self.slot = k.text.let("slot", "Int32(0)")

    def claim(self, k: Kernel) -> None:
        """Shared memory for the ring of each load."""
        for load in self.loads:
            kind = load.result.type
            assert isinstance(kind, TileType)
            slots = self.stages * self.takers
            self.places[load.result] = k.place(load.result.name, kind.shape, kind.dtype, slots)
            k.ring_bytes += k.buffers.sizes[self.places[load.result].name]
        k.stage_bytes = max(k.stage_bytes, k.ring_bytes // self.stages)

    def enter(self, k: Kernel, s: For, var: str, bounds: list[str]) -> Block:
        """Wait for this iteration's tiles, begin those of a later one; gives the body without the loads."""
        t = k.text
        t.line(f"cute.arch.cp_async_wait_group({self.stages - 2})")
        t.line(BARRIER)
        if k.stamps:
            with t.nested(f"if {var} == {bounds[0]}:"):
                k.stamp(ARRIVED)
        into = t.let("into", f"{self.slot} + {self.stages - 1}")
        with t.nested(f"if {into} >= {self.stages}:"):
            t.line(f"{into} = {into} - {self.stages}")
        ahead = t.let("ahead", f"{var} + {self.stages - 1} * {bounds[2]}")
        self.issue(k, s, ahead, bounds[1], into)
        if self.held:
            self.read_ahead(k, s, t.let("ahead", f"{var} + {self.stages} * {bounds[2]}"), bounds[1])
        return self.here(k, s, var)

    def here(self, k: Kernel, s: For, var: str) -> Block:
        """Names this trip's tiles; gives the rest of the loop's body."""
        t = k.text
        k.names[s.var] = var
        k.block(self.scalars)
        for load in self.loads:
            k.handlers["load"](k, load)
            lazy = k.tiles[load.result]
            place = self.places[load.result]
            here = t.let(f"{load.result.name}_now", self.at(place, lazy, self.slot))
            k.tiles[load.result] = k.from_shared(replace(place, name=here), lazy.shape, lazy.valid)
        done = {id(x) for x in (*self.scalars, *self.loads)}
        return tuple(x for x in s.body if id(x) not in done)

    def leave(self, k: Kernel) -> None:
        k.text.line(f"{self.slot} = {self.slot} + 1")
        with k.text.nested(f"if {self.slot} == {self.stages}:"):
            k.text.line(f"{self.slot} = Int32(0)")


def run_ahead(k: Kernel, s: For) -> tuple[tuple[Let, ...], tuple[Stmt, ...], int] | None:
    """The loads of a loop that may run ahead of it, what their addresses need, and the bytes of a trip."""
    carried = {c.param for c in s.carried}
    local = {r for st in s.body if isinstance(st, Let) for r in st.results} | {
        st.var for st in s.body if isinstance(st, Bind)
    }
    written = [x for x in stores_in(s.body) if x not in k.views]
    if written:  # through a view that is made inside: it may be of any tensor
        return None
    bases = {k.views[x].base for x in stores_in(s.body)}
    ready: set[Expr] = {s.var}
    scalars: list[Stmt] = []
    loads: list[Let] = []

    def known(st: Stmt) -> bool:
        needs = {v for v in uses((st,)) if isinstance(v, Var)}
        return not (needs & carried) and all(v in ready for v in needs & local)

    for st in s.body:
        if isinstance(st, Bind) and known(st):
            scalars.append(st)
            ready.add(st.var)
        elif isinstance(st, Let) and st.op.name == "read_tensor" and known(st):
            scalars.append(st)
            ready.add(st.result)
        elif isinstance(st, Let) and st.op.name == "load" and known(st):
            t = st.result.type
            assert isinstance(t, TileType)
            per = 16 // t.dtype.bytes
            if (
                t.rank == 2
                and t.shape[1] % per == 0
                and k.uses[st.result]
                and runs_ahead(k, st, bases)
                and _staged_use(s.body, st.result)
            ):
                loads.append(st)
    if not loads:
        return None
    one = 0
    for load in loads:
        t = load.result.type
        assert isinstance(t, TileType)
        one += t.shape[0] * padded_pitch(t.shape[1], t.dtype) * t.dtype.bytes
    return tuple(loads), tuple(scalars), one


def runs_ahead(k: Kernel, load: Let, written: set[Var]) -> bool:
    """Whether a load can be copied in 16-byte pieces, from a tensor that the loop does not write."""
    tensor = load.arg("t")
    if not isinstance(tensor, Var) or tensor not in k.views:
        return False
    if any(k.same(k.views[tensor].base, w) for w in written):
        return False
    shape, at = (tuple(index(x) for x in load.arg(n)) for n in ("shape", "offset"))  # type: ignore[union-attr, arg-type]
    limits = load.arg("valid_shape")
    whole = not isinstance(limits, tuple) or as_dim(index(limits[-1])) == as_dim(shape[-1])
    if not whole or load.arg("clamp") or load.arg("drop_dims") or load.arg("pad_value") is not None:
        return False
    box = k.views[tensor].moved(tuple(as_dim(x) for x in shape), at)
    return aligned_pitch(box, k.divisors) is not None


def _staged_use(body: Block, var: Var) -> bool:
    """Whether a product of the loop takes the tile as it is loaded, possibly moved."""
    names = {var}
    for s in body:
        if isinstance(s, Let) and s.op.name == "move" and s.args[0] in names:
            names.add(s.result)
        if (
            isinstance(s, Let)
            and s.op.name in ("matmul", "matmul_acc")
            and names & {s.arg("lhs"), s.arg("rhs")}
        ):
            return True
        if isinstance(s, If) and (_staged_use(s.then, var) or _staged_use(s.orelse, var)):
            return True
    return False


def trips_at_once(body: Block) -> int:
    """How many trips of a loop without barriers are unrolled, so that their loads wait together: many, where
    a trip only reads scalars, or few elements of tiles, which stay in registers.
    """
    tiles = [x.result.type for x in lets(body) if x.op.name == "load"]
    straight = all(isinstance(s, (Let, Bind)) for s in body)
    few = sum(t.elements for t in tiles if isinstance(t, TileType)) <= FEW * THREADS
    return MANY_TRIPS if reads_only(body) or (bool(tiles) and straight and few) else SOME_TRIPS
