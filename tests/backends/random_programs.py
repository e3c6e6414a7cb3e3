"""Random programs through the lowering of a GPU backend.

A program lowers, or the error names the op, the backend and the line: nothing else may happen.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pypto_models.language as pl
from backends.gpu.backend import GpuBackend
from backends.gpu.module import Module
from backends.gpu.toolchain import Refusal, Unit
from pypto_models.compile import lower_function
from pypto_models.errors import Diag, UserError
from pypto_models.ir.nodes import Function, Let, Region
from pypto_models.ir.nodes import Unit as Kind
from pypto_models.ir.rewrite import walk
from pypto_models.ir.types import TileType
from pypto_models.target import Target
from tests.random.strategy import write
from tests.random.writer import Program

# Of a sample, at least EACH have each
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


def lowered(program: Program, target: Target, backend: GpuBackend) -> tuple[Function, Module | UserError]:
    """The function after the passes, and its kernels or the error that says why there are none."""
    function = lower_function(pl.parse(program.source, "kernel"), target).function
    try:
        return function, backend.lower(function, target)
    except UserError as error:
        if error.diag is not Diag.BACKEND_OP:
            raise
        return function, error


def check_refusal(error: UserError, program: Program, backend: GpuBackend) -> tuple[str, str]:
    """It names the op, the backend and a line of the program."""
    assert error.fields["backend"] == backend.name and error.fields["op"] and error.fields["why"]
    assert 1 <= error.span.line <= len(program.source.splitlines()), str(error)
    return str(error.fields["op"]), str(error.fields["why"])


def attempt(seed: int, target: Target, backend: GpuBackend, found: Found) -> tuple[Function, Module] | None:
    """One program; None if it was refused, as it should be, or broke."""
    p = program(seed)
    try:
        function, module = lowered(p, target, backend)
        if isinstance(module, UserError):
            found.refused[check_refusal(module, p, backend)] += 1
            return None
    except Exception as error:  # of any class: the test lists them all
        found.broken.append(f"seed {seed} for {target.name}: {type(error).__name__}: {error}"[:300])
        return None
    return function, module


def collect(wanted: int, target: Target, backend: GpuBackend, seeds: Iterable[int]) -> Found:
    """``wanted`` programs that lower, EACH of every stratum among them; and what was refused."""
    found = Found()
    for seed in seeds:
        if len(found.modules) >= wanted:
            break
        if (got := attempt(seed, target, backend, found)) is None:
            continue
        function, module = got
        has = [name for name, test in STRATA.items() if test(function)]
        missing = {name: EACH - found.strata[name] for name in STRATA if found.strata[name] < EACH}
        # The last places are kept for what is rare
        if not missing or set(has) & set(missing) or len(found.modules) < wanted - max(missing.values()):
            found.strata.update(has)
            found.modules[seed] = module
    return found


def refused_by_the_compiler(found: Found, target: Target, backend: GpuBackend) -> list[str]:
    """What its compiler says to the programs, all in one process; nothing if they are machine code."""
    units = [Unit(m.source, m.kernels) for m in found.modules.values()]
    made = backend.toolchain.compile_units(units, str(target.arch))
    return [
        f"seed {seed} for {target.name}: {code.kernel}: {code.message}"
        for seed, code in zip(found.modules, made, strict=True)
        if isinstance(code, Refusal)
    ]
