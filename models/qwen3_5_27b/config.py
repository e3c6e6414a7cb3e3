"""Sizes of Qwen3.5-27B (its text stack) and of small models with the same structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.common.config import VOCAB_GRANULE, DecoderConfig

__all__ = ["FULL", "REAL_HEADS", "TINY", "VOCAB_GRANULE", "Config"]


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """Geometry of a Qwen3.5 text model: of every `full_interval` layers the last is a gated full-attention
    layer, the others are gated-delta-net layers ("gdn").

    Args:
        rotary_dim: leading dims of a head that RoPE rotates, even.
        full_interval: distance between full-attention layers.
        k_heads: query and key heads of a gdn layer.
        v_heads: value heads of a gdn layer, a multiple of `k_heads`; each has a state.
        k_dim: width of a query or key head of a gdn layer: the rows of a state.
        v_dim: width of a value head of a gdn layer: the columns of a state.
        taps: length of the causal convolution of a gdn layer.

    Raises:
        ValueError: if the sizes do not fit together.
    """

    gemma_norm: ClassVar[bool] = True

    rotary_dim: int
    full_interval: int = 4
    k_heads: int
    v_heads: int
    k_dim: int
    v_dim: int
    taps: int = 4
    rope_theta: float = 1e7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise ValueError(
                f"Config.rotary_dim = {self.rotary_dim} must be even and lie in 2..head_dim = {self.head_dim}"
            )
        if self.v_heads % self.k_heads:
            raise ValueError(
                f"Config.v_heads = {self.v_heads} must be a multiple of k_heads = {self.k_heads}"
            )
        if self.taps < 2:
            raise ValueError(f"Config.taps = {self.taps} must be at least 2: the window needs a history")
        if self.full_interval < 1:
            raise ValueError(f"Config.full_interval = {self.full_interval} must be at least 1")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of every layer, in order: "gdn" or "full"."""
        return tuple("gdn" if (i + 1) % self.full_interval else "full" for i in range(self.layers))

    @property
    def gate_heads(self) -> int:
        """Heads of the output gate: one for each query head."""
        return self.q_heads

    @property
    def rotary(self) -> int:
        """Leading dims of a head that RoPE rotates."""
        return self.rotary_dim

    @property
    def v_group(self) -> int:
        """Value heads that share one query and key head of a gdn layer."""
        return self.v_heads // self.k_heads

    @property
    def k_width(self) -> int:
        """Columns of all query heads (or all key heads) of a gdn layer together."""
        return self.k_heads * self.k_dim

    @property
    def v_width(self) -> int:
        """Columns of all value heads of a gdn layer together."""
        return self.v_heads * self.v_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: q | k | v."""
        return 2 * self.k_width + self.v_width

    @property
    def in_width(self) -> int:
        """Rows of the stacked gdn projection: q | k | v | z | b | a."""
        return self.conv_dim + self.v_width + 2 * self.v_heads


FULL = Config(
    hidden=5120,
    q_heads=24,
    kv_heads=4,
    head_dim=256,
    rotary_dim=64,
    intermediate=17408,
    vocab=248320,
    layers=64,
    k_heads=16,
    v_heads=48,
    k_dim=128,
    v_dim=128,
)
"""The published Qwen3.5-27B."""

TINY = Config(
    hidden=256,
    q_heads=12,
    kv_heads=2,
    head_dim=64,
    rotary_dim=16,
    intermediate=512,
    vocab=1024,
    layers=4,
    k_heads=2,
    v_heads=6,
    k_dim=32,
    v_dim=64,
    page=16,
    max_seq=128,
)
"""A model that runs in milliseconds; its states are not square, so that a transposed one cannot pass."""

REAL_HEADS = Config(
    hidden=512,
    q_heads=12,
    kv_heads=2,
    head_dim=256,
    rotary_dim=64,
    intermediate=1024,
    vocab=2048,
    layers=4,
    k_heads=4,
    v_heads=12,
    k_dim=128,
    v_dim=128,
    max_seq=1024,
)
"""The published head sizes and groups in a narrow model."""
