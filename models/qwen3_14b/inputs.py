"""Seeded inputs of a decode step on which every part of the layer matters.

Plain random inputs test little: attention over thousands of random keys averages the values away, and a layer
whose branches are a thousandth of its residual passes with attention removed. Here the standard deviations of
residual, attention branch and MLP branch are within a factor of three of each other at any context length,
and every token of the context has a say, because

* the q and k norms have large weights: scores have a standard deviation of about 2.7, so a softmax over 4096
  tokens rests on a few of them, and which ones differs from head to head; the weights' spread makes their
  place before RoPE visible;
* each key head shares most of its variance with the query heads of its group, so that this step's own token
  competes with all the others;
* the output and down projections carry a gain on top of 1 / sqrt(fan in).

Whatever a kernel must not read is NaN: pages that no sequence owns, slots at and beyond this step's tokens,
hidden rows that are dead, and the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.common import step_inputs
from models.common.step_inputs import (
    MAX_SPAN,
    SPARE_PAGES,
    Dead,
    LmHead,
    Tokens,
    context_lengths,
    head_weights,
    normal,
    paged_cache,
    rope_tables,
)
from models.qwen3_14b.config import Config

__all__ = [
    "MAX_SPAN", "SPARE_PAGES", "Dead", "LmHead", "Tokens", "context_lengths", "head_weights", "layer_weights",
    "make_inputs", "normal", "paged_cache", "rope_tables",
]  # fmt: skip

_SHARED = 0.6  # part of a key head's variance that comes from its query heads
_O_GAIN = 2.0
_DOWN_GAIN = 1.2


def layer_weights(config: Config, seed: int, layer: str = "full") -> dict[str, Tensor]:
    """Projections and norms of one decoder layer; another seed gives an independent layer.

    Raises:
        ValueError: if `layer` is not "full", the only kind of this model.
    """
    if layer != "full":
        raise ValueError(f"layer is {layer!r}; every layer of Qwen3-14B is 'full'")
    return {
        **step_inputs.attention_weights(config, seed, o_gain=_O_GAIN, shared=_SHARED),
        **step_inputs.mlp_weights(config, seed, _DOWN_GAIN),
    }


def make_inputs(
    config: Config,
    batch: int,
    context: int | str | Sequence[int] = "ragged",
    *,
    layer: str = "full",
    tokens: Tokens = 1,
    span: int | None = None,
    padding: int = 0,
    seed: int = 0,
    lm_head: LmHead = "skip",
    dead_rows: Mapping[int, Dead] | Sequence[int] = (),
) -> dict[str, Tensor]:
    """All tensors of a decode step, as listed in `models.common.equations`; outputs are NaN.

    Args:
        config: the model's sizes.
        batch: sequences, 1..max_batch.
        context: tokens per sequence including this step's: one length, a list, or `"ragged"`.
        layer: the kind of layer, "full".
        tokens: rows per sequence in this step, 0..span: one count, a list, or `"ragged"`.
        span: most rows of one sequence; by default the largest count, for `"ragged"` at most `MAX_SPAN`.
        padding: rows behind those of the sequences, which belong to nobody and must give zeros.
        seed: decides every value; other arguments change only the tensors that they concern.
        lm_head: `"skip"` (no `w_lm_head`, no `logits`), `"single"` (one chunk of the vocabulary) or `"full"`.
        dead_rows: sequences whose rows must give zeros and touch nothing, with the mark that says so (see
            `step_inputs.kill_rows`); a plain sequence means `"all"`.

    Raises:
        ValueError: if an argument is out of range.
    """
    step_inputs.check_step(config, batch, lm_head)
    counts, _ = step_inputs.row_counts(batch, tokens, span, seed)
    lengths = context_lengths(config, batch, context, seed, counts)
    cos, sin = rope_tables(config)
    tensors = {
        "hidden": step_inputs.hidden_rows(config, sum(counts), seed),
        "positions": torch.tensor(step_inputs.token_indices(lengths, counts), dtype=torch.int32),
        "cu_q": step_inputs.sequence_ends(counts),
        "ctx": torch.tensor(lengths, dtype=torch.int32),
        **paged_cache(config, lengths, seed, counts),
        **layer_weights(config, seed, layer),
        **head_weights(config, seed, lm_head),
        "rope_cos": cos,
        "rope_sin": sin,
    }
    return step_inputs.finish(tensors, config, padding, dead_rows)
