"""Choosing a token from logits in torch, outside of the compiled step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pypto_models.errors import NOWHERE, Diag, user_error


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: the filters apply in the order temperature, top-k, top-p.

    Args:
        temperature: what logits are divided by; 0 takes the largest, which the step itself has found.
        top_k: only tokens with one of the `top_k` largest logits; 0 for all.
        top_p: of those, only the fewest most likely ones whose probabilities reach `top_p` together (Holtzman
            et al., arXiv:1904.09751).

    Raises:
        UserError: for a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0 <= self.temperature < float("inf"), "0 or a positive number"),
            "top_k": (self.top_k >= 0, "0 for all tokens, or their number"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
        }
        for name, (fits, known) in ranges.items():
            if not fits:
                why = f"it is {getattr(self, name)}"
                raise user_error(Diag.ARGUMENT, NOWHERE, name=name, why=why, fix=f"use {known}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """fp32 probabilities `[..., V]` of tokens with `logits` `[..., V]`; not for greedy sampling.

    A token with the same logit as the last one within `top_k` stays as well.
    """
    scores = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scores.sort(descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        drop = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        scores = scores.masked_fill(drop, -torch.inf)
    return scores.softmax(-1)


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token for `logits` `[V]`, on the CPU, where `generator` is."""
    if sampling.greedy:
        return int(logits.argmax())
    return int(torch.multinomial(probabilities(logits.cpu(), sampling), 1, generator=generator))
