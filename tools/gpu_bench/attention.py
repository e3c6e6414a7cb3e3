"""Decode attention in stock PyTorch: the ways to call it, from which each peer takes the fastest.

Each maps q `[B, query heads, D]`, k and v `[B, KV heads, S, D]` to `[B, query heads * D]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from models.common.config import DecoderConfig

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

SMS = 132  # of the GPU that contexts are cut by hand for


@dataclass(frozen=True)
class Candidate:
    """A way to attend; `compiled_only` where it is meant for torch.compile."""

    name: str
    attend: Attend
    compiled_only: bool = False


def grouped(q: Tensor, k: Tensor) -> Tensor:
    """The query heads that read one KV head as rows: `[B, KV heads, group, D]`."""
    return q.view(q.shape[0], k.shape[1], -1, q.shape[-1])


def dispatched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What scaled_dot_product_attention chooses by itself."""
    return F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True).flatten(1)


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention-2 with the query heads of a group as rows."""
    return _flash(grouped(q, k), k, v)[0].flatten(1)


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """cuDNN's kernel, the same way."""
    op = torch.ops.aten._scaled_dot_product_cudnn_attention
    out: Tensor = op(grouped(q, k), k, v, None, False)[0]
    return out.flatten(1)


def efficient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The memory-efficient kernel, the same way."""
    op = torch.ops.aten._scaled_dot_product_efficient_attention
    out: Tensor = op(grouped(q, k), k, v, None, False)[0]
    return out.flatten(1)


def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlexAttention, which cuts the context by itself."""
    out = flex_attention(grouped(q, k), k, v)
    assert isinstance(out, Tensor)
    return out.flatten(1)


def split_flash(parts: int) -> Attend:
    """FlashAttention-2 on `parts` pieces of the context, merged in torch: Flash-Decoding by hand."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, length, width = k.shape
        shape = (batch, heads * parts, length // parts, width)
        rows = grouped(q, k)
        every = rows[:, :, None].expand(-1, -1, parts, -1, -1).reshape(batch, heads * parts, -1, width)
        out, lse = _flash(every, k.view(shape), v.view(shape))
        weights = torch.softmax(lse.view(batch, heads, parts, -1), dim=2)[..., None]
        merged = (out.view(batch, heads, parts, -1, width).float() * weights).sum(2)
        return merged.to(q.dtype).reshape(batch, -1)

    return attend


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The output and the logarithms of the sums."""
    aten = torch.ops.aten
    if q.is_cuda:
        found = aten._scaled_dot_product_flash_attention(q, k, v)
    else:
        found = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return found[0], found[1]


def pieces(batch: int, heads: int, length: int) -> list[int]:
    """Into how many parts of 64 tokens or more contexts are cut to give about one or two CTAs for each SM."""
    most = min(2 * SMS // (batch * heads), length // 64)
    powers = (2**i for i in range(1, 10))
    return [n for n in powers if n <= most and batch * heads * n > SMS // 2 and length % n == 0]


def candidates(config: DecoderConfig, batch: int, length: int) -> list[Candidate]:
    """What can be tried for a step of `batch` sequences."""
    found = [
        Candidate("dispatched", dispatched),
        Candidate("flash", flash),
        Candidate("cudnn", cudnn),
        Candidate("efficient", efficient),
        Candidate("flex", flex, compiled_only=True),
    ]
    parts = pieces(batch, config.kv_heads, length)
    return found + [Candidate(f"flash in {n} parts", split_flash(n)) for n in parts]


def contiguous(cache: Tensor, table: Tensor, config: DecoderConfig) -> Tensor:
    """The pages `[B, pages]` of a paged cache as `[B, KV heads, S, D]`."""
    paged = cache.view(-1, config.kv_heads, config.page, config.head_dim)[table]
    return paged.transpose(1, 2).reshape(table.shape[0], config.kv_heads, -1, config.head_dim)


def exact(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention evaluated in `dtype`."""
    scores = grouped(q, k).to(dtype) @ k.to(dtype).transpose(2, 3) * q.shape[-1] ** -0.5
    return (torch.softmax(scores, -1) @ v.to(dtype)).flatten(1)
