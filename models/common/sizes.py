"""Constants of the blocks.  A model gives its own values with `compile(..., constants=...)`.

The values here are those of a small model, so that every block also stands alone in a test.
"""

from __future__ import annotations

import pypto_models.language as pl

# --- model
DTYPE = pl.BF16  # residual stream, weights, caches
EPS = 1e-6  # of every RMSNorm
GEMMA_NORM = False  # RMSNorm weights are centred on 0 and the kernel adds 1
Q_HEADS = 10
KV_HEADS = 2
GROUP = 5  # query heads per KV head
HEAD_DIM = 64
HALF_DIM = 32  # RoPE rotates pairs (i, i + HALF_DIM), i < HALF_DIM; dims from 2 HALF_DIM on pass through
GATE_HEADS = 0  # heads of an output gate before the query heads: Q_HEADS or none
SCALE = 0.125  # HEAD_DIM ** -0.5
PAGE = 16  # tokens per KV page
MAX_BATCH = 16  # sequences in one step, at most
SPAN = 1  # rows of one sequence in one step, at most
VOCAB = 1000  # tokens of the vocabulary, without its padding

# --- gated delta net
K_HEADS = 2  # query and key heads
V_HEADS = 6  # value heads, a multiple
K_DIM = 32
V_DIM = 64
TAPS = 4  # of the causal convolution, the current token included
CONV_WIDTH = TAPS - 2 + SPAN  # columns of a convolution state

# --- tile
ROWS = 16  # rows of a matmul tile: all rows of the step, padded
GROUP_ROWS = 16  # SPAN * GROUP, padded to a legal matmul height
V_TILE = 64  # columns of a recurrent state that one block owns

# --- attention
TARGET_RUNS = 4  # equal shares of all pages, each an item per KV head, that fill the cores
KV_TILE = 16  # tokens of K and V that one step of a run takes: a divisor of PAGE
