"""The gated-delta-net layer of Qwen3.5-27B, with and without the model's head, in the kernel language.

Equations: `reference.py` has them in torch, with the layouts of all tensors; the blocks are in
`models/common`, those that only this layer has in `delta_net.py`.
"""

from __future__ import annotations

import pypto_models.language as pl
from models.common.delta_net import delta_rule, gdn_conv, gdn_gates, gdn_out_norm
from models.common.layer import mlp
from models.common.norm import apply_final_norm
from models.common.projection import (
    project_logits,
    project_out,
    project_qkv,
)
from models.common.rows import enter
from models.common.sizes import DTYPE, K_DIM, K_HEADS, SPAN, TAPS, V_DIM, V_HEADS
from models.qwen3_5_27b.constants import cli_arguments as cli_arguments
from models.qwen3_5_27b.constants import cli_constants as cli_constants
from models.qwen3_5_27b.constants import cli_tuning as cli_tuning

HIDDEN = 256
INTERMEDIATE = 512
VOCAB_ROWS = 1024

TOKENS = pl.dynamic("TOKENS")  # rows of a step
BATCH = pl.dynamic("BATCH")  # sequences of a step
BATCH_ENDS = pl.dynamic("BATCH_ENDS")  # BATCH + 1
STATE_ROWS = pl.dynamic("STATE_ROWS")
CONV_ROWS = pl.dynamic("CONV_ROWS")

V_WIDTH = V_HEADS * V_DIM
CONV_DIM = 2 * K_HEADS * K_DIM + V_WIDTH  # channels of the convolution: q, k and v
IN_WIDTH = CONV_DIM + V_WIDTH + 2 * V_HEADS  # q, k, v, z, b and a
GATE_UP_WIDTH = 2 * INTERMEDIATE


@pl.jit.inline
def gdn_layer(
    hidden: pl.Tensor,
    slot_mapping: pl.Tensor,
    cu_q: pl.Tensor,
    ctx: pl.Tensor,
    kept: pl.Tensor,
    state_slots: pl.Tensor,
    conv_slots: pl.Tensor,
    conv_state: pl.Tensor,
    state: pl.Tensor,
    w_in: pl.Tensor,
    conv_weight: pl.Tensor,
    a_log: pl.Tensor,
    dt_bias: pl.Tensor,
    gdn_norm: pl.Tensor,
    w_out: pl.Tensor,
    w_gate_up: pl.Tensor,
    w_down: pl.Tensor,
    input_norm: pl.Tensor,
    post_norm: pl.Tensor,
    next_hidden: pl.Tensor,
):
    """One layer: writes `next_hidden` [T, H], and the states of the live sequences."""
    rows = pl.tensor.dim(hidden, 0)
    width = hidden.shape[1]

    # Scope 1: input norm and the stacked q, k, v, z, b, a projection
    residual = pl.create_tensor([rows, width], DTYPE)
    normed = pl.create_tensor([rows, width], DTYPE)
    projected = pl.create_tensor([rows, w_in.shape[0]], pl.FP32)
    residual, normed = enter(hidden, input_norm, slot_mapping, cu_q, ctx, residual, normed)
    projected = project_qkv(normed, w_in, projected)

    # Scope 2: gates, convolution, delta rule, gated norm, output projection and its residual
    decay = pl.create_tensor([rows, V_HEADS], pl.FP32)
    beta = pl.create_tensor([rows, V_HEADS], pl.FP32)
    unit = pl.create_tensor([rows, 2 * K_HEADS * K_DIM], pl.FP32)
    values = pl.create_tensor([rows, w_out.shape[1]], DTYPE)
    recalled = pl.create_tensor([rows, w_out.shape[1]], DTYPE)
    gated = pl.create_tensor([rows, w_out.shape[1]], DTYPE)
    middle = pl.create_tensor([rows, width], DTYPE)
    decay, beta = gdn_gates(projected, a_log, dt_bias, decay, beta)
    unit, values = gdn_conv(
        projected, conv_weight, slot_mapping, cu_q, ctx, kept, conv_slots, conv_state, unit, values
    )
    recalled = delta_rule(
        unit, values, decay, beta, slot_mapping, cu_q, ctx, kept, state_slots, state, recalled
    )
    gated = gdn_out_norm(recalled, projected, gdn_norm, slot_mapping, cu_q, ctx, gated)
    middle = project_out(gated, w_out, residual, middle)

    # Scope 3: MLP and its residual
    return mlp(middle, post_norm, w_gate_up, w_down, next_hidden)


@pl.jit
def gdn_decode_layer(
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
    final_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    next_hidden: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
    normed: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    """A gated-delta-net layer and the final norm of its output: the step without the LM head."""
    next_hidden = gdn_layer(
        hidden, slot_mapping, cu_q, ctx, kept, state_slots, conv_slots, conv_state, state, w_in, conv_weight,
        a_log, dt_bias, gdn_norm, w_out, w_gate_up, w_down, input_norm, post_norm, next_hidden,
    )  # fmt: skip
    normed = apply_final_norm(next_hidden, final_norm, normed)


@pl.jit
def gdn_decode_layer_with_head(
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
    final_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    w_lm_head: pl.Tensor[[VOCAB_ROWS, HIDDEN], DTYPE],
    next_hidden: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
    normed: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
    logits: pl.Out[pl.Tensor[[TOKENS, VOCAB_ROWS], DTYPE]],
):
    """A gated-delta-net layer, the final norm and the LM head."""
    next_hidden = gdn_layer(
        hidden, slot_mapping, cu_q, ctx, kept, state_slots, conv_slots, conv_state, state, w_in, conv_weight,
        a_log, dt_bias, gdn_norm, w_out, w_gate_up, w_down, input_norm, post_norm, next_hidden,
    )  # fmt: skip
    normed = apply_final_norm(next_hidden, final_norm, normed)
    logits = project_logits(normed, w_lm_head, logits)
