"""On a GPU: the compiled programs against torch and the goldens.

Where CUTLASS is not installed, they come from bundles that were built elsewhere:

    python -m tests.backends.cute.test_gpu h200 build/bundles      # on the machine that compiles
    PYPTO_MODELS_BUNDLES=build/bundles pytest -m gpu               # on the machine with the GPU
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

import golden.runner
import pypto_models.language as pl
from backends.cute import CuteProgram, Loaded
from backends.cute.torch_op import register
from golden.spec import TensorSpec
from pypto_models.compile import Program, platforms, resolve_platform
from pypto_models.compile import compile as compile_program

from .support import needs_cutlass, project, twice, two_regions

KERNELS = (twice, two_regions, project)
BUNDLES = os.environ.get("PYPTO_MODELS_BUNDLES")
pytestmark = [pytest.mark.gpu] if BUNDLES else [pytest.mark.gpu, needs_cutlass]


def platform() -> str:
    """The one whose code this GPU runs."""
    major, minor = torch.cuda.get_device_capability()
    for name in platforms():
        target, backend = resolve_platform(name)
        if backend.name == "cute" and str(target.arch).strip("sm_af") == f"{major}{minor}":
            return name
    pytest.skip(f"no target is for sm_{major}{minor}")


def options(kernel: pl.Kernel) -> dict[str, str]:
    return {"bundle": str(Path(BUNDLES) / kernel.name)} if BUNDLES else {}


def program(kernel: pl.Kernel) -> Program:
    return compile_program(kernel, platform=platform(), backend_options=options(kernel))


@pytest.mark.parametrize("rows", [1, 16, 33, 1000])
def test_run_time_rows(rows: int) -> None:
    x = torch.randn(rows, 64, device="cuda")
    y = torch.full_like(x, float("nan"))
    program(twice)(x, y)
    assert torch.equal(y, x * 2)


def test_regions_run_in_order() -> None:
    x, y, z = torch.randn(32, 64).cuda(), torch.empty(32, 64).cuda(), torch.empty(32, 1).cuda()
    program(two_regions)(x, y, z)
    assert torch.equal(y, x * 2)
    torch.testing.assert_close(z, y.sum(1, keepdim=True), rtol=1e-5, atol=1e-5)


def stream_arguments(device: str = "cuda") -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    x, w = torch.randn(16, 512).bfloat16(), (torch.randn(256, 512) / 16).bfloat16()
    return tuple(t.to(device) for t in (x, w, torch.randn(16, 256), torch.full((16, 256), float("nan"))))


def test_a_stream_is_right_and_the_same_twice() -> None:
    x, w, residual, y = stream_arguments()
    run = program(project)
    run(x, w, residual, y)
    want = x.double() @ w.double().T + residual.double()
    torch.testing.assert_close(y.double(), want, rtol=0, atol=1e-4)
    first = y.clone()
    run(x, w, residual, y.fill_(float("nan")))
    assert torch.equal(y, first)


def test_a_bundle_runs_and_a_graph_replays_it(tmp_path: Path) -> None:
    executable = program(project).executable
    assert isinstance(executable, CuteProgram)
    executable.save(tmp_path)
    loaded = Loaded.open(tmp_path)
    x, w, residual, y = stream_arguments()
    args = {"x": x, "weight": w, "residual": residual, "y": y}
    loaded(args)
    eager = y.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loaded(args)
    y.fill_(float("nan"))
    graph.replay()
    assert torch.equal(y, eager)
    x.mul_(2)
    graph.replay()
    torch.testing.assert_close(y.double(), x.double() @ w.double().T + residual.double(), rtol=0, atol=2e-4)


def test_it_is_an_op_inside_torch_compile() -> None:
    executable = program(project).executable
    assert isinstance(executable, CuteProgram)
    op = register(executable, "project_on_the_gpu")
    x, w, residual, y = stream_arguments()
    torch.library.opcheck(op, (x, w, residual, y))

    def step(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty(16, 256, device="cuda")
        op(x, w, residual, y)
        return y + 1

    torch.testing.assert_close(torch.compile(step, fullgraph=True)(x), step(x), rtol=0, atol=0)


def test_the_harness_runs_it() -> None:
    def want(tensors: dict[str, torch.Tensor]) -> None:
        tensors["y"][:] = tensors["x"] * 2

    specs = [
        TensorSpec("x", (48, 64), torch.float32, torch.randn),
        TensorSpec("y", (48, 64), torch.float32, is_output=True),
    ]
    result = golden.runner.run_jit(
        twice,
        specs,
        golden_fn=want,
        runtime_cfg={"platform": platform()},
        compile_cfg={"backend_options": options(twice)},
    )
    assert result.passed and result.status == "PASS"


def test_what_does_not_fit_is_refused_before_the_launch() -> None:
    run = program(twice)
    x = torch.randn(4, 64, device="cuda")
    with pytest.raises(ValueError, match="y is on cpu; move it to cuda:0"):
        run(x, torch.empty(4, 64))
    with pytest.raises(ValueError, match="ROWS is 4 in x and 5 in y"):
        run(x, torch.empty(5, 64, device="cuda"))


if __name__ == "__main__":
    for k in KERNELS:
        compile_program(k, platform=sys.argv[1]).executable.save(Path(sys.argv[2]) / k.name)  # type: ignore[attr-defined]
