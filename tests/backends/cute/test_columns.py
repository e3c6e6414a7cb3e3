"""Rows and columns beside dealt tiles, and statistics of columns: where they live, and what they are."""

from __future__ import annotations

import re

import numpy as np
import pytest

import pypto_models.language as pl
from backends.cute.layouts import THREADS, Columns, Dealt
from backends.gpu.module import KernelSource

from . import lockstep
from .support import module_of

BARRIER = "cute.arch.sync_threads()"
DEPTH, WIDTH, COLUMNS, STEPS = 128, 32, 64, 3


def kernel_of(kernel: pl.Kernel, **constants: object) -> KernelSource:
    (found,) = module_of(kernel, **constants).kernels
    return found


def text_of(kernel: KernelSource) -> str:
    """Without the launcher, of which Python knows nothing."""
    return kernel.text.split("@cute.jit\ndef launch_")[0]


# ------------------------------------------------------------------------------------------- layouts
@pytest.mark.parametrize("shape", [(128, 32), (128, 128), (16, 48), (3, 256), (16, 64), (2, 24), (8, 2048)])
@pytest.mark.parametrize("longest", [1, 4, 8])
def test_every_element_of_a_dealt_tile_is_some_thread_s(shape: tuple[int, int], longest: int) -> None:
    dealt = Dealt.of(shape, longest)
    if dealt is None:  # too many registers
        assert shape[0] * shape[1] > 64 * THREADS
        return
    tid = np.arange(THREADS)
    found: list[tuple[int, int]] = []
    for i in range(dealt.registers):
        row, column = (eval(x, {"tid": tid, "Int32": int}) + 0 * tid for x in dealt.coordinates(str(i)))
        there = eval(dealt.guard.format(r="row", c="column")) if dealt.guard else tid >= 0
        found += zip(row[there].tolist(), column[there].tolist(), strict=True)
        assert (row == eval(dealt.row(str(eval(dealt.row_of(str(i))))))).all()
        if dealt.stays:
            assert (column == eval(Columns(dealt).column(str(i % dealt.run)))).all()
    assert sorted(found) == [(r, c) for r in range(shape[0]) for c in range(shape[1])]


def test_one_thread_leads_for_each_column() -> None:
    dealt = Dealt.of((128, 32), 4)
    assert dealt is not None and dealt.stays
    row = Columns(dealt)
    leaders = [tid for tid in range(THREADS) if eval(row.leads, {"tid": tid})]
    columns = [eval(row.column(str(n)), {"tid": tid}) for tid in leaders for n in range(row.run)]
    assert sorted(columns) == list(range(32))


# ------------------------------------------------------------------------------------------- the values
HOW = 0
STATISTICS = ("sum", "max", "min")


@pl.jit
def of_columns(
    x: pl.Tensor[[DEPTH, COLUMNS], pl.FP32],
    live: pl.Tensor[[1], pl.INT32],
    y: pl.Out[pl.Tensor[[1, COLUMNS], pl.FP32]],
):
    """A statistic of the columns of x, of its first `live` rows."""
    for b in pl.spmd(COLUMNS // WIDTH, name_hint="of_columns"):
        rows = pl.cast(pl.read(live, [0]), pl.INDEX)
        tile = pl.slice(x, [DEPTH, WIDTH], [0, b * WIDTH], valid_shape=[rows, WIDTH])
        if HOW == 0:
            row = pl.col_sum(tile)
        elif HOW == 1:
            row = pl.col_max(tile)
        else:
            row = pl.col_min(tile)
        pl.assemble(y, row, [0, b * WIDTH])


SHAPES = [(128, 32), (128, 64), (128, 128), (64, 256), (32, 8), (16, 16), (3, 128), (256, 2)]


@pytest.mark.parametrize(
    ("depth", "width", "how"),
    [*((*s, "sum") for s in SHAPES), (128, 32, "max"), (128, 32, "min"), (64, 256, "max")],
)
def test_statistics_of_columns_are_right(depth: int, width: int, how: str) -> None:
    """A thread shares its columns with lanes, warps, both or nobody."""
    kernel = kernel_of(of_columns, DEPTH=depth, WIDTH=width, HOW=STATISTICS.index(how), COLUMNS=2 * width)
    x = np.random.default_rng(0).standard_normal((depth, 2 * width)).astype(np.float32)
    for live in (depth, depth // 2 + 1):
        y = np.full(2 * width, np.nan, np.float32)
        given = {"x": x.ravel(), "live": np.array([live]), "y": y}
        barriers = lockstep.run(text_of(kernel), kernel.name, 2, *(given[n] for n, _ in kernel.parameters))
        expected = getattr(np, how)(x[:live].astype(np.float64), axis=0)
        assert np.abs(y - expected).max() < (2e-5 if how == "sum" else 1e-7)
        assert barriers <= 2  # one for each tile


CARRIED = 0


@pl.jit
def rows_carried(
    x: pl.Tensor[[DEPTH, COLUMNS], pl.FP32],
    r: pl.Tensor[[2, COLUMNS], pl.FP32],
    n: pl.Tensor[[1], pl.INT32],
    y: pl.Out[pl.Tensor[[2, COLUMNS], pl.FP32]],
):
    """Rows that a loop carries or a branch merges, some from memory and some of a statistic."""
    for _ in pl.spmd(1, name_hint="rows_carried"):
        count = pl.cast(pl.read(n, [0]), pl.INDEX)
        a = pl.slice(r, [1, COLUMNS], [0, 0])
        b = pl.slice(r, [1, COLUMNS], [1, 0])
        if CARRIED == 0:
            for j in pl.range(count):
                a = pl.add(b, pl.col_sum(pl.slice(x, [32, COLUMNS], [j * 32, 0])))
        elif CARRIED == 1:
            for j in pl.range(count):
                total = pl.add(a, pl.col_sum(pl.slice(x, [32, COLUMNS], [j * 32, 0])))
                a = b
                b = total
        else:
            if count > 1:
                a = pl.col_sum(pl.slice(x, [32, COLUMNS], [0, 0]))
        pl.assemble(y, a, [0, 0])
        pl.assemble(y, b, [1, 0])


@pytest.mark.parametrize("trips", [0, 1, 2, 4])
@pytest.mark.parametrize("carried", [0, 1, 2], ids=["next", "swapped", "merged"])
def test_a_row_may_come_from_memory_or_from_a_statistic(carried: int, trips: int) -> None:
    kernel = kernel_of(rows_carried, CARRIED=carried, COLUMNS=64, DEPTH=128)
    random = np.random.default_rng(1)
    x, r = (random.standard_normal((h, 64)).astype(np.float32) for h in (128, 2))
    y = np.full((2, 64), np.nan, np.float32)
    given = {"x": x.ravel(), "r": r.ravel(), "n": np.array([trips]), "y": y.reshape(-1)}
    lockstep.run(text_of(kernel), kernel.name, 1, *(given[n] for n, _ in kernel.parameters))
    a, b = r.astype(np.float64)
    sums = x.astype(np.float64).reshape(4, 32, 64).sum(1)
    for j in range(trips if carried < 2 else 0):
        a, b = (b + sums[j], b) if carried == 0 else (b, a + sums[j])
    if carried == 2 and trips > 1:
        a = sums[0]
    assert np.abs(y - [a, b]).max() < 2e-5


@pl.jit
def walk(
    keys: pl.Tensor[[STEPS * DEPTH, 1], pl.FP32],
    values: pl.Tensor[[STEPS, 64], pl.BF16],
    starts: pl.Tensor[[1], pl.INT32],
    state: pl.InOut[pl.Tensor[[DEPTH, 64], pl.FP32]],
    y: pl.Out[pl.Tensor[[STEPS, 64], pl.BF16]],
):
    """state += key (value - state^T key)^T, and state^T key, for as many steps as `starts` says."""
    for b in pl.spmd(64 // WIDTH, name_hint="walk"):
        memory = pl.slice(state, [DEPTH, WIDTH], [0, b * WIDTH])
        steps = pl.min(pl.cast(pl.read(starts, [0]), pl.INDEX), STEPS)
        for j in pl.range(steps):
            key = pl.slice(keys, [DEPTH, 1], [j * DEPTH, 0])
            value = pl.cast(pl.slice(values, [1, WIDTH], [j, b * WIDTH]), pl.FP32)
            found = pl.col_sum(pl.row_expand_mul(memory, key))
            memory = pl.add(memory, pl.col_expand_mul(pl.row_expand(memory, key), pl.sub(value, found)))
            pl.assemble(state, memory, [0, b * WIDTH])
            after = pl.col_sum(pl.row_expand_mul(memory, key))
            pl.assemble(y, pl.cast(after, pl.BF16, mode="rint"), [j, b * WIDTH])


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("width", [16, 32, 64])
def test_what_is_loaded_beside_a_tile_is_right(width: int, steps: int) -> None:
    rng = np.random.default_rng(1)
    keys = (rng.standard_normal((steps, DEPTH)) / DEPTH**0.5).astype(np.float32)
    values = np.array([[lockstep.bfloat16(v) for v in row] for row in rng.standard_normal((steps, 64))])
    state = rng.standard_normal((DEPTH, 64)).astype(np.float32)
    s, expected = state.astype(np.float64), []
    for key, value in zip(keys.astype(np.float64), values, strict=True):
        s = s + np.outer(key, value - s.T @ key)
        expected.append(s.T @ key)
    kernel = kernel_of(walk, WIDTH=width, STEPS=steps)
    y = np.full(steps * 64, np.nan, np.float32)
    flat = state.ravel().copy()
    given = {
        "keys": keys.ravel(),
        "values": values.ravel(),
        "starts": np.array([steps]),
        "state": flat,
        "y": y,
    }
    lockstep.run(text_of(kernel), kernel.name, 64 // width, *(given[n] for n, _ in kernel.parameters))
    assert np.abs(flat.reshape(DEPTH, 64) - s).max() < 1e-5
    assert np.abs(y.reshape(steps, 64) - np.array(expected)).max() < 2**-8 * np.abs(expected).max() + 1e-5


# ------------------------------------------------------------------------------------------- the text
def test_all_loads_of_a_trip_are_under_way_before_its_first_barrier_and_made_once() -> None:
    text = text_of(kernel_of(walk))
    trip = text[text.index(" for j in ") :]
    before, behind = trip.split(BARRIER, 1)
    for tensor in ("keys", "values"):
        assert re.search(rf"\b{tensor}\b", before) and not re.search(rf"\b{tensor}\b", behind)


def test_the_threads_of_a_block_meet_once_for_each_statistic() -> None:
    text = text_of(kernel_of(walk))
    assert text.count(BARRIER) == 3  # and once behind the loads: the next trip writes what this one reads


def test_a_loop_of_at_most_one_trip_is_a_branch() -> None:
    assert " for j in " in text_of(kernel_of(walk, STEPS=2))
    once = text_of(kernel_of(walk, STEPS=1))
    assert " for j in " not in once and "if Int32(0) < Int32(steps):" in once
