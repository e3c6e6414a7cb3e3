"""What a program has to do, for the cost model: launches of tasks, their blocks, the operations in them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import IntEnum

from ..ir.expr import Var
from ..ir.graph import Task


class Pipe(IntEnum):
    """What runs at the same time in one core."""

    LOAD = 0
    STORE = 1
    CUBE = 2
    VECTOR = 3
    CROSS = 4  # between cube and vector unit, through global memory

    @property
    def is_transfer(self) -> bool:
        """True if it takes a share of the bandwidth."""
        return self in (Pipe.LOAD, Pipe.STORE, Pipe.CROSS)


@dataclass(slots=True)
class Operation:
    """``amount`` is in seconds on CUBE and VECTOR, else in bytes at the bandwidth of the memory.

    ``pipe`` is None for a point that only waits for ``after``, positions of earlier operations of the block.
    ``bytes`` and ``flops`` are as counted; ``box`` says which elements of ``tensor``, None if not known.
    """

    pipe: Pipe | None
    after: tuple[int, ...]
    amount: float = 0.0
    bytes: int = 0
    flops: int = 0
    label: str = ""
    place: str = ""
    tensor: Var | None = None
    box: Hashable = None


Operations = list[Operation]


@dataclass
class TaskRun:
    """One launch of a task: its blocks, and the runs (by position) that must be complete before.

    ``trip`` are the values of the sequential loops around it.  ``memory_bytes`` is what must come from or go
    to memory, ``read_bytes`` what its loads ask for.
    """

    task: Task
    trip: tuple[int, ...]
    blocks: list[Operations] = field(default_factory=list)
    after: tuple[int, ...] = ()
    memory_bytes: int = 0
    read_bytes: int = 0
    flops: int = 0

    @property
    def name(self) -> str:
        return self.task.name + "".join(f"[{i}]" for i in self.trip)
