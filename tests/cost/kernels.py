"""Kernels whose time can be worked out by hand: every tile is [16, 16], every fp32 tile 1024 bytes."""

from __future__ import annotations

import pypto_models.language as pl

N = 16
B = pl.dynamic("B")
TRIPS = 4
STAGE = 2
BLOCKS = 4
LAYERS = 3


@pl.jit
def one(x: pl.Tensor[[N, N], pl.FP32], y: pl.Out[pl.Tensor[[N, N], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="one"):
        y[:, :] = pl.add(x, 1.0)


@pl.jit
def two(x: pl.Tensor[[N, N], pl.FP32], y: pl.Out[pl.Tensor[[N, N], pl.FP32]]):
    m = pl.create_tensor([N, N], pl.FP32)
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="first"):
        m = pl.assemble(m, pl.add(x, 1.0), [0, 0])
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="second"):
        y[:, :] = pl.add(pl.slice(m, [N, N], [0, 0]), 1.0)


@pl.jit
def grid(x: pl.Tensor[[BLOCKS * N, N], pl.FP32], y: pl.Out[pl.Tensor[[BLOCKS * N, N], pl.FP32]]):
    for i in pl.spmd(BLOCKS, name_hint="grid"):
        part = pl.slice(x, [N, N], [i * N, 0])
        pl.assemble(y, pl.add(part, 1.0), [i * N, 0])


@pl.jit
def parallel(x: pl.Tensor[[BLOCKS * N, N], pl.FP32], y: pl.Out[pl.Tensor[[BLOCKS * N, N], pl.FP32]]):
    for i in pl.parallel(BLOCKS):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="parallel"):
            part = pl.slice(x, [N, N], [i * N, 0])
            y = pl.assemble(y, pl.add(part, 1.0), [i * N, 0])


@pl.jit
def same(x: pl.Tensor[[N, N], pl.FP32], y: pl.Out[pl.Tensor[[BLOCKS * N, N], pl.FP32]]):
    for i in pl.spmd(BLOCKS, name_hint="same"):
        pl.assemble(y, pl.add(pl.slice(x, [N, N], [0, 0]), 1.0), [i * N, 0])


@pl.jit
def plain(x: pl.Tensor[[TRIPS * N, N], pl.FP32], y: pl.Out[pl.Tensor[[N, N], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="plain"):
        acc = pl.full([N, N], pl.FP32, 0.0)
        for k in pl.range(TRIPS):
            acc = pl.add(acc, pl.slice(x, [N, N], [k * N, 0]))
        y[:, :] = acc


@pl.jit
def pipelined(x: pl.Tensor[[TRIPS * N, N], pl.FP32], y: pl.Out[pl.Tensor[[N, N], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="pipelined"):
        acc = pl.full([N, N], pl.FP32, 0.0)
        for k in pl.pipeline(TRIPS, stage=STAGE):
            acc = pl.add(acc, pl.slice(x, [N, N], [k * N, 0]))
        y[:, :] = acc


@pl.jit
def product(
    x: pl.Tensor[[N, N], pl.BF16], w: pl.Tensor[[N, N], pl.BF16], y: pl.Out[pl.Tensor[[N, N], pl.FP32]]
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="product"):
        y[:, :] = pl.matmul(x, w, out_dtype=pl.FP32)


@pl.jit
def wide_product(
    x: pl.Tensor[[N, N], pl.FP32], w: pl.Tensor[[N, N], pl.FP32], y: pl.Out[pl.Tensor[[N, N], pl.FP32]]
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="wide_product"):
        y[:, :] = pl.matmul(x, w)


@pl.jit
def mixed(
    x: pl.Tensor[[N, N], pl.BF16], w: pl.Tensor[[N, N], pl.BF16], y: pl.Out[pl.Tensor[[N, N], pl.FP32]]
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="mixed", optimizations=[pl.split(pl.SplitMode.UP_DOWN)]):
        y[:, :] = pl.add(pl.matmul(x, w, out_dtype=pl.FP32), 1.0)


@pl.jit
def diamond(x: pl.Tensor[[N, N], pl.FP32], y: pl.Out[pl.Tensor[[N, N], pl.FP32]]):
    a = pl.create_tensor([N, N], pl.FP32)
    b = pl.create_tensor([N, N], pl.FP32)
    c = pl.create_tensor([N, N], pl.FP32)
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="top"):
        a = pl.assemble(a, pl.add(x, 1.0), [0, 0])
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="short"):
        b = pl.assemble(b, pl.add(pl.slice(a, [N, N], [0, 0]), 1.0), [0, 0])
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="long"):
        c = pl.assemble(c, pl.add(pl.add(pl.slice(a, [N, N], [0, 0]), 1.0), 1.0), [0, 0])
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="bottom"):
        y[:, :] = pl.add(pl.slice(b, [N, N], [0, 0]), pl.slice(c, [N, N], [0, 0]))


@pl.jit
def layers(x: pl.InOut[pl.Tensor[[N, N], pl.FP32]]):
    for layer in pl.range(LAYERS):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="layer"):
            x[:, :] = pl.add(x, 1.0)


@pl.jit
def by_data(
    n: pl.Tensor[[1], pl.INT32], x: pl.Tensor[[64, N], pl.FP32], y: pl.Out[pl.Tensor[[N, N], pl.FP32]]
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="by_data"):
        trips = pl.cast(pl.read(n, [0]), pl.INDEX)
        acc = pl.full([N, N], pl.FP32, 0.0)
        for k in pl.range(trips):
            acc = pl.add(acc, pl.slice(x, [N, N], [k * N, 0]))
        y[:, :] = acc


@pl.jit
def by_branch(
    n: pl.Tensor[[1], pl.INT32], x: pl.Tensor[[N, N], pl.FP32], y: pl.Out[pl.Tensor[[N, N], pl.FP32]]
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="by_branch"):
        if pl.read(n, [0]) > 0:
            out = pl.add(x, 1.0)
        else:
            out = pl.add(pl.add(x, 1.0), 1.0)
        y[:, :] = out


@pl.jit
def rows(x: pl.Tensor[[B, N], pl.FP32], y: pl.Out[pl.Tensor[[B, N], pl.FP32]]):
    live = pl.tensor.dim(x, 0)
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="rows"):
        part = pl.slice(x, [N, N], [0, 0], valid_shape=[live, N])
        y = pl.assemble(y, pl.add(part, 1.0), [0, 0])
