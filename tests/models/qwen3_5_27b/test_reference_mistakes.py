"""Every mistake that is planted into the reference is a hundred times what the comparison lets pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.common import equations as eq
from models.common.equations import Precision
from models.qwen3_5_27b import reference
from models.qwen3_5_27b.config import Config
from tests.models.checks import MAY_MOVE, eager_attend, errors, evaluate, linear_by_row, moved
from tests.models.mistakes import (
    ATTENTION,
    BLOCK,
    Mistake,
    Tensors,
    angles_at,
    given,
    replacing,
)
from tests.models.qwen3_5_27b.oracle import oracle

TOLERANCE = 1e-5
COUNTS, SPAN, KEPT = [4, 0, 2, 3], 4, [2, 4, 1, 3]
F = torch.nn.functional


# ------------------------------------------------------------------------------------------- full attention
def gate_normed(tensors: Tensors, config: Config, patch: pytest.MonkeyPatch) -> Tensors:
    gate = eq.output_gate

    def mistaken(attended: Tensor, g: Tensor, p: Precision) -> Tensor:
        heads = g.view(len(g), config.gate_heads, config.head_dim)
        return gate(attended, eq.rms_norm(heads, tensors["q_norm"], config.eps, p, gemma=True).flatten(1), p)

    patch.setattr(eq, "output_gate", mistaken)
    return tensors


def gate_rotated(tensors: Tensors, config: Config, patch: pytest.MonkeyPatch) -> Tensors:
    gate = eq.output_gate
    at = [row.row for row in eq.live_rows(tensors, config)]
    pos = tensors["positions"][at].long()
    cos, sin = tensors["rope_cos"][pos], tensors["rope_sin"][pos]

    def mistaken(attended: Tensor, g: Tensor, p: Precision) -> Tensor:
        heads = g.view(len(g), config.gate_heads, config.head_dim)
        return gate(attended, eq.rope(heads, cos, sin, p).flatten(1), p)

    patch.setattr(eq, "output_gate", mistaken)
    return tensors


def gate_behind_q(t: Tensors, c: Config) -> Tensors:
    """The stacked rows are taken for q | gate | k | v."""
    gate, q, rest = t["w_qkv"].split([c.gate_width, c.q_width, 2 * c.kv_width])
    return {"w_qkv": torch.cat([q, gate, rest])}


def gate_by_head(t: Tensors, c: Config) -> Tensors:
    """The checkpoint's order, every head's q and gate side by side, is taken for gate | q."""
    gate, q, rest = t["w_qkv"].split([c.gate_width, c.q_width, 2 * c.kv_width])
    heads = (c.q_heads, c.head_dim, c.hidden)
    return {"w_qkv": torch.cat([torch.cat([q.view(heads), gate.view(heads)], 1).view(-1, c.hidden), rest])}


def one_missing(f: Any) -> Any:
    return lambda x, weight, eps, p, *, gemma=False: f(x, weight, eps, p)


FULL: dict[str, Mistake] = {
    **ATTENTION,
    **BLOCK,
    "1 + w without the 1": replacing(eq, "rms_norm", one_missing),
    "1 + w without the 1, in q_norm alone": given(lambda t, c: {"q_norm": t["q_norm"] - 1}),
    "rotary over all dims": given(lambda t, c: angles_at(c, c.rope_theta, c.head_dim)),
    "rotary over half of its dims": given(
        lambda t, c: {n: t[n][:, : c.rotary_dim // 4].contiguous() for n in ("rope_cos", "rope_sin")}
    ),
    "position taken for the index in the cache": given(
        lambda t, c: {
            "positions": torch.tensor([r.length - 1 for r in eq.live_rows(t, c)], dtype=torch.int32)
        }
    ),
    "output gate forgotten": replacing(eq, "output_gate", lambda _: lambda x, g, p: x),
    "output gate is SiLU": replacing(eq, "output_gate", lambda _: lambda x, g, p: x * F.silu(g)),
    "output gate normed": gate_normed,
    "output gate rotated": gate_rotated,
    "q and gate swapped": given(gate_behind_q),
    "gate | q taken head by head": given(gate_by_head),
}


# ------------------------------------------------------------------------------------------ gated delta net
def of_delta_rule(change: Any) -> Mistake:
    """`change` gets the arguments of `delta_rule` and gives its results."""
    return replacing(reference, "delta_rule", lambda _: change)


def decay_last(state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Any:
    recalled = (state * k[..., None]).sum(-2)
    state = state + k[..., None] * ((v - recalled) * beta[:, None])[:, None]
    state = state * decay[:, None, None]
    return (state * q[..., None]).sum(-2), state


def recall_first(state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Any:
    recalled = (state * k[..., None]).sum(-2)
    state = state * decay[:, None, None] + k[..., None] * ((v - recalled) * beta[:, None])[:, None]
    return (state * q[..., None]).sum(-2), state


def no_recall(state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Any:
    state = state * decay[:, None, None] + k[..., None] * (v * beta[:, None])[:, None]
    return (state * q[..., None]).sum(-2), state


def output_first(state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Any:
    old = state * decay[:, None, None]
    error = (v - (old * k[..., None]).sum(-2)) * beta[:, None]
    return (old * q[..., None]).sum(-2), old + k[..., None] * error[:, None]


def beta_after_recall(state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Any:
    state = state * decay[:, None, None]
    error = v * beta[:, None] - (state * k[..., None]).sum(-2)
    state = state + k[..., None] * error[:, None]
    return (state * q[..., None]).sum(-2), state


def state_in_bf16(rule: Any) -> Any:
    def mistaken(state: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        out, after = rule(state.bfloat16().float(), *rest)
        return out, after.bfloat16().float()

    return mistaken


def state_transposed(t: Tensors, c: Config) -> Tensors:
    """What is stored is taken for `[dv, dk]`."""
    state = t["state"].view(-1, c.v_heads, c.v_dim, c.k_dim).transpose(-1, -2)
    return {"state": state.reshape(t["state"].shape)}


def heads_by_remainder(split: Any) -> Any:
    """Value head j takes q and k of head j % k_heads."""

    def mistaken(y: Tensor, c: Config) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = split(y, c)
        order = torch.arange(c.v_heads) % c.k_heads * c.v_group
        return q[:, order], k[:, order], v

    return mistaken


def scaled(q_factor: float, k_factor: float) -> Mistake:
    def make(split: Any) -> Any:
        def mistaken(y: Tensor, c: Config) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = split(y, c)
            return q * c.k_dim**q_factor, k * c.k_dim**k_factor, v

        return mistaken

    return replacing(reference, "split_heads", make)


def exchanged(first: str, second: str) -> Mistake:
    """Two of the sections of w_in are taken for each other."""

    def change(t: Tensors, c: Config) -> Tensors:
        names = ("q", "k", "v", "z", "b", "a")
        widths = [c.k_width, c.k_width, c.v_width, c.v_width, c.v_heads, c.v_heads]
        parts = dict(zip(names, t["w_in"].split(widths), strict=True))
        parts[first], parts[second] = parts[second], parts[first]
        return {"w_in": torch.cat(list(parts.values()))}

    return given(change)


def norm_changed(make: Any) -> Mistake:
    return replacing(reference, "gated_norm", lambda _: make)


def unit(o: Tensor, eps: float, dims: int | tuple[int, ...] = -1) -> Tensor:
    return o * torch.rsqrt(o.square().mean(dims, keepdim=True) + eps)


def history_of_outputs(tensors: Tensors, config: Config, patch: pytest.MonkeyPatch) -> Tensors:
    """The convolution's buffer takes what comes out of it."""
    window = reference.conv_window

    def mistaken(new: Tensor, seq: int, t: Tensors, c: Config, p: Precision) -> Tensor:
        inputs = window(new, seq, t, c, p)
        width = c.taps - 2 + t["state_slots"].shape[1]
        columns = t["conv_state"].view(-1, width, c.conv_dim)[int(t["conv_slots"][seq])]
        outputs = reference.convolve(inputs, t["conv_weight"], p)
        columns[c.taps - 2 : c.taps - 2 + len(new)] = outputs.to(columns.dtype)
        return inputs

    patch.setattr(reference, "conv_window", mistaken)
    return tensors


def convolved(window: Tensor, weight: Tensor) -> Tensor:
    """The convolution alone, `[n, C]`."""
    return F.conv1d(window.T, weight.to(window.dtype).T[:, None], groups=weight.shape[1]).T


GDN: dict[str, Mistake] = {
    **BLOCK,
    "1 + w without the 1": replacing(eq, "rms_norm", one_missing),
    "1 + w in the output norm": given(lambda t, c: {"gdn_norm": 1 + t["gdn_norm"]}),
    "beta rounded to bf16": replacing(
        reference, "write_strength", lambda f: lambda b, p: f(b, p).bfloat16().float()
    ),
    "beta without sigmoid": replacing(reference, "write_strength", lambda _: lambda b, p: b),
    "beta after the recall": of_delta_rule(beta_after_recall),
    "A_log in bf16": given(lambda t, c: {"a_log": t["a_log"].bfloat16().float()}),
    "A_log taken for A": given(lambda t, c: {"a_log": t["a_log"].abs().log()}),
    "dt_bias forgotten": given(lambda t, c: {"dt_bias": torch.zeros_like(t["dt_bias"])}),
    "softplus is an exponential": replacing(
        reference, "log_decay", lambda _: lambda a, a_log, dt, p: -a_log.exp() * (a + dt).exp()
    ),
    "no decay": replacing(reference, "log_decay", lambda f: lambda *args: 0 * f(*args)),
    "state in bf16": replacing(reference, "delta_rule", state_in_bf16),
    "state transposed": given(state_transposed),
    "decay after the update": of_delta_rule(decay_last),
    "recall before the decay": of_delta_rule(recall_first),
    "nothing recalled": of_delta_rule(no_recall),
    "output before the update": of_delta_rule(output_first),
    "q and k of head h % n": replacing(reference, "split_heads", heads_by_remainder),
    "l2 norm by the mean": scaled(0.5, 0.5),
    "k scaled like q": scaled(0.0, -0.5),
    "q not scaled": scaled(0.5, 0.0),
    "no l2 norm": replacing(reference, "unit_length", lambda _: lambda x: x),
    "q and k exchanged": exchanged("q", "k"),
    "v and z exchanged": exchanged("v", "z"),
    "b and a exchanged": exchanged("b", "a"),
    "taps reversed": given(lambda t, c: {"conv_weight": t["conv_weight"].flip(0)}),
    "history one column off": given(lambda t, c: {"conv_state": t["conv_state"].roll(1, 0)}),
    "history of outputs": history_of_outputs,
    "SiLU of the convolution forgotten": replacing(
        reference, "convolve", lambda _: lambda window, weight, p: convolved(window, weight)
    ),
    "state of the first slot": given(lambda t, c: {"kept": torch.ones_like(t["kept"])}),
    "output norm over all heads": norm_changed(
        lambda o, z, w, eps, p: w * unit(o, eps, (-2, -1)) * F.silu(z)
    ),
    "output norm after the gate": norm_changed(lambda o, z, w, eps, p: w * unit(o * F.silu(z), eps)),
    "output gate is a sigmoid": norm_changed(lambda o, z, w, eps, p: w * unit(o, eps) * z.sigmoid()),
    "output gate forgotten": norm_changed(lambda o, z, w, eps, p: w * unit(o, eps)),
}

TABLE = [*(("full", name) for name in FULL), *(("gdn", name) for name in GDN)]


@pytest.mark.parametrize(("layer", "name"), TABLE, ids=[f"{layer}: {name}" for layer, name in TABLE])
def test_mistake_is_a_hundred_tolerances(layer: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest error of any tensor against transformers, with several rows per sequence, in fp32."""
    run = oracle("fp32")
    number = run.config.kinds.index(layer)
    expected = run.expected(0, number, COUNTS, SPAN, KEPT)
    tensors = run.tensors(0, number, COUNTS, SPAN, KEPT)
    assert max(errors(evaluate(reference, tensors, run.config, layer), expected).values()) <= TOLERANCE
    mistaken = (FULL if layer == "full" else GDN)[name](tensors, run.config, monkeypatch)
    worst = errors(evaluate(reference, mistaken, run.config, layer), expected)
    assert max(worst.values()) >= 100 * TOLERANCE


# ---------------------------------------------------------------------------------------------- roundings
def norm_rounded_twice(x: Tensor, weight: Tensor, eps: float, p: Precision, *, gemma: bool = False) -> Tensor:
    return p.rnd(p.rnd(unit(x, eps)) * (1 + weight))


def rope_rounded_once(rope: Any) -> Any:
    return lambda x, cos, sin, p: p.rnd(rope(x, cos, sin, Precision()))


ROUNDINGS: dict[str, tuple[str, Mistake]] = {
    "norm rounded twice": ("gdn", replacing(eq, "rms_norm", lambda _: norm_rounded_twice)),
    "products of RoPE not rounded": ("full", replacing(eq, "rope", rope_rounded_once)),
    "SiLU not rounded": ("full", replacing(eq, "gated_up", lambda _: lambda g, u, p: p.rnd(F.silu(g) * u))),
    "output gate not rounded": (
        "full",
        replacing(eq, "output_gate", lambda _: lambda x, g, p: p.rnd(x * g.sigmoid())),
    ),
    "convolution not rounded before SiLU": (
        "gdn",
        replacing(reference, "convolve", lambda _: lambda x, w, p: p.rnd(F.silu(convolved(x, w)))),
    ),
    "beta not rounded": (
        "gdn",
        replacing(reference, "write_strength", lambda f: lambda b, p: f(b, Precision())),
    ),
    "q and k rounded": (
        "gdn",
        replacing(reference, "unit_length", lambda f: lambda x: f(x).bfloat16().float()),
    ),
    "A_log rounded": ("gdn", GDN["A_log in bf16"]),
    "output norm not rounded before its weight": (
        "gdn",
        norm_changed(lambda o, z, w, eps, p: p.rnd(w * unit(o, eps) * F.silu(z))),
    ),
    "output norm rounded before its gate": (
        "gdn",
        norm_changed(lambda o, z, w, eps, p: p.rnd(p.rnd(w * p.rnd(unit(o, eps))) * F.silu(z))),
    ),
    "gate of the output norm rounded": (
        "gdn",
        norm_changed(lambda o, z, w, eps, p: p.rnd(w * p.rnd(unit(o, eps)) * p.rnd(F.silu(z)))),
    ),
}


@pytest.mark.parametrize("name", ROUNDINGS)
def test_wrong_rounding_moves_ten_times_what_may_move(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the logits in bf16; with the right roundings, they are transformers' bit for bit."""
    layer, mistake = ROUNDINGS[name]
    monkeypatch.setattr(eq, "linear", linear_by_row)
    monkeypatch.setattr(eq, "attend", eager_attend)
    run = oracle("bf16")
    number = run.config.kinds.index(layer)
    tensors, expected = run.tensors(0, number), run.expected(0, number)["logits"]
    right = evaluate(reference, tensors, run.config, layer)["logits"]
    assert moved(right, expected) <= MAY_MOVE
    wrong = evaluate(reference, mistake(tensors, run.config, monkeypatch), run.config, layer)["logits"]
    assert moved(wrong, expected) >= 10 * MAY_MOVE
