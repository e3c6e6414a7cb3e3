"""Sizes of Qwen3-14B and of a small model with the same structure."""

from __future__ import annotations

from dataclasses import dataclass

from models.common.config import VOCAB_GRANULE, DecoderConfig

__all__ = ["FULL", "TINY", "VOCAB_GRANULE", "Config"]


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """Geometry of a Qwen3 model: every layer is a full-attention layer."""

    rope_theta: float = 1e6


FULL = Config(
    hidden=5120,
    q_heads=40,
    kv_heads=8,
    head_dim=128,
    intermediate=17408,
    vocab=151936,
    layers=40,
)
"""The published Qwen3-14B."""

TINY = Config(
    hidden=256,
    q_heads=10,
    kv_heads=2,
    head_dim=64,
    intermediate=512,
    vocab=1024,
    layers=4,
    page=16,
    max_seq=128,
)
"""A model that runs in milliseconds and keeps the odd query group of 5."""
