"""RMSNorm (Zhang and Sennrich, arXiv:1910.07467), in the Llama style or the Gemma style.

Llama: w * rnd(x_hat), two roundings.  Gemma (`GEMMA_NORM`): x_hat * (1 + w), one rounding.
"""

from __future__ import annotations

import pypto_models.language as pl
from models.common.sizes import DTYPE, EPS, GEMMA_NORM


@pl.jit.inline
def rounded(x: pl.Tensor):
    """`x` fp32, rounded to the model's element type and back."""
    return pl.cast(pl.cast(x, DTYPE, mode="rint"), pl.FP32)


@pl.jit.inline
def rms_norm_rows(x: pl.Tensor, weight: pl.Tensor):
    """RMSNorm of each row: `x` [M, N] fp32, `weight` [1, N] fp32 -> [M, N] fp32 before its last rounding.

    x_hat = x * rsqrt(mean(x^2) + eps); then w * rnd(x_hat), or x_hat * (1 + w).
    """
    mean_square = pl.mul(pl.row_sum(pl.mul(x, x)), 1.0 / x.shape[1])
    x_hat = pl.row_expand_mul(x, pl.rsqrt(pl.add(mean_square, EPS)))
    if GEMMA_NORM:
        out = pl.col_expand_mul(x_hat, pl.add(weight, 1.0))
    else:
        out = pl.col_expand_mul(rounded(x_hat), weight)
    return out


@pl.jit.inline
def norm_row(x: pl.Tensor, weight: pl.Tensor, out: pl.Tensor, t: pl.Scalar[pl.INDEX]):
    """Row `t` of `out` [T, H] = RMSNorm of row `t` of `x` [T, H], both in the model's element type."""
    width = x.shape[1]
    row = pl.cast(pl.slice(x, [1, width], [t, 0]), pl.FP32)
    normed = rms_norm_rows(row, pl.slice(weight, [1, width], [0, 0]))
    pl.assemble(out, pl.cast(normed, DTYPE, mode="rint"), [t, 0])


@pl.jit.inline
def apply_post_norm(x: pl.Tensor, weight: pl.Tensor, out: pl.Tensor):
    """`out` [T, H] = RMSNorm(`x`) before the MLP; one block per row."""
    for t in pl.spmd(pl.tensor.dim(x, 0), name_hint="post_norm"):
        norm_row(x, weight, out, t)
    return out


@pl.jit.inline
def apply_final_norm(x: pl.Tensor, weight: pl.Tensor, out: pl.Tensor):
    """`out` [T, H] = RMSNorm(`x`) after the last layer; one block per row."""
    for t in pl.spmd(pl.tensor.dim(x, 0), name_hint="final_norm"):
        norm_row(x, weight, out, t)
    return out
