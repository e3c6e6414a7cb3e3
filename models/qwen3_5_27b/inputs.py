"""Seeded inputs of a decode step on which every part of the layer matters, for both kinds of layer.

Standard deviations of residual, mixer branch and MLP branch are within a factor of three of each other. How
this is done for full attention is said in `models.qwen3_14b.inputs`. In addition

* the few dims that RoPE rotates have larger weights in the q and k norms, and so the larger part in a score,
  and the two dims of a pair have unlike ones: the norms do not commute with RoPE;
* `positions` differ from the index in the cache by an offset for each sequence, as behind images.

For a gated-delta-net layer

* q and k of a token are correlated, in the weights, in the convolution and in its history: what the token
  writes into the state is read back at once, at the size of what the state held before;
* every tap of the convolution has the same variance;
* A_log and dt_bias are drawn from the range that such models are initialised with: some heads forget in a few
  tokens and others in thousands; b and a vary enough to matter, and no gate saturates.

Whatever a kernel must not read is NaN: pages that no sequence owns, slots at and beyond this step's tokens,
states other than the one that each sequence reads, columns of the convolution's buffer outside its history,
hidden rows that are dead, and the outputs. Pages, state slots and convolution slots are shuffled.
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
    generator,
    head_weights,
    normal,
    paged_cache,
    rope_tables,
)
from models.qwen3_5_27b.config import Config
from models.qwen3_5_27b.reference import Layer, mutated

__all__ = [
    "MAX_SPAN", "SPARE_PAGES", "SPARE_SLOTS", "Dead", "LmHead", "Tokens", "context_lengths", "head_weights",
    "layer_weights", "make_inputs", "normal", "paged_cache", "rope_tables", "state_tensors",
]  # fmt: skip

SPARE_SLOTS = 2
"""State slots, and convolution slots, that no sequence owns."""

_OWN_SCORE = 3.0  # a token's score with itself, in standard deviations of its scores with others
_PAIR = (1.9, 0.7)  # factors on the q and k norms for the two dims of a pair that RoPE rotates
_PASSED = 0.8  # and for the others: the scores keep their size
_O_GAIN = 3.0  # more than without a gate, whose sigmoid about halves the values
_OUT_GAIN = 2.0
_DOWN_GAIN = 1.2

_A_GAIN = 1.5  # of the projection to a
_TAP = 0.5  # standard deviation of a tap
_STATE = 0.4  # of a state's elements: about that of the values that are written
_ALIKE = 0.8  # part of k's variance that comes from q, in each place where they are correlated


def _correlated(q: Tensor, k: Tensor) -> None:
    """Let `k` share `_ALIKE` of its variance with `q`, in place."""
    k.copy_(_ALIKE**0.5 * q.float() + (1 - _ALIKE) ** 0.5 * k.float())


def _full_weights(config: Config, seed: int) -> dict[str, Tensor]:
    """Projections and per-head norms of a full-attention layer."""
    c = config
    shared = min(c.group * _OWN_SCORE**2 / c.head_dim, 1.0)
    weights = step_inputs.attention_weights(c, seed, o_gain=_O_GAIN, shared=shared)
    contrast = torch.full((c.head_dim,), _PASSED)
    contrast[: c.rotary_dim] = torch.tensor(_PAIR).repeat_interleave(c.rotary_dim // 2)
    for name in ("q_norm", "k_norm"):
        factor = (1.0 + weights[name]) * contrast
        weights[name] = (factor - 1.0).to(c.torch_dtype).float()
    return weights


def _gdn_weights(config: Config, seed: int) -> dict[str, Tensor]:
    """Projections, convolution, decay and output norm of a gated-delta-net layer."""
    c, dtype = config, config.torch_dtype
    w_in = normal((c.in_width, c.hidden), dtype, std=c.hidden**-0.5, seed=seed, name="w_in")
    _correlated(w_in[: c.k_width], w_in[c.k_width : 2 * c.k_width])
    w_in[-c.v_heads :] *= _A_GAIN
    conv = normal((c.taps, c.conv_dim), dtype, std=_TAP, seed=seed, name="conv_weight")
    _correlated(conv[:, : c.k_width], conv[:, c.k_width : 2 * c.k_width])
    rng = generator(seed, "decay")
    # Spread evenly over the heads, and the same order for both: among few heads, too, some forget soon.
    place = (rng.permutation(c.v_heads) + rng.random((2, 1, c.v_heads))) / c.v_heads
    rate = torch.from_numpy(0.1 + 15.9 * place[0])  # A
    step = torch.from_numpy(1e-3 * 100.0 ** place[1])
    out = _OUT_GAIN * c.v_width**-0.5
    # A_log and the output norm are fp32 in a checkpoint, dt_bias has the element type of the rest.
    return {
        "w_in": w_in,
        "conv_weight": conv,
        "a_log": rate.log().float(),
        "dt_bias": torch.log(torch.expm1(step)).to(dtype).float(),  # softplus(dt_bias) = step
        "gdn_norm": 1.0 + normal((1, c.v_dim), torch.float32, std=0.2, seed=seed, name="gdn_norm"),
        "w_out": normal((c.hidden, c.v_width), dtype, std=out, seed=seed, name="w_out"),
    }


def layer_weights(config: Config, seed: int, layer: Layer) -> dict[str, Tensor]:
    """Projections and norms of one decoder layer of a kind; another seed gives an independent layer.

    Raises:
        ValueError: if there is no such layer.
    """
    mutated(layer)
    mixer = _full_weights(config, seed) if layer == "full" else _gdn_weights(config, seed)
    return {**mixer, **step_inputs.mlp_weights(config, seed, _DOWN_GAIN)}


def state_tensors(config: Config, batch: int, span: int, seed: int) -> dict[str, Tensor]:
    """`kept`, shuffled `state_slots` and `conv_slots`, and `state` and `conv_state` for `batch` sequences.

    A state holds values in the slot that its sequence reads, a convolution's buffer in the columns of its
    history; everything else is NaN.
    """
    c, rng = config, generator(seed, "states")
    kept = torch.from_numpy(rng.integers(1, span + 1, batch)).int()
    slots = torch.from_numpy(rng.permutation(batch * span + SPARE_SLOTS)).int()
    convs = torch.from_numpy(rng.permutation(batch + SPARE_SLOTS)).int()
    state_slots, conv_slots = slots[: batch * span].reshape(batch, span), convs[:batch].clone()
    state = torch.full((len(slots), c.v_heads, c.k_dim, c.v_dim), torch.nan)
    shape = (batch, c.v_heads, c.k_dim, c.v_dim)
    held = state_slots[torch.arange(batch), kept.long() - 1].long()
    state[held] = normal(shape, torch.float32, std=_STATE, seed=seed, name="state")
    width = c.taps - 2 + span
    conv = torch.full((len(convs), width, c.conv_dim), torch.nan, dtype=c.torch_dtype)
    history = normal((batch, c.taps - 1, c.conv_dim), torch.float32, seed=seed, name="conv_state")
    _correlated(history[..., : c.k_width], history[..., c.k_width : 2 * c.k_width])
    for past, slot, rows in zip(history, conv_slots.tolist(), kept.tolist(), strict=True):
        conv[slot, rows - 1 : rows + c.taps - 2] = past.to(conv.dtype)
    return {
        "kept": kept,
        "state_slots": state_slots,
        "conv_slots": conv_slots,
        "conv_state": conv.view(-1, c.conv_dim),
        "state": state.view(-1, c.v_dim),
    }


def _positions(config: Config, lengths: Sequence[int], counts: Sequence[int], seed: int) -> Tensor:
    """Index of every row's token in its sequence, plus an offset that leaves it within the RoPE tables."""
    rng = generator(seed, "positions")
    offsets = [
        int(rng.integers(rows - length, config.max_seq - length + 1))
        for length, rows in zip(lengths, counts, strict=True)
    ]
    each = [offset for offset, rows in zip(offsets, counts, strict=True) for _ in range(rows)]
    indices = step_inputs.token_indices(lengths, counts)
    return torch.tensor([i + off for i, off in zip(indices, each, strict=True)], dtype=torch.int32)


def make_inputs(
    config: Config,
    batch: int,
    context: int | str | Sequence[int] = "ragged",
    *,
    layer: Layer,
    tokens: Tokens = 1,
    span: int | None = None,
    padding: int = 0,
    seed: int = 0,
    lm_head: LmHead = "skip",
    dead_rows: Mapping[int, Dead] | Sequence[int] = (),
) -> dict[str, Tensor]:
    """All tensors of a decode step, as listed in `reference.py`; outputs are NaN.

    Args:
        config: the model's sizes.
        batch: sequences, 1..max_batch.
        context: tokens per sequence including this step's: one length, a list, or `"ragged"`. A gdn layer
            only asks whether there are any.
        layer: the kind of layer, "full" or "gdn".
        tokens: rows per sequence in this step, 0..span: one count, a list, or `"ragged"`.
        span: most rows of one sequence, the width of `state_slots`; by default the largest count, for
            `"ragged"` at most `MAX_SPAN`.
        padding: rows behind those of the sequences, which belong to nobody and must give zeros.
        seed: decides every value; other arguments change only the tensors that they concern.
        lm_head: `"skip"` (no `w_lm_head`, no `logits`), `"single"` (one chunk of the vocabulary) or `"full"`.
        dead_rows: sequences whose rows must give zeros and touch nothing, with the mark that says so (see
            `step_inputs.kill_rows`); a plain sequence means `"all"`.

    Raises:
        ValueError: if an argument is out of range.
    """
    step_inputs.check_step(config, batch, lm_head)
    counts, most = step_inputs.row_counts(batch, tokens, span, seed)
    lengths = context_lengths(config, batch, context, seed, counts)
    tensors = {
        "hidden": step_inputs.hidden_rows(config, sum(counts), seed),
        "cu_q": step_inputs.sequence_ends(counts),
        "ctx": torch.tensor(lengths, dtype=torch.int32),
        **layer_weights(config, seed, layer),
        **head_weights(config, seed, lm_head),
    }
    if layer == "full":
        cos, sin = rope_tables(config)
        tensors |= {
            "positions": _positions(config, lengths, counts, seed),
            **paged_cache(config, lengths, seed, counts),
            "rope_cos": cos,
            "rope_sin": sin,
        }
    else:
        slots = torch.from_numpy(generator(seed, "slots").permutation(sum(counts)))
        tensors |= {"slot_mapping": slots.int(), **state_tensors(config, batch, most, seed)}
    return step_inputs.finish(tensors, config, padding, dead_rows)
