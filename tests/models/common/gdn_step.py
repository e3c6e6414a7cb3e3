"""Steps of a gated-delta-net layer for the tests, and the layer's equations, written out token by token.

`Layout` says which rows a step has; `make` fills every tensor, with NaN wherever nothing may be read;
`evaluate` computes what the step must leave behind.  Equations: Yang et al., arXiv:2412.06464, and Hugging
Face's `Qwen3_5GatedDeltaNet` for the parametrisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.qwen3_5_27b.config import TINY, Config

Rounding = Callable[[Tensor], Tensor]

EPS = 1e-6
STATES = ("conv_state", "state")
OUTPUTS = ("next_hidden", "normed", "logits")


@dataclass(frozen=True)
class Layout:
    """Rows of a step.

    Sequence s has `counts[s]` rows; `kept[s]` rows of its previous step stay valid.  `no_slot` are rows whose
    slot is negative, `no_context` sequences whose context is 0, and `extra` rows belong to no sequence.
    """

    counts: tuple[int, ...]
    kept: tuple[int, ...]
    span: int = 8
    no_slot: tuple[int, ...] = ()
    no_context: tuple[int, ...] = ()
    extra: int = 0

    @property
    def cu_q(self) -> list[int]:
        return [sum(self.counts[:s]) for s in range(len(self.counts) + 1)]

    @property
    def rows(self) -> int:
        return sum(self.counts) + self.extra

    def live(self, s: int) -> list[int]:
        """The rows of sequence `s` that count: up to its first row without a slot."""
        rows = range(self.cu_q[s], self.cu_q[s + 1])
        stop = next((t for t in rows if t in self.no_slot), rows.stop)
        return [] if s in self.no_context else list(range(rows.start, stop))

    @property
    def all_live(self) -> list[int]:
        return [t for s in range(len(self.counts)) for t in self.live(s)]

    @property
    def dead(self) -> list[int]:
        return sorted(set(range(self.rows)) - set(self.all_live))


def make(
    layout: Layout, config: Config = TINY, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """Every tensor of the step.  Dead rows, slots that are not read and all outputs are NaN."""
    g = torch.Generator().manual_seed(seed)
    z, batch, span, rows = config, len(layout.counts), layout.span, layout.rows

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return std * torch.randn(shape, generator=g)

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    width = z.taps - 2 + span
    spare = 3
    state_slots = torch.randperm(batch * span + spare, generator=g)[: batch * span].view(batch, span).int()
    conv_slots = torch.randperm(batch + spare, generator=g)[:batch].int()
    state = torch.full((batch * span + spare, z.v_heads, z.k_dim, z.v_dim), torch.nan)
    conv = torch.full((batch + spare, width, z.conv_dim), torch.nan)
    kept = list(layout.kept)
    slots = torch.randperm(rows + 5, generator=g)[:rows].int()
    slots[list(layout.no_slot)] = -1
    hidden = normal(rows, z.hidden)
    hidden[layout.dead] = torch.nan
    for s in range(batch):
        if layout.live(s):
            state[state_slots[s, kept[s] - 1]] = normal(z.v_heads, z.k_dim, z.v_dim, std=0.5)
            conv[conv_slots[s], kept[s] - 1 : kept[s] + z.taps - 2] = normal(z.taps - 1, z.conv_dim)
        else:  # nothing of it may be followed
            state_slots[s], conv_slots[s], kept[s] = 1 << 20, 1 << 20, 1 << 20
    ctx = [0 if s in layout.no_context else 40 + n for s, n in enumerate(layout.counts)]
    # Time steps from 1e-3 to 1e-1 and rates from 1 to 16, as these layers are initialised: decays near 1
    step = torch.exp(torch.empty(z.v_heads).uniform_(-6.9, -2.3, generator=g))
    tensors = {
        "hidden": hidden,
        "conv_state": conv.view(-1, z.conv_dim),
        "w_in": normal(z.in_width, z.hidden, std=z.hidden**-0.5),
        "conv_weight": normal(z.taps, z.conv_dim, std=0.5),
        "w_out": normal(z.hidden, z.v_width, std=z.v_width**-0.5),
        "w_gate_up": normal(2 * z.intermediate, z.hidden, std=z.hidden**-0.5),
        "w_down": normal(z.hidden, z.intermediate, std=2 * z.intermediate**-0.5),
        "w_lm_head": normal(z.vocab_padded, z.hidden, std=z.hidden**-0.5),
        "next_hidden": torch.full((rows, z.hidden), torch.nan),
        "normed": torch.full((rows, z.hidden), torch.nan),
        "logits": torch.full((rows, z.vocab_padded), torch.nan),
    }
    kept32 = {
        "state": state.view(-1, z.v_dim),
        "a_log": torch.empty(1, z.v_heads).uniform_(1, 16, generator=g).log(),
        "dt_bias": (step + torch.log(-torch.expm1(-step)))[None],
        "gdn_norm": 1 + normal(1, z.v_dim, std=0.2),
        "input_norm": normal(1, z.hidden, std=0.2),
        "post_norm": normal(1, z.hidden, std=0.2),
        "final_norm": normal(1, z.hidden, std=0.2),
    }
    indices = {
        "slot_mapping": slots,
        "cu_q": ints(layout.cu_q),
        "ctx": ints(ctx),
        "kept": ints(kept),
        "state_slots": state_slots,
        "conv_slots": conv_slots,
    }
    return {name: t.to(dtype) for name, t in tensors.items()} | kept32 | indices


# --------------------------------------------------------------------------------------------------
# The equations, in the element type of what they are given


def exactly(x: Tensor) -> Tensor:
    return x


def to_bf16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def gemma_norm(x: Tensor, weight: Tensor, rnd: Rounding = exactly) -> Tensor:
    return rnd(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * (1 + weight))


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def gates(
    b: Tensor, a: Tensor, a_log: Tensor, dt_bias: Tensor, rnd: Rounding = exactly
) -> tuple[Tensor, Tensor]:
    """The decay and beta of b and a `[rows, value heads]`."""
    x = rnd(a) + dt_bias
    step = torch.logaddexp(x, torch.zeros_like(x))
    return torch.exp(-a_log.exp() * step), rnd(torch.sigmoid(rnd(b)))


def convolve(window: Tensor, weight: Tensor, rnd: Rounding = exactly) -> Tensor:
    """One token: the last inputs `[taps, C]`, oldest first, and the weights in the same order."""
    return rnd(silu(rnd((window * weight).sum(0))))


def units(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """q and k `[..., k]` of unit length, q also over the root of its size."""
    q = q / (q.square().sum(-1, keepdim=True) + 1e-6).sqrt() / q.shape[-1] ** 0.5
    return q, k / (k.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def recur(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, rnd: Rounding = exactly
) -> tuple[Tensor, Tensor]:
    """One token of all value heads: state `[heads, k, v]`, v `[heads, v]`, and `units` `[key heads, k]`."""
    share = v.shape[0] // q.shape[0]
    q, k = q.repeat_interleave(share, 0), k.repeat_interleave(share, 0)
    state = state * decay[:, None, None]
    delta = beta[:, None] * (v - torch.einsum("hkv,hk->hv", state, k))
    state = state + torch.einsum("hk,hv->hkv", k, delta)
    return state, rnd(torch.einsum("hkv,hk->hv", state, q))


def out_norm(o: Tensor, z: Tensor, weight: Tensor, rnd: Rounding = exactly) -> Tensor:
    unit = rnd(o * torch.rsqrt(o.square().mean(-1, keepdim=True) + EPS))
    return rnd(weight * unit * silu(rnd(z)))


@dataclass
class Step:
    """What a step leaves: the outputs of its rows, and the states of every prefix."""

    conv: dict[int, Tensor] = field(default_factory=dict)  # slot: columns written, from the first
    state: dict[int, Tensor] = field(default_factory=dict)  # slot: [heads, k, v]
    outputs: dict[str, Tensor] = field(default_factory=dict)


def mix(
    layout: Layout, tensors: Mapping[str, Tensor], config: Config, projected: Tensor, rnd: Rounding = exactly
) -> tuple[Tensor, Step]:
    """From the projection `[rows, q|k|v|z|b|a]` to the normed output `[rows, v_width]`; 0 in dead rows."""
    z, kind, after = config, projected.dtype, Step()
    width = z.taps - 2 + layout.span
    conv = tensors["conv_state"].to(kind).view(-1, width, z.conv_dim)
    states = tensors["state"].to(kind).view(-1, z.v_heads, z.k_dim, z.v_dim)
    weight, norm, a_log, dt_bias = (
        tensors[n].to(kind) for n in ("conv_weight", "gdn_norm", "a_log", "dt_bias")
    )
    x, gate, b, a = projected.split([z.conv_dim, z.v_width, z.v_heads, z.v_heads], -1)
    x = rnd(x)
    decay, beta = gates(b, a, a_log, dt_bias, rnd)
    out = torch.zeros(layout.rows, z.v_width, dtype=kind)
    for s in range(len(layout.counts)):
        rows = layout.live(s)
        if not rows:
            continue
        kept, slots = int(tensors["kept"][s]), tensors["state_slots"][s].tolist()
        history = conv[tensors["conv_slots"][s], kept - 1 : kept + z.taps - 2]
        inputs = torch.cat([history, x[rows]])
        after.conv[int(tensors["conv_slots"][s])] = inputs[1:]
        state = states[slots[kept - 1]]
        for j, t in enumerate(rows):
            y = convolve(inputs[j : j + z.taps], weight, rnd)
            q, k, v = y.split([z.k_width, z.k_width, z.v_width])
            q, k = units(q.view(z.k_heads, -1), k.view(z.k_heads, -1))
            v = v.view(z.v_heads, -1)
            state, o = recur(state, q, k, v, decay[t], beta[t], rnd)
            after.state[slots[j]] = state
            out[t] = out_norm(o, gate[t].view(z.v_heads, -1), norm, rnd).flatten()
    return out, after


def evaluate(
    layout: Layout, tensors: Mapping[str, Tensor], config: Config = TINY, rnd: Rounding = exactly,
    kind: torch.dtype = torch.float64,
) -> Step:  # fmt: skip
    """The whole layer, with the MLP, the final norm and the LM head, in `kind`."""

    def given(name: str) -> Tensor:
        return tensors[name].to(kind)

    x = given("hidden").clone()
    x[layout.dead] = 0
    projected = gemma_norm(x, given("input_norm"), rnd) @ given("w_in").T
    mixed, after = mix(layout, tensors, config, projected, rnd)
    x = rnd(x + rnd(mixed @ given("w_out").T))
    gate, up = (gemma_norm(x, given("post_norm"), rnd) @ given("w_gate_up").T).chunk(2, -1)
    act = rnd(rnd(silu(rnd(gate))) * rnd(up))
    x = rnd(x + rnd(act @ given("w_down").T))
    normed = gemma_norm(x, given("final_norm"), rnd)
    after.outputs = {"next_hidden": x, "normed": normed, "logits": rnd(normed @ given("w_lm_head").T)}
    return after
