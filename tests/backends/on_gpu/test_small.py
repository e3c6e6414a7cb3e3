"""Small kernels on a GPU: run-time rows, bundles, graphs, torch.compile, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pypto_models.language as pl
from backends.gpu.program import GpuProgram
from backends.gpu.runtime import Loaded
from backends.gpu.torch_op import register
from golden import TensorSpec, run
from pypto_models.compile import Program

from ..cute.support import project, shifted, twice, two_regions
from .catalogue import Entry
from .programs import program_of

pytestmark = pytest.mark.gpu


def program(kernel: pl.Kernel) -> Program:
    return program_of(f"small/{kernel.name}", lambda on: Entry(kernel, on, {}))


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


def test_rows_move_in_place() -> None:
    for _ in range(20):
        x = torch.randn(33, 64, device="cuda")
        want = torch.cat([x[:1], x[:32]])
        program(shifted)(x)
        assert torch.equal(x, want)


def stream_arguments(device: str = "cuda") -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    x, w = torch.randn(16, 512).bfloat16(), (torch.randn(256, 512) / 16).bfloat16()
    return tuple(t.to(device) for t in (x, w, torch.randn(16, 256), torch.full((16, 256), float("nan"))))


def test_a_stream_is_right_and_the_same_twice() -> None:
    x, w, residual, y = stream_arguments()
    launch = program(project)
    launch(x, w, residual, y)
    want = x.double() @ w.double().T + residual.double()
    torch.testing.assert_close(y.double(), want, rtol=0, atol=1e-4)
    first = y.clone()
    launch(x, w, residual, y.fill_(float("nan")))
    assert torch.equal(y, first)


def test_a_bundle_runs_and_a_graph_replays_it(tmp_path: Path) -> None:
    program(project).save(tmp_path)
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
    assert isinstance(executable, GpuProgram)
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
    result = run(program(twice), specs, golden_fn=want)
    assert result.passed and result.status == "PASS"


def test_what_does_not_fit_is_refused_before_the_launch() -> None:
    launch = program(twice)
    x = torch.randn(4, 64, device="cuda")
    with pytest.raises(ValueError, match="y is on cpu; move it to cuda:0"):
        launch(x, torch.empty(4, 64))
    with pytest.raises(ValueError, match="ROWS is 4 in x and 5 in y"):
        launch(x, torch.empty(5, 64, device="cuda"))
