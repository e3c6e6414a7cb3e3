"""Grids that must be resident: too large a grid is refused by name, when compiling or at the launch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import pypto_models.language as pl
from pypto_models import compile
from pypto_models.check import check_kernel
from pypto_models.compile import compile_function, with_function
from pypto_models.errors import Diag, UserError
from pypto_models.ir.expr import Const
from pypto_models.ir.nodes import Function, Region, Unit
from pypto_models.ir.rewrite import rewrite_regions, walk
from pypto_models.passes.residency import resident_blocks
from pypto_models.target import load_target

N = pl.dynamic("N")
BLOCKS = 4
SYNC = True


@pl.jit
def vector(x: pl.InOut[pl.Tensor[[BLOCKS, 64], pl.FP32]]):
    for b in pl.spmd(BLOCKS, name_hint="bump", sync_start=SYNC):
        x[b : b + 1, :] = pl.add(x[b : b + 1, :], 1.0)


@pl.jit
def vector_rows(x: pl.InOut[pl.Tensor[[N, 64], pl.FP32]]):
    for b in pl.spmd(pl.tensor.dim(x, 0), name_hint="bump", sync_start=True):
        x[b : b + 1, :] = pl.add(x[b : b + 1, :], 1.0)


@pl.jit
def product(
    x: pl.Tensor[[16, 64], pl.FP32],
    w: pl.Tensor[[64, BLOCKS * 16], pl.FP32],
    y: pl.Out[pl.Tensor[[16, BLOCKS * 16], pl.FP32]],
):
    for b in pl.spmd(BLOCKS, name_hint="product", sync_start=True):
        y[:, b * 16 : b * 16 + 16] = pl.matmul(x[:, :], w[:, b * 16 : b * 16 + 16])


@pl.jit
def mixed(
    x: pl.Tensor[[16, 64], pl.FP32],
    w: pl.Tensor[[64, BLOCKS * 16], pl.FP32],
    y: pl.Out[pl.Tensor[[16, BLOCKS * 16], pl.FP32]],
):
    for b in pl.spmd(BLOCKS, name_hint="mixed", sync_start=True):
        z = pl.matmul(x[:, :], w[:, b * 16 : b * 16 + 16])
        y[:, b * 16 : b * 16 + 16] = pl.add(z, 1.0)


def refused(blocks: int, platform: str, kernel: pl.Kernel) -> UserError:
    with pytest.raises(UserError, match="starts its .* blocks at once") as error:
        compile(kernel, platform=platform, constants={"BLOCKS": blocks})
    return error.value


# What fits follows from the target's file: 24 cores of two lanes, 36 of two lanes, 48 and 132 cores.
FITS = [
    ("a2a3sim", vector, 48), ("a2a3sim", product, 24), ("a2a3sim", mixed, 24),
    ("a5sim", vector, 72), ("a5sim", mixed, 36),
    ("gb10sim", vector, 48), ("h200sim", mixed, 132),
]  # fmt: skip


@pytest.mark.parametrize(("platform", "kernel", "fit"), FITS, ids=[f"{p}-{k.name}" for p, k, _ in FITS])
def test_a_grid_of_one_block_too_many_is_refused(platform: str, kernel: pl.Kernel, fit: int) -> None:
    compile(kernel, platform=platform, constants={"BLOCKS": fit})
    error = refused(fit + 1, platform, kernel)
    assert error.diag is Diag.RESIDENCY
    assert (error.fields["blocks"], error.fields["fit"]) == (fit + 1, fit)


def test_the_error_names_line_numbers_and_fix() -> None:
    text = str(refused(49, "a2a3sim", vector))
    line = vector.span.line + 1
    assert f"test_residency.py:{line}:" in text
    assert "error[residency]: region 'bump' starts its 49 blocks at once (sync_start=True), and a2a3" in text
    assert "runs at most 48: 2 blocks, one for each vector lane, on each of 24 cores" in text
    assert "fix: launch 48 blocks or fewer and loop over the work in each" in text
    assert "and a2a3 runs at most 24: one block on each of 24 cores" in str(refused(25, "a2a3sim", mixed))


def test_check_lists_it_without_compiling() -> None:
    report = check_kernel(mixed, load_target("a2a3"), {"BLOCKS": 25})
    assert [e.code for e in report.errors] == ["residency"]
    assert check_kernel(mixed, load_target("a2a3"), {"BLOCKS": 24}).errors == ()


def test_a_grid_of_any_size_runs_without_sync_start() -> None:
    program = compile(vector, constants={"BLOCKS": 500, "SYNC": False})
    x = torch.zeros(500, 64)
    program(x)
    assert torch.equal(x, torch.ones(500, 64))


@pytest.mark.parametrize("schedule", ["program", "random"])
def test_a_run_time_grid_is_checked_at_the_launch(schedule: str) -> None:
    program = compile(vector_rows, backend_options={"schedule": schedule})
    x = torch.zeros(48, 64)
    program(x)
    assert torch.equal(x, torch.ones(48, 64))
    with pytest.raises(
        UserError, match=r"region 'bump' starts its 49 blocks at once.*a2a3 runs at most 48"
    ) as e:
        program(torch.zeros(49, 64))
    assert e.value.span.line == vector_rows.span.line + 1
    compile(vector_rows, platform="a5sim")(torch.zeros(49, 64))  # 72 fit there


def test_the_simulator_refuses_what_no_pass_has_seen() -> None:
    """A fault that makes the grid too large after the checks of the compiler."""
    program = compile(vector)
    function = compile(vector, constants={"BLOCKS": 48}).compiled.stages[0][1]
    wide = with_function(program, grown(function, 49))
    with pytest.raises(UserError, match="starts its 49 blocks at once"):
        wide(torch.zeros(48, 64))
    with pytest.raises(UserError, match="starts its 49 blocks at once"):
        compile_function(grown(function, 49))


def grown(function: Function, blocks: int) -> Function:

    def grow(region: Region) -> Region:
        return replace(region, count=Const(blocks))

    return replace(function, body=rewrite_regions(function.body, grow))


def test_the_unit_of_a_region_decides_what_it_takes() -> None:
    target = load_target("a2a3")
    for kernel, unit, fit in ((vector, Unit.VEC, 48), (product, Unit.CUBE, 24), (mixed, Unit.MIXED, 24)):
        (region,) = (s for s in walk(compile(kernel).compiled.function.body) if isinstance(s, Region))
        assert (region.unit, resident_blocks(region, target)) == (unit, fit)


@pl.jit
def undecided(x: pl.InOut[pl.Tensor[[N, 64], pl.FP32]]):
    for b in pl.spmd(4, sync_start=pl.tensor.dim(x, 0)):
        x[b : b + 1, :] = pl.add(x[b : b + 1, :], 1.0)


@pl.jit
def barrier(x: pl.InOut[pl.Tensor[[4, 64], pl.FP32]]):
    for b in pl.spmd(4, sync_start=True):
        x[b : b + 1, :] = pl.add(x[b : b + 1, :], 1.0)
        pl.system.syncall()


def test_sync_start_is_true_or_false() -> None:
    with pytest.raises(UserError, match=r"sync_start=: got [\s\S]*fix: use True or False"):
        pl.lower(undecided)


def test_a_barrier_between_blocks_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"pl\.system\.syncall\(\)[\s\S]*fix: end the region there"):
        pl.lower(barrier)
