"""Loops: bounds, kinds, what a name means around them."""

from __future__ import annotations

import pytest
import torch

import pypto_models.language as pl
from pypto_models.ir.expr import Const
from pypto_models.ir.nodes import LoopKind
from pypto_models.ir.types import INT32, TASK_ID, ArrayType, ScalarType, TensorType, TileType

from .support import error_of, fails, ifs, lets, line_of, loops, lowered, marked, randn, regions, run

CORE = pl.Level.CORE_GROUP
ROWS = pl.dynamic("ROWS")


@pl.jit
def bounds(n: pl.Scalar[pl.INT32], out: pl.InOut[pl.Tensor[[4, 64], pl.INT32]]):
    with pl.at(level=CORE):
        for i in pl.range(n):
            out[0, i] = i
        for i in pl.range(2, n):
            out[1, i] = i
        for i in pl.range(1, n * 2, 3):
            out[2, i] = i
        for i in pl.pipeline(n, 2 * n, 2, stage=3):
            out[3, i] = i


def test_bounds() -> None:
    fn = lowered(bounds)
    assert [(f.kind, f.stage) for f in loops(fn)] == [(LoopKind.RANGE, 1)] * 3 + [(LoopKind.PIPELINE, 3)]
    assert [f.var.name for f in loops(fn)] == ["i"] * 4
    out = torch.full((4, 64), -1, dtype=torch.int32)
    want = out.clone()
    for row, indices in enumerate([range(9), range(2, 9), range(1, 18, 3), range(9, 18, 2)]):
        for i in indices:
            want[row, i] = i
    run(bounds, n=9, out=out)
    assert torch.equal(out, want)


@pl.jit
def parallel_rows(x: pl.Tensor[[ROWS, 64], pl.FP32], out: pl.Out[pl.Tensor[[ROWS, 64], pl.FP32]]):
    for r in pl.parallel(0, pl.tensor.dim(x, 0), 1, chunk=4):
        with pl.at(level=CORE):
            out[r : r + 1, :] = pl.exp(x[r : r + 1, :])


def test_parallel_with_a_run_time_trip_count() -> None:
    (loop,) = loops(lowered(parallel_rows))
    assert (loop.kind, loop.carried) == (LoopKind.PARALLEL, ())
    x, out = randn(5, 64), torch.empty(5, 64)
    run(parallel_rows, x=x, out=out)
    torch.testing.assert_close(out, x.exp())


@pl.jit
def unrolled(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        t = x[:, :]
        for i in pl.unroll(1, 6, 2):
            if i == 3:
                t = pl.neg(t)
            t = pl.add(t, i * 1.0)
        out[:, :] = t


def test_unroll_makes_constants() -> None:
    fn = lowered(unrolled)
    assert not loops(fn) and not ifs(fn)
    assert [a.arg("rhs") for a in lets(fn, "add")] == [Const(float(i), pl.FP32) for i in (1, 3, 5)]
    x, out = randn(16, 64), torch.empty(16, 64)
    run(unrolled, x=x, out=out)
    torch.testing.assert_close(out, -(x + 1) + 3 + 5)


@pl.jit
def peeled(
    x: pl.Tensor[[ROWS, 128], pl.BF16],
    w: pl.Tensor[[128, 32], pl.BF16],
    out: pl.Out[pl.Tensor[[ROWS, 32], pl.FP32]],
):
    rows = pl.tensor.dim(x, 0)
    with pl.at(level=CORE):
        acc = pl.create_tensor([16, 32], pl.FP32)
        for kb in pl.range(4):
            a = pl.slice(x, [16, 32], [0, kb * 32], valid_shape=[rows, 32])
            if kb == 0:
                acc = pl.matmul(a, w[kb * 32 : kb * 32 + 32, :], out_dtype=pl.FP32)
            else:
                acc = pl.matmul_acc(acc, a, w[kb * 32 : kb * 32 + 32, :])
        out = pl.assemble(out, acc, [0, 0])


def test_an_accumulator_with_a_peeled_first_step() -> None:
    """The accumulator is a placeholder before the loop, so that its valid rows are those of the product."""
    fn = lowered(peeled)
    (loop,) = loops(fn)
    (acc,) = loop.carried
    (create,) = lets(fn, "create_tile")
    assert acc.init is create.result and acc.param.type == acc.result.type
    assert isinstance(acc.result.type, TileType) and acc.result.type.valid[1] == 32
    assert acc.result.type.valid[0] is not None  # the run-time number of rows, not "unknown"
    (branch,) = ifs(fn)
    assert [m.result for m in branch.merged] == [acc.next]
    x, w, out = randn(5, 128, dtype=torch.bfloat16), randn(128, 32, dtype=torch.bfloat16), torch.empty(5, 32)
    run(peeled, x=x, w=w, out=out)
    torch.testing.assert_close(out, x.float() @ w.float())


@pl.jit
def rebinding(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    with pl.at(level=CORE):
        a, b = x[:, :], pl.exp(x)
        count = 0
        scale = 1.0
        for i in pl.range(n):
            a, b = b, pl.add(a, b)
            count = count + i
            scale = scale * 0.5
        out[:, :] = pl.add(pl.mul(a, scale), count * 1.0)


def test_tiles_and_scalars_are_carried() -> None:
    (loop,) = loops(lowered(rebinding))
    assert sorted(c.result.name for c in loop.carried) == ["a", "b", "count", "scale"]
    for n in (0, 1, 4):
        x, out = randn(16, 64), torch.empty(16, 64)
        a, b = x, x.exp()
        for _ in range(n):
            a, b = b, a + b
        run(rebinding, x=x, n=n, out=out)
        torch.testing.assert_close(out, a * 0.5**n + sum(range(n)))


@pl.jit
def ping_pong(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    front = pl.create_tensor([16, 64], pl.FP32)
    back = pl.create_tensor([16, 64], pl.FP32)
    with pl.at(level=CORE):
        front[:, :] = x
    for _ in pl.range(n):
        view = pl.reshape(front, [16, 64])
        with pl.at(level=CORE):
            back[:, :] = pl.add(pl.mul(view, 2.0), 1.0)
        front, back = back, front
    with pl.at(level=CORE):
        out[:, :] = front


def test_two_tensors_change_places() -> None:
    (loop,) = loops(lowered(ping_pong))
    assert all(isinstance(c.result.type, TensorType) for c in loop.carried) and len(loop.carried) == 2
    for n in (0, 1, 3):
        x, out = randn(16, 64), torch.empty(16, 64)
        run(ping_pong, x=x, n=n, out=out)
        want = x
        for _ in range(n):
            want = want * 2 + 1
        torch.testing.assert_close(out, want)


@pl.jit
def in_place(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    for i in pl.range(4):
        with pl.at(level=CORE):
            out = pl.assemble(out, pl.neg(x[i * 4 : i * 4 + 4, :]), [i * 4, 0])


def test_a_tensor_written_in_place_is_not_carried() -> None:
    (loop,) = loops(lowered(in_place))
    assert loop.carried == ()


@pl.jit
def temporaries(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        t = pl.slice(x, [16, 64], [0, 0])
        for i in pl.range(2):
            t = pl.slice(x, [8, 64], [i * 8, 0])
            for j in pl.range(2):
                t = pl.slice(x, [8, 32], [i * 8, j * 32])
                out[i * 8 : i * 8 + 8, j * 32 : j * 32 + 32] = pl.neg(t)
    for i in pl.parallel(2):
        with pl.at(level=CORE):
            t = pl.slice(out, [8, 64], [i * 8, 0])
            u = pl.exp(t)
            out[i * 8 : i * 8 + 8, :] = u
    for i in pl.spmd(2):
        t = pl.slice(out, [8, 64], [i * 8, 0])
        out[i * 8 : i * 8 + 8, :] = pl.add(t, 1.0)


def test_a_temporary_may_change_its_shape() -> None:
    assert all(f.carried == () for f in loops(lowered(temporaries)))
    x, out = randn(16, 64), torch.empty(16, 64)
    run(temporaries, x=x, out=out)
    torch.testing.assert_close(out, (-x).exp() + 1)


@pl.jit
def literal_meets_element(t: pl.Tensor[[8], pl.INT32], out: pl.InOut[pl.Tensor[[8], pl.INT32]]):
    with pl.at(level=CORE):
        best = 0
        for i in pl.range(8):
            best = pl.max(best, pl.read(t, [i]))
            out[i] = best


def test_an_index_literal_takes_the_type_of_what_follows() -> None:
    (loop,) = loops(lowered(literal_meets_element))
    (best,) = loop.carried
    assert best.param.type == best.result.type == ScalarType(INT32) and best.init.dtype == INT32
    t, out = torch.tensor([1, 5, 2, 7, 7, 0, 9, 3], dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    run(literal_meets_element, t=t, out=out)
    assert torch.equal(out, torch.cummax(t, 0).values)


@pl.jit
def growing(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.InOut[pl.Tensor[[16, 64], pl.FP32]]
):
    with pl.at(level=CORE):
        t = pl.slice(x, [16, 64], [0, 0])
        for i in pl.range(n):
            t = pl.set_validshape(t, 16 - i, 64)
        out[:, :] = t


def test_a_valid_extent_that_changes_from_trip_to_trip_is_unknown() -> None:
    (loop,) = loops(lowered(growing))
    (t,) = loop.carried
    assert isinstance(t.param.type, TileType) and t.param.type.valid == (None, 64)
    x, out = randn(16, 64), torch.zeros(16, 64)
    run(growing, x=x, n=3, out=out)
    assert torch.equal(out[:14], x[:14]) and not out[14:].any()


@pl.jit
def parallel_ids(x: pl.Tensor[[64, 64], pl.FP32], out: pl.Out[pl.Tensor[[64, 64], pl.FP32]]):
    tids = pl.array.create(4, pl.TASK_ID)
    for k in pl.parallel(4):
        with pl.at(level=CORE) as tid:
            out[k * 16 : k * 16 + 16, :] = x[k * 16 : k * 16 + 16, :]
        tids[k] = tid
    with pl.at(level=CORE, deps=[tids]):
        out[0:16, :] = pl.neg(out[0:16, :])


def test_a_parallel_loop_may_collect_task_ids() -> None:
    fn = lowered(parallel_ids)
    assert [c.result.type for c in loops(fn)[0].carried] == [ArrayType(4, TASK_ID)]
    assert regions(fn)[-1].deps == (loops(fn)[0].carried[0].result,)


@pl.jit.inline
def bump(tile: pl.Tensor, ids: pl.Array[2, pl.INT32], i: pl.Scalar[pl.INDEX]):
    for j in pl.range(2):
        tile[j * 8 : j * 8 + 8, :] = pl.add(tile[j * 8 : j * 8 + 8, :], 1.0)
        ids[j] = i


@pl.jit
def changed_below(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    with pl.at(level=CORE):
        t = pl.neg(x)
        seen = pl.array.create(2, pl.INT32)
        seen[0] = 7
        seen[1] = 7
        for i in pl.range(n):
            bump(t, seen, i)
        out[:, :] = pl.mul(t, pl.cast(seen[0] + seen[1], pl.FP32))


def test_a_loop_carries_what_an_inline_kernel_changes_in_place() -> None:
    outer, inner = loops(lowered(changed_below))
    assert sorted(c.result.name for c in outer.carried) == ["seen", "t"]
    assert [c.init for c in inner.carried] == [c.param for c in outer.carried]
    assert [c.result for c in inner.carried] == [c.next for c in outer.carried]
    for n, last in [(0, 7), (3, 2)]:
        x, out = randn(16, 64), torch.empty(16, 64)
        run(changed_below, x=x, n=n, out=out)
        torch.testing.assert_close(out, (n - x) * 2 * last)


@pl.jit
def two_names(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        a = pl.exp(x)
        b = a
        c = a
        for _ in pl.range(3):
            a = pl.add(a, b)  # only a is rebound: b and c stay
            b = c
        out[:, :] = pl.sub(pl.mul(a, 2.0), c)


def test_rebinding_one_of_two_names_leaves_the_other() -> None:
    (loop,) = loops(lowered(two_names))
    assert [c.result.name for c in loop.carried] == ["a"]
    x, out = randn(16, 64), torch.empty(16, 64)
    run(two_names, x=x, out=out)
    torch.testing.assert_close(out, x.exp() * 7)


def test_a_tile_with_two_names_is_not_both_changed_in_place_and_rebound() -> None:
    error = fails(
        "with pl.at(level=CORE):\n    a = pl.exp(x)\n    b = a\n    for _ in pl.range(3):\n"
        "        a[0:8, :] = x[0:8, :]\n        a = pl.add(a, 1.0)\n    out[:, :] = b"
    )
    assert (error.code, marked(error)) == ("misplaced", "b")
    assert "'b' names the same tile as 'a', which this loop changes in place and rebinds" in error.message


@pl.jit
def second_name_unread(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        a = pl.exp(x)
        b = a
        for _ in pl.range(3):
            a[0:8, :] = x[0:8, :]
            a = pl.add(a, 1.0)
        b = pl.neg(a)
        out[:, :] = b


def test_a_second_name_that_nothing_reads_is_no_obstacle() -> None:
    x, out = torch.randn(16, 64), torch.empty(16, 64)
    second_name_unread(x, out)
    expected = x.exp()
    for _ in range(3):
        expected[0:8] = x[0:8]
        expected = expected + 1.0
    torch.testing.assert_close(out, -expected)


def test_a_value_handed_to_another_name_is_read() -> None:
    error = fails(
        "with pl.at(level=CORE):\n    t = pl.exp(x)\n    u = pl.neg(x)\n    for _ in pl.range(3):\n"
        "        u = t\n        t = pl.slice(x, [8, 64], [0, 0])\n    out[:, :] = u"
    )
    assert (error.code, error.fields["name"]) == ("carried-type", "t")


@pl.jit
def reused_names(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    i = 3
    with pl.at(level=CORE):
        t = pl.mul(x, i * 1.0)
        for i in pl.range(2):
            for i in pl.range(4):
                t = pl.add(t, i * 1.0)
        for i in pl.range(2):
            t = pl.add(t, i * 1.0)
        out[:, :] = t


def test_a_loop_variable_may_reuse_a_name() -> None:
    x, out = randn(16, 64), torch.empty(16, 64)
    run(reused_names, x=x, out=out)
    torch.testing.assert_close(out, x * 3 + 13)


# ------------------------------------------------------------------------------------------ mistakes
@pl.jit
def only_in_the_body(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    with pl.at(level=CORE):
        for _ in pl.range(n):
            t = pl.exp(x)
        out[:, :] = t


def test_a_name_that_only_the_body_binds() -> None:
    error = error_of(only_in_the_body)
    assert (error.code, marked(error)) == ("not-on-every-path", "t")
    assert error.span.line == line_of(only_in_the_body, "out[:, :] = t")
    assert error.fix == f"give 't' a value before the loop on line {line_of(only_in_the_body, 'for _')}"


@pl.jit
def changes_shape(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        t = x[:, :]
        for _ in pl.range(4):
            u = pl.exp(t)
            t = pl.slice(u, [16, 32], [0, 0])
        out[:, :] = x


def test_a_carried_name_keeps_its_shape() -> None:
    error = error_of(changes_shape)
    assert (error.code, marked(error)) == ("carried-type", "pl.exp(t)")  # the read that needs one shape
    assert error.message == (
        "'t' changes its type in this loop: a tile [16, 64] FP32 before, a tile [16, 32] FP32 after"
    )


@pl.jit
def parallel_sum(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        t = x[:, :]
    for _ in pl.parallel(4):
        with pl.at(level=CORE):
            t = pl.add(t, x)
    with pl.at(level=CORE):
        out[:, :] = t


def test_iterations_of_parallel_carry_nothing() -> None:
    error = error_of(parallel_sum)
    assert (error.code, marked(error)) == ("misplaced", "pl.add(t, x)")
    assert "from one iteration of pl.parallel to the next" in error.message and "pl.range" in error.fix


def test_a_tuple_cannot_be_carried() -> None:
    error = fails(
        "with pl.at(level=CORE):\n    s = [16, 64]\n    for i in pl.range(4):\n"
        "        t = pl.slice(x, s, [0, 0])\n        s = [16, 32]\n    out[:, :] = x"
    )
    assert (error.code, marked(error)) == ("carried-type", "s")


CASES = [
    ("for i in range(4):\n    pass", "syntax", "range(4)", "Python's range()", "pl.range"),
    ("for i in TABLE:\n    pass", "syntax", "TABLE", "this iterator", "pl.range(n)"),
    ("for i in pl.at(level=CORE):\n    pass", "syntax", "pl.at(level=CORE)", "this iterator", "pl.spmd"),
    ("for i, j in pl.range(4):\n    pass", "syntax", "i, j", "this loop variable", "one name"),
    ("for i in pl.range(4):\n    pass\nelse:\n    pass", "syntax", "pass", "for ... else", "after the loop"),
    ("for i in pl.range(4, step=2):\n    pass", "unknown-keyword", "step=2", "no parameter 'step'",
     "no keywords"),
    ("for i in pl.range():\n    pass", "bad-call", "pl.range()", "0 bounds", "pl.range(start, stop, step)"),
    ("for i in pl.range(0, 4, 0):\n    pass", "bad-argument", "0", "the step is 0", "positive"),
    ("for i in pl.range(2.5):\n    pass", "bad-argument", "2.5", "got 2.5", "an integer"),
    ("for i in pl.range(x):\n    pass", "bad-argument", "x", "the tensor x [16, 64] FP32", "a scalar"),
    ("for i in pl.unroll(n):\n    pass", "not-constant", "pl.unroll(n)", "the bounds of pl.unroll",
     "pl.range"),
    ("for i in pl.pipeline(4, stage=2):\n    pass", "misplaced", "pl.pipeline(4, stage=2)",
     "outside of any", "pl.range"),
    ("with pl.at(level=CORE):\n    for i in pl.pipeline(4, stage=n):\n        pass", "not-constant",
     "stage=n", "stage=", "at least 1"),
    ("with pl.at(level=CORE):\n    for i in pl.parallel(4):\n        pass", "misplaced", "pl.parallel(4)",
     "inside of pl.at", "pl.range or pl.pipeline"),
    ("for i in pl.range(4):\n    pass\nj = i", "not-on-every-path", "i", "'i' is not defined on every path",
     "line"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "code", "place", "message", "fix"), CASES, ids=[c[0].split("\n")[-2] for c in CASES]
)
def test_mistakes(body: str, code: str, place: str, message: str, fix: str) -> None:
    error = fails(body)
    assert (error.code, marked(error)) == (code, place)
    assert message in error.message and fix in error.fix


@pl.jit
def nested_temporaries(
    x: pl.Tensor[[64, 32], pl.FP32],
    first: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
    out: pl.Out[pl.Tensor[[64, 32], pl.FP32]],
):
    with pl.at(level=CORE):
        t = pl.slice(x, [16, 32], [0, 0])
        first[:, :] = t
    for i in pl.parallel(2):
        for j in pl.range(2):
            with pl.at(level=CORE):
                t = pl.neg(pl.slice(x, [16, 32], [i * 32 + j * 16, 0]))
                pl.assemble(out, t, [i * 32 + j * 16, 0])


def test_a_temporary_in_a_nest_of_loops_is_not_carried() -> None:
    fn = lowered(nested_temporaries)
    assert [f.carried for f in loops(fn)] == [(), ()]
    x, first, out = randn(64, 32), torch.empty(16, 32), torch.empty(64, 32)
    run(nested_temporaries, x=x, first=first, out=out)
    assert torch.equal(first, x[:16])
    assert torch.equal(out, -x)


@pl.jit
def maybe_no_trip(
    x: pl.Tensor[[64, 32], pl.FP32],
    n: pl.Scalar[pl.INT32],
    first: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
    out: pl.Out[pl.Tensor[[64, 32], pl.FP32]],
):
    with pl.at(level=CORE):
        t = pl.slice(x, [16, 32], [0, 0])
        first[:, :] = t
    for i in pl.range(4):
        with pl.at(level=CORE):
            u = pl.slice(x, [16, 32], [i * 16, 0])
            for _ in pl.range(n):
                t = pl.neg(u)
                u = pl.add(t, 1.0)
            pl.assemble(out, u, [i * 16, 0])


def test_a_temporary_that_only_goes_round_two_loops_is_not_carried() -> None:
    fn = lowered(maybe_no_trip)
    assert [len(f.carried) for f in loops(fn)] == [0, 1]
    x, first, out = randn(64, 32), torch.empty(16, 32), torch.empty(64, 32)
    for trips, expected in ((0, x), (1, 1 - x), (2, 1 - (1 - x))):
        run(maybe_no_trip, x=x, n=trips, first=first, out=out)
        assert torch.equal(out, expected)
