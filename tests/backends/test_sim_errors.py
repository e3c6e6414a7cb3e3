"""Every mistake that the simulator finds names the op, the tensor, the place in it and the source line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import pypto_models.language as pl
from backends.sim import simulate
from pypto_models.errors import Diag, InternalError, UserError
from pypto_models.ir.expr import DimVar
from pypto_models.ir.nodes import Direction
from pypto_models.ir.types import FP32, INT32, ScalarType, TensorType
from pypto_models.language import lower

from .build import Builder, expr

ROWS = pl.dynamic("ROWS")
SOURCE = Path(__file__).read_text(encoding="utf-8").splitlines()


def at_line(marker: str) -> str:
    """``test_sim_errors.py:<line>`` of the line that ends in a comment, as a pattern."""
    (line,) = (i for i, text in enumerate(SOURCE, 1) if text.endswith(f"# {marker}"))
    return rf"test_sim_errors\.py:{line}:"


def fails(kernel: Any, marker: str, *words: str, **args: Any) -> UserError:
    """Run; the error is at the marked line and has these words, in this order."""
    pattern = at_line(marker) + "(.|\n)*" + "(.|\n)*".join(re.escape(w) for w in words)
    with pytest.raises(UserError, match=pattern) as caught:
        simulate(lower(kernel), args)
    return caught.value


# ------------------------------------------------------------------------------------------ bounds
@pl.jit
def past_the_batch(seq_lens: pl.Tensor[[ROWS], pl.INT32], out: pl.Out[pl.Tensor[[16], pl.INT32]]):
    for b in pl.spmd(16, name_hint="lanes"):
        n = pl.read(seq_lens, [b])  # read past the batch
        pl.write(out, [b], n)


def test_a_padded_lane_reads_past_the_run_time_batch() -> None:
    error = fails(
        past_the_batch, "read past the batch", "pl.read reads seq_lens[13] outside of its extents [13]",
        "in block 13 of region 'lanes'", seq_lens=torch.zeros(13, dtype=torch.int32),
        out=torch.zeros(16, dtype=torch.int32),
    )  # fmt: skip
    assert error.diag is Diag.BOUNDS


@pl.jit
def store_outside(
    x: pl.Tensor[[8, 16], pl.FP32], n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[ROWS, 16], pl.FP32]]
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="copy"):
        for i in pl.range(4):
            out = pl.assemble(out, pl.slice(x, [8, 16], [0, 0]), [n + i * 8, 0])  # store outside


@pytest.mark.parametrize(
    ("n", "place", "trip"), [(-1, "out[-1:7, 0:16]", "i = 0"), (0, "out[8:16, 0:16]", "i = 1")]
)
def test_a_store_outside_names_the_box_and_the_trip(n: int, place: str, trip: str) -> None:
    fails(
        store_outside, "store outside", f"pl.assemble writes {place} outside of its extents [12, 16]", trip,
        x=torch.zeros(8, 16), n=n, out=torch.zeros(12, 16),
    )  # fmt: skip


@pl.jit
def view_outside(
    x: pl.Tensor[[ROWS, 16], pl.FP32], n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[4, 16], pl.FP32]]
):
    page = pl.slice(x, [8, 16], [8, 0])  # take the page
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = pl.slice(page, [4, 16], [n, 0])  # load from the page


def test_a_load_outside_of_a_view_but_inside_of_its_tensor() -> None:
    fails(
        view_outside, "load from the page",
        "pl.slice reads a view of x[6:10, 0:16] outside of its extents [8, 16]",
        "the box starts at x[14, 0]; x is [32, 16]", x=torch.zeros(32, 16), n=6, out=torch.zeros(4, 16),
    )  # fmt: skip


def test_a_view_outside_of_its_tensor() -> None:
    fails(
        view_outside, "take the page", "pl.slice takes x[8:16, 0:16] outside of its extents [9, 16]",
        x=torch.zeros(9, 16), n=0, out=torch.zeros(4, 16),
    )  # fmt: skip


def test_a_load_that_touches_nothing_may_lie_anywhere() -> None:
    b = Builder()
    x = b.param("x", TensorType((DimVar("R"), 16), FP32))
    n = b.param("n", ScalarType(INT32))
    out = b.param("out", TensorType((DimVar("R"), 16), FP32), Direction.INOUT)
    with b.region():
        dead = b("load", x, (8, 16), (80, 0), valid_shape=(n, 16))
        b("store", out, b("exp", dead), (80, 0))
    given = torch.ones(8, 16)
    simulate(b.function(), {"x": torch.zeros(8, 16), "n": 0, "out": given})
    assert torch.equal(given, torch.ones(8, 16))
    with pytest.raises(UserError, match=r"x\[80, 0:16\] outside of its extents \[8, 16\]"):
        simulate(b.function(), {"x": torch.zeros(8, 16), "n": 1, "out": given})


# ------------------------------------------------------------------------------------------ never written
@pl.jit
def skipped_block(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    scratch = pl.create_tensor([8, 16], dtype=pl.FP32)
    for b in pl.spmd(3, name_hint="fill"):
        scratch[b * 2 : b * 2 + 2, :] = x[b * 2 : b * 2 + 2, :]
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="copy"):
        out[:, :] = pl.slice(scratch, [8, 16], [0, 0])  # read the hole


def test_a_hole_in_scratch_is_found_at_its_first_element() -> None:
    error = fails(
        skipped_block, "read the hole", "pl.slice reads scratch[6, 0], which was never written",
        "region 'copy'", x=torch.zeros(8, 16), out=torch.zeros(8, 16),
    )  # fmt: skip
    assert error.diag is Diag.UNINITIALISED


@pl.jit
def reads_out(out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    lower_half = pl.slice(out, [4, 16], [4, 0])
    with pl.at(level=pl.Level.CORE_GROUP):
        out[0:1, :] = pl.slice(lower_half, [1, 16], [2, 0])  # read the output


def test_an_out_tensor_holds_nothing_at_the_start() -> None:
    fails(reads_out, "read the output", "reads out[6, 0], which was never written", out=torch.zeros(8, 16))


@pl.jit
def adds_to_nothing(x: pl.Tensor[[1, 16], pl.FP32], out: pl.Out[pl.Tensor[[1, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out = pl.assemble(out, x[:, :], [0, 0], atomic=pl.AtomicType.Add)  # add to nothing


def test_an_atomic_add_needs_a_defined_target() -> None:
    fails(
        adds_to_nothing, "add to nothing", "pl.assemble reads out[0, 0], which was never written",
        x=torch.zeros(1, 16), out=torch.zeros(1, 16),
    )  # fmt: skip


@pl.jit
def empty_accumulator(
    x: pl.Tensor[[16, 16], pl.FP32], n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[16, 16], pl.FP32]]
):
    with pl.at(level=pl.Level.CORE_GROUP):
        acc = pl.create_tensor([16, 16], dtype=pl.FP32)
        for k in pl.range(n):
            acc = pl.matmul(x[:, :], x[:, :])
        out[:, :] = acc  # store the accumulator


def test_a_loop_without_trips_leaves_the_accumulator_undefined() -> None:
    args = {"x": torch.eye(16), "out": torch.zeros(16, 16)}
    simulate(lower(empty_accumulator), {**args, "n": 1})
    assert torch.equal(args["out"], torch.eye(16))
    fails(
        empty_accumulator, "store the accumulator", "reads acc[0, 0], which was never written", n=0, **args,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ valid rectangle
@pl.jit
def uneven(
    x: pl.Tensor[[8, 16], pl.FP32], n: pl.Scalar[pl.INT32], out: pl.InOut[pl.Tensor[[8, 16], pl.FP32]]
):
    with pl.at(level=pl.Level.CORE_GROUP):
        a = pl.slice(x, [8, 16], [0, 0])
        short = pl.slice(x, [8, 16], [0, 0], valid_shape=[n, 16])  # cut the rows
        out[:, :] = pl.add(a, short)  # add uneven tiles


def test_an_op_past_the_valid_rows_names_the_operand() -> None:
    args = {"x": torch.zeros(8, 16), "out": torch.zeros(8, 16)}
    error = fails(
        uneven, "add uneven tiles", "pl.add reads outside the valid region of short",
        "it needs [8, 16], only [3, 16]", "lhs: a [8, 16], valid [8, 16]",
        "rhs: short [8, 16], valid [3, 16]", n=3, **args,
    )  # fmt: skip
    assert error.diag is Diag.INVALID_READ


@pytest.mark.parametrize("n", [9, -1])
def test_a_valid_shape_lies_within_its_tile(n: int) -> None:
    fails(
        uneven, "cut the rows", f"the valid shape is [{n}, 16], the tile has [8, 16]",
        n=n, x=torch.zeros(8, 16), out=torch.zeros(8, 16),
    )  # fmt: skip


@pl.jit
def shrink(
    x: pl.Tensor[[8, 16], pl.FP32], n: pl.Scalar[pl.INT32], out: pl.InOut[pl.Tensor[[8, 16], pl.FP32]]
):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.slice(x, [8, 16], [0, 0], valid_shape=[4, 16])
        out[0:8, :] = pl.set_validshape(t, n, 16)  # grow the rows


def test_set_validshape_only_shrinks() -> None:
    fails(
        shrink, "grow the rows", "reads outside the valid region of t",
        "it needs [5, 16], only [4, 16] of [8, 16]", n=5, x=torch.zeros(8, 16), out=torch.zeros(8, 16),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ arithmetic
@pl.jit
def divides(n: pl.Scalar[pl.INT32], m: pl.Scalar[pl.INT32], out: pl.InOut[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="rows"):
        for i in pl.range(4):
            row = (i + 8 // n) % m  # divide
            pl.write(out, [row, 0], 1.0)
            if n > 100 and n // (i - m) > 5:  # guard
                pl.write(out, [0, 0], 2.0)


@pytest.mark.parametrize(("n", "m", "op"), [(0, 1, "//: the divisor is 0"), (1, 0, "%: the divisor is 0")])
def test_a_zero_divisor_names_the_operator(n: int, m: int, op: str) -> None:
    error = fails(divides, "divide", op, "region 'rows' with i = 0", n=n, m=m, out=torch.zeros(8, 16))
    assert error.diag is Diag.ARITHMETIC


def test_both_sides_of_and_are_evaluated() -> None:
    fails(divides, "guard", "//: the divisor is 0", "with i = 2", n=4, m=2, out=torch.zeros(8, 16))


def test_a_step_of_zero_and_a_negative_grid() -> None:
    b = Builder()
    n = b.param("n", ScalarType(INT32))
    with b.loop(8, step=n, line=3) as loop, b.region():
        loop.next = ()
    with pytest.raises(UserError, match=r"kernel\.py:3:1: error\[arithmetic\]: pl\.range: the step is 0"):
        simulate(b.function(), {"n": 0})
    b = Builder()
    n = b.param("n", ScalarType(INT32))
    with b.region(count=n, line=5):
        b("full", (8, 16), FP32, expr(0.0))
    with pytest.raises(UserError, match=r"kernel\.py:5:1: .* the number of blocks is -2"):
        simulate(b.function(), {"n": -2})


@pl.jit
def integer_tiles(x: pl.Tensor[[8, 8], pl.INT32], out: pl.Out[pl.Tensor[[8, 8], pl.INT32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = x[:, :]
        out[:, :] = pl.div(t, t)  # divide integers


def test_an_integer_tile_divided_by_zero() -> None:
    zeros = torch.zeros(8, 8, dtype=torch.int32)
    message = "pl.div: an element of the integer divisor is 0"
    fails(integer_tiles, "divide integers", message, x=zeros, out=zeros + 1)


# ------------------------------------------------------------------------------------------ views, bugs
@pl.jit
def torn(x: pl.Tensor[[8, 32], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    left = pl.slice(x, [8, 16], [0, 0])
    flat = pl.reshape(left, [16, 8])  # reshape with gaps
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, 0:8] = flat[0:8, :]


def test_a_view_with_gaps_cannot_be_reshaped() -> None:
    fails(
        torn, "reshape with gaps", "the view [8, 16] of x [8, 32] has gaps between its rows",
        x=torch.zeros(8, 32), out=torch.zeros(8, 16),
    )  # fmt: skip


def test_an_internal_failure_names_the_users_line() -> None:
    b = Builder()
    x = b.param("x", TensorType((8, 16), FP32))
    with b.region(name="broken"):
        t = b("load", x, (8, 16), (0, 0))
        b("reshape", t, (16, 8), line=9)
    function = b.function()
    let = function.body[0].body[1]  # type: ignore[union-attr]
    object.__setattr__(let, "args", (t, (expr(7), expr(7))))  # what no front end lets through
    with pytest.raises(InternalError, match=r"kernel\.py:9:1: simulating reshape failed in region 'broken'"):
        simulate(function, {"x": torch.zeros(8, 16)})
