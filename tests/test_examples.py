"""The examples run on every simulated platform, and their goldens can tell a wrong kernel."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from golden import run_jit
from pypto_models.compile import platforms

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_four() -> None:
    assert [f.stem for f in FILES] == ["add_scalar", "gemm", "gemm_residual", "softmax"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("platform", [p for p in platforms() if p.endswith("sim")])
def test_passes(
    path: Path, platform: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [path.name, "-p", platform])
    assert load(path).main() == 0
    assert "[RUN] PASS" in capsys.readouterr().out


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_wrong_kernel_fails(path: Path, tmp_path: Path) -> None:
    """One changed operation in the source must fail the example's own comparison."""
    faults = {
        "add_scalar": ("pl.add(tile, value)", "pl.sub(tile, value)"),
        "gemm": ("pl.pipeline(K // BLOCK_K, stage=2)", "pl.pipeline(K // BLOCK_K - 1, stage=2)"),
        "gemm_residual": ("pl.add(acc, old)", "pl.sub(acc, old)"),
        "softmax": ("pl.row_sum(weights)", "pl.row_max(weights)"),
    }
    right, wrong = faults[path.stem]
    text = path.read_text()
    assert text.count(right) == 1
    faulty = tmp_path / path.name
    faulty.write_text(text.replace(right, wrong))
    done = subprocess.run([sys.executable, str(faulty)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'y' FAIL" in done.stdout


def test_softmax_serves_any_number_of_rows_with_one_program() -> None:
    module = load(EXAMPLES / "softmax.py")
    for rows in (1, 15, 16, 17, 100):
        result = run_jit(module.softmax, module.specs(rows), golden_fn=module.golden, atol=1e-6)
        assert result.passed, result.error
