"""What is checked of a program: every representation of it and every order of it computes what torch does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import pypto_models.language as pl
from backends.sim.machine import Machine
from pypto_models.errors import Diag, PyptoError, UserError
from pypto_models.ir.equal import difference
from pypto_models.ir.expr import DimVar
from pypto_models.ir.graph import TaskGraph
from pypto_models.ir.nodes import For, Function, If, Let, Region, Unit
from pypto_models.ir.printer import format_function
from pypto_models.ir.rewrite import rewrite_regions, walk
from pypto_models.ir.types import SplitMode, TensorType, TileType
from pypto_models.ir.verify import verify
from pypto_models.passes import PIPELINE
from pypto_models.passes import split as split_pass
from pypto_models.passes.grid import certain_races
from pypto_models.passes.plan_memory import plan
from pypto_models.passes.task_graph import build
from pypto_models.schedule.domain import region_domains
from pypto_models.target import Target, load_target
from tests.passes.machine import Clobbered, check_plan

from .writer import Env, Program

# Scratchpad target, and what takes the program if its tiles are not aligned there
TARGETS = (("a2a3", "h200"), ("a2a3", "h200"), ("a5", "gb10"))


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
    checks = _Check(program, counts)
    try:
        checks.run()
    except (PyptoError, Clobbered) as error:
        raise Mismatch(program, checks.where, str(error)) from error


class _Check:
    def __init__(self, program: Program, counts: Counts) -> None:
        self.program = program
        self.counts = counts
        self.where = ""  # what is being checked
        self.runs = [program.arguments(i) for i in range(len(program.extents))]
        self.expected = [program.expected(i, a) for i, a in enumerate(self.runs)]

    def run(self) -> None:
        text = self.program.source
        self.where = "front end"
        fn = pl.parse(text, "kernel")
        verify(fn)
        self.simulate(fn, range(len(self.runs)))
        self.reparse(fn, "the printed front end")
        target, stages = self.lowered(fn)
        before = fn
        for name, after in stages.items():
            self.where = f"after {name}"
            verify(after)
            if after is not before:
                self.simulate(after)
            before = after
        self.reparse(before, "the printed final function")
        self.where = "task graph"
        graph = build(before, target)
        region_domains(graph)
        found = [*graph.hazards, *certain_races(graph)]
        if found:
            raise self.mismatch("\n".join(x.describe() for x in found))
        self.where = "in random order"
        self.compare(Machine(before, graph, "random", seed=len(text)), 0)
        for mode in SplitMode:
            self.split(stages["infer_memory"], mode, target)
        self.counts.add(_contents(fn, before, graph, target))

    def mismatch(self, what: str) -> Mismatch:
        return Mismatch(self.program, self.where, what)

    def lowered(self, fn: Function) -> tuple[Target, dict[str, Function]]:
        """The function after every pass, for a scratchpad target or, where tiles are not aligned, a GPU."""
        first, second = TARGETS[len(self.program.source) % len(TARGETS)]
        try:
            return self.passes(fn, load_target(first))
        except UserError as error:
            if error.diag is not Diag.ALIGNMENT:
                raise
            return self.passes(fn, load_target(second))

    def passes(self, fn: Function, target: Target) -> tuple[Target, dict[str, Function]]:
        stages = {}
        for p in PIPELINE:
            self.where = p.name
            fn = stages[p.name] = p.run(fn, target)
        self.where = f"the memory plan for {target.name}"
        memory = plan(fn, target)
        for region, planned in zip(_regions(fn), memory.regions, strict=memory.checked):
            check_plan(region, planned, runs=1)
        return target, stages

    def reparse(self, fn: Function, what: str) -> None:
        self.where = what
        text = format_function(fn)
        if (found := difference(fn, pl.parse(text))) is not None:
            raise self.mismatch(f"parses to another program: {found}\n{text}")

    def simulate(self, fn: Function, runs: Iterable[int] = (0,)) -> None:
        machine = Machine(fn)
        for i in runs:
            self.compare(machine, i)

    def compare(self, machine: Machine, i: int) -> None:
        """One run of the program against its direct evaluation."""
        self.counts.simulations += 1
        given = {n: a.clone() if isinstance(a, Tensor) else a for n, a in self.runs[i].items()}
        machine.run(given)
        for p in self.program.parameters:
            if p.out is not None:
                found = difference_of(given[p.name], self.expected[i], p.name, p.out.facts.tol)
                if found:
                    raise self.mismatch(f"{p.name} of run {i}: {found}")

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
        self.where = f"with SplitMode.{mode.name}"
        fn = split_pass.run(replace(placed, body=body), target)
        verify(fn)
        self.simulate(fn)


def _regions(fn: Function) -> list[Region]:
    return [s for s in walk(fn.body) if isinstance(s, Region)]


def _contents(fn: Function, final: Function, graph: TaskGraph, target: Target) -> Counts:
    """What one program contains, read off its IR."""
    regions = _regions(final)
    mixed = [r for r in regions if r.unit is Unit.MIXED]
    inside = [s for r in regions for s in walk(r.body)]
    loops = [s for s in inside if isinstance(s, For)]
    lets = [s for s in inside if isinstance(s, Let)]
    tiles = [v.type for s in lets for v in s.results if isinstance(v.type, TileType)]
    extents = [d for p in fn.params if isinstance(p.var.type, TensorType) for d in p.var.type.shape]
    tail = any(not t.is_full for t in tiles)
    dynamic = any(isinstance(d, DimVar) for d in extents)
    found = {
        "K loop": any(isinstance(s, Let) and s.op.name == "matmul_acc" for x in loops for s in walk(x.body)),
        "mixed": bool(mixed),
        "split": any(r.options.split is not SplitMode.NONE for r in mixed),
        "dependent regions": bool(graph.dependencies),
        "tail": tail,
        "run-time extent": dynamic,
        "tail and run-time extent": tail and dynamic,
        "carried tile": any(isinstance(c.param.type, TileType) for x in loops for c in x.carried),
        "merged tile": any(
            isinstance(m.result.type, TileType) for s in inside if isinstance(s, If) for m in s.merged
        ),
        f"for {target.name}": True,
    }
    ops = {s.op.name for s in walk(fn.body) if isinstance(s, Let)}
    features = Counter(name for name, has in found.items() if has)
    return Counts(1, features, Counter(ops), len(regions))


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
    at = tuple(bad.nonzero()[0].tolist())
    shown = f"{list(at)} is {x[at]:g}, expected {y[at]:g} (tolerance {tol:g})"
    return f"{int(bad.sum())} of {bad.numel()} elements; {shown}"
