"""Random programs: all their representations, after every pass, in any order, compute what torch does.

A failure is shrunk by hypothesis and shown as source.  ``pytest -s`` prints what a run contained.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from backends.sim import lanes
from pypto_models.ir.nodes import Block, Function, Let, Stmt
from pypto_models.ir.printer import format_function
from pypto_models.ir.rewrite import Rewriter
from pypto_models.ops import REGISTRY
from pypto_models.ops.slicing import STORE
from pypto_models.ops.value import TileValue
from pypto_models.passes import PIPELINE, Pass
from pypto_models.target import Target

from . import check as checks
from .check import Counts, Mismatch, check
from .explore import explore, explore_in_parallel, shortcomings
from .strategy import write


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


# ------------------------------------------------------------------------------------------ it can fail
def first_failure(most: int = 60) -> str:
    """The message of the first of some fixed programs that fails, not shrunk."""
    for seed in range(most):
        source = random.Random(seed)
        try:
            check(write(source.randrange), Counts())
        except Mismatch as error:
            return str(error)
    pytest.fail(f"none of {most} programs notices")


@contextmanager
def reference_of(name: str, wrong: Any) -> Iterator[None]:
    """The op computes something else for a while."""
    op = REGISTRY[name]
    right = op.reference
    object.__setattr__(op, "reference", wrong)  # OpDefs are frozen
    try:
        yield
    finally:
        object.__setattr__(op, "reference", right)


def test_a_wrong_reference_is_found_and_shrunk() -> None:
    def off_by_one(x: TileValue) -> TileValue:
        return TileValue(x.data.abs() + 1, x.shape, x.written)

    with reference_of("abs", off_by_one), pytest.raises(Mismatch, match="expected") as caught:
        explore(200, seed=1)
    message = str(caught.value)
    assert message.startswith("front end: ")
    assert "abs(" in message
    body = message[message.index("def kernel(") :].split("\n):\n", 1)[1]
    assert len(body.strip().splitlines()) <= 12, message


def test_a_wrong_pass_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Swapped(Rewriter):
        def stmt(self, s: Stmt) -> Stmt | Block:
            if isinstance(s, Let) and s.op is REGISTRY["maximum"]:
                s = replace(s, op=REGISTRY["minimum"])
            return self.descend(s)

    def wrong(fn: Function, target: Target) -> Function:
        right = PIPELINE[1].run(fn, target)
        return replace(right, body=Swapped().block(right.body))

    monkeypatch.setattr(checks, "PIPELINE", (PIPELINE[0], Pass("infer_memory", wrong), PIPELINE[2]))
    message = first_failure()
    assert message.startswith("after infer_memory: ")
    assert "maximum(" in message


def test_a_wrong_printer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        checks, "format_function", lambda fn: format_function(fn).replace("pl.neg(", "pl.abs(")
    )
    message = first_failure()
    assert message.startswith("the printed front end: parses to another program: ")
    assert "the op: neg and abs" in message
    assert "def kernel(" in message


def test_a_wrong_split_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lanes._RULES, STORE, lambda let, axis, lane: let)  # both lanes write the first half
    message = first_failure()
    assert message.startswith(("after split: ", "with SplitMode"))
    assert "pl.SplitMode." in message
