"""The gated delta net: convolution, gates, delta rule and output norm (Yang et al., arXiv:2412.06464).

The stacked projection of a row is `[q | k | v | z | b | a]`: K_HEADS heads of K_DIM for q and for k, V_HEADS
heads of V_DIM for v and for z, one number per value head for b and for a.  Value head h uses the q and k of
head h // (V_HEADS / K_HEADS).

Both states are kept for every prefix of a step's rows, so that the next step may start after any of them
(`kept[s]` rows of the previous step stay valid):

* `state` [slots V_HEADS K_DIM, V_DIM] fp32, row (slot V_HEADS + head) K_DIM + k.  Sequence s reads slot
  `state_slots[s, kept[s] - 1]` and leaves the state after its live row j in slot `state_slots[s, j]`.
* `conv_state` [slots CONV_WIDTH, C] holds the last inputs of the convolution, oldest first; C is q, k and v.
  The TAPS - 1 inputs before row 0 begin at column kept - 1.  The last TAPS - 2 of them and then the inputs of
  the step's live rows become the new columns, from the first on.

Both are updated in place, so one block owns what it updates and loads it before its first store.  A sequence
without live rows touches nothing.
"""

from __future__ import annotations

import pypto_models.language as pl
from models.common.norm import rounded
from models.common.projection import sigmoid, silu
from models.common.rows import rows_of, sequence_of
from models.common.sizes import (
    CONV_WIDTH,
    DTYPE,
    EPS,
    K_DIM,
    K_HEADS,
    SPAN,
    TAPS,
    V_DIM,
    V_HEADS,
    V_TILE,
)

L2_EPS = 1e-6  # under the root of a head's sum of squares; the same in every such model

# Tile sizes; a tiling file sets them per target
CONV_TILE = 64  # channels of a block of the convolution: whole heads of q, of k, or columns of v
GATE_ROWS = 16  # rows of a block of the gates
NORM_HEADS = 1  # value heads of a block of the output norm: 1 or a multiple of 8


# --------------------------------------------------------------------------------------------------
# Gates


@pl.jit.inline
def softplus(x: pl.Tensor):
    """log(1 + e^x) for fp32 `x`, to a few ulp anywhere: log(1 + y) itself loses a small y.

    max(x, 0) + log1p(y) with y = e^-|x| in (0, 1] and log1p(y) = 2 artanh(r), r = y / (2 + y) <= 1/3.  Seven
    terms of the odd series leave a relative error of (1/9)^7 / 15 < 2e-8, below the last bit of fp32.
    """
    y = pl.exp(pl.neg(pl.abs(x)))
    r = pl.div(y, pl.add(y, 2.0))
    r2 = pl.mul(r, r)
    series = pl.add(pl.mul(r2, 1.0 / 13.0), 1.0 / 11.0)
    series = pl.add(pl.mul(series, r2), 1.0 / 9.0)
    series = pl.add(pl.mul(series, r2), 1.0 / 7.0)
    series = pl.add(pl.mul(series, r2), 1.0 / 5.0)
    series = pl.add(pl.mul(series, r2), 1.0 / 3.0)
    series = pl.add(pl.mul(series, r2), 1.0)
    return pl.add(pl.maximum(x, 0.0), pl.mul(pl.mul(r, series), 2.0))


@pl.jit.inline
def gdn_gates(projected: pl.Tensor, a_log: pl.Tensor, dt_bias: pl.Tensor, decay: pl.Tensor, beta: pl.Tensor):
    """`decay` = exp(-exp(a_log) softplus(a + dt_bias)) and `beta` = sigmoid(b), both [T, V_HEADS] fp32.

    b, a and beta are rounded to the element type; `a_log` and `dt_bias` [1, V_HEADS] are fp32.
    """
    rows = pl.tensor.dim(projected, 0)
    cols = (V_HEADS + 15) // 16 * 16  # whole vector blocks, of two bytes an element too
    b_column = 2 * K_HEADS * K_DIM + 2 * V_HEADS * V_DIM
    for block in pl.spmd((rows + GATE_ROWS - 1) // GATE_ROWS, name_hint="gdn_gates"):
        t = block * GATE_ROWS
        live = pl.min(rows - t, GATE_ROWS)
        b = pl.slice(projected, [GATE_ROWS, cols], [t, b_column], valid_shape=[live, V_HEADS])
        a = pl.slice(projected, [GATE_ROWS, cols], [t, b_column + V_HEADS], valid_shape=[live, V_HEADS])
        bias = pl.slice(dt_bias, [1, cols], [0, 0], valid_shape=[1, V_HEADS])
        rate = pl.neg(pl.exp(pl.slice(a_log, [1, cols], [0, 0], valid_shape=[1, V_HEADS])))
        step = softplus(pl.col_expand_add(rounded(a), bias))
        pl.assemble(decay, pl.exp(pl.col_expand_mul(step, rate)), [t, 0])
        pl.assemble(beta, rounded(sigmoid(rounded(b))), [t, 0])
    return decay, beta


# --------------------------------------------------------------------------------------------------
# Convolution


@pl.jit.inline
def l2_normalised(x: pl.Tensor, factor: pl.Scalar[pl.FP32]):
    """`x` [1, K] fp32 divided by sqrt(factor (sum of squares + L2_EPS))."""
    square = pl.add(pl.row_sum(pl.mul(x, x)), L2_EPS)
    return pl.row_expand_mul(x, pl.rsqrt(pl.mul(square, factor)))


@pl.jit.inline
def gdn_conv(
    projected: pl.Tensor,
    conv_weight: pl.Tensor,
    slot_mapping: pl.Tensor,
    cu_q: pl.Tensor,
    ctx: pl.Tensor,
    kept: pl.Tensor,
    conv_slots: pl.Tensor,
    conv_state: pl.Tensor,
    unit: pl.Tensor,
    values: pl.Tensor,
):
    """silu(causal depthwise convolution of the q, k and v columns), for live rows only.

    Its q and k, each head of unit length and q also divided by sqrt(K_DIM), are `unit` [T, 2 K_HEADS K_DIM]
    fp32; its v are `values` [T, V_HEADS V_DIM].  The last row of `conv_weight` [TAPS, C] is for the current
    token.  Inputs, the sum and the result of the convolution are rounded to the element type.
    """
    q_width = K_HEADS * K_DIM
    tiles = conv_weight.shape[1] // CONV_TILE
    for item in pl.spmd(pl.tensor.dim(ctx, 0) * tiles, name_hint="gdn_conv"):
        s = item // tiles
        c = item % tiles * CONV_TILE
        rows = rows_of(s, slot_mapping, cu_q, ctx)
        if rows > 0:
            first = pl.cast(pl.read(cu_q, [s]), pl.INDEX)
            oldest = pl.cast(pl.read(kept, [s]), pl.INDEX) - 1
            base = pl.cast(pl.read(conv_slots, [s]), pl.INDEX) * CONV_WIDTH
            before = pl.slice(conv_state, [TAPS - 1, CONV_TILE], [base + oldest, c])
            older = pl.cast(pl.slice(conv_weight, [TAPS - 1, CONV_TILE], [0, c]), pl.FP32)
            current = pl.cast(pl.slice(conv_weight, [1, CONV_TILE], [TAPS - 1, c]), pl.FP32)

            if TAPS > 2:
                pl.assemble(conv_state, pl.slice(before, [TAPS - 2, CONV_TILE], [1, 0]), [base, c])
            history = pl.cast(before, pl.FP32)
            for j in pl.range(rows):
                x = pl.cast(pl.slice(projected, [1, CONV_TILE], [first + j, c]), DTYPE, mode="rint")
                pl.assemble(conv_state, x, [base + TAPS - 2 + j, c])
                now = pl.cast(x, pl.FP32)
                total = pl.add(pl.col_sum(pl.mul(history, older)), pl.mul(now, current))
                out = pl.cast(silu(rounded(total)), DTYPE, mode="rint")
                if c < 2 * q_width:
                    factor = 1.0
                    if c < q_width:
                        factor = 1.0 * K_DIM
                    for i in pl.unroll((CONV_TILE + K_DIM - 1) // K_DIM):  # half a head is an error
                        x_head = pl.cast(pl.slice(out, [1, K_DIM], [0, i * K_DIM]), pl.FP32)
                        pl.assemble(unit, l2_normalised(x_head, factor), [first + j, c + i * K_DIM])
                else:
                    pl.assemble(values, out, [first + j, c - 2 * q_width])
                if SPAN > 1:
                    if TAPS > 2:
                        moved = pl.slice(history, [TAPS - 2, CONV_TILE], [1, 0])
                        history = pl.assemble(history, moved, [0, 0])
                    history = pl.assemble(history, now, [TAPS - 2, 0])
    return unit, values


# --------------------------------------------------------------------------------------------------
# Delta rule


@pl.jit.inline
def first_states(
    slot_mapping: pl.Tensor,
    cu_q: pl.Tensor,
    ctx: pl.Tensor,
    kept: pl.Tensor,
    state_slots: pl.Tensor,
    starts: pl.Tensor,
):
    """`starts` [B, 3] = (slot of the state to start from, first row, live rows) of each sequence, slot -1 if
    it is dead: a block of the recurrence asks for its state after one read."""
    for s in pl.spmd(pl.tensor.dim(ctx, 0), name_hint="delta_starts"):
        rows = rows_of(s, slot_mapping, cu_q, ctx)
        slot = -1
        if rows > 0:
            last = pl.cast(pl.read(kept, [s]), pl.INDEX) - 1
            slot = pl.cast(pl.read(state_slots, [s, last]), pl.INDEX)
        pl.write(starts, [s, 0], pl.cast(slot, pl.INT32))
        pl.write(starts, [s, 1], pl.read(cu_q, [s]))
        pl.write(starts, [s, 2], pl.cast(rows, pl.INT32))
    return starts


@pl.jit.inline
def delta_rule(
    unit: pl.Tensor,
    values: pl.Tensor,
    decay: pl.Tensor,
    beta: pl.Tensor,
    slot_mapping: pl.Tensor,
    cu_q: pl.Tensor,
    ctx: pl.Tensor,
    kept: pl.Tensor,
    state_slots: pl.Tensor,
    state: pl.Tensor,
    out: pl.Tensor,
):
    """The recurrence over the live rows of each sequence; `out` [T, V_HEADS V_DIM], live rows only.

    With q and k of `unit`, v of `values` (see `gdn_conv`) and S [K_DIM, V_DIM], all in fp32:
    S = decay S;  u = beta (v - S^T k);  S = S + k u^T;  out = S^T q, rounded to the element type.
    A block owns V_TILE columns of one head's state.
    """
    tiles = V_DIM // V_TILE
    width = unit.shape[1]
    columns = pl.reshape(unit, [pl.tensor.dim(unit, 0) * width, 1])
    starts = pl.create_tensor([pl.tensor.dim(ctx, 0), 3], pl.INT32)
    starts = first_states(slot_mapping, cu_q, ctx, kept, state_slots, starts)
    for item in pl.spmd(pl.tensor.dim(ctx, 0) * V_HEADS * tiles, name_hint="delta_rule"):
        s = item // (V_HEADS * tiles)
        head = item // tiles % V_HEADS
        value = item % tiles * V_TILE
        slot = pl.cast(pl.read(starts, [s, 0]), pl.INDEX)
        first = pl.cast(pl.read(starts, [s, 1]), pl.INDEX)
        rows = pl.cast(pl.read(starts, [s, 2]), pl.INDEX)
        if SPAN == 1:
            rows = pl.min(rows, 1)  # no loop: of more, none is written, and whatever reads one is an error
        # All three are asked for before one is waited for
        if slot >= 0 and first >= 0 and rows > 0:
            memory = pl.slice(state, [K_DIM, V_TILE], [(slot * V_HEADS + head) * K_DIM, value])
            for j in pl.range(rows):
                t = first + j
                next_slot = pl.cast(pl.read(state_slots, [s, j]), pl.INDEX)
                strength = pl.read(beta, [t, head])
                q_first = t * width + head // (V_HEADS // K_HEADS) * K_DIM
                q = pl.slice(columns, [K_DIM, 1], [q_first, 0])
                k = pl.slice(columns, [K_DIM, 1], [q_first + K_HEADS * K_DIM, 0])
                v = pl.cast(pl.slice(values, [1, V_TILE], [t, head * V_DIM + value]), pl.FP32)

                memory = pl.mul(memory, pl.read(decay, [t, head]))
                recalled = pl.col_sum(pl.row_expand_mul(memory, k))
                update = pl.mul(pl.sub(v, recalled), strength)
                memory = pl.add(memory, pl.col_expand_mul(pl.row_expand(memory, k), update))
                pl.assemble(state, memory, [(next_slot * V_HEADS + head) * K_DIM, value])
                read = pl.col_sum(pl.row_expand_mul(memory, q))
                pl.assemble(out, pl.cast(read, DTYPE, mode="rint"), [t, head * V_DIM + value])
    return out


# --------------------------------------------------------------------------------------------------
# Output norm


@pl.jit.inline
def gdn_out_norm(
    x: pl.Tensor,
    projected: pl.Tensor,
    weight: pl.Tensor,
    slot_mapping: pl.Tensor,
    cu_q: pl.Tensor,
    ctx: pl.Tensor,
    out: pl.Tensor,
):
    """`out` [T, V_HEADS V_DIM] = weight rnd(x / rms(x)) silu(z) per value head; dead rows become zeros.

    `x` is in the element type, `weight` [1, V_DIM] fp32 is plain (not centred on 0), z is the gate in
    `projected`, rounded.
    """
    rows = pl.tensor.dim(x, 0)
    groups = V_HEADS // NORM_HEADS
    heads_in = pl.reshape(x, [rows * V_HEADS, V_DIM])
    heads_out = pl.reshape(out, [rows * V_HEADS, V_DIM])
    z_column = 2 * K_HEADS * K_DIM + V_HEADS * V_DIM
    for item in pl.spmd(rows * groups, name_hint="gdn_out_norm"):
        t = item // groups
        head = item % groups * NORM_HEADS
        if sequence_of(t, slot_mapping, cu_q, ctx) >= 0:
            heads = pl.cast(pl.slice(heads_in, [NORM_HEADS, V_DIM], [t * V_HEADS + head, 0]), pl.FP32)
            gates = pl.slice(projected, [1, NORM_HEADS * V_DIM], [t, z_column + head * V_DIM])
            gate = silu(rounded(pl.reshape(gates, [NORM_HEADS, V_DIM])))
            mean_square = pl.mul(pl.row_sum(pl.mul(heads, heads)), 1.0 / V_DIM)
            unit = rounded(pl.row_expand_mul(heads, pl.rsqrt(pl.add(mean_square, EPS))))
            scaled = pl.mul(pl.col_expand_mul(unit, pl.slice(weight, [1, V_DIM], [0, 0])), gate)
            pl.assemble(heads_out, pl.cast(scaled, DTYPE, mode="rint"), [t * V_HEADS + head, 0])
        else:
            zeros = pl.full([NORM_HEADS, V_DIM], DTYPE, 0.0)
            pl.assemble(heads_out, zeros, [t * V_HEADS + head, 0])
    return out
