"""Qwen3 decode step in plain torch: one set of equations, evaluated at any precision.

`golden` evaluates them as the model does: fp32 arithmetic, rounded to the model's element type where the
model stores a value. `exact` evaluates them in fp64 without any rounding. The distance between the two is the
error that the element type alone explains, and the yardstick for a kernel.

The equations and the tensors that they take are those of `models.common.equations`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.common.equations import (
    CACHES,
    OUTPUTS,
    LiveRow,
    Precision,
    attend,
    attention,
    final_norm,
    full_step,
    gated_up,
    linear,
    live_rows,
    lm_head,
    mlp,
    norm_rope,
    read_kv,
    rms_norm,
    rope,
    silu,
    widened,
    write_kv,
)
from models.qwen3_14b.config import Config

__all__ = [
    "MUTATED", "OUTPUTS", "LiveRow", "Precision", "attend", "attention", "decode_layer", "exact",
    "final_norm", "gated_up", "golden", "linear", "live_rows", "lm_head", "mlp", "mutated", "norm_rope",
    "read_kv", "rms_norm", "rope", "silu", "write_kv",
]  # fmt: skip

MUTATED = (*OUTPUTS, *CACHES)
"""Tensors that a step may change: the outputs, and the caches at this step's slots."""


def mutated(layer: str = "full") -> tuple[str, ...]:
    """`MUTATED`, for a kind of layer: all layers of this model are "full"."""
    if layer != "full":
        raise ValueError(f"layer is {layer!r}; every layer of Qwen3-14B is 'full'")
    return MUTATED


def decode_layer(
    tensors: dict[str, Tensor],
    config: Config,
    *,
    layer: str = "full",
    compute: torch.dtype = torch.float32,
    round_to: torch.dtype | None = None,
    round_weights: bool = False,
) -> None:
    """One decoder layer, the final norm, and the LM head if `logits` is given; mutates outputs and caches.

    Dead rows (see `live_rows`) give zeros and leave the caches alone.

    Args:
        tensors: the tensors listed at the top of `models.common.equations`.
        config: the model's sizes.
        layer: the kind of layer, "full".
        compute: arithmetic type, float32 or float64.
        round_to: type that every stored value is rounded to, or None for no rounding at all.
        round_weights: see `Precision`.

    Raises:
        ValueError: if an output could not hold its value unrounded, or the step's indices are not consistent.
    """
    mutated(layer)
    full_step(tensors, config, Precision(compute, round_to, round_weights))


def golden(
    tensors: dict[str, Tensor], config: Config, round_weights: bool = False, *, layer: str = "full"
) -> None:
    """`decode_layer` as the model computes it: fp32 arithmetic, stored values in the model's element type."""
    decode_layer(tensors, config, layer=layer, round_to=config.torch_dtype, round_weights=round_weights)


def exact(tensors: dict[str, Tensor], config: Config, *, layer: str = "full") -> dict[str, Tensor]:
    """The mutated tensors of `decode_layer` in fp64, never rounded; `tensors` itself is left unchanged."""
    wide = widened(tensors, mutated(layer))
    decode_layer({**tensors, **wide}, config, layer=layer, compute=torch.float64)
    return wide
