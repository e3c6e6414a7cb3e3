"""Mistakes that are easily made in a decoder layer, to be planted into the torch reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from models.common import equations as eq
from models.common.config import DecoderConfig
from models.common.equations import LiveRow, Precision

Tensors = dict[str, Tensor]
Mistake = Callable[[Tensors, Any, pytest.MonkeyPatch], Tensors]
"""Plants itself into the reference; returns the tensors to evaluate."""


def replacing(module: Any, name: str, make: Callable[[Any], Any]) -> Mistake:
    """A function of `module` becomes `make(function)`."""

    def mistake(tensors: Tensors, _: Any, patch: pytest.MonkeyPatch) -> Tensors:
        patch.setattr(module, name, make(getattr(module, name)))
        return tensors

    return mistake


def given(change: Callable[[Tensors, Any], Mapping[str, Tensor]]) -> Mistake:
    """Some tensors are taken for others."""
    return lambda tensors, config, _: {**tensors, **change(tensors, config)}


def q_heads_only(config: DecoderConfig, x: Tensor) -> bool:
    """Whether x `[T, heads, D]` is q, not k."""
    return x.shape[1] == config.q_heads


def interleaved(x: Tensor, cos: Tensor, sin: Tensor, p: Precision) -> Tensor:
    """RoPE on the pairs (2 i, 2 i + 1)."""
    n = 2 * cos.shape[-1]
    c, s = cos[:, None], sin[:, None]
    even, odd = x[..., 0:n:2], x[..., 1:n:2]
    turned = torch.stack([even * c - odd * s, odd * c + even * s], dim=-1).flatten(-2)
    return torch.cat([turned, x[..., n:]], dim=-1)


def norm_last(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, p: Precision, *, gemma: bool = False
) -> Tensor:
    """RoPE, then the norm."""
    return eq.rms_norm(eq.rope(x, cos, sin, p), weight, eps, p, gemma=gemma)


def regrouped(config: DecoderConfig, x: Tensor) -> Tensor:
    """Query heads `[T, q heads, D]` in the order in which head h reads KV head h % kv_heads."""
    order = torch.arange(config.q_heads).view(config.group, config.kv_heads).T.flatten()
    return x[:, order]


def wrong_heads(tensors: Tensors, config: DecoderConfig, patch: pytest.MonkeyPatch) -> Tensors:
    """Query head h reads KV head h % kv_heads."""
    attend = eq.attend

    def mistaken(q: Tensor, *rest: Any) -> Tensor:
        out = torch.empty_like(q)
        order = regrouped(config, torch.arange(config.q_heads)[None])[0]
        out[:, order] = attend(q[:, order], *rest)
        return out

    patch.setattr(eq, "attend", mistaken)
    return tensors


def seeing(length: Callable[[LiveRow, list[LiveRow]], int]) -> Mistake:
    """Rows attend to another number of tokens."""

    def make(attend: Any) -> Any:
        def mistaken(q: Tensor, rows: list[LiveRow], *rest: Any) -> Tensor:
            return attend(q, [LiveRow(r.row, r.seq, length(r, rows)) for r in rows], *rest)

        return mistaken

    return replacing(eq, "attend", make)


def last_of(row: LiveRow, rows: list[LiveRow]) -> int:
    return max(r.length for r in rows if r.seq == row.seq)


def first_of(row: LiveRow, rows: list[LiveRow]) -> int:
    return min(r.length for r in rows if r.seq == row.seq)


def swapped_halves(name: str) -> Mistake:
    return given(lambda t, c: {name: torch.cat(t[name].chunk(2)[::-1])})


def without_norm(which: Callable[[DecoderConfig, Tensor], bool]) -> Mistake:
    """q or k is rotated as it is."""

    def mistake(tensors: Tensors, config: DecoderConfig, patch: pytest.MonkeyPatch) -> Tensors:
        norm_rope = eq.norm_rope

        def mistaken(x: Tensor, w: Tensor, cos: Tensor, sin: Tensor, eps: float, p: Precision, **how: Any):
            if which(config, x):
                return eq.rope(x, cos, sin, p)
            return norm_rope(x, w, cos, sin, eps, p, **how)

        patch.setattr(eq, "norm_rope", mistaken)
        return tensors

    return mistake


def without_rope(which: Callable[[DecoderConfig, Tensor], bool]) -> Mistake:
    """q or k is normed only."""

    def mistake(tensors: Tensors, config: DecoderConfig, patch: pytest.MonkeyPatch) -> Tensors:
        rope = eq.rope
        patch.setattr(eq, "rope", lambda x, *rest: x if which(config, x) else rope(x, *rest))
        return tensors

    return mistake


def angles_at(config: Any, theta: float, dims: int) -> Tensors:
    """RoPE tables of another base, or for another number of dims."""
    exponent = torch.arange(0, dims, 2).float() / dims
    angles = torch.arange(config.max_seq).float()[:, None] / theta**exponent
    return {"rope_cos": angles.cos(), "rope_sin": angles.sin()}


def residual_lost(tensors: Tensors, config: Any, patch: pytest.MonkeyPatch) -> Tensors:
    """The MLP's norm takes what entered the layer, without the mixer's branch."""
    mlp, seen = eq.mlp, []
    rms_norm = eq.rms_norm
    patch.setattr(eq, "rms_norm", lambda x, *a, **k: (seen.append(x), rms_norm(x, *a, **k))[1])
    patch.setattr(eq, "mlp", lambda x, *rest: mlp(seen[0], *rest))
    return tensors


ATTENTION: dict[str, Mistake] = {
    "q and k normed after RoPE": replacing(eq, "norm_rope", lambda _: norm_last),
    "q not normed": without_norm(q_heads_only),
    "k not normed": without_norm(lambda c, x: not q_heads_only(c, x)),
    "q not rotated": without_rope(q_heads_only),
    "k not rotated": without_rope(lambda c, x: not q_heads_only(c, x)),
    "rotary pairs interleaved": replacing(eq, "rope", lambda _: interleaved),
    "rotated the other way": given(lambda t, c: {"rope_sin": -t["rope_sin"]}),
    "theta of another model": given(lambda t, c: angles_at(c, 1e4, c.rotary)),
    "position one ahead": given(lambda t, c: {"positions": t["positions"] + 1}),
    "angles rounded to bf16": given(
        lambda t, c: {n: t[n].bfloat16().float() for n in ("rope_cos", "rope_sin")}
    ),
    "KV head h % n": wrong_heads,
    "scores not scaled": replacing(
        eq, "weighted", lambda f: lambda s, v, *how: f(s * v.shape[-1] ** 0.5, v, *how)
    ),
    "current token not attended": seeing(lambda r, rows: max(r.length - 1, 1)),
    "rows see those behind them": seeing(last_of),
    "rows do not see those before them": seeing(first_of),
}
"""Of full attention, in any model. Some show only with several rows per sequence."""

BLOCK: dict[str, Mistake] = {
    "SiLU forgotten": replacing(eq, "silu", lambda _: lambda x: x),
    "gate and up swapped": swapped_halves("w_gate_up"),
    "MLP normed without the mixer's branch": residual_lost,
    "norm weights swapped": given(lambda t, c: {"input_norm": t["post_norm"], "post_norm": t["input_norm"]}),
    "norm over the sum of squares": replacing(
        eq, "rms_norm", lambda f: lambda x, *a, **k: f(x, *a, **k) / x.shape[-1] ** 0.5
    ),
}
"""Of every layer, in any model."""
