"""Qwen3 decode step in plain torch: one set of equations, evaluated at any precision.

`golden` evaluates them as the model does: fp32 arithmetic, rounded to the model's element type where the
model stores a value. `exact` evaluates them in fp64 without any rounding. The distance between the two is the
error that the element type alone explains, and the yardstick for a kernel.

The equations are those of Hugging Face's `Qwen3ForCausalLM`, except that scores, softmax and P @ V are not
rounded, and the attention output is rounded once, as in a fused attention kernel.

Tensors, for T query rows and B sequences (names as in the dictionary that every function here takes):

    hidden [T, H]                     residual stream
    positions, slot_mapping [T]       i32; slot = physical page * page + offset, or -1 for a dead row
    cu_q [B + 1], ctx [B]             i32; sequence s owns rows cu_q[s]:cu_q[s + 1], and ctx counts them
    block_table [B, pages_per_seq]    i32; physical page ids
    k_cache, v_cache [rows, D]        row = (physical page * kv_heads + kv head) * page + offset
    w_qkv [(q + 2 kv) heads * D, H]   rows q | k | v
    w_o [H, q heads * D]
    w_gate_up [2 I, H]                rows gate | up
    w_down [H, I]
    w_lm_head [V, H]                  V = the padded vocabulary, or a leading part of it
    input_norm, post_norm [1, H]      fp32
    q_norm, k_norm [1, D]             fp32
    final_norm [1, H]                 fp32
    rope_cos, rope_sin [max_seq, D/2] fp32
    next_hidden, normed [T, H]        outputs
    logits [T, V]                     output; without it, no LM head is run
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.qwen3_14b.config import Config

OUTPUTS = ("next_hidden", "normed", "logits")
"""Tensors that a step overwrites."""

MUTATED = (*OUTPUTS, "k_cache", "v_cache")
"""Tensors that a step may change: the outputs, and the caches at this step's slots."""

_CHUNK = 1 << 22  # weight elements converted at a time: 32 MiB in fp64


@dataclass(frozen=True)
class Precision:
    """Arithmetic in `compute`; values that the model stores are rounded to `round_to` (None: never).

    With `round_weights` the softmax weights are rounded before they multiply V, as where a matrix unit takes
    them.  A kernel that walks the context in pieces does so relative to the maximum so far: it rounds the
    same values as long as the context is one piece.
    """

    compute: torch.dtype = torch.float32
    round_to: torch.dtype | None = None
    round_weights: bool = False

    def up(self, x: Tensor) -> Tensor:
        """`x` in the arithmetic type."""
        return x.to(self.compute)

    def rnd(self, x: Tensor) -> Tensor:
        """`x` rounded to nearest even as if it were stored, kept in the arithmetic type."""
        return x if self.round_to is None else x.to(self.round_to).to(self.compute)


@dataclass(frozen=True)
class LiveRow:
    """A row that takes part in the step: `row` of sequence `seq` attends to its first `length` tokens."""

    row: int
    seq: int
    length: int


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return torch.nn.functional.silu(x)


def linear(x: Tensor, weight: Tensor, p: Precision) -> Tensor:
    """rnd(x @ weight.T) for x `[T, K]` and weight `[N, K]`, converting a few weight rows at a time."""
    out = x.new_empty(x.shape[0], weight.shape[0])
    rows = max(1, _CHUNK // weight.shape[1])
    for n in range(0, weight.shape[0], rows):
        torch.matmul(x, p.up(weight[n : n + rows]).T, out=out[:, n : n + rows])
    return p.rnd(out)


def rms_norm(x: Tensor, weight: Tensor, eps: float, p: Precision) -> Tensor:
    """RMSNorm over the last axis, rounded twice as in Llama: rnd(weight * rnd(x / rms(x)))."""
    unit = p.rnd(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))
    return p.rnd(p.up(weight) * unit)


def rope(x: Tensor, cos: Tensor, sin: Tensor, p: Precision) -> Tensor:
    """Rotate the pairs (i, i + D/2) of x `[T, heads, D]` by the angles whose cos and sin are `[T, D/2]`."""
    lo, hi = x.chunk(2, dim=-1)
    c, s = p.up(cos)[:, None], p.up(sin)[:, None]
    return p.rnd(torch.cat([p.rnd(lo * c) + p.rnd(-hi * s), p.rnd(hi * c) + p.rnd(lo * s)], dim=-1))


def norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, p: Precision) -> Tensor:
    """Per-head RMSNorm, then RoPE, of x `[T, heads, D]`."""
    return rope(rms_norm(x, weight, eps, p), cos, sin, p)


def final_norm(hidden: Tensor, weight: Tensor, eps: float, p: Precision) -> Tensor:
    """The norm before the LM head, of hidden `[T, H]`."""
    return rms_norm(p.up(hidden), weight, eps, p)


def lm_head(normed: Tensor, weight: Tensor, p: Precision) -> Tensor:
    """Logits `[T, V]` of normed `[T, H]`; the vocabulary is walked in chunks."""
    return linear(p.up(normed), weight, p)


def live_rows(tensors: Mapping[str, Tensor], config: Config) -> list[LiveRow]:
    """The rows that compute something, in order.

    A row is dead if its slot is negative, if its sequence has ctx 0, or if no cu_q range holds it. Row j of
    the S rows of a sequence sees the tokens up to itself: ctx - S + j + 1 of them.

    Raises:
        ValueError: if a context exceeds max_seq or is shorter than its rows, or a slot or page does not
        exist.
    """
    slots, ctx, cu_q = (tensors[name].tolist() for name in ("slot_mapping", "ctx", "cu_q"))
    pages = tensors["k_cache"].shape[0] // (config.kv_heads * config.page)
    rows = []
    for seq, length in enumerate(ctx):
        first, end = cu_q[seq], cu_q[seq + 1]
        live = [row for row in range(first, end) if slots[row] >= 0 and length > 0]
        if not live:
            continue
        if not end - first <= length <= config.max_seq:
            raise ValueError(
                f"ctx[{seq}] = {length} must lie between the sequence's {end - first} rows "
                f"and max_seq = {config.max_seq}"
            )
        used = tensors["block_table"][seq, : -(-length // config.page)]
        if bool(((used < 0) | (used >= pages)).any()):
            raise ValueError(f"block_table[{seq}] = {used.tolist()} names a page outside 0..{pages - 1}")
        for row in live:
            if slots[row] >= pages * config.page:
                raise ValueError(
                    f"slot_mapping[{row}] = {slots[row]} lies beyond the cache's {pages * config.page} slots"
                )
            rows.append(LiveRow(row, seq, length - (end - first) + (row - first) + 1))
    return rows


def write_kv(cache: Tensor, new: Tensor, slots: Tensor, config: Config) -> None:
    """Store new `[T, kv heads, D]` at `slots` `[T]` of the paged cache."""
    paged = cache.view(-1, config.kv_heads, config.page, config.head_dim)
    paged[slots // config.page, :, slots % config.page] = new.to(cache.dtype)


def read_kv(cache: Tensor, pages: Tensor, length: int, config: Config) -> Tensor:
    """The first `length` tokens on `pages` of the paged cache, `[kv heads, length, D]`."""
    used = pages[: -(-length // config.page)].long()
    paged = cache.view(-1, config.kv_heads, config.page, config.head_dim)[used]
    # Cut before any arithmetic: slots beyond the context hold stale values.
    return paged.transpose(0, 1).reshape(config.kv_heads, -1, config.head_dim)[:, :length]


def attend(
    q: Tensor, rows: list[LiveRow], tensors: dict[str, Tensor], config: Config, p: Precision
) -> Tensor:
    """Grouped-query attention of q `[T, q heads, D]`, row by row; query head h reads KV head h // group."""
    out = torch.empty_like(q)
    for i, live in enumerate(rows):
        pages = tensors["block_table"][live.seq]
        keys = p.up(read_kv(tensors["k_cache"], pages, live.length, config))
        values = p.up(read_kv(tensors["v_cache"], pages, live.length, config))
        scores = q[i].view(config.kv_heads, config.group, -1) @ keys.transpose(1, 2) * config.scale
        out[i] = weighted(scores, values, p).view(config.q_heads, -1)
    return p.rnd(out)


def weighted(scores: Tensor, values: Tensor, p: Precision) -> Tensor:
    """softmax(scores) @ values for scores `[..., M, N]` and values `[..., N, D]`."""
    if not p.round_weights:
        return torch.softmax(scores, dim=-1) @ values
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return p.rnd(weights) @ values / weights.sum(-1, keepdim=True)


def attention(
    x: Tensor, rows: list[LiveRow], tensors: dict[str, Tensor], config: Config, p: Precision
) -> Tensor:
    """Attention branch of x `[T, H]`, the live `rows` only; writes this step's K and V, then reads them."""
    at = torch.tensor([live.row for live in rows])
    pos, slots = tensors["positions"][at].long(), tensors["slot_mapping"][at].long()
    cos, sin = tensors["rope_cos"][pos], tensors["rope_sin"][pos]
    h = rms_norm(x, tensors["input_norm"], config.eps, p)
    q, k, v = linear(h, tensors["w_qkv"], p).split([config.q_width, config.kv_width, config.kv_width], dim=-1)
    heads = (len(rows), -1, config.head_dim)
    q = norm_rope(q.reshape(heads), tensors["q_norm"], cos, sin, config.eps, p)
    k = norm_rope(k.reshape(heads), tensors["k_norm"], cos, sin, config.eps, p)
    write_kv(tensors["k_cache"], k, slots, config)
    write_kv(tensors["v_cache"], v.reshape(heads), slots, config)
    return linear(attend(q, rows, tensors, config, p).flatten(1), tensors["w_o"], p)


def mlp(x: Tensor, tensors: dict[str, Tensor], config: Config, p: Precision) -> Tensor:
    """SwiGLU branch of x `[T, H]`."""
    h = rms_norm(x, tensors["post_norm"], config.eps, p)
    gate, up = linear(h, tensors["w_gate_up"], p).chunk(2, dim=-1)
    return linear(p.rnd(p.rnd(silu(gate)) * up), tensors["w_down"], p)


def decode_layer(
    tensors: dict[str, Tensor],
    config: Config,
    *,
    compute: torch.dtype = torch.float32,
    round_to: torch.dtype | None = None,
    round_weights: bool = False,
) -> None:
    """One decoder layer, the final norm, and the LM head if `logits` is given; mutates outputs and caches.

    Dead rows (see `live_rows`) give zeros and leave the caches alone.

    Args:
        tensors: the tensors listed at the top of this file.
        config: the model's sizes.
        compute: arithmetic type, float32 or float64.
        round_to: type that every stored value is rounded to, or None for no rounding at all.
        round_weights: see `Precision`.

    Raises:
        ValueError: if an output could not hold its value unrounded, or the step's indices are not consistent.
    """
    p = Precision(compute, round_to, round_weights)
    stored = compute if round_to is None else round_to
    for name in MUTATED:
        if name in tensors and torch.promote_types(tensors[name].dtype, stored) != tensors[name].dtype:
            raise ValueError(
                f"{name} is {tensors[name].dtype} and cannot hold {stored}; use exact() or wider outputs"
            )
    rows = live_rows(tensors, config)
    for name in OUTPUTS:
        if name in tensors:
            tensors[name].zero_()
    if not rows:
        return
    at = torch.tensor([live.row for live in rows])
    x = p.up(tensors["hidden"][at])
    x = p.rnd(x + attention(x, rows, tensors, config, p))
    x = p.rnd(x + mlp(x, tensors, config, p))
    y = final_norm(x, tensors["final_norm"], config.eps, p)
    tensors["next_hidden"][at] = x.to(tensors["next_hidden"].dtype)
    tensors["normed"][at] = y.to(tensors["normed"].dtype)
    if "logits" in tensors:
        tensors["logits"][at] = lm_head(y, tensors["w_lm_head"], p).to(tensors["logits"].dtype)


def golden(tensors: dict[str, Tensor], config: Config, round_weights: bool = False) -> None:
    """`decode_layer` as the model computes it: fp32 arithmetic, stored values in the model's element type."""
    decode_layer(
        tensors, config, compute=torch.float32, round_to=config.torch_dtype, round_weights=round_weights
    )


def exact(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The mutated tensors of `decode_layer` in fp64, never rounded; `tensors` itself is left unchanged."""
    wide = {name: tensors[name].double() for name in MUTATED if name in tensors}
    decode_layer({**tensors, **wide}, config, compute=torch.float64)
    return wide
