"""Per-head QK norm and rotary embedding (Su et al., arXiv:2104.09864, rotate-half form)."""

from __future__ import annotations

import pypto_models.language as pl
from models.common.norm import rms_norm_rows, rounded
from models.common.sizes import (
    DTYPE,
    GATE_HEADS,
    GROUP,
    HALF_DIM,
    HEAD_DIM,
    KV_HEADS,
    Q_HEADS,
)


@pl.jit.inline
def side_by_side(left: pl.Tensor, right: pl.Tensor):
    """`left` and `right`, both [M, R] fp32, as one tile [M, 2 R]."""
    rows, cols = left.shape[0], left.shape[1]
    both = pl.create_tensor([rows, 2 * cols], pl.FP32)
    both = pl.assemble(both, left, [0, 0])
    return pl.assemble(both, right, [0, cols])


@pl.jit.inline
def norm_rotate(heads: pl.Tensor, weight: pl.Tensor, cos: pl.Tensor, sin: pl.Tensor):
    """Norm each head [M, D] fp32 with `weight` [1, D], then rotate it by the angles of one position.

    Of the normed dims, the pairs (low_i, high_i) = (x_i, x_{i + R}), i < R, become low cos - high sin and
    high cos + low sin; the dims from 2 R on stay.  `cos` and `sin` [1, 2 R] hold the R angles twice.  Every
    product and every sum is rounded to the element type.
    """
    rows = heads.shape[0]
    normed = rounded(rms_norm_rows(heads, weight))
    low = pl.slice(normed, [rows, HALF_DIM], [0, 0])
    high = pl.slice(normed, [rows, HALF_DIM], [0, HALF_DIM])
    across = side_by_side(pl.neg(high), low)
    straight = pl.slice(normed, [rows, 2 * HALF_DIM], [0, 0])
    turned = pl.add(rounded(pl.col_expand_mul(straight, cos)), rounded(pl.col_expand_mul(across, sin)))
    return pl.cast(pl.assemble(normed, turned, [0, 0]), DTYPE, mode="rint")


@pl.jit.inline
def rope(
    qkv: pl.Tensor,
    q_weight: pl.Tensor,
    k_weight: pl.Tensor,
    positions: pl.Tensor,
    rope_cos: pl.Tensor,
    rope_sin: pl.Tensor,
    q: pl.Tensor,
    k_new: pl.Tensor,
    v_new: pl.Tensor,
):
    """Norm and rotate the q and k heads of every row, and round v; zero rows become zero rows.

    A position beyond the table is taken for that of its end.

    `qkv` [T, (G + Q + 2 KV) D] fp32 with G gate heads first, which are left alone.  `q` [KV, T GROUP, D] has
    row t GROUP + g of each KV head: what the rows of a sequence ask of one KV head is one tile.  `k_new` and
    `v_new` [KV, T, D] are what the step adds to the caches.
    """
    rows = pl.tensor.dim(qkv, 0)
    row_heads = GATE_HEADS + Q_HEADS + 2 * KV_HEADS
    height = (GROUP + 7) // 8 * 8  # a column of 8 fp32 is the least that aligns
    heads = pl.reshape(qkv, [rows * row_heads, HEAD_DIM])
    for item in pl.spmd(rows * KV_HEADS, name_hint="rope"):
        t = item // KV_HEADS
        h = item % KV_HEADS
        # A dead row's position may be anything: its zeros stay zeros by the angles of any row of the table
        known = pl.min(pl.cast(pl.read(positions, [t]), pl.INDEX), pl.tensor.dim(rope_cos, 0) - 1)
        position = pl.max(known, 0)
        half_cos = pl.slice(rope_cos, [1, HALF_DIM], [position, 0])
        half_sin = pl.slice(rope_sin, [1, HALF_DIM], [position, 0])
        cos = side_by_side(half_cos, half_cos)
        sin = side_by_side(half_sin, half_sin)

        first = t * row_heads + GATE_HEADS
        q_first = first + h * GROUP
        q_heads = pl.slice(heads, [height, HEAD_DIM], [q_first, 0], valid_shape=[GROUP, HEAD_DIM])
        q_turned = norm_rotate(rounded(pl.fillpad(q_heads)), q_weight, cos, sin)
        group = pl.reshape(pl.slice(q_turned, [GROUP, HEAD_DIM], [0, 0]), [1, GROUP, HEAD_DIM])
        pl.assemble(q, group, [h, t * GROUP, 0])

        k_head = pl.slice(heads, [8, HEAD_DIM], [first + Q_HEADS + h, 0], valid_shape=[1, HEAD_DIM])
        k_turned = norm_rotate(rounded(pl.fillpad(k_head)), k_weight, cos, sin)
        key = pl.reshape(pl.slice(k_turned, [1, HEAD_DIM], [0, 0]), [1, 1, HEAD_DIM])
        pl.assemble(k_new, key, [h, t, 0])
        v_head = pl.slice(heads, [1, HEAD_DIM], [first + Q_HEADS + KV_HEADS + h, 0])
        value = pl.cast(v_head, DTYPE, mode="rint")
        pl.assemble(v_new, pl.reshape(value, [1, 1, HEAD_DIM]), [h, t, 0])
    return q, k_new, v_new
