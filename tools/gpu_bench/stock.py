"""The layers and projections in stock PyTorch: stacked weights, contiguous KV, states in place.

A step is a function of x `[B, H]` and the tensors of one layer by name.  It gives the next x and updates
caches and states in place, so that one function serves all layers, eagerly and compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.common.config import DecoderConfig
from models.qwen3_5_27b.reference import L2_EPS
from tools.gpu_bench.attention import Attend, contiguous
from tools.gpu_bench.catalogue import BenchError
from tools.gpu_bench.data import Layers, Tensors

Step = Callable[[Tensor, Tensors], Tensor]


# ------------------------------------------------------------------------------------------------ the data
def norm_weight(weight: Tensor, config: DecoderConfig) -> Tensor:
    """The factor of a norm `[N]`: in the element type where that holds it, else in fp32."""
    if config.gemma_norm:
        return (1.0 + weight).flatten()
    return weight.flatten().to(config.torch_dtype)


def attention_inputs(layers: Layers) -> list[Tensors]:
    """Of every layer its weights, its contiguous caches, and where this step's token goes.

    Raises:
        BenchError: contexts differ in length.
    """
    c, lengths = layers.config, layers.case.lengths
    if len(set(lengths)) > 1:
        raise BenchError(f"peers take contexts of one length; these have {sorted(set(lengths))}")
    layers.reset()
    found = []
    for t in layers.tensors:
        table = t["block_table"][:, : -(-lengths[0] // c.page)].long()
        at = t["positions"].long()
        found.append(
            {n: t[n] for n in ("w_qkv", "w_o", "w_gate_up", "w_down")}
            | {n: norm_weight(t[n], c) for n in ("input_norm", "post_norm", "q_norm", "k_norm")}
            | {n: t[f"rope_{n}"][at][:, None].to(c.torch_dtype) for n in ("cos", "sin")}
            | {n: contiguous(t[f"{n}_cache"], table, c)[:, :, : lengths[0]].contiguous() for n in "kv"}
            | {"at": torch.tensor([lengths[0] - 1], device=t["w_o"].device)}
        )
    return found


def delta_inputs(layers: Layers) -> list[Tensors]:
    """Of every layer its weights, and the states of its sequences in order."""
    c: Any = layers.config
    layers.reset()
    found = []
    for t in layers.tensors:
        slots, convs = t["state_slots"][:, 0].long(), t["conv_slots"].long()
        found.append(
            {n: t[n] for n in ("w_in", "w_out", "w_gate_up", "w_down", "conv_weight")}
            | {n: norm_weight(t[n], c) for n in ("input_norm", "post_norm")}
            | {"gdn_norm": t["gdn_norm"].flatten(), "rate": t["a_log"].exp(), "dt_bias": t["dt_bias"]}
            | {"state": t["state"].view(-1, c.v_heads, c.k_dim, c.v_dim)[slots]}
            | {"history": t["conv_state"].view(-1, c.taps - 1, c.conv_dim)[convs]}
        )
    return found


# ------------------------------------------------------------------------------------------------- the layers
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis in the type of x."""
    if weight.dtype == x.dtype:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return F.rms_norm(x.float(), (x.shape[-1],), weight, eps).to(x.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x `[B, heads, D]`, its leading dims turned."""
    n = cos.shape[-1]
    low, high, rest = x.split([n, n, x.shape[-1] - 2 * n], dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin, rest], dim=-1)


def mlp(x: Tensor, t: Tensors, eps: float) -> Tensor:
    """x plus its SwiGLU branch."""
    gate, up = F.linear(rms_norm(x, t["post_norm"], eps), t["w_gate_up"]).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, t["w_down"])


def attention_step(c: DecoderConfig, attend: Attend) -> Step:
    """A full-attention layer, with an output gate if the model has one."""
    parts = [c.gate_width, c.q_width, c.kv_width, c.kv_width]

    def step(x: Tensor, t: Tensors) -> Tensor:
        qkv = F.linear(rms_norm(x, t["input_norm"], c.eps), t["w_qkv"])
        gate, q, k, v = qkv.split(parts, dim=-1)
        heads = (x.shape[0], -1, c.head_dim)
        q = rope(rms_norm(q.reshape(heads), t["q_norm"], c.eps), t["cos"], t["sin"])
        k = rope(rms_norm(k.reshape(heads), t["k_norm"], c.eps), t["cos"], t["sin"])
        t["k"][:, :, t["at"]] = k[:, :, None]
        t["v"][:, :, t["at"]] = v.reshape(heads)[:, :, None]
        attended = attend(q, t["k"], t["v"])
        if c.gate_heads:
            attended = attended * torch.sigmoid(gate)
        return mlp(x + F.linear(attended, t["w_o"]), t, c.eps)

    return step


def by_products(state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    """The delta rule as matrix products that work on the state in place: the best eager form."""
    state.mul_(decay[..., None, None])
    write = (v - (k[..., None, :] @ state).squeeze(-2)) * beta[..., None]
    state.flatten(0, 1).baddbmm_(k.flatten(0, 1)[..., None], write.flatten(0, 1)[:, None])
    return (q[..., None, :] @ state).squeeze(-2)


def by_sums(state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    """The same elementwise with sums, which a compiler can fuse."""
    faded = state * decay[..., None, None]
    write = (v - (faded * k[..., None]).sum(-2)) * beta[..., None]
    new = faded + k[..., None] * write[..., None, :]
    state.copy_(new)
    return (new * q[..., None]).sum(-2)


RULES = {"products": by_products, "sums": by_sums}


def delta_step(c: Any, rule: str) -> Step:
    """A gated-delta-net layer with one of `RULES`: state `[B, nv, dk, dv]`, q and k `[B, nv, dk]`."""
    apply = RULES[rule]

    def step(x: Tensor, t: Tensors) -> Tensor:
        batch = x.shape[0]
        projected = F.linear(rms_norm(x, t["input_norm"], c.eps), t["w_in"])
        qkv, z, b, a = projected.split([c.conv_dim, c.v_width, c.v_heads, c.v_heads], dim=-1)
        window = torch.cat([t["history"], qkv[:, None]], dim=1)
        mixed = F.silu((window.float() * t["conv_weight"].float()).sum(1).to(x.dtype)).float()
        t["history"].copy_(window[:, 1:])
        q, k, v = mixed.split([c.k_width, c.k_width, c.v_width], dim=-1)
        q, k = (y.reshape(batch, c.k_heads, c.k_dim) for y in (q, k))
        q = q * torch.rsqrt(q.square().sum(-1, keepdim=True) + L2_EPS) * c.k_dim**-0.5
        k = k * torch.rsqrt(k.square().sum(-1, keepdim=True) + L2_EPS)
        q, k = (y.repeat_interleave(c.v_group, dim=1) for y in (q, k))
        decay = torch.exp(-t["rate"] * F.softplus(a.float() + t["dt_bias"]))
        heads = (batch, c.v_heads, c.v_dim)
        out = apply(t["state"], q, k, v.reshape(heads), torch.sigmoid(b).float(), decay).to(x.dtype)
        normed = F.rms_norm(out.float(), (c.v_dim,), t["gdn_norm"], c.eps)
        gated = normed * F.silu(z.reshape(heads).float())
        return mlp(x + F.linear(gated.to(x.dtype).flatten(1), t["w_out"]), t, c.eps)

    return step


# -------------------------------------------------------------------------------------------- projections
def product_inputs(t: Tensors, c: DecoderConfig) -> Tensors:
    """The data of a projection, its norm as the peers take it."""
    return {n: norm_weight(v, c) if n == "norm" else v for n, v in t.items() if n != "out"}


def product(t: Tensors) -> Tensor:
    """The product alone."""
    return F.linear(t["x"], t["weight"])


def product_step(name: str, eps: float) -> Callable[[Tensors], Tensor]:
    """A projection with its operand norm, or with its residual, and SwiGLU where that follows."""

    def step(t: Tensors) -> Tensor:
        if name == "qkv":
            return F.linear(rms_norm(t["x"], t["norm"], eps), t["weight"])
        if name == "gate_up":
            gate, up = F.linear(rms_norm(t["x"], t["norm"], eps), t["weight"]).chunk(2, dim=-1)
            return F.silu(gate) * up
        return t["residual"] + F.linear(t["x"], t["weight"])

    return step
