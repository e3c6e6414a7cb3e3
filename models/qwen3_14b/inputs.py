"""Seeded inputs of a decode step on which every part of the layer matters.

Plain random inputs test little: attention over thousands of random keys averages the values away, and a layer
whose branches are a thousandth of its residual passes with attention removed. Here the standard deviations of
residual, attention branch and MLP branch are within a factor of three of each other at any context length,
and every token of the context has a say, because

* the q and k norms have large weights: scores have a standard deviation of about 2.7, so a softmax over 4096
  tokens rests on a few of them, and which ones differs from head to head;
* each key head shares most of its variance with the query heads of its group, so that this step's own token
  competes with all the others;
* the output and down projections carry a gain on top of 1 / sqrt(fan in).

Whatever a kernel must not read is NaN: pages that no sequence owns, slots at and beyond this step's token,
hidden rows that are dead, and the outputs.
"""

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

from models.qwen3_14b.config import VOCAB_GRANULE, Config

LmHead = Literal["skip", "single", "full"]
Dead = Literal["slot", "ctx", "cu_q", "all"]

SPARE_PAGES = 3
"""Physical pages that no sequence owns."""

_NORM = (1.0, 0.2)  # mean and standard deviation of the hidden norms' weights
_QK_NORM = (1.5, 0.65)  # of the q and k norms' weights; the spread makes their place before RoPE visible
_SHARED = 0.6  # part of a key head's variance that comes from its query heads
_O_GAIN = 2.0
_DOWN_GAIN = 1.2

_CHUNK = 1 << 20  # elements per random stream
_LOOKUP = 1 << 16  # elements per table look-up: its indices stay in the L2 cache


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


def rope_tables(config: Config) -> tuple[Tensor, Tensor]:
    """cos and sin `[max_seq, D / 2]` of position * theta^(-2i / D).

    Angles are fp32, and so are the tables, but their values are rounded to the model's element type.
    """
    exponent = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    angles = torch.arange(config.max_seq).float()[:, None] * (1.0 / config.rope_theta**exponent)
    cos, sin = (f(angles).to(config.torch_dtype).float() for f in (torch.cos, torch.sin))
    return cos, sin


def norm_weight(width: int, config: Config, mean: float, std: float, *, seed: int, name: str) -> Tensor:
    """`[1, width]` normal fp32 values that the model's element type can hold."""
    weight = mean + normal((1, width), torch.float32, std=std, seed=seed, name=name)
    return weight.to(config.torch_dtype).float()


def layer_weights(config: Config, seed: int) -> dict[str, Tensor]:
    """Projections and norms of one decoder layer; another seed gives an independent layer."""
    c, dtype = config, config.torch_dtype
    w_qkv = normal((c.qkv_width, c.hidden), dtype, std=c.hidden**-0.5, seed=seed, name="w_qkv")
    q, k, _ = w_qkv.split([c.q_width, c.kv_width, c.kv_width])
    queries = q.view(c.kv_heads, c.group, c.head_dim, c.hidden).sum(1, dtype=torch.float32) / c.group**0.5
    k.copy_(_SHARED**0.5 * queries.view(c.kv_width, c.hidden) + (1 - _SHARED) ** 0.5 * k)
    return {
        "w_qkv": w_qkv,
        "w_o": normal((c.hidden, c.q_width), dtype, std=_O_GAIN * c.q_width**-0.5, seed=seed, name="w_o"),
        "w_gate_up": normal(
            (2 * c.intermediate, c.hidden), dtype, std=c.hidden**-0.5, seed=seed, name="w_gate_up"
        ),
        "w_down": normal(
            (c.hidden, c.intermediate), dtype, std=_DOWN_GAIN * c.intermediate**-0.5, seed=seed, name="w_down"
        ),
        "input_norm": norm_weight(c.hidden, c, *_NORM, seed=seed, name="input_norm"),
        "post_norm": norm_weight(c.hidden, c, *_NORM, seed=seed, name="post_norm"),
        "q_norm": norm_weight(c.head_dim, c, *_QK_NORM, seed=seed, name="q_norm"),
        "k_norm": norm_weight(c.head_dim, c, *_QK_NORM, seed=seed, name="k_norm"),
    }


def head_weights(config: Config, seed: int, lm_head: LmHead) -> dict[str, Tensor]:
    """The final norm and, unless skipped, the LM head; `single` keeps only its first `VOCAB_GRANULE` rows.

    Padding rows of the vocabulary hold values like any other, so that their logits are checked too.
    """
    weights = {"final_norm": norm_weight(config.hidden, config, *_NORM, seed=seed, name="final_norm")}
    if lm_head != "skip":
        shape = (config.vocab_padded if lm_head == "full" else VOCAB_GRANULE, config.hidden)
        std = config.hidden**-0.5
        weights["w_lm_head"] = normal(shape, config.torch_dtype, std=std, seed=seed, name="w_lm_head")
    return weights


def context_lengths(config: Config, batch: int, context: int | str | Sequence[int], seed: int) -> list[int]:
    """One length in 1..max_seq per sequence, this step's token included.

    `"ragged"` draws them, and makes up to half of them edge cases: the longest context, a single token, a
    full page, one token on a new page.

    Raises:
        ValueError: if a length is out of range or their number is not `batch`.
    """
    if isinstance(context, str):
        if context != "ragged":
            raise ValueError(f"context is {context!r}; give 'ragged', one length, or a list of {batch}")
        rng = np.random.default_rng((seed, zlib.crc32(b"context")))
        edges = [config.max_seq, 1, config.page, min(config.page + 1, config.max_seq)]
        lengths = rng.integers(1, config.max_seq + 1, batch).tolist()
        lengths[: min(batch // 2, len(edges))] = edges[: batch // 2]
        return [int(n) for n in rng.permutation(lengths)]
    lengths = [context] * batch if isinstance(context, int) else list(context)
    if len(lengths) != batch:
        raise ValueError(f"context lists {len(lengths)} lengths for a batch of {batch}")
    if not all(1 <= n <= config.max_seq for n in lengths):
        raise ValueError(
            f"context lengths {lengths} must lie in 1..{config.max_seq}; use dead_rows for dead sequences"
        )
    return lengths


def paged_cache(config: Config, lengths: Sequence[int], seed: int) -> dict[str, Tensor]:
    """Shuffled pages for `lengths` tokens per sequence, the last of them still to be written.

    Returns `block_table` `[B, pages_per_seq]` (unused entries -1), `slot_mapping` `[B]` of the last tokens,
    and `k_cache` and `v_cache`: random up to the token before the last, NaN everywhere else.
    """
    c = config
    counts = [-(-n // c.page) for n in lengths]
    pages = sum(counts) + SPARE_PAGES
    order = torch.from_numpy(np.random.default_rng((seed, zlib.crc32(b"pages"))).permutation(pages))
    table = torch.full((len(lengths), c.pages_per_seq), -1, dtype=torch.int32)
    shape = (pages, c.kv_heads, c.page, c.head_dim)
    caches = {
        "k_cache": normal(shape, c.torch_dtype, std=math.hypot(*_QK_NORM), seed=seed, name="k_cache"),
        "v_cache": normal(shape, c.torch_dtype, seed=seed, name="v_cache"),
    }
    slots = torch.empty(len(lengths), dtype=torch.int32)
    first = 0
    for seq, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        table[seq, :count] = order[first : first + count]
        first += count
        last, offset = int(table[seq, count - 1]), (length - 1) % c.page
        slots[seq] = last * c.page + offset
        for pool in caches.values():
            pool[last, :, offset:] = torch.nan
    for pool in caches.values():
        pool[order[first:]] = torch.nan
    flat = {name: pool.view(-1, c.head_dim) for name, pool in caches.items()}
    return {"block_table": table, "slot_mapping": slots, **flat}


def kill_rows(tensors: dict[str, Tensor], dead: Mapping[int, Dead]) -> None:
    """Make rows of a step with one row per sequence dead, in place: hidden becomes NaN and a mark is set.

    `"slot"`: slot -1. `"ctx"`: ctx 0. `"cu_q"`: an empty range, only for rows at the end, as in a graph
    replayed with fewer sequences. `"all"`: slot -1, ctx 0 and no pages. A single mark leaves the others as
    they are in a live row: each alone must do.

    Raises:
        ValueError: if a row does not exist, or an empty range would shift the rows behind it.
    """
    batch = tensors["hidden"].shape[0]
    for row, mark in dead.items():
        if not 0 <= row < batch:
            raise ValueError(f"dead_rows names row {row} of a batch of {batch}")
        if mark == "cu_q" and any(dead.get(after) != "cu_q" for after in range(row, batch)):
            raise ValueError(f"dead_rows[{row}] = 'cu_q' needs every later row to be 'cu_q' too")
        tensors["hidden"][row] = torch.nan
        if mark in ("slot", "all"):
            tensors["slot_mapping"][row] = -1
        if mark in ("ctx", "all"):
            tensors["ctx"][row] = 0
        if mark == "all":
            tensors["block_table"][row] = -1
        if mark == "cu_q":
            tensors["cu_q"][row + 1 :] = int(tensors["cu_q"][row])


def make_inputs(
    config: Config,
    batch: int,
    context: int | str | Sequence[int] = "ragged",
    *,
    seed: int = 0,
    lm_head: LmHead = "skip",
    dead_rows: Mapping[int, Dead] | Sequence[int] = (),
) -> dict[str, Tensor]:
    """All tensors of a decode step with one row per sequence, as listed in `reference.py`; outputs are NaN.

    Args:
        config: the model's sizes.
        batch: sequences, 1..max_batch.
        context: tokens per sequence including this step's: one length, a list, or `"ragged"`.
        seed: decides every value; other arguments change only the tensors that they concern.
        lm_head: `"skip"` (no `w_lm_head`, no `logits`), `"single"` (one chunk of the vocabulary) or `"full"`.
        dead_rows: rows that must give zeros and touch nothing, with the mark that says so (see `kill_rows`);
            a plain sequence means `"all"`.

    Raises:
        ValueError: if an argument is out of range.
    """
    if not 1 <= batch <= config.max_batch:
        raise ValueError(f"batch is {batch}; it must lie in 1..{config.max_batch}")
    if lm_head not in ("skip", "single", "full"):
        raise ValueError(f"lm_head is {lm_head!r}; use 'skip', 'single' or 'full'")
    dtype = config.torch_dtype
    lengths = context_lengths(config, batch, context, seed)
    cos, sin = rope_tables(config)
    # Row scales differ, so that a norm taken over the wrong rows shows.
    scale = torch.linspace(0.8, 1.25, batch)[:, None]
    hidden = (normal((batch, config.hidden), torch.float32, seed=seed, name="hidden") * scale).to(dtype)
    tensors = {
        "hidden": hidden,
        "positions": torch.tensor(lengths, dtype=torch.int32) - 1,
        "cu_q": torch.arange(batch + 1, dtype=torch.int32),
        "ctx": torch.tensor(lengths, dtype=torch.int32),
        **paged_cache(config, lengths, seed),
        **layer_weights(config, seed),
        **head_weights(config, seed, lm_head),
        "rope_cos": cos,
        "rope_sin": sin,
        "next_hidden": torch.full_like(hidden, torch.nan),
        "normed": torch.full_like(hidden, torch.nan),
    }
    if lm_head != "skip":
        tensors["logits"] = torch.full((batch, tensors["w_lm_head"].shape[0]), torch.nan, dtype=dtype)
    kill_rows(tensors, dead_rows if isinstance(dead_rows, Mapping) else dict.fromkeys(dead_rows, "all"))
    return tensors
