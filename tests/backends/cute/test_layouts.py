"""Layouts of tiles in registers, and operands that several products take."""

from __future__ import annotations

import re

import pytest

import pypto_models.language as pl
from backends.cute.layouts import MOST, Dealt, Fragment

from .support import module_of

FRAGMENT = Fragment(16, 64)


@pytest.mark.parametrize("columns", [8, 16, 64, 256])
def test_columns_beside_fragments_of_as_many_rows_have_one_layout(columns: int) -> None:
    other = FRAGMENT.like((16, columns))
    assert other == Fragment(16, columns)
    assert other.rows_beside == FRAGMENT.rows_beside
    # the row of an element is the one that its place in the column stands for, whatever the width
    for lane in range(32):
        for i in range(other.registers):
            row, _ = other.coordinates(str(i))
            place = eval(other.row_of(str(i)))
            beside = FRAGMENT.rows_beside.of.row(str(place))
            assert eval(row, {"lane": lane}) == eval(beside, {"lane": lane})


def test_only_tiles_that_fit_are_alike() -> None:
    assert FRAGMENT.like((32, 64)) is None and FRAGMENT.like((16, 12)) is None
    assert FRAGMENT.like((1, 16, 64)) is None and FRAGMENT.like((16, 64 * MOST)) is None
    assert FRAGMENT.rows_beside != Fragment(32, 64).rows_beside
    dealt = Dealt.of((16, 64))
    assert isinstance(dealt, Dealt)
    assert dealt.like((16, 64)) is dealt and dealt.like((16, 32)) is None


BEHIND = True


@pl.jit
def branched(
    x: pl.Tensor[[16, 64], pl.BF16],
    w: pl.Tensor[[3, 64, 64], pl.BF16],
    n: pl.Tensor[[1], pl.INT32],
    y: pl.Out[pl.Tensor[[16, 64], pl.FP32]],
):
    """y = x @ w[0] or x @ w[1] + x @ w[2], as n says; BEHIND: + x @ w[2] again."""
    for _ in pl.spmd(1, name_hint="branched"):
        rows = pl.slice(x, [16, 64], [0, 0])
        last = pl.reshape(pl.slice(w, [1, 64, 64], [2, 0, 0]), [64, 64])
        if pl.read(n, [0]) > 0:
            first = pl.reshape(pl.slice(w, [1, 64, 64], [0, 0, 0]), [64, 64])
            acc = pl.matmul(rows, first, out_dtype=pl.FP32)
        else:
            other = pl.reshape(pl.slice(w, [1, 64, 64], [1, 0, 0]), [64, 64])
            acc = pl.add(pl.matmul(rows, other, out_dtype=pl.FP32), pl.matmul(rows, last, out_dtype=pl.FP32))
        if BEHIND:
            acc = pl.add(acc, pl.matmul(rows, last, out_dtype=pl.FP32))
        pl.assemble(y, acc, [0, 0])


@pytest.mark.parametrize("behind", [True, False])
def test_an_operand_under_a_branch_and_behind_it_is_loaded_once_before_it(behind: bool) -> None:
    (kernel,) = module_of(branched, BEHIND=behind).kernels
    loads = [x.start() for x in re.finditer(r"block\.copy_rows\w*\(\(?x\b", kernel.text)]
    branch = re.search(r"^    if \(?\w+ > 0\)?:", kernel.text, re.MULTILINE)
    assert branch is not None
    if behind:
        assert len(loads) == 1 and loads[0] < branch.start()
    else:  # only the arm that needs it loads it
        assert len(loads) == 2 and min(loads) > branch.start()
