"""Schedules of regions that run as written: source blocks as work items, a ring where a loop loads tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import Diag, UserError, user_error
from ..ir.expr import Expr, Var, as_dim, binary, dim_expr
from ..ir.graph import Access
from ..ir.nodes import For, Let
from ..ir.rewrite import walk
from ..ir.types import Dim, Mem, TileType
from ..ops import OpDef
from ..target import Gpu, Target
from .check import gpu_of, problems, thread_registers
from .domain import RegionDomain, Step
from .footprint import Footprint, footprint
from .overrides import Override
from .record import Items, Page, Part, Registers, Ring, Schedule
from .stream import OTHER_REGISTERS, resident

WARPS = (1, 2, 4, 8, 16)
LANE_ELEMENTS = 8  # of the widest tile: two 16-byte accesses of fp32
COPY_BYTES = 16  # of one cp.async


@dataclass(frozen=True)
class _Loads:
    """The loop that loads most, and the tiles that it loads in a trip."""

    loop: For
    pages: tuple[Page, ...]
    tiles: frozenset[Var]

    @property
    def bytes(self) -> int:
        return sum(p.bytes for p in self.pages)


def plan_walk(domain: RegionDomain, target: Target, given: Override, fixed_by: tuple[Step, ...]) -> Schedule:
    """The schedule of a region that cannot be re-blocked; raises a user error if there is no legal one."""
    gpu = gpu_of(target)
    loads = _streaming_loop(domain)
    if loads is not None:
        schedule = _build(domain, target, gpu, given, loads)
        if schedule is not None and not problems(schedule, target):
            return replace(schedule, fixed_by=fixed_by)
    schedule = _build(domain, target, gpu, given, None)
    if schedule is None or (wrong := problems(schedule, target)):
        why = "its ring does not fit" if schedule is None else wrong[0]
        if given.values:
            raise given.error(f"{domain.name} has no legal schedule: {why}", "leave out some of its keys")
        raise _too_large(domain, target)
    return replace(schedule, fixed_by=fixed_by)


def _too_large(domain: RegionDomain, target: Target) -> UserError:
    fp, limit = footprint(domain.task.region), target.spaces[Mem.Mat].bytes
    most = max(fp.register_bytes, fp.shared_bytes)
    return user_error(
        Diag.BUDGET, domain.task.span, region=domain.name, need=fp.register_bytes + fp.shared_bytes,
        space="shared memory", tile="tiles that are live together", bytes=most, target=target.name,
        limit=limit,
        fix="make the tiles of the region smaller",
    )  # fmt: skip


def grid_of(domain: RegionDomain) -> Dim:
    """Work items: the product of the grid, int or run-time."""
    total: Expr = dim_expr(1)
    for g in domain.task.grid:
        total = binary("*", total, dim_expr(g.extent))
    return as_dim(total)


def _build(
    domain: RegionDomain, target: Target, gpu: Gpu, given: Override, loads: _Loads | None
) -> Schedule | None:
    fp = footprint(domain.task.region, loads.tiles if loads is not None else ())
    warps = given.number("warps") or _warps(fp, gpu)
    registers = _registers(fp, warps)
    tiles, note = fp.shared_bytes, "operands of products"
    if registers.total > thread_registers(32 * warps, gpu):
        registers, tiles, note = replace(registers, tiles=0), tiles + fp.register_bytes, "tiles of the block"
    sizes = [("tiles", _align(tiles), note), ("reduce", _align(fp.scratch(warps)), "")]
    ring = None
    if loads is not None:
        apart = sum(size for _, size, _ in sizes)
        half = gpu.sm_shared_bytes // 2 - gpu.block_reserve_bytes
        ring = _ring(loads, gpu, given, (half - apart, target.spaces[Mem.Mat].bytes - apart))
        if ring is None:
            return None
        sizes.insert(0, ("ring", _align(ring.bytes), ""))
    parts: list[Part] = []
    for name, size, why in sizes:
        if size:
            parts.append(Part(name, size, parts[-1].offset + parts[-1].bytes if parts else 0, why))
    grid = grid_of(domain)
    ctas = given.number("ctas") or (min(grid, target.cores) if isinstance(grid, int) else target.cores)
    read_only = {o.tensor.name for o in domain.operands if o.role == "weight"}
    pages = loads.pages if loads is not None else ()
    items = None
    if loads is not None and ring is not None:
        items = Items(grid, loads.loop.var.name, pages, _cuts(loads, ring))
    schedule = Schedule(
        region=domain.name, line=domain.task.span.line, target=target.name,
        form="items" if loads is not None else "blocks", grid=grid, ctas=max(ctas, 1), warps=warps,
        registers=registers, shared=tuple(parts), ring=ring,
        items=items,
        prefetch=tuple(dict.fromkeys(p.tensor for p in pages if p.tensor in read_only)),
    )  # fmt: skip
    torn = [p for p in pages if p.row_bytes % gpu.line_bytes]
    notes = tuple(f"rows of {p.tensor} ({p.row_bytes} bytes) are no whole lines" for p in torn)
    return replace(schedule, resident=resident(schedule, gpu), notes=notes)


def _warps(fp: Footprint, gpu: Gpu) -> int:
    """Enough warps for the widest tile, and for all values to take half of the registers at most."""
    for warps in WARPS:
        roomy = _registers(fp, warps).tiles <= thread_registers(32 * warps, gpu) // 2
        if roomy and fp.widest <= warps * 32 * LANE_ELEMENTS:
            return warps
    return next((w for w in WARPS if _registers(fp, w).tiles <= 64), WARPS[-1])


def _registers(fp: Footprint, warps: int) -> Registers:
    return Registers(0, 0, 0, -(-fp.register_bytes // (4 * 32 * warps)), OTHER_REGISTERS)


def _align(n: int) -> int:
    return -(-n // 128) * 128


# ------------------------------------------------------------------------------------------------ ring
def _ring(loads: _Loads, gpu: Gpu, given: Override, rooms: tuple[int, int]) -> Ring | None:
    """Slots of a whole page if three fit, else of a part of its rows; None if two do not fit."""
    largest = max(p.bytes for p in loads.pages)
    rows = min(p.rows for p in loads.pages)
    parts = [
        c for c in (1, 2, 4, 8) if all(p.rows % c == 0 for p in loads.pages) and rows // c >= min(rows, 16)
    ]
    if given.number("cuts"):
        parts = [c for c in (int(given.number("cuts") or 1),) if all(p.rows % c == 0 for p in loads.pages)]
    tensors = tuple(dict.fromkeys(p.tensor for p in loads.pages))
    for least, room in ((3, rooms[0]), (3, rooms[1]), (2, rooms[1])):
        for cuts in parts:
            slot = -(-largest // cuts)
            slots = given.number("slots") or min(1 + -(-gpu.in_flight_bytes // slot), room // slot)
            if slots >= least and slots * slot <= room:
                return Ring("cta", 1, slots, slot, tensors)
    return None


def _cuts(loads: _Loads, ring: Ring) -> int:
    return max(p.bytes for p in loads.pages) // ring.slot_bytes


def _streaming_loop(domain: RegionDomain) -> _Loads | None:
    """The innermost loop whose trips load most bytes of tiles, if their rows suit 16-byte copies."""
    reads: dict[tuple[str, object], list[Access]] = {}
    for a in domain.task.reads:
        reads.setdefault((a.op, a.span), []).append(a)
    best: _Loads | None = None
    for loop in (s for s in walk(domain.task.region.body) if isinstance(s, For)):
        if any(isinstance(s, For) and _tile_loads(s) for s in walk(loop.body)):
            continue  # an inner loop loads
        pages, tiles = [], set()
        for let in _tile_loads(loop):
            t = let.result.type
            found = reads.get((let.op.name, let.span), [])
            if not isinstance(t, TileType) or not found or t.rank != 2:
                continue
            row_bytes = t.shape[1] * t.dtype.bytes
            moves = any(loop.var in a.loops and _moves(domain, a, loop) for a in found)
            if moves and row_bytes % COPY_BYTES == 0:
                a = found[0]
                pages.append(Page(a.tensor.name, t.shape[0], row_bytes, bool(a.tables), let.span.line))
                tiles.add(let.result)
        loads = _Loads(loop, tuple(pages), frozenset(tiles))
        if pages and (best is None or loads.bytes > best.bytes):
            best = loads
    return best


def _tile_loads(loop: For) -> Iterator[Let]:
    for s in walk(loop.body):
        if isinstance(s, Let) and isinstance(s.op, OpDef) and s.op.name == "load":
            yield s


def _moves(domain: RegionDomain, a: Access, loop: For) -> bool:
    """True if the loop moves the box of a load (the domain's operands know through which values)."""
    name = loop.var.name
    return any(
        o.tensor is a.tensor and o.line == a.span.line and name in o.moves_with for o in domain.operands
    )
