"""Rates of a target as the cost model uses them, from its figures; which of them are assumed is kept."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import NOWHERE, Diag, user_error
from ..target import Target


@dataclass(frozen=True)
class Rates:
    """Per second, and in seconds.

    * ``memory``: bytes that all cores together move from or to global memory; ``l2``: bytes that they read
      again; ``core``: the most that one transfer draws.
    * ``cube``: flops of one core on half-precision operands, divided by ``fp32_passes`` on fp32 ones.
    * ``vector``: elements of one vector lane.
    * ``latency``: from the last byte of a load to its use.  ``launch``: from the end of what a task waits
      for to its first block; ``barrier``: the same within one persistent program, None if not known.
    * ``short_share``: of ``memory``, for transfers whose contiguous runs are below ``transfer_bytes``.
    """

    cores: int
    memory: float
    l2: float
    l2_bytes: int
    core: float
    cube: float
    fp32_passes: int
    vector: float
    latency: float
    launch: float
    barrier: float | None = None
    transfer_bytes: int = 1
    short_share: float = 1.0
    ring_in_memory: bool = False  # values cross between cube and vector units through global memory


def rates(target: Target) -> Rates:
    """The rates of ``target``; raises a user error that names a figure it does not have."""

    def figure(name: str) -> float:
        value = getattr(target.figures, name)
        if value is None:
            raise user_error(Diag.NO_FIGURE, NOWHERE, target=target.name, name=name)
        return float(value)

    clock = figure("clock_hz")
    f = target.figures
    return Rates(
        cores=target.cores,
        memory=figure("read_bytes_per_s"),
        l2=figure("l2_bytes_per_s"),
        l2_bytes=int(figure("l2_bytes")),
        core=figure("core_bytes_per_s"),
        cube=figure("cube_flops_per_cycle") * clock,
        fp32_passes=int(figure("fp32_mma_passes")),
        vector=figure("vector_elements_per_cycle") * clock,
        latency=figure("load_latency_s"),
        launch=figure("launch_s"),
        barrier=f.grid_barrier_s,
        transfer_bytes=f.transfer_bytes or 1,
        short_share=f.short_transfer_share or 1.0,
        ring_in_memory=target.handoff == "gm",
    )
