"""Random programs through the lowering and the compiler, for both architectures.

A program compiles, or the error names the op, the backend and the line: nothing else may happen.
``pytest -s`` prints how many there were of each, and the ops without a lowering.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

import pypto_models.language as pl
from backends.cute.compiler import Refusal, Unit, compile_units
from backends.cute.lower import Module, lower
from pypto_models.compile import lower_function
from pypto_models.errors import Diag, UserError
from pypto_models.ir.nodes import Function, Let, Region
from pypto_models.ir.nodes import Unit as Kind
from pypto_models.ir.rewrite import walk
from pypto_models.ir.types import TileType
from pypto_models.target import Target, load_target
from tests.random.strategy import write
from tests.random.writer import Program

from .support import needs_cutlass

TARGETS = tuple(map(load_target, ("h200", "gb10")))
# Of the sample, at least so many have each
STRATA: dict[str, Callable[[Function], bool]] = {
    "product": lambda f: any(s.op.name == "matmul_acc" for s in lets(f)),
    "mixed region": lambda f: any(isinstance(s, Region) and s.unit is Kind.MIXED for s in walk(f.body)),
    "reduction": lambda f: any(
        s.op.name.startswith(("row_sum", "row_max", "row_min", "col_")) for s in lets(f)
    ),
    "tail": lambda f: any(
        isinstance(v.type, TileType) and not v.type.is_full for s in lets(f) for v in s.results
    ),
    "two regions": lambda f: sum(isinstance(s, Region) for s in walk(f.body)) > 1,
}
EACH = 12


def lets(f: Function) -> list[Let]:
    return [s for s in walk(f.body) if isinstance(s, Let)]


@dataclass
class Found:
    """``modules`` by seed; ``refused`` counts (op, reason); ``broken`` has what is neither."""

    modules: dict[int, Module] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    strata: Counter[str] = field(default_factory=Counter)

    def report(self) -> str:
        lines = [f"{len(self.modules)} programs lowered, {self.refused.total()} refused"]
        lines += [f"  {n:>4}  {op}: {why}" for (op, why), n in self.refused.most_common()]
        return "\n".join(lines)


def program(seed: int) -> Program:
    return write(random.Random(seed).randrange)


def lowered(program: Program, target: Target) -> tuple[Function, Module | UserError]:
    """The function after the passes, and its kernels or the error that says why there are none."""
    function = lower_function(pl.parse(program.source, "kernel"), target).function
    try:
        return function, lower(function, target)
    except UserError as error:
        if error.diag is not Diag.BACKEND_OP:
            raise
        return function, error


def check_refusal(error: UserError, program: Program) -> tuple[str, str]:
    """It names the op, the backend and a line of the program."""
    assert error.fields["backend"] == "cute" and error.fields["op"] and error.fields["why"]
    assert 1 <= error.span.line <= len(program.source.splitlines()), str(error)
    return str(error.fields["op"]), str(error.fields["why"])


def attempt(seed: int, target: Target, found: Found) -> tuple[Function, Module] | None:
    """One program; None if it was refused, as it should be, or broke."""
    p = program(seed)
    try:
        function, module = lowered(p, target)
        if isinstance(module, UserError):
            found.refused[check_refusal(module, p)] += 1
            return None
    except Exception as error:  # of any class: the test lists them all
        found.broken.append(f"seed {seed} for {target.name}: {type(error).__name__}: {error}"[:300])
        return None
    return function, module


def collect(wanted: int, target: Target, seeds: range) -> Found:
    """``wanted`` programs that lower, EACH of every stratum among them; and what was refused."""
    found = Found()
    for seed in seeds:
        if len(found.modules) >= wanted:
            break
        if (got := attempt(seed, target, found)) is None:
            continue
        function, module = got
        has = [name for name, test in STRATA.items() if test(function)]
        missing = {name: EACH - found.strata[name] for name in STRATA if found.strata[name] < EACH}
        # The last places are kept for what is rare
        if not missing or set(has) & set(missing) or len(found.modules) < wanted - max(missing.values()):
            found.strata.update(has)
            found.modules[seed] = module
    return found


def test_every_program_lowers_or_is_refused_by_name() -> None:
    """Without the compiler, which takes most of the time."""
    found = Found()
    for seed in range(100):
        for target in TARGETS:
            if (got := attempt(seed, target, found)) is not None:
                found.modules[2 * seed + TARGETS.index(target)] = got[1]
    print(found.report())
    assert not found.broken, "\n".join(found.broken)
    assert len(found.modules) >= 60


@pytest.mark.slow
@needs_cutlass
def test_60_programs_compile_for_both_architectures_in_5_minutes() -> None:
    started = time.monotonic()
    found = {t: collect(60, t, range(1000, 3000)) for t in TARGETS}

    def compiled(target: Target) -> list[str]:
        modules = found[target].modules
        units = [Unit(m.source, {k.name: k.parameters for k in m.kernels}) for m in modules.values()]
        return [
            f"seed {seed} for {target.name}: {code.kernel}: {code.message}"
            for seed, code in zip(modules, compile_units(units, str(target.arch)), strict=True)
            if isinstance(code, Refusal)
        ]

    with ThreadPoolExecutor(len(TARGETS)) as pool:  # each waits for a process of its own
        wrong = [x for part in pool.map(compiled, TARGETS) for x in part]
    seconds = time.monotonic() - started
    for target, f in found.items():
        print(f"{target.name}: {f.report()}\n{dict(f.strata)}")
        assert len(f.modules) == 60 and all(f.strata[name] >= EACH for name in STRATA)
        wrong += f.broken
    print(f"{seconds:.0f} s")
    assert not wrong, "\n\n".join(wrong)
    assert seconds < 300
