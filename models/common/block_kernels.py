"""The blocks of a decoder with full attention, each as a kernel of its own.

    pypto-models check models/common/block_kernels.py
"""

from __future__ import annotations

import pypto_models.language as pl
from models.common.attention import attention
from models.common.embedding import embed, greedy
from models.common.norm import apply_final_norm, apply_post_norm
from models.common.projection import project_down, project_gate_up, project_logits, project_out, project_qkv
from models.common.rope import rope
from models.common.rows import enter
from models.common.sizes import DTYPE, GATE_HEADS, HALF_DIM, HEAD_DIM, KV_HEADS, Q_HEADS

HIDDEN = 256
INTERMEDIATE = 512
VOCAB_ROWS = 512

TOKENS = pl.dynamic("TOKENS")
QUERIES = pl.dynamic("QUERIES")  # TOKENS * GROUP
BATCH = pl.dynamic("BATCH")
BATCH_ENDS = pl.dynamic("BATCH_ENDS")
SEQ_PAGES = pl.dynamic("SEQ_PAGES")
CACHE_ROWS = pl.dynamic("CACHE_ROWS")
ROPE_ROWS = pl.dynamic("ROPE_ROWS")

Q_WIDTH = Q_HEADS * HEAD_DIM
QKV_WIDTH = (GATE_HEADS + Q_HEADS + 2 * KV_HEADS) * HEAD_DIM
GATE_UP_WIDTH = 2 * INTERMEDIATE


@pl.jit
def input_norm_block(
    hidden: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    input_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    slot_mapping: pl.Tensor[[TOKENS], pl.INT32],
    cu_q: pl.Tensor[[BATCH_ENDS], pl.INT32],
    ctx: pl.Tensor[[BATCH], pl.INT32],
    residual: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
    out: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    residual, out = enter(hidden, input_norm, slot_mapping, cu_q, ctx, residual, out)


@pl.jit
def norms_block(
    x: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    post_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    final_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    mlp_in: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
    out: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    mlp_in = apply_post_norm(x, post_norm, mlp_in)
    out = apply_final_norm(x, final_norm, out)


@pl.jit
def qkv_block(
    x: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    w_qkv: pl.Tensor[[QKV_WIDTH, HIDDEN], DTYPE],
    projected: pl.Out[pl.Tensor[[TOKENS, QKV_WIDTH], pl.FP32]],
):
    projected = project_qkv(x, w_qkv, projected)


@pl.jit
def rope_block(
    qkv: pl.Tensor[[TOKENS, QKV_WIDTH], pl.FP32],
    q_norm: pl.Tensor[[1, HEAD_DIM], pl.FP32],
    k_norm: pl.Tensor[[1, HEAD_DIM], pl.FP32],
    positions: pl.Tensor[[TOKENS], pl.INT32],
    rope_cos: pl.Tensor[[ROPE_ROWS, HALF_DIM], pl.FP32],
    rope_sin: pl.Tensor[[ROPE_ROWS, HALF_DIM], pl.FP32],
    q: pl.InOut[pl.Tensor[[KV_HEADS, QUERIES, HEAD_DIM], DTYPE]],
    k_new: pl.InOut[pl.Tensor[[KV_HEADS, TOKENS, HEAD_DIM], DTYPE]],
    v_new: pl.InOut[pl.Tensor[[KV_HEADS, TOKENS, HEAD_DIM], DTYPE]],
):
    q, k_new, v_new = rope(qkv, q_norm, k_norm, positions, rope_cos, rope_sin, q, k_new, v_new)


@pl.jit
def attention_block(
    q: pl.Tensor[[KV_HEADS, QUERIES, HEAD_DIM], DTYPE],
    k_new: pl.Tensor[[KV_HEADS, TOKENS, HEAD_DIM], DTYPE],
    v_new: pl.Tensor[[KV_HEADS, TOKENS, HEAD_DIM], DTYPE],
    k_cache: pl.InOut[pl.Tensor[[CACHE_ROWS, HEAD_DIM], DTYPE]],
    v_cache: pl.InOut[pl.Tensor[[CACHE_ROWS, HEAD_DIM], DTYPE]],
    block_table: pl.Tensor[[BATCH, SEQ_PAGES], pl.INT32],
    slot_mapping: pl.Tensor[[TOKENS], pl.INT32],
    cu_q: pl.Tensor[[BATCH_ENDS], pl.INT32],
    ctx: pl.Tensor[[BATCH], pl.INT32],
    qkv: pl.Tensor[[TOKENS, QKV_WIDTH], pl.FP32],
    out: pl.Out[pl.Tensor[[TOKENS, Q_WIDTH], DTYPE]],
):
    out = attention(q, k_new, v_new, k_cache, v_cache, block_table, slot_mapping, cu_q, ctx, qkv, out)


@pl.jit
def out_block(
    x: pl.Tensor[[TOKENS, Q_WIDTH], DTYPE],
    w_o: pl.Tensor[[HIDDEN, Q_WIDTH], DTYPE],
    residual: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    out = project_out(x, w_o, residual, out)


@pl.jit
def gate_up_block(
    x: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    w_gate_up: pl.Tensor[[GATE_UP_WIDTH, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, INTERMEDIATE], DTYPE]],
):
    out = project_gate_up(x, w_gate_up, out)


@pl.jit
def down_block(
    x: pl.Tensor[[TOKENS, INTERMEDIATE], DTYPE],
    w_down: pl.Tensor[[HIDDEN, INTERMEDIATE], DTYPE],
    residual: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    out = project_down(x, w_down, residual, out)


@pl.jit
def head_block(
    x: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    w_lm_head: pl.Tensor[[VOCAB_ROWS, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, VOCAB_ROWS], DTYPE]],
):
    out = project_logits(x, w_lm_head, out)


@pl.jit
def embed_block(
    tokens: pl.Tensor[[TOKENS], pl.INT32],
    table: pl.Tensor[[VOCAB_ROWS, HIDDEN], DTYPE],
    slot_mapping: pl.Tensor[[TOKENS], pl.INT32],
    cu_q: pl.Tensor[[BATCH_ENDS], pl.INT32],
    ctx: pl.Tensor[[BATCH], pl.INT32],
    out: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    out = embed(tokens, table, slot_mapping, cu_q, ctx, out)


@pl.jit
def greedy_block(
    logits: pl.Tensor[[TOKENS, VOCAB_ROWS], DTYPE],
    token: pl.Out[pl.Tensor[[TOKENS], pl.INT32]],
):
    token = greedy(logits, token)
