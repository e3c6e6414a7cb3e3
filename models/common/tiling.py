"""Tiling files: what differs per target is data.

`tiling/<target>.yaml` has two parts: `source:` names constants of the kernel and gives their values before
parsing, `rows:` in it other values for taller steps; `schedule:` is read by the GPU planner, per region
`name_hint`.

    source:
      QKV_N: 256
      rows:
        128: {QKV_N: 128}

Both are for the backend that the target's name alone means.  `tiling/<target>.<backend>.yaml` is for another:
its constants come before those of the target, and its schedules are all that this backend has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

import pypto_models.language as pl
from models.common.config import DecoderConfig
from pypto_models.errors import Diag, Span, UserError
from pypto_models.target import Target, load_target

PARTS = ("source", "schedule")
HEIGHTS = (16, 32, 64, 128)
"""Rows of a matmul tile: that of the step, which is one tile."""

MATMUL_ROWS = 16
"""Rows of a matmul on a GPU, at least."""

FEW_SHARES = 16
"""Shares that a block merges run by run; on an H200 33 took it longer than 8 at a time."""

WARP_HEAD = 128
"""Columns of the widest head whose sums, MATMUL_ROWS rows in fp32, a warp keeps beside what it multiplies."""


def tile_rows(rows: int) -> int:
    """Height of the one tile that holds `rows` rows of a step.

    Raises:
        ValueError: there are none, or more than the tallest tile holds.
    """
    for height in HEIGHTS:
        if 0 < rows <= height:
            return height
    raise ValueError(f"rows = {rows} in one step: the tallest tile holds 1 to {HEIGHTS[-1]}")


def load_source(folder: Path, name: str, rows: int = HEIGHTS[0]) -> dict[str, int]:
    """The `source:` constants for tiles of `rows` rows; empty where no file has any.

    `name` is `<target>`, or `<target>.<backend>`, whose constants come before those of the target.

    Raises:
        UserError: a file is no YAML mapping of `source:` and `schedule:`, or a constant is no positive int.
    """
    found: dict[str, int] = {}
    for stem in dict.fromkeys((name.partition(".")[0], name)):
        if (path := folder / f"{stem}.yaml").exists():
            found |= _source(path, rows)
    return found


def _source(path: Path, rows: int) -> dict[str, int]:
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise _bad(path, f"not YAML: {error}", "mend the file", mark.line + 1 if mark else 1) from error
    if not isinstance(data, dict) or set(data) - set(PARTS):
        raise _bad(path, f"its top level is {_keys(data)}", f"use the keys {' and '.join(PARTS)}")
    source = data.get("source") or {}
    if not isinstance(source, dict):
        raise _bad(path, "source: is no mapping", "write `NAME: value` lines below it")
    by_rows = source.get("rows") or {}
    if not isinstance(by_rows, dict) or not all(isinstance(part, dict) for part in by_rows.values()):
        raise _bad(path, "rows: is no mapping of mappings", "write `128: {NAME: value}` lines below it")
    if unknown := [height for height in by_rows if height not in HEIGHTS]:
        heights = ", ".join(map(str, HEIGHTS))
        raise _bad(path, f"rows: has {unknown[0]!r}", f"tiles have {heights} rows")
    common = {name: value for name, value in source.items() if name != "rows"}
    for part in (common, *by_rows.values()):
        for name, value in part.items():
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise _bad(path, f"{name} is {value!r}", "tile sizes are positive integers")
            if name not in common:
                raise _bad(
                    path, f"{name} stands below rows: only", "give its value for every other height too"
                )
    return common | by_rows.get(rows, {})


def tiles_for(
    folder: Path, name: str, rows: int, config: DecoderConfig, published: DecoderConfig
) -> dict[str, int]:
    """The tile sizes of a model's `config` for a target: those of its tiling file, and at the published size
    the defaults of attention where the file does not say how many shares it has.

    `folder`, `name` and `rows` as in :func:`load_source`, whose errors it raises.
    """
    found = load_source(folder, name, rows)
    if config.hidden == published.hidden and "TARGET_RUNS" not in found:
        found = attention_tiles(load_target(name.partition(".")[0]), config) | found
    return for_size(found, config, published)


def attention_tiles(target: Target, config: DecoderConfig) -> dict[str, int]:
    """Tiles of attention for long contexts, where nobody has tuned them.

    On a GPU one item, a share of a KV head, for each core: one more would be a second wave.  With few shares
    a block merges all heads of a KV head, run by run; with many that takes too long, and it merges 8 runs
    of a part of a head at a time.  A warp takes a tile of its own, as many tokens as a matmul has rows, where
    its registers hold the sums of a head; of wider heads all warps take a tile, as large as leaves shared
    memory for two stages of keys and values.  Measured on one H200: docs/performance.md.
    """
    if target.gpu is None:
        return {"TARGET_RUNS": max(1, 4 * target.cores // config.kv_heads), "MERGE_RUNS": 16}
    shares = max(1, target.cores // config.kv_heads)
    few = shares <= FEW_SHARES
    token = 2 * 2 * 2 * config.head_dim  # bytes: two stages, keys and values, bf16
    room = target.spaces[pl.Mem.Mat].bytes
    wide = next((n for n in (64, 32) if n * token <= room), MATMUL_ROWS)
    return {
        "TARGET_RUNS": shares,
        "KV_TILE": min(MATMUL_ROWS if config.head_dim <= WARP_HEAD else wide, config.page),
        "MERGE_RUNS": 1 if few else 8,
        "MERGE_TILES": 1 if few else 2,
    }


def for_size(tiles: dict[str, int], config: DecoderConfig, published: DecoderConfig) -> dict[str, int]:
    """What of the tiles of a published size holds for `config`: with the same heads, that of a KV page."""
    if config.hidden == published.hidden:
        return tiles
    same = config.head_dim == published.head_dim and "KV_TILE" in tiles
    return {"KV_TILE": min(tiles["KV_TILE"], config.page)} if same else {}


def attention_choices(now: dict[str, Any]) -> dict[str, Any]:
    """Values of the tiles of attention to choose from, around those of `now`, and the regions they decide."""
    runs = now.get("TARGET_RUNS", 1)
    return {
        "regions": ["attention_runs", "attention", "attention_merge"],
        "KV_TILE": [tile for tile in (16, 32, 64, 128) if now["PAGE"] % tile == 0],
        "TARGET_RUNS": sorted({max(runs // 2, 1), runs, 2 * runs}),
        "MERGE_RUNS": [1, 8, 16],
    }


def _keys(data: Any) -> str:
    return ", ".join(map(str, data)) if isinstance(data, dict) else type(data).__name__


def _bad(path: Path, why: str, fix: str, line: int = 1) -> UserError:
    return UserError(Diag.TILING, Span(str(path), line), {"file": path.name, "why": why, "fix": fix})
