"""The two ends of a whole decode step, as kernels of their own: embedding, and head with greedy choice.

Between them a step launches one kernel for each layer, `models/*/step.py`; weights are arguments, so that all
layers of one kind are one program.
"""

from __future__ import annotations

import pypto_models.language as pl
from models.common.embedding import embed, greedy
from models.common.norm import apply_final_norm
from models.common.projection import project_logits
from models.common.sizes import DTYPE, VOCAB

HIDDEN = 256
VOCAB_ROWS = 1024

TOKENS = pl.dynamic("TOKENS")  # rows of a step
BATCH = pl.dynamic("BATCH")  # sequences of a step
BATCH_ENDS = pl.dynamic("BATCH_ENDS")  # BATCH + 1


@pl.jit
def embed_step(
    tokens: pl.Tensor[[TOKENS], pl.INT32],
    table: pl.Tensor[[VOCAB, HIDDEN], DTYPE],
    slot_mapping: pl.Tensor[[TOKENS], pl.INT32],
    cu_q: pl.Tensor[[BATCH_ENDS], pl.INT32],
    ctx: pl.Tensor[[BATCH], pl.INT32],
    hidden: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    """What enters the first layer: a row of `table` for each live row, zeros for the others."""
    hidden = embed(tokens, table, slot_mapping, cu_q, ctx, hidden)


@pl.jit
def head_step(
    hidden: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    final_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    w_lm_head: pl.Tensor[[VOCAB_ROWS, HIDDEN], DTYPE],
    logits: pl.Out[pl.Tensor[[TOKENS, VOCAB_ROWS], DTYPE]],
    next_tokens: pl.Out[pl.Tensor[[TOKENS], pl.INT32]],
):
    """What follows the last layer: final norm, LM head, and the token with the largest logit of each row."""
    normed = pl.create_tensor([pl.tensor.dim(hidden, 0), HIDDEN], DTYPE)
    normed = apply_final_norm(hidden, final_norm, normed)
    logits = project_logits(normed, w_lm_head, logits)
    next_tokens = greedy(logits, next_tokens)
