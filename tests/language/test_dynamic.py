"""Run-time extents: pl.dynamic, bind_dynamic, pl.RUNTIME, pl.tensor.dim."""

from __future__ import annotations

import pytest
import torch

import pypto_models.language as pl
from pypto_models.ir.expr import DimVar
from pypto_models.ir.types import TensorType

from . import support
from .support import error_of, fails, lets, loops, lowered, marked, randn, regions, run

CORE = pl.Level.CORE_GROUP
ROWS = pl.dynamic("ROWS")
PAGES = pl.dynamic("PAGES")


@pl.jit
def annotated(x: pl.Tensor[[ROWS, 64], pl.FP32], out: pl.Out[pl.Tensor[[ROWS, 64], pl.FP32]]):
    rows = pl.tensor.dim(x, 0)
    for b in pl.spmd((rows + 15) // 16):
        live = pl.min(16, rows - b * 16)
        t = pl.slice(x, [16, 64], [b * 16, 0], valid_shape=[live, 64])
        out = pl.assemble(out, pl.exp(t), [b * 16, 0])


def test_one_program_for_every_extent() -> None:
    fn = lowered(annotated)
    assert [p.var.type for p in fn.params] == [TensorType((DimVar("ROWS"), 64), pl.FP32)] * 2
    for rows in (1, 16, 37):
        x, out = randn(rows, 64), torch.empty(rows, 64)
        run(annotated, x=x, out=out)
        torch.testing.assert_close(out, x.exp())


@pl.jit
def bound(x: pl.Tensor[[16, 64], pl.FP32], y: pl.Tensor, out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    x.bind_dynamic(0, ROWS)
    y.bind_dynamic(0, PAGES)
    out.bind_dynamic(0, support.OUT_ROWS)
    for r in pl.parallel(pl.tensor.dim(out, 0)):
        with pl.at(level=CORE):
            page = pl.min(r, pl.dim(y, 0) - 1)
            out[r : r + 1, :] = pl.add(x[r : r + 1, :], y[page : page + 1, :])


def test_bind_dynamic_replaces_an_extent() -> None:
    """Also one that the annotation gives as a number, and with a name of another module."""
    x, y, out = randn(5, 64), randn(3, 64, seed=1), torch.empty(5, 64)
    fn = lowered(bound, x, y, out)
    assert [p.var.type.shape for p in fn.params] == [  # type: ignore[union-attr]
        (DimVar("ROWS"), 64), (DimVar("PAGES"), 64), (DimVar("OUT"), 64)
    ]  # fmt: skip
    run(bound, x=x, y=y, out=out)
    assert torch.equal(out, x + y[[0, 1, 2, 2, 2]])


@pl.jit.inline
def helper(t: pl.Tensor, out: pl.Tensor):
    t.bind_dynamic(0, ROWS)
    with pl.at(level=CORE):
        out[0:1, :] = pl.mul(t[0:1, :], pl.cast(pl.tensor.dim(t, 0), pl.FP32))


@pl.jit
def anonymous(
    x: pl.Tensor[[pl.RUNTIME, pl.RUNTIME], pl.FP32], y: pl.Tensor[[pl.RUNTIME, 64], pl.FP32],
    out: pl.Out[pl.Tensor[[1, 64], pl.FP32]],
):  # fmt: skip
    helper(y, out)


def test_runtime_extents_are_all_different() -> None:
    fn = lowered(anonymous)
    names = [d.name for p in fn.params for d in p.var.type.shape if isinstance(d, DimVar)]  # type: ignore[union-attr]
    assert names == ["x_dim0", "x_dim1", "y_dim0"]
    x, y, out = randn(2, 3), randn(5, 64), torch.empty(1, 64)
    run(anonymous, x=x, y=y, out=out)
    assert torch.equal(out, y[:1] * 5)


@pl.jit
def run_time_scratch(x: pl.Tensor[[ROWS, 64], pl.FP32], out: pl.Out[pl.Tensor[[ROWS, 64], pl.FP32]]):
    rows = x.shape[0]
    scratch = pl.create_tensor([rows * 2, 64], pl.FP32, init_value=1.0)
    flat = pl.reshape(scratch, [rows, 128])
    for r in pl.parallel(rows):
        with pl.at(level=CORE):
            out[r : r + 1, :] = pl.add(x[r : r + 1, :], flat[r : r + 1, 0:64])


def test_scratch_and_views_with_run_time_extents() -> None:
    fn = lowered(run_time_scratch)
    (reshape,) = lets(fn, "view_reshape")
    assert reshape.result.type == TensorType((DimVar("ROWS"), 128), pl.FP32)
    x, out = randn(5, 64), torch.empty(5, 64)
    run(run_time_scratch, x=x, out=out)
    assert torch.equal(out, x + 1)


def test_a_static_extent_is_a_constant() -> None:
    @pl.jit
    def kernel(x: pl.Tensor[[32, 64], pl.FP32], out: pl.Out[pl.Tensor[[32, 64], pl.FP32]]):
        for b in pl.spmd(pl.tensor.dim(x, 0) // 16):
            out[b * 16 : b * 16 + 16, :] = x[b * 16 : b * 16 + 16, :]

    (region,) = regions(lowered(kernel))
    assert region.count is not None and region.count.value == 2  # type: ignore[attr-defined]
    assert not loops(lowered(kernel))


# ------------------------------------------------------------------------------------------ mistakes
def test_a_tensor_with_run_time_extents_does_not_fit_on_chip_whole() -> None:
    error = fails("with pl.at(level=CORE):\n    t = pl.exp(r)\n    out[:, :] = x")
    assert (error.code, marked(error)) == ("not-constant", "r")
    assert "the tensor 'r', which pl.exp needs whole on chip" in error.message
    assert error.fix == "slice a tile of it: pl.slice(r, [rows, cols], [row, col])"


def test_a_tile_has_constant_extents() -> None:
    error = fails(
        "with pl.at(level=CORE):\n    t = pl.full([pl.tensor.dim(r, 0), 64], pl.FP32, 0.0)\n    out[:, :] = x"
    )
    assert (error.code, marked(error)) == ("not-constant", "pl.full([pl.tensor.dim(r, 0), 64], pl.FP32, 0.0)")
    assert "valid_shape=" in error.fix


@pl.jit
def bad_axis(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    x.bind_dynamic(2, ROWS)
    with pl.at(level=CORE):
        out[:, :] = x


@pl.jit
def bad_extent(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    x.bind_dynamic(0, 16)
    with pl.at(level=CORE):
        out[:, :] = x


@pl.jit
def zero_extent(x: pl.Tensor[[0, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        out[:, :] = x


@pytest.mark.parametrize(
    ("kernel", "code", "place", "message"),
    [
        (bad_axis, "annotation", "x: pl.Tensor[[16, 64], pl.FP32]", "'x': bind_dynamic names axis 2 of 2"),
        (bad_extent, "bad-call", "x.bind_dynamic(0, 16)", "needs a constant axis and a pl.dynamic extent"),
        (zero_extent, "annotation", "x: pl.Tensor[[0, 64], pl.FP32]", "the extent 0 of axis 0 is not one"),
    ],
)
def test_mistakes(kernel: pl.Kernel, code: str, place: str, message: str) -> None:
    error = error_of(kernel)
    assert (error.code, marked(error)) == (code, place) and message in error.message
