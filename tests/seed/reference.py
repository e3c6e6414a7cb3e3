"""The dense decode layer of `dense_layer.py` in torch, one row and one head at a time, and inputs for it.

Equations: Qwen3 (arXiv:2505.09388).  Rounding to the element type happens where the kernel casts to it: after
the norms of rows, to q, k and v, to the softmax weights (before they are summed), to the attention output, to
the activation and to the output of a layer.  All else is fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run; all but the last four are constants of the kernel by the same name in capitals."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    page: int
    max_pages: int
    k_tile: int
    n_tile: int
    final_tile: int
    head_k: int
    head_n: int
    layers: int = 1
    dtype: torch.dtype = torch.float32

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


EPS = 1e-6


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x * weight / sqrt(mean(x^2) + eps) over the last axis, fp32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE in the rotate-half form; `x` [..., D], `cos` and `sin` [D]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def layer(hidden: torch.Tensor, t: Tensors, sizes: Sizes, index: int) -> torch.Tensor:
    """Layer `index` of `hidden` [B, H]; writes this step's rows of the caches in `t`."""
    s, dtype = sizes, sizes.dtype
    batch = hidden.shape[0]

    def weight(name: str) -> torch.Tensor:
        return t[name].chunk(s.layers)[index].float()

    def cache(name: str) -> torch.Tensor:
        """The caches of this layer as [page, head, offset, D], a view."""
        return t[name].chunk(s.layers)[index].view(-1, s.kv_heads, s.page, s.head_dim)

    normed = rms(hidden, weight("input_rms_weight")).to(dtype).float()
    q = rms((normed @ weight("wq")).view(batch, s.heads, s.head_dim), weight("q_norm_weight"))
    k = rms((normed @ weight("wk")).view(batch, s.kv_heads, s.head_dim), weight("k_norm_weight"))
    v = (normed @ weight("wv")).view(batch, s.kv_heads, s.head_dim)
    k_pages, v_pages = cache("k_cache"), cache("v_cache")

    attended = torch.empty(batch, s.heads, s.head_dim)
    for b in range(batch):
        tokens = int(t["seq_lens"][b])
        cos, sin = t["rope_cos"][tokens - 1], t["rope_sin"][tokens - 1]
        page, offset = divmod(int(t["slot_mapping"][b]), s.page)
        k_pages[page, :, offset] = rotate(k[b], cos, sin).to(dtype)
        v_pages[page, :, offset] = v[b].to(dtype)
        pages = t["block_table"].view(batch, s.max_pages)[b, : math.ceil(tokens / s.page)].long()
        for head in range(s.heads):
            kv = head // s.group
            keys = k_pages[pages, kv].reshape(-1, s.head_dim)[:tokens].float()
            values = v_pages[pages, kv].reshape(-1, s.head_dim)[:tokens].float()
            scores = keys @ rotate(q[b, head], cos, sin).to(dtype).float() / math.sqrt(s.head_dim)
            # A page rounds its weights relative to its own maximum.
            parts = scores.split(s.page)
            weights = [(p - p.max()).exp().to(dtype).float() * (p.max() - scores.max()).exp() for p in parts]
            whole = torch.cat(weights)
            attended[b, head] = whole @ values / whole.sum()

    flat = attended.to(dtype).float().view(batch, -1)
    middle = hidden.float() + flat @ weight("wo")
    x = rms(middle, weight("post_rms_weight")).to(dtype).float()
    gate = x @ weight("w_gate")
    act = (gate * torch.sigmoid(gate) * (x @ weight("w_up"))).to(dtype).float()
    return (middle + act @ weight("w_down")).to(dtype)


def run(t: Tensors, sizes: Sizes) -> torch.Tensor:
    """Logits [B, V] of one step, fp32; writes the caches in `t`."""
    hidden = t["hidden_states"]
    for index in range(sizes.layers):
        hidden = layer(hidden, t, sizes, index)
    final = rms(hidden, t["final_norm_weight"]).to(sizes.dtype).float()
    return final @ t["lm_head_weight"].float().t()


def inputs(sizes: Sizes, seq_lens: list[int], seed: int = 0) -> Tensors:
    """Arguments of the kernel by name, in its order, without `out`.

    The block table is shuffled.  Cache rows of the context are random, rows of the last page past the context
    are large (they are loaded and must be masked), and pages that no sequence uses are NaN.
    """
    s, batch = sizes, len(seq_lens)
    gen = torch.Generator().manual_seed(seed)

    def randn(*shape: int, scale: float = 1.0, dtype: torch.dtype = s.dtype) -> torch.Tensor:
        return (torch.randn(shape, generator=gen) * scale).to(dtype)

    def matrix(rows: int, cols: int) -> torch.Tensor:
        return randn(s.layers * rows, cols, scale=rows**-0.5)

    def gain(rows: int, width: int) -> torch.Tensor:
        return 1.0 + randn(rows, width, scale=0.2, dtype=torch.float32)

    q_width, kv_width = s.heads * s.head_dim, s.kv_heads * s.head_dim
    table = torch.randperm(batch * s.max_pages, generator=gen).view(batch, s.max_pages)
    k_cache, v_cache = (
        torch.full((s.layers, batch * s.max_pages, s.kv_heads, s.page, s.head_dim), math.nan, dtype=s.dtype)
        for _ in "kv"
    )
    slots = []
    for b, tokens in enumerate(seq_lens):
        pages = table[b, : math.ceil(tokens / s.page)]
        for cache in (k_cache, v_cache):
            part = randn(s.layers, len(pages), s.kv_heads, s.page, s.head_dim)
            rest = tokens - 1 - (len(pages) - 1) * s.page
            part[:, -1, :, rest:] = 100.0  # this step's row, which the kernel writes first, and all after it
            cache[:, pages] = part
        slots.append(int(pages[-1]) * s.page + (tokens - 1) % s.page)
    angle = torch.arange(s.max_pages * s.page)[:, None] * 10000.0 ** -(
        torch.arange(s.head_dim) % (s.head_dim // 2) * 2 / s.head_dim
    )
    return {
        "hidden_states": randn(batch, s.hidden),
        "input_rms_weight": gain(s.layers, s.hidden),
        "wq": matrix(s.hidden, q_width),
        "wk": matrix(s.hidden, kv_width),
        "wv": matrix(s.hidden, kv_width),
        "q_norm_weight": gain(s.layers, s.head_dim),
        "k_norm_weight": gain(s.layers, s.head_dim),
        "seq_lens": torch.tensor(seq_lens, dtype=torch.int32),
        "block_table": table.flatten().to(torch.int32),
        "slot_mapping": torch.tensor(slots, dtype=torch.int32),
        "rope_cos": angle.cos(),
        "rope_sin": angle.sin(),
        "k_cache": k_cache.view(-1, s.head_dim),
        "v_cache": v_cache.view(-1, s.head_dim),
        "wo": matrix(q_width, s.hidden),
        "post_rms_weight": gain(s.layers, s.hidden),
        "w_gate": matrix(s.hidden, s.intermediate),
        "w_up": matrix(s.hidden, s.intermediate),
        "w_down": matrix(s.intermediate, s.hidden),
        "final_norm_weight": gain(1, s.hidden),
        "lm_head_weight": randn(s.vocab, s.hidden, scale=s.hidden**-0.5),
    }
