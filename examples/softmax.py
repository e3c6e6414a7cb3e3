"""Softmax over rows of run-time number and length: a dynamic batch, a valid rectangle, row reductions.

python examples/softmax.py --rows 37
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

import pypto_models.language as pl
from golden import TensorSpec, run_jit

COLS, BLOCK = 512, 16
ROWS = pl.dynamic("ROWS")


@pl.jit
def softmax(
    x: pl.Tensor[[ROWS, COLS], pl.FP32],
    y: pl.Out[pl.Tensor[[ROWS, COLS], pl.FP32]],
):
    rows = pl.tensor.dim(x, 0)
    for b in pl.spmd((rows + BLOCK - 1) // BLOCK, name_hint="softmax"):
        live = pl.min(rows - b * BLOCK, BLOCK)
        tile = pl.slice(x, [BLOCK, COLS], [b * BLOCK, 0], valid_shape=[live, COLS])
        shifted = pl.row_expand_sub(tile, pl.row_max(tile))
        weights = pl.exp(shifted)
        pl.assemble(y, pl.row_expand_div(weights, pl.row_sum(weights)), [b * BLOCK, 0])


def specs(rows: int) -> list[TensorSpec]:
    return [
        TensorSpec("x", (rows, COLS), torch.float32, torch.randn),
        TensorSpec("y", (rows, COLS), torch.float32, is_output=True),
    ]


def golden(tensors: dict[str, Any]) -> None:
    tensors["y"][:] = torch.softmax(tensors["x"].double(), dim=1)


def main() -> int:
    parser = argparse.ArgumentParser(description="Softmax over the rows of a matrix.")
    parser.add_argument("-p", "--platform", default="a2a3sim", help="such as a2a3sim (default) or h200sim")
    parser.add_argument("--rows", type=int, default=100, help="rows of the matrix (default 100)")
    options = parser.parse_args()
    platform = {"platform": options.platform}
    result = run_jit(softmax, specs(options.rows), golden_fn=golden, atol=1e-6, runtime_cfg=platform)
    if result.error:
        print(result.error)
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
