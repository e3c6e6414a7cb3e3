"""The command ``tune``: what it takes, what it needs, and one whole plan of machine code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backends.gpu.manifest import read_bundle
from pypto_models.cli import main
from pypto_models.schedule.overrides import load
from pypto_models.tuning.records import Plan, Result, Results
from tests.backends.cute.support import needs_cutlass

REPO = Path(__file__).parents[2]
KERNELS = REPO / "tests" / "tuning" / "kernels.py"
WITHOUT = """
import sys
for name in ("cutlass", "triton", "transformers", "safetensors"):
    sys.modules[name] = None
import torch
torch.cuda.is_available = lambda: False
from pypto_models.cli import main
sys.exit(main(sys.argv[1:]))
"""


def tuning(folder: Path) -> Path:
    """A folder as `tune plan` makes it, without parts."""
    folder.mkdir()
    Plan(str(KERNELS), "chain", "h200", "cute", ()).write(folder)
    return folder


def test_run_needs_no_compiler_and_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, "tune", "run", str(tuning(tmp_path / "t"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.strip() == f"SKIPPED: torch {torch.__version__} sees no GPU"


def test_the_module_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pypto_models", "tune", "pick", str(tuning(tmp_path / "t")), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "chain for h200" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "h200sim"], "the backend sim keeps no programs"),
        (["-p", "h200", "--region", "side"], "it is no streamed product and no group"),
        (["-p", "h200", "--try", "up:slots=99"], r"'up: slots 99': it takes"),
        (["-p", "h200", "--try", "up:depth=2"], "a schedule has no key 'depth'"),
        (["-p", "h200", "--try", "up"], "argument '--try': it says ''"),
    ],
)
def test_mistakes_of_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["tune", "plan", str(KERNELS), *arguments, "-o", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["run", "pick"])
def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], step: str) -> None:
    assert main(["tune", step, str(tmp_path / "none")]) == 2
    assert "this is no tuning" in capsys.readouterr().err


@needs_cutlass
@pytest.mark.slow
def test_a_plan_of_machine_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "t"
    arguments = ["-p", "h200", "--region", "up", "--most", "3", "--try", "up:slots=7,warps_n=8,warps_k=1"]
    assert main(["tune", "plan", str(KERNELS), *arguments, "-o", str(folder)]) == 0
    assert "4 variants, " in capsys.readouterr().out
    plan = Plan.read(folder)
    (up,) = plan.parts
    for v in up.variants:
        manifest, binaries = read_bundle(folder / v.folder)
        (kernel,) = manifest.kernels
        assert kernel.how == "stream" and binaries[kernel.name].startswith(b"\x7fELF")
        (launch,) = manifest.launches
        assert launch.grid == str(v.values["walkers"])  # type: ignore[union-attr]
        warps = int(v.values["warps_n"]) * int(v.values["warps_k"]) + 1  # one copies the rows
        assert kernel.threads == 32 * warps
        assert {p.name for p in manifest.parameters} == {a.name for a in up.arguments}
    expected = torch.load(folder / up.reference, weights_only=True)
    assert {n: t.numel() for n, t in expected.items()} == {"middle": 5 * 256}
    assert not expected["middle"].isnan().any()
    # What a run would leave: the last variant is the fastest
    results = Results(folder)
    for i, v in enumerate(up.variants):
        results.add(Result("up", v.name, v.folder, "ok", us=9.0 - i, device="a GPU", date="now"))
    path = tmp_path / "tiling" / "h200.yaml"
    assert main(["tune", "pick", str(folder), "-o", str(path)]) == 0
    assert dict(load(path)["up"].values).items() >= up.variants[-1].values.items()
    assert "a GPU, now" in path.read_text()
    assert json.loads((folder / "results.jsonl").read_text().splitlines()[0])["status"] == "ok"
