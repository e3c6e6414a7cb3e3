"""The command line of a model on a GPU: right, timed, and from a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models.qwen3_5_27b.harness import main as main_27b
from models.qwen3_14b.harness import main as main_14b
from tests.models.door import report

from .programs import bundle_folder, this_platform

DOORS: dict[str, tuple[Callable[..., int], list[str]]] = {
    "qwen3_14b/full": (main_14b, []),
    "qwen3_5_27b/full": (main_27b, ["--layer", "full"]),
    "qwen3_5_27b/gdn": (main_27b, ["--layer", "gdn"]),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", DOORS)
def test_it_compares_and_times(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main, arguments = DOORS[name]
    arguments = [*arguments, "--config", "tiny", "--lm-head", "single", "-b", "3", "-p", this_platform().name]
    if (folder := bundle_folder()) is not None:
        arguments += ["--bundle", str(folder / "layers" / name / "tiny" / "bf16" / "step")]
    path = tmp_path / "r.json"
    assert main([*arguments, "--json", str(path)]) == 0
    found = report(path)
    assert (found["status"], found["passed"]) == ("PASS", True)
    time = found["time"]
    assert 0 < time["least_us"] <= time["step_us"] <= time["most_us"] < 10_000
    assert 0 < time["share_of_floor"] < 1 and time["copies"] == 6 and time["l2_resident"]
    assert 5e10 < time["torch_sum_bytes_per_s"] < 10e12
    assert "share of the floor" in capsys.readouterr().out
