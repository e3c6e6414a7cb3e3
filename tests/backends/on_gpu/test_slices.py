"""K cut across CTAs on a GPU: sums in workspace, the same twice; sums by atomics, in eager and in a graph."""

from __future__ import annotations

import pytest
import torch

from backends.gpu.program import GpuProgram
from pypto_models.compile import Program

from ..cute.slice_kernels import DEEP, WIDE
from .catalogue import ACROSS, SLICED, not_sliced, sliced_layers, sliced_product, sliced_step
from .programs import Replayed, program_of, this_platform, twice

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuts() -> None:
    if (why := not_sliced(this_platform())) is not None:
        pytest.skip(why)


@pytest.mark.parametrize("rows", [1, 7, 16])
@pytest.mark.parametrize("across", ACROSS)
def test_a_product_in_slices(across: str, rows: int) -> None:
    """Of whole numbers, whose sums are exact in any order; workspace that was used before is no matter."""
    launch = program_of(f"sliced/product/{across}", lambda on: sliced_product(on, across))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x, w = (torch.randint(-2, 3, (n, DEEP), generator=generator).bfloat16() for n in (rows, 2 * WIDE))
        residual = torch.randint(-9, 9, (rows, WIDE), generator=generator).float()
        y = torch.full((rows, WIDE), torch.nan, dtype=torch.bfloat16, device="cuda")
        launch(x.cuda(), w.cuda(), residual.cuda(), y)
        one, other = (x.double() @ w.double().T).chunk(2, dim=1)
        assert torch.equal(y.cpu(), (residual + one * other).bfloat16())


def step_of(name: str, across: str) -> Program:
    layer = sliced_layers()[name]
    program = program_of(f"sliced/{name}/{across}", lambda on: sliced_step(layer, on, across))
    assert isinstance(program.executable, GpuProgram)
    streams = {k.region for k in program.executable.manifest.kernels if k.how == "stream"}
    assert {*SLICED} <= streams
    return program


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("across", ACROSS)
@pytest.mark.parametrize("name", sliced_layers())
def test_layers_in_slices(name: str, across: str, batch: int) -> None:
    """Against the golden; twice bit by bit where the order of sums is fixed, replayed where it is not."""
    layer = sliced_layers()[name]
    program = step_of(name, across)
    tensors = layer.kind.make_inputs(layer.config, batch, "ragged", seed=batch, lm_head="single")
    runs = twice(program) if across == "workspace" else Replayed(program)
    result = layer.kind.check(layer.config, tensors, runs)
    assert result.status == "PASS", result.error
