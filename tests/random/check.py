"""What is checked of a program: every representation of it and every order of it computes what torch does."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import pypto_models.language as pl
from backends.sim.machine import Machine
from pypto_models.errors import Diag, PyptoError, UserError
from pypto_models.ir.equal import difference
from pypto_models.ir.nodes import Function, Let, Region, Unit
from pypto_models.ir.printer import format_function
from pypto_models.ir.rewrite import rewrite_regions, walk
from pypto_models.ir.types import SplitMode
from pypto_models.ir.verify import verify
from pypto_models.passes import PIPELINE
from pypto_models.passes import split as split_pass
from pypto_models.passes.plan_memory import plan
from pypto_models.passes.task_graph import build
from pypto_models.schedule.domain import region_domains
from pypto_models.target import Target, load_target

from .writer import Env, Program


class Mismatch(AssertionError):
    """A program that does not behave; the message holds its source."""

    def __init__(self, program: Program, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}\n\n{program!r}")


@dataclass
class Counts:
    """What a run of programs contained."""

    programs: int = 0
    features: Counter[str] = field(default_factory=Counter)
    ops: Counter[str] = field(default_factory=Counter)
    regions: int = 0
    simulations: int = 0

    def add(self, other: Counts) -> None:
        """Count what another run contained too."""
        self.programs += other.programs
        self.regions += other.regions
        self.simulations += other.simulations
        self.features.update(other.features)
        self.ops.update(other.ops)

    def report(self) -> str:
        """The proportions and the number of programs with each op."""
        lines = [f"{self.programs} programs, {self.regions} regions, {self.simulations} simulations"]
        lines += [
            f"  {name:<24} {n:>6}  {n / max(self.programs, 1):>6.1%}"
            for name, n in sorted(self.features.items())
        ]
        ops = [f"{name} {n}" for name, n in sorted(self.ops.items(), key=lambda x: (x[1], x[0]))]
        lines += ["  programs with each op:"]
        lines += ["    " + ", ".join(ops[i : i + 9]) for i in range(0, len(ops), 9)]
        return "\n".join(lines)


def check(program: Program, counts: Counts) -> None:
    """Raise :class:`Mismatch` if any way to run the program differs from its direct evaluation."""
    try:
        _Check(program, counts).run()
    except PyptoError as error:
        raise Mismatch(program, "error", str(error)) from error


class _Check:
    def __init__(self, program: Program, counts: Counts) -> None:
        self.program = program
        self.counts = counts
        self.runs = [program.arguments(i) for i in range(len(program.extents))]
        self.expected = [program.expected(i, a) for i, a in enumerate(self.runs)]

    def run(self) -> None:
        text = self.program.source
        fn = pl.parse(text, "kernel")
        verify(fn)
        self.simulate(fn, "front end", every_run=True)
        self.reparsed(fn, "the printed front end")
        target, stages = self.lowered(fn)
        before = fn
        for name, after in stages.items():
            verify(after)
            if after is not before:
                self.simulate(after, f"after {name}")
            before = after
        placed = stages["infer_memory"]
        self.reparsed(before, "the printed final function")
        graph = build(before, target)
        region_domains(graph)
        if graph.hazards:
            raise Mismatch(self.program, "task graph", "\n".join(h.describe() for h in graph.hazards))
        machine = Machine(before, graph, "random", seed=len(text))
        self.compare(machine, "in random order", 0)
        for mode in SplitMode:
            self.split(placed, mode, target)
        self.count(fn, before, graph, target)

    def lowered(self, fn: Function) -> tuple[Target, dict[str, Function]]:
        """The function after every pass for a2a3 or, if a tile is not aligned there, for h200."""
        try:
            return self.passes(fn, load_target("a2a3"))
        except UserError as error:
            if error.diag is not Diag.ALIGNMENT:
                raise
            return self.passes(fn, load_target("h200"))

    @staticmethod
    def passes(fn: Function, target: Target) -> tuple[Target, dict[str, Function]]:
        stages = {}
        for p in PIPELINE:
            fn = stages[p.name] = p.run(fn, target)
        plan(fn, target)
        return target, stages

    def reparsed(self, fn: Function, what: str) -> None:
        text = format_function(fn)
        try:
            again = pl.parse(text)
        except PyptoError as error:
            raise Mismatch(self.program, what, f"does not parse: {error}\n{text}") from error
        if (found := difference(fn, again)) is not None:
            raise Mismatch(self.program, what, f"parses to another program: {found}\n{text}")

    def simulate(self, fn: Function, where: str, every_run: bool = False) -> None:
        machine = Machine(fn)
        for i in range(len(self.runs) if every_run else 1):
            self.compare(machine, where, i)

    def compare(self, machine: Machine, where: str, i: int) -> None:
        self.counts.simulations += 1
        given = {n: a.clone() if isinstance(a, Tensor) else a for n, a in self.runs[i].items()}
        machine.run(given)
        for p in self.program.parameters:
            if p.out is not None:
                found = difference_of(given[p.name], self.expected[i], p.name, p.out.facts.tol)
                if found:
                    raise Mismatch(self.program, where, f"{p.name} of run {i}: {found}")

    def split(self, placed: Function, mode: SplitMode, target: Target) -> None:
        """The same with another split, wherever it is legal."""

        def changed(region: Region) -> Region:
            if region.unit is not Unit.MIXED or region.options.split is mode:
                return region
            if split_pass.refusal(region, mode) is not None:
                return region
            return replace(region, options=replace(region.options, split=mode))

        body = rewrite_regions(placed.body, changed)
        if body is placed.body:
            return
        fn = split_pass.run(replace(placed, body=body), target)
        verify(fn)
        self.simulate(fn, f"with SplitMode.{mode.name}")

    def count(self, fn: Function, final: Function, graph: object, target: Target) -> None:
        c = self.counts
        c.programs += 1
        regions = [s for s in walk(final.body) if isinstance(s, Region)]
        c.regions += len(regions)
        ops = {s.op.name for s in walk(fn.body) if isinstance(s, Let)}
        c.ops.update(ops)
        features = set(self.program.features)
        mixed = [r for r in regions if r.unit is Unit.MIXED]
        features -= {"mixed", "split"}
        features |= {"mixed"} if mixed else set()
        features |= {"split"} if any(r.options.split is not SplitMode.NONE for r in mixed) else set()
        features |= {"tail and run-time extent"} if {"tail", "run-time extent"} <= features else set()
        features.add(target.name)
        c.features.update(features)


def difference_of(found: Tensor, expected: Env, name: str, tol: float) -> str | None:
    """Where two tensors differ by more than ``tol``; elements that nothing writes are left out."""
    want = expected.memory[name]
    written = expected.written.get(name, torch.ones_like(want, dtype=torch.bool))
    if found.dtype != want.dtype or found.shape != want.shape:
        return f"{found.dtype} {list(found.shape)}, expected {want.dtype} {list(want.shape)}"
    x, y = found.double(), want.double()
    gap = (x - y).abs()
    bad = written & ((gap > tol) | (x.isnan() != y.isnan())) & ~(x == y)
    if not bool(bad.any()):
        return None
    at = bad.nonzero()[0].tolist()
    place = tuple(at)
    return f"{int(bad.sum())} of {bad.numel()} elements; [{', '.join(map(str, at))}] is {x[place]:g}, expected {y[place]:g} (tolerance {tol:g})"
