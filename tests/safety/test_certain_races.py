"""Races that follow from the indices alone are reported when compiling, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pypto_models.language as pl
from pypto_models import UserError, compile
from pypto_models.check import check_file, check_kernel
from pypto_models.target import load_target

STEP = 12
ROW = 0
N = pl.dynamic("N")


@pl.jit
def overlapping(x: pl.Tensor[[64, 64], pl.FP32], y: pl.Out[pl.Tensor[[64, 64], pl.FP32]]):
    for b in pl.spmd(4, name_hint="shift"):
        pl.assemble(y, pl.slice(x, [16, 64], [b * 16, 0]), [b * STEP, 0])


@pl.jit
def one_row(x: pl.Tensor[[64, 64], pl.FP32], y: pl.Out[pl.Tensor[[1, 64], pl.FP32]]):
    for b in pl.spmd(4, name_hint="same"):
        pl.assemble(y, pl.slice(x, [1, 64], [b, 0]), [0, 0])


@pl.jit
def neighbour(y: pl.InOut[pl.Tensor[[96, 64], pl.FP32]]):
    for b in pl.spmd(4, name_hint="smooth"):
        below = pl.slice(y, [16, 64], [b * 16 + ROW, 0])
        pl.assemble(y, pl.mul(below, 2.0), [b * 16 + 16, 0])


@pl.jit
def shared_scratch(x: pl.Tensor[[64, 64], pl.FP32], y: pl.Out[pl.Tensor[[64, 64], pl.FP32]]):
    scratch = pl.create_tensor([16, 64], pl.FP32)
    for b in pl.parallel(4):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="fill"):
            pl.assemble(scratch, pl.slice(x, [16, 64], [b * 16, 0]), [0, 0])
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="drain"):
            pl.assemble(y, pl.slice(scratch, [16, 64], [0, 0]), [b * 16, 0])


@pl.jit
def guarded(x: pl.Tensor[[64, 64], pl.FP32], y: pl.Out[pl.Tensor[[64, 64], pl.FP32]]):
    for b in pl.spmd(4):
        if b % 2 == 0:
            pl.assemble(y, pl.slice(x, [16, 64], [b * 16, 0]), [b * 12, 0])


@pl.jit
def adds(x: pl.Tensor[[64, 64], pl.FP32], y: pl.InOut[pl.Tensor[[1, 64], pl.FP32]]):
    for b in pl.spmd(4):
        pl.assemble(y, pl.slice(x, [1, 64], [b, 0]), [0, 0], atomic=pl.AtomicType.Add)


@pl.jit
def adds_and_stores(x: pl.Tensor[[64, 64], pl.FP32], y: pl.InOut[pl.Tensor[[1, 64], pl.FP32]]):
    for b in pl.spmd(4, name_hint="sum"):
        if b == 0:
            pl.assemble(y, pl.slice(x, [1, 64], [b, 0]), [0, 0])
        else:
            pl.assemble(y, pl.slice(x, [1, 64], [b, 0]), [0, 0], atomic=pl.AtomicType.Add)


@pl.jit
def of_any_size(x: pl.Tensor[[N, 64], pl.FP32], y: pl.Out[pl.Tensor[[1, 64], pl.FP32]]):
    for b in pl.spmd(pl.tensor.dim(x, 0)):
        pl.assemble(y, pl.slice(x, [1, 64], [b, 0]), [0, 0])


def races(kernel: pl.Kernel, **constants: int) -> list[str]:
    return [w for w in compile(kernel, constants=constants).warnings if w.startswith("race")]


def test_two_blocks_that_write_one_row() -> None:
    (text,) = races(overlapping)
    line = overlapping.span.line + 2
    assert text.startswith(
        "race: block 0 and block 1 of region 'shift' touch y[12, 0]: write y[12 * b : +16, 0:64] at "
    )
    assert text.count(f"test_certain_races.py:{line}:") == 2
    assert races(overlapping, STEP=16) == []
    assert "block 0 and block 1 of region 'shift' touch y[15, 0]" in races(overlapping, STEP=15)[0]


def test_what_one_block_reads_and_another_writes() -> None:
    (text,) = races(neighbour)
    assert "block 1" in text and "read y[16 * b : +16" in text and "write y[16 * b + 16 : +16" in text
    assert races(neighbour, ROW=16) == []
    (text,) = races(neighbour, ROW=48)  # block 0 reads what block 2 writes
    assert "block 0 and block 2 of region 'smooth' touch y[48, 0]" in text


def test_one_row_for_all_and_one_scratch_for_all() -> None:
    assert "block 0 and block 1 of region 'same' touch y[0, 0]" in races(one_row)[0]
    (text,) = races(shared_scratch)
    assert "iteration 0 and iteration 1 of the loop around region 'fill' touch scratch[0, 0]" in text


@pytest.mark.parametrize("kernel", [guarded, adds, of_any_size], ids=lambda k: k.name)
def test_what_is_allowed_or_not_certain_is_no_finding(kernel: pl.Kernel) -> None:
    assert races(kernel) == []


@pytest.mark.parametrize(
    ("kernel", "shapes"),
    [(overlapping, (64, 64)), (one_row, (64, 1)), (neighbour, (96,)), (shared_scratch, (64, 64))],
    ids=lambda v: getattr(v, "name", None),
)
def test_each_of_them_is_an_error_when_it_runs(kernel: pl.Kernel, shapes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"(block|iteration) 0 .* and nothing orders them"):
        compile(kernel)(*(torch.ones(rows, 64) for rows in shapes))


def test_an_atomic_add_may_not_meet_a_plain_store() -> None:
    """Adds may meet each other only: a store that is not declared atomic is a race with them."""
    arguments = (torch.ones(64, 64), torch.zeros(1, 64))
    compile(adds)(*arguments)
    assert torch.equal(arguments[1], torch.full((1, 64), 4.0))
    with pytest.raises(UserError, match=r"block 0 \(writes\) and block 1 \(adds to\) of region 'sum'"):
        compile(adds_and_stores)(*arguments)


def test_check_lists_it() -> None:
    report = check_kernel(overlapping, load_target("a2a3"))
    assert [w.partition(":")[0] for w in report.warnings] == ["race"]


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("platform", ["a2a3", "h200"])
def test_the_examples_have_none(platform: str) -> None:
    files = sorted((ROOT / "examples").glob("*.py"))
    kernels = [k for f in files for k in check_file(f, load_target(platform)).kernels]
    assert len(kernels) >= 4
    assert [w for k in kernels for w in k.warnings if w.startswith("race")] == []
