"""The constants that make the blocks of `models/common` a Qwen3 of a given size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pypto_models.language as pl
from models.common import tiling
from models.qwen3_14b.config import FULL, Config

TILING = Path(__file__).parent / "tiling"
TILE_HEIGHT = 8  # heads are padded to a multiple of it: a column of 8 fp32 is the least that aligns
MATMUL_HEIGHT = 16  # query rows of a matmul are padded to a multiple of it


def constants(
    config: Config, target: str, *, rows: int | None = None, span: int = 1, head_rows: int | None = None
) -> dict[str, Any]:
    """Names and values for `compile(constants=...)`.

    Args:
        config: the model's sizes; of the tiling file all holds at the published size, and what depends on the
            heads where these are the published ones; else the blocks' defaults do.
        target: name of its tiling file: `h200`, or `h200.triton` for a backend with one of its own.
        rows: rows of a step, at most; by default one for each of `config.max_batch` sequences.
        span: rows of one sequence in a step, at most.
        head_rows: rows of the LM head that a step computes; None for a step without it.

    Raises:
        ValueError: more rows than the blocks take.
    """
    c = config
    height = tiling.tile_rows(c.max_batch if rows is None else rows)
    values: dict[str, Any] = {
        "DTYPE": {"bf16": pl.BF16, "fp32": pl.FP32}[c.dtype],
        "EPS": c.eps,
        "HIDDEN": c.hidden,
        "INTERMEDIATE": c.intermediate,
        "Q_HEADS": c.q_heads,
        "KV_HEADS": c.kv_heads,
        "GROUP": c.group,
        "HEAD_DIM": c.head_dim,
        "HALF_DIM": c.head_dim // 2,
        "SCALE": c.scale,
        "PAGE": c.page,
        "KV_TILE": c.page,
        "MAX_BATCH": c.max_batch,
        "ROWS": height,
        "SPAN": span,
        "GROUP_ROWS": _padded(span * c.group, MATMUL_HEIGHT),
        "Q_WIDTH": c.q_width,
        "QKV_WIDTH": c.qkv_width,
        "GATE_UP_WIDTH": 2 * c.intermediate,
    }
    if head_rows is not None:
        values["VOCAB_ROWS"] = head_rows
    tiles = tiling.tiles_for(TILING, target, height, c, FULL)
    if head_rows is None:
        tiles = {name: v for name, v in tiles.items() if not name.startswith("HEAD_")}
    if c.dtype == "fp32":  # the files are written for bf16: half as many elements take the same bytes
        tiles = {name: v // 2 if name.endswith("_K") else v for name, v in tiles.items()}
    return values | tiles


def cli_constants(target: str) -> dict[str, Any]:
    """For the commands (`pypto-models check`, `memory`, `trace`): the published size."""
    return constants(FULL, target, head_rows=FULL.vocab_padded)


def cli_arguments(target: str, given: dict[str, Any]) -> dict[str, Any]:
    """A step of `BATCH` sequences (16) with contexts of `ctx` tokens (4096), for `pypto-models trace`."""
    batch, tokens = int(given.get("BATCH", FULL.max_batch)), int(given.get("ctx", FULL.max_seq))
    pages = FULL.pages_per_seq
    return {
        "BATCH": batch,
        "TOKENS": batch,
        "BATCH_ENDS": batch + 1,
        "SEQ_PAGES": pages,
        "CACHE_ROWS": batch * pages * FULL.kv_heads * FULL.page,
        "ROPE_ROWS": FULL.max_seq,
        "ctx": tokens,
        "cu_q": list(range(batch + 1)),
        "positions": tokens - 1,
        "slot_mapping": [s * FULL.max_seq + tokens - 1 for s in range(batch)],
        "block_table": [[s * pages + p for p in range(pages)] for s in range(batch)],
    }


def cli_tuning(target: str) -> dict[str, Any]:
    """What `pypto-models tune` may choose: the tiles of attention."""
    return {"attention": tiling.attention_choices(cli_constants(target))}


def _padded(rows: int, height: int = TILE_HEIGHT) -> int:
    return -(-rows // height) * height
