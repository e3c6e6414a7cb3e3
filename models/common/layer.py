"""Decoder layers composed of the blocks: the attention layer of both models, and the MLP behind any mixer."""

from __future__ import annotations

import pypto_models.language as pl
from models.common.attention import attention
from models.common.norm import apply_post_norm
from models.common.projection import project_down, project_gate_up, project_out, project_qkv
from models.common.rope import rope
from models.common.rows import enter
from models.common.sizes import DTYPE, GROUP, HEAD_DIM, KV_HEADS


@pl.jit.inline
def mlp(
    middle: pl.Tensor,
    post_norm: pl.Tensor,
    w_gate_up: pl.Tensor,
    w_down: pl.Tensor,
    next_hidden: pl.Tensor,
):
    """`next_hidden` [T, H] = `middle` + MLP(RMSNorm(`middle`))."""
    rows = pl.tensor.dim(middle, 0)
    mlp_in = pl.create_tensor([rows, middle.shape[1]], DTYPE)
    act = pl.create_tensor([rows, w_down.shape[1]], DTYPE)
    mlp_in = apply_post_norm(middle, post_norm, mlp_in)
    act = project_gate_up(mlp_in, w_gate_up, act)
    return project_down(act, w_down, middle, next_hidden)


@pl.jit.inline
def attention_layer(
    hidden: pl.Tensor,
    positions: pl.Tensor,
    slot_mapping: pl.Tensor,
    cu_q: pl.Tensor,
    ctx: pl.Tensor,
    block_table: pl.Tensor,
    k_cache: pl.Tensor,
    v_cache: pl.Tensor,
    w_qkv: pl.Tensor,
    w_o: pl.Tensor,
    w_gate_up: pl.Tensor,
    w_down: pl.Tensor,
    input_norm: pl.Tensor,
    post_norm: pl.Tensor,
    q_norm: pl.Tensor,
    k_norm: pl.Tensor,
    rope_cos: pl.Tensor,
    rope_sin: pl.Tensor,
    next_hidden: pl.Tensor,
):
    """One layer: writes `next_hidden` [T, H] and this step's rows of the caches.

    With GATE_HEADS the projection carries an output gate ahead of q, k and v.
    """
    rows = pl.tensor.dim(hidden, 0)
    width = hidden.shape[1]

    # Scope 1: input norm and the stacked gate, q, k, v projection
    residual = pl.create_tensor([rows, width], DTYPE)
    normed = pl.create_tensor([rows, width], DTYPE)
    qkv = pl.create_tensor([rows, w_qkv.shape[0]], pl.FP32)
    residual, normed = enter(hidden, input_norm, slot_mapping, cu_q, ctx, residual, normed)
    qkv = project_qkv(normed, w_qkv, qkv)

    # Scope 2: per-head norms, RoPE, attention, KV write and output gate, output projection and its residual
    q = pl.create_tensor([KV_HEADS, rows * GROUP, HEAD_DIM], DTYPE)
    k_new = pl.create_tensor([KV_HEADS, rows, HEAD_DIM], DTYPE)
    v_new = pl.create_tensor([KV_HEADS, rows, HEAD_DIM], DTYPE)
    attended = pl.create_tensor([rows, w_o.shape[1]], DTYPE)
    middle = pl.create_tensor([rows, width], DTYPE)
    q, k_new, v_new = rope(qkv, q_norm, k_norm, positions, rope_cos, rope_sin, q, k_new, v_new)
    attended = attention(
        q, k_new, v_new, k_cache, v_cache, block_table, slot_mapping, cu_q, ctx, qkv, attended
    )
    middle = project_out(attended, w_o, residual, middle)

    # Scope 3: MLP and its residual
    return mlp(middle, post_norm, w_gate_up, w_down, next_hidden)
