"""A model's script, run as a user runs it: in a process of its own, from another directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.common.harness import LayerKind

ROOT = Path(__file__).parents[2]
LAYER = ["next_hidden", "normed"]
Main = Callable[..., int]


def script_of(model: str) -> Path:
    return ROOT / "models" / model / "decode_layer.py"


def run(script: Path, cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The script, started in `cwd`, with the packages of this checkout."""
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
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


def assert_passes(
    script: Path, cwd: Path, states: Sequence[str], arguments: Sequence[object], logits: int | None
) -> dict[str, Any]:
    """A tiny run passes, compares `states` and outputs, and says so on the screen and in its report."""
    done = run(script, cwd, "--config", "tiny", "--json", "out/result.json", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    found = report(cwd / "out" / "result.json")
    assert (found["status"], found["passed"], found["error"]) == ("PASS", True, None)
    names = [*states, *LAYER] + ([] if logits is None else ["logits"])
    assert [(t["name"], t["status"]) for t in found["tensors"]] == [(name, "PASS") for name in names]
    shapes = {t["name"]: t["shape"] for t in found["tensors"]}
    rows = shapes["next_hidden"][0]
    assert shapes["next_hidden"] == shapes["normed"] == [rows, 256]
    assert logits is None or shapes["logits"] == [rows, logits]
    seconds = found["seconds"]
    assert {"make inputs", "compile", "compute golden", "runtime", "validate"} <= set(seconds)
    assert 0 < seconds["runtime"] < seconds["whole command"]
    assert 0.1 < found["peak_gib"] < 3
    for name in names:
        assert f"'{name}' PASS" in done.stdout
    assert f"peak memory {found['peak_gib']:.1f} GiB" in done.stdout
    return found | {"rows": rows}


FLAGS = (
    "--lm-head {full,skip,single}", "-p ", "--platform", "-b ", "--batch", "--max-seq", "--seq-len",
    "--tokens N|ragged", "--seed", "--compile-only", "--dump-passes", "--json", "--dtype {bf16,fp32}",
    "--schedule {program,random}", "--check-splits", "--power", "--bundle DIR", "-o DIR",
)  # fmt: skip

MISTAKES = {
    "-p nosuch": "unknown platform 'nosuch'",
    "-b 17": "--batch is 17; a step has 1 to 16 sequences",
    "--seq-len 0": "--seq-len is 0; a context has 1 to 128 tokens",
    "-p a2a3cuda": "known: a2a3sim, a5sim, gb10sim, h200sim",
    "-o b": "-o: the backend sim has no such option; leave it out, or name a GPU, such as -p h200",
    "--bundle b": "--bundle: the backend sim has no such option; leave it out, or name a GPU",
    "-p h200 --bundle b -o c": "--bundle loads a bundle and -o writes one: leave one of them out",
    "-p gb10 --check-splits": "--check-splits: the backend cute has no such option; leave it out, or name",
    "-p h200 --no-checks": "--no-checks: the backend cute has no such option",
    "-p h200 --schedule random": "--schedule: the backend cute has no such option",
    "-p b100sim": "unknown target 'b100'",
    "-b 0": "--batch is 0; a step has 1 to 16 sequences",
    "--seq-len 129": "--seq-len is 129; a context has 1 to 128 tokens",
    "--seq-len 5 --max-seq": "--max-seq: not allowed with argument --seq-len",
    "--seq-len 3 --tokens 4": "--seq-len is 3; a context holds the 4 tokens of --tokens",
    "--seq-len 7 --tokens ragged": "--seq-len is 7; a context holds the 8 tokens of --tokens",
    "--tokens 0": "'0' is neither 'ragged' nor one of 1 to 8",
    "--tokens 9": "'9' is neither 'ragged' nor one of 1 to 8",
    "--tokens some": "'some' is neither 'ragged' nor one of 1 to 8",
    "--power --tokens 2": "--power makes its own inputs; leave out --tokens",
    "--power -p a5sim": "--power makes its own inputs; leave out --platform",
    "--seed -1": "--seed is -1; it must be 0 or more",
    "--lm-head half": "invalid choice: 'half'",
    "--config huge": "invalid choice: 'huge'",
    "--json .": "cannot write .: Is a directory",
    "--dump-passes taken": "cannot write taken: File exists",
}


def assert_explained(
    main: Main, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A mistake exits with 2 and says what is wrong, before anything runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    try:
        status: object = main(["--config", "tiny", *arguments.split()])
    except SystemExit as leaving:  # argparse's way out
        status = leaving.code
    said = capsys.readouterr()
    assert status == 2
    assert MISTAKES[arguments] in said.err
    assert said.out == ""


def wrong_in(kind: LayerKind, tensor: str) -> LayerKind:
    """The layer kind with a golden that is off in one element: the layer itself gives no cause to fail."""

    def golden(values: dict[str, Any], config: Any) -> None:
        kind.golden(values, config)
        rows = kind.written[tensor](values, config) if tensor in kind.written else [1]
        values[tensor][rows[0], 7] += 1

    return replace(kind, golden=golden)


def assert_fails(main: Main, kind: LayerKind, tensor: str, tmp_path: Path, capsys: Any) -> None:
    """A golden that is wrong in one element of `tensor` fails that comparison and no other: exit status 1."""
    path = tmp_path / "r.json"
    arguments = ["--config", "tiny", "--lm-head", "skip", "-b", "2", "--dtype", "fp32", "--json", str(path)]
    assert main(arguments, kinds=[wrong_in(kind, tensor)]) == 1
    found = report(path)
    assert (found["status"], found["passed"]) == ("FAIL", False)
    compared = {*kind.mutated} - {"logits"}
    status = {name: "FAIL" if name == tensor else "PASS" for name in compared}
    assert {t["name"]: t["status"] for t in found["tensors"]} == status
    assert ", 7]" in found["error"]
    assert f"failed: '{tensor}'" in capsys.readouterr().out


def assert_compiles(script: Path, cwd: Path, regions: Sequence[str], *arguments: object) -> None:
    """Compiling only, at full size, runs nothing and dumps every pass."""
    arguments = ("--compile-only", "--dump-passes", "dump/deep", "--json", "r.json", *arguments)
    done = run(script, cwd, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    found = report(cwd / "r.json")
    assert (found["status"], found["passed"], found["tensors"]) == ("SKIPPED", True, [])
    assert "runtime" not in found["seconds"]
    dump = cwd / "dump" / "deep"
    names = sorted(p.name for p in dump.iterdir())
    assert [n for n in names if n.endswith(".py")] == [
        "00_after_front_end.py",
        "01_after_spill.py",
        "02_after_infer_memory.py",
        "03_after_split.py",
    ]
    assert 'name_hint="gate_up_silu"' in (dump / "03_after_split.py").read_text()
    for name in ("memory_plan.txt", "task_graph.txt"):
        text = (dump / name).read_text()
        for region in (*regions, "gate_up_silu", "final_norm"):
            assert region in text, name


def assert_power(main: Main, kind: LayerKind, arguments: Sequence[str], tmp_path: Path) -> None:
    """`--power` measures the kernel of the layer that is asked for, and its report is that of the command."""
    path = tmp_path / "power.json"
    assert main([*arguments, "--config", "tiny", "--power", "--json", str(path)]) == 0
    measured = json.loads(path.read_text())
    assert measured[0]["name"] == kind.kernel.name
    for found in measured:  # the kernel, and its variants
        assert found["name"].split("@")[0] == kind.kernel.name
        assert found["shortfalls"] == []
        assert found["total"]["total"] >= 300
