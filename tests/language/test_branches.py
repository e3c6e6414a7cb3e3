"""``if``: constants are folded, index scalars make branches whose names are merged."""

from __future__ import annotations

import torch

import pypto_models.language as pl
from pypto_models.ir.types import INT32, ScalarType, TileType

from .support import error_of, fails, ifs, line_of, lowered, marked, op_names, randn, run

CORE = pl.Level.CORE_GROUP
FUSED = False
DTYPE = pl.BF16
STAGES = 3


@pl.jit
def folded(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        if FUSED:
            t = pl.matmul(x, 3, nonsense=undefined_name)  # noqa: F821
        elif STAGES != 3:
            t = pl.row_sum(x)
        elif DTYPE == pl.BF16 and not FUSED:
            t = pl.exp(x)
        else:
            t = pl.no_such_op(x)
        out[:, :] = t


def test_the_branch_not_taken_may_hold_anything() -> None:
    fn = lowered(folded)
    assert not ifs(fn) and op_names(fn) == ["load", "exp", "store"]
    assert op_names(lowered(folded, DTYPE=pl.BF16)) == ["load", "exp", "store"]
    assert (error_of(folded, FUSED=True).code, error_of(folded, DTYPE=pl.FP32).code) == (
        "undefined",
        "unknown-op",
    )


@pl.jit
def merged(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    with pl.at(level=CORE):
        t = pl.exp(x)
        shift = 0.0
        if n == 0:
            t = pl.neg(t)
            u = t
        elif n > 5 and n < 8 or n == 3:
            u = pl.add(t, 1.0)
            shift = 2.0
        else:
            u = t
        out[:, :] = pl.add(pl.mul(t, u), shift)


def test_index_scalars_select_values() -> None:
    fn = lowered(merged)
    outer, inner = ifs(fn)
    assert {m.result.name for m in outer.merged} == {"t", "u", "shift"}
    assert {m.result.name for m in inner.merged} == {"u", "shift"}
    for n in (0, 3, 4, 5, 6, 8):
        x, out = randn(16, 64), torch.empty(16, 64)
        t = -x.exp() if n == 0 else x.exp()
        special = n in (3, 6)
        u = t + 1 if special else t
        run(merged, x=x, n=n, out=out)
        torch.testing.assert_close(out, t * u + 2.0 * special)


@pl.jit
def types(x: pl.Tensor[[16, 64], pl.FP32], k: pl.Tensor[[4], pl.INT32], n: pl.Scalar[pl.INDEX],
          out: pl.InOut[pl.Tensor[[16, 64], pl.FP32]]):  # fmt: skip
    with pl.at(level=CORE):
        first = 0
        t = x[:, :]
        if n > 2:
            first = pl.read(k, [1])
            t = pl.set_validshape(t, n, 64)
        else:
            first = 7
        out = pl.assemble(out, pl.add(t, first * 1.0), [0, 0])


def test_types_of_merged_values() -> None:
    """A literal takes the other side's type; valid extents that differ are not known."""
    (branch,) = ifs(lowered(types))
    kinds = {m.result.name: m.result.type for m in branch.merged}
    assert kinds["first"] == ScalarType(INT32)
    assert kinds["t"] == TileType((16, 64), pl.FP32, (None, 64))
    x, k = randn(16, 64), torch.tensor([0, 5, 0, 0], dtype=torch.int32)
    for n, rows, first in [(3, 3, 5), (2, 16, 7)]:
        out = torch.zeros(16, 64)
        run(types, x=x, k=k, n=n, out=out)
        assert torch.equal(out[:rows], x[:rows] + first) and not out[rows:].any()


@pl.jit
def in_the_orchestration(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Tensor[[2], pl.INT32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    source = x
    if pl.read(n, [0]) > 3:
        scratch = pl.create_tensor([16, 64], pl.FP32)
        with pl.at(level=CORE):
            scratch[:, :] = pl.mul(x, 2.0)
        source = scratch
    with pl.at(level=CORE):
        out[:, :] = source


def test_tensors_merge_too() -> None:
    for n in (3, 4):
        x, out = randn(16, 64), torch.empty(16, 64)
        run(in_the_orchestration, x=x, n=torch.tensor([n, 0], dtype=torch.int32), out=out)
        assert torch.equal(out, x * 2 if n > 3 else x)


@pl.jit
def aliases(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    with pl.at(level=CORE):
        a = pl.exp(x)
        b = a
        if n > 0:
            a[0:8, :] = x[0:8, :]
        out[:, :] = pl.add(a, b)


def test_names_of_one_tile_stay_together() -> None:
    (branch,) = ifs(lowered(aliases))
    assert len(branch.merged) == 1
    for n in (0, 1):
        x, out = randn(16, 64), torch.empty(16, 64)
        want = x.exp()
        if n:
            want[:8] = x[:8]
        run(aliases, x=x, n=n, out=out)
        torch.testing.assert_close(out, want + want)


# ------------------------------------------------------------------------------------------ mistakes
@pl.jit
def one_branch(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    with pl.at(level=CORE):
        if n > 0:
            t = pl.exp(x)
        out[:, :] = t


def test_a_name_that_one_branch_binds() -> None:
    error = error_of(one_branch)
    assert (error.code, marked(error), error.span.line) == (
        "not-on-every-path",
        "t",
        line_of(one_branch, "out[:, :] = t"),
    )
    assert error.span.file == __file__
    assert error.fix == f"give 't' a value before the if on line {line_of(one_branch, 'if n > 0')}"
    assert str(error).splitlines()[1:3] == [
        f"{error.span.line:5d} |         out[:, :] = t",
        "                            ^",
    ]


def test_it_is_no_mistake_if_nothing_reads_it() -> None:
    @pl.jit
    def kernel(
        x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
    ):
        with pl.at(level=CORE):
            if n > 0:
                t = pl.exp(x)
                out[:, :] = t
            else:
                out[:, :] = x

    assert ifs(lowered(kernel))[0].merged == ()


def test_branches_that_disagree() -> None:
    error = fails(
        "with pl.at(level=CORE):\n    if n > 0:\n        t = x[:, 0:32]\n    else:\n        t = x[:, :]\n"
        "    out[:, :] = t"
    )
    assert (error.code, marked(error)) == ("carried-type", "t")
    assert (
        error.message
        == "'t' changes its type in this if: a tile [16, 32] FP32 before, a tile [16, 64] FP32 after"
    )


def test_a_condition_is_a_scalar() -> None:
    error = fails("with pl.at(level=CORE):\n    if x:\n        pass\n    out[:, :] = x")
    assert (error.code, marked(error)) == ("bad-argument", "x")
    error = fails("with pl.at(level=CORE):\n    if x < y:\n        pass\n    out[:, :] = x")
    assert (error.code, marked(error)) == ("bad-argument", "x") and "pl.cmp" in error.fix


@pl.jit
def moved(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):  # fmt: skip
    with pl.at(level=CORE):
        t = pl.move(pl.slice(x, [16, 64], [0, 0]), target_memory=pl.Mem.Vec)
        if n > 2:
            t = pl.neg(t)
        for _ in pl.range(n):
            t = pl.add(t, 1.0)
        out[:, :] = t


def test_a_memory_space_that_one_branch_names_does_not_bind_the_other() -> None:
    x, out = randn(16, 64), torch.empty(16, 64)
    run(moved, x=x, n=3, out=out)
    assert torch.equal(out, -x + 1 + 1 + 1)
    run(moved, x=x, n=1, out=out)
    assert torch.equal(out, x + 1)
