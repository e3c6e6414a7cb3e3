"""Subscripts: reads are slices or elements, writes are assembles or elements."""

from __future__ import annotations

import pytest
import torch

import pypto_models.language as pl
from pypto_models.ir.expr import Const
from pypto_models.ir.types import TileType

from .support import fails, lets, lowered, marked, op_names, randn, run

CORE = pl.Level.CORE_GROUP


@pl.jit
def reads(x: pl.Tensor[[4, 16, 64], pl.FP32], out: pl.Out[pl.Tensor[[32, 64], pl.FP32]]):
    with pl.at(level=CORE):
        out[0:8, :] = x[1, 8:16, :]
        row = x[2, 3]
        out[8, :] = row
        element = x[3, 5, 7]
        plane = x[0, :, :]
        inner = plane[4:8, 8:40]
        out[9:13, 0:32] = inner
        out[9:13, 32:64] = pl.full([4, 32], pl.FP32, 2.0)
        out[13:16, :] = pl.mul(plane[0:3], element)
        out[16:32, :] = pl.add(plane, plane[1, 1])


def test_reads() -> None:
    fn = lowered(reads)
    shapes = [let.result.type.shape for let in lets(fn, "load")]  # type: ignore[union-attr]
    assert shapes == [(8, 64), (64,), (16, 64)]
    assert [let.result.type.shape for let in lets(fn, "extract")] == [(4, 32), (3, 64)]  # type: ignore[union-attr]
    assert len(lets(fn, "read_tensor")) == len(lets(fn, "read_tile")) == 1
    x, out = randn(4, 16, 64), torch.empty(32, 64)
    run(reads, x=x, out=out)
    assert torch.equal(out[0:8], x[1, 8:16])
    assert torch.equal(out[8], x[2, 3])
    assert torch.equal(out[9:13, 0:32], x[0, 4:8, 8:40]) and bool((out[9:13, 32:] == 2).all())
    torch.testing.assert_close(out[13:16], x[0, 0:3] * x[3, 5, 7])
    torch.testing.assert_close(out[16:32], x[0] + x[0, 1, 1])


@pl.jit
def static_extents(
    x: pl.Tensor[[128, 64], pl.FP32], i: pl.Scalar[pl.INDEX], out: pl.Out[pl.Tensor[[128, 64], pl.FP32]]
):
    with pl.at(level=CORE):
        out[i : i + 16, :] = x[i : i + 16, :]
        out[(i + 1) * 16 : (i + 2) * 16, :] = x[16 * i + 16 : i * 16 + 32, :]
        base = i * 4
        out[base + 40 : base + 48, :] = x[40 + base : base + 48]


def test_a_run_time_start_with_a_static_extent() -> None:
    fn = lowered(static_extents)
    assert [let.result.type for let in lets(fn, "load")] == [
        TileType((16, 64), pl.FP32, (16, 64)), TileType((16, 64), pl.FP32, (16, 64)),
        TileType((8, 64), pl.FP32, (8, 64)),
    ]  # fmt: skip
    x, out = randn(128, 64), torch.zeros(128, 64)
    run(static_extents, x=x, i=2, out=out)
    for lo, hi in [(2, 18), (48, 64)]:
        assert torch.equal(out[lo:hi], x[lo:hi])


@pl.jit
def writes(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.Out[pl.Tensor[[2, 16, 64], pl.FP32]]
):
    with pl.at(level=CORE):
        tile = pl.create_tensor([16, 64], pl.FP32)
        tile[:] = x
        tile[n : n + 4, 0:32] = pl.full([4, 32], pl.FP32, 1.0)
        tile[3, 3] = 5.0
        out[0, :, :] = tile
        out[1] = pl.neg(tile)


def test_writes() -> None:
    fn = lowered(writes)
    assert len(lets(fn, "insert")) == 2 and len(lets(fn, "write_tile")) == 1 and len(lets(fn, "store")) == 2
    x, out = randn(16, 64), torch.empty(2, 16, 64)
    run(writes, x=x, n=6, out=out)
    want = x.clone()
    want[6:10, 0:32] = 1.0
    want[3, 3] = 5.0
    assert torch.equal(out, torch.stack([want, -want]))


@pl.jit
def whole(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        out[:] = x


def test_a_tensor_may_stand_for_its_tile() -> None:
    assert op_names(lowered(whole)) == ["load", "store"]
    x, out = randn(16, 64), torch.empty(16, 64)
    run(whole, x=x, out=out)
    assert torch.equal(out, x)


@pl.jit
def views(
    x: pl.Tensor[[2, 16, 64], pl.FP32], n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    page = x[1]
    low = page[8:16, :]
    count = pl.cast(x[0, 0, 0], pl.INDEX)
    with pl.at(level=CORE):
        out[0:8, :] = low
        out[8:16, :] = pl.mul(low, count * 1.0)


def test_outside_of_a_region_a_slice_is_a_view() -> None:
    fn = lowered(views)
    assert op_names(fn.body)[:3] == ["view", "view", "read_tensor"]
    x, out = randn(2, 16, 64), torch.empty(16, 64)
    x[0, 0, 0] = 3
    run(views, x=x, n=0, out=out)
    assert torch.equal(out, torch.cat([x[1, 8:], x[1, 8:] * 3]))


@pl.jit
def partly_valid_row(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.InOut[pl.Tensor[[16, 64], pl.FP32]]
):
    with pl.at(level=CORE):
        row = pl.slice(x, [1, 64], [2, 0], valid_shape=[1, n], drop_dims=[0])
        out[5, :] = row


def test_an_axis_of_one_comes_and_goes_with_a_partly_valid_row() -> None:
    (reshape,) = lets(lowered(partly_valid_row), "reshape")
    assert isinstance(reshape.result.type, TileType)
    assert reshape.result.type.shape == (1, 64) and reshape.result.type.valid[0] == 1
    x, out = randn(16, 64), torch.zeros(16, 64)
    run(partly_valid_row, x=x, n=9, out=out)
    assert torch.equal(out[5, :9], x[2, :9]) and not out[5, 9:].any()


def test_arrays() -> None:
    @pl.jit
    def kernel(out: pl.Out[pl.Tensor[[4], pl.INT32]]):
        counts = pl.array.create(4, pl.INT32)
        for i in pl.unroll(4):
            counts[i] = i * i
        with pl.at(level=CORE):
            for i in pl.unroll(4):
                out[i] = counts[3 - i]

    out = torch.zeros(4, dtype=torch.int32)
    run(kernel, out=out)
    assert out.tolist() == [9, 4, 1, 0]


def test_elements_of_a_tuple_are_constants() -> None:
    @pl.jit
    def kernel(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
        sizes = [4, 8, x.shape[0]]
        with pl.at(level=CORE):
            out[0 : sizes[-1], :] = pl.slice(x, [sizes[2], 64], [0, 0])

    (load,) = lets(lowered(kernel), "load")
    assert load.arg("shape") == (Const(16), Const(64))


CASES = [
    ("t = x[0:8, 0:8, 0]", "shape", "x[0:8, 0:8, 0]", "3 indices for 2 axes", "drop"),
    ("t = x[0:16:2, :]", "syntax", "0:16:2", "a slice with a step", "lo:hi"),
    ("t = x[8:24, :]", "out-of-bounds", "x[8:24, :]", "elements 8..24 of axis 0, which has 16",
     "valid_shape"),
    ("t = x[-1, :]", "out-of-bounds", "x[-1, :]", "elements -1..0 of axis 0", "sizes first"),
    ("t = x[0, 64]", "out-of-bounds", "x[0, 64]", "elements 64..65 of axis 1, which has 64", "from 0"),
    ("t = x[0:n, :]", "not-constant", "x[0:n, :]", "every extent of the tile", "valid_shape="),
    ("t = x[8:4, :]", "shape", "x[8:4, :]", "the extent -4 is not positive", "at least 1"),
    ("t = x[1.5, :]", "bad-argument", "1.5", "got 1.5", "an integer"),
    ("t = x[y, :]", "bad-argument", "y", "the tensor y [16, 64] FP32", "a scalar"),
    ("t = n[0]", "bad-argument", "n[0]", "a INT32 scalar has no elements", "tensors, tiles, arrays"),
    ("out[0:8, :] = x", "shape", "out[0:8, :] = x", "the slice is [8, 64], the value [16, 64]", "as much as"),
    ("out[0:16, :] = 0.0", "bad-argument", "out[0:16, :] = 0.0", "a scalar cannot fill a slice", "pl.full"),
    ("out[:, :] = b", "dtype", "out[:, :] = b", "the target is FP32 and the source BF16",
     "pl.cast(source, pl.FP32)"),
    ("n[0] = 1", "bad-argument", "n[0]", "a INT32 scalar cannot be written", "a tensor"),
    ("out[0, 0] = x", "bad-argument", "out[0, 0] = x", "value is the tensor x", "a scalar"),
    ("s = x.shape[2]", "not-constant", "x.shape[2]", "the index of a tuple", "from 0 to 1"),
    ("a, c, d = x.shape", "shape", "a, c, d", "3 names for a list of 2", "one name"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "place", "message", "fix"), CASES, ids=[c[0] for c in CASES])
def test_mistakes(line: str, code: str, place: str, message: str, fix: str) -> None:
    error = fails(f"with pl.at(level=CORE):\n    {line}\n    out[:, :] = x")
    assert (error.code, marked(error)) == (code, place)
    assert message in error.message and fix in error.fix


def test_a_view_has_elements() -> None:
    error = fails("t = x[4:4, :]\nwith pl.at(level=CORE):\n    out[:, :] = x")
    assert (error.code, marked(error)) == (
        "shape",
        "x[4:4, :]",
    ) and "the view would be [0, 64]" in error.message
