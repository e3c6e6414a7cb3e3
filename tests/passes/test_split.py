"""The lanes of mixed regions: which tiles are halved, and which ops forbid it."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pypto_models.language as pl
from pypto_models.errors import UserError
from pypto_models.ir.nodes import Function, Region
from pypto_models.ir.rewrite import defs, inner_defs, walk
from pypto_models.ir.types import SplitMode, TileType
from pypto_models.passes import infer_memory, split
from pypto_models.target import load_target

from .kernels import LAYER, fa_fused, gate_up_silu, rmsnorm

A2A3 = load_target("a2a3")
MODES = {"UP_DOWN": SplitMode.UP_DOWN, "LEFT_RIGHT": SplitMode.LEFT_RIGHT, "NONE": SplitMode.NONE}


def divided(kernel: pl.Kernel, mode: str | None = None) -> Function:
    """The kernel after the pass; ``mode`` replaces the one of its regions."""
    fn = infer_memory.run(pl.lower(kernel), A2A3)
    if mode is not None:
        fn = replace(fn, body=tuple(with_mode(s, MODES[mode]) for s in fn.body))
    return split.run(fn, A2A3)


def with_mode(s: object, mode: SplitMode) -> object:
    return replace(s, options=replace(s.options, split=mode)) if isinstance(s, Region) else s


def lanes(fn: Function) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """Space, split and lane shape of every tile by name."""
    return {
        v.name: (str(v.type.space and v.type.space.name), v.type.split.name, v.type.lane_shape())
        for s in walk(fn.body)
        for v in (*inner_defs(s), *defs(s))
        if isinstance(v.type, TileType)
    }


def test_up_down_halves_the_rows_of_vec_tiles() -> None:
    got = lanes(divided(gate_up_silu))
    assert got["gate_vec"] == ("Vec", "UP_DOWN", (8, 256))
    assert got["y"] == ("Vec", "UP_DOWN", (8, 256))
    assert got["gate"] == ("Acc", "NONE", (16, 256))  # the cube unit works on whole tiles
    assert got["xk"] == ("Mat", "NONE", (16, 256))


def test_left_right_halves_the_columns() -> None:
    got = lanes(divided(gate_up_silu, "LEFT_RIGHT"))
    assert got["gate_vec"] == ("Vec", "LEFT_RIGHT", (16, 128))


def test_attention_splits_by_rows_only() -> None:
    got = lanes(divided(fa_fused, "UP_DOWN"))
    assert got["mi"] == ("Vec", "UP_DOWN", (8, 1))
    assert got["p"] == ("Vec", "UP_DOWN", (8, 128))
    assert got["p_mat"] == ("Mat", "NONE", (16, 128))  # joined again
    with pytest.raises(
        UserError,
        match=r"(?s)pl.row_max cannot run under SplitMode.LEFT_RIGHT: it reduces along the split axis "
        r"\(columns\).*mi = pl.row_max\(filled\).*fix: use pl.SplitMode.UP_DOWN",
    ):
        divided(fa_fused, "LEFT_RIGHT")


@pytest.mark.parametrize("mode", ["UP_DOWN", "LEFT_RIGHT"])
def test_pure_regions_are_left_alone(mode: str) -> None:
    fn = infer_memory.run(pl.lower(rmsnorm), A2A3)
    fn = replace(fn, body=tuple(with_mode(s, MODES[mode]) for s in fn.body))
    assert split.run(fn, A2A3) is fn


def test_no_split_changes_nothing() -> None:
    fn = infer_memory.run(pl.lower(fa_fused), A2A3)
    assert split.run(fn, A2A3) is fn


@pytest.mark.parametrize("kernel", LAYER, ids=lambda k: k.__name__)
def test_running_twice_is_running_once(kernel: pl.Kernel) -> None:
    once = divided(kernel)
    assert split.run(once, A2A3) is once


# ------------------------------------------------------------------------------------------------ errors
@pl.jit
def bias_column_sum(
    x: pl.Tensor[[16, 16], pl.BF16],
    w: pl.Tensor[[16, 32], pl.BF16],
    bias: pl.Tensor[[1, 32], pl.FP32],
    y: pl.Out[pl.Tensor[[1, 32], pl.FP32]],
):
    for n in pl.spmd(1, optimizations=[pl.split(pl.SplitMode.UP_DOWN)]):
        product = pl.matmul(pl.slice(x, [16, 16], [0, 0]), pl.slice(w, [16, 32], [0, n]), out_dtype=pl.FP32)
        scaled = pl.col_expand_mul(product, pl.slice(bias, [1, 32], [0, 0]))
        y = pl.assemble(y, pl.col_sum(scaled), [0, 0])
    return y


def test_a_row_operand_stays_whole_and_a_column_sum_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"(?s)pl.col_sum cannot run under SplitMode.UP_DOWN: it reduces along the split axis \(rows\).*"
        r"fix: use pl.SplitMode.LEFT_RIGHT",
    ):
        divided(bias_column_sum)
    got = lanes(divided(bias_column_sum, "LEFT_RIGHT"))
    assert got["scaled"][1:] == ("LEFT_RIGHT", (16, 16))
    assert got["col_sum"][1:] == ("LEFT_RIGHT", (1, 16))


@pl.jit
def row_norm(
    x: pl.Tensor[[16, 16], pl.BF16],
    w: pl.Tensor[[16, 32], pl.BF16],
    y: pl.Out[pl.Tensor[[1, 16], pl.FP32]],
):
    for n in pl.spmd(1, optimizations=[pl.split(pl.SplitMode.UP_DOWN)]):
        product = pl.matmul(pl.slice(x, [16, 16], [0, 0]), pl.slice(w, [16, 32], [0, n]), out_dtype=pl.FP32)
        y = pl.assemble(y, pl.reshape(pl.row_sum(product), [1, 16]), [0, 0])
    return y


def test_a_reshape_across_the_lanes_is_refused() -> None:
    """row_sum and then a reshape to a row: the pattern that gave half-wrong norms elsewhere."""
    with pytest.raises(
        UserError,
        match=r"(?s)pl.reshape cannot run under SplitMode.UP_DOWN: it moves elements of \[16, 1\] FP32 "
        r"across the lanes of \[1, 16\] FP32.*fix: use pl.SplitMode.NONE",
    ):
        divided(row_norm)


@pl.jit
def added_row(
    x: pl.Tensor[[16, 16], pl.BF16],
    w: pl.Tensor[[16, 32], pl.BF16],
    bias: pl.Tensor[[1, 32], pl.FP32],
    y: pl.InOut[pl.Tensor[[1, 32], pl.FP32]],
    z: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
):
    for n in pl.spmd(1, optimizations=[pl.split(pl.SplitMode.UP_DOWN)]):
        product = pl.matmul(pl.slice(x, [16, 16], [0, 0]), pl.slice(w, [16, 32], [0, n]), out_dtype=pl.FP32)
        row = pl.exp(pl.slice(bias, [1, 32], [0, 0]))
        z = pl.assemble(z, pl.col_expand_add(product, row), [0, 0])
        y = pl.assemble(y, row, [0, 0], atomic=pl.AtomicType.Add)
    return z


def test_a_whole_tile_is_not_added_by_both_lanes() -> None:
    with pytest.raises(
        UserError,
        match=r"(?s)SplitMode.UP_DOWN: both lanes hold the whole tile, .*fix: use pl.SplitMode.LEFT_RIGHT",
    ):
        divided(added_row)
    assert lanes(divided(added_row, "LEFT_RIGHT"))["row"][1:] == ("LEFT_RIGHT", (1, 16))
