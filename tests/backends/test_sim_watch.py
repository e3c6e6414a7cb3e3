"""Races between blocks, hazards between regions, and random legal orders."""

from __future__ import annotations

import pytest
import torch

import pypto_models.language as pl
from backends.sim import Machine
from backends.sim.order import shuffled
from pypto_models import UserError, compile
from pypto_models.compile import lower_for
from pypto_models.ir.nodes import Region
from pypto_models.ir.rewrite import walk
from pypto_models.passes.grid import suspects
from pypto_models.target import load_target

COLS = 64
N = pl.dynamic("N")


@pl.jit
def overlapping_stores(x: pl.Tensor[[64, COLS], pl.FP32], y: pl.Out[pl.Tensor[[64, COLS], pl.FP32]]):
    for b in pl.spmd(4, name_hint="shift"):
        tile = pl.slice(x, [16, COLS], [b * 16, 0])
        pl.assemble(y, tile, [b * 12, 0])
    with pl.at(level=pl.Level.CORE_GROUP):
        pl.assemble(y, pl.slice(x, [16, COLS], [48, 0]), [48, 0])


@pl.jit
def neighbour_read(y: pl.InOut[pl.Tensor[[64, COLS], pl.FP32]]):
    for b in pl.spmd(4, name_hint="smooth"):
        row = pl.min(b * 16 + 8, 48)
        pl.assemble(y, pl.slice(y, [16, COLS], [row, 0]), [b * 16, 0])


@pl.jit
def scatter(
    x: pl.Tensor[[N, COLS], pl.FP32],
    at: pl.Tensor[[N], pl.INT32],
    y: pl.InOut[pl.Tensor[[64, COLS], pl.FP32]],
):
    for b in pl.spmd(pl.tensor.dim(x, 0), name_hint="scatter"):
        row = pl.cast(pl.read(at, [b]), pl.INDEX)
        pl.assemble(y, pl.slice(x, [1, COLS], [b, 0]), [row, 0])


@pl.jit
def scatter_add(
    x: pl.Tensor[[N, COLS], pl.FP32],
    at: pl.Tensor[[N], pl.INT32],
    y: pl.InOut[pl.Tensor[[64, COLS], pl.FP32]],
):
    for b in pl.spmd(pl.tensor.dim(x, 0), name_hint="scatter"):
        row = pl.cast(pl.read(at, [b]), pl.INDEX)
        pl.assemble(y, pl.slice(x, [1, COLS], [b, 0]), [row, 0], atomic=pl.AtomicType.Add)


@pl.jit
def shared_scratch(x: pl.Tensor[[64, COLS], pl.FP32], y: pl.Out[pl.Tensor[[64, COLS], pl.FP32]]):
    scratch = pl.create_tensor([16, COLS], pl.FP32)
    for b in pl.parallel(4):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="fill"):
            pl.assemble(scratch, pl.slice(x, [16, COLS], [b * 16, 0]), [0, 0])
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="drain"):
            pl.assemble(y, pl.slice(scratch, [16, COLS], [0, 0]), [b * 16, 0])


@pl.jit
def own_scratch(x: pl.Tensor[[64, COLS], pl.FP32], y: pl.Out[pl.Tensor[[64, COLS], pl.FP32]]):
    for b in pl.parallel(4):
        scratch = pl.create_tensor([16, COLS], pl.FP32)
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="fill"):
            pl.assemble(scratch, pl.slice(x, [16, COLS], [b * 16, 0]), [0, 0])
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="drain"):
            pl.assemble(y, pl.slice(scratch, [16, COLS], [0, 0]), [b * 16, 0])


@pl.jit
def digits(y: pl.Out[pl.Tensor[[64, COLS], pl.FP32]]):
    for b in pl.spmd(16, name_hint="tiles"):
        tile = pl.full([16, 16], pl.FP32, 1.0)
        pl.assemble(y, tile, [b // 4 * 16, b % 4 * 16])


@pl.jit
def write_after_read(x: pl.InOut[pl.Tensor[[32, COLS], pl.FP32]], y: pl.Out[pl.Tensor[[32, COLS], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="reader"):
        pl.assemble(y, pl.slice(x, [32, COLS], [0, 0]), [0, 0])
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="writer"):
        pl.assemble(x, pl.full([16, COLS], pl.FP32, 0.0), [16, 0])


@pl.jit
def ordered_by_deps(x: pl.InOut[pl.Tensor[[32, COLS], pl.FP32]], y: pl.Out[pl.Tensor[[32, COLS], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="reader") as read_done:
        pl.assemble(y, pl.slice(x, [32, COLS], [0, 0]), [0, 0])
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="writer", deps=[read_done]):
        pl.assemble(x, pl.full([16, COLS], pl.FP32, 0.0), [16, 0])


@pl.jit
def pipeline_of_regions(x: pl.Tensor[[64, COLS], pl.FP32], y: pl.Out[pl.Tensor[[64, COLS], pl.FP32]]):
    low = pl.create_tensor([64, COLS], pl.FP32)
    high = pl.create_tensor([64, COLS], pl.FP32)
    for b in pl.spmd(4, name_hint="low"):
        pl.assemble(low, pl.mul(pl.slice(x, [16, COLS], [b * 16, 0]), 2.0), [b * 16, 0])
    for b in pl.spmd(4, name_hint="high"):
        pl.assemble(high, pl.mul(pl.slice(x, [16, COLS], [b * 16, 0]), 3.0), [b * 16, 0])
    for b in pl.spmd(4, name_hint="sum"):
        a = pl.slice(low, [16, COLS], [b * 16, 0])
        pl.assemble(y, pl.add(a, pl.slice(high, [16, COLS], [b * 16, 0])), [b * 16, 0])


def x64() -> torch.Tensor:
    return torch.randn(64, COLS, generator=torch.Generator().manual_seed(0))


def names(kernel: pl.Kernel) -> set[str]:
    graph = lower_for(kernel, (), load_target("a2a3")).graph
    return {t.name for tensors in suspects(graph).values() for t in tensors}


# ------------------------------------------------------------------------------------------ static proof
def test_blocks_that_tile_a_tensor_are_proved_apart() -> None:
    assert names(digits) == set()
    assert names(pipeline_of_regions) == set()
    assert names(own_scratch) == set()


def test_what_is_not_proved_is_watched() -> None:
    assert names(overlapping_stores) == {"y"}
    assert names(neighbour_read) == {"y"}
    assert names(scatter) == {"y"}
    assert names(shared_scratch) == {"scratch"}


# ------------------------------------------------------------------------------------------ races
def test_two_blocks_that_write_one_row() -> None:
    with pytest.raises(
        UserError, match=r"block 0 \(writes\) and block 1 \(writes\) of region 'shift' touch y"
    ) as e:
        compile(overlapping_stores)(x64(), torch.empty(64, COLS))
    assert e.value.fields["index"] == [12, 0]
    assert e.value.span.excerpt().count("pl.assemble(y, tile, [b * 12, 0])") == 1
    assert sum("writes y" in note for note in e.value.notes) == 2


def test_a_block_that_reads_what_another_writes() -> None:
    with pytest.raises(UserError, match=r"of region 'smooth' touch y[\s\S]*reads y[\s\S]*") as e:
        compile(neighbour_read)(x64())
    assert any(note.startswith("writes y") for note in e.value.notes)


def test_a_data_dependent_overlap_is_found_when_it_happens() -> None:
    x = x64()[:3]
    apart = torch.tensor([5, 9, 40], dtype=torch.int32)
    y = torch.zeros(64, COLS)
    compile(scatter)(x, apart, y)
    assert torch.equal(y[apart.long()], x)
    with pytest.raises(
        UserError, match=r"block 0 \(writes\) and block 2 \(writes\) of region 'scatter' touch y"
    ):
        compile(scatter)(x, torch.tensor([5, 9, 5], dtype=torch.int32), torch.zeros(64, COLS))


def test_atomic_adds_may_meet() -> None:
    y = torch.zeros(64, COLS)
    x = x64()[:3]
    compile(scatter_add)(x, torch.tensor([5, 9, 5], dtype=torch.int32), y)
    assert torch.equal(y[5], x[0] + x[2])


def test_iterations_of_a_parallel_loop_that_share_scratch() -> None:
    with pytest.raises(
        UserError, match=r"iteration 0 \(\w+\) and iteration 1 \(\w+\) of the parallel loop on line \d+"
    ):
        compile(shared_scratch)(x64(), torch.empty(64, COLS))


def test_scratch_of_its_own_for_every_iteration_is_clean() -> None:
    x, y = x64(), torch.empty(64, COLS)
    compile(own_scratch)(x, y)
    assert torch.equal(x, y)


# ------------------------------------------------------------------------------------------ hazards
def test_a_write_after_read_that_the_run_time_does_not_order() -> None:
    arguments = (torch.randn(32, COLS), torch.empty(32, COLS))
    with pytest.raises(
        UserError, match=r"WAR hazard: region 'writer' touches x\[16, 0\] after region 'reader'"
    ) as e:
        compile(write_after_read, platform="a2a3sim")(*arguments)
    assert "a2a3 does not order them" in e.value.message
    compile(write_after_read, platform="h200sim")(*arguments)  # a GPU runs its kernels in order


def test_deps_order_it() -> None:
    x, y = torch.randn(32, COLS), torch.empty(32, COLS)
    before = x.clone()
    compile(ordered_by_deps, platform="a2a3sim")(x, y)
    assert torch.equal(y, before) and torch.equal(x[16:], torch.zeros(16, COLS))


# ------------------------------------------------------------------------------------------ random orders
@pytest.mark.parametrize("kernel", [pipeline_of_regions, own_scratch], ids=lambda k: k.name)
def test_random_orders_change_no_bit(kernel: pl.Kernel) -> None:
    x, expected = x64(), torch.empty(64, COLS)
    compile(kernel)(x, expected)
    for seed in range(8):
        y = torch.empty(64, COLS)
        compile(kernel, backend_options={"schedule": "random", "seed": seed})(x, y)
        assert torch.equal(y, expected)


def test_a_random_order_is_another_order_and_keeps_dependencies() -> None:
    compiled = lower_for(pipeline_of_regions, (), load_target("a2a3"))
    orders = set()
    for seed in range(16):
        function = shuffled(compiled.function, compiled.graph, seed)
        orders.add(tuple(r.name for r in walk(function.body) if isinstance(r, Region)))
    assert orders == {("low", "high", "sum"), ("high", "low", "sum")}


def test_a_random_order_shows_a_missing_dependency() -> None:
    """What only program order hides: with the hazard's two regions swapped, the reader sees the zeros."""
    compiled = lower_for(write_after_read, (), load_target("a2a3"))
    results = set()
    for seed in range(8):
        x, y = torch.ones(32, COLS), torch.empty(32, COLS)
        machine = Machine(compiled.function, compiled.graph, "random", seed)
        try:
            machine.run({"x": x, "y": y})
        except UserError as error:
            assert "WAR hazard" in error.message
            results.add("reported")
        else:
            results.add("swapped" if float(y[16:].sum()) == 0 else "kept")
    assert results == {"reported", "swapped"}


def test_an_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="schedule is 'fast'; use one of program, random"):
        compile(digits, backend_options={"schedule": "fast"})
