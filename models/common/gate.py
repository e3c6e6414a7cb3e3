"""The output gate of attention: the sigmoid of a projection of its own, before the output projection."""

from __future__ import annotations

import pypto_models.language as pl
from models.common.norm import rounded
from models.common.projection import sigmoid
from models.common.sizes import DTYPE

GATE_TILES = 1  # blocks that share a row; a tiling file sets it per target


@pl.jit.inline
def apply_gate(attended: pl.Tensor, projected: pl.Tensor, out: pl.Tensor):
    """`out` [T, Q D] = rnd(`attended` * rnd(sigmoid(rnd(gate)))), gate = the first columns of `projected`.

    `attended` and `out` have the model's element type, `projected` [T, N] is fp32.  A zero row stays zero.
    """
    width = attended.shape[1] // GATE_TILES
    for item in pl.spmd(pl.tensor.dim(attended, 0) * GATE_TILES, name_hint="attention_gate"):
        place = [item // GATE_TILES, item % GATE_TILES * width]
        gate = rounded(sigmoid(rounded(pl.slice(projected, [1, width], place))))
        heads = pl.cast(pl.slice(attended, [1, width], place), pl.FP32)
        pl.assemble(out, pl.cast(pl.mul(heads, gate), DTYPE, mode="rint"), place)
    return out
