"""``pypto-models memory`` and ``pypto-models trace``, and what a kernel file may define for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from pypto_models import cli

REPO = Path(__file__).parent.parent.parent
GEMM = str(REPO / "examples" / "gemm.py")
MIXED = str(REPO / "examples" / "gemm_residual.py")
LAYER = str(REPO / "models" / "qwen3_14b" / "decode_layer.py")

HOOKED = """
import pypto_models.language as pl

N = 64
R = pl.dynamic("R")


def cli_constants(target):
    return {"N": 128 if target == "a2a3" else 64, "UNREAD": 1}


def cli_arguments(target, given):
    return {"R": 2 * given.get("n", 4), "n": 4}


@pl.jit
def hooked(x: pl.Tensor[[R, N], pl.FP32], n: pl.Scalar[pl.INDEX], y: pl.Out[pl.Tensor[[R, N], pl.FP32]]):
    for i in pl.spmd(n, name_hint="rows"):
        pl.assemble(y, pl.add(pl.slice(x, [1, N], [i, 0]), 1.0), [i, 0])


@pl.jit
def other(x: pl.Tensor[[16, 32], pl.FP32], y: pl.Out[pl.Tensor[[16, 32], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="other"):
        y[:, :] = pl.add(x, 1.0)
"""


@pytest.fixture
def hooked(tmp_path: Path) -> str:
    path = tmp_path / "hooked.py"
    path.write_text(HOOKED)
    return str(path)


def colours(path: Path) -> int:
    """Distinct colours of a picture: an empty one has few."""
    data = imread(path)
    assert data.ndim == 3 and min(data.shape[:2]) > 100
    return len({tuple(p) for p in (data[::4, ::4, :3] * 255).astype(int).reshape(-1, 3).tolist()})


# ------------------------------------------------------------------------------------------ memory
def test_memory_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["memory", GEMM, "-p", "a2a3sim", "--json"]) == 0
    (kernel,) = json.loads(capsys.readouterr().out)["kernels"]
    (region,) = kernel["regions"]
    spaces = {s["space"]: s for s in region["spaces"]}
    by_tile = {b["tile"]: b for b in spaces["Mat"]["buffers"]}
    # Two stages of x [32, 128] and w [64, 128] in bf16
    assert (by_tile["xk"]["bytes"], by_tile["xk"]["buffers"]) == (32 * 128 * 2, 2)
    assert (by_tile["wk"]["bytes"], by_tile["wk"]["buffers"]) == (64 * 128 * 2, 2)
    assert spaces["Mat"]["peak"] == 2 * (32 + 64) * 128 * 2 and spaces["Mat"]["limit"] == 524288
    (acc,) = spaces["Acc"]["buffers"]
    assert (acc["bytes"], acc["shape"], acc["offset"]) == (32 * 64 * 4, [32, 64], 0)
    source = Path(GEMM).read_text().splitlines()
    line = {
        text: i
        for i, t in enumerate(source, 1)
        for text in ("xk =", "pl.create_tensor", "assemble(y")
        if text in t
    }
    assert by_tile["xk"]["place"] == f"gemm.py:{line['xk =']}"
    assert (acc["from"], acc["to"]) == (
        f"gemm.py:{line['pl.create_tensor']}",
        f"gemm.py:{line['assemble(y']}",
    )


def test_memory_as_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["memory", MIXED]) == 0
    text = capsys.readouterr().out
    for word in ("mixed, UP_DOWN", "ring of", "peak", "gemm_residual.py:", "Acc", "524,288"):
        assert word in text


def test_memory_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["memory", GEMM, "--set", "BLOCK_N=256", "--set", "BLOCK_K=512", "--set", "M=256"]
    assert cli.main([*arguments, "--json"]) == 1
    (kernel,) = json.loads(capsys.readouterr().out)["kernels"]
    found = {f["code"]: f for f in kernel["findings"]}
    assert "'acc' [256, 256] FP32: 262144 bytes" in found["budget"]["message"]
    assert "smaller" in found["budget"]["fix"]
    assert cli.main(arguments) == 1
    assert "error[budget]" in capsys.readouterr().out


def test_memory_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "memory.png"
    assert cli.main(["memory", MIXED, "--png", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert out.stat().st_size > 5000 and colours(out) > 8


def test_memory_of_one_region(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["memory", LAYER, "--kernel", "decode_layer", "--json"]
    assert cli.main([*arguments, "--region", "gate_up_silu"]) == 0
    (kernel,) = json.loads(capsys.readouterr().out)["kernels"]
    (region,) = kernel["regions"]
    mat = next(s for s in region["spaces"] if s["space"] == "Mat")
    assert mat["peak"] == 2 * 2 * (256 + 256 + 16) * 128, "the tiling of the full size on a2a3"
    assert cli.main([*arguments, "--region", "nothing"]) == 2
    assert "no region is called 'nothing'" in capsys.readouterr().err


def test_memory_of_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["memory", GEMM, "-p", "h200sim", "--json"]) == 0
    (kernel,) = json.loads(capsys.readouterr().out)["kernels"]
    (s,) = kernel["schedules"]
    assert kernel["checked"] and kernel["regions"] == []
    assert (s["region"], s["form"], s["shared_limit"]) == ("gemm", "stream", 232448)
    parts = {p["part"]: p for p in s["shared"]}
    ring = s["ring"]
    assert ring["owners"] * ring["slots"] * ring["slot_bytes"] == parts["ring"]["bytes"]
    assert s["shared_bytes"] == max(p["offset"] + p["bytes"] for p in s["shared"]) <= s["shared_limit"]
    assert s["traffic"]["weight_bytes"] == 2 * 256 * 512 and s["traffic"]["whole_lines"]
    assert cli.main(["memory", GEMM, "-p", "h200sim", "--png", str(tmp_path / "m.png")]) == 2
    assert "there is no memory plan for h200 to draw" in capsys.readouterr().err


def test_memory_of_a_gpu_as_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["memory", LAYER, "--kernel", "decode_layer", "-p", "gb10sim"]
    assert cli.main([*arguments, "--region", "attention"]) == 0
    text = capsys.readouterr().out
    for word in (
        "attention (items): 48 CTAs",
        "shared: ring",
        "k_cache, v_cache",
        "of 101,376",
        "row_max (attention",
    ):
        assert word in text
    assert "gate_up_silu" not in text
    assert cli.main([*arguments, "--region", "nothing"]) == 2
    assert "no region is called 'nothing'" in (err := capsys.readouterr().err) and "gate_up_silu" in err


def test_overrides_beside_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, tiling = tmp_path / "kernel.py", tmp_path / "tiling" / "h200.yaml"
    path.write_text(Path(GEMM).read_text())
    tiling.parent.mkdir()
    arguments = ["memory", str(path), "-p", "h200sim"]
    tiling.write_text("schedule:\n  gemm: {slices: 2, slots: 3}\n")
    assert cli.main([*arguments, "--json"]) == 0
    ((s,),) = (k["schedules"] for k in json.loads(capsys.readouterr().out)["kernels"])
    assert (s["stream"]["slices"], s["ring"]["slots"]) == (2, 3)
    assert s["workspace"] == {"shape": [2, 1, 32, 256], "bytes": 2 * 32 * 256 * 4}
    assert cli.main(["memory", str(path), "-p", "a2a3sim"]) == 0, "no file for that target"
    capsys.readouterr()
    tiling.write_text("schedule:\n  gemm:\n    slice: 2\n")
    assert cli.main(arguments) == 2
    assert "h200.yaml:3" in (err := capsys.readouterr().err) and "no key 'slice'" in err
    tiling.write_text("schedule:\n  gem: {slices: 2}\n")
    assert cli.main(arguments) == 2
    assert "h200.yaml:2" in (err := capsys.readouterr().err) and "no region is called 'gem'" in err
    assert cli.main(["check", str(path), "-p", "h200sim", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["line"], finding["fix"]) == (2, "known: gemm")


# ------------------------------------------------------------------------------------------ trace
def test_trace_writes_all_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events, picture = tmp_path / "trace.json", tmp_path / "trace.png"
    assert cli.main(["trace", MIXED, "-o", str(events), "--png", str(picture)]) == 0
    text = capsys.readouterr().out
    for word in ("bound", "roofline", "critical path", "an estimate, not a measurement", "assumed figures"):
        assert word in text
    assert any(e["ph"] == "X" for e in json.loads(events.read_text())["traceEvents"])
    assert picture.stat().st_size > 5000 and colours(picture) > 4


def test_trace_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trace", GEMM, "-p", "h200sim", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (task,) = report["tasks"]
    assert task["bytes"] == 2 * 512 * (32 + 256) + 4 * 32 * 256
    assert task["flops"] == 2 * 32 * 256 * 512
    assert "an estimate" in report["note"] and "clock_hz" in report["assumed_figures"]


def test_trace_of_the_layer_at_full_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["trace", LAYER, "-p", "h200sim", "--extent", "BATCH=1", "--extent", "ctx=256", "--json"])
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["assumptions"] == []
    size = {t["name"]: t["bytes"] for t in report["tasks"]}
    assert size["gate_up_silu"] > 2 * 2 * 17408 * 5120
    kv = 2 * 2 * 8 * 128 * 256
    assert kv < size["attention"] < 2 * kv


def test_unknown_extent(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trace", GEMM, "--extent", "Q=1"]) == 2
    assert "argument 'Q'" in capsys.readouterr().err
    assert cli.main(["trace", GEMM, "--extent", "Q"]) == 2
    assert "write NAME=NUMBER" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ the file's own
def test_hooks(hooked: str, capsys: pytest.CaptureFixture[str]) -> None:
    def blocks_and_bytes(*arguments: str) -> tuple[int, int]:
        assert cli.main(["trace", hooked, *arguments, "--json"]) == 0
        (task,) = json.loads(capsys.readouterr().out)["tasks"]
        return task["blocks"], task["bytes"]

    assert blocks_and_bytes() == (4, 4 * 2 * 128 * 4)
    assert blocks_and_bytes("-p", "a5sim") == (4, 4 * 2 * 64 * 4)
    assert blocks_and_bytes("--set", "N=32", "--extent", "n=3") == (3, 3 * 2 * 32 * 4)
    assert blocks_and_bytes("--kernel", "other") == (1, 2 * 16 * 32 * 4)
    assert cli.main(["check", hooked, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["kernels"]
    assert first["memory"][0][4] == 128 * 4, "one row of the constant that the file gives"
    assert second["name"] == "other"


def test_wrong_kernel(hooked: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trace", hooked, "--kernel", "none"]) == 2
    assert "known: hooked, other" in capsys.readouterr().err


def test_a_hook_of_the_wrong_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.py"
    path.write_text(HOOKED.replace('return {"N": 128 if target == "a2a3" else 64, "UNREAD": 1}', "return 3"))
    assert cli.main(["trace", str(path)]) == 2
    assert "cli_constants" in (err := capsys.readouterr().err) and "the function gives int" in err


# ------------------------------------------------------------------------------------------ matplotlib
@pytest.mark.parametrize("command", ["memory", "trace"])
def test_without_matplotlib(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main([command, GEMM, "--png", str(tmp_path / "x.png")]) == 2
    err = capsys.readouterr().err
    assert "needs matplotlib, which is not installed" in err and "pip install 'pypto-models[plot]'" in err
    assert not (tmp_path / "x.png").exists()


def test_an_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["trace", GEMM, "-o", str(tmp_path / "file" / "out.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err
