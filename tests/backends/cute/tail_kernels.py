"""Small kernels with a region that runs as the tail of the launch before it."""

from __future__ import annotations

import pypto_models.language as pl

ROWS = pl.dynamic("ROWS")
WIDTH = 64
HALF = 32


@pl.jit
def sums_and_halves(
    x: pl.Tensor[[ROWS, WIDTH], pl.FP32],
    doubled: pl.Out[pl.Tensor[[ROWS, WIDTH], pl.FP32]],
    sums: pl.Out[pl.Tensor[[ROWS, 1], pl.FP32]],
    y: pl.Out[pl.Tensor[[ROWS, WIDTH], pl.FP32]],
    z: pl.Out[pl.Tensor[[ROWS, 2], pl.FP32]],
):
    """doubled = 2 x, and the sums of its rows; y = 2 x times the sums, last row first; z: the sums of the
    halves of these rows.

    The last region has two blocks a row, and each reads what some other block of the one before it wrote.
    """
    rows = pl.tensor.dim(x, 0)
    for r in pl.spmd(rows, name_hint="doubled"):
        pl.assemble(doubled, pl.mul(pl.slice(x, [1, WIDTH], [r, 0]), 2.0), [r, 0])
    for r in pl.spmd(rows, name_hint="sums"):
        pl.assemble(sums, pl.row_sum(pl.slice(doubled, [1, WIDTH], [r, 0])), [r, 0])
    for b in pl.spmd(2 * rows, name_hint="halves"):
        r = b // 2
        half = pl.slice(doubled, [1, HALF], [r, b % 2 * HALF])
        total = pl.slice(sums, [1, 1], [rows - 1 - r, 0])
        pl.assemble(y, pl.row_expand_mul(half, total), [r, b % 2 * HALF])
        pl.assemble(z, pl.row_sum(half), [r, b % 2])


@pl.jit
def halves_where_asked(
    x: pl.Tensor[[ROWS, WIDTH], pl.FP32],
    asked: pl.Tensor[[ROWS], pl.INT32],
    doubled: pl.Out[pl.Tensor[[ROWS, WIDTH], pl.FP32]],
    kinds: pl.Out[pl.Tensor[[ROWS], pl.INT32]],
    sums: pl.Out[pl.Tensor[[ROWS, 1], pl.FP32]],
    y: pl.InOut[pl.Tensor[[ROWS, WIDTH], pl.FP32]],
):
    """doubled = 2 x, kinds = asked - 1, and the sums of the rows of doubled.  Where its kind is 0, a row of y
    becomes 2 x times the sums, last row first; elsewhere its first half becomes 2 x if the kind is 2 in the
    row as far from the other end; the rest of y stays.

    The last region may have nothing to do in most blocks, or in all, which shows before any sum is there.
    """
    rows = pl.tensor.dim(x, 0)
    for r in pl.spmd(rows, name_hint="doubles"):
        pl.assemble(doubled, pl.mul(pl.slice(x, [1, WIDTH], [r, 0]), 2.0), [r, 0])
        pl.write(kinds, [r], pl.read(asked, [r]) - 1)
    for r in pl.spmd(rows, name_hint="totals"):
        pl.assemble(sums, pl.row_sum(pl.slice(doubled, [1, WIDTH], [r, 0])), [r, 0])
    for b in pl.spmd(2 * rows, name_hint="halves_asked"):
        r = b // 2
        half = pl.slice(doubled, [1, HALF], [r, b % 2 * HALF])
        if pl.read(kinds, [r]) == 0:
            total = pl.slice(sums, [1, 1], [rows - 1 - r, 0])
            pl.assemble(y, pl.row_expand_mul(half, total), [r, b % 2 * HALF])
        elif b % 2 == 0:
            if pl.read(kinds, [rows - 1 - r]) == 2:
                pl.assemble(y, half, [r, 0])
