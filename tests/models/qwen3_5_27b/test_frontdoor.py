"""The command `python models/qwen3_5_27b/decode_layer.py`, for both kinds of layer."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from models.qwen3_5_27b.harness import FULL_LAYER, GDN_LAYER, main
from tests.models import door

SCRIPT = door.script_of("qwen3_5_27b")
KINDS = {"full": FULL_LAYER, "gdn": GDN_LAYER}
STATES = {"full": ["k_cache", "v_cache"], "gdn": ["conv_state", "state"]}
REGIONS = {"full": ["qkv_proj", "attention_merge"], "gdn": ["qkv_proj", "gdn_conv", "delta_rule"]}


@pytest.mark.parametrize("layer", KINDS)
@pytest.mark.parametrize(
    ("arguments", "rows", "logits", "expected"),
    [
        (["--lm-head", "full", "-b", 3], 3, 1024, {"batch": 3, "context": "ragged", "dtype": "bf16"}),
        (["--lm-head", "skip", "--tokens", 8, "--dtype", "fp32"], 128, None, {"tokens": 8, "dtype": "fp32"}),
    ],
    ids=["head", "tokens"],
)
def test_a_run_passes_and_says_what_it_compared(
    layer: str,
    arguments: list[object],
    rows: int,
    logits: int | None,
    expected: dict[str, object],
    tmp_path: Path,
) -> None:
    found = door.assert_passes(SCRIPT, tmp_path, STATES[layer], ["--layer", layer, *arguments], logits)
    same = {"model": "qwen3_5_27b", "layer": layer, "config": "tiny", "rows": rows}
    assert found.items() >= (same | expected).items()


@pytest.mark.parametrize("layer", KINDS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("tokens", ["1", "3", "ragged"])
@pytest.mark.parametrize("config", ["tiny", "real_heads"])
def test_any_number_of_tokens(config: str, tokens: str, dtype: str, layer: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    asked = ["--tokens", tokens, "--dtype", dtype, "--lm-head", "single", "-b", "5", "--json", str(path)]
    assert main(["--layer", layer, "--config", config, *asked]) == 0
    rows = door.report(path)["tensors"][-1]["shape"][0]
    assert 8 <= rows <= 40 if tokens == "ragged" else rows == 5 * int(tokens)


@pytest.mark.parametrize("layer", KINDS)
def test_compile_only_runs_nothing_and_dumps_every_pass(layer: str, tmp_path: Path) -> None:
    door.assert_compiles(SCRIPT, tmp_path, REGIONS[layer], "--layer", layer, "--lm-head", "skip")


def test_help_names_every_flag(tmp_path: Path) -> None:
    done = door.run(SCRIPT, tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for flag in (*door.FLAGS, "--layer {full,gdn}", "--config {full,tiny,real_heads}"):
        assert flag in done.stdout


@pytest.mark.parametrize("arguments", door.MISTAKES)
def test_a_mistake_is_explained_before_anything_runs(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    door.assert_explained(main, arguments, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("layer", "tensor"),
    [(layer, t) for layer, states in STATES.items() for t in (*states, "next_hidden")],
)
def test_a_failed_comparison_exits_with_1(
    layer: str, tensor: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    door.assert_fails(main, KINDS[layer], tensor, tmp_path, capsys)


# The bounds of full size are for two cores that do nothing else.
@pytest.mark.slow
@pytest.mark.parametrize("layer", KINDS)
def test_full_size_within_its_bounds(layer: str, tmp_path: Path) -> None:
    started = time.perf_counter()
    done = door.run(SCRIPT, tmp_path, "--layer", layer, "--lm-head", "skip", "--max-seq", "--json", "r.json")
    elapsed = time.perf_counter() - started
    assert done.returncode == 0, done.stdout + done.stderr
    found = door.report(tmp_path / "r.json")
    assert (found["status"], found["batch"], found["context"]) == ("PASS", 16, 4096)
    assert found["seconds"]["whole command"] < elapsed <= 60
    assert found["peak_gib"] <= 12
