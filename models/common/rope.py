"""Per-head QK norm, rotary embedding (Su et al., arXiv:2104.09864, rotate-half form), paged KV write."""

from __future__ import annotations

import pypto_models.language as pl
from models.common.norm import rms_norm_rows, rounded
from models.common.rows import sequence_of
from models.common.sizes import DTYPE, HALF_DIM, HEAD_DIM, KV_HEADS, KV_ROWS, PAGE, Q_HEADS, Q_ROWS


@pl.jit.inline
def rotate(low: pl.Tensor, high: pl.Tensor, cos: pl.Tensor, sin: pl.Tensor):
    """Rotate the pairs (low_i, high_i), both [M, D / 2] fp32, by the angles of one position [1, D / 2].

    Every product and every sum is rounded to the element type: y_low = low cos - high sin,
    y_high = high cos + low sin.
    """
    new_low = pl.sub(rounded(pl.col_expand_mul(low, cos)), rounded(pl.col_expand_mul(high, sin)))
    new_high = pl.add(rounded(pl.col_expand_mul(high, cos)), rounded(pl.col_expand_mul(low, sin)))
    return pl.cast(new_low, DTYPE, mode="rint"), pl.cast(new_high, DTYPE, mode="rint")


@pl.jit.inline
def norm_rotate(heads: pl.Tensor, weight: pl.Tensor, cos: pl.Tensor, sin: pl.Tensor):
    """Norm each head [M, D] fp32 with `weight` [1, D], then rotate; two halves [M, D / 2]."""
    normed = rounded(rms_norm_rows(heads, weight))
    low = pl.slice(normed, [heads.shape[0], HALF_DIM], [0, 0])
    high = pl.slice(normed, [heads.shape[0], HALF_DIM], [0, HALF_DIM])
    return rotate(low, high, cos, sin)


@pl.jit.inline
def rope_kv_write(
    qkv: pl.Tensor,
    q_weight: pl.Tensor,
    k_weight: pl.Tensor,
    positions: pl.Tensor,
    slot_mapping: pl.Tensor,
    cu_q: pl.Tensor,
    ctx: pl.Tensor,
    rope_cos: pl.Tensor,
    rope_sin: pl.Tensor,
    k_cache: pl.Tensor,
    v_cache: pl.Tensor,
    q: pl.Tensor,
):
    """Norm and rotate the q and k heads of every live row; write q, and k and v at the row's slot.

    `qkv` [T, (Q + 2 KV) D] fp32; `q` [T Q, D]; caches [pages KV PAGE, D] with row
    (page KV + head) PAGE + offset, slot = page PAGE + offset.  Dead rows write nothing.
    """
    rows = pl.tensor.dim(qkv, 0)
    heads = pl.reshape(qkv, [rows * (Q_HEADS + 2 * KV_HEADS), HEAD_DIM])
    for t in pl.spmd(rows, name_hint="rope_kv_write"):
        if sequence_of(t, slot_mapping, cu_q, ctx) >= 0:
            position = pl.cast(pl.read(positions, [t]), pl.INDEX)
            slot = pl.cast(pl.read(slot_mapping, [t]), pl.INDEX)
            cos = pl.slice(rope_cos, [1, HALF_DIM], [position, 0])
            sin = pl.slice(rope_sin, [1, HALF_DIM], [position, 0])

            first = t * (Q_HEADS + 2 * KV_HEADS)
            q_heads = pl.slice(heads, [Q_ROWS, HEAD_DIM], [first, 0], valid_shape=[Q_HEADS, HEAD_DIM])
            q_low, q_high = norm_rotate(rounded(q_heads), q_weight, cos, sin)
            pl.assemble(q, q_low, [t * Q_HEADS, 0])
            pl.assemble(q, q_high, [t * Q_HEADS, HALF_DIM])

            first = first + Q_HEADS
            k_heads = pl.slice(heads, [KV_ROWS, HEAD_DIM], [first, 0], valid_shape=[KV_HEADS, HEAD_DIM])
            k_low, k_high = norm_rotate(rounded(k_heads), k_weight, cos, sin)
            first = first + KV_HEADS
            v_heads = pl.slice(heads, [KV_ROWS, HEAD_DIM], [first, 0], valid_shape=[KV_HEADS, HEAD_DIM])
            v_new = pl.cast(v_heads, DTYPE, mode="rint")
            for h in pl.range(KV_HEADS):
                row = (slot // PAGE * KV_HEADS + h) * PAGE + slot % PAGE
                pl.assemble(k_cache, pl.slice(k_low, [1, HALF_DIM], [h, 0]), [row, 0])
                pl.assemble(k_cache, pl.slice(k_high, [1, HALF_DIM], [h, 0]), [row, HALF_DIM])
                pl.assemble(v_cache, pl.slice(v_new, [1, HEAD_DIM], [h, 0]), [row, 0])
    return q
