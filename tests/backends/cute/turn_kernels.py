"""A small kernel whose loop is taken in turns: attention of one query tile over the tiles of a table."""

from __future__ import annotations

import pypto_models.language as pl

ENTRIES = pl.dynamic("ENTRIES")
ROWS = pl.dynamic("ROWS")
DIM = 64
TILE = 32
DTYPE = pl.BF16
LOWEST = -3.0e38


@pl.jit
def attend(
    x: pl.Tensor[[32, DIM], DTYPE],
    keys: pl.Tensor[[ROWS, DIM], DTYPE],
    values: pl.Tensor[[ROWS, DIM], DTYPE],
    table: pl.Tensor[[2, ENTRIES], pl.INT32],
    y: pl.Out[pl.Tensor[[32, DIM], pl.FP32]],
):
    """y = softmax(-x keys^T) values, 16 rows to a block, over the tiles that row `b` of `table` lists."""
    q = pl.create_tensor([32, DIM], DTYPE)
    for b in pl.spmd(32, name_hint="negate"):
        pl.assemble(q, pl.neg(pl.slice(x, [1, DIM], [b, 0])), [b, 0])
    for b in pl.spmd(2, name_hint="attend"):
        query = pl.slice(q, [16, DIM], [b * 16, 0])
        m = pl.full([16, 1], pl.FP32, LOWEST)
        total = pl.full([16, 1], pl.FP32, 0.0)
        acc = pl.full([16, DIM], pl.FP32, 0.0)
        for p in pl.pipeline(0, pl.tensor.dim(table, 1), stage=2):
            row = pl.cast(pl.read(table, [b, p]), pl.INDEX) * TILE
            k = pl.slice(keys, [TILE, DIM], [row, 0])
            v = pl.slice(values, [TILE, DIM], [row, 0])
            scores = pl.matmul(query, k, out_dtype=pl.FP32, b_trans=True)
            new = pl.maximum(m, pl.row_max(scores))
            decay = pl.exp(pl.sub(m, new))
            weights = pl.exp(pl.row_expand_sub(scores, new))
            total = pl.add(pl.mul(total, decay), pl.row_sum(weights))
            part = pl.matmul(pl.cast(weights, DTYPE, mode="rint"), v, out_dtype=pl.FP32)
            acc = pl.add(pl.row_expand_mul(acc, decay), part)
            m = new
        pl.assemble(y, pl.row_expand_div(acc, total), [b * 16, 0])
