"""The output gate of attention: the sigmoid of a projection of its own, before the output projection."""

from __future__ import annotations

import pypto_models.language as pl
from models.common.norm import rounded
from models.common.projection import sigmoid
from models.common.sizes import DTYPE


@pl.jit.inline
def apply_gate(attended: pl.Tensor, projected: pl.Tensor, out: pl.Tensor):
    """`out` [T, Q D] = rnd(`attended` * rnd(sigmoid(rnd(gate)))), gate = the first columns of `projected`.

    `attended` and `out` have the model's element type, `projected` [T, N] is fp32.  A zero row stays zero.
    """
    width = attended.shape[1]
    for t in pl.spmd(pl.tensor.dim(attended, 0), name_hint="attention_gate"):
        gate = rounded(sigmoid(rounded(pl.slice(projected, [1, width], [t, 0]))))
        heads = pl.cast(pl.slice(attended, [1, width], [t, 0]), pl.FP32)
        pl.assemble(out, pl.cast(pl.mul(heads, gate), DTYPE, mode="rint"), [t, 0])
    return out
