"""``pypto-models emit`` and ``build``: what they print and write, and their errors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from backends.gpu.cache import FOLDER_VARIABLE
from backends.gpu.manifest import read_bundle
from pypto_models import cli
from tests.backends.cute.support import CountingCompiler

EXAMPLES = Path(__file__).parents[2] / "examples"
SOFTMAX = str(EXAMPLES / "softmax.py")


def test_emit_prints_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["emit", SOFTMAX, "-p", "gb10"]) == 0
    text = capsys.readouterr().out
    assert text.startswith('"""softmax for gb10 (sm_121a),') and "@cute.kernel" in text
    compile(text, "emitted.py", "exec")  # it is Python


def test_emit_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["emit", SOFTMAX, "-p", "h200"]) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "sub" / "softmax_h200.py"
    assert cli.main(["emit", SOFTMAX, "--target", "h200", "-o", str(out)]) == 0
    assert out.read_text() == printed
    assert "wrote" in capsys.readouterr().out


def test_emit_takes_constants(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["emit", SOFTMAX, "-p", "h200"]) == 0
    before = capsys.readouterr().out
    assert cli.main(["emit", SOFTMAX, "-p", "h200", "--set", "COLS=256"]) == 0
    assert capsys.readouterr().out != before


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["emit", SOFTMAX, "-p", "h200sim"], "the backend sim writes no source"),
        (["build", SOFTMAX, "-p", "a2a3sim", "-o", "unused"], "the backend sim makes no bundles"),
        (["emit", SOFTMAX, "-p", "h300"], "unknown platform 'h300'"),
        (["emit", SOFTMAX, "-p", "h200", "--kernel", "gemm"], "no entry is called 'gemm'"),
    ],
)
def test_mistakes(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert why in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("cutlass") is None, reason="CUTLASS is not installed")
def test_build_for_timing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr("backends.cute.compiler.CuteToolchain.compile_units", CountingCompiler())
    for folder, options in (("plain", []), ("timed", ["--timing"])):
        given = ["build", SOFTMAX, "-p", "h200", "-o", str(tmp_path / folder), *options]
        assert cli.main(given) == 0
    capsys.readouterr()
    plain, timed = (read_bundle(tmp_path / folder)[0] for folder in ("plain", "timed"))
    assert timed.parameters[:-1] == plain.parameters
    assert (timed.parameters[-1].name, timed.parameters[-1].dtype) == ("stamps", "int64")
    assert timed.parameters[-1].shape == ("1", "8192", "4")


def test_a_backend_without_timing_builds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.cute.CuteBackend.build", lambda self, compiled, *, bundle=None: None)
    assert cli.main(["build", SOFTMAX, "-p", "h200", "-o", str(tmp_path), "--timing"]) == 2
    assert "argument '--timing': the backend cute has no such option" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["build", SOFTMAX, "-p", "h200", "-o", str(tmp_path / "file" / "bundle")]) == 2
    assert "it cannot be written: Not a directory" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("cutlass") is None, reason="CUTLASS is not installed")
def test_build_writes_a_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    assert cli.main(["build", SOFTMAX, "--target", "gb10", "-o", str(tmp_path / "one"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    manifest, binaries = read_bundle(tmp_path / "one")
    assert (report["program"], report["target"], report["backend"]) == ("softmax", "gb10", "cute")
    assert [k["name"] for k in report["kernels"]] == list(binaries)
    assert report["kernels"][0]["registers"] == manifest.kernels[0].registers > 0
    assert manifest.arch == "sm_121a" and manifest.parameters[0].shape == ("ROWS", "512")

    # Again from the cache: the same files, without a compiler.
    monkeypatch.setattr("backends.cute.compiler.CuteToolchain.compile_units", None)
    assert cli.main(["build", SOFTMAX, "-p", "gb10", "-o", str(tmp_path / "two")]) == 0
    shown = capsys.readouterr().out
    assert "softmax for gb10" in shown and f" {manifest.kernels[0].registers} " in shown
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()
