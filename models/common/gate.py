"""The output gate of attention: the sigmoid of a projection of its own, before the output projection."""

from __future__ import annotations

import pypto_models.language as pl
from models.common.norm import rounded
from models.common.projection import sigmoid
from models.common.sizes import DTYPE


@pl.jit.inline
def gated(attended: pl.Tensor, gate: pl.Tensor):
    """rnd(rnd(`attended`) * rnd(sigmoid(rnd(`gate`)))) of two tiles [M, N] fp32, in the model's element type.

    A zero row stays zero.
    """
    return pl.cast(pl.mul(rounded(attended), rounded(sigmoid(rounded(gate)))), DTYPE, mode="rint")
