"""Seeded values for the inputs of a decode step: what the models' `make_inputs` are made of."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.common.config import VOCAB_GRANULE, DecoderConfig

LmHead = Literal["skip", "single", "full"]
Dead = Literal["slot", "ctx", "cu_q", "all", "tail"]
Tokens = int | str | Sequence[int]

SPARE_PAGES = 3
"""Physical pages that no sequence owns."""

MAX_SPAN = 8
"""Most rows of one sequence in a step."""

MAX_ROWS = 128
"""Most rows in a step."""

NORM_SPREAD = 0.2  # standard deviation of the hidden norms' weights around their centre
QK_NORM = (1.5, 0.65)  # mean and spread of the factors of the q and k norms

_CHUNK = 1 << 20  # elements per random stream
_LOOKUP = 1 << 16  # elements per table look-up: its indices stay in the L2 cache


# ----------------------------------------------------------------------------------------- random numbers
@cache
def _quantiles() -> Tensor:
    """65536 equally likely values of the standard normal distribution, fp64."""
    values: Tensor = torch.special.ndtri((torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16))
    return values / values.std()


def normal(shape: Sequence[int], dtype: torch.dtype, *, std: float = 1.0, seed: int, name: str) -> Tensor:
    """Independent normal values of standard deviation `std`; `(seed, name)` alone decide them.

    Sixteen random bits pick one of 65536 quantiles, already rounded to `dtype`: several times faster than a
    normal generator, and as fine as bf16 can tell.
    """
    out = torch.empty(tuple(shape), dtype=dtype)
    raw = torch.int16 if dtype.itemsize == 2 else torch.int32
    table = (_quantiles() * std).to(dtype).view(raw).numpy()
    flat = out.view(-1).view(raw).numpy()

    def fill(start: int) -> None:
        part = flat[start : start + _CHUNK]
        stream = np.random.SFC64(np.random.SeedSequence((seed, zlib.crc32(name.encode()), start)))
        bits = stream.random_raw(-(-part.size // 4)).view(np.uint16)
        for i in range(0, part.size, _LOOKUP):
            dest = part[i : i + _LOOKUP]
            # mode="clip" lets take write straight into dest; every index is in range anyway
            np.take(table, bits[i : i + dest.size], out=dest, mode="clip")

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(0, flat.size, _CHUNK)))
    return out


def generator(seed: int, name: str) -> np.random.Generator:
    """A generator that `(seed, name)` alone decide, for the few values that are not normal."""
    return np.random.default_rng((seed, zlib.crc32(name.encode())))


# ---------------------------------------------------------------------------------------------- parameters
def rope_tables(config: DecoderConfig) -> tuple[Tensor, Tensor]:
    """cos and sin `[max_seq, R / 2]` of position * theta^(-2i / R) for the R rotated dims of a head.

    Angles are fp32, and so are the tables, but their values are rounded to the model's element type.
    """
    exponent = torch.arange(0, config.rotary, 2).float() / config.rotary
    angles = torch.arange(config.max_seq).float()[:, None] * (1.0 / config.rope_theta**exponent)
    cos, sin = (f(angles).to(config.torch_dtype).float() for f in (torch.cos, torch.sin))
    return cos, sin


def norm_weight(
    width: int, config: DecoderConfig, mean: float, std: float, *, seed: int, name: str
) -> Tensor:
    """`[1, width]` fp32 values that the model's element type can hold; `mean` is that of the norm's factor.

    A norm in the Gemma style adds 1 to its weight: the stored values are centred on `mean - 1`.
    """
    centre = mean - 1.0 if config.gemma_norm else mean
    weight = centre + normal((1, width), torch.float32, std=std, seed=seed, name=name)
    return weight.to(config.torch_dtype).float()


def attention_weights(config: DecoderConfig, seed: int, *, o_gain: float, shared: float) -> dict[str, Tensor]:
    """Projections and per-head norms of a full-attention layer.

    `o_gain` is a factor on the output projection, `shared` the part of a key head's variance that comes from
    the query heads of its group.
    """
    c, dtype = config, config.torch_dtype
    w_qkv = normal((c.qkv_width, c.hidden), dtype, std=c.hidden**-0.5, seed=seed, name="w_qkv")
    _, q, k, _ = w_qkv.split([c.gate_width, c.q_width, c.kv_width, c.kv_width])
    queries = q.view(c.kv_heads, c.group, c.head_dim, c.hidden).sum(1, dtype=torch.float32) / c.group**0.5
    k.copy_(shared**0.5 * queries.view(c.kv_width, c.hidden) + (1 - shared) ** 0.5 * k)
    return {
        "w_qkv": w_qkv,
        "w_o": normal((c.hidden, c.q_width), dtype, std=o_gain * c.q_width**-0.5, seed=seed, name="w_o"),
        "q_norm": norm_weight(c.head_dim, c, *QK_NORM, seed=seed, name="q_norm"),
        "k_norm": norm_weight(c.head_dim, c, *QK_NORM, seed=seed, name="k_norm"),
    }


def mlp_weights(config: DecoderConfig, seed: int, down_gain: float) -> dict[str, Tensor]:
    """The MLP of a layer, and the two norms of the residual stream."""
    c, dtype = config, config.torch_dtype
    down = down_gain * c.intermediate**-0.5
    return {
        "w_gate_up": normal(
            (2 * c.intermediate, c.hidden), dtype, std=c.hidden**-0.5, seed=seed, name="w_gate_up"
        ),
        "w_down": normal((c.hidden, c.intermediate), dtype, std=down, seed=seed, name="w_down"),
        "input_norm": norm_weight(c.hidden, c, 1.0, NORM_SPREAD, seed=seed, name="input_norm"),
        "post_norm": norm_weight(c.hidden, c, 1.0, NORM_SPREAD, seed=seed, name="post_norm"),
    }


def head_weights(config: DecoderConfig, seed: int, lm_head: LmHead) -> dict[str, Tensor]:
    """The final norm and, unless skipped, the LM head; `single` keeps only its first `VOCAB_GRANULE` rows.

    Padding rows of the vocabulary hold values like any other, so that their logits are checked too.
    """
    norm = norm_weight(config.hidden, config, 1.0, NORM_SPREAD, seed=seed, name="final_norm")
    weights = {"final_norm": norm}
    if lm_head != "skip":
        shape = (config.vocab_padded if lm_head == "full" else VOCAB_GRANULE, config.hidden)
        std = config.hidden**-0.5
        weights["w_lm_head"] = normal(shape, config.torch_dtype, std=std, seed=seed, name="w_lm_head")
    return weights


# ----------------------------------------------------------------------------------------- rows of a step
def row_counts(batch: int, tokens: Tokens, span: int | None, seed: int) -> tuple[list[int], int]:
    """Rows of every sequence in the step, each in 0..span, and the span (default: the largest count).

    `"ragged"` draws them; among two or more sequences are one with `span` (default `MAX_SPAN`) rows and one
    with none.

    Raises:
        ValueError: if a count or the span is out of range, or the step would have no rows or too many.
    """
    if span is not None and not 1 <= span <= MAX_SPAN:
        raise ValueError(f"span is {span}; it must lie in 1..{MAX_SPAN}")
    most = MAX_SPAN if span is None else span
    if isinstance(tokens, str):
        if tokens != "ragged":
            raise ValueError(f"tokens is {tokens!r}; give 'ragged', one count, or a list of {batch}")
        rng = generator(seed, "tokens")
        drawn = rng.integers(0, most + 1, batch).tolist()
        drawn[:2] = [most, 0][:batch]
        counts = [int(n) for n in rng.permutation(drawn)]
    else:
        counts = [tokens] * batch if isinstance(tokens, int) else list(tokens)
    if len(counts) != batch:
        raise ValueError(f"tokens lists {len(counts)} counts for a batch of {batch}")
    if not all(0 <= n <= most for n in counts):
        raise ValueError(f"tokens {counts} must lie in 0..{most}" + (", the span" if span else ""))
    if not 1 <= sum(counts) <= MAX_ROWS:
        raise ValueError(f"tokens {counts} make {sum(counts)} rows; a step has 1 to {MAX_ROWS}")
    return counts, span or max(counts)


def context_lengths(
    config: DecoderConfig,
    batch: int,
    context: int | str | Sequence[int],
    seed: int,
    counts: Sequence[int] | None = None,
) -> list[int]:
    """One length in 1..max_seq per sequence, this step's `counts` tokens (default: one each) included.

    `"ragged"` draws them, and makes up to half of them edge cases: the longest context, a single token, a
    full page, one token on a new page. A length that is drawn is at least its count.

    Raises:
        ValueError: if a length is out of range or their number is not `batch`.
    """
    counts = [1] * batch if counts is None else counts
    if isinstance(context, str):
        if context != "ragged":
            raise ValueError(f"context is {context!r}; give 'ragged', one length, or a list of {batch}")
        rng = generator(seed, "context")
        edges = [config.max_seq, 1, config.page, min(config.page + 1, config.max_seq)]
        drawn = rng.integers(1, config.max_seq + 1, batch).tolist()
        drawn[: min(batch // 2, len(edges))] = edges[: batch // 2]
        return [max(int(n), rows) for n, rows in zip(rng.permutation(drawn), counts, strict=True)]
    lengths = [context] * batch if isinstance(context, int) else list(context)
    if len(lengths) != batch:
        raise ValueError(f"context lists {len(lengths)} lengths for a batch of {batch}")
    if not all(1 <= n <= config.max_seq for n in lengths):
        raise ValueError(
            f"context lengths {lengths} must lie in 1..{config.max_seq}; use dead_rows for dead sequences"
        )
    if any(n < rows for n, rows in zip(lengths, counts, strict=True)):
        raise ValueError(f"context lengths {lengths} must include this step's {list(counts)} tokens")
    return lengths


def token_indices(lengths: Sequence[int], counts: Sequence[int]) -> list[int]:
    """The index in its sequence of every row's token: the last `counts` of `lengths`."""
    return [i for length, n in zip(lengths, counts, strict=True) for i in range(length - n, length)]


def sequence_ends(counts: Sequence[int]) -> Tensor:
    """cu_q `[B + 1]` of sequences with `counts` rows."""
    return torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)


def hidden_rows(config: DecoderConfig, rows: int, seed: int) -> Tensor:
    """The residual stream `[rows, H]`. Row scales differ, so that a norm taken over the wrong rows shows."""
    scale = torch.linspace(0.8, 1.25, rows)[:, None]
    values = normal((rows, config.hidden), torch.float32, seed=seed, name="hidden") * scale
    return values.to(config.torch_dtype)


def paged_cache(
    config: DecoderConfig, lengths: Sequence[int], seed: int, counts: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Shuffled pages for `lengths` tokens per sequence, the last `counts` (default: one) still to be written.

    Returns `block_table` `[B, pages_per_seq]` (unused entries -1), `slot_mapping` `[T]` of the tokens to be
    written, and `k_cache` and `v_cache`: random up to those tokens, NaN everywhere else.
    """
    c = config
    counts = [1] * len(lengths) if counts is None else counts
    used = [-(-n // c.page) for n in lengths]
    pages = sum(used) + SPARE_PAGES
    order = torch.from_numpy(generator(seed, "pages").permutation(pages))
    table = torch.full((len(lengths), c.pages_per_seq), -1, dtype=torch.int32)
    shape = (pages, c.kv_heads, c.page, c.head_dim)
    caches = {
        "k_cache": normal(shape, c.torch_dtype, std=math.hypot(*QK_NORM), seed=seed, name="k_cache"),
        "v_cache": normal(shape, c.torch_dtype, seed=seed, name="v_cache"),
    }
    slots: list[int] = []
    first = 0
    for seq, (number, length, rows) in enumerate(zip(used, lengths, counts, strict=True)):
        table[seq, :number] = order[first : first + number]
        first += number
        cached = length - rows
        for index in range(cached, length):
            slots.append(int(table[seq, index // c.page]) * c.page + index % c.page)
        for i in range(cached // c.page, number):
            for pool in caches.values():
                pool[int(table[seq, i]), :, max(cached - i * c.page, 0) :] = torch.nan
    for pool in caches.values():
        pool[order[first:]] = torch.nan
    flat = {name: pool.view(-1, c.head_dim) for name, pool in caches.items()}
    return {"block_table": table, "slot_mapping": torch.tensor(slots, dtype=torch.int32), **flat}


# ---------------------------------------------------------------------------------------------- dead rows
def kill_rows(tensors: dict[str, Tensor], dead: Mapping[int, Dead]) -> None:
    """Make sequences of a step dead, in place: hidden becomes NaN on their rows and a mark is set.

    `"slot"`: slots -1. `"ctx"`: ctx 0. `"cu_q"`: an empty range, only for sequences at the end, as in a graph
    replayed with fewer of them. `"all"`: slots -1, ctx 0, no pages, no states. A single mark leaves the
    others as they are in a live sequence: each alone must do.

    `"tail"` kills only the trailing half of a sequence's rows: their slots are -1, and ctx counts the others.

    Raises:
        ValueError: if a sequence does not exist, has no trailing row to kill, or an empty range would shift
        the rows behind it.
    """
    batch = tensors["ctx"].shape[0]
    ends = tensors["cu_q"].tolist()
    for seq, mark in dead.items():
        if not 0 <= seq < batch:
            raise ValueError(f"dead_rows names sequence {seq} of a batch of {batch}")
        if mark == "cu_q" and any(dead.get(after) != "cu_q" for after in range(seq, batch)):
            raise ValueError(f"dead_rows[{seq}] = 'cu_q' needs every later sequence to be 'cu_q' too")
        first, end = ends[seq], ends[seq + 1]
        if mark == "tail":
            if end - first < 2:
                raise ValueError(f"dead_rows[{seq}] = 'tail' needs 2 rows or more; there are {end - first}")
            first += (end - first) // 2
            tensors["ctx"][seq] -= end - first
        tensors["hidden"][first:end] = torch.nan
        if mark in ("slot", "all", "tail"):
            tensors["slot_mapping"][first:end] = -1
        if mark in ("ctx", "all"):
            tensors["ctx"][seq] = 0
        if mark == "all":
            for name in ("block_table", "state_slots", "conv_slots"):
                if name in tensors:
                    tensors[name][seq] = -1
            if "kept" in tensors:
                tensors["kept"][seq] = 0
        if mark == "cu_q":
            tensors["cu_q"][seq + 1 :] = int(tensors["cu_q"][seq])


def pad_rows(tensors: dict[str, Tensor], config: DecoderConfig, padding: int) -> None:
    """Append rows that belong to no sequence, in place: hidden is NaN, the other values are stale.

    Their slot holds an older token of some sequence, if there is one: a write would destroy it.

    Raises:
        ValueError: if `padding` is negative or makes the step too long.
    """
    rows = tensors["hidden"].shape[0] + padding
    if padding < 0 or rows > MAX_ROWS:
        raise ValueError(f"padding is {padding}; it must be 0 or more and give at most {MAX_ROWS} rows")
    if padding == 0:
        return
    slot = 0
    if "k_cache" in tensors:
        owned = tensors["cu_q"].diff().tolist()
        for seq, (length, own) in enumerate(zip(tensors["ctx"].tolist(), owned, strict=True)):
            if length > own:
                slot = int(tensors["block_table"][seq, 0]) * config.page
    pad = torch.nn.functional.pad
    tensors["hidden"] = pad(tensors["hidden"], (0, 0, 0, padding), value=torch.nan)
    for name, value in {"positions": 0, "slot_mapping": slot}.items():
        if name in tensors:
            tensors[name] = pad(tensors[name], (0, padding), value=value)


# ----------------------------------------------------------------------------------------------- the step
def check_step(config: DecoderConfig, batch: int, lm_head: str) -> None:
    """Raise ValueError if a step of `batch` sequences with this LM head does not exist."""
    if not 1 <= batch <= config.max_batch:
        raise ValueError(f"batch is {batch}; it must lie in 1..{config.max_batch}")
    if lm_head not in ("skip", "single", "full"):
        raise ValueError(f"lm_head is {lm_head!r}; use 'skip', 'single' or 'full'")


def outputs(tensors: Mapping[str, Tensor], config: DecoderConfig) -> dict[str, Tensor]:
    """The outputs of a step, NaN."""
    shapes = {"next_hidden": config.hidden, "normed": config.hidden}
    if "w_lm_head" in tensors:
        shapes["logits"] = tensors["w_lm_head"].shape[0]
    rows = tensors["hidden"].shape[0]
    return {n: torch.full((rows, width), torch.nan, dtype=config.torch_dtype) for n, width in shapes.items()}


def finish(
    tensors: dict[str, Tensor],
    config: DecoderConfig,
    padding: int,
    dead_rows: Mapping[int, Dead] | Sequence[int],
) -> dict[str, Tensor]:
    """`tensors` with dead sequences, padding rows and outputs."""
    kill_rows(tensors, dead_rows if isinstance(dead_rows, Mapping) else dict.fromkeys(dead_rows, "all"))
    pad_rows(tensors, config, padding)
    return tensors | outputs(tensors, config)
