"""The blocks of the gated-delta-net layer, each as a kernel of its own, with goldens and inputs.

    pypto-models check models/qwen3_5_27b/gdn_blocks.py
"""

from __future__ import annotations

from functools import partial

import torch

import pypto_models.language as pl
from models.common import equations as eq
from models.common.blocks import DENSE_RUNS, Block, Tensors, dense, random
from models.common.delta_net import delta_rule, gdn_conv, gdn_gates, gdn_out_norm
from models.common.equations import Precision
from models.common.layer_blocks import project, step_with
from models.common.power import QUIET, STEPS, Power
from models.common.projection import project_qkv
from models.common.sizes import DTYPE, K_DIM, K_HEADS, SPAN, TAPS, V_DIM, V_HEADS
from models.common.written import conv_rows, state_rows
from models.qwen3_5_27b import reference
from models.qwen3_5_27b.config import Config

HIDDEN = 256

TOKENS = pl.dynamic("TOKENS")
BATCH = pl.dynamic("BATCH")
BATCH_ENDS = pl.dynamic("BATCH_ENDS")
STATE_ROWS = pl.dynamic("STATE_ROWS")
CONV_ROWS = pl.dynamic("CONV_ROWS")

V_WIDTH = V_HEADS * V_DIM
CONV_DIM = 2 * K_HEADS * K_DIM + V_WIDTH
IN_WIDTH = CONV_DIM + V_WIDTH + 2 * V_HEADS


# ------------------------------------------------------------------------------------------------ kernels
@pl.jit
def in_block(
    x: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    w_in: pl.Tensor[[IN_WIDTH, HIDDEN], DTYPE],
    projected: pl.Out[pl.Tensor[[TOKENS, IN_WIDTH], pl.FP32]],
):
    projected = project_qkv(x, w_in, projected)


@pl.jit
def gates_block(
    projected: pl.Tensor[[TOKENS, IN_WIDTH], pl.FP32],
    a_log: pl.Tensor[[1, V_HEADS], pl.FP32],
    dt_bias: pl.Tensor[[1, V_HEADS], pl.FP32],
    decay: pl.Out[pl.Tensor[[TOKENS, V_HEADS], pl.FP32]],
    beta: pl.Out[pl.Tensor[[TOKENS, V_HEADS], pl.FP32]],
):
    decay, beta = gdn_gates(projected, a_log, dt_bias, decay, beta)


@pl.jit
def conv_block(
    projected: pl.Tensor[[TOKENS, IN_WIDTH], pl.FP32],
    conv_weight: pl.Tensor[[TAPS, CONV_DIM], DTYPE],
    slot_mapping: pl.Tensor[[TOKENS], pl.INT32],
    cu_q: pl.Tensor[[BATCH_ENDS], pl.INT32],
    ctx: pl.Tensor[[BATCH], pl.INT32],
    kept: pl.Tensor[[BATCH], pl.INT32],
    conv_slots: pl.Tensor[[BATCH], pl.INT32],
    conv_state: pl.InOut[pl.Tensor[[CONV_ROWS, CONV_DIM], DTYPE]],
    unit: pl.InOut[pl.Tensor[[TOKENS, 2 * K_HEADS * K_DIM], pl.FP32]],
    values: pl.InOut[pl.Tensor[[TOKENS, V_WIDTH], DTYPE]],
):
    unit, values = gdn_conv(
        projected, conv_weight, slot_mapping, cu_q, ctx, kept, conv_slots, conv_state, unit, values
    )


@pl.jit
def delta_rule_block(
    unit: pl.Tensor[[TOKENS, 2 * K_HEADS * K_DIM], pl.FP32],
    values: pl.Tensor[[TOKENS, V_WIDTH], DTYPE],
    decay: pl.Tensor[[TOKENS, V_HEADS], pl.FP32],
    beta: pl.Tensor[[TOKENS, V_HEADS], pl.FP32],
    slot_mapping: pl.Tensor[[TOKENS], pl.INT32],
    cu_q: pl.Tensor[[BATCH_ENDS], pl.INT32],
    ctx: pl.Tensor[[BATCH], pl.INT32],
    kept: pl.Tensor[[BATCH], pl.INT32],
    state_slots: pl.Tensor[[BATCH, SPAN], pl.INT32],
    state: pl.InOut[pl.Tensor[[STATE_ROWS, V_DIM], pl.FP32]],
    out: pl.InOut[pl.Tensor[[TOKENS, V_WIDTH], DTYPE]],
):
    out = delta_rule(unit, values, decay, beta, slot_mapping, cu_q, ctx, kept, state_slots, state, out)


@pl.jit
def out_norm_block(
    x: pl.Tensor[[TOKENS, V_WIDTH], DTYPE],
    projected: pl.Tensor[[TOKENS, IN_WIDTH], pl.FP32],
    gdn_norm: pl.Tensor[[1, V_DIM], pl.FP32],
    slot_mapping: pl.Tensor[[TOKENS], pl.INT32],
    cu_q: pl.Tensor[[BATCH_ENDS], pl.INT32],
    ctx: pl.Tensor[[BATCH], pl.INT32],
    out: pl.Out[pl.Tensor[[TOKENS, V_WIDTH], DTYPE]],
):
    out = gdn_out_norm(x, projected, gdn_norm, slot_mapping, cu_q, ctx, out)


# ------------------------------------------------------------------------------------------------ goldens
def _columns(v: Tensors, c: Config, p: Precision) -> tuple[torch.Tensor, ...]:
    """q k v | z | b | a of the projected rows, rounded."""
    return p.rnd(p.up(v["projected"])).split([c.conv_dim, c.v_width, c.v_heads, c.v_heads], dim=-1)


def gates(v: Tensors, c: Config, p: Precision) -> None:
    """Decay and write strength of every head."""
    _, _, b, a = _columns(v, c, p)
    v["decay"].copy_(torch.exp(reference.log_decay(a, v["a_log"], v["dt_bias"], p)))
    v["beta"].copy_(reference.write_strength(b, p))


def conv(v: Tensors, c: Config, p: Precision) -> None:
    """The causal convolution and its buffer."""
    rows = eq.live_rows(v, c)
    live = [row.row for row in rows]
    qkv = _columns(v, c, p)[0][live]
    for seq, own in eq.by_sequence(rows):
        window = reference.conv_window(qkv[own], seq, v, c, p)
        y = reference.convolve(window, v["conv_weight"], p)
        q, k = reference.unit_heads(y, c)
        v["unit"][live[own]] = torch.cat([q.flatten(1), k.flatten(1)], dim=-1).to(v["unit"].dtype)
        v["values"][live[own]] = y[:, 2 * c.k_width :].to(v["values"].dtype)


def rule(v: Tensors, c: Config, p: Precision) -> None:
    """The recurrence over the rows of each sequence."""
    rows = eq.live_rows(v, c)
    states, out = v["state"].view(-1, c.v_heads, c.k_dim, c.v_dim), v["out"].view(-1, c.v_heads, c.v_dim)
    units = p.up(v["unit"]).view(-1, 2, c.k_heads, c.k_dim)
    q, k = units.repeat_interleave(c.v_group, dim=2).unbind(1)
    value = p.up(v["values"]).view(-1, c.v_heads, c.v_dim)
    for seq, own in eq.by_sequence(rows):
        slots = v["state_slots"][seq].tolist()
        state = p.up(states[slots[int(v["kept"][seq]) - 1]])
        for j, live in enumerate(rows[own]):
            t = live.row
            beta, decay = p.up(v["beta"][t]), p.up(v["decay"][t])
            o, state = reference.delta_rule(state, q[t], k[t], value[t], beta, decay)
            out[t] = o.to(out.dtype)
            states[slots[j]] = state.to(states.dtype)


def out_norm(v: Tensors, c: Config, p: Precision) -> None:
    """The gated norm of every value head; zeros on dead rows."""
    live = [row.row for row in eq.live_rows(v, c)]
    x, z = (t.view(-1, c.v_heads, c.v_dim)[live] for t in (p.up(v["x"]), _columns(v, c, p)[1].contiguous()))
    y = reference.gated_norm(x, z, v["gdn_norm"], c.eps, p)
    v["out"].zero_()[live] = y.flatten(1).to(v["out"].dtype)


# ------------------------------------------------------------------------------------------------- inputs
def gates_inputs(power: Power, c: Config, seed: int) -> Tensors:
    """From rows whose softplus is next to nothing to rows where it is its own argument, and one with log 2.

    There it needs all its terms, and these rates let the decay show them best.
    """
    widths = {"projected": c.in_width, "decay": c.v_heads, "beta": c.v_heads}
    tensors = dense(widths, fp32=list(widths))(power, c, seed)
    arguments = torch.linspace(-6.0, 6.0, len(tensors["projected"]))
    arguments[1] = 0.0
    if seed % 2 == 0:
        tensors["a_log"] = torch.linspace(0.7, 3.0, c.v_heads)[None].log()
    tensors["projected"][:, -c.v_heads :] = arguments[:, None] - tensors["dt_bias"]
    return tensors


def conv_inputs(power: Power, c: Config, seed: int) -> Tensors:
    """A step with its projected rows; every other one as small as the epsilon of the unit length."""
    tensors = step_with(power, c, seed, values=c.v_width)
    rows, scale = len(tensors["hidden"]), QUIET if seed % 2 else 1.0
    tensors["conv_state"] = tensors["conv_state"] * scale
    tensors["unit"] = random((rows, 2 * c.k_width), torch.float32, 1000 * seed + 8)
    return tensors | {"projected": scale * random((rows, c.in_width), torch.float32, 1000 * seed + 9)}


def rule_inputs(power: Power, c: Config, seed: int) -> Tensors:
    """A step with what the recurrence takes."""
    tensors = step_with(power, c, seed, values=c.v_width, out=c.v_width)
    rows = len(tensors["hidden"])
    heads = random((rows, 2 * c.k_heads, c.k_dim), torch.float32, 1000 * seed + 9)
    tensors["unit"] = reference.unit_length(heads).flatten(1)
    generator = torch.Generator().manual_seed(1000 * seed + 8)
    for name in ("decay", "beta"):
        tensors[name] = torch.rand(rows, c.v_heads, generator=generator)
    return tensors


def out_norm_inputs(power: Power, c: Config, seed: int) -> Tensors:
    """A step with rows to be normed, some of them as small as the epsilon."""
    tensors = step_with(power, c, seed, x=c.v_width, out=c.v_width)
    rows = len(tensors["hidden"])
    tensors["x"] = (tensors["x"] * torch.linspace(1.0, QUIET, rows)[:, None]).to(c.torch_dtype)
    return tensors | {"projected": random((rows, c.in_width), torch.float32, 1000 * seed + 9)}


# ------------------------------------------------------------------------------------------------- blocks
def gdn_blocks(c: Config) -> list[Block]:
    """Stacked projection, gates, convolution, delta rule and output norm."""
    projected = dense({"x": c.hidden, "projected": c.in_width}, fp32=["projected"])
    return [
        Block(in_block, partial(project, "w_in"), projected, DENSE_RUNS),
        Block(gates_block, gates, gates_inputs, DENSE_RUNS, tolerance=3e-7),
        Block(
            conv_block, conv, conv_inputs, len(STEPS), rows={"conv_state": conv_rows},
            derived=("unit",), differing=0.05,
        ),  # fmt: skip
        Block(delta_rule_block, rule, rule_inputs, len(STEPS), rows={"state": state_rows}),
        Block(out_norm_block, out_norm, out_norm_inputs, len(STEPS)),
    ]
