"""What holds for a target that has no tiling file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from backends.cute.lower import lower
from backends.gpu.plans import RESERVED
from models.common import tiling
from models.qwen3_5_27b import constants as constants_27b
from models.qwen3_5_27b.harness import FULL_LAYER
from models.qwen3_14b import constants as constants_14b
from models.qwen3_14b.config import FULL
from models.qwen3_14b.harness import LAYER
from pypto_models.compile import lower_for
from pypto_models.ir.types import Mem
from pypto_models.target import load_target

NAMES = ("TARGET_RUNS", "KV_TILE", "MERGE_RUNS", "MERGE_TILES")
EXPECTED = {
    ("h200", "14b"): (16, 16, 1, 1),  # as its file has it
    ("gb10", "14b"): (6, 16, 1, 1),  # as its file has it
    ("h200", "27b"): (33, 64, 8, 2),
    ("gb10", "27b"): (12, 32, 1, 1),
}
LAYERS = {"14b": (LAYER, constants_14b), "27b": (FULL_LAYER, constants_27b)}


@pytest.mark.parametrize(("target", "model"), EXPECTED)
def test_attention_has_a_share_of_a_head_for_each_core(
    target: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a file the layer lowers, and its attention fits."""
    layer, module = LAYERS[model]
    monkeypatch.setattr(module, "TILING", tmp_path)
    config, loaded = module.FULL, load_target(target)
    constants = layer.compile_options(config, target, "skip", rows=16)["constants"]
    assert tuple(constants[n] for n in NAMES) == EXPECTED[target, model]
    assert not any(n.endswith(("_N", "_K")) for n in constants), "all else is the blocks' own"
    found = lower(lower_for(layer.kernel, (), loaded, constants, schedules={}).function, loaded)
    (k,) = (k for k in found.kernels if k.region.split(" then ")[0] == "attention")
    assert k.shared_bytes <= loaded.spaces[Mem.Mat].bytes - RESERVED
    (grid,) = (x.grid for x in found.launches if x.kernel == k.name)
    assert int(grid) == loaded.cores // config.kv_heads * config.kv_heads


def test_other_targets_have_four_items_for_each_core(tmp_path: Path) -> None:
    """As the files of these targets have it."""
    for target in ("a2a3", "a5"):
        file = tiling.load_source(constants_14b.TILING, target)
        found = tiling.tiles_for(tmp_path, target, 16, FULL, FULL)
        assert found == {n: file[n] for n in ("TARGET_RUNS", "MERGE_RUNS")}


def test_a_file_with_shares_has_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "h200.yaml").write_text("source: {TARGET_RUNS: 5}\n")
    assert tiling.tiles_for(tmp_path, "h200", 16, FULL, FULL) == {"TARGET_RUNS": 5}
    (tmp_path / "h200.yaml").write_text("source: {QKV_N: 32, KV_TILE: 64}\n")
    found = tiling.tiles_for(tmp_path, "h200", 16, FULL, FULL)
    assert found.keys() == {"QKV_N", *NAMES} and found["KV_TILE"] == 64


def test_another_size_has_the_tiles_of_its_page(tmp_path: Path) -> None:
    assert tiling.tiles_for(tmp_path, "h200", 16, replace(FULL, hidden=256), FULL) == {}
