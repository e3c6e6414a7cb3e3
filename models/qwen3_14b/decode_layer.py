"""The Qwen3-14B decoder layer and its head, composed of blocks in the kernel language.

    python models/qwen3_14b/decode_layer.py --lm-head skip      compile, run and check it (see --help)

Equations: Qwen3 (arXiv:2505.09388) as in Hugging Face's `Qwen3ForCausalLM`; `reference.py` has them in torch,
with the layouts of all tensors.
"""

from __future__ import annotations

import sys

import pypto_models.language as pl
from models.common.layer import attention_layer
from models.common.norm import apply_final_norm
from models.common.projection import project_logits
from models.common.sizes import DTYPE, HEAD_DIM, KV_HEADS, Q_HEADS
from models.qwen3_14b.constants import cli_arguments as cli_arguments
from models.qwen3_14b.constants import cli_constants as cli_constants
from models.qwen3_14b.constants import cli_tuning as cli_tuning

HIDDEN = 256
INTERMEDIATE = 512
VOCAB_ROWS = 1024

TOKENS = pl.dynamic("TOKENS")  # rows of a step
BATCH = pl.dynamic("BATCH")  # sequences of a step
BATCH_ENDS = pl.dynamic("BATCH_ENDS")  # BATCH + 1
SEQ_PAGES = pl.dynamic("SEQ_PAGES")  # pages of the longest sequence
CACHE_ROWS = pl.dynamic("CACHE_ROWS")
ROPE_ROWS = pl.dynamic("ROPE_ROWS")

HALF_DIM = HEAD_DIM // 2
Q_WIDTH = Q_HEADS * HEAD_DIM
QKV_WIDTH = (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM
GATE_UP_WIDTH = 2 * INTERMEDIATE


@pl.jit
def decode_layer(
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
    final_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    rope_cos: pl.Tensor[[ROPE_ROWS, HALF_DIM], pl.FP32],
    rope_sin: pl.Tensor[[ROPE_ROWS, HALF_DIM], pl.FP32],
    next_hidden: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
    normed: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    """A decoder layer and the final norm of its output: the step without the LM head."""
    next_hidden = attention_layer(
        hidden, positions, slot_mapping, cu_q, ctx, block_table, k_cache, v_cache, w_qkv, w_o, w_gate_up,
        w_down, input_norm, post_norm, q_norm, k_norm, rope_cos, rope_sin, next_hidden,
    )  # fmt: skip
    normed = apply_final_norm(next_hidden, final_norm, normed)


@pl.jit
def decode_layer_with_head(
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
    final_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    w_lm_head: pl.Tensor[[VOCAB_ROWS, HIDDEN], DTYPE],
    rope_cos: pl.Tensor[[ROPE_ROWS, HALF_DIM], pl.FP32],
    rope_sin: pl.Tensor[[ROPE_ROWS, HALF_DIM], pl.FP32],
    next_hidden: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
    normed: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
    logits: pl.Out[pl.Tensor[[TOKENS, VOCAB_ROWS], DTYPE]],
):
    """A decoder layer, the final norm and the LM head."""
    next_hidden = attention_layer(
        hidden, positions, slot_mapping, cu_q, ctx, block_table, k_cache, v_cache, w_qkv, w_o, w_gate_up,
        w_down, input_norm, post_norm, q_norm, k_norm, rope_cos, rope_sin, next_hidden,
    )  # fmt: skip
    normed = apply_final_norm(next_hidden, final_norm, normed)
    logits = project_logits(normed, w_lm_head, logits)


def power_cases(config):
    """What `pypto-models power` runs on this file; see `power.py`."""
    from models.qwen3_14b import power

    return power.power_cases(config)


if __name__ == "__main__":
    from models.qwen3_14b.harness import main

    sys.exit(main())
