"""Kernels at the limits of the scratchpads: budgets, rings, staging, extents."""

from __future__ import annotations

import pypto_models.language as pl

M, N, K = 16, 32, 16
T, R = pl.BF16, pl.FP32


@pl.jit
def wide_gate_up(
    x: pl.Tensor[[32, 1024], pl.BF16],
    w: pl.Tensor[[1024, 1024], pl.BF16],
    y: pl.Out[pl.Tensor[[32, 512], pl.BF16]],
):
    for n in pl.spmd(1, name_hint="wide"):
        gate = pl.create_tensor([32, 512], dtype=pl.FP32)
        up = pl.create_tensor([32, 512], dtype=pl.FP32)
        for k in pl.range(16):
            xk = pl.slice(x, [32, 64], [0, k * 64])
            gate = pl.matmul_acc(gate, xk, pl.slice(w, [64, 512], [k * 64, 0]), init_cond=k == 0)
            up = pl.matmul_acc(up, xk, pl.slice(w, [64, 512], [k * 64, 512]), init_cond=k == 0)
        silu = pl.div(gate, pl.add(pl.exp(pl.neg(gate)), 1.0))
        y = pl.assemble(y, pl.cast(pl.mul(silu, up), pl.BF16, mode="rint"), [0, n])
    return y


@pl.jit
def wide_gate_up_split(
    x: pl.Tensor[[32, 1024], pl.BF16],
    w: pl.Tensor[[1024, 1024], pl.BF16],
    y: pl.Out[pl.Tensor[[32, 512], pl.BF16]],
):
    for n in pl.spmd(1, name_hint="wide", optimizations=[pl.split(pl.SplitMode.UP_DOWN)]):
        gate = pl.create_tensor([32, 512], dtype=pl.FP32)
        up = pl.create_tensor([32, 512], dtype=pl.FP32)
        for k in pl.range(16):
            xk = pl.slice(x, [32, 64], [0, k * 64])
            gate = pl.matmul_acc(gate, xk, pl.slice(w, [64, 512], [k * 64, 0]), init_cond=k == 0)
            up = pl.matmul_acc(up, xk, pl.slice(w, [64, 512], [k * 64, 512]), init_cond=k == 0)
        silu = pl.div(gate, pl.add(pl.exp(pl.neg(gate)), 1.0))
        y = pl.assemble(y, pl.cast(pl.mul(silu, up), pl.BF16, mode="rint"), [0, n])
    return y


@pl.jit
def wide_column_sum(
    x: pl.Tensor[[32, 64], pl.BF16],
    w: pl.Tensor[[64, 512], pl.BF16],
    y: pl.Out[pl.Tensor[[1, 512], pl.FP32]],
):
    for n in pl.spmd(1, name_hint="column_sum"):
        product = pl.matmul(pl.slice(x, [32, 64], [0, 0]), pl.slice(w, [64, 512], [0, n]), out_dtype=pl.FP32)
        y = pl.assemble(y, pl.col_sum(pl.exp(product)), [0, 0])
    return y


@pl.jit
def wide_acc(
    x: pl.Tensor[[128, 64], pl.BF16],
    w: pl.Tensor[[64, 512], pl.BF16],
    y: pl.Out[pl.Tensor[[128, 512], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="wide_acc"):
        product = pl.matmul(pl.slice(x, [128, 64], [0, 0]), pl.slice(w, [64, 512], [0, 0]), out_dtype=pl.FP32)
        y = pl.assemble(y, product, [0, 0])
    return y


@pl.jit
def half_result(
    x: pl.Tensor[[16, 64], pl.BF16],
    w: pl.Tensor[[64, 32], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 32], pl.BF16]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        product = pl.matmul(pl.slice(x, [16, 64], [0, 0]), pl.slice(w, [64, 32], [0, 0]))
        y = pl.assemble(y, product, [0, 0])
    return y


@pl.jit
def wide_rows(x: pl.Tensor[[64, 512], pl.FP32], y: pl.Out[pl.Tensor[[64, 512], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="wide_rows"):
        a = pl.slice(x, [64, 512], [0, 0])
        b = pl.exp(a)
        y = pl.assemble(y, pl.sub(a, b), [0, 0])
    return y


@pl.jit
def several_mistakes(x: pl.Tensor[[128, 512], pl.FP32], y: pl.Out[pl.Tensor[[128, 512], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="first"):
        a = pl.slice(x, [128, 510], [0, 0])
        y = pl.assemble(y, a, [0, 0])
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="second"):
        b = pl.slice(x, [128, 512], [0, 0])
        y = pl.assemble(y, b, [0, 0])
    return y


# ------------------------------------------------------------------------------------- rings and staging
@pl.jit
def one_product(
    x: pl.Tensor[[16, 64], pl.BF16],
    w: pl.Tensor[[64, 32], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
):
    for n in pl.spmd(1):
        a = pl.matmul(pl.slice(x, [16, 64], [0, 0]), pl.slice(w, [64, 32], [0, n]), out_dtype=pl.FP32)
        y = pl.assemble(y, pl.exp(a), [0, 0])
    return y


@pl.jit
def four_slots(
    x: pl.Tensor[[16, 64], pl.BF16],
    w: pl.Tensor[[64, 32], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
):
    for n in pl.spmd(1, optimizations=[pl.split(pl.SplitMode.NONE, slot_num=4)]):
        a = pl.matmul(pl.slice(x, [16, 64], [0, 0]), pl.slice(w, [64, 32], [0, n]), out_dtype=pl.FP32)
        y = pl.assemble(y, pl.exp(a), [0, 0])
    return y


@pl.jit
def three_products(
    x: pl.Tensor[[48, 64], pl.BF16],
    w: pl.Tensor[[64, 32], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
):
    for n in pl.spmd(1):
        wt = pl.slice(w, [64, 32], [0, n])
        a = pl.matmul(pl.slice(x, [16, 64], [0, 0]), wt, out_dtype=pl.FP32)
        b = pl.matmul(pl.slice(x, [16, 64], [16, 0]), wt, out_dtype=pl.FP32)
        c = pl.matmul(pl.slice(x, [16, 64], [32, 0]), wt, out_dtype=pl.FP32)
        low = pl.minimum(pl.add(a, b), c)
        y = pl.assemble(y, pl.add(pl.add(pl.add(low, a), b), c), [0, 0])
    return y


@pl.jit
def moved_right(
    x: pl.Tensor[[16, 128], pl.BF16],
    w: pl.Tensor[[128, 512], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 512], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        xt = pl.slice(x, [16, 128], [0, 0])
        kept = pl.move(pl.slice(w, [128, 192], [0, 0]), target_memory=pl.Mem.Right)
        wide = pl.slice(w, [128, 256], [0, 192])
        y = pl.assemble(y, pl.matmul(xt, wide, out_dtype=pl.FP32), [0, 192])
        y = pl.assemble(y, pl.matmul(xt, kept, out_dtype=pl.FP32), [0, 0])
    return y


# ------------------------------------------------------------------------------------------------ extents
@pl.jit
def extents(x: pl.Tensor[[M, N], pl.FP32], y: pl.Out[pl.Tensor[[M, N], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        a = pl.slice(x, [M, N], [0, 0])
        y = pl.assemble(y, a, [0, 0])
    return y


@pl.jit
def lane_column(
    x: pl.Tensor[[16, 16], pl.BF16],
    w: pl.Tensor[[16, 16], pl.BF16],
    z: pl.Tensor[[M, N], pl.FP32],
    y: pl.Out[pl.Tensor[[M, 1], pl.FP32]],
    p: pl.Out[pl.Tensor[[16, 16], pl.FP32]],
):
    for n in pl.spmd(1, optimizations=[pl.split(pl.SplitMode.UP_DOWN)]):
        product = pl.matmul(pl.slice(x, [16, 16], [0, 0]), pl.slice(w, [16, 16], [0, n]), out_dtype=pl.FP32)
        p = pl.assemble(p, pl.exp(product), [0, 0])
        s = pl.row_sum(pl.slice(z, [M, N], [0, 0]))
        y = pl.assemble(y, s, [0, 0])
    return y


@pl.jit
def product(x: pl.Tensor[[M, K], T], w: pl.Tensor[[K, N], T], y: pl.Out[pl.Tensor[[M, N], R]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        a = pl.slice(x, [M, K], [0, 0])
        b = pl.slice(w, [K, N], [0, 0])
        c = pl.matmul(a, b, out_dtype=R)
        y = pl.assemble(y, c, [0, 0])
    return y
