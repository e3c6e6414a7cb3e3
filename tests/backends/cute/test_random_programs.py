"""Random programs through the lowering and the compiler, for both architectures.

``pytest -s`` prints how many there were of each, and the ops without a lowering.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from backends.cute import CuteBackend
from pypto_models.target import Target, load_target

from ..random_programs import EACH, STRATA, Found, attempt, collect, refused_by_the_compiler
from .support import needs_cutlass

CUTE = CuteBackend()
TARGETS = tuple(map(load_target, ("h200", "gb10")))


def test_every_program_lowers_or_is_refused_by_name() -> None:
    """Without the compiler, which takes most of the time."""
    found = Found()
    for seed in range(100):
        for target in TARGETS:
            if (got := attempt(seed, target, CUTE, found)) is not None:
                found.modules[2 * seed + TARGETS.index(target)] = got[1]
    print(found.report())
    assert not found.broken, "\n".join(found.broken)
    assert len(found.modules) >= 60


@pytest.mark.slow
@needs_cutlass
def test_60_programs_compile_for_both_architectures_in_5_minutes() -> None:
    started = time.monotonic()
    found = {t: collect(60, t, CUTE, range(1000, 3000)) for t in TARGETS}

    def wrong_for(target: Target) -> list[str]:
        return refused_by_the_compiler(found[target], target, CUTE)

    with ThreadPoolExecutor(len(TARGETS)) as pool:  # each waits for a process of its own
        wrong = [x for part in pool.map(wrong_for, TARGETS) for x in part]
    seconds = time.monotonic() - started
    for target, f in found.items():
        print(f"{target.name}: {f.report()}\n{dict(f.strata)}")
        assert len(f.modules) == 60 and all(f.strata[name] >= EACH for name in STRATA)
        wrong += f.broken
    print(f"{seconds:.0f} s")
    assert not wrong, "\n\n".join(wrong)
    assert seconds < 300
