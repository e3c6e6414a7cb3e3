"""How the CTAs of a launch that arrive last take on work that needs what all of them have written."""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from . import block

POLLS = 4096  # of a CTA that waits, each the better part of a microsecond
CALLED_OFF = 1 << 30  # added to the count by a CTA that has waited too long; no grid is as large


@cute.jit
def clear(counter: cute.Pointer):
    """No CTA has arrived.  For a kernel before the one that counts, after its own wait."""
    tid, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    if (tid == 0) & (cta == 0):
        block.element(counter, 0)[0] = Int32(0)


@cute.jit
def arrive(counter: cute.Pointer, shared: cute.Pointer, tasks: Int32, most: cutlass.Constexpr):
    """Called once by all threads of all CTAs.  Gives (rank, ranks): a CTA with a rank from 0 on sees all that
    the others have written, and has the tasks rank, rank + ranks, ..; one with a negative rank has none.

    At most ``most`` CTAs have tasks.  ``shared``: 8 bytes of shared memory, which nobody uses any more behind
    the first barrier in here; the caller sets another one before it writes there.
    """
    tid, _, _ = cute.arch.thread_idx()
    ctas, _, _ = cute.arch.grid_dim()
    found = cute.make_tensor(cute.recast_ptr(shared, dtype=Int32), cute.make_layout(2))
    # All threads have written before thread 0 releases, and none reads before it has acquired
    cute.arch.sync_threads()
    if tid == 0:
        ranks = min(min(ctas, Int32(most)), tasks)
        ticket = cute.arch.atomic_add(counter, Int32(1), sem="acq_rel", scope="gpu")
        rank = ticket - (ctas - ranks)
        if ticket >= CALLED_OFF:  # nobody waits: the last one does all
            rank = ticket - CALLED_OFF - (ctas - 1)
            ranks = Int32(1)
        elif rank >= 0:  # noqa: SIM102  (`and` would have to call it in any case)
            if not all_arrive(counter, ctas):
                rank = Int32(-1)
        found[0] = rank
        found[1] = ranks
    cute.arch.sync_threads()
    return found[0], found[1]


@cute.jit
def all_arrive(counter: cute.Pointer, ctas: Int32):
    """Waits for that, in one thread; False if the wait is called off."""
    polls = Int32(0)
    seen = arrived(counter)
    while seen < ctas:
        polls = polls + 1
        if polls < POLLS:
            seen = arrived(counter)
        else:  # fails if another one arrives meanwhile
            off = seen + CALLED_OFF
            before = cute.arch.atomic_cas(counter, cmp=seen, val=off, sem="acq_rel", scope="gpu")
            seen = off if before == seen else before
    return seen == ctas


def arrived(counter: cute.Pointer) -> Any:
    return cute.arch.load(counter, Int32, sem="acquire", scope="gpu")
