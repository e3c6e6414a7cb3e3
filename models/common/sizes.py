"""Constants of the blocks.  A model gives its own values with `compile(..., constants=...)`.

The values here are those of a small model, so that every block also stands alone in a test.
"""

from __future__ import annotations

import pypto_models.language as pl

# --- model
DTYPE = pl.BF16  # residual stream, weights, caches
EPS = 1e-6  # of every RMSNorm
Q_HEADS = 10
KV_HEADS = 2
GROUP = 5  # query heads per KV head
HEAD_DIM = 64
HALF_DIM = 32  # RoPE rotates pairs (i, i + HALF_DIM)
SCALE = 0.125  # HEAD_DIM ** -0.5
PAGE = 16  # tokens per KV page
MAX_BATCH = 16  # sequences in one step, at most

# --- tile
ROWS = 16  # rows of a matmul tile: the batch, padded
Q_ROWS = 16  # Q_HEADS, padded to a legal tile height
KV_ROWS = 8  # KV_HEADS, padded to a legal tile height
GROUP_ROWS = 16  # GROUP, padded to a legal matmul height

# --- attention
TARGET_RUNS = 4  # runs per KV head that fill the cores
