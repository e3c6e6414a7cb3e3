"""Random programs: all their representations, after every pass, in any order, compute what torch does.

A failure is shrunk by hypothesis and shown as source.  ``pytest -s`` prints what a run contained.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pypto_models.ir.expr import Const, Expr
from pypto_models.ir.nodes import Function, Let, Stmt
from pypto_models.ir.rewrite import Rewriter
from pypto_models.ops import REGISTRY
from pypto_models.ops.value import TileValue
from pypto_models.passes import infer_memory, spill
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
