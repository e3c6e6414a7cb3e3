"""The command line: check on our files and on unmodified pypto files, targets, docs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pypto_models import cli

EXAMPLES = Path(__file__).parent.parent / "examples"

FOREIGN = """
import pypto.language as pl
import pypto.language.distributed as pld
from config import N

B = pl.dynamic("B")


@pl.jit.extern(core_type="aic", source="kernel.cpp")
def vendor(x):
    ...


@pl.jit.inline
def twice(x: pl.Tensor):
    return pl.mul(x, 2.0)


@pl.jit
def good(x: pl.Tensor[[B, N], pl.FP32], y: pl.Out[pl.Tensor[[B, N], pl.FP32]]):
    for b in pl.spmd(pl.tensor.dim(x, 0)):
        y[b : b + 1, :] = twice(x[b : b + 1, :])


@pl.jit
def bad(x: pl.Tensor[[16, N], pl.FP32], y: pl.Out[pl.Tensor[[16, N], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, speed=3):
        pass
    with pl.at(level=pl.Level.CORE_GROUP):
        a = pl.gather(x, dim=1, index=x)
        b = pl.frobnicate(x)
        c = pl.cast(x, pl.BF16, rounding="rint")
        y[:, :] = pl.add(x, 1.0)
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    (tmp_path / "config.py").write_text("N = 64\n")
    path = tmp_path / "kernel.py"
    path.write_text(FOREIGN)
    return path


def line_of(text: str) -> int:
    return next(i for i, line in enumerate(FOREIGN.splitlines(), 1) if text in line)


def test_check_lists_all_findings_of_a_pypto_file_at_once(
    foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", str(foreign), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    found = [(f["line"], f["code"]) for f in report["findings"]]
    assert found == [
        (line_of("pl.jit.extern"), "unsupported"),
        (line_of("speed=3"), "unknown-keyword"),
        (line_of("pl.gather"), "unsupported"),
        (line_of("pl.frobnicate"), "unknown-op"),
        (line_of('rounding="rint"'), "unknown-keyword"),
    ]
    assert all(f["fix"] for f in report["findings"])
    good = next(k for k in report["kernels"] if k["name"] == "good")
    assert good["memory_checked"] is True
    assert good["memory"][0][3] == "Vec"


def test_check_shows_carets_and_fixes(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(foreign)]) == 1
    text = capsys.readouterr().out
    assert "kernel.py" in text and "^^^^" in text and "5 findings" in text


def test_check_leaves_the_import_system_as_it_was(foreign: Path) -> None:
    before = set(sys.modules)
    path = list(sys.path)
    cli.main(["check", str(foreign), "--json"])
    assert "pypto" not in sys.modules and "config" not in set(sys.modules) - before
    assert sys.path == path


def test_check_of_an_example_has_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(EXAMPLES / "gemm_residual.py"), "-p", "a2a3sim"]) == 0
    text = capsys.readouterr().out
    for word in ("gemm_residual", "mixed", "UP_DOWN", "Acc", "Mat", "no findings"):
        assert word in text


def test_check_of_a_gpu_platform_shows_the_schedules(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(EXAMPLES / "gemm.py"), "-p", "h200sim", "--json"]) == 0
    (kernel,) = json.loads(capsys.readouterr().out)["kernels"]
    (schedule,) = kernel["schedules"]
    assert kernel["memory_checked"] and (schedule["region"], schedule["form"]) == ("gemm", "stream")
    assert cli.main(["check", str(EXAMPLES / "gemm.py"), "-p", "h200sim"]) == 0
    assert "schedules" in capsys.readouterr().out


def test_check_reports_a_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The constant of a legal kernel, set too large for the unified buffer."""
    path = tmp_path / "wide.py"
    path.write_text(
        "import pypto_models.language as pl\n\nN = 256\n\n\n@pl.jit\n"
        "def wide(x: pl.Tensor[[16, N], pl.FP32], y: pl.Out[pl.Tensor[[16, N], pl.FP32]]):\n"
        "    with pl.at(level=pl.Level.CORE_GROUP):\n"
        "        y[:, :] = pl.add(x, 1.0)\n"
    )
    assert cli.main(["check", str(path)]) == 0
    capsys.readouterr()
    assert cli.main(["check", str(path), "--set", "N=8192", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["code"] == "budget"
    assert (
        "524288 bytes" in finding["message"]
        and "Vec" in finding["message"]
        and "188416" in finding["message"]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "no @pl.jit entry"),
        ("def broken(:\n", "mend the Python syntax"),
        ("import nothing_of_that_name\n", "import fails"),
    ],
)
def test_check_of_an_odd_file(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.py"
    path.write_text(text)
    assert cli.main(["check", str(path)]) == 1
    assert message in capsys.readouterr().out.replace("\n", " ")


def test_check_of_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(tmp_path / "none.py")]) == 1
    assert "a missing file" in capsys.readouterr().out


def test_unknown_platform_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(EXAMPLES / "gemm.py"), "-p", "tpusim"]) == 2
    assert "known: " in capsys.readouterr().err


def test_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["targets", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data["targets"]) == {"a2a3", "a5", "gb10", "h200", "mi300x", "mi355x"}
    assert data["backends"]["sim"] == {"usable": True, "why_not": None}
    assert "a2a3sim" in data["platforms"]
    assert cli.main(["targets"]) == 0
    assert "a5sim" in capsys.readouterr().out


def test_without_a_command_it_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "check" in capsys.readouterr().out
