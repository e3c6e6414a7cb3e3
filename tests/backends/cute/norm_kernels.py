"""A norm between two products, and versions of it that need a kernel of their own for the norm."""

from __future__ import annotations

import pypto_models.language as pl

TOKENS = pl.dynamic("TOKENS")
PLAIN, NO_COLUMNS, WEIGHTED_SUM, WRITTEN_TWICE, IN_A_LOOP, READ_TWICE, READ_LATER = range(7)
VERSION = PLAIN
DEPTH = 512
MIDDLE = 256
WIDTH = 192
STEP = 256


@pl.jit.inline
def product(x: pl.Tensor, weight: pl.Tensor, n: pl.Scalar[pl.INDEX]):
    """Block `n` of `x` @ `weight`^T: [16, 64] fp32."""
    rows = pl.tensor.dim(x, 0)
    acc = pl.create_tensor([16, 64], pl.FP32)
    for k in pl.pipeline(weight.shape[1] // STEP, stage=2):
        xk = pl.slice(x, [16, STEP], [0, k * STEP], valid_shape=[rows, STEP])
        wk = pl.slice(weight, [64, STEP], [n * 64, k * STEP])
        if k == 0:
            acc = pl.matmul(xk, wk, b_trans=True, out_dtype=pl.FP32)
        else:
            acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
    return acc


@pl.jit.inline
def normed_row(x: pl.Tensor, scale: pl.Tensor, out: pl.Tensor, t: pl.Scalar[pl.INDEX]):
    """Row `t` of `out` = x / rms(x) * (1 + scale), rounded once before the product with the columns."""
    row = pl.cast(pl.slice(x, [1, MIDDLE], [t, 0]), pl.FP32)
    columns = pl.add(pl.slice(scale, [1, MIDDLE], [0, 0]), 1.0)
    summed = pl.mul(row, row)
    if VERSION == WEIGHTED_SUM:
        summed = pl.mul(summed, columns)
    mean = pl.add(pl.mul(pl.row_sum(summed), 1.0 / MIDDLE), 1e-6)
    hat = pl.row_expand_mul(row, pl.rsqrt(mean))
    if VERSION != NO_COLUMNS:
        hat = pl.col_expand_mul(pl.cast(pl.cast(hat, pl.BF16, mode="rint"), pl.FP32), columns)
    pl.assemble(out, pl.cast(hat, pl.BF16, mode="rint"), [t, 0])


@pl.jit
def norm_between(
    x: pl.Tensor[[TOKENS, DEPTH], pl.BF16],
    first: pl.Tensor[[MIDDLE, DEPTH], pl.BF16],
    scale: pl.Tensor[[1, MIDDLE], pl.FP32],
    second: pl.Tensor[[WIDTH, MIDDLE], pl.BF16],
    y: pl.Out[pl.Tensor[[TOKENS, WIDTH], pl.FP32]],
):
    """y = norm(rnd(x @ first^T)) @ second^T."""
    rows = pl.tensor.dim(x, 0)
    middle = pl.create_tensor([rows, MIDDLE], pl.BF16)
    normed = pl.create_tensor([rows, MIDDLE], pl.BF16)
    for n in pl.spmd(MIDDLE // 64, name_hint="make"):
        acc = product(x, first, n)
        pl.assemble(middle, pl.cast(acc, pl.BF16, mode="rint"), [0, n * 64])
    if VERSION == WRITTEN_TWICE:
        for t in pl.spmd(rows, name_hint="again"):
            pl.assemble(middle, pl.slice(x, [1, MIDDLE], [t, 0]), [t, 0])
    if VERSION == IN_A_LOOP:
        for _ in pl.range(rows):
            for t in pl.spmd(rows, name_hint="norm"):
                normed_row(middle, scale, normed, t)
    else:
        for t in pl.spmd(rows, name_hint="norm"):
            normed_row(middle, scale, normed, t)
    for n in pl.spmd(WIDTH // 64, name_hint="take"):
        acc = product(normed, second, n)
        if VERSION == READ_TWICE:
            beside = pl.slice(normed, [16, 64], [0, 0], valid_shape=[rows, 64])
            acc = pl.add(acc, pl.cast(beside, pl.FP32))
        pl.assemble(y, acc, [0, n * 64])
    if VERSION == READ_LATER:
        for t in pl.spmd(rows, name_hint="later"):
            row = pl.cast(pl.slice(normed, [1, WIDTH], [t, 0]), pl.FP32)
            pl.assemble(y, row, [t, 0])
