"""What is wrong with a schedule, as data: an empty tuple if a backend may emit it."""

from __future__ import annotations

from collections.abc import Iterator

from ..ir.types import Mem
from ..target import Gpu, Target
from .record import Schedule, Stream

PARTS = 4  # of an SM, each with registers of its own


def problems(schedule: Schedule, target: Target) -> tuple[str, ...]:
    """Every rule of the record and of the target that ``schedule`` breaks."""
    gpu = gpu_of(target)
    found = [*_resources(schedule, target, gpu), *_ring(schedule)]
    if schedule.stream is not None:
        found += _stream(schedule, schedule.stream)
    return tuple(found)


def gpu_of(target: Target) -> Gpu:
    if target.gpu is None:
        raise ValueError(f"{target.name} is no GPU: it has no schedules")
    return target.gpu


def thread_registers(threads: int, gpu: Gpu) -> int:
    """Registers that a thread may have if one CTA of ``threads`` is on an SM; they come in eights.

    Each of the PARTS of an SM has its share of them, for whole warps: of nine warps one part has three.
    """
    of_a_part = 32 * -(-max(threads, 1) // (32 * PARTS))
    return min(gpu.thread_registers, gpu.registers // PARTS // of_a_part // 8 * 8)


def _resources(s: Schedule, target: Target, gpu: Gpu) -> Iterator[str]:
    limit = target.spaces[Mem.Mat].bytes
    if s.shared_bytes > limit:
        yield f"it takes {s.shared_bytes} bytes of shared memory, and a block has {limit}"
    threads = (s.warps + s.copiers) * gpu.warp_threads
    if threads > gpu.block_threads or s.warps < 1:
        yield f"it has {threads} threads, and a block {gpu.warp_threads} to {gpu.block_threads}"
    elif s.registers.total > thread_registers(s.threads, gpu):
        yield f"it takes {s.registers.total} registers, and a thread has {thread_registers(s.threads, gpu)}"
    if s.ctas < 1:
        yield "it has no CTA"
    for a in s.shared:
        if a.offset % 128 or a.bytes < 0:
            yield f"{a.name} begins at {a.offset}, which is no multiple of 128"
        for b in s.shared:
            apart = a.offset + a.bytes <= b.offset or b.offset + b.bytes <= a.offset or a.offset == b.offset
            if a is not b and not apart:
                yield f"{a.name} and {b.name} overlap in shared memory"


def _ring(s: Schedule) -> Iterator[str]:
    r = s.ring
    if r is None:
        return
    if r.slots < 2:
        yield "a ring needs two slots: one is read while the next is on the way"
    if r.slot_bytes % 16:
        yield f"slots of {r.slot_bytes} bytes are no multiple of 16"
    if r.bytes > s.part("ring").bytes:
        yield f"the ring takes {r.bytes} bytes and has {s.part('ring').bytes}"
    if r.owners != (s.warps if r.owner == "warp" else 1):
        yield f"{r.owners} owners of the ring in {s.warps} warps"


def _stream(schedule: Schedule, s: Stream) -> Iterator[str]:
    if s.warps_n * s.warps_k != schedule.warps:
        yield f"{s.warps_n} x {s.warps_k} warps are not {schedule.warps}"
    if s.walkers * s.slices != schedule.ctas:
        yield f"{s.walkers} walkers of {s.slices} slices are not {schedule.ctas} CTAs"
    if s.columns % s.quantum or s.columns < 1:
        yield f"units of {s.columns} columns are not whole granules of {s.granule}"
    if s.walkers > s.units:
        yield f"{s.walkers} walkers have {s.units} units"
    edges = zip(s.cuts, s.cuts[1:], strict=False)
    if s.cuts[0] != 0 or s.cuts[-1] != s.k or any(a >= b for a, b in edges):
        yield f"the slices {s.cuts} do not cut 0 to {s.k}"
    quantum = s.line if s.major == "k" else s.mma_k
    if any(c % quantum for c in s.cuts[:-1]) or s.step % s.mma_k:
        yield f"slices and steps are not cut at multiples of {quantum}"
    if s.granules * len({w.accumulator for w in s.weights}) and len(s.weights) != s.accumulators:
        yield f"{len(s.weights)} weights for {s.accumulators} accumulators"
    if s.owner == "cta" and (s.x_place != "ring" or s.slot_cells != s.step_cells or s.step % s.line):
        yield "a ring of the CTA holds a whole K step of lines in each slot, and x"
    if schedule.ring is not None and schedule.ring.owner != s.owner:
        yield f"the ring belongs to the {schedule.ring.owner}, and the mapping says {s.owner}"
    if s.x_place == "ring" and s.major == "n":
        yield "x cannot share a ring with weights stored [K, N]"
    if schedule.ring is not None and schedule.ring.slot_bytes != s.slot_cells * s.cell_bytes:
        yield f"slots of {schedule.ring.slot_bytes} bytes do not hold {s.slot_cells} cells of {s.cell_bytes}"
    needs = {
        "none": None,
        "workspace": (s.slices, s.accumulators, s.rows, s.n),
        "red": (s.accumulators, s.rows, s.n),
    }
    shape = schedule.workspace.shape if schedule.workspace is not None else None
    if shape != needs[s.across] or (s.across == "none") != (s.slices == 1):
        yield f"partial sums of {s.slices} slices, {s.across}, in a workspace of shape {shape}"
    if s.x_place != "registers" and schedule.registers.x > 255:
        yield "x fragments of one step take more registers than a thread has"
    if (s.finish == "here") != (s.across == "none"):
        yield f"sums across CTAs ({s.across}) cannot be finished {s.finish}"
