"""What a kernel does before it waits for the kernels before it (order.py says what it may do).

The statements that read what is there already come first: elements, then small tiles, which are held in
registers and reach shared memory together.  In between, the loops of a block look up the addresses of their
first loads, which then begin where they need nothing else.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import TYPE_CHECKING

from pypto_models.ir.expr import Expr, Var
from pypto_models.ir.nodes import Bind, Block, For, Let, LoopKind, Stmt
from pypto_models.ir.rewrite import defs, uses
from pypto_models.ir.types import TileType

from ..gpu.grouping import PRODUCTS
from ..gpu.scan import READS, VIEWS, lets, stores_in
from ..gpu.timing import WAITED
from .layouts import POINTWISE
from .order import AFTER, WAIT
from .places import vectors
from .text import BARRIER
from .tiles import Tile

if TYPE_CHECKING:
    from .kernel import Kernel

EARLY_BYTES = 1024  # of a tile that is brought to shared memory before the wait
SOON_BYTES = 8192  # of one that is brought there behind it
COMPOSED = POINTWISE | {"extract", "insert", "reshape", "transpose", "write_tile"}


def ask(k: Kernel, var: Var, tile: Tile) -> None:
    """Load a tile with others; they come to shared memory when something needs one of them."""
    place = k.place(var.name, tile.shape, tile.dtype)
    if tile.plain is None or not vectors(tile, place):
        k.fill(tile, place, var)
    else:
        pointer, pitch, rows = tile.plain
        sizes = f"{tile.shape[0]}, {tile.shape[1]}, {16 // tile.dtype.bytes}"
        load = f"block.load_rows({pointer}, {pitch}, Int32({rows}), {sizes})"
        held = k.text.let(f"{var.name}_held", load)
        k.asked.append(f"block.put_rows({held}, {place.name}, {place.pitch}, {sizes})")
    k.tiles[var] = k.from_shared(place, tile.shape, tile.valid)


def receive(k: Kernel) -> None:
    """What was asked for is in shared memory from here on.  The rings that were to come behind it begin."""
    for ring in k.rings.values():
        if ring.behind is not None:
            ring.prologue(k, ring.behind, k.bounds(ring.behind))
            ring.behind = None
    if k.asked:
        k.text.part()
        for line in k.asked:
            k.text.line(line)
        k.text.line(BARRIER)
        k.asked.clear()


def wait_once(k: Kernel, hold: bool = False) -> None:
    """For the kernels before this one, unless it has.  With ``hold``, what was asked for stays in registers:
    more is asked for at once, and need not wait for that to arrive.
    """
    if not hold:
        receive(k)
    if not k.waited:
        k.text.line(WAIT)
        k.text.line(AFTER)
        k.waited = True
        if not k.noted:  # the wait behind a branch that may have waited is not noted
            k.stamp(WAITED)


def look_up_rings(k: Kernel, body: Block) -> None:
    """Before the wait: the addresses of the first loads of a block's loops that need nothing later."""
    later: set[Expr] = set()
    written: list[Var] = []
    for s in body:
        if isinstance(s, For) and id(s) not in k.rings:
            ring = k.ring(s)
            if ring is not None and ring.early(k, s, later, written):
                k.rings[id(s)] = ring
                ring.look_up(k, s, k.bounds(s))
        later |= set(defs(s))
        written += stores_in((s,))


def start_rings(k: Kernel, body: Block) -> None:
    """Before the wait: the first loads of a block's loops.

    Rings of single warps ask for all their slots at once.  Tiles that are asked for right behind the wait
    would come when all of that has come, and the block has work to do on them first: such rings begin behind.
    """
    look_up_rings(k, body)
    for s in body:
        if isinstance(s, For) and id(s) in k.rings and not k.rings[id(s)].started:
            ring = k.rings[id(s)]
            if asks_soon(k, body[0]) and ring.takers > 1:
                ring.behind = s
            else:
                ring.prologue(k, s, k.bounds(s))


def asks_soon(k: Kernel, s: Stmt) -> bool:
    """Whether a statement loads a tile that is asked for right behind the wait."""
    return not k.soon.isdisjoint(defs(s))


def settled_first(k: Kernel, body: Block) -> Block:
    """The statements of a block, those first that read what is there before the wait: they overlap it.
    Behind them come the tiles that are read often: their loads overlap each other.
    """
    now: list[Stmt] = []
    soon: list[Stmt] = []
    later: list[Stmt] = []
    undefined: set[Expr] = set()
    views = dict(k.views)
    written = set(stores_in(body))

    def apart(s: Let) -> bool:
        """Whether nothing here may write to what a statement reads."""
        base = views[s.args[0]].base if s.args[0] in views else None
        return base is not None and all(w in views and not k.same(base, views[w].base) for w in written)

    for s in body:
        if isinstance(s, Let) and s.op.name in VIEWS and s.args[0] in views:
            views[s.result] = views[s.args[0]]  # of the same tensor
        moves = isinstance(s, Bind) or (
            isinstance(s, Let)
            and s.op.name in (*VIEWS, *READS)
            and s.args[0] in views
            and (s.op.name in VIEWS or (k.ahead.allows(s, views[s.args[0]].base) and apart(s)))
        )
        known = not undefined & set(uses((s,)))
        if moves and known:
            now.append(s)
        elif known and isinstance(s, Let) and often_read(k, s, body) and apart(s):
            soon.append(s)
            k.soon.add(s.result)
        else:
            later.append(s)
            undefined |= set(defs(s))
    now.sort(key=lambda s: isinstance(s, Let) and s.op.name == "load")  # tiles last: loops look up addresses
    return (*now, *soon, *later)


def often_read(k: Kernel, s: Let, body: Block) -> bool:
    """Whether a statement loads a tile that fits shared memory well, and that several others compute with."""
    kind = s.result.type if s.op.name == "load" else None
    if not isinstance(kind, TileType) or kind.elements * kind.dtype.bytes > SOON_BYTES:
        return False
    return k.plan.of(s.result) is None and readers(body, s.result) > 1


def readers(body: Block, tile: Var) -> int:
    """How often the elements of a tile are asked for, through ops that only compose (tiles.py); 0 where it is
    an operand of a product, which has its own copy.
    """
    count: Counter[Var] = Counter({tile: 1})
    moved = {tile}
    out = 0
    for x in lets(body):
        taken = sum(count[a] for a in x.args if isinstance(a, Var))
        if x.op.name == "move" and x.args[0] in moved:
            moved.add(x.result)
        if x.op.name in PRODUCTS and not moved.isdisjoint(a for a in x.args if isinstance(a, Var)):
            return 0
        if x.op.name in COMPOSED:
            count.update(dict.fromkeys(x.results, taken))
        else:
            out += taken
    return out


def begins_apart(s: Stmt) -> bool:
    """Whether a statement is a loop whose trips may begin before the wait: they carry nothing."""
    return isinstance(s, For) and s.kind is LoopKind.RANGE and not s.carried


def small(tile: Tile) -> bool:
    """Whether a tile, such as the weights of a norm, takes little shared memory."""
    return prod(tile.shape) * tile.dtype.bytes <= EARLY_BYTES


def reads(s: Stmt) -> bool:
    """Whether a statement only names something, or reads it from memory."""
    return isinstance(s, Bind) or (isinstance(s, Let) and s.op.name in (*VIEWS, *READS))
