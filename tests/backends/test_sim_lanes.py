"""A split region gives, bit for bit, what the unsplit one gives: UP_DOWN and LEFT_RIGHT as two lanes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from backends.sim import Machine, simulate
from backends.sim.lanes import join_tile, split_tile
from pypto_models.errors import InternalError, UserError
from pypto_models.ir.expr import Var
from pypto_models.ir.nodes import Direction, Function
from pypto_models.ir.rewrite import Rewriter
from pypto_models.ir.types import BF16, FP32, INT32, Mem, ScalarType, SplitMode, TensorType, TileType
from pypto_models.ops.value import TileValue

from .build import Builder, calc

BOTH = (SplitMode.UP_DOWN, SplitMode.LEFT_RIGHT)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gemm_residual(rows: int, cols: int) -> Callable[[SplitMode], Function]:
    """out = cast(residual + x @ w.T scaled by a row and a column, then run through the cube again)."""

    def build(split: SplitMode) -> Function:
        b = Builder("gemm_residual", split)
        x = b.param("x", TensorType((rows, 64), BF16))
        w = b.param("w", TensorType((cols, 64), BF16))
        u = b.param("u", TensorType((cols, cols), BF16))
        residual = b.param("residual", TensorType((rows, cols), FP32))
        column = b.param("column", TensorType((rows, 1), FP32))
        row = b.param("row", TensorType((1, cols), FP32))
        n = b.param("n", ScalarType(INT32))
        out = b.param("out", TensorType((rows, cols), FP32), Direction.INOUT)
        again = b.param("again", TensorType((rows, cols), FP32), Direction.INOUT)
        with b.region(name="mixed"):
            zero = b("full", (rows, cols), FP32, 0.0)
            with b.loop(64, step=32, init=(zero,)) as k:
                a = b("load", x, (rows, 32), (0, k.var))
                c = b("load", w, (cols, 32), (0, k.var))
                k.next = (b("matmul_acc", k.values[0], a, c, b_trans=True),)
            v = b.vec("move", k.results[0], Mem.Vec)
            v = b.vec("add", v, b.vec("load", residual, (rows, cols), (0, 0)))
            v = b.vec("row_expand_mul", v, b.vec("load", column, (rows, 1), (0, 0)))
            v = b.vec("col_expand_mul", v, b.vec("load", row, (1, cols), (0, 0)))
            with b.loop(3, init=(v,)) as loop:
                loop.next = (b.vec("maximum", b.vec("mul", loop.values[0], 1.5), 0.25),)
            v = loop.results[0]
            extents = (rows, n) if split is SplitMode.LEFT_RIGHT else (n, cols)
            live = b.vec("set_validshape", v, *extents)
            b("store", out, live, (0, 0))
            half = b.vec("cast", b.vec("fillpad", live, "zero"), BF16, "rint")
            joined = b("move", half, Mem.Mat)
            product = b("matmul", joined, b("load", u, (cols, cols), (0, 0)), FP32)
            b("store", again, product, (0, 0))
        return b.function()

    return build


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 7])
@pytest.mark.parametrize("shape", [(7, 16), (8, 15), (16, 32), (2, 9)])
@pytest.mark.parametrize("split", BOTH, ids=lambda s: s.name)
def test_a_mixed_region(split: SplitMode, shape: tuple[int, int], n: int) -> None:
    rows, cols = shape
    n = min(n, shape[split.axis or 0])
    results = []
    for function in (gemm_residual(rows, cols)(split), unsplit_twin(rows, cols, split)):
        args = {
            "x": randn(rows, 64).bfloat16(), "w": randn(cols, 64, seed=1).bfloat16(),
            "u": randn(cols, cols, seed=2).bfloat16(), "residual": randn(rows, cols, seed=3),
            "column": randn(rows, 1, seed=4), "row": randn(1, cols, seed=5), "n": n,
            "out": torch.full((rows, cols), 7.0), "again": torch.zeros(rows, cols),
        }  # fmt: skip
        simulate(function, args)
        results.append((args["out"], args["again"]))
    (lanes_out, lanes_again), (out, again) = results
    assert torch.equal(lanes_out, out)
    assert torch.equal(lanes_again, again)
    dead = out[n:] if split.axis == 0 else out[:, n:]
    assert torch.equal(dead, torch.full_like(dead, 7.0))  # what is not valid is not stored


def unsplit_twin(rows: int, cols: int, split: SplitMode) -> Function:
    """The function of a split mode without the split."""

    class Whole(Rewriter):
        def var(self, v: Var) -> Var:
            if not isinstance(v.type, TileType) or v.type.split is SplitMode.NONE:
                return v
            new = Var(v.name, v.type.with_(split=SplitMode.NONE))
            self.env[v] = new
            return new

    function = gemm_residual(rows, cols)(split)
    return replace(function, body=Whole().block(function.body))


def test_the_program_runs_each_vector_op_once_per_lane() -> None:
    text = Machine(gemm_residual(8, 16)(SplitMode.UP_DOWN)).program.text
    assert text.count(" = matmul_acc(") == 1
    assert text.count(" = row_expand_mul(") == 2
    assert "= split_tile(" in text and "= join_tile(" in text
    unsplit = Machine(unsplit_twin(8, 16, SplitMode.UP_DOWN)).program.text
    assert unsplit.count(" = row_expand_mul(") == 1


@pytest.mark.parametrize("valid", [0, 1, 4, 5, 6, 9])
def test_softmax_on_rows_that_are_partly_valid(valid: int) -> None:
    """Loads with valid_shape, reductions, placeholders, shape changes, under UP_DOWN with nine rows."""

    def build(split: SplitMode) -> Function:
        b = Builder("softmax", split)
        x = b.param("x", TensorType((4, 9, 16), FP32))
        n = b.param("n", ScalarType(INT32))
        out = b.param("out", TensorType((36, 16), FP32), Direction.INOUT)
        with b.region(count=4) as block:
            t = b.vec(
                "load", x, (1, 9, 16), (block, 0, 0), valid_shape=(1, n, 16), drop_dims=(0,), name="scores"
            )
            e = b.vec("exp", b.vec("row_expand_sub", t, b.vec("row_max", t)))
            p = b.vec("row_expand_div", e, b.vec("row_sum", e))
            place = b.vec("create_tile", (9, 16), FP32)
            place = b.vec("add", b.vec("insert", place, b.vec("full", (9, 16), FP32, 2.0), (0, 0)), 1.0)
            b("store", out, b.vec("sub", p, b.vec("reshape", place, (9, 16))), (calc("*", block, 9), 0))
        return b.function()

    x = randn(4, 9, 16)
    want = torch.zeros(36, 16)
    for i in range(4):
        want[9 * i : 9 * i + valid] = x[i, :valid].softmax(1) - 3.0
    results = []
    for split in (SplitMode.NONE, SplitMode.UP_DOWN):
        out = torch.zeros(36, 16)
        simulate(build(split), {"x": x, "n": valid, "out": out})
        torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
        results.append(out)
    assert torch.equal(*results)


def test_rows_become_more_rows() -> None:
    def build(split: SplitMode) -> Function:
        b = Builder("heads", split)
        x = b.param("x", TensorType((4, 32), FP32))
        out = b.param("out", TensorType((16, 8), FP32), Direction.OUT)
        with b.region():
            t = b.vec("reshape", b.vec("load", x, (4, 32), (0, 0)), (16, 8))
            b("store", out, b.vec("row_expand_sub", t, b.vec("row_max", t)), (0, 0))
        return b.function()

    x = randn(4, 32)
    for split in (SplitMode.NONE, SplitMode.UP_DOWN):
        out = torch.empty(16, 8)
        simulate(build(split), {"x": x, "out": out})
        heads = x.reshape(16, 8)
        assert torch.equal(out, heads - heads.amax(1, keepdim=True)), split


@pytest.mark.parametrize(("n", "message"), [(9, r"\[9, 16\]|\[5, 16\], the tile has"), (-1, r"\[-1, 16\]")])
def test_a_valid_shape_out_of_range_is_noticed_in_a_lane(n: int, message: str) -> None:
    b = Builder("cut", SplitMode.UP_DOWN)
    x = b.param("x", TensorType((8, 16), FP32))
    count = b.param("n", ScalarType(INT32))
    out = b.param("out", TensorType((8, 16), FP32), Direction.INOUT)
    with b.region():
        t = b.vec("load", x, (8, 16), (0, 0), valid_shape=(count, 16), line=4)
        b("store", out, t, (0, 0))
    with pytest.raises(UserError, match=rf"kernel\.py:4:1: (.|\n)*({message})(.|\n)*with vector lane"):
        simulate(b.function(), {"x": torch.zeros(8, 16), "n": n, "out": torch.zeros(8, 16)})


def test_an_error_in_a_lane_names_it() -> None:
    b = Builder("past", SplitMode.UP_DOWN)
    x = b.param("x", TensorType((8, 16), FP32))
    n = b.param("n", ScalarType(INT32))
    out = b.param("out", TensorType((8, 16), FP32), Direction.OUT)
    with b.region(name="copy"):
        t = b.vec("load", x, (8, 16), (n, 0), line=6)
        b("store", out, t, (0, 0))
    with pytest.raises(
        UserError, match=r"kernel\.py:6:1: .*pl\.slice reads x\[6:10, 0:16\](.|\n)*'copy' with vector lane 1"
    ):
        simulate(b.function(), {"x": torch.zeros(8, 16), "n": 2, "out": torch.zeros(8, 16)})


def test_a_tile_that_the_split_pass_left_whole_is_a_bug_of_the_compiler() -> None:
    b = Builder("half", SplitMode.UP_DOWN)
    x = b.param("x", TensorType((8, 16), FP32))
    with b.region():
        b.vec("add", b.vec("load", x, (8, 16), (0, 0)), b("load", x, (8, 16), (0, 0), name="whole"))
    with pytest.raises(InternalError, match=r"add at .*: whole#\d+ is not split as the other tiles are"):
        simulate(b.function(), {"x": torch.zeros(8, 16)})


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("valid", [(7, 5), (4, 3), (3, 2), (0, 5), (7, 1)])
def test_split_and_join_are_inverse(axis: int, valid: tuple[int, int]) -> None:
    written = torch.rand(valid) > 0.3
    tile = TileValue(randn(*valid), (7, 5), written)
    low, high = split_tile(tile, axis)
    assert (low.shape[axis], high.shape[axis]) == ((4, 3), (3, 2))[axis]
    back = join_tile(low, high, axis)
    assert back.shape == tile.shape
    assert torch.equal(back.data, tile.data)
    assert back.written is not None
    assert torch.equal(back.written, written)
