"""The command `python models/qwen3_14b/decode_layer.py`, run as a user runs it: from another directory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from models.qwen3_14b.harness import LAYER, main
from tests.models import door

SCRIPT = door.script_of("qwen3_14b")


@pytest.mark.parametrize(
    ("arguments", "rows", "logits", "expected"),
    [
        (["--lm-head", "full", "-b", 3], 3, 1024, {"batch": 3, "context": "ragged", "seed": 0}),
        (
            ["--lm-head", "single", "--seq-len", 17, "--seed", 5],
            16, 512, {"batch": 16, "context": 17, "seed": 5},
        ),
        (["--lm-head", "skip", "--max-seq", "-p", "a5sim"], 16, None, {"context": 128, "platform": "a5sim"}),
        (["--lm-head", "skip", "--dtype", "fp32", "--batch", 1], 1, None, {"batch": 1, "dtype": "fp32"}),
        (["--lm-head", "skip", "--tokens", 8], 128, None, {"batch": 16, "tokens": 8}),
    ],
    ids=["full", "single", "skip", "fp32", "tokens"],
)  # fmt: skip
def test_a_run_passes_and_says_what_it_compared(
    arguments: list[object], rows: int, logits: int | None, expected: dict[str, object], tmp_path: Path
) -> None:
    found = door.assert_passes(SCRIPT, tmp_path, ["k_cache", "v_cache"], arguments, logits)
    same = {"model": "qwen3_14b", "layer": "full", "config": "tiny", "rows": rows}
    assert found.items() >= (same | expected).items()


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("tokens", ["1", "3", "ragged"])
def test_any_number_of_tokens(tokens: str, dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    asked = ["--tokens", tokens, "--dtype", dtype, "--lm-head", "single", "-b", "5", "--json", str(path)]
    assert main(["--config", "tiny", *asked]) == 0
    rows = door.report(path)["tensors"][-1]["shape"][0]
    assert 8 <= rows <= 40 if tokens == "ragged" else rows == 5 * int(tokens)


def test_the_seed_decides_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    errors = []
    for seed in ("1", "1", "2"):
        assert main(["--config", "tiny", "--lm-head", "skip", "--seed", seed, "--json", "r.json"]) == 0
        errors.append([(t["max_error"], t["detail"]) for t in door.report(tmp_path / "r.json")["tensors"]])
    assert errors[0] == errors[1]
    assert errors[0] != errors[2]


def test_gpu_targets_say_what_is_not_checked(tmp_path: Path) -> None:
    done = door.run(SCRIPT, tmp_path, "--config", "tiny", "--lm-head", "skip", "-p", "h200sim", "-b", 2)
    assert done.returncode == 0, done.stderr
    assert (
        "warning: the memory plan of a GPU target comes with its schedule; nothing is checked" in done.stdout
    )


def test_compile_only_runs_nothing_and_dumps_every_pass(tmp_path: Path) -> None:
    door.assert_compiles(SCRIPT, tmp_path, ["qkv_proj", "attention"], "--lm-head", "skip")


def test_help_names_every_flag(tmp_path: Path) -> None:
    done = door.run(SCRIPT, tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for flag in (*door.FLAGS, "--config {full,tiny}"):
        assert flag in done.stdout
    assert "exit status: 0 if every comparison passed" in done.stdout


@pytest.mark.parametrize("arguments", list(door.MISTAKES)[:3])
def test_a_mistake_exits_with_2_and_no_traceback(arguments: str, tmp_path: Path) -> None:
    done = door.run(SCRIPT, tmp_path, "--config", "tiny", *arguments.split())
    assert done.returncode == 2
    assert door.MISTAKES[arguments] in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", door.MISTAKES)
def test_a_mistake_is_explained_before_anything_runs(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    door.assert_explained(main, arguments, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("tensor", ["next_hidden", "k_cache"])
def test_a_failed_comparison_exits_with_1(
    tensor: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    door.assert_fails(main, LAYER, tensor, tmp_path, capsys)


@pytest.mark.slow
def test_power_from_the_front_door(tmp_path: Path) -> None:
    door.assert_power(main, LAYER, [], tmp_path)


# The bounds of full size are for two cores that do nothing else.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "whole", "simulation"),
    [(["--lm-head", "skip", "--max-seq"], 60, 12), (["--lm-head", "full", "--max-seq"], 240, None)],
    ids=["skip", "full"],
)
def test_full_size_within_its_bounds(
    arguments: list[object], whole: float, simulation: float | None, tmp_path: Path
) -> None:
    started = time.perf_counter()
    done = door.run(SCRIPT, tmp_path, *arguments, "--json", "r.json")
    elapsed = time.perf_counter() - started
    assert done.returncode == 0, done.stdout + done.stderr
    found = door.report(tmp_path / "r.json")
    assert (found["status"], found["batch"], found["context"]) == ("PASS", 16, 4096)
    assert found["seconds"]["whole command"] < elapsed <= whole
    assert simulation is None or found["seconds"]["runtime"] <= simulation
    assert found["peak_gib"] <= 12
