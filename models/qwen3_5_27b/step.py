"""The two kinds of layer of Qwen3.5-27B, each as one launch of a whole decode step."""

from __future__ import annotations

import pypto_models.language as pl
from models.common.layer import attention_layer
from models.common.programs import DecoderModel
from models.common.sizes import DTYPE, HEAD_DIM, SPAN, TAPS, V_DIM, V_HEADS
from models.qwen3_5_27b import weights
from models.qwen3_5_27b.constants import cli_arguments as cli_arguments
from models.qwen3_5_27b.constants import cli_constants as cli_constants
from models.qwen3_5_27b.constants import cli_tuning as cli_tuning
from models.qwen3_5_27b.constants import constants
from models.qwen3_5_27b.full_layer import (
    BATCH,
    BATCH_ENDS,
    CACHE_ROWS,
    GATE_UP_WIDTH,
    HALF_DIM,
    HIDDEN,
    INTERMEDIATE,
    Q_WIDTH,
    QKV_WIDTH,
    ROPE_ROWS,
    SEQ_PAGES,
    TOKENS,
)
from models.qwen3_5_27b.gdn_layer import CONV_DIM, CONV_ROWS, IN_WIDTH, STATE_ROWS, V_WIDTH, gdn_layer


@pl.jit
def full_step(
    hidden: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    positions: pl.Tensor[[TOKENS], pl.INT32],
    slot_mapping: pl.Tensor[[TOKENS], pl.INT32],
    cu_q: pl.Tensor[[BATCH_ENDS], pl.INT32],
    ctx: pl.Tensor[[BATCH], pl.INT32],
    block_table: pl.Tensor[[BATCH, SEQ_PAGES], pl.INT32],
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
    """One gated full-attention layer of a step."""
    next_hidden = attention_layer(
        hidden, positions, slot_mapping, cu_q, ctx, block_table, k_cache, v_cache, w_qkv, w_o, w_gate_up,
        w_down, input_norm, post_norm, q_norm, k_norm, rope_cos, rope_sin, next_hidden,
    )  # fmt: skip


@pl.jit
def gdn_step(
    hidden: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    slot_mapping: pl.Tensor[[TOKENS], pl.INT32],
    cu_q: pl.Tensor[[BATCH_ENDS], pl.INT32],
    ctx: pl.Tensor[[BATCH], pl.INT32],
    kept: pl.Tensor[[BATCH], pl.INT32],
    state_slots: pl.Tensor[[BATCH, SPAN], pl.INT32],
    conv_slots: pl.Tensor[[BATCH], pl.INT32],
    conv_state: pl.InOut[pl.Tensor[[CONV_ROWS, CONV_DIM], DTYPE]],
    state: pl.InOut[pl.Tensor[[STATE_ROWS, V_DIM], pl.FP32]],
    w_in: pl.Tensor[[IN_WIDTH, HIDDEN], DTYPE],
    conv_weight: pl.Tensor[[TAPS, CONV_DIM], DTYPE],
    a_log: pl.Tensor[[1, V_HEADS], pl.FP32],
    dt_bias: pl.Tensor[[1, V_HEADS], pl.FP32],
    gdn_norm: pl.Tensor[[1, V_DIM], pl.FP32],
    w_out: pl.Tensor[[HIDDEN, V_WIDTH], DTYPE],
    w_gate_up: pl.Tensor[[GATE_UP_WIDTH, HIDDEN], DTYPE],
    w_down: pl.Tensor[[HIDDEN, INTERMEDIATE], DTYPE],
    input_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    post_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    next_hidden: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    """One gated-delta-net layer of a step."""
    next_hidden = gdn_layer(
        hidden, slot_mapping, cu_q, ctx, kept, state_slots, conv_slots, conv_state, state, w_in, conv_weight,
        a_log, dt_bias, gdn_norm, w_out, w_gate_up, w_down, input_norm, post_norm, next_hidden,
    )  # fmt: skip


MODEL = DecoderModel(
    name="qwen3_5_27b",
    layers={"full": full_step, "gdn": gdn_step},
    constants=constants,
    checkpoints=weights,
)
"""Everything that decoding needs of this model."""
