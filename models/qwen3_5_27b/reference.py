"""Qwen3.5 decode step in plain torch: gated full-attention layers and gated-delta-net layers.

`golden` evaluates the equations as the model does: fp32 arithmetic, rounded to the model's element type where
the model stores a value. `exact` evaluates them in fp64 without any rounding. The distance between the two is
the error that the element type alone explains, and the yardstick for a kernel.

A full layer ("full") is that of `models.common.equations`, with an output gate. A gated-delta-net layer
("gdn", Yang et al., arXiv:2412.06464, as in Hugging Face's `Qwen3_5GatedDeltaNet`) has no cache, positions or
RoPE. Instead of `positions`, `block_table`, `k_cache`, `v_cache`, `w_qkv`, `w_o`, `q_norm` and `k_norm` it
takes

    w_in [in_width, H]                rows q | k | v | z | b | a
    conv_weight [taps, C]             C = conv_dim (q | k | v); row taps - 1 is for the current token
    a_log, dt_bias [1, nv]            fp32
    gdn_norm [1, dv]                  fp32, centred on 1
    w_out [H, nv * dv]
    state [slots * nv * dk, dv]       fp32; row = (slot * nv + value head) * dk + k
    conv_state [slots * width, C]     row = slot * width + column, oldest first; width = taps - 2 + span
    state_slots [B, span]             i32; after live row j, the state of sequence s goes to slot [s, j]
    conv_slots [B]                    i32
    kept [B]                          i32; rows of the previous step that stay valid, 1..span

A step may hold up to `span` rows of a sequence, of which the next step may keep only the first few, as in
speculative decoding. A state cannot be taken back, so the one after every row is stored in a slot of its own,
and a step reads slot state_slots[s, kept - 1]. The convolution's history of row 0 is in columns kept - 1 to
kept + taps - 3 of the buffer. The step leaves columns kept to kept + taps - 3 and behind them its own inputs
at the beginning of the buffer, and the rest of the buffer as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from models.common import equations as eq
from models.common.equations import CACHES, OUTPUTS, LiveRow, Precision, live_rows
from models.qwen3_5_27b.config import Config

__all__ = [
    "OUTPUTS", "STATES", "Layer", "LiveRow", "Precision", "decode_layer", "delta_net", "exact", "golden",
    "live_rows", "mutated",
]  # fmt: skip

Layer = Literal["full", "gdn"]

STATES = ("conv_state", "state")
"""Tensors that a gdn layer changes: this step's columns of the one, this step's slots of the other."""

L2_EPS = 1e-6  # of the q and k of a gdn layer; no part of the model's configuration


def mutated(layer: str) -> tuple[str, ...]:
    """Tensors that a step may change: the outputs, and the caches or states.

    Raises:
        ValueError: if there is no such layer.
    """
    if layer not in ("full", "gdn"):
        raise ValueError(f"layer is {layer!r}; use 'full' or 'gdn'")
    return (*OUTPUTS, *(CACHES if layer == "full" else STATES))


# ----------------------------------------------------------------------------------------- gated delta net
def convolve(window: Tensor, weight: Tensor, p: Precision) -> Tensor:
    """rnd(silu(rnd(the depthwise causal convolution))), `[n, C]`.

    Args:
        window: the last `taps - 1` inputs before the step, then the step's: `[taps - 1 + n, C]`.
        weight: `[taps, C]`, its last row for the current token.
        p: arithmetic and rounding.
    """
    taps = weight.shape[0]
    count = window.shape[0] - taps + 1
    total = window[:count] * p.up(weight[0])
    for t in range(1, taps):
        total = total + window[t : t + count] * p.up(weight[t])
    return p.rnd(eq.silu(p.rnd(total)))


def unit_length(x: Tensor) -> Tensor:
    """x / |x| over the last axis; the epsilon is inside the root."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)


def write_strength(b: Tensor, p: Precision) -> Tensor:
    """beta = rnd(sigmoid(b)): the part of a token's error that is written into the state."""
    return p.rnd(torch.sigmoid(b))


def log_decay(a: Tensor, a_log: Tensor, dt_bias: Tensor, p: Precision) -> Tensor:
    """g = -exp(A_log) * softplus(a + dt_bias) <= 0; the state is multiplied by exp(g)."""
    return -torch.exp(p.up(a_log)) * torch.nn.functional.softplus(a + p.up(dt_bias))


def delta_rule(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of the gated delta rule, for every value head.

    Args:
        state: `[nv, dk, dv]`.
        q, k: `[nv, dk]`.
        v: `[nv, dv]`.
        beta, decay: `[nv]`.

    Returns:
        The output `[nv, dv]` and the new state.
    """
    state = state * decay[:, None, None]
    recalled = (state * k[..., None]).sum(-2)
    error = (v - recalled) * beta[:, None]
    state = state + k[..., None] * error[:, None, :]
    return (state * q[..., None]).sum(-2), state


def unit_heads(y: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """q and k `[n, nk, dk]` of y `[n, conv_dim]`, of unit length, q over sqrt(dk)."""
    q, k = (t.reshape(-1, config.k_heads, config.k_dim) for t in y.split(config.k_width, dim=-1)[:2])
    return unit_length(q) / config.k_dim**0.5, unit_length(k)


def split_heads(y: Tensor, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """q and k `[n, nv, dk]`, of unit length, q over sqrt(dk), and v `[n, nv, dv]` of y `[n, conv_dim]`.

    Value head j takes the q and k of head j // v_group.
    """
    c = config
    q, k = (t.repeat_interleave(c.v_group, dim=1) for t in unit_heads(y, c))
    return q, k, y[:, 2 * c.k_width :].reshape(-1, c.v_heads, c.v_dim)


def gated_norm(o: Tensor, z: Tensor, weight: Tensor, eps: float, p: Precision) -> Tensor:
    """rnd(weight * rnd(o / rms(o)) * silu(z)) per value head, of o and z `[n, nv, dv]`."""
    unit = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + eps)
    return p.rnd(p.up(weight) * p.rnd(unit) * eq.silu(z))


def delta_net(
    x: Tensor, rows: list[LiveRow], tensors: Mapping[str, Tensor], config: Config, p: Precision
) -> Tensor:
    """Gated-delta-net branch of x `[n, H]`, the live `rows` only; reads and writes the states."""
    c = config
    h = eq.rms_norm(x, tensors["input_norm"], c.eps, p, gemma=c.gemma_norm)
    projected = eq.linear(h, tensors["w_in"], p)
    qkv, z, b, a = projected.split([c.conv_dim, c.v_width, c.v_heads, c.v_heads], dim=-1)
    beta = write_strength(b, p)
    decay = torch.exp(log_decay(a, tensors["a_log"], tensors["dt_bias"], p))
    states = tensors["state"].view(-1, c.v_heads, c.k_dim, c.v_dim)
    out = x.new_empty(len(rows), c.v_heads, c.v_dim)
    for seq, own in eq.by_sequence(rows):
        slots = tensors["state_slots"][seq].tolist()
        state = p.up(states[slots[int(tensors["kept"][seq]) - 1]])
        window = conv_window(qkv[own], seq, tensors, c, p)
        q, k, v = split_heads(convolve(window, tensors["conv_weight"], p), c)
        for j in range(own.stop - own.start):
            i = own.start + j
            out[i], state = delta_rule(state, q[j], k[j], v[j], beta[i], decay[i])
            states[slots[j]] = state.to(states.dtype)
    o = gated_norm(p.rnd(out), z.view_as(out), tensors["gdn_norm"], c.eps, p)
    return eq.linear(o.flatten(1), tensors["w_out"], p)


def conv_window(new: Tensor, seq: int, tensors: Mapping[str, Tensor], config: Config, p: Precision) -> Tensor:
    """The convolution's inputs `[taps - 1 + n, C]`, history before `new` `[n, C]`; moves the buffer on."""
    span = tensors["state_slots"].shape[1]
    width = config.taps - 2 + span
    columns = tensors["conv_state"].view(-1, width, config.conv_dim)[int(tensors["conv_slots"][seq])]
    kept = int(tensors["kept"][seq])
    window = torch.cat([p.up(columns[kept - 1 : kept + config.taps - 2]), new])
    columns[: window.shape[0] - 1] = window[1:].to(columns.dtype)
    return window


def check_states(rows: list[LiveRow], tensors: Mapping[str, Tensor], config: Config) -> None:
    """Raise ValueError if a sequence has more rows than slots, or a slot or a kept row does not exist."""
    span = tensors["state_slots"].shape[1]
    states = tensors["state"].shape[0] // (config.v_heads * config.k_dim)
    convs = tensors["conv_state"].shape[0] // (config.taps - 2 + span)
    for seq, own in eq.by_sequence(rows):
        count, kept = own.stop - own.start, int(tensors["kept"][seq])
        if count > span:
            raise ValueError(f"sequence {seq} has {count} live rows; state_slots holds {span} per sequence")
        if not 1 <= kept <= span:
            raise ValueError(f"kept[{seq}] = {kept} must lie in 1..{span}")
        used = tensors["state_slots"][seq].tolist()
        if not all(0 <= slot < states for slot in (used[kept - 1], *used[:count])):
            raise ValueError(f"state_slots[{seq}] = {used} names a slot outside 0..{states - 1}")
        if not 0 <= int(tensors["conv_slots"][seq]) < convs:
            raise ValueError(
                f"conv_slots[{seq}] = {int(tensors['conv_slots'][seq])} must lie in 0..{convs - 1}"
            )


def gdn_step(tensors: Mapping[str, Tensor], config: Config, p: Precision) -> None:
    """`layer_step` of a gated-delta-net layer."""
    eq.check_holds(tensors, (*OUTPUTS, "conv_state"), p.stored)
    eq.check_holds(tensors, ("state",), p.compute)  # never rounded to the element type

    def mixer(x: Tensor, rows: list[LiveRow], given: Mapping[str, Tensor]) -> Tensor:
        check_states(rows, given, config)
        return delta_net(x, rows, given, config, p)

    eq.layer_step(tensors, config, p, mixer)


# -------------------------------------------------------------------------------------------------- layer
def decode_layer(
    tensors: dict[str, Tensor],
    config: Config,
    *,
    layer: str,
    compute: torch.dtype = torch.float32,
    round_to: torch.dtype | None = None,
    round_weights: bool = False,
) -> None:
    """One decoder layer, the final norm, and the LM head if `logits` is given; mutates outputs and states.

    Rows that are not live (see `live_rows`) give zeros and leave caches and states alone.

    Args:
        tensors: the tensors listed at the top of this file and of `models.common.equations`.
        config: the model's sizes.
        layer: the kind of layer, "full" or "gdn".
        compute: arithmetic type, float32 or float64.
        round_to: type that every stored value is rounded to, or None for no rounding at all.
        round_weights: see `Precision`; a gdn layer has no softmax.

    Raises:
        ValueError: if there is no such layer, an output could not hold its value unrounded, or the step's
        indices are not consistent.
    """
    mutated(layer)
    p = Precision(compute, round_to, round_weights)
    (eq.full_step if layer == "full" else gdn_step)(tensors, config, p)


def golden(tensors: dict[str, Tensor], config: Config, round_weights: bool = False, *, layer: str) -> None:
    """`decode_layer` as the model computes it: fp32 arithmetic, stored values in the model's element type."""
    decode_layer(tensors, config, layer=layer, round_to=config.torch_dtype, round_weights=round_weights)


def exact(tensors: dict[str, Tensor], config: Config, *, layer: str) -> dict[str, Tensor]:
    """The mutated tensors of `decode_layer` in fp64, never rounded; `tensors` itself is left unchanged."""
    wide = eq.widened(tensors, mutated(layer))
    decode_layer({**tensors, **wide}, config, layer=layer, compute=torch.float64)
    return wide
