"""Schedules of contractions: enumerate the legal ones, estimate each, keep the best.

There are two ranks of candidates.  First, where rows of weights allow it, one ring of the CTA for whole K, or
for as many slices as are asked for, with x beside the weights in it: whole, this was the fastest on one H200
for every projection of a decode layer, and backends emit it.  The rest, with x in registers or rings of the
warps, is for what the first rank cannot do, and on request.

The estimate knows what was measured to matter: bytes over the read bandwidth, what the ring keeps in flight,
the surplus of the busiest core, x and partial sums through L2, a warp's work on a line, the way of the last
slot and of the sums through shared memory, one more dependency where slices are summed later.

Measured on one H200, 16 rows, share of the read ceiling, the whole kernel with its epilogue (warps along
columns x along K, elements of a step, slots): qkv 5120 x 7168: 2x4, 256, 5: 84.2 %; 2x4, 256, 6: 83.8 %.
o 5120 x 5120: 1x8, 512, 3: 80.4 %; 2x4, 256, 6: 80.2 %; 2x4, 256, 7: 79.4 %.  gate_up 5120 x 34816: 4x2, 128,
3: 93.4 %; 2x4, 256, 4 in three waves: 92.4 %.  down 17408 x 5120: 2x4, 256, 5: 93.0 %; 1x8, 512, 3: 92.8 %.
A ring in half of the shared memory costs 5 to 7 points everywhere, more than the next kernel gains by being
there early; one that leaves no room even for a block of a small kernel keeps the first launch of the next
step from starting beside it: 3 us of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ..ir.types import Mem
from ..target import Gpu, Target
from .accounting import Traffic, stream_traffic
from .check import gpu_of, problems, thread_registers
from .contraction import Contraction
from .overrides import Override
from .record import Across, Finish, Part, Place, Registers, Ring, Schedule, Stream, Workspace

MAX_SLICES = 4  # measured: 4 slices reach 88 % of the read ceiling where 33 reach 75 %
WARPS = 8  # measured: 16 warps that multiply are worse than 8
SLOT_BYTES = 4096  # of a warp: amortises the wait for a group, and leaves the ring some slots
OTHER_REGISTERS = 40  # addresses, counters, temporaries
WEIGHT_REGISTERS = 16  # two ldmatrix of 4 registers for each of two cells
EPILOGUE_VALUES = 2  # tiles of 8 columns beside the accumulators that an elementwise chain keeps at a time
BANK_BYTES = 128  # of shared memory in a cycle
UNEVEN_WEIGHT = 0.05  # of a warp that has more lines than others: they wait for it after each unit
BESIDE_BYTES = 4096  # left of shared memory: a small kernel, the first of the next step, may start beside
MOST_SLOTS = 8  # of a CTA's ring: the code that fills them first grows with them
PASSES = (*range(1, 13), 16, 20, 24, 32, 48, 64)  # waves of CTAs
SHORT_RING = 0.1  # of the bandwidth lost where nothing stays in flight; half of it at half of enough
LINE_CYCLES = 22  # of a warp, for a line of one granule, that nothing hides: fitted to the figures above


Accepts = Callable[[Schedule], str | None]
"""What a backend cannot emit: the reason, or None."""


@dataclass(frozen=True)
class Problem:
    """A contraction on a target: of ``region``, which begins at ``source_line``."""

    region: str
    source_line: int
    facts: Contraction
    target: Target
    gpu: Gpu

    @property
    def line(self) -> int:
        """Elements of a line."""
        return self.gpu.line_bytes // self.facts.element_bytes

    @property
    def mma_k(self) -> int:
        return max(32 // self.facts.element_bytes, 1)

    @property
    def quantum(self) -> int:
        """K is cut at multiples of it."""
        return self.line if self.facts.weights[0].major == "k" else self.mma_k

    @property
    def quanta(self) -> int:
        return -(-self.facts.k // self.quantum)


def plan_stream(
    region: str, line: int, facts: Contraction, target: Target, given: Override, accepts: Accepts
) -> Schedule | str:
    """The best legal schedule under the override, or what is wrong with the first if that leaves none."""
    p = Problem(region, line, facts, target, gpu_of(target))
    refused = ""
    for rank in (one_ring(p, given), candidates(p, given)):
        best = None
        for candidate in rank:
            wrong = problems(candidate, target)
            why = wrong[0] if wrong else accepts(candidate)
            if why is not None:
                refused = refused or why
            elif best is None or candidate.estimate_s < best.estimate_s:
                best = candidate
        if best is not None:
            return best
    return refused or "no walk of units over CTAs fits it"


def ranking(
    region: str, line: int, facts: Contraction, target: Target, given: Override
) -> tuple[Schedule, ...]:
    """All legal schedules with one ring of the CTA, the best estimate first."""
    p = Problem(region, line, facts, target, gpu_of(target))
    legal = (s for s in one_ring(p, given) if not problems(s, target))
    return tuple(sorted(legal, key=lambda s: s.estimate_s))


def refusal(region: str, line: int, facts: Contraction, target: Target, given: Override) -> str:
    """Why :func:`ranking` is empty: what is wrong with the first schedule that was tried."""
    p = Problem(region, line, facts, target, gpu_of(target))
    wrong = (x for s in one_ring(p, given) for x in problems(s, target))
    return next(wrong, "whole K steps of one ring of the CTA, with x in it, do not stream it")


def one_ring(p: Problem, given: Override) -> Iterator[Schedule]:
    """One ring of the CTA, for whole K unless slices are asked for; the columns of a CTA are one unit, in as
    many waves as they need.
    """
    wanted: dict[str, object] = {"owner": "cta", "x": "ring", "batch": "m"}
    major, size = p.facts.weights[0].major, p.facts.element_bytes
    if major != "k" or size > 2 or any(given.get(k) not in (None, v) for k, v in wanted.items()):
        return
    granule = _granule(p, given)
    granules = -(-p.facts.n // granule)
    slices = given.number("slices") or 1
    cuts = tuple(p.facts.k * i // slices for i in range(slices + 1))
    for warps_n, warps_k in _warps(p, given, cuts):
        whole = warps_n * warps_k == WARPS or given.number("warps_n") or given.number("warps_k")
        if not whole or p.facts.k % (slices * (given.number("step") or p.line * warps_k)):
            continue
        seen = set()
        for passes in PASSES:
            walkers = min(given.number("walkers") or max(p.target.cores * passes // slices, 1), granules)
            columns = given.number("columns") or -(-p.facts.n // walkers)
            if (walkers, columns) not in seen:
                seen.add((walkers, columns))
                yield _schedule(p, given, cuts, (warps_n, warps_k), "ring", columns, "cta", walkers)


def candidates(p: Problem, given: Override) -> Iterator[Schedule]:
    """Schedules in a fixed order, legal or not."""
    for slices in _one(given.number("slices"), range(1, min(MAX_SLICES, p.quanta) + 1)):
        if slices > p.quanta:
            continue
        cuts = tuple(min(i * p.quanta // slices * p.quantum, p.facts.k) for i in range(slices)) + (p.facts.k,)
        most = given.number("walkers") or max(p.target.cores // slices, 1)
        for warps_n, warps_k in _warps(p, given, cuts):
            for place in _one(given.get("x"), ("registers", "ring", "shared")):
                for columns in _columns(p, given, slices, warps_n, str(place)):
                    for owner in _owners(p, given, str(place)):
                        walkers = min(most, -(-p.facts.n // columns))
                        warps = (warps_n, warps_k)
                        yield _schedule(p, given, cuts, warps, place, columns, owner, walkers)  # type: ignore[arg-type]


def _owners(p: Problem, given: Override, place: str) -> tuple[str, ...]:
    """The CTA may own the ring where x shares it: one copy of x serves all warps."""
    whole = p.facts.weights[0].major == "k"
    return _one(given.get("owner"), ("cta", "warp") if place == "ring" and whole else ("warp",))  # type: ignore[return-value]


def _one(fixed: object, choices: object) -> tuple[int, ...]:
    return (fixed,) if fixed is not None else tuple(choices)  # type: ignore[arg-type,return-value]


def _granule(p: Problem, given: Override) -> int:
    if p.facts.weights[0].major == "n":
        return p.line
    return 16 if given.get("batch") == "n" else 8


def _warps(p: Problem, given: Override, cuts: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    widest = -(-max(b - a for a, b in zip(cuts, cuts[1:], strict=False)) // p.quantum)
    for n in _one(given.number("warps_n"), (1, 2, 4, 8)):
        for k in _one(given.number("warps_k"), (1, 2, 4, 5, 8, 10)):
            fixed = given.number("warps_n") or given.number("warps_k")
            if fixed or (4 <= n * k <= WARPS + 2 or widest < 4) and k <= widest:
                yield n, k


def _columns(p: Problem, given: Override, slices: int, warps_n: int, place: str) -> Iterator[int]:
    """Columns of a unit: few where x stays, all that a CTA owns (in one or more passes) where x streams."""
    granule = _granule(p, given)
    fixed = given.number("columns")
    if fixed is not None:
        yield fixed
        return
    total = -(-p.facts.n // granule)
    walkers = given.number("walkers") or max(p.target.cores // slices, 1)
    if place != "ring":
        yield from (granule * g for g in (warps_n, 2 * warps_n) if g <= max(total, warps_n))
        return
    seen = set()
    for passes in (1, 2, 3, 4):
        own = -(-total // (walkers * passes))
        if own not in seen:
            seen.add(own)
            yield granule * own


def _schedule(
    p: Problem,
    given: Override,
    cuts: tuple[int, ...],
    warps_of: tuple[int, int],
    place: Place,
    columns: int,
    owner: Literal["warp", "cta"],
    walkers: int,
) -> Schedule:
    warps_n, warps_k = warps_of
    f, slices, warps = p.facts, len(cuts) - 1, warps_n * warps_k
    granule = _granule(p, given)
    rows = -(-f.rows // 16) * 16
    across: Across = "none" if slices == 1 else given.get("across") or "workspace"  # type: ignore[assignment]
    finish: Finish = "here" if slices == 1 else given.get("finish") or "phase"  # type: ignore[assignment]
    s = Stream(
        weights=f.weights, x=f.x, x_place=place, rows=rows, n=f.n, k=f.k, element_bytes=f.element_bytes,
        accumulators=len(f.weights), owner=owner, batch=given.get("batch") or "m",  # type: ignore[arg-type]
        unit="m16n8" if f.element_bytes <= 2 else "fma", granule=granule, columns=columns, walkers=walkers,
        cuts=cuts, line=p.line, step=p.quantum, slot_cells=1, warps_n=warps_n, warps_k=warps_k,
        reduce_granules=1, across=across, finish=finish,
    )  # fmt: skip
    s = replace(s, step=given.number("step") or _step(p, s))
    s = replace(
        s, slot_cells=s.step_cells if owner == "cta" else given.number("slot_cells") or _slot_cells(s)
    )
    registers = _registers(s)
    shared, ring, rounds = _shared(p, s, given.number("slots"))
    s = replace(s, reduce_granules=rounds)
    space = {"none": None, "workspace": Workspace((slices, s.accumulators, rows, f.n), False),
             "red": Workspace((s.accumulators, rows, f.n), True)}[across]  # fmt: skip
    schedule = Schedule(
        region=p.region, line=p.source_line, target=p.target.name, form="stream", grid=s.units,
        ctas=walkers * slices, warps=warps, registers=registers, shared=shared, ring=ring, stream=s,
        workspace=space,
        prefetch=tuple(dict.fromkeys(w.tensor for w in f.weights if w.tensor in f.read_only)),
    )  # fmt: skip
    schedule = replace(schedule, resident=resident(schedule, p.gpu))
    traffic = stream_traffic(schedule, p.target.cores, p.gpu.line_bytes)
    notes = () if traffic.whole_lines else (_torn(s, p.gpu),)
    return replace(schedule, notes=notes, estimate_s=_estimate(schedule, s, ring, traffic, p))


def _torn(s: Stream, gpu: Gpu) -> str:
    pitches = ", ".join(f"{w.tensor}: rows of {w.pitch_bytes} bytes" for w in s.weights)
    return f"copies tear lines of {gpu.line_bytes} bytes ({pitches})"


# ------------------------------------------------------------------------------------------------ sizes
def _warp_k(s: Stream) -> int:
    """The most elements of K that a warp takes."""
    quantum = s.line if s.major == "k" else s.mma_k
    widest = max(b - a for a, b in zip(s.cuts, s.cuts[1:], strict=False))
    quanta = -(-widest // quantum)
    return min(-(-quanta // s.warps_k) * quantum, widest)


def _step(p: Problem, s: Stream) -> int:
    """Whole lines that divide a warp's part: long runs in a row, and no short step at the end."""
    if s.major == "n":
        return 2 * s.mma_k
    if s.owner == "cta":
        return p.line * s.warps_k
    lines = max(-(-_warp_k(s) // p.line), 1)
    most = min(lines, 5 if s.x_place == "registers" else 2)
    return p.line * max(d for d in range(1, most + 1) if lines % d == 0)


def _slot_cells(s: Stream) -> int:
    """Cells of a slot: about SLOT_BYTES, with little waste in the last slot of a step."""
    most = min(max(SLOT_BYTES // s.cell_bytes, 1), s.step_cells)
    return min(range(1, most + 1), key=lambda c: (-(-s.step_cells // c) * c - s.step_cells, -c))


def _registers(s: Stream) -> Registers:
    tile = s.granule * s.rows // 32  # of one granule, per lane
    if s.owner == "cta":
        own = -(-s.granules * s.accumulators // s.warps_n)
        pieces = -(-s.granules * s.granule * s.accumulators * s.step * s.element_bytes // 16)
        places = 2 * -(-pieces // (32 * s.warps_n * s.warps_k))  # where each piece comes from
        held = s.rows if own > 1 else 16  # rows of a line that stay for a warp's next granule
        x = held * s.line * s.element_bytes // (4 * 32)
        return Registers(own * tile, x, WEIGHT_REGISTERS // 2, 0, OTHER_REGISTERS + places)
    own = -(-s.granules // s.warps_n)
    accumulators = own * s.accumulators * tile
    depth = _warp_k(s) if s.x_place == "registers" else 2 * s.mma_k
    x = -(-s.rows * depth * s.element_bytes // (4 * 32))
    values = EPILOGUE_VALUES * 8 * s.rows // 32
    return Registers(accumulators, x, WEIGHT_REGISTERS, values, OTHER_REGISTERS)


def _shared(p: Problem, s: Stream, slots: int | None) -> tuple[tuple[Part, ...], Ring, int]:
    """Parts, ring and granules of a reduction round."""
    tensors = dict.fromkeys(([s.x] if s.x_place == "ring" else []) + [w.tensor for w in s.weights])
    slot = s.slot_cells * s.cell_bytes
    sums = s.warps_k * s.accumulators * s.rows * s.granule * 4  # of a granule
    alone = s.units <= s.walkers  # one unit for each CTA: nothing streams when its sums are made
    room = p.target.spaces[Mem.Mat].bytes
    if s.owner == "cta":
        apart = 0 if alone else _align(sums * s.granules)
        steps = -(-max(b - a for a, b in zip(s.cuts, s.cuts[1:], strict=False)) // s.step)
        left = room - p.gpu.block_reserve_bytes - apart - BESIDE_BYTES
        fit = max(min(left // slot, MOST_SLOTS, steps), 2)
        ring = Ring("cta", 1, slots or fit, slot, tuple(tensors))
        parts = [Part("ring", _align(ring.bytes), 0)]
        note = "in place of the ring, which has run dry" if alone else ""
        parts.append(Part("reduce", _align(sums * s.granules), 0 if alone else _end(parts), note))
        return tuple(parts), ring, s.granules
    owners = s.warps_n * s.warps_k
    width = max(b - a for a, b in zip(s.cuts, s.cuts[1:], strict=False))
    x = _align(s.rows * width * s.element_bytes) if s.x_place == "shared" else 0
    each = 2 * sums if s.warps_k > 1 else 0
    apart = 0 if alone else _align(each * s.granules)
    half = p.gpu.sm_shared_bytes // 2 - p.gpu.block_reserve_bytes
    want = 1 + -(-p.gpu.in_flight_bytes // (owners * slot))
    for most in (half, room):  # half of an SM if that leaves the ring three slots
        fit = max(min(want, (most - x - apart) // (owners * slot)), 2)
        if fit >= min(3, want):
            break
    ring = Ring("warp", owners, slots or fit, slot, tuple(tensors))
    parts = [Part("ring", _align(ring.bytes), 0)]
    if x:
        parts.append(Part("x", x, _end(parts)))
    rounds = s.granules
    if each and alone:
        rounds = max(min(ring.bytes // each, s.granules), 1)
        parts.append(Part("reduce", _align(each * rounds), 0, "in place of the ring, which has run dry"))
    elif each:
        parts.append(Part("reduce", apart, _end(parts)))
    return tuple(parts), ring, rounds


def _align(n: int) -> int:
    return -(-n // 128) * 128


def _end(parts: list[Part]) -> int:
    return max(p.offset + p.bytes for p in parts)


def resident(s: Schedule, gpu: Gpu) -> bool:
    """True if two CTAs of this size fit an SM."""
    return (
        2 * (s.shared_bytes + gpu.block_reserve_bytes) <= gpu.sm_shared_bytes
        and s.registers.total <= thread_registers(2 * s.threads, gpu)
    )


# ------------------------------------------------------------------------------------------------ estimate
def _estimate(schedule: Schedule, s: Stream, ring: Ring, t: Traffic, p: Problem) -> float:
    """Seconds of a launch, as far as its schedule decides them."""
    figures, cores = p.target.figures, p.target.cores
    read, l2 = figures.read_bytes_per_s or 1e12, figures.l2_bytes_per_s or 2e12
    latency, launch = figures.load_latency_s or 1e-6, figures.launch_s or 2e-6
    clock = figures.clock_hz or 1e9
    # A slot of the CTA is asked for only when all warps have left it
    in_flight = max(ring.in_flight - (ring.slot_bytes if s.owner == "cta" else 0), 0)
    short = 1.0 if t.whole_lines else figures.short_transfer_share or 1.0
    seconds = t.total / read / short / (1 - SHORT_RING * max(1 - in_flight / p.gpu.in_flight_bytes, 0.0))
    core = min(figures.core_bytes_per_s or read, max(ring.in_flight, 1) / latency)
    seconds += max(t.busiest - t.mean, 0.0) / core
    seconds += (t.x_bytes + t.written_bytes + t.merged_bytes) / l2
    passes = max(-(-schedule.ctas // cores), 1) * -(-s.units // s.walkers)
    own = -(-s.granules * s.accumulators // s.warps_n)
    work = _warp_k(s) // max(s.line, 1) * (own + 1) * (s.rows // 16) * LINE_CYCLES / clock
    seconds += passes * (work + (passes > 1) * latency)
    if s.owner == "cta":
        waits = max(latency - in_flight / (read / cores), 0.0)  # of each step, for what is asked for late
        seconds += passes * (s.k // s.slices // s.step) * waits
        seconds += passes * ring.slot_bytes / (BANK_BYTES * clock)  # the last slot, once it is there
    elif not schedule.resident:
        seconds += launch
    if s.slices > 1:
        seconds += (figures.grid_barrier_s or launch) + latency
    last = s.granules * s.warps_k * s.accumulators * s.rows * s.granule * 4  # sums after the last byte
    seconds += passes * 2 * last / (BANK_BYTES * clock) if s.warps_k > 1 or s.owner == "cta" else 0.0
    lines = _warp_k(s) / max(s.k / s.slices / s.warps_k, 1)
    seconds *= 1 + UNEVEN_WEIGHT * (lines - 1)
    return seconds * (1 + 1e-4 * abs(schedule.warps - WARPS))
