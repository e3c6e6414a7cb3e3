"""Which rows of a step are live.  That is device data, decided inside the kernels.

Sequence s owns the rows cu_q[s] <= t < cu_q[s + 1].  Those before its first negative slot are live, none if
ctx[s] is 0; ctx counts them, so that row j of n live rows stands at KV index ctx - n + j.  Every other row is
dead: it enters the layer as zeros, and every block maps a zero row to a zero row.
"""

from __future__ import annotations

import pypto_models.language as pl
from models.common.norm import rms_norm_rows
from models.common.sizes import DTYPE


@pl.jit.inline
def rows_of(s: pl.Scalar[pl.INDEX], slot_mapping: pl.Tensor, cu_q: pl.Tensor, ctx: pl.Tensor):
    """Live rows of sequence `s`: its leading rows that have a slot, none without context."""
    live = 0
    if pl.read(ctx, [s]) > 0:
        first = pl.cast(pl.read(cu_q, [s]), pl.INDEX)
        end = pl.cast(pl.read(cu_q, [s + 1]), pl.INDEX)
        for t in pl.range(first, end):
            if pl.read(slot_mapping, [t]) >= 0 and first + live == t:
                live = live + 1
    return live


@pl.jit.inline
def sequence_of(t: pl.Scalar[pl.INDEX], slot_mapping: pl.Tensor, cu_q: pl.Tensor, ctx: pl.Tensor):
    """The sequence that owns live row `t`, or -1 if the row is dead."""
    owner = -1
    for s in pl.range(pl.tensor.dim(ctx, 0)):
        first = pl.cast(pl.read(cu_q, [s]), pl.INDEX)
        end = pl.cast(pl.read(cu_q, [s + 1]), pl.INDEX)
        if first <= t and t < end:
            owner = s
    found = -1
    if owner >= 0:
        if t < pl.cast(pl.read(cu_q, [owner]), pl.INDEX) + rows_of(owner, slot_mapping, cu_q, ctx):
            found = owner
    return found


@pl.jit.inline
def context_of(s: pl.Scalar[pl.INDEX], slot_mapping: pl.Tensor, cu_q: pl.Tensor, ctx: pl.Tensor):
    """Tokens of sequence `s`, its live rows included; 0 if it has none."""
    first = pl.cast(pl.read(cu_q, [s]), pl.INDEX)
    end = pl.cast(pl.read(cu_q, [s + 1]), pl.INDEX)
    # Read whatever the answer, so that the reads of many sequences overlap
    slot = pl.read(slot_mapping, [pl.min(first, pl.tensor.dim(slot_mapping, 0) - 1)])
    length = pl.cast(pl.read(ctx, [s]), pl.INDEX)
    tokens = 0
    if first < end and slot >= 0:
        tokens = length
    return tokens


@pl.jit.inline
def enter(
    hidden: pl.Tensor,
    weight: pl.Tensor,
    slot_mapping: pl.Tensor,
    cu_q: pl.Tensor,
    ctx: pl.Tensor,
    residual: pl.Tensor,
    normed: pl.Tensor,
):
    """`residual` [T, H] = `hidden` with dead rows zeroed; `normed` [T, H] = RMSNorm(`residual`)."""
    width = hidden.shape[1]
    for t in pl.spmd(pl.tensor.dim(hidden, 0), name_hint="input_norm"):
        if sequence_of(t, slot_mapping, cu_q, ctx) >= 0:
            row = pl.slice(hidden, [1, width], [t, 0])
            pl.assemble(residual, row, [t, 0])
            out = rms_norm_rows(pl.cast(row, pl.FP32), pl.slice(weight, [1, width], [0, 0]))
            pl.assemble(normed, pl.cast(out, DTYPE, mode="rint"), [t, 0])
        else:
            zeros = pl.full([1, width], DTYPE, 0.0)
            pl.assemble(residual, zeros, [t, 0])
            pl.assemble(normed, zeros, [t, 0])
    return residual, normed
