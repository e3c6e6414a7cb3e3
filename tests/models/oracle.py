"""Decode steps of a Hugging Face model, in this project's tensors.

Every sequence is prefilled and decoded on its own, with its own cache and eager attention, so contexts are
ragged and nothing about batching, paging or state slots is shared with what is tested. The results are then
laid out as the references list them: rows stacked, K and V in shuffled pages, states in shuffled slots, and
NaN wherever nothing is stored.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from models.common.config import DecoderConfig

SPARE_PAGES = 3
SPARE_SLOTS = 2

Held = dict[str, Tensor]
"""What one sequence holds in one layer: k and v `[n, kv heads, D]`, or conv `[taps - 1, C]` and state."""


@dataclass(frozen=True)
class OracleRun:
    """What transformers computed. Runs are cached: treat every tensor as read-only, or take `tensors`.

    Attributes:
        config: sizes and element type.
        lens: prompt tokens per sequence; `steps` decode steps follow them, one token per sequence each.
        deltas: what is added to the position of every decoded token of a sequence.
        weights: per layer, the projections and norms in our layout.
        shared: final norm, LM head and RoPE tables.
        block_table: `[B, pages_per_seq]`.
        embedding: `[V, H]`.
        hidden: `hidden[step][layer]` `[B, H]` enters the layer, `hidden[step][layer + 1]` leaves it.
        normed: `normed[step][layer]` `[B, H]`, the final norm of what leaves the layer.
        logits: `logits[step][layer]` `[B, V]`, the LM head of that; for the last layer, the model's logits.
        held: `held[step][layer][sequence]` before the step; `held[steps]` is after the last.
        multi: as `hidden`, `[B * steps, H]`, of one forward that takes all the tokens at once.
        multi_logits: `[B * steps, V]` of that forward.
    """

    config: DecoderConfig
    lens: tuple[int, ...]
    steps: int
    deltas: tuple[int, ...]
    weights: list[dict[str, Tensor]]
    shared: dict[str, Tensor]
    block_table: Tensor
    embedding: Tensor
    hidden: list[list[Tensor]] = field(default_factory=list)
    normed: list[list[Tensor]] = field(default_factory=list)
    logits: list[list[Tensor]] = field(default_factory=list)
    held: list[list[list[Held]]] = field(default_factory=list)
    multi: list[Tensor] = field(default_factory=list)
    multi_logits: list[Tensor] = field(default_factory=list)

    def slots(self, span: int) -> tuple[Tensor, Tensor]:
        """`state_slots` `[B, span]` and `conv_slots` `[B]`, shuffled."""
        batch, rng = len(self.lens), torch.Generator().manual_seed(span)
        states = torch.randperm(batch * span + SPARE_SLOTS, generator=rng)[: batch * span]
        convs = torch.randperm(batch + SPARE_SLOTS, generator=rng)[:batch]
        return states.view(batch, span).int(), convs.int()

    def indices(self, done: Sequence[int], counts: Sequence[int]) -> dict[str, Tensor]:
        """cu_q, ctx, positions, slot_mapping and block_table of a step behind `done` decoded tokens."""
        page, lengths = self.config.page, [n + before for n, before in zip(self.lens, done, strict=True)]
        where = [(s, lengths[s] + j) for s, n in enumerate(counts) for j in range(n)]
        slots = [int(self.block_table[s, i // page]) * page + i % page for s, i in where]
        return {
            "cu_q": torch.tensor([0, *counts]).cumsum(0).int(),
            "ctx": torch.tensor(lengths).int() + torch.tensor(counts).int(),
            "positions": torch.tensor([i + self.deltas[s] for s, i in where], dtype=torch.int32),
            "slot_mapping": torch.tensor(slots, dtype=torch.int32),
            "block_table": self.block_table,
        }

    def rows(self, per_step: list[Tensor], step: int, counts: Sequence[int]) -> Tensor:
        """Rows of several steps, sequence by sequence: the first `counts` from `step` on."""
        return torch.stack([per_step[step + j][s] for s, n in enumerate(counts) for j in range(n)])

    def memory(
        self,
        step: int,
        layer: int,
        counts: Sequence[int] | None = None,
        span: int = 1,
        kept: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Caches or states before a step, or, if its `counts` are given, after it."""
        done = [0] * len(self.lens) if counts is None else counts
        if self.config.kinds[layer] == "full":
            ends = [self.held[step + n][layer][s] for s, n in enumerate(done)]
            return {
                f"{name}_cache": paged((h[name] for h in ends), self.block_table, self.config)
                for name in "kv"
            }
        before = [self.held[step][layer][s] for s in range(len(self.lens))]
        states, convs = self.slots(span)
        taps = before[0]["conv"].shape[0] + 1
        shape = before[0]["state"].shape
        state = torch.full((states.numel() + SPARE_SLOTS, *shape), torch.nan)
        conv = torch.full(
            (len(convs) + SPARE_SLOTS, taps - 2 + span, before[0]["conv"].shape[1]),
            torch.nan,
            dtype=before[0]["conv"].dtype,
        )
        for s, rows in enumerate(kept or [1] * len(self.lens)):
            slot, history = conv[convs[s]], before[s]["conv"]
            state[states[s, rows - 1]] = before[s]["state"]
            slot[rows - 1 : rows + taps - 2] = history
            after = [self.held[step + j + 1][layer][s] for j in range(done[s])]
            for j, held in enumerate(after):
                state[states[s, j]] = held["state"]
            if after:
                window = torch.cat([history[1:], *(held["conv"][-1:] for held in after)])
                slot[: len(window)] = window
        return {"state": state.flatten(0, 2), "conv_state": conv.flatten(0, 1)}

    @cached_property
    def caches(self) -> list[list[dict[str, Tensor]]]:
        """`caches[step][layer]` before every step of one row per sequence; `caches[steps]` after the last."""
        return [[self.memory(t, i) for i in range(self.config.layers)] for t in range(self.steps + 1)]

    def tensors(
        self,
        step: int,
        layer: int,
        counts: Sequence[int] | None = None,
        span: int | None = None,
        kept: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Inputs of one layer in one step, caches as transformers left them before it; outputs are NaN.

        The step takes `counts` tokens (default: one) of every sequence from token `step` on. For states laid
        out with `span` slots per sequence, `kept` (default: 1) says in which of them the last state is.
        """
        counts = counts or [1] * len(self.lens)
        span = span or max(counts)
        given = {
            "hidden": self.rows([h[layer] for h in self.hidden], step, counts),
            **self.indices([step] * len(self.lens), counts),
            **self.shared,
            **self.weights[layer],
            **self.memory(step, layer, None, span, kept),
        }
        if self.config.kinds[layer] == "gdn":
            given["state_slots"], given["conv_slots"] = self.slots(span)
            given["kept"] = torch.tensor(kept or [1] * len(self.lens), dtype=torch.int32)
        return given | self.outputs(sum(counts))

    def outputs(self, rows: int) -> dict[str, Tensor]:
        """The outputs of a step, NaN."""
        width, vocab = self.config.hidden, self.logits[0][0].shape[1]
        columns = {"next_hidden": width, "normed": width, "logits": vocab}
        dtype = self.config.torch_dtype
        return {name: torch.full((rows, n), torch.nan, dtype=dtype) for name, n in columns.items()}

    def expected(
        self,
        step: int,
        layer: int,
        counts: Sequence[int] | None = None,
        span: int | None = None,
        kept: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Every tensor that the layer mutates, after the step; where nothing is stored it is NaN."""
        counts = counts or [1] * len(self.lens)
        return {
            "next_hidden": self.rows([h[layer + 1] for h in self.hidden], step, counts),
            "normed": self.rows([h[layer] for h in self.normed], step, counts),
            "logits": self.rows([h[layer] for h in self.logits], step, counts),
            **self.memory(step, layer, counts, span or max(counts), kept),
        }


def paged(tokens: Iterable[Tensor], block_table: Tensor, config: DecoderConfig) -> Tensor:
    """Cache rows `[rows, D]` that hold each sequence's tokens `[n, kv heads, D]`, and NaN elsewhere."""
    shape = (block_table.numel() + SPARE_PAGES, config.kv_heads, config.page, config.head_dim)
    pool = torch.full(shape, torch.nan, dtype=config.torch_dtype)
    for table, kv in zip(block_table, tokens, strict=True):
        index = torch.arange(len(kv))
        pool[table[index // config.page].long(), :, index % config.page] = kv
    return pool.view(-1, config.head_dim)


def held_by(cache: DynamicCache, config: DecoderConfig) -> list[Held]:
    """What one sequence holds in every layer. Of four columns of a convolution the oldest is dead weight."""
    held = []
    for layer, kind in zip(cache.layers, config.kinds, strict=True):
        if kind == "full":
            held.append({"k": layer.keys[0].transpose(0, 1), "v": layer.values[0].transpose(0, 1)})
        else:
            conv, state = layer.conv_states[0][0], layer.recurrent_states[0][0]
            held.append({"conv": conv[:, -(config.taps - 1) :].T, "state": state})
    return [{name: t.clone() for name, t in layer.items()} for layer in held]


def decode(
    model: Any,
    config: DecoderConfig,
    weights: list[dict[str, Tensor]],
    shared: dict[str, Tensor],
    *,
    lens: tuple[int, ...],
    steps: int,
    seed: int,
    deltas: tuple[int, ...] | None = None,
) -> OracleRun:
    """Prefill sequences of `lens` random tokens, then decode `steps` more random tokens each.

    Raises:
        ValueError: if a sequence would outgrow `config.max_seq`.
    """
    if max(lens) + steps > config.max_seq:
        raise ValueError(f"lens {lens} and {steps} steps do not fit in max_seq = {config.max_seq}")
    batch, pages = len(lens), config.pages_per_seq
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(batch * pages + SPARE_PAGES, generator=rng)
    table = order[: batch * pages].view(batch, pages).int()
    tokens = [torch.randint(config.vocab, (n + steps,), generator=rng) for n in lens]
    embedding = model.model.embed_tokens.weight.detach()
    run = OracleRun(config, lens, steps, deltas or (0,) * batch, weights, shared, table, embedding)
    caches = [DynamicCache(config=model.config) for _ in lens]

    seen: list[Tensor] = []  # what enters layer 0, then what leaves each layer
    model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0][0].clone()))
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, __, out: seen.append(out[0].clone()))

    def forward(s: int, first: int, count: int, cache: DynamicCache) -> tuple[list[Tensor], Tensor]:
        seen.clear()
        at = torch.arange(first, first + count)[None] + run.deltas[s]
        ids = tokens[s][None, first : first + count]
        out = model(input_ids=ids, position_ids=at, past_key_values=cache, use_cache=True)
        return list(seen), out.logits[0]

    with torch.no_grad():
        for s, n in enumerate(lens):
            model(input_ids=tokens[s][None, :n], past_key_values=caches[s], use_cache=True)
        at_once = [forward(s, n, steps, copy.deepcopy(caches[s])) for s, n in enumerate(lens)]
        run.multi.extend(torch.cat(rows) for rows in zip(*(h for h, _ in at_once), strict=True))
        run.multi_logits.extend(logits for _, logits in at_once)
        for step in range(steps + 1):
            held = [held_by(cache, config) for cache in caches]
            run.held.append([list(layer) for layer in zip(*held, strict=True)])
            if step == steps:
                break
            done = [forward(s, n + step, 1, caches[s]) for s, n in enumerate(lens)]
            run.hidden.append([torch.cat(rows) for rows in zip(*(h for h, _ in done), strict=True)])
            norms = [[model.model.norm(row[None]) for row in h] for h in run.hidden[step][1:]]
            run.normed.append([torch.cat(rows) for rows in norms])
            run.logits.append([torch.cat([model.lm_head(row) for row in rows]) for rows in norms[:-1]])
            run.logits[step].append(torch.cat([logits for _, logits in done]))
    return run
