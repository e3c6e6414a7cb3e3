"""A whole model that decodes: weights, paged caches and states of a batch of sequences, and the step.

    decoder = Decoder.from_checkpoint(MODEL, directory, config)
    step = decoder.decode_step([[1, 2, 3], [], [4]])     # three sequences: 3 rows, none, 1 row
    step.next_tokens                                     # [[.., .., ..], [], [..]]: greedy, after every row
    decoder.accept([1, 0, 1])                            # of sequence 0, only the first row was right

Rows of a sequence are its next tokens.  The first of them always counts; the others may be a prompt, or
drafts that `accept` rolls back: then the context is shorter, and the states are as after the last row kept.

A step is a sequence of launches on tensors that exist before it: embedding, one program per layer, head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.common.checkpoint import Progress
from models.common.config import DecoderConfig
from models.common.paging import PageTable
from models.common.programs import EMBED, HEAD, DecoderModel, StepPrograms
from models.common.step_inputs import MAX_ROWS, MAX_SPAN, rope_tables
from pypto_models.compile import DEFAULT_PLATFORM
from pypto_models.errors import NOWHERE, Diag, UserError, user_error

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """What a step gives, by sequence; a sequence without rows has none here.

    Attributes:
        logits: `[rows, vocab]` each, in the model's element type.
        next_tokens: for every row the token with the largest logit, the lowest of equal ones.
    """

    logits: list[Tensor]
    next_tokens: list[list[int]]


class Decoder:
    """`config.max_batch` sequences of one model, each empty at first.

    Args:
        model: the model's kernels.
        config: its sizes; `max_batch` sequences of up to `max_seq` tokens, with KV pages of `page` tokens.
        layers: the weights of every layer, as `layer_weights` of the model loads them.
        head: table, final_norm and w_lm_head, as `head_weights` loads them.
        platform: target and backend.
        span: most rows of one sequence in a step, 1 to 8; every sequence has as many recurrent states.
        pages: KV pages in all; by default enough for every sequence at its longest.

    Raises:
        UserError: for a span or a number of pages that cannot be, or layers that do not fit `config`.
    """

    def __init__(
        self,
        model: DecoderModel,
        config: DecoderConfig,
        layers: Sequence[Weights],
        head: Weights,
        *,
        platform: str = DEFAULT_PLATFORM,
        span: int = MAX_SPAN,
        pages: int | None = None,
    ) -> None:
        if not 1 <= span <= MAX_SPAN:
            raise _refused("span", f"it is {span}", f"use 1 to {MAX_SPAN} rows of a sequence in one step")
        if config.max_batch > MAX_ROWS:
            raise _refused("config", f"max_batch is {config.max_batch}", f"a step has up to {MAX_ROWS} rows")
        if len(layers) != config.layers:
            raise _refused("layers", f"{len(layers)} are given", f"give the weights of {config.layers}")
        self.model, self.config, self.span = model, config, span
        self.programs = StepPrograms(model, config, platform)
        most = config.max_batch * config.pages_per_seq
        self.pages = PageTable(
            config.max_batch, config.pages_per_seq, config.page, most if pages is None else pages
        )
        self.device = torch.device(self.programs.program(EMBED, 1, 1).device)
        self.head = {name: w.to(self.device) for name, w in head.items()}
        cos, sin = rope_tables(config)
        rope = {"rope_cos": cos.to(self.device), "rope_sin": sin.to(self.device)}
        self.layers: list[Weights] = []
        for kind, weights in zip(config.kinds, layers, strict=True):
            own = {name: w.to(self.device) for name, w in weights.items()}
            self.layers.append({**own, **(rope if kind == "full" else {}), **self._memory(kind)})
        self._lengths = [0] * config.max_batch
        self._rows = [0] * config.max_batch  # of the last step, those that are kept
        self._kept = [1] * config.max_batch  # of the last step in which a sequence had rows

    @classmethod
    def from_checkpoint(
        cls,
        model: DecoderModel,
        directory: str | Path,
        config: DecoderConfig,
        progress: Progress | None = None,
        **options: Any,
    ) -> Decoder:
        """A decoder with the weights of a Hugging Face directory, which stay in memory.

        `config` is from `model.checkpoints.config_of(directory)`; `options` are those of the class.

        Raises:
            UserError: if the checkpoint is not what `config` says.
        """
        files = model.checkpoints
        checkpoint = files.open_weights(directory, config, progress)
        layers = []
        for i in range(config.layers):
            if progress is not None:
                progress(f"layer {i + 1} of {config.layers}")
            layers.append(files.layer_weights(checkpoint, config, i))
        return cls(model, config, layers, files.head_weights(checkpoint, config), **options)

    def _memory(self, kind: str) -> dict[str, Tensor]:
        """Empty caches of a full-attention layer, or the states of a gated-delta-net layer."""
        c: Any = self.config
        if kind == "full":
            shape, dtype = (self.pages.pages * c.kv_heads * c.page, c.head_dim), c.torch_dtype
            return {name: torch.zeros(shape, dtype=dtype, device=self.device) for name in _CACHES}
        rows = c.max_batch * self.span * c.v_heads * c.k_dim
        columns = c.max_batch * (c.taps - 2 + self.span)
        return {
            "state": torch.zeros(rows, c.v_dim, device=self.device),
            "conv_state": torch.zeros(columns, c.conv_dim, dtype=c.torch_dtype, device=self.device),
        }

    # ----------------------------------------------------------------------------------------- the step
    def decode_step(self, tokens: Sequence[Sequence[int]]) -> Step:
        """Feed every sequence its next tokens, 0 to `span` of them, and get logits after each.

        Raises:
            UserError: for a token that the vocabulary lacks, more tokens than a step or a sequence holds, or
            too few KV pages; then nothing has changed.
        """
        counts = self._check(tokens)
        after = [length + n for length, n in zip(self._lengths, counts, strict=True)]
        self.pages.reserve(after)
        given = self._inputs(tokens, after)
        rows, most = sum(counts), max(counts)

        hidden = self._empty(rows, self.config.hidden)
        self._launch(EMBED, rows, 1, given, self.head, hidden=hidden)
        for kind, layer in zip(self.config.kinds, self.layers, strict=True):
            # The layout of the states of a gated-delta-net layer follows from the span.
            span = 1 if kind == "full" and most == 1 else self.span
            following = self._empty(rows, self.config.hidden)
            self._launch(kind, rows, span, given, layer, hidden=hidden, next_hidden=following)
            hidden = following
        logits = self._empty(rows, self.config.vocab_padded)
        chosen = torch.empty(rows, dtype=torch.int32, device=self.device)
        self._launch(HEAD, rows, 1, given, self.head, hidden=hidden, logits=logits, next_tokens=chosen)

        self._lengths, self._rows = after, counts
        self._kept = [n or kept for n, kept in zip(counts, self._kept, strict=True)]
        parts = logits[:, : self.config.vocab].split(counts)
        return Step(list(parts), [part.tolist() for part in chosen.split(counts)])

    def accept(self, counts: Sequence[int]) -> None:
        """Keep the first `counts[s]` rows that sequence s had in the last step, and take back the others.

        The pages of what is taken back stay with the sequence.

        Raises:
            UserError: unless each count lies in 1..rows, and is 0 for a sequence that had no rows.
        """
        if len(counts) != len(self._rows):
            raise _refused(
                "counts", f"{len(counts)} are given", f"give one for each of {len(self._rows)} sequences"
            )
        for s, (count, rows) in enumerate(zip(counts, self._rows, strict=True)):
            if not min(rows, 1) <= count <= rows:
                known = f"1 to {rows}" if rows else "0"
                why = f"sequence {s} keeps {count} of {rows} rows"
                raise _refused("counts", why, f"keep {known} of them")
        for s, (count, rows) in enumerate(zip(counts, self._rows, strict=True)):
            if rows:
                self._lengths[s] -= rows - count
                self._kept[s] = count
        self._rows = list(counts)

    def reset(self, s: int) -> None:
        """Empty sequence `s`: its pages become free, its states zero."""
        self.pages.release(s)
        for kind, layer in zip(self.config.kinds, self.layers, strict=True):
            if kind != "full":
                for name in _STATES:
                    layer[name].view(self.config.max_batch, -1)[s] = 0
        self._lengths[s], self._rows[s], self._kept[s] = 0, 0, 1

    # ------------------------------------------------------------------------------------- what it holds
    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of every sequence."""
        return tuple(self._lengths)

    def held(self, layer: int, s: int) -> dict[str, Tensor]:
        """Copies of what sequence `s` holds in a layer.

        k and v `[length, kv heads, D]`, or conv `[taps - 1, C]`, oldest first, and state `[v heads, k dim,
        v dim]` fp32.
        """
        c: Any = self.config
        tensors, kept = self.layers[layer], self._kept[s]
        if c.kinds[layer] == "full":
            where = torch.tensor(self.pages.slots(s, 0, self._lengths[s]), dtype=torch.long)
            page, offset = where // c.page, where % c.page
            pools = (tensors[name].view(-1, c.kv_heads, c.page, c.head_dim) for name in _CACHES)
            return {name: pool[page, :, offset] for name, pool in zip("kv", pools, strict=True)}
        states = tensors["state"].view(c.max_batch, self.span, c.v_heads, c.k_dim, c.v_dim)
        columns = tensors["conv_state"].view(c.max_batch, -1, c.conv_dim)
        conv = columns[s, kept - 1 : kept + c.taps - 2]
        return {"conv": conv.clone(), "state": states[s, kept - 1].clone()}

    # ------------------------------------------------------------------------------------------ internals
    def _check(self, tokens: Sequence[Sequence[int]]) -> list[int]:
        """Rows of every sequence."""
        c, counts = self.config, [len(own) for own in tokens]
        if len(counts) != c.max_batch:
            raise _refused(
                "tokens", f"they are of {len(counts)} sequences", f"give {c.max_batch} lists, empty ones too"
            )
        for s, (own, n, length) in enumerate(zip(tokens, counts, self._lengths, strict=True)):
            if n > self.span:
                raise _refused(
                    "tokens", f"sequence {s} has {n}", f"give up to {self.span} at a time, the decoder's span"
                )
            if length + n > c.max_seq:
                raise _refused(
                    "tokens",
                    f"sequence {s} holds {length}, and {n} more exceed max_seq = {c.max_seq}",
                    "end the sequence, or make the decoder with a larger max_seq",
                )
            for token in own:
                if not 0 <= token < c.vocab:
                    raise _refused(
                        "tokens", f"sequence {s} has token {token}", f"give tokens in 0..{c.vocab - 1}"
                    )
        if not 1 <= sum(counts) <= MAX_ROWS:
            raise _refused("tokens", f"there are {sum(counts)}", f"give 1 to {MAX_ROWS} in one step")
        return counts

    def _inputs(self, tokens: Sequence[Sequence[int]], after: Sequence[int]) -> dict[str, Tensor]:
        """Everything that tells a step its rows, as the kernels take it."""
        b, span = self.config.max_batch, self.span
        spans = [(length - len(own), length) for own, length in zip(tokens, after, strict=True)]
        counts = [end - first for first, end in spans]
        values = {
            "tokens": [token for own in tokens for token in own],
            "positions": [i for first, end in spans for i in range(first, end)],
            "slot_mapping": [slot for s in range(b) for slot in self.pages.slots(s, *spans[s])],
            "cu_q": list(_running(counts)),
            "ctx": list(after),
            "kept": self._kept,
            "state_slots": [[s * span + j for j in range(span)] for s in range(b)],
            "conv_slots": list(range(b)),
        }
        made = {
            name: torch.tensor(value, dtype=torch.int32, device=self.device) for name, value in values.items()
        }
        return made | {"block_table": self.pages.table.to(self.device)}

    def _launch(
        self, name: str, rows: int, span: int, given: Weights, own: Weights, **outputs: Tensor
    ) -> None:
        program = self.programs.program(name, rows, span)
        tensors = {**given, **own, **outputs}
        program(*(tensors[p.name] for p in program.params))

    def _empty(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, width, dtype=self.config.torch_dtype, device=self.device)


_CACHES = ("k_cache", "v_cache")
_STATES = ("state", "conv_state")


def _running(counts: Sequence[int]) -> Iterator[int]:
    total = 0
    yield total
    for count in counts:
        total += count
        yield total


def _refused(name: str, why: str, fix: str) -> UserError:
    return user_error(Diag.ARGUMENT, NOWHERE, name=name, why=why, fix=fix)
