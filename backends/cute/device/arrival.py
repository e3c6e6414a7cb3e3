"""How CTAs of a launch take on work that needs what all of its CTAs have written."""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32

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
def own(tasks: Int32, most: cutlass.Constexpr):
    """A task for each lane, to tell before the CTA arrives whether those are wanted that it may have: the
    first 32 of them, and the last task of all for lanes that are left over.  There must be one task.
    """
    return min(place(tasks, most), tasks - 1)


@cute.jit
def place(tasks: Int32, most: cutlass.Constexpr):
    cta, _, _ = cute.arch.block_idx()
    return cta + cute.arch.lane_idx() * ranks_of(tasks, most)


@cute.jit
def ranks_of(tasks: Int32, most: cutlass.Constexpr):
    ctas, _, _ = cute.arch.grid_dim()
    return min(min(ctas, Int32(most)), tasks)


@cute.jit
def arrive(
    counter: cute.Pointer, shared: cute.Pointer, tasks: Int32, most: cutlass.Constexpr, wanted: Any = None
):
    """Called once by all threads of all CTAs.  Gives (rank, ranks): a CTA with a rank from 0 on sees all that
    the others have written, and has the tasks rank, rank + ranks, ..; one with a negative rank has none.

    At most ``most`` CTAs have tasks: the last to arrive.  But with ``wanted``, whether the thread's task that
    `own` names has any effect, and no more CTAs than ``most``, a rank is the number of the CTA, and one whose
    tasks have no effect has none: it does not wait.

    ``shared``: 8 bytes of shared memory, which nobody uses any more behind the first barrier in here; the
    caller sets another one before it writes there.
    """
    tid, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    ctas, _, _ = cute.arch.grid_dim()
    ranks = ranks_of(tasks, most)
    found = cute.make_tensor(cute.recast_ptr(shared, dtype=Int32), cute.make_layout(2))
    works = Boolean(True)
    if cutlass.const_expr(wanted is not None):
        mine = wanted & (place(tasks, most) < tasks)
        works = cute.arch.vote_any_sync(mine) | (tasks > 32 * ranks)  # of more than 32, some may
    # All threads have written before thread 0 releases, and none reads before it has acquired
    cute.arch.sync_threads()
    if tid == 0:
        ticket = cute.arch.atomic_add(counter, Int32(1), sem="acq_rel", scope="gpu")
        rank = ticket - (ctas - ranks)
        if cutlass.const_expr(wanted is not None):
            number = cta if works else Int32(-1)
            rank = number if ctas <= most else rank
        if ticket >= CALLED_OFF:  # nobody waits: the last one does all, whatever its own tasks
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
