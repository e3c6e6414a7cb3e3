"""The simulator against torch: what kernels compute, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pypto_models.language as pl
from backends.sim import Machine, simulate
from pypto_models.errors import UserError
from pypto_models.language import lower

ROWS = pl.dynamic("ROWS")
COLS = pl.dynamic("COLS")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(kernel: Any, **args: Any) -> tuple[Any, ...]:
    return simulate(lower(kernel), args)


# ------------------------------------------------------------------------------------------ control flow
@pl.jit
def k_loop(
    x: pl.Tensor[[16, 96], pl.BF16], w: pl.Tensor[[64, 96], pl.BF16],
    out: pl.Out[pl.Tensor[[16, 64], pl.FP32]],
):  # fmt: skip
    for n in pl.spmd(2, name_hint="gemm"):
        acc = pl.create_tensor([16, 32], dtype=pl.FP32)
        for k in pl.range(0, 96, 32):
            a = pl.slice(x, [16, 32], [0, k])
            b = pl.slice(w, [32, 32], [n * 32, k])
            if k == 0:
                acc = pl.matmul(a, b, out_dtype=pl.FP32, b_trans=True)
            else:
                acc = pl.matmul_acc(acc, a, b, b_trans=True)
        out[:, n * 32 : n * 32 + 32] = acc


def test_a_k_loop_with_a_peeled_first_step_is_a_matmul() -> None:
    x, w = randn(16, 96, dtype=torch.bfloat16), randn(64, 96, seed=1, dtype=torch.bfloat16)
    out = torch.empty(16, 64)
    run(k_loop, x=x, w=w, out=out)
    torch.testing.assert_close(out, x.float() @ w.float().t(), rtol=1e-5, atol=1e-5)


@pl.jit
def softmax(x: pl.Tensor[[ROWS, 64], pl.FP32], out: pl.Out[pl.Tensor[[ROWS, 64], pl.FP32]]):
    rows = pl.tensor.dim(x, 0)
    scratch = pl.create_tensor([rows, 64], dtype=pl.FP32)
    for b in pl.spmd((rows + 7) // 8, name_hint="softmax"):
        t = pl.slice(x, [8, 64], [b * 8, 0], valid_shape=[pl.min(8, rows - b * 8), 64])
        e = pl.exp(pl.row_expand_sub(t, pl.row_max(t)))
        scratch = pl.assemble(scratch, pl.row_expand_div(e, pl.row_sum(e)), [b * 8, 0])
    for r in pl.parallel(rows):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="copy"):
            out[r : r + 1, :] = scratch[r : r + 1, :]


@pytest.mark.parametrize("rows", [1, 8, 13])
def test_run_time_rows_and_a_partly_valid_last_tile(rows: int) -> None:
    x, out = randn(rows, 64), torch.empty(rows, 64)
    run(softmax, x=x, out=out)
    torch.testing.assert_close(out, x.softmax(1), rtol=1e-6, atol=1e-6)


def test_a_run_time_extent_is_at_least_one() -> None:
    with pytest.raises(UserError, match=r"argument 'x': axis 0 \(ROWS\) has no element"):
        run(softmax, x=randn(0, 64), out=torch.empty(0, 64))


@pl.jit
def fibonacci(n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[1, 2], pl.INT32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        a = pl.cast(0, pl.INT32)
        b = pl.cast(1, pl.INT32)
        for i in pl.range(n):
            c = a + b
            a = b
            b = c
        pl.write(out, [0, 0], a)
        pl.write(out, [0, 1], b)


@pytest.mark.parametrize(("n", "want"), [(0, [0, 1]), (1, [1, 1]), (10, [55, 89])])
def test_carried_values_change_together_and_survive_a_loop_without_trips(n: int, want: list[int]) -> None:
    out = torch.empty(1, 2, dtype=torch.int32)
    run(fibonacci, n=n, out=out)
    assert out.tolist() == [want]


@pl.jit
def scalars(
    n: pl.Scalar[pl.INT32], f: pl.Scalar[pl.FP32], table: pl.Tensor[[4], pl.INT32],
    out: pl.Out[pl.Tensor[[1, 8], pl.FP32]],
):  # fmt: skip
    with pl.at(level=pl.Level.CORE_GROUP):
        at = pl.read(table, [n % 4])
        pl.write(out, [0, 0], pl.cast(n // 4, pl.FP32))
        pl.write(out, [0, 1], pl.cast(n % 4, pl.FP32))
        pl.write(out, [0, 2], pl.cast(at, pl.FP32))
        pl.write(out, [0, 3], f * 0.5)
        pl.write(out, [0, 4], pl.cast(pl.cast(f, pl.INT32), pl.FP32))
        pl.write(out, [0, 5], pl.cast(pl.min(n, at) - pl.max(n, at), pl.FP32))
        pl.write(out, [0, 6], -f)
        if n < 0 and at > 0:
            pl.write(out, [0, 7], 1.0)
        else:
            pl.write(out, [0, 7], 0.0)


@pytest.mark.parametrize(("n", "f"), [(7, 2.75), (-7, -2.75), (0, 0.0)])
def test_scalar_arithmetic_floors_and_truncates(n: int, f: float) -> None:
    table, out = torch.tensor([5, 6, 7, 8], dtype=torch.int32), torch.empty(1, 8)
    run(scalars, n=n, f=torch.tensor(f), table=table, out=out)
    at = 5 + n % 4
    want = [n // 4, n % 4, at, f / 2, int(f), min(n, at) - max(n, at), -f, float(n < 0 < at)]
    assert out.tolist() == [want]


@pl.jit
def tasks(x: pl.Tensor[[4, 16], pl.FP32], out: pl.Out[pl.Tensor[[4, 16], pl.FP32]]):
    ids = pl.array.create(4, pl.TASK_ID)
    scratch = pl.create_tensor([4, 16], dtype=pl.FP32, init_value=1.0)
    with pl.scope():
        for i in pl.unroll(4):
            with pl.at(level=pl.Level.CORE_GROUP, name_hint="double") as tid:
                scratch[i : i + 1, :] = pl.mul(x[i : i + 1, :], 2.0)
            ids[i] = tid
        joined = pl.system.task_dummy(deps=[ids[i] for i in range(4)])
        with pl.at(level=pl.Level.CORE_GROUP, deps=[joined]):
            out[:, :] = pl.add(scratch[:, :], 1.0)


def test_task_ids_and_scopes_do_not_change_values() -> None:
    x, out = randn(4, 16), torch.empty(4, 16)
    run(tasks, x=x, out=out)
    assert torch.equal(out, x * 2 + 1)


# ------------------------------------------------------------------------------------------ memory
@pl.jit
def swap_rows(x: pl.InOut[pl.Tensor[[2, 32], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        top = x[0:1, :]
        bottom = x[1:2, :]
        x[0:1, :] = bottom
        x[1:2, :] = top


def test_a_loaded_tile_does_not_see_later_stores() -> None:
    x = randn(2, 32)
    want = x.flip(0)
    run(swap_rows, x=x)
    assert torch.equal(x, want)


@pl.jit
def views(x: pl.Tensor[[6, 4, 8], pl.FP32], out: pl.InOut[pl.Tensor[[6, 32], pl.FP32]]):
    flat = pl.reshape(x, [24, 8])
    part = pl.slice(flat, [16, 8], [4, 0])
    inner = pl.slice(part, [4, 8], [8, 0])
    row = pl.slice(x, [1, 4, 8], [5, 0, 0], drop_dims=[0])
    target = pl.slice(out, [2, 16], [1, 8])
    with pl.at(level=pl.Level.CORE_GROUP):
        target[0:1, 8:16] = inner[2:3, :]
        target[1:2, 0:8] = row[3:4, :]


def test_views_compose_and_write_through() -> None:
    x, out = randn(6, 4, 8), torch.zeros(6, 32)
    run(views, x=x, out=out)
    want = torch.zeros(6, 32)
    want[1, 16:24] = x.reshape(24, 8)[4 + 8 + 2]
    want[2, 8:16] = x[5, 3]
    assert torch.equal(out, want)


@pl.jit
def scribble(x: pl.Tensor[[4, 16], pl.FP32], out: pl.Out[pl.Tensor[[4, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        x[:, :] = pl.add(x[:, :], 1.0)
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = x[:, :]


def test_an_in_tensor_that_is_written_is_a_private_copy() -> None:
    x, out = randn(4, 16), torch.empty(4, 16)
    before = x.clone()
    run(scribble, x=x, out=out)
    assert torch.equal(x, before)
    assert torch.equal(out, before + 1)


@pl.jit
def ping_pong(
    a: pl.InOut[pl.Tensor[[1, 16], pl.FP32]], b: pl.InOut[pl.Tensor[[1, 16], pl.FP32]], n: pl.Scalar[pl.INT32]
):
    source = a
    target = b
    for i in pl.range(n):
        with pl.at(level=pl.Level.CORE_GROUP):
            target[:, :] = pl.mul(source[:, :], 2.0)
        other = source
        source = target
        target = other


def test_tensors_swap_names_around_a_loop() -> None:
    a, b = torch.ones(1, 16), torch.zeros(1, 16)
    run(ping_pong, a=a, b=b, n=3)
    assert torch.equal(a, torch.full((1, 16), 4.0))
    assert torch.equal(b, torch.full((1, 16), 8.0))


@pl.jit
def split_k(x: pl.Tensor[[4, 1, 16], pl.BF16], out: pl.InOut[pl.Tensor[[1, 16], pl.BF16]]):
    for i in pl.spmd(4):
        t = pl.reshape(x[i : i + 1, :, :], [1, 16])
        out = pl.assemble(out, t, [0, 0], atomic=pl.AtomicType.Add)


def test_atomic_add_rounds_at_each_add() -> None:
    x, out = randn(4, 1, 16, dtype=torch.bfloat16), torch.full((1, 16), 100.0, dtype=torch.bfloat16)
    run(split_k, x=x, out=out)
    want = torch.full((1, 16), 100.0, dtype=torch.bfloat16)
    for i in range(4):
        want = (want.float() + x[i].float()).to(torch.bfloat16)
    assert torch.equal(out, want)
    assert not torch.equal(out, (100 + x.float().sum(0)).to(torch.bfloat16))  # one rounding would differ


@pl.jit
def partial_out(x: pl.Tensor[[2, 16], pl.FP32], out: pl.Out[pl.Tensor[[4, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[0:2, :] = x[:, :]


def test_what_nothing_writes_is_poison() -> None:
    x, out = randn(2, 16), torch.zeros(4, 16)
    run(partial_out, x=x, out=out)
    assert torch.equal(out[:2], x)
    assert out[2:].isnan().all()


@pl.jit
def returned(x: pl.Tensor[[2, 16], pl.FP32], out: pl.Out[pl.Tensor[[2, 16], pl.FP32]]):
    half = pl.create_tensor([2, 16], dtype=pl.FP32)
    with pl.at(level=pl.Level.CORE_GROUP):
        half[:, :] = pl.mul(x[:, :], 0.5)
        out[:, :] = x[:, :]
    return out, half


def test_returned_tensors_are_the_callers_own_or_new() -> None:
    x, out = randn(2, 16).requires_grad_(), torch.empty(2, 16)
    same, half = run(returned, x=x, out=out)
    assert same is out
    assert torch.equal(out, x)
    assert torch.equal(half, x * 0.5)
    assert not half.is_inference()  # a plain tensor, usable with autograd


@pl.jit
def across(x: pl.Tensor[[4, 16], pl.FP32], out: pl.Out[pl.Tensor[[4, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.exp(x[:, :])
        n = pl.read(t, [0, 0])
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = pl.mul(t, n)


def test_values_live_across_regions_before_any_pass() -> None:
    x, out = randn(4, 16), torch.empty(4, 16)
    run(across, x=x, out=out)
    assert torch.equal(out, x.exp() * x[0, 0].exp().item())


# ------------------------------------------------------------------------------------------ runs
def test_a_machine_runs_again_with_other_extents() -> None:
    machine = Machine(lower(softmax))
    for rows in (3, 9):
        x, out = randn(rows, 64, seed=rows), torch.empty(rows, 64)
        machine.run({"x": x, "out": out})
        torch.testing.assert_close(out, x.softmax(1), rtol=1e-6, atol=1e-6)


@pl.jit
def data_dependent(n: pl.Tensor[[1], pl.INT32], out: pl.InOut[pl.Tensor[[8, 16], pl.FP32]]):
    for a in pl.spmd(3, name_hint="known"):
        out[a : a + 1, :] = pl.full([1, 16], dtype=pl.FP32, value=1.0)
    count = pl.read(n, [0])
    for b in pl.spmd(count, name_hint="read"):
        out[b : b + 1, :] = pl.full([1, 16], dtype=pl.FP32, value=2.0)


def reports(kernel: Any, **args: Any) -> list[tuple[int, int, str]]:
    seen: list[tuple[int, int, str]] = []
    note: Callable[[int, int, str], None] = lambda done, total, label: seen.append((done, total, label))  # noqa: E731
    Machine(lower(kernel)).run(args, note)
    return seen


def test_progress_counts_blocks_before_the_run_where_it_can() -> None:
    seen = reports(softmax, x=randn(13, 64), out=torch.empty(13, 64))
    assert seen[0] == (1, 2 + 13, "softmax")
    assert seen[-1][:2] == (15, 15)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


def test_progress_adds_what_depends_on_data() -> None:
    out = torch.zeros(8, 16)
    seen = reports(data_dependent, n=torch.tensor([5], dtype=torch.int32), out=out)
    assert seen[0] == (1, 3, "known")
    assert seen[-1][:2] == (8, 8)
    assert out[:, 0].tolist() == [2, 2, 2, 2, 2, 0, 0, 0]
