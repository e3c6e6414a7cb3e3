"""What every decoder's configuration has: the residual stream, attention, the MLP and the paged KV cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

VOCAB_GRANULE = 512
"""The LM head is padded to a whole number of chunks of this many rows."""

_TORCH_DTYPE = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Geometry of a decoder with grouped-query attention, and of its paged KV cache.

    Args:
        hidden: width of the residual stream.
        q_heads: number of query heads, a multiple of `kv_heads`.
        kv_heads: number of key/value heads.
        head_dim: width of one head, even (RoPE rotates pairs).
        intermediate: width of the MLP.
        vocab: number of tokens, before padding.
        layers: number of decoder layers.
        eps: epsilon of every RMSNorm.
        rope_theta: base of the rotary frequencies.
        page: tokens per KV page.
        max_batch: most sequences in one step.
        max_seq: most tokens in one sequence, a multiple of `page`.
        dtype: element type of weights, activations and caches, `"bf16"` or `"fp32"`.

    Raises:
        ValueError: if the sizes do not fit together.
    """

    gemma_norm: ClassVar[bool] = False
    """Whether norm weights are centred on 0, so that 1 is added and the product is rounded only once."""

    hidden: int
    q_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    layers: int
    eps: float = 1e-6
    rope_theta: float
    page: int = 128
    max_batch: int = 16
    max_seq: int = 4096
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        if self.dtype not in _TORCH_DTYPE:
            raise ValueError(f"Config.dtype is {self.dtype!r}; use one of {', '.join(_TORCH_DTYPE)}")
        if self.q_heads % self.kv_heads:
            raise ValueError(
                f"Config.q_heads = {self.q_heads} must be a multiple of kv_heads = {self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"Config.head_dim = {self.head_dim} must be even: RoPE rotates pairs")
        if self.max_seq % self.page:
            raise ValueError(f"Config.max_seq = {self.max_seq} must be a multiple of page = {self.page}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of every layer, in order."""
        return ("full",) * self.layers

    @property
    def gate_heads(self) -> int:
        """Heads of an output gate in front of q in the attention projection; 0 without a gate."""
        return 0

    @property
    def rotary(self) -> int:
        """Leading dims of a head that RoPE rotates."""
        return self.head_dim

    @property
    def torch_dtype(self) -> torch.dtype:
        """Element type of weights, activations and caches."""
        return _TORCH_DTYPE[self.dtype]

    @property
    def gate_width(self) -> int:
        """Columns of the output gate."""
        return self.gate_heads * self.head_dim

    @property
    def q_width(self) -> int:
        """Columns of all query heads together."""
        return self.q_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of all key heads (or all value heads) together."""
        return self.kv_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        """Rows of the stacked attention projection: gate | q | k | v."""
        return self.gate_width + self.q_width + 2 * self.kv_width

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.q_heads // self.kv_heads

    @property
    def scale(self) -> float:
        """Factor on the attention scores, 1 / sqrt(head_dim)."""
        return 1.0 / math.sqrt(self.head_dim)

    @property
    def pages_per_seq(self) -> int:
        """Entries of one block-table row."""
        return self.max_seq // self.page

    @property
    def vocab_padded(self) -> int:
        """Rows of the LM head: `vocab` rounded up to a multiple of `VOCAB_GRANULE`."""
        return -(-self.vocab // VOCAB_GRANULE) * VOCAB_GRANULE
