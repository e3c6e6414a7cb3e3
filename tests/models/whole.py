"""Whole models: a checkpoint that transformers wrote, what decodes it here, and transformers' own run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from models.common.config import DecoderConfig
from models.common.decoder import Decoder, Step
from models.common.programs import DecoderModel
from models.qwen3_5_27b.config import REAL_HEADS
from models.qwen3_5_27b.config import TINY as TINY_27B
from models.qwen3_5_27b.step import MODEL as QWEN3_5
from models.qwen3_14b.config import TINY as TINY_14B
from models.qwen3_14b.step import MODEL as QWEN3
from tests.models import checkpoints
from tests.models.oracle import Held, held_by

PROMPTS = ([7], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [271, 828], list(range(100, 123)))
"""Ragged: a single token, two steps of the prefill, less than the taps of a convolution, and three steps."""

SIZES: dict[str, DecoderConfig] = {
    "qwen3": replace(TINY_14B, vocab=1000),
    "qwen3_5": replace(TINY_27B, vocab=1000),
    # the head size and group of the published model, in a narrow one
    "qwen3_heads": replace(TINY_14B, hidden=512, head_dim=128, intermediate=1024, page=128, layers=2),
    "qwen3_5_heads": replace(REAL_HEADS, vocab=2000, max_seq=128),
}


class Recording(Decoder):
    """A decoder that remembers the logits of every row: `seen[s]` is a list of `[rows, V]`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[list[Tensor]] = [[] for _ in range(self.config.max_batch)]

    def decode_step(self, tokens: Sequence[Sequence[int]]) -> Step:
        step = super().decode_step(tokens)
        for own, logits in zip(self.seen, step.logits, strict=True):
            own.append(logits)
        return step


@dataclass(frozen=True)
class Whole:
    """One model three times: transformers' object, its directory, and what decodes it here."""

    hf: PreTrainedModel
    directory: Path
    model: DecoderModel
    config: DecoderConfig

    def decoder(self, batch: int = len(PROMPTS), **options: Any) -> Recording:
        """An empty decoder, whose caches hold no number before it is written."""
        config = self.model.checkpoints.config_of(
            self.directory, page=self.config.page, max_batch=batch, max_seq=self.config.max_seq
        )
        decoder = Recording.from_checkpoint(self.model, self.directory, config, **options)
        for layer in decoder.layers:
            for name in ("k_cache", "v_cache"):
                if name in layer:
                    layer[name].fill_(torch.nan)
        return decoder


def saved(name: str, dtype: str, directory: Path) -> Whole:
    """The model of `SIZES[name]` with random weights, saved by transformers."""
    config = replace(SIZES[name], dtype=dtype)
    hybrid = name.startswith("qwen3_5")
    hf = (checkpoints.qwen3_5 if hybrid else checkpoints.qwen3)(config)
    checkpoints.saved(hf, directory)
    return Whole(hf, directory, QWEN3_5 if hybrid else QWEN3, config)


def greedy_answers(
    hf: PreTrainedModel, prompts: Sequence[Sequence[int]], count: int
) -> tuple[list[list[int]], list[Tensor]]:
    """transformers' own answers, each prompt by itself, and the logits `[count, V]` behind them."""
    answers, logits = [], []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        out = hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        answers.append(out.sequences[0, len(prompt) :].tolist())
        logits.append(torch.cat(out.logits))
    return answers, logits


def one_by_one(whole: Whole, tokens: Sequence[int]) -> tuple[Tensor, list[list[Held]]]:
    """transformers' logits `[n, V]` after every token, and what every layer then holds: `held[n][layer]`."""
    cache = DynamicCache(config=whole.hf.config)
    logits: list[Tensor] = []
    held: list[list[Held]] = [[]]
    with torch.no_grad():
        for token in tokens:
            out = whole.hf(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            logits.append(out.logits[0])
            held.append(held_by(cache, whole.config))
    return torch.cat(logits), held


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest value expected."""
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
