"""Projections: a stream of weight tiles against the rows of the step, which stay put.

All rows of a step are one tile of ROWS rows inside the K loop, so that a weight is loaded once however many
rows there are.  Neither the output width nor K has to be a multiple of its tile.
"""

from __future__ import annotations

import pypto_models.language as pl
from models.common.norm import rounded
from models.common.sizes import DTYPE, ROWS

# Tile sizes; a tiling file sets them per target
QKV_N = 64
QKV_K = 64
OUT_N = 64
OUT_K = 64
MLP_N = 64
MLP_K = 64
DOWN_N = 64
DOWN_K = 64
HEAD_N = 64
HEAD_K = 64


@pl.jit.inline
def part_of(extent: pl.Scalar[pl.INDEX], tile: pl.Scalar[pl.INDEX], i: pl.Scalar[pl.INDEX]):
    """Elements of tile `i` that lie within a static `extent`; a constant if the tiles fill it."""
    if extent % tile == 0:
        part = tile
    else:
        part = pl.min(extent - i * tile, tile)
    return part


@pl.jit.inline
def accumulate(acc: pl.Tensor, xk: pl.Tensor, wk: pl.Tensor, k: pl.Scalar[pl.INDEX]):
    """Step `k` of a K loop: `acc` [M, N] fp32 += `xk` [M, K] @ `wk` [N, K]^T; step 0 begins it."""
    if k == 0:
        acc = pl.matmul(xk, wk, out_dtype=pl.FP32, b_trans=True)
    else:
        acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
    return acc


@pl.jit.inline
def add_rounded(
    acc: pl.Tensor,
    residual: pl.Tensor,
    column: pl.Scalar[pl.INDEX],
    rows: pl.Scalar[pl.INDEX],
    live: pl.Scalar[pl.INDEX],
):
    """`live` columns of `residual` from `column` on, plus the rounded product `acc` [ROWS, N] fp32."""
    old = pl.slice(residual, [ROWS, acc.shape[1]], [0, column], valid_shape=[rows, live])
    new = pl.add(rounded(acc), pl.cast(old, pl.FP32))
    return pl.cast(new, DTYPE, mode="rint")


@pl.jit.inline
def project_qkv(x: pl.Tensor, w: pl.Tensor, out: pl.Tensor):
    """`out` [T, N] fp32 = `x` [T, K] @ `w` [N, K]^T."""
    rows = pl.tensor.dim(x, 0)
    width, depth = w.shape[0], w.shape[1]
    for n in pl.spmd((width + QKV_N - 1) // QKV_N, name_hint="qkv_proj"):
        live = part_of(width, QKV_N, n)
        acc = pl.create_tensor([ROWS, QKV_N], pl.FP32)
        for k in pl.pipeline((depth + QKV_K - 1) // QKV_K, stage=2):
            inner = part_of(depth, QKV_K, k)
            xk = pl.slice(x, [ROWS, QKV_K], [0, k * QKV_K], valid_shape=[rows, inner])
            wk = pl.slice(w, [QKV_N, QKV_K], [n * QKV_N, k * QKV_K], valid_shape=[live, inner])
            acc = accumulate(acc, xk, wk, k)
        pl.assemble(out, acc, [0, n * QKV_N])
    return out


@pl.jit.inline
def project_out(x: pl.Tensor, w: pl.Tensor, residual: pl.Tensor, out: pl.Tensor):
    """`out` [T, H] = `residual` [T, H] + `x` [T, K] @ `w` [H, K]^T."""
    rows = pl.tensor.dim(x, 0)
    width, depth = w.shape[0], w.shape[1]
    for n in pl.spmd(
        (width + OUT_N - 1) // OUT_N,
        name_hint="out_proj",
        optimizations=[pl.split(pl.SplitMode.UP_DOWN)],
    ):
        live = part_of(width, OUT_N, n)
        acc = pl.create_tensor([ROWS, OUT_N], pl.FP32)
        for k in pl.pipeline((depth + OUT_K - 1) // OUT_K, stage=2):
            inner = part_of(depth, OUT_K, k)
            xk = pl.slice(x, [ROWS, OUT_K], [0, k * OUT_K], valid_shape=[rows, inner])
            wk = pl.slice(w, [OUT_N, OUT_K], [n * OUT_N, k * OUT_K], valid_shape=[live, inner])
            acc = accumulate(acc, xk, wk, k)
        pl.assemble(out, add_rounded(acc, residual, n * OUT_N, rows, live), [0, n * OUT_N])
    return out


@pl.jit.inline
def project_down(x: pl.Tensor, w: pl.Tensor, residual: pl.Tensor, out: pl.Tensor):
    """`out` [T, H] = `residual` [T, H] + `x` [T, I] @ `w` [H, I]^T."""
    rows = pl.tensor.dim(x, 0)
    width, depth = w.shape[0], w.shape[1]
    for n in pl.spmd(
        (width + DOWN_N - 1) // DOWN_N,
        name_hint="down_proj",
        optimizations=[pl.split(pl.SplitMode.UP_DOWN)],
    ):
        live = part_of(width, DOWN_N, n)
        acc = pl.create_tensor([ROWS, DOWN_N], pl.FP32)
        for k in pl.pipeline((depth + DOWN_K - 1) // DOWN_K, stage=2):
            inner = part_of(depth, DOWN_K, k)
            xk = pl.slice(x, [ROWS, DOWN_K], [0, k * DOWN_K], valid_shape=[rows, inner])
            wk = pl.slice(w, [DOWN_N, DOWN_K], [n * DOWN_N, k * DOWN_K], valid_shape=[live, inner])
            acc = accumulate(acc, xk, wk, k)
        pl.assemble(out, add_rounded(acc, residual, n * DOWN_N, rows, live), [0, n * DOWN_N])
    return out


@pl.jit.inline
def sigmoid(x: pl.Tensor):
    """1 / (1 + exp(-x))."""
    return pl.recip(pl.add(pl.exp(pl.neg(x)), 1.0))


@pl.jit.inline
def silu(x: pl.Tensor):
    """x * sigmoid(x)."""
    return pl.mul(x, sigmoid(x))


@pl.jit.inline
def project_gate_up(x: pl.Tensor, w: pl.Tensor, out: pl.Tensor):
    """`out` [T, I] = silu(`x` @ gate^T) * (`x` @ up^T) in one K loop; `w` [2 I, K] is gate over up."""
    rows = pl.tensor.dim(x, 0)
    width, depth = w.shape[0] // 2, w.shape[1]
    for n in pl.spmd(
        (width + MLP_N - 1) // MLP_N,
        name_hint="gate_up_silu",
        optimizations=[pl.split(pl.SplitMode.UP_DOWN)],
    ):
        live = part_of(width, MLP_N, n)
        gate = pl.create_tensor([ROWS, MLP_N], pl.FP32)
        up = pl.create_tensor([ROWS, MLP_N], pl.FP32)
        for k in pl.pipeline((depth + MLP_K - 1) // MLP_K, stage=2):
            inner = part_of(depth, MLP_K, k)
            xk = pl.slice(x, [ROWS, MLP_K], [0, k * MLP_K], valid_shape=[rows, inner])
            wg = pl.slice(w, [MLP_N, MLP_K], [n * MLP_N, k * MLP_K], valid_shape=[live, inner])
            wu = pl.slice(w, [MLP_N, MLP_K], [width + n * MLP_N, k * MLP_K], valid_shape=[live, inner])
            gate = accumulate(gate, xk, wg, k)
            up = accumulate(up, xk, wu, k)
        act = pl.mul(rounded(silu(rounded(gate))), rounded(up))
        pl.assemble(out, pl.cast(act, DTYPE, mode="rint"), [0, n * MLP_N])
    return out


@pl.jit.inline
def project_logits(x: pl.Tensor, w: pl.Tensor, out: pl.Tensor):
    """`out` [T, V] = `x` [T, H] @ `w` [V, H]^T in the model's element type."""
    rows = pl.tensor.dim(x, 0)
    width, depth = w.shape[0], w.shape[1]
    for n in pl.spmd(
        (width + HEAD_N - 1) // HEAD_N,
        name_hint="lm_head",
        optimizations=[pl.split(pl.SplitMode.UP_DOWN)],
    ):
        live = part_of(width, HEAD_N, n)
        acc = pl.create_tensor([ROWS, HEAD_N], pl.FP32)
        for k in pl.pipeline((depth + HEAD_K - 1) // HEAD_K, stage=2):
            inner = part_of(depth, HEAD_K, k)
            xk = pl.slice(x, [ROWS, HEAD_K], [0, k * HEAD_K], valid_shape=[rows, inner])
            wk = pl.slice(w, [HEAD_N, HEAD_K], [n * HEAD_N, k * HEAD_K], valid_shape=[live, inner])
            acc = accumulate(acc, xk, wk, k)
        pl.assemble(out, pl.cast(acc, DTYPE, mode="rint"), [0, n * HEAD_N])
    return out
