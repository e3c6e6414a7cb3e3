"""Run the work of a program on the cores of a target, event by event.

* A block runs on one core.  Blocks are dealt in program order to the lowest free core, as soon as their task
  may start: ``launch`` (or ``barrier``, see ``run``) seconds after the last task that it waits for.
* Each pipe of a core takes the ready operation that comes first in the block, one at a time.
* Transfers in flight share the memory bandwidth equally; none draws more than ``core``.
* A load, or a crossing, is usable ``latency`` seconds after its last byte; the pipe is free at once.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

from .operations import Operation, Operations, Pipe, TaskRun
from .rates import Rates


class Slice(NamedTuple):
    """One operation on one pipe; times in seconds."""

    core: int
    pipe: Pipe
    start: float
    end: float
    run: int
    block: int
    operation: Operation


class BlockSlice(NamedTuple):
    core: int
    run: int
    block: int
    start: float
    end: float


@dataclass
class RunTimes:
    """``allowed``: what it waits for is done; ``released``: launched; ``start``, ``end`` of its blocks.

    ``by`` is the run that it waited for, and ``on`` the one whose block freed the core of its first block.
    """

    allowed: float = 0.0
    released: float = 0.0
    start: float = 0.0
    end: float = 0.0
    by: int | None = None
    on: int | None = None


@dataclass
class Timeline:
    """What ran when, in seconds from the launch of the program."""

    rates: Rates
    runs: list[TaskRun]
    times: list[RunTimes]
    slices: list[Slice] = field(default_factory=list)
    blocks: list[BlockSlice] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return max((t.end for t in self.times), default=0.0)

    def critical_path(self) -> list[int]:
        """The runs that decide the total time, first to last: each ends where the next could start."""
        if not self.runs:
            return []
        at: int | None = max(range(len(self.runs)), key=lambda i: (self.times[i].end, i))
        path: list[int] = []
        while at is not None and at not in path:
            path.append(at)
            t = self.times[at]
            at = t.on if t.on is not None and t.start > t.released else t.by
        return path[::-1]


def run(runs: list[TaskRun], rates: Rates, persistent: bool = False) -> Timeline:
    """The timeline of a program.

    With ``persistent`` it is one launch, and tasks that wait are separated by ``rates.barrier``, which must
    be known; else each task is a launch.
    """
    machine = _Machine(runs, rates, persistent)
    machine.go()
    return machine.out


@dataclass(slots=True)
class _Core:
    """The block that a core runs."""

    run: int = -1
    block: int = -1
    start: float = 0.0
    operations: Operations = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    next: list[list[int]] = field(default_factory=list)
    left: int = 0
    ready: list[list[int]] = field(default_factory=lambda: [[] for _ in Pipe])
    busy: list[bool] = field(default_factory=lambda: [False for _ in Pipe])
    last: int | None = None  # the run of the block before


class _Machine:
    def __init__(self, runs: list[TaskRun], rates: Rates, persistent: bool) -> None:
        self.runs, self.rates, self.persistent = runs, rates, persistent
        self.out = Timeline(rates, runs, [RunTimes() for _ in runs])
        self.now = 0.0
        self.ticket = itertools.count()
        self.events: list[tuple[float, int, int, int]] = []  # time, ticket, core (-1: a launch), operation
        # Transfers progress alike, so each is done when the bytes of one that never ends reach its mark.
        self.moved = 0.0
        self.marks: list[tuple[float, int, int, int]] = []
        self.started: dict[tuple[int, int], float] = {}
        self.waiting = [len(r.after) for r in runs]
        self.left = [len(r.blocks) for r in runs]
        self.queue: list[tuple[int, int]] = []  # run, next block
        self.cores = [_Core() for _ in range(rates.cores)]
        self.free = list(range(rates.cores))
        self.followers: list[list[int]] = [[] for _ in runs]
        for i, r in enumerate(runs):
            for before in r.after:
                self.followers[before].append(i)

    def go(self) -> None:
        for i, n in enumerate(self.waiting):
            if n == 0:
                self.launch(i, None)
        while self.events or self.marks:
            self.step()
            self.deal()

    def step(self) -> None:
        """Advance to the next event and handle it."""
        rate = min(self.rates.core, self.rates.memory / max(len(self.marks), 1))
        soonest = self.now + max(self.marks[0][0] - self.moved, 0.0) / rate if self.marks else float("inf")
        if self.events and self.events[0][0] <= soonest:
            time, _, core, what = heapq.heappop(self.events)
            self.moved += (time - self.now) * rate
            self.now = time
            if core < 0:
                self.release(what)
            elif what < 0:  # a latency is over
                self.complete(core, ~what)
            else:
                self.finish(core, what)
                self.complete(core, what)
            return
        mark, _, core, what = heapq.heappop(self.marks)
        self.now, self.moved = soonest, mark
        self.finish(core, what)
        if self.cores[core].operations[what].pipe is Pipe.STORE or self.rates.latency == 0:
            self.complete(core, what)
        else:
            self.push(self.now + self.rates.latency, core, ~what)

    def push(self, time: float, core: int, what: int) -> None:
        heapq.heappush(self.events, (time, next(self.ticket), core, what))

    # ---- tasks
    def launch(self, run: int, by: int | None) -> None:
        t = self.out.times[run]
        t.allowed, t.by = self.now, by
        gap = self.rates.launch
        if self.persistent and by is not None and self.rates.barrier is not None:
            gap = self.rates.barrier
        self.push(self.now + gap, -1, run)

    def release(self, run: int) -> None:
        self.out.times[run].released = self.out.times[run].start = self.now
        if self.runs[run].blocks:
            heapq.heappush(self.queue, (run, 0))
        else:
            self.end(run)

    def end(self, run: int) -> None:
        self.out.times[run].end = self.now
        for f in self.followers[run]:
            self.waiting[f] -= 1
            if self.waiting[f] == 0:
                self.launch(f, run)

    def deal(self) -> None:
        """Give the next blocks to the free cores."""
        while self.queue and self.free:
            run, block = heapq.heappop(self.queue)
            core = heapq.heappop(self.free)
            if block + 1 < len(self.runs[run].blocks):
                heapq.heappush(self.queue, (run, block + 1))
            if block == 0:
                self.out.times[run].start = self.now
                self.out.times[run].on = self.cores[core].last
            self.begin(core, run, block)

    # ---- blocks
    def begin(self, core: int, run: int, block: int) -> None:
        c = self.cores[core]
        c.run, c.block, c.start = run, block, self.now
        c.operations = self.runs[run].blocks[block]
        c.missing = [len(o.after) for o in c.operations]
        c.next = [[] for _ in c.operations]
        c.left = len(c.operations)
        for i, o in enumerate(c.operations):
            for a in o.after:
                c.next[a].append(i)
        if not c.operations:
            self.leave(core)
            return
        for i in [i for i, n in enumerate(c.missing) if n == 0]:
            self.ready(core, i)

    def ready(self, core: int, what: int) -> None:
        c = self.cores[core]
        pipe = c.operations[what].pipe
        if pipe is None:
            self.complete(core, what)
            return
        heapq.heappush(c.ready[pipe], what)
        if not c.busy[pipe]:
            self.start(core, pipe)

    def start(self, core: int, pipe: Pipe) -> None:
        c = self.cores[core]
        what = heapq.heappop(c.ready[pipe])
        c.busy[pipe] = True
        self.started[core, what] = self.now
        amount = c.operations[what].amount
        if pipe.is_transfer:
            heapq.heappush(self.marks, (self.moved + amount, next(self.ticket), core, what))
        else:
            self.push(self.now + amount, core, what)

    def finish(self, core: int, what: int) -> None:
        """The pipe is done with an operation."""
        c = self.cores[core]
        o = c.operations[what]
        if o.pipe is None:
            return
        start = self.started.pop((core, what))
        self.out.slices.append(Slice(core, o.pipe, start, self.now, c.run, c.block, o))
        c.busy[o.pipe] = False
        if c.ready[o.pipe]:
            self.start(core, o.pipe)

    def complete(self, core: int, what: int) -> None:
        """The result of an operation may be used."""
        c = self.cores[core]
        todo = [what]
        while todo:
            at = todo.pop()
            c.left -= 1
            for n in c.next[at]:
                c.missing[n] -= 1
                if c.missing[n] == 0:
                    if c.operations[n].pipe is None:
                        todo.append(n)
                    else:
                        self.ready(core, n)
        if c.left == 0:
            self.leave(core)

    def leave(self, core: int) -> None:
        c = self.cores[core]
        self.out.blocks.append(BlockSlice(core, c.run, c.block, c.start, self.now))
        c.last = c.run
        heapq.heappush(self.free, core)
        self.left[c.run] -= 1
        if self.left[c.run] == 0:
            self.end(c.run)
