"""Programs that only the bench runs: a projection with all that belongs to it, a layer without attention.

They are made of the models' own blocks.  The operand norm of a projection is a block of the program.
"""

# mypy: disable-error-code="valid-type,type-arg"

from __future__ import annotations

import pypto_models.language as pl
from models.common.attention import write_kv
from models.common.gate import gated
from models.common.layer import mlp
from models.common.norm import apply_post_norm
from models.common.projection import project_down, project_gate_up, project_out, project_qkv
from models.common.rope import rope
from models.common.rows import enter, sequence_of
from models.common.sizes import DTYPE, GATE_HEADS, GROUP, HALF_DIM, HEAD_DIM, KV_HEADS, Q_HEADS

HIDDEN = 256
INTERMEDIATE = 512

TOKENS = pl.dynamic("TOKENS")
BATCH = pl.dynamic("BATCH")
BATCH_ENDS = pl.dynamic("BATCH_ENDS")
CACHE_ROWS = pl.dynamic("CACHE_ROWS")
ROPE_ROWS = pl.dynamic("ROPE_ROWS")

Q_WIDTH = Q_HEADS * HEAD_DIM
QKV_WIDTH = (GATE_HEADS + Q_HEADS + 2 * KV_HEADS) * HEAD_DIM
GATE_UP_WIDTH = 2 * INTERMEDIATE


@pl.jit
def bench_qkv(
    x: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    weight: pl.Tensor[[QKV_WIDTH, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, QKV_WIDTH], pl.FP32]],
):
    """`out` = RMSNorm(`x`) @ `weight`^T; fp32, as the blocks behind it round it."""
    normed = pl.create_tensor([pl.tensor.dim(x, 0), HIDDEN], DTYPE)
    normed = apply_post_norm(x, norm, normed)
    out = project_qkv(normed, weight, out)


@pl.jit
def bench_o(
    x: pl.Tensor[[TOKENS, Q_WIDTH], DTYPE],
    weight: pl.Tensor[[HIDDEN, Q_WIDTH], DTYPE],
    residual: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    """`out` = `residual` + `x` @ `weight`^T."""
    out = project_out(x, weight, residual, out)


@pl.jit
def bench_gate_up(
    x: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    weight: pl.Tensor[[GATE_UP_WIDTH, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, INTERMEDIATE], DTYPE]],
):
    """`out` = SwiGLU of RMSNorm(`x`) @ `weight`^T."""
    normed = pl.create_tensor([pl.tensor.dim(x, 0), HIDDEN], DTYPE)
    normed = apply_post_norm(x, norm, normed)
    out = project_gate_up(normed, weight, out)


@pl.jit
def bench_down(
    x: pl.Tensor[[TOKENS, INTERMEDIATE], DTYPE],
    weight: pl.Tensor[[HIDDEN, INTERMEDIATE], DTYPE],
    residual: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    """`out` = `residual` + `x` @ `weight`^T."""
    out = project_down(x, weight, residual, out)


@pl.jit
def bench_down_slices(
    x: pl.Tensor[[TOKENS, INTERMEDIATE], DTYPE],
    weight: pl.Tensor[[HIDDEN, INTERMEDIATE], DTYPE],
    residual: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    """`bench_down` by another name, for a schedule that cuts K across CTAs and adds the slices in order."""
    out = project_down(x, weight, residual, out)


@pl.jit
def bench_down_red(
    x: pl.Tensor[[TOKENS, INTERMEDIATE], DTYPE],
    weight: pl.Tensor[[HIDDEN, INTERMEDIATE], DTYPE],
    residual: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    """`bench_down` by another name, for a schedule that cuts K across CTAs and adds them by `red.add`."""
    out = project_down(x, weight, residual, out)


@pl.jit
def bench_layer_without_attention(
    hidden: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    positions: pl.Tensor[[TOKENS], pl.INT32],
    slot_mapping: pl.Tensor[[TOKENS], pl.INT32],
    cu_q: pl.Tensor[[BATCH_ENDS], pl.INT32],
    ctx: pl.Tensor[[BATCH], pl.INT32],
    k_cache: pl.InOut[pl.Tensor[[CACHE_ROWS, HEAD_DIM], DTYPE]],
    v_cache: pl.InOut[pl.Tensor[[CACHE_ROWS, HEAD_DIM], DTYPE]],
    w_qkv: pl.Tensor[[QKV_WIDTH, HIDDEN], DTYPE],
    w_o: pl.Tensor[[HIDDEN, Q_WIDTH], DTYPE],
    w_gate_up: pl.Tensor[[GATE_UP_WIDTH, HIDDEN], DTYPE],
    w_down: pl.Tensor[[HIDDEN, INTERMEDIATE], DTYPE],
    input_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    post_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    q_norm: pl.Tensor[[1, HEAD_DIM], pl.FP32],
    k_norm: pl.Tensor[[1, HEAD_DIM], pl.FP32],
    rope_cos: pl.Tensor[[ROPE_ROWS, HALF_DIM], pl.FP32],
    rope_sin: pl.Tensor[[ROPE_ROWS, HALF_DIM], pl.FP32],
    next_hidden: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    """An attention layer in which q itself, in the order in which it lies in memory, is what was attended."""
    rows = pl.tensor.dim(hidden, 0)
    residual = pl.create_tensor([rows, HIDDEN], DTYPE)
    normed = pl.create_tensor([rows, HIDDEN], DTYPE)
    qkv = pl.create_tensor([rows, QKV_WIDTH], pl.FP32)
    q = pl.create_tensor([KV_HEADS, rows * GROUP, HEAD_DIM], DTYPE)
    k_new = pl.create_tensor([KV_HEADS, rows, HEAD_DIM], DTYPE)
    v_new = pl.create_tensor([KV_HEADS, rows, HEAD_DIM], DTYPE)
    middle = pl.create_tensor([rows, HIDDEN], DTYPE)
    residual, normed = enter(hidden, input_norm, slot_mapping, cu_q, ctx, residual, normed)
    qkv = project_qkv(normed, w_qkv, qkv)
    q, k_new, v_new = rope(qkv, q_norm, k_norm, positions, rope_cos, rope_sin, q, k_new, v_new)
    for item in pl.spmd(rows * KV_HEADS, name_hint="write_kv"):
        t = item // KV_HEADS
        if sequence_of(t, slot_mapping, cu_q, ctx) >= 0:
            write_kv(k_new, v_new, slot_mapping, t, 1, item % KV_HEADS, k_cache, v_cache)
    attended = pl.reshape(q, [rows, Q_WIDTH])
    if GATE_HEADS > 0:
        opened = pl.create_tensor([rows, Q_WIDTH], DTYPE)
        for item in pl.spmd(rows * Q_HEADS, name_hint="output_gate"):
            place = [item // Q_HEADS, item % Q_HEADS * HEAD_DIM]
            head = pl.cast(pl.slice(attended, [1, HEAD_DIM], place), pl.FP32)
            pl.assemble(opened, gated(head, pl.slice(qkv, [1, HEAD_DIM], place)), place)
        middle = project_out(opened, w_o, residual, middle)
    else:
        middle = project_out(attended, w_o, residual, middle)
    next_hidden = mlp(middle, post_norm, w_gate_up, w_down, next_hidden)
