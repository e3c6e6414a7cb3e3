"""The constants that make the blocks of `models/common` a Qwen3.5 of a given size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pypto_models.language as pl
from models.common import tiling
from models.qwen3_5_27b.config import FULL, Config

Layer = Literal["full", "gdn"]

TILING = Path(__file__).parent / "tiling"
TILE_HEIGHT = 8  # heads are padded to a multiple of it: a column of 8 fp32 is the least that aligns
MATMUL_HEIGHT = 16  # query rows of a matmul are padded to a multiple of it
GDN_TILES = {"V_TILE": 64, "CONV_TILE": 512}  # where no tiling file applies, and the names that only gdn has
FULL_TILES = ("TARGET_RUNS", "KV_TILE", "MERGE_RUNS", "MERGE_TILES", "MERGE_FROM")  # only the full layer's


def constants(
    config: Config,
    target: str,
    *,
    layer: Layer | None = None,
    rows: int | None = None,
    span: int = 1,
    head_rows: int | None = None,
) -> dict[str, Any]:
    """Names and values for `compile(constants=...)`.

    Args:
        config: the model's sizes; of the tiling file all holds at the published size, and what depends on the
            heads where these are the published ones; else the blocks' defaults do.
        target: name of its tiling file: `h200`, or `h200.triton` for a backend with one of its own.
        layer: the kind whose kernel is compiled, which refuses names that only the other kind has; None for
            the names of both.
        rows: rows of a step, at most; by default one for each of `config.max_batch` sequences.
        span: rows of one sequence in a step, at most.
        head_rows: rows of the LM head that a step computes; None for a step without it.

    Raises:
        ValueError: no such layer, or more rows than the blocks take.
    """
    if layer not in ("full", "gdn", None):
        raise ValueError(f"layer is {layer!r}; use 'full', 'gdn' or None for the names of both")
    c = config
    height = tiling.tile_rows(c.max_batch if rows is None else rows)
    values: dict[str, Any] = {
        "DTYPE": {"bf16": pl.BF16, "fp32": pl.FP32}[c.dtype],
        "EPS": c.eps,
        "GEMMA_NORM": c.gemma_norm,
        "HIDDEN": c.hidden,
        "INTERMEDIATE": c.intermediate,
        "GATE_UP_WIDTH": 2 * c.intermediate,
        "ROWS": height,
        "SPAN": span,
    }
    if head_rows is not None:
        values["VOCAB_ROWS"] = head_rows
    tiles = tiling.tiles_for(TILING, target, height, c, FULL)
    if head_rows is None:
        tiles = {name: v for name, v in tiles.items() if not name.startswith("HEAD_")}
    if c.dtype == "fp32":  # the files are written for bf16: half as many elements take the same bytes
        tiles = {name: v // 2 if name.endswith("_K") else v for name, v in tiles.items()}
    own = {name: tiles.pop(name, default) for name, default in GDN_TILES.items()}
    if layer != "gdn":
        values |= _full(c, span)
    else:
        tiles = {name: v for name, v in tiles.items() if name not in FULL_TILES}
    if layer != "full":
        values |= _gdn(c, span, own)
    return values | tiles


def _full(c: Config, span: int) -> dict[str, Any]:
    """Sizes that only the full-attention layer has."""
    return {
        "Q_HEADS": c.q_heads,
        "KV_HEADS": c.kv_heads,
        "GROUP": c.group,
        "HEAD_DIM": c.head_dim,
        "HALF_DIM": c.rotary // 2,
        "GATE_HEADS": c.gate_heads,
        "SCALE": c.scale,
        "PAGE": c.page,
        "KV_TILE": c.page,
        "MAX_BATCH": c.max_batch,
        "KV_STAGES": 1 if c.dtype == "fp32" else 2,  # two pages of wide fp32 heads do not fit into L1
        "GROUP_ROWS": _padded(span * c.group, MATMUL_HEIGHT),
        "Q_WIDTH": c.q_width,
        "QKV_WIDTH": c.qkv_width,
    }


def _gdn(c: Config, span: int, tiles: dict[str, int]) -> dict[str, Any]:
    """Sizes that only the gated-delta-net layer has, and its tiles, cut to divide what they tile."""
    return {
        "K_HEADS": c.k_heads,
        "V_HEADS": c.v_heads,
        "K_DIM": c.k_dim,
        "V_DIM": c.v_dim,
        "TAPS": c.taps,
        "CONV_WIDTH": c.taps - 2 + span,
        "V_WIDTH": c.v_width,
        "CONV_DIM": c.conv_dim,
        "IN_WIDTH": c.in_width,
        "V_TILE": math.gcd(c.v_dim, tiles["V_TILE"]),
        "CONV_TILE": math.gcd(c.k_width, c.v_width, tiles["CONV_TILE"]),
        "NORM_HEADS": next(n for n in (2 * TILE_HEIGHT, TILE_HEIGHT, 1) if c.v_heads % n == 0),
    }


def cli_constants(target: str) -> dict[str, Any]:
    """For the commands (`pypto-models check`, `memory`, `trace`): the published size, for either kind."""
    return constants(FULL, target, head_rows=FULL.vocab_padded)


def cli_arguments(target: str, given: dict[str, Any]) -> dict[str, Any]:
    """A step of `BATCH` sequences (16), one row each, with contexts of `ctx` tokens (4096), for
    `pypto-models trace` on either kind."""
    batch, tokens = int(given.get("BATCH", FULL.max_batch)), int(given.get("ctx", FULL.max_seq))
    pages = FULL.pages_per_seq
    return {
        "BATCH": batch,
        "TOKENS": batch,
        "BATCH_ENDS": batch + 1,
        "SEQ_PAGES": pages,
        "CACHE_ROWS": batch * pages * FULL.kv_heads * FULL.page,
        "ROPE_ROWS": FULL.max_seq,
        "STATE_ROWS": batch * FULL.v_heads * FULL.k_dim,
        "CONV_ROWS": batch * (FULL.taps - 1),
        "ctx": tokens,
        "cu_q": list(range(batch + 1)),
        "positions": tokens - 1,
        "slot_mapping": [s * FULL.max_seq + tokens - 1 for s in range(batch)],
        "block_table": [[s * pages + p for p in range(pages)] for s in range(batch)],
        "kept": 1,
        "state_slots": [[s] for s in range(batch)],
        "conv_slots": list(range(batch)),
    }


def cli_tuning(target: str) -> dict[str, Any]:
    """What `pypto-models tune` may choose: the tiles of attention, and those of the gated delta net."""
    return {
        "attention": tiling.attention_choices(cli_constants(target)),
        "gdn_conv": {"regions": ["gdn_conv"], "CONV_TILE": [128, 256, 512, 1024]},
        "delta_rule": {"regions": ["delta_rule"], "V_TILE": [16, 32, 64, 128]},
    }


def _padded(rows: int, granule: int = TILE_HEIGHT) -> int:
    return -(-rows // granule) * granule
