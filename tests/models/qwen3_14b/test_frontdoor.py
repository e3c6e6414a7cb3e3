"""The command `python models/qwen3_14b/decode_layer.py`, run as a user runs it: from another directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from models.qwen3_14b import harness, reference
from models.qwen3_14b.config import Config

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "models" / "qwen3_14b" / "decode_layer.py"
TENSORS = ["k_cache", "v_cache", "next_hidden", "normed"]


def run(cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, started in `cwd`, with the packages of this checkout."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def report(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text())
    return data


@pytest.mark.parametrize(
    ("arguments", "logits", "expected"),
    [
        (["--lm-head", "full", "-b", 3], 1024, {"batch": 3, "context": "ragged", "seed": 0}),
        (["--lm-head", "single", "--seq-len", 17, "--seed", 5], 512, {"batch": 16, "context": 17, "seed": 5}),
        (["--lm-head", "skip", "--max-seq", "-p", "a5sim"], None, {"context": 128, "platform": "a5sim"}),
        (["--lm-head", "skip", "--dtype", "fp32", "--batch", 1], None, {"batch": 1, "dtype": "fp32"}),
    ],
    ids=["full", "single", "skip", "fp32"],
)
def test_a_run_passes_and_says_what_it_compared(
    arguments: list[object], logits: int | None, expected: dict[str, object], tmp_path: Path
) -> None:
    done = run(tmp_path, "--config", "tiny", "--json", "out/result.json", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = report(tmp_path / "out" / "result.json")
    assert found.items() >= ({"model": "qwen3_14b", "config": "tiny", "status": "PASS"} | expected).items()
    assert found["error"] is None
    assert found["passed"] is True
    names = TENSORS if logits is None else [*TENSORS, "logits"]
    assert [(t["name"], t["status"]) for t in found["tensors"]] == [(name, "PASS") for name in names]
    shapes = {t["name"]: t["shape"] for t in found["tensors"]}
    batch = expected.get("batch", 16)
    assert shapes["next_hidden"] == shapes["normed"] == [batch, 256]
    assert logits is None or shapes["logits"] == [batch, logits]
    seconds = found["seconds"]
    assert {"make inputs", "compile", "compute golden", "runtime", "validate"} <= set(seconds)
    assert 0 < seconds["runtime"] < seconds["whole command"]
    assert 0.1 < found["peak_gib"] < 3
    for name in names:
        assert f"'{name}' PASS" in done.stdout
    assert f"peak memory {found['peak_gib']:.1f} GiB" in done.stdout


def test_the_seed_decides_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    errors = []
    for seed in ("1", "1", "2"):
        assert (
            harness.main(["--config", "tiny", "--lm-head", "skip", "--seed", seed, "--json", "r.json"]) == 0
        )
        errors.append({t["name"]: t["max_error"] for t in report(tmp_path / "r.json")["tensors"]})
    assert errors[0] == errors[1]
    assert errors[0]["normed"] != errors[2]["normed"]


def test_gpu_targets_say_what_is_not_checked(tmp_path: Path) -> None:
    done = run(tmp_path, "--config", "tiny", "--lm-head", "skip", "-p", "h200sim", "-b", 2)
    assert done.returncode == 0, done.stderr
    assert (
        "warning: the memory plan of a GPU target comes with its schedule; nothing is checked" in done.stdout
    )


def test_compile_only_runs_nothing_and_dumps_every_pass(tmp_path: Path) -> None:
    arguments = ("--compile-only", "--dump-passes", "dump/deep", "--json", "r.json", "--lm-head", "skip")
    done = run(tmp_path, *arguments)  # at full size
    assert done.returncode == 0, done.stderr
    found = report(tmp_path / "r.json")
    assert (found["status"], found["passed"], found["tensors"]) == ("SKIPPED", True, [])
    assert "runtime" not in found["seconds"]
    dump = tmp_path / "dump" / "deep"
    names = sorted(p.name for p in dump.iterdir())
    assert [n for n in names if n.endswith(".py")] == [
        "00_after_front_end.py",
        "01_after_spill.py",
        "02_after_infer_memory.py",
        "03_after_split.py",
    ]
    assert {"memory_plan.txt", "task_graph.txt"} <= set(names)
    assert 'name_hint="gate_up_silu"' in (dump / "03_after_split.py").read_text()
    for name in ("memory_plan.txt", "task_graph.txt"):
        text = (dump / name).read_text()
        for region in ("qkv_proj", "attention", "gate_up_silu", "final_norm"):
            assert region in text, name


def test_help_names_every_flag(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for flag in (
        "--lm-head {full,skip,single}", "-p ", "--platform", "-b ", "--batch", "--max-seq", "--seq-len",
        "--seed", "--config {full,tiny}", "--compile-only", "--dump-passes", "--json", "--dtype {bf16,fp32}",
    ):  # fmt: skip
        assert flag in done.stdout
    assert "exit status: 0 if every comparison passed" in done.stdout


MISTAKES = {
    "-p nosuch": "unknown platform 'nosuch'",
    "-b 17": "--batch is 17; a step has 1 to 16 sequences",
    "--seq-len 0": "--seq-len is 0; a context has 1 to 128 tokens",
    "-p a2a3cuda": "known: a2a3sim, a5sim, gb10sim, h200sim",
    "-p b100sim": "unknown target 'b100'",
    "-b 0": "--batch is 0; a step has 1 to 16 sequences",
    "--seq-len 129": "--seq-len is 129; a context has 1 to 128 tokens",
    "--seq-len 5 --max-seq": "--max-seq: not allowed with argument --seq-len",
    "--seed -1": "--seed is -1; it must be 0 or more",
    "--lm-head half": "invalid choice: 'half'",
    "--config huge": "invalid choice: 'huge'",
    "--json .": "cannot write .: Is a directory",
    "--dump-passes taken": "cannot write taken: File exists",
}


@pytest.mark.parametrize("arguments", list(MISTAKES)[:3])
def test_a_mistake_exits_with_2_and_no_traceback(arguments: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--config", "tiny", *arguments.split())
    assert done.returncode == 2
    assert MISTAKES[arguments] in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_explained_before_anything_runs(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    try:
        status = harness.main(["--config", "tiny", *arguments.split()])
    except SystemExit as leaving:  # argparse's way out
        status = leaving.code
    said = capsys.readouterr()
    assert status == 2
    assert MISTAKES[arguments] in said.err
    assert said.out == ""


def test_a_failed_comparison_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The golden is made wrong in one element: the layer itself gives no cause to fail."""
    golden = reference.golden

    def wrong(values: dict[str, Any], config: Config) -> None:
        golden(values, config)
        values["next_hidden"][1, 7] += 1

    monkeypatch.setattr(reference, "golden", wrong)
    path = tmp_path / "r.json"
    arguments = ["--config", "tiny", "--lm-head", "skip", "-b", "2", "--dtype", "fp32", "--json", str(path)]
    assert harness.main(arguments) == 1
    found = report(path)
    assert (found["status"], found["passed"]) == ("FAIL", False)
    assert {t["name"]: t["status"] for t in found["tensors"]} == {
        "k_cache": "PASS", "v_cache": "PASS", "next_hidden": "FAIL", "normed": "PASS",
    }  # fmt: skip
    assert "[1, 7]" in found["error"]
    assert "failed: 'next_hidden'" in capsys.readouterr().out


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
    done = run(tmp_path, *arguments, "--json", "r.json")
    elapsed = time.perf_counter() - started
    assert done.returncode == 0, done.stdout + done.stderr
    found = report(tmp_path / "r.json")
    assert (found["status"], found["batch"], found["context"]) == ("PASS", 16, 4096)
    assert found["seconds"]["whole command"] < elapsed <= whole
    assert simulation is None or found["seconds"]["runtime"] <= simulation
    assert found["peak_gib"] <= 12
