"""The memory plan of a scratchpad target: an address for every tile of every region.

Needs: memory spaces and splits (after infer_memory and split).

Each region is planned alone, for one core: Vec per vector lane, with halved tiles if the region is split.
Dead tiles' space is reused, results are computed in place (see coalesce), and what a pipelined loop loads
takes one buffer per stage.  Besides its tiles a region needs

* a ring of slots for the tiles that cross between its units, in the space of the consumer: each slot holds
  the largest crossing tile, and there are as many as the option ``slot_num`` says, or as are live at once;
* staging of matmul operands in Left and Right.  Operands larger than half of that space are cut along K and
  double-buffered, so that staging always fits if one fractal along K does.  The accumulator is never cut.

:func:`examine` gives the plan and all findings; :func:`plan` raises the first.  On a GPU the plan comes with
the schedule and nothing is checked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..errors import Diag, Span, UserError, user_error
from ..ir.expr import Var
from ..ir.nodes import For, Function, Let, LoopKind, Region, RegionOptions, Stmt, Unit
from ..ir.rewrite import Rewriter, walk
from ..ir.types import DType, Mem, SplitMode
from ..ops import OpDef
from ..target import Target
from . import alignment, split
from .coalesce import Storage, coalesce, space_of, storage, tile_type
from .liveness import Liveness, analyse, read_point, write_point
from .packing import Item, align_up, busiest_point, pack

_STAGED = {"lhs": Mem.Left, "rhs": Mem.Right}
_GPU_NOTE = "the memory plan of a GPU target comes with its schedule; nothing is checked here"


@dataclass(frozen=True)
class Buffer:
    """``count`` copies of ``bytes`` at ``offset``, live from statement ``first`` to ``last`` of the region.

    ``name``, ``uid``, ``shape`` (of one lane), ``dtype`` and ``span`` are those of the largest tile in it,
    ``shared_with`` names the others, and ``uids`` are all tiles that live here.
    """

    name: str
    uid: int
    shape: tuple[int, ...]
    dtype: DType
    bytes: int
    offset: int
    first: int
    last: int
    count: int
    span: Span
    shared_with: tuple[str, ...] = ()
    uids: tuple[int, ...] = ()
    live: int = field(default=0, repr=False)

    @property
    def total(self) -> int:
        return self.bytes * self.count

    def __str__(self) -> str:
        copies = f" x {self.count}" if self.count > 1 else ""
        return f"{self.name!r} {list(self.shape)} {self.dtype}{copies}"


@dataclass(frozen=True)
class SpacePlan:
    """One memory space of one region, in bytes: the ``limit`` of the target and the ``peak`` that is used."""

    limit: int
    peak: int
    buffers: tuple[Buffer, ...]

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit

    def at_peak(self) -> list[Buffer]:
        """Buffers live where most bytes are live, largest first."""
        _, point = busiest_point([Item(b.total, b.live) for b in self.buffers])
        live = [b for b in self.buffers if b.live >> point & 1]
        return sorted(live, key=lambda b: (-b.total, b.first))


@dataclass(frozen=True)
class RegionPlan:
    name: str
    span: Span
    unit: Unit
    split: SplitMode
    spaces: Mapping[Mem, SpacePlan]


@dataclass(frozen=True)
class MemoryPlan:
    """Regions in program order.  If nothing was planned, ``checked`` is False and ``note`` says why."""

    target: str
    regions: tuple[RegionPlan, ...]
    checked: bool = True
    note: str = ""

    def table(self) -> list[tuple[str, str, str, str, int, int, float]]:
        """Rows (region, unit, split, space, peak bytes, limit in bytes, share of the limit)."""
        return [
            (r.name, r.unit.value, r.split.name, mem.name, s.peak, s.limit, s.peak / s.limit)
            for r in self.regions
            for mem, s in r.spaces.items()
        ]


# ------------------------------------------------------------------------------------------------- entries
def plan(fn: Function, target: Target) -> MemoryPlan:
    """The memory plan of ``fn``; raises the first finding (alignment, fractal or budget) as a user error."""
    result, found = examine(fn, target)
    for error in found:
        raise error
    return result


def examine(fn: Function, target: Target) -> tuple[MemoryPlan, list[UserError]]:
    """The memory plan of ``fn`` and everything in it that ``target`` cannot hold."""
    if not target.is_scratchpad:
        return MemoryPlan(target.name, (), checked=False, note=_GPU_NOTE), []
    regions: list[RegionPlan] = []
    found: list[UserError] = []
    for s in walk(fn.body):
        if isinstance(s, Region):
            planned = plan_region(s, target)
            regions.append(planned)
            found += alignment.findings(s, target)
            found += _over_budget(s, planned, target)
    return MemoryPlan(target.name, tuple(regions)), found


def plan_region(region: Region, target: Target) -> RegionPlan:
    """Place the tiles of one region, whether or not they fit."""
    liveness = analyse(region.body)
    storages = coalesce(liveness)
    buffers: dict[Mem, list[Buffer]] = {}
    for s in storages:
        if not s.crosses:
            buffers.setdefault(s.space, []).append(_tile_buffer(s, target))
    for space in (Mem.Vec, Mem.Mat):
        crossing = [s for s in storages if s.crosses and s.space is space]
        if crossing:
            buffers.setdefault(space, []).append(_ring(crossing, region.options, liveness, target))
    for space, staged in _staging(liveness, storages, target):
        buffers.setdefault(space, []).append(staged)
    spaces = {mem: _place(buffers[mem], target.spaces[mem].bytes) for mem in Mem if mem in buffers}
    return RegionPlan(region.name, region.span, region.unit, region.options.split, spaces)


# ------------------------------------------------------------------------------------------------- buffers
def _buffer(v: Var, size: int, live: int, count: int, target: Target, **extra: object) -> Buffer:
    t = tile_type(v)
    fields: dict[str, object] = {"name": v.name, **extra}
    align = target.spaces[space_of(v)].align
    return Buffer(
        uid=v.uid, shape=t.lane_shape(), dtype=t.dtype, bytes=align_up(size, align), offset=0,
        first=((live & -live).bit_length() - 1) // 2, last=(live.bit_length() - 1) // 2, count=count,
        span=v.span, live=live, **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def _tile_buffer(s: Storage, target: Target) -> Buffer:
    v = s.largest
    if s.exchange:
        return _buffer(v, s.bytes, s.live, 1, target, name=f"exchange of {v.name}")
    others = tuple(dict.fromkeys(m.name for m in s.members if m.name != v.name))
    return _buffer(v, s.bytes, s.live, s.count, target, shared_with=others, uids=_uids(s))


def _uids(*storages: Storage) -> tuple[int, ...]:
    return tuple(v.uid for s in storages for v in s.members)


def _ring(crossing: list[Storage], options: RegionOptions, liveness: Liveness, target: Target) -> Buffer:
    """One buffer for the slots of the tiles that cross in one direction; the region holds it throughout."""
    widest = max(crossing, key=lambda s: s.bytes)
    at_once, _ = busiest_point([Item(1, s.live) for s in crossing])
    slots = max(options.slot_num, target.slots, at_once)
    last = max((n.ends or (n.position,))[-1] for n in liveness.nodes)
    names = tuple(dict.fromkeys(s.largest.name for s in crossing))
    title = f"ring of {', '.join(names)}"
    always = write_point(last) * 2 - 1
    return _buffer(
        widest.largest, widest.bytes, always, slots, target,
        name=title, shared_with=names, uids=_uids(*crossing),
    )  # fmt: skip


def _staging(liveness: Liveness, storages: list[Storage], target: Target) -> Iterator[tuple[Mem, Buffer]]:
    """Left and Right buffers of the matmuls whose operands the user did not move there."""
    for node in liveness.nodes:
        s = node.stmt
        if not isinstance(s, Let) or not isinstance(s.op, OpDef) or s.op.unit is not Unit.CUBE:
            continue
        points = read_point(node.position) | write_point(node.position)
        for name, space in _STAGED.items():
            x = s.arg(name)
            if not isinstance(x, Var) or space_of(x) is space:
                continue
            limit, size = target.spaces[space].bytes, storage(tile_type(x))
            moved = sum(st.bytes for st in storages if st.space is space and st.live & points)
            size = min(size, max(_k_step(s, name, x, target), min(limit // 2, limit - moved)))
            b = _buffer(x, size, points, 1, target, name=f"{x.name} staged for pl.{s.op.spelling}")
            yield space, replace(b, span=s.span)


def _k_step(s: Let, name: str, x: Var, target: Target) -> int:
    """Bytes of the smallest piece of an operand that a matmul can take: all of M or N, one fractal of K."""
    transposed = bool(s.arg("a_trans" if name == "lhs" else "b_trans"))
    outer = tile_type(x).shape[1 if (name == "lhs") == transposed else 0]
    return outer * (target.fractal.row_bytes if target.fractal is not None else 1)


def _place(buffers: list[Buffer], limit: int) -> SpacePlan:
    offsets, peak = pack([Item(b.total, b.live) for b in buffers])
    placed = (replace(b, offset=o) for b, o in zip(buffers, offsets, strict=True))
    return SpacePlan(limit, peak, tuple(sorted(placed, key=lambda b: (b.first, b.offset))))


# ------------------------------------------------------------------------------------------------ findings
def _over_budget(region: Region, planned: RegionPlan, target: Target) -> Iterator[UserError]:
    for mem, space in planned.spaces.items():
        if space.fits:
            continue
        live = space.at_peak()
        biggest = live[0]
        error = user_error(
            Diag.BUDGET, biggest.span, region=region.name, need=space.peak, space=mem.name, tile=str(biggest),
            bytes=biggest.total, target=target.name, limit=space.limit,
            fix=_fix(region, mem, space, biggest, target),
        )  # fmt: skip
        error.notes.append(f"live in {mem.name} at the peak:")
        error.notes += [f"{b}: {b.total} bytes, from {b.span}" for b in live]
        yield error


def _fix(region: Region, mem: Mem, space: SpacePlan, biggest: Buffer, target: Target) -> str:
    """The first remedy that makes the region fit, by planning it again; else a smaller tile."""
    if mem is Mem.Vec and region.unit is Unit.MIXED and region.options.split is SplitMode.NONE:
        for mode in (SplitMode.UP_DOWN, SplitMode.LEFT_RIGHT):
            need = _need_when_split(region, mode, target)
            if need is not None and need <= space.limit:
                return (
                    f"use optimizations=[pl.split(pl.SplitMode.{mode.name})]: each vector lane then needs "
                    f"{need} bytes of {mem.name}"
                )
    stages = max((s.stage for s in walk(region.body) if isinstance(s, For) and _is_pipeline(s)), default=1)
    for stage in range(stages - 1, 0, -1):
        fewer = replace(region, body=_Stages(stage).block(region.body))
        need = plan_region(fewer, target).spaces[mem].peak
        if need <= space.limit:
            return f"use stage={stage} in pl.pipeline: the region then needs {need} bytes of {mem.name}"
    return (
        f"make tiles of the region smaller, first {biggest}: {space.peak - space.limit} bytes of {mem.name} "
        "are missing"
    )


def _need_when_split(region: Region, mode: SplitMode, target: Target) -> int | None:
    """Bytes of Vec per lane under ``mode``; None if an op or the alignment forbids it."""
    if split.refusal(region, mode) is not None:
        return None
    halved = split.split_region(replace(region, options=replace(region.options, split=mode)))
    if any(alignment.findings(halved, target)):
        return None
    return plan_region(halved, target).spaces[Mem.Vec].peak


def _is_pipeline(s: Stmt) -> bool:
    return isinstance(s, For) and s.kind is LoopKind.PIPELINE


class _Stages(Rewriter):
    """Lowers the stages of pipelined loops to at most ``stage``."""

    def __init__(self, stage: int) -> None:
        super().__init__()
        self.stage = stage

    def stmt(self, s: Stmt) -> Stmt:
        new = self.descend(s)
        if isinstance(new, For) and _is_pipeline(new):
            return replace(new, stage=min(new.stage, self.stage))
        return new
