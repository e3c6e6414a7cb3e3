"""Statistics of columns over the lanes and warps of a block.  All threads call together.

A thread has ``run`` neighbours of ``columns`` columns: those from tid * run % columns on.
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Float32
from cutlass.cutlass_dsl import select_

from . import block


class Share:
    """Which of its columns a thread keeps when those lanes of a warp that have the same divide them.

    Lanes ``period`` apart have the same columns.  In each step a lane gives half of its columns to another
    one and gets what that has of the other half; lanes that are left with one and the same column are twins.
    """

    def __init__(self, columns: int, run: int) -> None:
        tid, _, _ = cute.arch.thread_idx()
        self.lane = cute.arch.lane_idx()
        period = columns // run
        self.part = tid // max(period, 32)
        self.parts = block.THREADS // max(period, 32)
        self.first = tid * run % columns
        self.kept, self.halvings, self.twins = run, [], []
        distance = period
        while distance < 32:
            if self.kept > 1:
                self.kept //= 2
                self.first = self.first + (self.lane & distance) // distance * self.kept
                self.halvings.append(distance)
            else:
                self.twins.append(distance)
            distance *= 2

    def upper(self, distance: int) -> Any:
        """Whether this lane keeps the upper half of the columns."""
        return (self.lane & distance) != 0


def put(own: cute.Tensor, parts: cute.Pointer, columns: int, run: int, how: str) -> None:
    """Write what each warp has for its columns to parts [n, columns], or each of its threads where no two
    share one.
    """
    share = Share(columns, run)
    kept = run
    for distance in share.halvings:
        kept //= 2
        upper = share.upper(distance)
        for n in range(kept):
            keep = Float32(select_(upper, own[n + kept], own[n]))
            give = Float32(select_(upper, own[n], own[n + kept]))
            own[n] = combined(keep, cute.arch.shuffle_sync_bfly(give, distance), how)
    for distance in share.twins:
        own[0] = combined(own[0], cute.arch.shuffle_sync_bfly(own[0], distance), how)
    write(own, parts + (share.part * columns + share.first), kept, share.lane & sum(share.twins))


@cute.jit
def write(own: cute.Tensor, to: cute.Pointer, count: cutlass.Constexpr, twin: Any):
    """The first ``count`` values of a thread; of twins, the one whose ``twin`` is 0 writes."""
    if twin == 0:
        block.store_run(to, own, 0, count)


def take(parts: cute.Pointer, columns: int, run: int, how: str) -> cute.Tensor:
    """The columns of this thread, from what :func:`put` wrote, in order.

    The threads divide the work as there, and hand the results back.
    """
    share = Share(columns, run)
    own = cute.make_rmem_tensor(cute.make_layout(run), Float32)
    part = cute.make_rmem_tensor(cute.make_layout(share.kept), Float32)
    kept = share.kept
    block.load_run(parts + share.first, own, 0, kept)
    for n in range(1, share.parts):
        block.load_run(parts + (share.first + n * columns), part, 0, kept)
        for i in range(kept):
            own[i] = combined(own[i], part[i], how)
    for distance in reversed(share.halvings):
        upper = share.upper(distance)
        for n in range(kept):
            mine = own[n]
            other = cute.arch.shuffle_sync_bfly(mine, distance)
            own[n] = Float32(select_(upper, other, mine))
            own[n + kept] = Float32(select_(upper, mine, other))
        kept *= 2
    return own


def combined(a: Any, b: Any, how: str) -> Any:
    return a + b if how == "sum" else block.larger(a, b) if how == "max" else block.smaller(a, b)
