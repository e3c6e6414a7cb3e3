"""Random programs: all their representations, after every pass, in any order, compute what torch does.

A failure is shrunk by hypothesis and shown as source.  ``pytest -s`` prints what a run contained.
"""

from __future__ import annotations

import pytest

from .explore import explore, explore_in_parallel, shortcomings


def test_150_programs() -> None:
    counts = explore(150)
    print(counts.report())
    assert counts.programs >= 150
    assert shortcomings(counts, ops=False) == []


@pytest.mark.slow
def test_2000_programs() -> None:
    counts = explore_in_parallel(2000, workers=2)
    print(counts.report())
    assert counts.programs >= 2000
    assert shortcomings(counts, ops=True) == []
