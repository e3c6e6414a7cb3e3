"""The layer of Qwen3-14B as one launch of a whole decode step."""

from __future__ import annotations

import pypto_models.language as pl
from models.common.layer import attention_layer
from models.common.programs import DecoderModel
from models.common.sizes import DTYPE, HEAD_DIM
from models.qwen3_14b import weights
from models.qwen3_14b.constants import cli_arguments as cli_arguments
from models.qwen3_14b.constants import cli_constants as cli_constants
from models.qwen3_14b.constants import cli_tuning as cli_tuning
from models.qwen3_14b.constants import constants
from models.qwen3_14b.decode_layer import (
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


@pl.jit
def layer_step(
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
    """One decoder layer of a step."""
    next_hidden = attention_layer(
        hidden, positions, slot_mapping, cu_q, ctx, block_table, k_cache, v_cache, w_qkv, w_o, w_gate_up,
        w_down, input_norm, post_norm, q_norm, k_norm, rope_cos, rope_sin, next_hidden,
    )  # fmt: skip


MODEL = DecoderModel(
    name="qwen3_14b",
    layers={"full": layer_step},
    constants=constants,
    checkpoints=weights,
)
"""Everything that decoding needs of this model."""
