"""Kernels with a product whose K a schedule may cut across CTAs, and some that it may not cut."""

# mypy: disable-error-code="valid-type,type-arg"

from __future__ import annotations

import pypto_models.language as pl

T = pl.dynamic("T")
ROWS, WIDE, DEEP = 16, 120, 1024  # columns of two blocks of 64, the last less than whole


@pl.jit
def gated_product(
    x: pl.Tensor[[T, DEEP], pl.BF16],
    weight: pl.Tensor[[2 * WIDE, DEEP], pl.BF16],
    residual: pl.Tensor[[T, WIDE], pl.FP32],
    y: pl.Out[pl.Tensor[[T, WIDE], pl.BF16]],
):
    """y = residual + (x @ W1^T) * (x @ W2^T), of the rows that there are."""
    rows = pl.tensor.dim(x, 0)
    for n in pl.spmd((WIDE + 63) // 64, name_hint="product"):
        live = pl.min(WIDE - n * 64, 64)
        first = pl.create_tensor([ROWS, 64], pl.FP32)
        second = pl.create_tensor([ROWS, 64], pl.FP32)
        for k in pl.pipeline(DEEP // 128, stage=2):
            xk = pl.slice(x, [ROWS, 128], [0, k * 128], valid_shape=[rows, 128])
            one = pl.slice(weight, [64, 128], [n * 64, k * 128], valid_shape=[live, 128])
            other = pl.slice(weight, [64, 128], [WIDE + n * 64, k * 128], valid_shape=[live, 128])
            if k == 0:
                first = pl.matmul(xk, one, b_trans=True, out_dtype=pl.FP32)
                second = pl.matmul(xk, other, b_trans=True, out_dtype=pl.FP32)
            else:
                first = pl.matmul_acc(first, xk, one, b_trans=True)
                second = pl.matmul_acc(second, xk, other, b_trans=True)
        kept = pl.slice(residual, [ROWS, 64], [0, n * 64], valid_shape=[rows, live])
        pl.assemble(y, pl.cast(pl.add(kept, pl.mul(first, second)), pl.BF16, mode="rint"), [0, n * 64])


@pl.jit.inline
def product(
    x: pl.Tensor,
    weight: pl.Tensor,
    row: pl.Scalar[pl.INDEX],
    start: pl.Scalar[pl.INDEX],
    steps: pl.Scalar[pl.INDEX],
):
    """`x` @ 64 rows of `weight`^T from `row` on, in steps of K from `start` on: [ROWS, 64] fp32."""
    rows = pl.tensor.dim(x, 0)
    acc = pl.create_tensor([ROWS, 64], pl.FP32)
    for k in pl.pipeline(steps, stage=2):
        xk = pl.slice(x, [ROWS, 128], [0, start + k * 128], valid_shape=[rows, 128])
        wk = pl.slice(weight, [64, 128], [row, start + k * 128])
        if k == 0:
            acc = pl.matmul(xk, wk, b_trans=True, out_dtype=pl.FP32)
        else:
            acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
    return acc


@pl.jit
def in_a_loop(
    x: pl.Tensor[[T, DEEP], pl.BF16],
    weight: pl.Tensor[[64, DEEP], pl.BF16],
    y: pl.InOut[pl.Tensor[[T, 64], pl.FP32]],
):
    """y += x @ W^T as often as there are rows."""
    rows = pl.tensor.dim(x, 0)
    for _ in pl.range(rows):
        for b in pl.spmd(1, name_hint="product"):
            old = pl.slice(y, [ROWS, 64], [0, b * 64], valid_shape=[rows, 64])
            pl.assemble(y, pl.add(product(x, weight, 0, 0, 8), old), [0, b * 64])


@pl.jit
def under_a_condition(
    x: pl.Tensor[[T, DEEP], pl.BF16],
    weight: pl.Tensor[[64, DEEP], pl.BF16],
    y: pl.InOut[pl.Tensor[[T, 64], pl.FP32]],
):
    """y = x @ W^T of several rows."""
    if pl.tensor.dim(x, 0) > 1:
        for b in pl.spmd(1, name_hint="product"):
            pl.assemble(y, product(x, weight, 0, 0, 8), [0, b * 64])


@pl.jit
def in_order(
    x: pl.Tensor[[T, DEEP], pl.BF16],
    weight: pl.Tensor[[64, DEEP], pl.BF16],
    y: pl.Out[pl.Tensor[[T, 64], pl.FP32]],
    z: pl.Out[pl.Tensor[[16, 64], pl.FP32]],
):
    """z = 0, then y = x @ W^T, then z = 1, with tasks that wait for each other."""
    with pl.manual_scope():
        with pl.at(name_hint="ahead") as first:
            pl.assemble(z, pl.full([16, 64], dtype=pl.FP32, value=0.0), [0, 0])
        with pl.spmd(1, name_hint="product", deps=[first]) as tid:
            b = pl.get_block_idx()
            pl.assemble(y, product(x, weight, 0, 0, 8), [0, b * 64])
        with pl.at(name_hint="behind", deps=[tid]):
            pl.assemble(z, pl.full([16, 64], dtype=pl.FP32, value=1.0), [0, 0])


@pl.jit
def cut_by_hand(
    x: pl.Tensor[[T, DEEP], pl.BF16],
    weight: pl.Tensor[[128, DEEP], pl.BF16],
    y: pl.InOut[pl.Tensor[[T, 128], pl.FP32]],
):
    """y += x @ W^T: four blocks, of which two have the first half of K."""
    for t in pl.spmd(4, name_hint="product"):
        half = t // 2
        start = half * 512
        row = (t - half * 2) * 64
        pl.assemble(y, product(x, weight, row, start, 4), [0, row], atomic=pl.AtomicType.Add)
