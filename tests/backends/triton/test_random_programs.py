"""Random programs: all lower, compute in the interpreter what torch does, and compile for every GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
import torch

import pypto_models.language as pl
from backends.triton import rules
from pypto_models.compile import lower_function
from pypto_models.target import Target, load_target
from tests.random.check import difference_of

from ..random_programs import EACH, STRATA, Found, attempt, collect, program, refused_by_the_compiler
from .support import TRITON, interpreted, needs_interpreter, needs_triton

TARGETS = tuple(map(load_target, ("h200", "gb10", "mi300x", "mi355x")))


def assert_all_lower(targets_of_seeds: Iterable[tuple[int, int]]) -> None:
    found, lowered = Found(), 0
    for seed, target in targets_of_seeds:
        lowered += attempt(seed, TARGETS[target], TRITON, found) is not None
    assert not found.broken, "\n".join(found.broken)
    assert not found.refused, found.report()
    assert lowered


def test_every_program_lowers() -> None:
    """None is refused: not those that CuTe lowers either."""
    assert_all_lower((seed, seed % len(TARGETS)) for seed in range(100))


@pytest.mark.slow
def test_every_program_lowers_for_every_target() -> None:
    assert_all_lower((seed, target) for seed in range(400) for target in range(len(TARGETS)))


# -------------------------------------------------------------------------------------------- interpreting
@pytest.fixture
def exact_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's square root on some CPUs is not the nearest number; that of a kernel is, on every GPU."""
    monkeypatch.setattr(torch, "sqrt", lambda x: x.double().sqrt().to(x.dtype))


def wrong(seed: int) -> list[str]:
    """Where the interpreted kernels of a program differ from its direct evaluation, of all its runs."""
    p = program(seed)
    target = TARGETS[seed % len(TARGETS)]
    run = interpreted(lower_function(pl.parse(p.source, "kernel"), target)).executable
    found = []
    for i, extents in enumerate(p.extents):
        given = p.arguments(i)
        expected = p.expected(i, given)
        run(given)
        for q in p.parameters:
            if q.out is None:
                continue
            what = difference_of(given[q.name], expected, q.name, q.out.facts.tol)
            if what is not None:
                found.append(f"seed {seed} for {target.name} {extents}: {q.name}: {what}")
    return found


@needs_interpreter
@pytest.mark.usefixtures("exact_roots")
@pytest.mark.parametrize("first", range(0, 40, 8))
def test_they_compute_what_torch_does(first: int) -> None:
    assert [x for seed in range(first, first + 8) for x in wrong(seed)] == []


@needs_interpreter
@pytest.mark.slow
@pytest.mark.usefixtures("exact_roots")
def test_300_more_compute_what_torch_does() -> None:
    assert [x for seed in range(40, 400) for x in wrong(seed)] == []


@needs_interpreter
@pytest.mark.usefixtures("exact_roots")
def test_a_wrong_rule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.BINARY, "maximum", rules.BINARY["minimum"])
    assert any(wrong(seed) for seed in range(8))


# ---------------------------------------------------------------------------------------------- compiling
@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_60_programs_compile(target: Target) -> None:
    found = collect(60, target, TRITON, range(1000, 3000))
    print(f"{found.report()}\n{dict(found.strata)}")
    assert len(found.modules) == 60 and all(found.strata[name] >= EACH for name in STRATA)
    assert (found.broken, found.refused) == ([], Counter())
    assert refused_by_the_compiler(found, target, TRITON) == []
