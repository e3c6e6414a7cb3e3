"""Kernels for what a sample cannot show: global memory, scalars, names that share a tile, task ids.

Each case lists the ops that it stands for, and says in numpy what its kernel leaves in every tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import pypto_models.language as pl
from pypto_models.ir.nodes import Let
from pypto_models.ir.rewrite import walk

from .samples import exact

INF = float("inf")
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Case:
    """``make()`` gives the arguments, and by parameter what the tensors hold that the kernel changes."""

    kernel: pl.Kernel
    ops: tuple[str, ...]
    make: Callable[[], tuple[list[Any], dict[str, np.ndarray]]]

    def used(self) -> set[str]:
        """Names of the ops in the kernel's IR."""
        return {s.op.name for s in walk(pl.lower(self.kernel).body) if isinstance(s, Let)}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randint(most: int, *shape: int) -> torch.Tensor:
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(shape[0]))


# ------------------------------------------------------------------------------------------ views, boxes
@pl.jit
def through_views(
    x: pl.Tensor[[4, 16, 32], pl.FP32],
    y: pl.InOut[pl.Tensor[[64, 32], pl.FP32]],
):
    plane = pl.slice(x, [1, 16, 32], [2, 0, 0], drop_dims=[0])
    rows = pl.reshape(x, [64, 32])
    target = pl.slice(y, [32, 32], [16, 0])
    with pl.at(level=pl.Level.CORE_GROUP):
        target = pl.assemble(target, pl.slice(plane, [8, 32], [8, 0]), [24, 0])
        target = pl.assemble(target, pl.slice(rows, [8, 32], [20, 0]), [0, 0])


def through_views_made() -> Any:
    x, y = randn(4, 16, 32), randn(64, 32, seed=1)
    want = exact(y).copy()
    want[16 + 24 : 16 + 32] = exact(x)[2, 8:]
    want[16:24] = exact(x)[1, 4:12]
    return [x, y], {"y": want}


@pl.jit
def boxes_of_a_tensor(
    x: pl.Tensor[[20, 32], pl.FP32],
    y: pl.Tensor[[4, 16, 32], pl.FP32],
    n: pl.Scalar[pl.INT32],
    clamped: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
    padded: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
    infinite: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
    dropped: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
    sugar: pl.Out[pl.Tensor[[8, 32], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        cut = pl.slice(x, [16, 32], [n, 0], clamp=True)
        clamped = pl.assemble(clamped, pl.fillpad(cut, pl.PadValue.min), [0, 0])
        part = pl.slice(x, [16, 32], [12, 4], valid_shape=[n, 20], pad_value=pl.PadValue.max)
        padded = pl.assemble(padded, part, [0, 0])
        infinite = pl.assemble(infinite, pl.fillpad(pl.set_validshape(cut, 3, 9), INF), [0, 0])
        dropped = pl.assemble(dropped, pl.slice(y, [1, 16, 32], [3, 0, 0], drop_dims=[0]), [0, 0])
        sugar[0:8, :] = x[n : n + 8, :]


def boxes_of_a_tensor_made() -> Any:
    x, y, n = randn(20, 32), randn(4, 16, 32, seed=1), 7
    outs = [torch.empty(16, 32) for _ in range(4)] + [torch.empty(8, 32)]
    a = exact(x)
    clamped, padded, infinite = (np.full((16, 32), pad) for pad in (-LARGEST, LARGEST, INF))
    clamped[:13] = a[7:]
    padded[:7, :20] = a[12:19, 4:24]
    infinite[:3, :9] = a[7:10, :9]
    want = {"clamped": clamped, "padded": padded, "infinite": infinite}
    return [x, y, n, *outs], want | {"dropped": exact(y)[3], "sugar": a[7:15]}


@pl.jit
def boxes_of_a_tile(
    x: pl.Tensor[[32, 32], pl.FP32],
    clamped: pl.Out[pl.Tensor[[6, 32], pl.FP32]],
    padded: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
    placed: pl.Out[pl.Tensor[[32, 32], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.slice(x, [32, 32], [0, 0], valid_shape=[26, 32])
        clamped = pl.assemble(clamped, pl.slice(t, [16, 32], [20, 0], clamp=True), [0, 0])
        part = pl.slice(t, [16, 32], [16, 0], valid_shape=[4, 32], pad_value=pl.PadValue.zero)
        padded = pl.assemble(padded, part, [0, 0])
        whole = pl.create_tensor([32, 32], dtype=pl.FP32)
        whole = pl.assemble(whole, pl.slice(x, [16, 32], [16, 0]), [0, 0])
        whole = pl.assemble(whole, pl.slice(x, [16, 32], [0, 0]), [16, 0])
        placed = pl.assemble(placed, whole, [0, 0])


def boxes_of_a_tile_made() -> Any:
    x = randn(32, 32)
    a = exact(x)
    padded = np.zeros((16, 32))
    padded[:4] = a[16:20]
    want = {"clamped": a[20:26], "padded": padded, "placed": np.concatenate([a[16:], a[:16]])}
    return [x, torch.empty(6, 32), torch.empty(16, 32), torch.empty(32, 32)], want


@pl.jit
def only_what_is_valid(
    x: pl.Tensor[[16, 32], pl.FP32],
    n: pl.Scalar[pl.INT32],
    y: pl.InOut[pl.Tensor[[24, 40], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        y = pl.assemble(y, pl.slice(x, [16, 32], [0, 0], valid_shape=[n, 5]), [8, 8])


def only_what_is_valid_made() -> Any:
    x, y = randn(16, 32), randn(24, 40, seed=1)
    want = exact(y).copy()
    want[8:11, 8:13] = exact(x)[:3, :5]
    return [x, 3, y], {"y": want}


# ------------------------------------------------------------------------------------------ making tensors
@pl.jit
def atomic_adds(
    x: pl.Tensor[[64, 32], pl.FP32],
    k: pl.Tensor[[64, 32], pl.INT32],
    total: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
    count: pl.InOut[pl.Tensor[[16, 32], pl.INT32]],
):
    scratch = pl.create_tensor([16, 32], dtype=pl.FP32, init_value=2.5)
    for i in pl.parallel(4):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="add"):
            scratch = pl.assemble(scratch, x[16 * i : 16 * i + 16, :], [0, 0], atomic=pl.AtomicType.Add)
            count = pl.assemble(count, k[16 * i : 16 * i + 16, :], [0, 0], atomic=pl.AtomicType.Add)
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="copy"):
        total = pl.assemble(total, pl.slice(scratch, [16, 32], [0, 0]), [0, 0])


def atomic_adds_made() -> Any:
    x = randn(64, 32).round(decimals=1).mul(8).round().div(8)  # eighths: their sums are exact in any order
    k, count = torch.arange(2048, dtype=torch.int32).reshape(64, 32), torch.ones(16, 32, dtype=torch.int32)
    want = {"total": exact(x).reshape(4, 16, 32).sum(0) + 2.5}
    want["count"] = exact(k).reshape(4, 16, 32).sum(0) + 1
    return [x, k, torch.empty(16, 32), count], want


@pl.jit
def accumulators(
    a: pl.Tensor[[16, 64], pl.BF16],
    b: pl.Tensor[[64, 32], pl.BF16],
    fresh: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
    started: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        acc = pl.create_tensor([16, 32], dtype=pl.FP32)
        for k in pl.range(4):
            acc = pl.matmul_acc(acc, a[:, 16 * k : 16 * k + 16], b[16 * k : 16 * k + 16, :], init_cond=k == 0)
        fresh = pl.assemble(fresh, acc, [0, 0])
    with pl.at(level=pl.Level.CORE_GROUP):
        zero = pl.create_tensor([16, 32], dtype=pl.FP32, init_value=0.0)
        started = pl.assemble(started, pl.add(zero, 1.5), [0, 0])


def accumulators_made() -> Any:
    a, b = randint(8, 16, 64), randint(8, 64, 32)
    want = {"fresh": exact(a @ b).astype(float), "started": np.full((16, 32), 1.5)}
    return [a.bfloat16(), b.bfloat16(), torch.empty(16, 32), torch.empty(16, 32)], want


@pl.jit
def chained_products(
    a: pl.Tensor[[32, 16], pl.FP32],
    b: pl.Tensor[[48, 32], pl.FP32],
    c: pl.Tensor[[16, 32], pl.INT8],
    d: pl.Tensor[[32, 32], pl.INT8],
    floats: pl.Out[pl.Tensor[[16, 48], pl.FP32]],
    integers: pl.Out[pl.Tensor[[16, 32], pl.INT32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        y = pl.matmul(a, b, a_trans=True, b_trans=True)
        y = pl.matmul_acc(y, a, b, a_trans=True, b_trans=True)
        floats = pl.assemble(floats, y, [0, 0])
    with pl.at(level=pl.Level.CORE_GROUP):
        z = pl.matmul(c, d)
        z = pl.matmul_acc(z, c, d, init_cond=False)
        integers = pl.assemble(integers, z, [0, 0])


def chained_products_made() -> Any:
    a, b, c, d = randint(8, 32, 16), randint(8, 48, 32), randint(127, 16, 32), randint(127, 32, 32)
    want = {"floats": exact(2 * a.t() @ b.t()).astype(float), "integers": exact(2 * c @ d)}
    outs = [torch.empty(16, 48), torch.empty(16, 32, dtype=torch.int32)]
    return [a.float(), b.float(), c.to(torch.int8), d.to(torch.int8), *outs], want


# ------------------------------------------------------------------------------------------ in place
@pl.jit
def names_of_one_tile(
    x: pl.Tensor[[16, 32], pl.FP32],
    before: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
    after: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
    copy: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.slice(x, [16, 32], [0, 0])
        other = t
        doubled = pl.add(t, t)
        before = pl.assemble(before, t, [0, 0])
        pl.write(t, [3, 4], 7.5)
        pl.assemble(t, pl.slice(x, [8, 32], [8, 0]), [0, 0])
        t[15, 31] = pl.read(t, [3, 4]) + pl.read(doubled, [3, 4])
        after = pl.assemble(after, other, [0, 0])
        copy = pl.assemble(copy, doubled, [0, 0])


def names_of_one_tile_made() -> Any:
    x = randn(16, 32)
    a = exact(x)
    after = a.copy()
    after[3, 4] = 7.5
    after[:8] = a[8:]  # over the 7.5 too
    after[15, 31] = np.float32(after[3, 4] + 2 * a[3, 4])
    outs = [torch.empty(16, 32) for _ in range(3)]
    return [x, *outs], {"before": a, "after": after, "copy": 2 * a}


# ------------------------------------------------------------------------------------------ scalars
@pl.jit
def scalars(
    x: pl.Tensor[[64, 32], pl.FP32],
    rows: pl.Tensor[[4], pl.INT32],
    out: pl.Out[pl.Tensor[[64, 32], pl.FP32]],
    one: pl.InOut[pl.Tensor[[2, 8], pl.FP32]],
    count: pl.InOut[pl.Tensor[[4], pl.INT32]],
):
    last = pl.tensor.read(rows, [3])
    for i in pl.range(4):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="permute"):
            row = pl.read(rows, [i])
            out = pl.assemble(out, pl.slice(x, [16, 32], [row, 0]), [16 * i, 0])
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="write"):
        pl.write(one, [1, 3], pl.read(x, [last, 5]) + 0.5)
        one[0, 7] = 2.0
        pl.tensor.write(count, [2], last - rows[0])


def scalars_made() -> Any:
    x, rows = randn(64, 32), torch.tensor([48, 0, 32, 16], dtype=torch.int32)
    one, count = randn(2, 8, seed=3), torch.tensor([1, 2, 3, 4], dtype=torch.int32)
    a, ones, counts = exact(x), exact(one).copy(), exact(count).copy()
    ones[1, 3], ones[0, 7] = np.float32(a[16, 5] + 0.5), 2.0
    counts[2] = 16 - 48
    want = {"out": np.concatenate([a[r : r + 16] for r in (48, 0, 32, 16)]), "one": ones, "count": counts}
    return [x, rows, torch.empty(64, 32), one, count], want


# ------------------------------------------------------------------------------------------ tasks
@pl.jit
def tasks(
    x: pl.Tensor[[16, 32], pl.FP32],
    y: pl.InOut[pl.Tensor[[16, 32], pl.FP32]],
):
    ids = pl.array.create(2, pl.TASK_ID)
    with pl.manual_scope():
        for i in pl.unroll(2):
            with pl.at(level=pl.Level.CORE_GROUP, name_hint="half") as tid:
                y = pl.assemble(y, pl.slice(x, [8, 32], [8 * i, 0]), [8 * i, 0])
            ids[i] = tid
        both = pl.system.task_dummy(deps=[ids[k] for k in range(2)])
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="double", deps=[both]):
            y = pl.assemble(y, pl.mul(pl.slice(y, [16, 32], [0, 0]), 2.0), [0, 0])


def tasks_made() -> Any:
    x, y = randn(16, 32), randn(16, 32, seed=1)
    return [x, y], {"y": 2 * exact(x)}


@pl.jit
def arrays_of_scalars(
    x: pl.Tensor[[64, 32], pl.FP32],
    rows: pl.Tensor[[2], pl.INT32],
    out: pl.Out[pl.Tensor[[32, 32], pl.FP32]],
):
    at = pl.array.create(2, pl.INT32)
    at[0] = pl.read(rows, [1])
    at[1] = pl.read(rows, [0])
    for i in pl.unroll(2):
        with pl.at(level=pl.Level.CORE_GROUP):
            out = pl.assemble(out, pl.slice(x, [16, 32], [at[i], 0]), [16 * i, 0])


def arrays_of_scalars_made() -> Any:
    x, rows = randn(64, 32), torch.tensor([40, 8], dtype=torch.int32)
    a = exact(x)
    return [x, rows, torch.empty(32, 32)], {"out": np.concatenate([a[8:24], a[40:56]])}


ARRAYS = ("array_create", "array_get", "array_set")

CASES = (
    Case(through_views, ("view", "view_reshape", "load", "store"), through_views_made),
    Case(boxes_of_a_tensor, ("load", "store", "fillpad", "set_validshape"), boxes_of_a_tensor_made),
    Case(boxes_of_a_tile, ("extract", "create_tile", "insert"), boxes_of_a_tile_made),
    Case(only_what_is_valid, ("store",), only_what_is_valid_made),
    Case(atomic_adds, ("create", "store"), atomic_adds_made),
    Case(accumulators, ("create_tile", "matmul_acc"), accumulators_made),
    Case(chained_products, ("matmul", "matmul_acc"), chained_products_made),
    Case(names_of_one_tile, ("insert", "write_tile", "read_tile"), names_of_one_tile_made),
    Case(scalars, ("read_tensor", "write_tensor"), scalars_made),
    Case(tasks, (*ARRAYS, "task_dummy"), tasks_made),
    Case(arrays_of_scalars, ARRAYS, arrays_of_scalars_made),
)
