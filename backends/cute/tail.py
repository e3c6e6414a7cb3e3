"""A region that runs as the tail of the launch before it, in blocks of that launch that wait for the others.

A launch costs microseconds.  A small region that reads what the one before it writes must come after all of
it, but needs no launch: every block of the first, its head, counts itself in a word of workspace when it is
done (device/arrival.py).  Of the N blocks of the head ranks = min(N, W, T) wait for the others; then the one
of rank r does the blocks r, r + ranks, .. of the T of the tail.  Whoever does a block, its values are the
same.  The others end when they arrive.

Those that wait are the last to arrive.  While j of them wait, at most ranks - j others have not arrived, and
these are running or find room: W is the number of cores times the blocks of the head that a core holds, by
shared memory, and by registers, which ptxas keeps within that (`launcher`).  What was launched before does
not wait for the head, and what was launched after it starts when all its blocks run or are done (order.py).

Where the conditions of the tail tell before it starts whether a block of it does anything (wanted.py), and
N <= W, so that all blocks have room, a rank is the number of a block.  A block then knows what it would do,
and if that is nothing it arrives and ends without a look at the others: often nobody waits.

In any case the wait ends.  Other programs may hold a part of the GPU, or two heads run side by side, and each
waits for room that the other one has.  So a block that has waited too long calls the wait off for all, in the
same word and only while not all have arrived; then the last to arrive, which never waits, does all of the
tail, whether or not it has a rank.

So each block of the tail that does anything is done once.  All changes of the word are atomic.  If it comes
to N before anybody calls off, no compare and swap succeeds any more, as each expects less: all who wait see
N, and each does what is of its rank.  If one succeeds before that, the last to arrive finds it in what it
adds to and does all; those who wait never see N, and do nothing.  Whoever does something has acquired what
all N blocks released, with a rank or without.

The word is zero when the head starts: a kernel before it writes that, after its own wait, so after whatever
used the same workspace in an earlier call; and the head waits for that kernel before it counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pypto_models.ir.expr import Expr, Var
from pypto_models.ir.graph import expr_text
from pypto_models.ir.types import INT32, INT64
from pypto_models.target import Target

from ..gpu.grouping import nominal
from ..gpu.manifest import Launch
from ..gpu.module import KernelSource
from ..gpu.plans import RESERVED
from ..gpu.timing import END, STAMPS
from .kernel import THREADS, Kernel
from .module import launcher, signature
from .order import BEFORE
from .places import SHARED, allocated
from .sharing import Arguments, Joint, Share
from .text import BARRIER, Text
from .wanted import Wanted

COUNTER = f"pointer:{INT32.name}"
BLOCK = "tail_block"  # of a tail's function: the block of the region that it does
RESIDENT = 2  # blocks of a core: for more, ptxas would have too few registers
ROUNDS = 5  # blocks of a tail, one after the other: more take longer than a launch
WAVES = 2  # of a head's blocks: where there are more, counting them all takes longer than a launch
SLOT = 128  # bytes of shared memory in which a block learns of its rank


@dataclass(frozen=True)
class Head:
    """The launch made last, of one region that surely runs, block by block: a tail may join it.

    ``share`` lowers the region again, as a function for the first blocks of a kernel.
    """

    kernel: Kernel
    blocks: Expr
    share: Callable[[], Share]

    def takes(self, tail: Kernel) -> bool:
        """Whether a region reads what this one writes, in no more shared memory."""
        reads = any(tail.may_read(x) for x in self.kernel.written)
        return reads and tail.buffers.bytes <= self.kernel.buffers.bytes

    def pays(self, blocks: Expr, target: Target) -> bool:
        """Whether a tail of so many blocks takes less than a launch; run-time extents as in grouping.py."""
        here, room = nominal(self.blocks), target.cores * resident(self.kernel.buffers.bytes, target)
        ranks = max(1, min(here, room))
        return here <= WAVES * room and nominal(blocks) <= ROUNDS * ranks


def tail_blocks(kernel: Kernel, block: Var | None) -> None:
    """The kernel becomes a function for one block of a tail: its launch has waited and notes the times."""
    kernel.follows = True
    kernel.stamps = ""
    kernel.text.taken |= {"cta", SHARED, BLOCK}
    if block is not None:
        kernel.names[block] = BLOCK


def resident(shared_bytes: int, target: Target) -> int:
    """Blocks of a kernel with a tail that a core has room for, at most RESIDENT."""
    gpu = target.gpu
    assert gpu is not None
    return max(1, min(RESIDENT, gpu.sm_shared_bytes // (shared_bytes + RESERVED + gpu.block_reserve_bytes)))


def clearing(kernels: Sequence[KernelSource], unsure: set[str]) -> int | None:
    """The place of the kernel that sets the counter of the last one to zero: the nearest that surely runs."""
    found = (i for i, k in enumerate(kernels[:-1]) if k.how != "stream" and k.name not in unsure)
    return max(found, default=None)


def clears(kernel: KernelSource, launch: Launch, counter: str) -> tuple[KernelSource, Launch]:
    """The kernel, which at its end, so after its wait, sets a counter to zero."""
    text = Text()
    text.taken |= set(re.findall(r"\w+", kernel.text))
    own = text.unique(counter)
    parameters = (*kernel.parameters, (own, COUNTER))
    before, after = (
        "\n".join(launcher(kernel.name, p, kernel.threads, kernel.resident)) + "\n"
        for p in (kernel.parameters, parameters)
    )
    assert kernel.text.endswith(before)
    first = signature(kernel.name, kernel.parameters)
    body = kernel.text.removesuffix(before).replace(first, signature(kernel.name, parameters), 1)
    cleared = replace(kernel, text=f"{body}    arrival.clear({own})\n{after}", parameters=parameters)
    return cleared, replace(launch, arguments=(*launch.arguments, ("pointer", counter)))


def tailed(
    name: str,
    head: Share,
    tail: Share,
    counter: str,
    target: Target,
    stamps: str = "",
    wanted: Wanted | None = None,
) -> Joint:
    """The kernel of a region and its tail, and the functions that it calls.

    ``counter`` is the workspace in which blocks count themselves; ``stamps``: see timing.py; ``wanted`` tells
    which blocks of the tail do anything, if not all.
    """
    shares = (head, tail, *([wanted] if wanted is not None else []))
    taken = Arguments(shares, BLOCK)
    rank, ranks, asked = (taken.names.unique(x) for x in ("rank", "ranks", "wanted"))
    calls = [", ".join(taken.of(s)) for s in shares]
    word = taken.name(counter, COUNTER, ("pointer", counter))
    tasks = taken.count(tail.blocks, "tail_blocks")
    times = stamps and taken.name(STAMPS, f"pointer:{INT64.name}", ("pointer", STAMPS))
    noted = stamps.replace(STAMPS, times)
    parameters = [(a.name, a.kind) for a in taken.all]
    shared = max(SLOT, head.kernel.buffers.bytes)
    here = resident(shared, target)
    most = here * target.cores
    run = [f"    {head.function}({calls[0]})"]
    asks = ""
    if wanted is not None:
        given = ", ".join(x for x in (calls[2], f"arrival.own({tasks}, {most})") if x)
        run.insert(0 if wanted.early else 1, f"    {asked} = {wanted.function}({given})")
        asks = f", {asked}"
    lines = " and ".join(str(s.region.span.line) for s in (head, tail))
    text = [
        head.text(),
        "",
        tail.text(BLOCK),
        "",
        *([wanted.text(BLOCK), ""] if wanted is not None else []),
        "@cute.kernel",
        signature(name, parameters),
        f'    """Lines {lines}: a region, and the next one in blocks that wait for all."""',
        *("    " + x for x in allocated(shared)),
        f"    {BEFORE}",
        *run,
        f"    {rank}, {ranks} = arrival.arrive({word}, {SHARED}, {tasks}, {most}{asks})",
        f"    if {rank} >= 0:",
        f"        for {BLOCK} in cutlass.range({rank}, {tasks}, {ranks}, unroll=1):",
        f"            {BARRIER}",
        f"            {tail.function}({', '.join(x for x in (calls[1], BLOCK) if x)})",
        *([f"    block.stamp({noted}, cute.arch.block_idx()[0], {END})"] if noted else []),
        *launcher(name, parameters, THREADS, here),
    ]
    return Joint("\n".join(text) + "\n", taken.all, expr_text(head.blocks), shared)
