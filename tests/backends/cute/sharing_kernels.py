"""Small kernels with regions that share a launch."""

from __future__ import annotations

import pypto_models.language as pl

ROWS = pl.dynamic("ROWS")
PARTS = pl.dynamic("PARTS")
WIDTH = 512
INNER = 64
STEP = 256


@pl.jit
def around_a_stream(
    x: pl.Tensor[[16, WIDTH], pl.FP32],
    weight: pl.Tensor[[256, WIDTH], pl.BF16],
    counts: pl.Tensor[[PARTS], pl.INT32],
    before: pl.Out[pl.Tensor[[PARTS], pl.INT32]],
    y: pl.Out[pl.Tensor[[16, 256], pl.FP32]],
):
    """before[p] = counts[0] + .. + counts[p - 1];  y = rnd(x / rms(x)) @ weight^T + before[PARTS - 1].

    The sums stand behind the product and can be had in the launch of the norm.
    """
    normed = pl.create_tensor([16, WIDTH], pl.BF16)
    product = pl.create_tensor([16, 256], pl.FP32)
    for r in pl.spmd(16, name_hint="norm"):
        row = pl.slice(x, [1, WIDTH], [r, 0])
        mean = pl.mul(pl.row_sum(pl.mul(row, row)), 1.0 / WIDTH)
        pl.assemble(normed, pl.cast(pl.row_expand_mul(row, pl.rsqrt(mean)), pl.BF16, mode="rint"), [r, 0])
    for n in pl.spmd(4, name_hint="multiply"):
        acc = pl.create_tensor([16, 64], pl.FP32)
        for k in pl.pipeline(WIDTH // STEP, stage=2):
            xk = pl.slice(normed, [16, STEP], [0, k * STEP])
            wk = pl.slice(weight, [64, STEP], [n * 64, k * STEP])
            if k == 0:
                acc = pl.matmul(xk, wk, b_trans=True, out_dtype=pl.FP32)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        pl.assemble(product, acc, [0, n * 64])
    for p in pl.spmd(pl.tensor.dim(counts, 0), name_hint="sums"):
        total = 0
        for o in pl.range(p):
            total = total + pl.cast(pl.read(counts, [o]), pl.INDEX)
        pl.write(before, [p], pl.cast(total, pl.INT32))
    for r in pl.spmd(16, name_hint="shift"):
        last = pl.cast(pl.read(before, [pl.tensor.dim(counts, 0) - 1]), pl.FP32)
        pl.assemble(y, pl.add(pl.slice(product, [1, 256], [r, 0]), last), [r, 0])


@pl.jit
def three_apart(
    x: pl.Tensor[[ROWS, WIDTH], pl.FP32],
    a: pl.Tensor[[16, WIDTH], pl.BF16],
    b: pl.Tensor[[WIDTH, INNER], pl.BF16],
    y: pl.Out[pl.Tensor[[ROWS, WIDTH], pl.FP32]],
    sums: pl.Out[pl.Tensor[[ROWS, 1], pl.FP32]],
    product: pl.Out[pl.Tensor[[16, INNER], pl.FP32]],
    after: pl.Out[pl.Tensor[[ROWS, WIDTH], pl.FP32]],
):
    """Apart: y = 2 x in whole groups of 16 rows, the sums of the rows of x, a @ b.  Then after = x + sums +
    product[0, 0].  Below 16 rows the first of the three has no block.
    """
    rows = pl.tensor.dim(x, 0)
    for g in pl.spmd(rows // 16, name_hint="whole_groups"):
        pl.assemble(y, pl.mul(pl.slice(x, [16, WIDTH], [g * 16, 0]), 2.0), [g * 16, 0])
    for n in pl.spmd(2, name_hint="product"):
        acc = pl.full([16, 32], pl.FP32, 0.0)
        for k in pl.pipeline(WIDTH // STEP, stage=2):
            ak = pl.slice(a, [16, STEP], [0, k * STEP])
            bk = pl.slice(b, [STEP, 32], [k * STEP, n * 32])
            acc = pl.add(acc, pl.matmul(ak, bk, out_dtype=pl.FP32))
        pl.assemble(product, acc, [0, n * 32])
    for r in pl.spmd(rows, name_hint="row_sums"):
        pl.assemble(sums, pl.row_sum(pl.slice(x, [1, WIDTH], [r, 0])), [r, 0])
    for r in pl.spmd(rows, name_hint="after"):
        first = pl.read(product, [0, 0])
        both = pl.row_expand_add(pl.slice(x, [1, WIDTH], [r, 0]), pl.slice(sums, [1, 1], [r, 0]))
        pl.assemble(after, pl.add(both, first), [r, 0])
