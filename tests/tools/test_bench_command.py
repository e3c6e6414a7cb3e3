"""`tools/bench.py` on a stand-in for the device: what it prints and writes, what it fails for."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.gpu.manifest import Launch, Parameter
from backends.gpu.timing import ARRIVED, END, START
from tests.tools.stand_ins import Simulated, Slow, folders, loader, simulated
from tools import bench
from tools.gpu_bench import attention, peers, stock, tasks
from tools.gpu_bench.catalogue import SLICED
from tools.gpu_bench.report import Report, tables

FAST = ["--ceiling", "0.001", "--batch", "3,1", "--layers", "2"]  # TB/s, so that shares are not over 1

DENSE = "qwen3_14b/full"
NORMED = "qwen3_14b/qkv"


def rows(file: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["subject"], r["program"]): r for r in json.loads(file.read_text())["rows"]}


def test_our_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = (DENSE, f"{DENSE}/without", "qwen3_5_27b/gdn", "qwen3_14b/gate_up")
    given = [str(folders(tmp_path / "b", *names)), *FAST, "--json", str(tmp_path / "r.json")]
    device = Slow()
    assert bench.main(given, device, loader()) == 0
    found = rows(tmp_path / "r.json")
    layer = found[f"{DENSE} b3 128", "ours"]
    assert (layer["us"], layer["least_us"], layer["most_us"]) == pytest.approx((2.0, 1.0, 3.0))
    assert {e["name"] for e in layer["errors"]} == {"next_hidden", "k_cache", "v_cache"}
    assert layer["status"] == "PASS" and all(e["error"]["rms"] > 0 for e in layer["errors"])
    # By hand: qkv 896 x 256, o 256 x 640, MLP 3 x 512 x 256; norms 2 x 256 + 2 x 64 in fp32; KV of 3
    # sequences with 128 tokens, 2 heads of 64, k and v
    weights = 2 * (896 * 256 + 256 * 640 + 3 * 512 * 256) + 4 * (2 * 256 + 2 * 64)
    kv = 3 * 128 * 2 * 64 * 2 * 2
    assert layer["bytes"] == weights + kv
    assert layer["floor_us"] == pytest.approx((weights + kv) / 1e9 * 1e6)
    assert layer["share_of_floor"] == pytest.approx(layer["floor_us"] / 2.0)
    bare = found[f"{DENSE} b3 128 without attention", "ours"]
    assert bare["status"] == "PASS" and bare["bytes"] == weights
    between = found[f"{DENSE} b3 128 attention", "ours"]
    assert (between["us"], between["bytes"], between["status"]) == (0.0, kv, "-")
    assert {f"{DENSE} b3 level", f"{DENSE} b3 ragged"} <= {s for s, _ in found}
    state = found["qwen3_5_27b/gdn b1 128", "ours"]
    assert {e["name"] for e in state["errors"]} == {"next_hidden", "state", "conv_state"}
    product = found["qwen3_14b/gate_up", "ours"]
    assert product["bytes"] == 2 * 1024 * 256 + 4 * 256 and product["status"] == "PASS"
    assert {24, 48} == {*device.graphs}  # steps and projections of one graph
    said = capsys.readouterr().out
    assert "read ceiling 0.001 TB/s: as given" in said
    assert said.endswith(tables(Report.parse(json.loads((tmp_path / "r.json").read_text()))) + "\n")


def test_a_wrong_result_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(args: Mapping[str, Any]) -> None:
        args["next_hidden"][2, 7] += 1.0

    load = loader(qwen3_5_27b_gdn=spoil)
    given = [str(folders(tmp_path, "qwen3_5_27b/gdn")), *FAST, "--json", str(tmp_path / "r.json")]
    assert bench.main([*given, "--batch", "3"], Slow(), load) == 1
    found = rows(tmp_path / "r.json")["qwen3_5_27b/gdn b3 128", "ours"]
    assert found["status"] == "FAIL"
    assert {e["name"]: e["passed"] for e in found["errors"]} == {
        "next_hidden": False, "conv_state": True, "state": True,
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "FAIL  next_hidden: error max" in said and "| FAIL" in said
    assert bench.main(["--show", str(tmp_path / "r.json")]) == 1


def test_an_output_that_is_not_written_fails(tmp_path: Path) -> None:
    def spoil(args: Mapping[str, Any]) -> None:
        args["next_hidden"][1, 3] = torch.nan

    given = [str(folders(tmp_path, DENSE)), *FAST, "--json", str(tmp_path / "r.json"), "--batch", "2"]
    assert bench.main(given, Slow(), loader(qwen3_14b_full=spoil)) == 1
    assert rows(tmp_path / "r.json")[f"{DENSE} b2 128", "ours"]["status"] == "FAIL"


def test_a_graph_that_gives_something_else_fails(tmp_path: Path) -> None:
    calls = []

    def drift(args: Mapping[str, Any]) -> None:
        calls.append(1)
        args["next_hidden"][0, 0] += len(calls) * 2**-7

    given = [str(folders(tmp_path, DENSE)), *FAST, "--json", str(tmp_path / "r.json"), "--batch", "1"]
    assert bench.main(given, Slow(), loader(qwen3_14b_full=drift)) == 1
    why = rows(tmp_path / "r.json")[f"{DENSE} b1 128", "ours"]["why"]
    assert why == "a replay of the graph differs from the first run"


def test_a_program_that_raises_fails_and_the_rest_goes_on(tmp_path: Path) -> None:
    def refuse(args: Mapping[str, Any]) -> None:
        raise RuntimeError("no\nsuch thing")

    root = folders(tmp_path, "qwen3_14b/o", "qwen3_14b/down")
    given = [str(root), *FAST, "--json", str(tmp_path / "r.json")]
    assert bench.main(given, Slow(), loader(qwen3_14b_o=refuse)) == 1
    found = rows(tmp_path / "r.json")
    assert found["qwen3_14b/o", "ours"]["status"] == "ERROR"
    assert found["qwen3_14b/o", "ours"]["why"] == "RuntimeError: no such thing"
    assert found["qwen3_14b/down", "ours"]["status"] == "PASS"


@pytest.mark.parametrize("works", [True, False])
def test_the_own_launch_of_a_projection(tmp_path: Path, works: bool) -> None:
    """Made alone behind the launches that its program has ahead of it, and checked like the program."""
    made: list[str] = []

    def load(folder: Path) -> Any:
        program = simulated(NORMED)

        def launches(args: Mapping[str, Any]) -> list[Any]:
            def product() -> None:
                made.append("product")
                if works:
                    program(args)

            return [lambda: made.append("norm"), product]

        streams = (("pointer", "weight"),)
        program.manifest.launches = (Launch("norm", "1", ()), Launch("product", "1", streams))
        program.launches = launches  # type: ignore[attr-defined]
        return program

    given = [str(folders(tmp_path, NORMED)), *FAST, "--json", str(tmp_path / "r.json")]
    assert bench.main(given, Slow(), load) == (0 if works else 1)
    found = {subject: r["status"] for (subject, _), r in rows(tmp_path / "r.json").items()}
    assert found == {NORMED: "PASS", f"{NORMED}, its own launch": "PASS" if works else "FAIL"}
    assert made[:3] == ["norm", "norm", "product"] and made.count("norm") == 2  # of two layers


def test_a_projection_in_slices(tmp_path: Path) -> None:
    """By its own name, and no launch alone: the last one only finishes what others have streamed."""

    def load(folder: Path) -> Any:
        program = simulated(SLICED[1])
        program.manifest.launches = tuple(Launch(x, "1", ()) for x in ("zero", "slices", "epilogue"))
        program.launches = lambda args: pytest.fail("nothing is measured alone")  # type: ignore[attr-defined]
        return program

    given = [str(folders(tmp_path, SLICED[1])), *FAST, "--json", str(tmp_path / "r.json")]
    assert bench.main(given, Slow(), load) == 0
    assert {s: r["status"] for (s, _), r in rows(tmp_path / "r.json").items()} == {SLICED[1]: "PASS"}


def test_a_timing_build(tmp_path: Path) -> None:
    """Stamps as a program might leave them, 1 us for each launch and layer."""
    clock = [1_000_000]

    def stamp(args: Mapping[str, Any]) -> None:
        for launch in args["stamps"]:
            clock[0] += 1000
            launch[:3, START], launch[:3, ARRIVED], launch[:3, END] = clock[0], clock[0] + 250, clock[0] + 800

    def load(folder: Path) -> Any:
        made = simulated(DENSE, stamp)
        made.manifest.parameters += (Parameter("stamps", "tensor", "out", "int64", ("2", "8192", "4")),)
        pages = ("k_cache", "v_cache", "block_table")
        arguments = [tuple(("pointer", n) for n in names) for names in (("w_qkv", "qkv"), pages)]
        made.manifest.launches = tuple(Launch(n, "1", a) for n, a in zip("ab", arguments, strict=True))
        return made

    given = [str(folders(tmp_path, DENSE)), *FAST, "--batch", "3", "--json", str(tmp_path / "r.json")]
    assert bench.main(given, Slow(), load) == 0
    made = json.loads((tmp_path / "r.json").read_text())
    assert made["rows"] == [] and made["gaps_us"] == {f"{DENSE} b3 128": pytest.approx(0.45)}
    a, b = made["regions"]
    assert (a["kernel"], a["ctas"], a["start"], a["end"]) == ("a", 3, pytest.approx(0.2), pytest.approx(1.0))
    assert a["floor_us"] == pytest.approx(2 * 896 * 256 / 1e9 * 1e6)  # w_qkv; qkv is no parameter
    assert b["floor_us"] == pytest.approx(3 * 128 * 2 * 64 * 2 * 2 / 1e9 * 1e6)  # KV


# ------------------------------------------------------------------------------------------------- peers
def test_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eager ones, and how a peer that raises, or is wrong, shows."""

    def not_here(*tensors: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel")

    def wrong(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention.dispatched(q, k, v.roll(1, 1))

    ways = {"flash": attention.flash, "none": not_here, "wrong": wrong, "dispatched": attention.dispatched}
    found_ways = [attention.Candidate(*way) for way in ways.items()]
    monkeypatch.setattr(peers, "candidates", lambda *a: found_ways)
    given = [str(folders(tmp_path, DENSE, "qwen3_14b/qkv")), *FAST, "--json", str(tmp_path / "r.json")]
    assert bench.main([*given, "--batch", "2", "--peers", "--only", "eager"], Slow(), loader()) == 1
    found = rows(tmp_path / "r.json")
    attends = {p: r["status"] for (s, p), r in found.items() if s == f"{DENSE} b2 128 attention"}
    assert attends == {
        "flash": "PASS", "none": "ERROR", "wrong": "FAIL", "dispatched": "PASS",
        "flash, pages gathered": "PASS",
    }  # fmt: skip
    assert found[f"{DENSE} b2 128 attention", "none"]["why"] == "RuntimeError: no kernel"
    layer = found[f"{DENSE} b2 128", "torch eager"]
    assert (layer["status"], layer["why"]) == ("PASS", "flash")
    assert found["qwen3_14b/qkv", "cuBLAS alone"]["status"] == "-"
    assert found["qwen3_14b/qkv", "torch eager"]["status"] == "PASS"


def test_a_peer_that_raises_is_no_failure_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> Any:
        raise RuntimeError(f"cannot compile with {options['mode']}")

    monkeypatch.setattr(torch, "compile", refuse)
    given = [str(folders(tmp_path, "qwen3_5_27b/gdn")), *FAST, "--json", str(tmp_path / "r.json")]
    assert bench.main([*given, "--batch", "1", "--peers"], Slow(), loader()) == 0
    found = rows(tmp_path / "r.json")
    name = "qwen3_5_27b/gdn b1 128"
    assert found[name, "torch.compile"]["why"] == "RuntimeError: cannot compile with default"
    assert found[name, "torch.compile max-autotune"]["status"] == "ERROR"
    assert found[name, "torch eager"]["why"] in stock.RULES


def test_what_takes_minutes_comes_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folders(tmp_path, DENSE, "qwen3_14b/o")
    assert bench.main([str(root), *FAST, "--peers", "--list"], Slow(), loader()) == 0
    listed = capsys.readouterr().out.splitlines()
    programs = [line.partition(": ")[2] for line in listed]
    order = ["ours", "torch eager", "torch.compile", "torch.compile max-autotune"]
    assert [p for i, p in enumerate(programs) if p not in programs[:i]] == order
    assert programs == sorted(programs, key=order.index)
    assert f"{DENSE} b1 128: torch eager" in listed


# ------------------------------------------------------------------------------------- mistakes and limits
def test_a_task_is_given_up_after_its_time() -> None:
    report = Report(say=lambda text: None)
    slow = tasks.Task("slow", "a peer", lambda: time.sleep(30))
    quick = tasks.Task("quick", "a peer", lambda: None)
    started = time.monotonic()
    tasks.run_all([slow, quick], report, seconds=0.2)
    assert time.monotonic() - started < 10
    assert [(r.subject, r.status, r.why) for r in report.rows] == [
        ("slow", "ERROR", "TooLong: stopped after 0.2 s; --seconds gives more")
    ]
    tasks.run_all([tasks.Task("s", "p", lambda: time.sleep(0.3))], report)  # no limit
    assert len(report.rows) == 1


def stranger(folder: Path) -> Simulated:
    made = loader()(folder)
    made.manifest.name = "softmax"
    return made


@pytest.mark.parametrize(
    ("arguments", "load", "why"),
    [
        (["--only", "nothing"], loader(), "nothing to do: no task has such a name"),
        ([], stranger, "softmax is no program of the bench"),
        (["--batch", "17"], loader(), "'17': give numbers of sequences, 1 to 16"),
    ],
)
def test_mistakes(
    arguments: list[str], load: Any, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(folders(tmp_path, "qwen3_14b/o")), *FAST, *arguments]
    try:
        status = bench.main(given, Slow(), load)
    except SystemExit as exit:
        status = int(str(exit.code))
    assert status == 2
    assert why in capsys.readouterr().err


def test_a_folder_without_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([str(tmp_path), *FAST], Slow(), loader()) == 2
    assert f"{tmp_path} holds no bundle; python -m tools.gpu_bench.prepare" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([str(folders(tmp_path, "qwen3_14b/o"))]) == 2
    assert "nothing can be measured here: torch" in capsys.readouterr().err


def test_where_the_read_kernels_fail_torch_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no Triton; it is a row, and said beside the ceiling."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "tools.gpu_bench.reading", raising=False)
    root = folders(tmp_path, "qwen3_14b/o")
    given = [str(root), "--batch", "1", "--layers", "2", "--json", str(tmp_path / "r.json")]
    assert bench.main(given, Slow(), loader()) == 0
    made = json.loads((tmp_path / "r.json").read_text())
    assert made["rows"][0]["program"] == "Triton" and made["rows"][0]["status"] == "ERROR"
    assert made["ceiling"]["how"] == "torch.sum, since the read kernels failed"
    assert made["ceiling"]["bytes_per_s"] == pytest.approx((1 << 22) / 2e-6)  # of a quarter of the memory
