"""Decoder equations in plain torch, shared by the models' references and evaluated at any precision.

The equations are those of Hugging Face's decoders, except that scores, softmax and P @ V are not rounded, and
the attention output is rounded once, as in a fused attention kernel.

Tensors of a step with full attention, for T query rows and B sequences (names as in the dictionaries here):

    hidden [T, H]                     residual stream
    positions, slot_mapping [T]       i32; slot = physical page * page + offset, or negative for a dead row
    cu_q [B + 1], ctx [B]             i32; sequence s owns rows cu_q[s]:cu_q[s + 1], and ctx counts the live
    block_table [B, pages_per_seq]    i32; physical page ids
    k_cache, v_cache [rows, D]        row = (physical page * kv_heads + kv head) * page + offset
    w_qkv [qkv_width, H]              rows gate | q | k | v, each whole heads; not every model has a gate
    w_o [H, q heads * D]
    w_gate_up [2 I, H]                rows gate | up
    w_down [H, I]
    w_lm_head [V, H]                  V = the padded vocabulary, or a leading part of it
    input_norm, post_norm [1, H]      fp32; centred on 0 where `gemma_norm`
    q_norm, k_norm [1, D]             fp32; the same
    final_norm [1, H]                 fp32; the same
    rope_cos, rope_sin [max_seq, n]   fp32; n = half of the rotated dims
    next_hidden, normed [T, H]        outputs
    logits [T, V]                     output; without it, no LM head is run

Rows that are not live (see `live_rows`) give zeros and leave caches and states alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

import torch
from torch import Tensor

from models.common.config import DecoderConfig

OUTPUTS = ("next_hidden", "normed", "logits")
"""Tensors that a step overwrites."""

CACHES = ("k_cache", "v_cache")
"""Tensors that a full-attention layer changes at this step's slots."""

_CHUNK = 1 << 22  # weight elements converted at a time: 32 MiB in fp64


@dataclass(frozen=True)
class Precision:
    """Arithmetic in `compute`; values that the model stores are rounded to `round_to` (None: never).

    With `round_weights` the softmax weights are rounded before they multiply V, as where a matrix unit takes
    them.  A kernel that walks the context in pieces does so relative to the maximum so far, and begins with
    the step's own tokens: it rounds the same values as long as the tokens before them are one piece.
    """

    compute: torch.dtype = torch.float32
    round_to: torch.dtype | None = None
    round_weights: bool = False

    @property
    def stored(self) -> torch.dtype:
        """The type that holds a stored value as it is."""
        return self.compute if self.round_to is None else self.round_to

    def up(self, x: Tensor) -> Tensor:
        """`x` in the arithmetic type."""
        return x.to(self.compute)

    def rnd(self, x: Tensor) -> Tensor:
        """`x` rounded to nearest even as if it were stored, kept in the arithmetic type."""
        return x if self.round_to is None else x.to(self.round_to).to(self.compute)


# ------------------------------------------------------------------------------------------ rows of a step
@dataclass(frozen=True)
class LiveRow:
    """A row that takes part in the step: `row` of sequence `seq` attends to its first `length` tokens."""

    row: int
    seq: int
    length: int


def live_rows(tensors: Mapping[str, Tensor], config: DecoderConfig) -> list[LiveRow]:
    """The rows that compute something, in order.

    Of the rows cu_q[s]:cu_q[s + 1] of a sequence, the live ones are those before the first negative slot;
    none, if ctx[s] is 0. ctx counts the live rows, so row j of n sees the tokens up to itself, which are
    ctx - n + j + 1. A row that no range holds is not live.

    Raises:
        ValueError: if cu_q is not a division of the rows, a context exceeds max_seq or is shorter than its
        rows, or a slot or page does not exist.
    """
    slots, ctx, cu_q = (tensors[name].tolist() for name in ("slot_mapping", "ctx", "cu_q"))
    if cu_q[0] < 0 or cu_q[-1] > len(slots) or any(a > b for a, b in zip(cu_q, cu_q[1:], strict=False)):
        raise ValueError(f"cu_q = {cu_q} must ascend within the step's {len(slots)} rows")
    rows: list[LiveRow] = []
    for seq, length in enumerate(ctx):
        owned = range(cu_q[seq], cu_q[seq + 1]) if length > 0 else ()
        live = list(takewhile(lambda row: slots[row] >= 0, owned))
        if live and not len(live) <= length <= config.max_seq:
            raise ValueError(
                f"ctx[{seq}] = {length} must lie between the sequence's {len(live)} live rows "
                f"and max_seq = {config.max_seq}"
            )
        rows += [LiveRow(row, seq, length - len(live) + j + 1) for j, row in enumerate(live)]
    if "k_cache" in tensors:
        _check_pages(rows, tensors, config)
    return rows


def _check_pages(rows: list[LiveRow], tensors: Mapping[str, Tensor], config: DecoderConfig) -> None:
    pages = tensors["k_cache"].shape[0] // (config.kv_heads * config.page)
    for live in rows:
        used = tensors["block_table"][live.seq, : -(-live.length // config.page)]
        if bool(((used < 0) | (used >= pages)).any()):
            raise ValueError(f"block_table[{live.seq}] = {used.tolist()} names a page outside 0..{pages - 1}")
        slot = int(tensors["slot_mapping"][live.row])
        if slot >= pages * config.page:
            raise ValueError(
                f"slot_mapping[{live.row}] = {slot} lies beyond the cache's {pages * config.page} slots"
            )


def by_sequence(rows: list[LiveRow]) -> Iterator[tuple[int, slice]]:
    """Each sequence that has live rows, with its part of the list `rows`."""
    first = 0
    for seq, own in groupby(rows, key=lambda live: live.seq):
        count = len(list(own))
        yield seq, slice(first, first + count)
        first += count


# --------------------------------------------------------------------------------------- dense equations
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


def rms_norm(x: Tensor, weight: Tensor, eps: float, p: Precision, *, gemma: bool = False) -> Tensor:
    """RMSNorm over the last axis.

    In the Llama style it is rounded twice: rnd(weight * rnd(x / rms(x))). In the Gemma style the weight is
    stored centred on 0, and the product is rounded once: rnd((1 + weight) * x / rms(x)).
    """
    unit = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    if gemma:
        return p.rnd(unit * (1.0 + p.up(weight)))
    return p.rnd(p.up(weight) * p.rnd(unit))


def rope(x: Tensor, cos: Tensor, sin: Tensor, p: Precision) -> Tensor:
    """Rotate the pairs (i, i + n) of x `[T, heads, D]` by the angles whose cos and sin are `[T, n]`.

    Dims from 2 n on pass through.
    """
    half = cos.shape[-1]
    low, high, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    c, s = p.up(cos)[:, None], p.up(sin)[:, None]
    turned = [p.rnd(low * c) + p.rnd(-high * s), p.rnd(high * c) + p.rnd(low * s)]
    return torch.cat([p.rnd(torch.cat(turned, dim=-1)), rest], dim=-1)


def norm_rope(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, p: Precision, *, gemma: bool = False
) -> Tensor:
    """Per-head RMSNorm, then RoPE, of x `[T, heads, D]`."""
    return rope(rms_norm(x, weight, eps, p, gemma=gemma), cos, sin, p)


def final_norm(hidden: Tensor, weight: Tensor, eps: float, p: Precision, *, gemma: bool = False) -> Tensor:
    """The norm before the LM head, of hidden `[T, H]`."""
    return rms_norm(p.up(hidden), weight, eps, p, gemma=gemma)


def lm_head(normed: Tensor, weight: Tensor, p: Precision) -> Tensor:
    """Logits `[T, V]` of normed `[T, H]`; the vocabulary is walked in chunks."""
    return linear(p.up(normed), weight, p)


def gated_up(gate: Tensor, up: Tensor, p: Precision) -> Tensor:
    """SwiGLU: silu(gate) * up, rounded after either step."""
    return p.rnd(p.rnd(silu(gate)) * up)


def mlp(x: Tensor, tensors: Mapping[str, Tensor], config: DecoderConfig, p: Precision) -> Tensor:
    """SwiGLU branch of x `[T, H]`."""
    h = rms_norm(x, tensors["post_norm"], config.eps, p, gemma=config.gemma_norm)
    gate, up = linear(h, tensors["w_gate_up"], p).chunk(2, dim=-1)
    return linear(gated_up(gate, up, p), tensors["w_down"], p)


# ---------------------------------------------------------------------------------------- paged attention
def write_kv(cache: Tensor, new: Tensor, slots: Tensor, config: DecoderConfig) -> None:
    """Store new `[T, kv heads, D]` at `slots` `[T]` of the paged cache."""
    paged = cache.view(-1, config.kv_heads, config.page, config.head_dim)
    paged[slots // config.page, :, slots % config.page] = new.to(cache.dtype)


def read_kv(cache: Tensor, pages: Tensor, length: int, config: DecoderConfig) -> Tensor:
    """The first `length` tokens on `pages` of the paged cache, `[kv heads, length, D]`."""
    used = pages[: -(-length // config.page)].long()
    paged = cache.view(-1, config.kv_heads, config.page, config.head_dim)[used]
    # Cut before any arithmetic: slots beyond the context hold stale values.
    return paged.transpose(0, 1).reshape(config.kv_heads, -1, config.head_dim)[:, :length]


def attend(
    q: Tensor, rows: list[LiveRow], tensors: Mapping[str, Tensor], config: DecoderConfig, p: Precision
) -> Tensor:
    """Grouped-query attention of q `[T, q heads, D]`, row by row; query head h reads KV head h // group."""
    out = torch.empty_like(q)
    for seq, own in by_sequence(rows):
        longest, pages = rows[own][-1].length, tensors["block_table"][seq]
        keys, values = (p.up(read_kv(tensors[name], pages, longest, config)) for name in CACHES)
        for i, live in zip(range(own.start, own.stop), rows[own], strict=True):
            queries = q[i].view(config.kv_heads, config.group, -1)
            scores = queries @ keys[:, : live.length].transpose(1, 2) * config.scale
            seen = 1 + i - own.start  # of the step's own tokens
            out[i] = weighted(scores, values[:, : live.length], seen, p).view(config.q_heads, -1)
    return p.rnd(out)


def weighted(scores: Tensor, values: Tensor, own: int, p: Precision) -> Tensor:
    """softmax(scores) @ values for scores `[..., M, N]` and values `[..., N, D]`.

    The last `own` of the N tokens are the step's.
    """
    if not p.round_weights:
        return torch.softmax(scores, dim=-1) @ values
    cached = scores.shape[-1] - own
    m = scores[..., cached:].amax(-1, keepdim=True)
    weights = torch.exp(scores[..., cached:] - m)
    total, acc = weights.sum(-1, keepdim=True), p.rnd(weights) @ values[..., cached:, :]
    if cached:
        new_m = torch.maximum(m, scores[..., :cached].amax(-1, keepdim=True))
        decay, weights = torch.exp(m - new_m), torch.exp(scores[..., :cached] - new_m)
        total = total * decay + weights.sum(-1, keepdim=True)
        acc = acc * decay + p.rnd(weights) @ values[..., :cached, :]
    return acc / total


def output_gate(attended: Tensor, gate: Tensor, p: Precision) -> Tensor:
    """rnd(attended * rnd(sigmoid(gate))), elementwise."""
    return p.rnd(attended * p.rnd(torch.sigmoid(gate)))


def attention(
    x: Tensor, rows: list[LiveRow], tensors: Mapping[str, Tensor], config: DecoderConfig, p: Precision
) -> Tensor:
    """Attention branch of x `[T, H]`, the live `rows` only; writes this step's K and V, then reads them.

    RoPE takes the angle from `positions`, which need not be the index in the cache.
    """
    c = config
    at = torch.tensor([live.row for live in rows])
    pos, slots = tensors["positions"][at].long(), tensors["slot_mapping"][at].long()
    cos, sin = tensors["rope_cos"][pos], tensors["rope_sin"][pos]
    h = rms_norm(x, tensors["input_norm"], c.eps, p, gemma=c.gemma_norm)
    projected = linear(h, tensors["w_qkv"], p)
    gate, q, k, v = projected.split([c.gate_width, c.q_width, c.kv_width, c.kv_width], dim=-1)
    heads = (len(rows), -1, c.head_dim)
    q = norm_rope(q.reshape(heads), tensors["q_norm"], cos, sin, c.eps, p, gemma=c.gemma_norm)
    k = norm_rope(k.reshape(heads), tensors["k_norm"], cos, sin, c.eps, p, gemma=c.gemma_norm)
    write_kv(tensors["k_cache"], k, slots, c)
    write_kv(tensors["v_cache"], v.reshape(heads), slots, c)
    attended = attend(q, rows, tensors, c, p).flatten(1)
    if c.gate_heads:
        attended = output_gate(attended, gate, p)
    return linear(attended, tensors["w_o"], p)


# -------------------------------------------------------------------------------------------------- layer
Mixer = Callable[[Tensor, list[LiveRow], Mapping[str, Tensor]], Tensor]
"""The branch that mixes tokens: x `[n, H]` of the live rows, those rows, the tensors -> `[n, H]`."""


def check_holds(tensors: Mapping[str, Tensor], names: Sequence[str], dtype: torch.dtype) -> None:
    """Raise ValueError if one of the tensors that are there could not hold values of `dtype` unrounded."""
    for name in names:
        if name in tensors and torch.promote_types(tensors[name].dtype, dtype) != tensors[name].dtype:
            raise ValueError(
                f"{name} is {tensors[name].dtype} and cannot hold {dtype}; use exact() or wider outputs"
            )


def layer_step(tensors: Mapping[str, Tensor], config: DecoderConfig, p: Precision, mixer: Mixer) -> None:
    """One decoder layer, the final norm, and the LM head if `logits` is given; mutates outputs and caches.

    Raises:
        ValueError: if the step's indices are not consistent.
    """
    rows = live_rows(tensors, config)
    for name in OUTPUTS:
        if name in tensors:
            tensors[name].zero_()
    if not rows:
        return
    at = torch.tensor([live.row for live in rows])
    x = p.up(tensors["hidden"][at])
    x = p.rnd(x + mixer(x, rows, tensors))
    x = p.rnd(x + mlp(x, tensors, config, p))
    y = final_norm(x, tensors["final_norm"], config.eps, p, gemma=config.gemma_norm)
    tensors["next_hidden"][at] = x.to(tensors["next_hidden"].dtype)
    tensors["normed"][at] = y.to(tensors["normed"].dtype)
    if "logits" in tensors:
        tensors["logits"][at] = lm_head(y, tensors["w_lm_head"], p).to(tensors["logits"].dtype)


def full_step(tensors: Mapping[str, Tensor], config: DecoderConfig, p: Precision) -> None:
    """`layer_step` of a full-attention layer.

    Raises:
        ValueError: if an output could not hold its value unrounded, or the step's indices are not consistent.
    """
    check_holds(tensors, (*OUTPUTS, *CACHES), p.stored)
    layer_step(tensors, config, p, lambda x, rows, given: attention(x, rows, given, config, p))


def widened(tensors: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """fp64 copies of those of `names` that are there."""
    return {name: tensors[name].double() for name in names if name in tensors}
