"""Launching regions: the one place that orders tasks and their blocks, and that counts them.

Blocks run from 0 up, or in a random order if there is one to draw from; a region runs when the orchestration
reaches it.  With a watch, every grid and every parallel loop is a scope whose members must not meet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from pypto_models.backend import Progress
from pypto_models.errors import Diag, user_error
from pypto_models.ir.expr import Expr, Number, evaluate
from pypto_models.ir.nodes import Bind, Block, For, If, Region, Scope

from . import watch as watching
from .memory import View
from .watch import Watch

INTERVAL_S = 0.05  # at most 20 reports per second


@dataclass(frozen=True)
class RegionFacts:
    """What a launch knows of its region: its name, its place in the task graph, the tensors to watch."""

    label: str
    task: int = -1
    suspects: frozenset[str] = frozenset()
    require_room: Callable[[int], None] | None = None  # raises if so many blocks may not be launched at once


class Launcher:
    """Called by the program as ``launch(region, count, *inputs)``; ``count`` is None for a single task."""

    def __init__(
        self,
        regions: Mapping[str, RegionFacts],
        known: Mapping[str, int],
        progress: Progress | None,
        watch: Watch | None = None,
        rng: Random | None = None,
    ) -> None:
        self.regions = regions
        self.known = known  # blocks that were counted before the run, by region
        self.total = sum(known.values())
        self.done = 0
        self.tasks = 0
        self.progress = progress
        self.label = ""
        self.reported = -INTERVAL_S
        self.watch = watch
        self.rng = rng

    def order(self, members: Sequence[int]) -> Sequence[int]:
        """The order of the blocks of one region, or of the iterations of one parallel loop."""
        return members if self.rng is None else self.rng.sample(members, len(members))

    def __call__(self, body: Callable[..., Any], count: int | None, *inputs: object) -> Any:
        facts = self.regions[body.__name__]
        blocks = 1 if count is None else count
        if blocks < 0:
            raise user_error(
                Diag.ARITHMETIC, op="pl.spmd", why=f"the number of blocks is {blocks}",
                fix="keep it at 0 or more: pl.max(n, 0)",
            )  # fmt: skip
        if facts.require_room is not None:
            facts.require_room(blocks)
        if body.__name__ not in self.known:
            self.total += blocks
        self.tasks += 1
        if self.watch is None:
            return self._blocks(body, blocks, facts.label, inputs)
        self.watch.task, self.watch.launch = facts.task, self.tasks
        self.watch.open(watching.Scope(f"region {facts.label!r}", "block", facts.suspects))
        followed = {v.buffer for v in inputs if isinstance(v, View) and self.watch.follows(v.buffer)}
        for buffer in followed:
            buffer.watch = self.watch
        results = self._blocks(body, blocks, facts.label, inputs)
        for buffer in followed:
            buffer.watch = None
        self.watch.close()
        return results

    def _blocks(self, body: Callable[..., Any], blocks: int, label: str, inputs: tuple[object, ...]) -> Any:
        results = None
        for block in self.order(range(blocks)):
            if self.watch is not None:
                self.watch.members[-1] = block
            results = body(block, *inputs)
            self.done += 1
            if self.progress is not None and time.perf_counter() - self.reported >= INTERVAL_S:
                self.label = label
                self.report()
        return results

    def parallel(self, members: range, label: str, suspects: frozenset[str]) -> Iterator[int]:
        """The iterations of a parallel loop."""
        if self.watch is not None:
            self.watch.open(watching.Scope(label, "iteration", suspects))
        for i in self.order(members):
            if self.watch is not None:
                self.watch.members[-1] = i
            yield i
        if self.watch is not None:
            self.watch.close()

    def report(self) -> None:
        """Tell the caller where the run is; also called once at its end."""
        if self.progress is not None:
            self.progress(self.done, self.total, self.label)
            self.reported = time.perf_counter()

    def task(self) -> int:
        """The id of the task launched last."""
        return self.tasks


class _Unknown(Exception):
    """An expression depends on data."""


def count_blocks(body: Block, names: Mapping[int, str], values: Mapping[Expr, Number]) -> dict[str, int]:
    """Blocks of each region whose number follows from extents and scalar arguments.

    ``names`` gives regions by identity.  Regions under a loop or a branch that depends on data are left out.
    """
    env = dict(values)
    counts: dict[str, int] = {}

    def lookup(x: Expr) -> Number:
        if x not in env:
            raise _Unknown
        return env[x]

    def value(x: Expr) -> Number | None:
        try:
            return evaluate(x, lookup)
        except _Unknown:
            return None
        except ValueError:  # a zero divisor: the run reports it with its place
            return None

    def visit(block: Block, trips: int) -> None:
        for s in block:
            if isinstance(s, Bind):
                known = value(s.value)
                if known is not None:
                    env[s.var] = known
            elif isinstance(s, Region):
                blocks = 1 if s.count is None else value(s.count)
                if blocks is not None:
                    counts[names[id(s)]] = trips * max(int(blocks), 0)
            elif isinstance(s, For):
                bounds = [value(x) for x in (s.start, s.stop, s.step)]
                if None not in bounds and bounds[2] != 0:
                    start, stop, step = (int(b) for b in bounds if b is not None)
                    visit(s.body, trips * len(range(start, stop, step)))
            elif isinstance(s, If):
                taken = value(s.cond)
                if taken is not None:
                    visit(s.then if taken else s.orelse, trips)
            elif isinstance(s, Scope):
                visit(s.body, trips)

    visit(body, 1)
    return counts
