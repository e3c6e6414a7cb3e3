"""The decode steps of all kinds of layers against their goldens; each run twice, bit for bit."""

from __future__ import annotations

import pytest

from backends.gpu.program import GpuProgram
from pypto_models.compile import Program
from pypto_models.target import load_target

from .catalogue import GB10, Layer, as_gb10, full_layers, layers, not_as_gb10, span_entry, step_entry
from .programs import program_of, this_platform, twice

pytestmark = pytest.mark.gpu
STEPS = [name for name, layer in layers().items() if layer.config.dtype == "bf16"]
BLOCK_BYTES = 101_376  # of shared memory, the most of a block on gb10


def step_of(name: str) -> Program:
    layer = layers()[name]
    return program_of(f"layers/{name}/step", lambda on: step_entry(layer, on))


def assert_right(
    layer: Layer, program: Program, batch: int, context: int | str, seed: int, head: str
) -> None:
    tensors = layer.kind.make_inputs(layer.config, batch, context, seed=seed, lm_head=head)
    result = layer.kind.check(layer.config, tensors, twice(program))
    assert result.status == "PASS", result.error
    compared = {n for n in layer.kind.mutated if n in tensors}
    assert {*result.reports} == compared


@pytest.mark.parametrize("context", [1, "ragged", "longest"])
@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("name", STEPS)
def test_one_row_a_sequence(name: str, batch: int, context: int | str) -> None:
    layer = layers()[name]
    length = layer.config.max_seq if context == "longest" else context
    assert_right(layer, step_of(name), batch, length, seed=batch, head="single")


@pytest.mark.parametrize("name", layers())
def test_several_rows_dead_sequences_and_small_values(name: str) -> None:
    """The steps on which the power of the comparison is measured, and ragged batches behind them."""
    layer = layers()[name]
    program = program_of(f"layers/{name}/span", lambda on: span_entry(layer, on))
    for seed in range(len(layer.power.steps)):
        _, tensors = layer.power.step_of(layer.config, seed)
        result = layer.kind.check(layer.config, tensors, twice(program))
        assert result.status == "PASS", f"step {seed}: {result.error}"


# ------------------------------------------------------------------------- the schedule of gb10 on this GPU
def assert_within_gb10(program: Program, cores: int) -> None:
    assert isinstance(program.executable, GpuProgram)
    manifest = program.executable.manifest
    assert manifest.target == GB10
    streams = {k.name for k in manifest.kernels if k.how == "stream"}
    assert len(streams) >= 4
    for kernel in manifest.kernels:
        assert kernel.shared_bytes <= BLOCK_BYTES, kernel.name
    grids = {x.kernel: int(x.grid) for x in manifest.launches if x.kernel in streams}
    assert grids.keys() == streams
    assert all(grid <= cores or grid % cores == 0 for grid in grids.values()), grids


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("name", [*STEPS, *full_layers()])
def test_the_schedule_of_gb10(name: str, batch: int) -> None:
    if (why := not_as_gb10(this_platform())) is not None:
        pytest.skip(why)
    layer = (layers() | full_layers())[name]
    program = program_of(f"gb10/{name}/step", lambda on: step_entry(layer, as_gb10(on)))
    assert_within_gb10(program, load_target(GB10).cores)
    head = "skip" if layer.size == "full" else "single"
    assert_right(layer, program, batch, "ragged", seed=batch, head=head)
