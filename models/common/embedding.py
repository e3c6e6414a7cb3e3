"""The ends of a decode step: token embedding, and greedy choice of the next token."""

from __future__ import annotations

import pypto_models.language as pl
from models.common.rows import sequence_of
from models.common.sizes import DTYPE, ROWS, VOCAB

# Tile sizes; a tiling file sets them per target
GREEDY_N = 1024  # logits of a row that a block searches
GREEDY_ROWS = 16  # rows of a block


@pl.jit.inline
def embed(
    tokens: pl.Tensor,
    table: pl.Tensor,
    slot_mapping: pl.Tensor,
    cu_q: pl.Tensor,
    ctx: pl.Tensor,
    out: pl.Tensor,
):
    """`out` [T, H] = row `tokens[t]` of `table` [V, H]; dead rows become zeros, whatever their token."""
    width = table.shape[1]
    for t in pl.spmd(pl.tensor.dim(out, 0), name_hint="embed"):
        if sequence_of(t, slot_mapping, cu_q, ctx) >= 0:
            token = pl.cast(pl.read(tokens, [t]), pl.INDEX)
            pl.assemble(out, pl.slice(table, [1, width], [token, 0]), [t, 0])
        else:
            pl.assemble(out, pl.full([1, width], DTYPE, 0.0), [t, 0])
    return out


@pl.jit.inline
def greedy(logits: pl.Tensor, token: pl.Tensor):
    """`token` [T] int32 = the column of the largest of the first VOCAB `logits` [T, V], the lowest if equal.

    Blocks search chunks of the vocabulary; then the chunks are merged in order, and only a larger maximum
    replaces an earlier one.
    """
    rows = pl.tensor.dim(logits, 0)
    chunks = (VOCAB + GREEDY_N - 1) // GREEDY_N
    part_max = pl.create_tensor([chunks * ROWS, 1], pl.FP32)
    part_token = pl.create_tensor([chunks * ROWS, 1], pl.INT32)
    tiles = (rows + GREEDY_ROWS - 1) // GREEDY_ROWS

    for block in pl.spmd(tiles * chunks, name_hint="greedy"):
        chunk = block // tiles
        t = block % tiles * GREEDY_ROWS
        live = pl.min(rows - t, GREEDY_ROWS)
        column = chunk * GREEDY_N
        found = pl.slice(
            logits, [GREEDY_ROWS, GREEDY_N], [t, column], valid_shape=[live, pl.min(VOCAB - column, GREEDY_N)]
        )
        place = chunk * ROWS + t
        pl.assemble(part_max, pl.cast(pl.row_max(found), pl.FP32), [place, 0])
        pl.assemble(part_token, pl.add(pl.row_argmax(found), pl.cast(column, pl.INT32)), [place, 0])

    column_out = pl.reshape(token, [rows, 1])
    for tile in pl.spmd(tiles, name_hint="greedy_merge"):
        t = tile * GREEDY_ROWS
        live = pl.min(rows - t, GREEDY_ROWS)
        best = pl.slice(part_max, [GREEDY_ROWS, 1], [t, 0], valid_shape=[live, 1])
        best_token = pl.slice(part_token, [GREEDY_ROWS, 1], [t, 0], valid_shape=[live, 1])
        for chunk in pl.range(1, chunks):
            place = chunk * ROWS + t
            found = pl.slice(part_max, [GREEDY_ROWS, 1], [place, 0], valid_shape=[live, 1])
            found_token = pl.slice(part_token, [GREEDY_ROWS, 1], [place, 0], valid_shape=[live, 1])
            larger = pl.cast(pl.cmp(found, best, cmp_type=4), pl.INT32, mode="rint")
            best_token = pl.add(best_token, pl.mul(larger, pl.sub(found_token, best_token)))
            best = pl.maximum(best, found)
        pl.assemble(column_out, best_token, [t, 0])
    return token
