"""Streamed products of up to 48 rows whose columns no core count divides, and what their epilogues read."""

from __future__ import annotations

import pypto_models.language as pl

TOKENS = pl.dynamic("TOKENS")
ROWS = 48
DEPTH = 512
# Of eight columns: on 132 SMs shares are of eight and nine, so of one unit and of two
BLOCKS = 137
WIDTH = 8 * BLOCKS
STEP = 256


@pl.jit.inline
def product(x: pl.Tensor, weight: pl.Tensor, n: pl.Scalar[pl.INDEX]):
    """Block `n` of `x` @ `weight`^T: [ROWS, 8] fp32."""
    rows = pl.tensor.dim(x, 0)
    acc = pl.create_tensor([ROWS, 8], pl.FP32)
    for k in pl.pipeline(DEPTH // STEP, stage=2):
        xk = pl.slice(x, [ROWS, STEP], [0, k * STEP], valid_shape=[rows, STEP])
        wk = pl.slice(weight, [8, STEP], [n * 8, k * STEP])
        if k == 0:
            acc = pl.matmul(xk, wk, b_trans=True, out_dtype=pl.FP32)
        else:
            acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
    return acc


@pl.jit
def epilogues(
    x: pl.Tensor[[TOKENS, DEPTH], pl.BF16],
    weight: pl.Tensor[[WIDTH, DEPTH], pl.BF16],
    bias: pl.Tensor[[1, WIDTH], pl.FP32],
    scale: pl.Tensor[[TOKENS, 1], pl.FP32],
    residual: pl.Tensor[[TOKENS, WIDTH], pl.BF16],
    order: pl.Tensor[[BLOCKS], pl.INT32],
    summed: pl.InOut[pl.Tensor[[TOKENS, WIDTH], pl.FP32]],
    before: pl.Out[pl.Tensor[[TOKENS, WIDTH], pl.FP32]],
    y: pl.Out[pl.Tensor[[TOKENS, WIDTH], pl.FP32]],
    ordered: pl.Out[pl.Tensor[[TOKENS, WIDTH], pl.FP32]],
):
    """Of p = x @ weight^T: y = (p + bias) * scale + residual; before = summed, summed += p; block `n` of p is
    block `order[n]` of ordered.
    """
    rows = pl.tensor.dim(x, 0)
    for n in pl.spmd(BLOCKS, name_hint="apart"):
        acc = product(x, weight, n)
        biased = pl.col_expand_add(acc, pl.slice(bias, [1, 8], [0, n * 8]))
        scaled = pl.row_expand_mul(biased, pl.slice(scale, [ROWS, 1], [0, 0], valid_shape=[rows, 1]))
        beside = pl.slice(residual, [ROWS, 8], [0, n * 8], valid_shape=[rows, 8])
        pl.assemble(y, pl.add(scaled, pl.cast(beside, pl.FP32)), [0, n * 8])
    for n in pl.spmd(BLOCKS, name_hint="in_place"):
        acc = product(x, weight, n)
        beside = pl.slice(summed, [ROWS, 8], [0, n * 8], valid_shape=[rows, 8])
        pl.assemble(summed, pl.add(acc, beside), [0, n * 8])
        pl.assemble(before, beside, [0, n * 8])
    for n in pl.spmd(BLOCKS, name_hint="reordered"):
        to = pl.cast(pl.read(order, [n]), pl.INDEX)
        acc = product(x, weight, n)
        pl.assemble(ordered, acc, [0, to * 8])


@pl.jit
def added(
    x: pl.Tensor[[TOKENS, DEPTH], pl.BF16],
    weight: pl.Tensor[[WIDTH, DEPTH], pl.BF16],
    y: pl.InOut[pl.Tensor[[TOKENS, WIDTH], pl.FP32]],
):
    """y += x @ weight^T, atomically."""
    for n in pl.spmd(BLOCKS, name_hint="added"):
        pl.assemble(y, product(x, weight, n), [0, n * 8], atomic=pl.AtomicType.Add)


@pl.jit
def counted(
    x: pl.Tensor[[TOKENS, DEPTH], pl.BF16],
    weight: pl.Tensor[[WIDTH, DEPTH], pl.BF16],
    y: pl.InOut[pl.Tensor[[TOKENS, WIDTH], pl.INT32]],
):
    """y += x @ weight^T as integers, atomically."""
    for n in pl.spmd(BLOCKS, name_hint="counted"):
        whole = pl.cast(product(x, weight, n), pl.INT32, mode="rint")
        pl.assemble(y, whole, [0, n * 8], atomic=pl.AtomicType.Add)


@pl.jit
def copied(
    x: pl.Tensor[[TOKENS, DEPTH], pl.BF16],
    weight: pl.Tensor[[WIDTH, DEPTH], pl.BF16],
    bias: pl.Tensor[[1, WIDTH], pl.FP32],
    sums: pl.InOut[pl.Tensor[[1, WIDTH], pl.FP32]],
    y: pl.Out[pl.Tensor[[TOKENS, WIDTH], pl.FP32]],
):
    """y = x @ weight^T, and sums += bias, which is one row."""
    for n in pl.spmd(BLOCKS, name_hint="copied"):
        pl.assemble(y, product(x, weight, n), [0, n * 8])
        pl.assemble(sums, pl.slice(bias, [1, 8], [0, n * 8]), [0, n * 8], atomic=pl.AtomicType.Add)


@pl.jit
def cut(
    x: pl.Tensor[[TOKENS, DEPTH], pl.BF16],
    weight: pl.Tensor[[WIDTH, DEPTH], pl.BF16],
    y: pl.Out[pl.Tensor[[TOKENS, WIDTH // 2], pl.FP32]],
):
    """The upper half of the rows of each block of x @ weight^T, side by side."""
    for n in pl.spmd(BLOCKS, name_hint="cut"):
        acc = product(x, weight, n)
        pl.assemble(y, pl.slice(acc, [ROWS, 4], [0, 4]), [0, n * 4])
