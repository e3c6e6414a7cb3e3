"""Small programs to tune: two products in a row, and tiles that a constant decides."""

from __future__ import annotations

from typing import Any

import pypto_models.language as pl

ROWS = pl.dynamic("ROWS")
TILE = 16


@pl.jit
def chain(
    x: pl.Tensor[[ROWS, 512], pl.BF16],
    first: pl.Tensor[[256, 512], pl.BF16],
    second: pl.Tensor[[512, 256], pl.BF16],
    at: pl.Tensor[[ROWS], pl.INT32],
    y: pl.Out[pl.Tensor[[ROWS, 512], pl.FP32]],
    z: pl.Out[pl.Tensor[[ROWS, 512], pl.FP32]],
):
    """y = (x @ first^T) @ second^T, z = rows of y in the order of `at`."""
    rows = pl.tensor.dim(x, 0)
    middle = pl.create_tensor([rows, 256], pl.BF16)
    order = pl.create_tensor([rows], pl.INT32)
    for n in pl.spmd(4, name_hint="up"):
        acc = pl.create_tensor([16, 64], pl.FP32)
        for k in pl.pipeline(2, stage=2):
            xk = pl.slice(x, [16, 256], [0, k * 256], valid_shape=[rows, 256])
            wk = pl.slice(first, [64, 256], [n * 64, k * 256])
            if k == 0:
                acc = pl.matmul(xk, wk, b_trans=True, out_dtype=pl.FP32)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        pl.assemble(middle, pl.cast(acc, pl.BF16, mode="rint"), [0, n * 64])
    for n in pl.spmd(8, name_hint="down"):
        acc = pl.create_tensor([16, 64], pl.FP32)
        for k in pl.pipeline(1, stage=2):
            xk = pl.slice(middle, [16, 256], [0, k * 256], valid_shape=[rows, 256])
            wk = pl.slice(second, [64, 256], [n * 64, k * 256])
            if k == 0:
                acc = pl.matmul(xk, wk, b_trans=True, out_dtype=pl.FP32)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        pl.assemble(y, acc, [0, n * 64])
    for r in pl.spmd(rows, name_hint="look_up"):
        pl.write(order, [r], pl.read(at, [r]))
    for r in pl.spmd(rows * (512 // TILE), name_hint="gather"):
        row = pl.cast(pl.read(order, [r // (512 // TILE)]), pl.INDEX)
        column = r % (512 // TILE) * TILE
        pl.assemble(z, pl.slice(y, [1, TILE], [row, column]), [r // (512 // TILE), column])
    for i in pl.range(2):
        for r in pl.spmd(rows, name_hint="again"):
            pl.assemble(z, pl.mul(pl.slice(z, [1, 512], [r, 0]), 1.0), [r, 0])


def cli_constants(target: str) -> dict[str, Any]:
    return {"TILE": 64}


def cli_arguments(target: str, given: dict[str, Any]) -> dict[str, Any]:
    return {"ROWS": 5, "at": [4, 3, 0, 1, 2]}


def cli_tuning(target: str) -> dict[str, Any]:
    return {"gather": {"regions": ["look_up", "gather"], "TILE": [32, 64, 1024]}}
