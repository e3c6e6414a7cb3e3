"""The first kernel: add a scalar to a matrix, one row block per task.

python examples/add_scalar.py
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

import pypto_models.language as pl
from golden import ScalarSpec, TensorSpec, run_jit

ROWS, COLS, BLOCK = 128, 256, 32


@pl.jit
def add_scalar(
    x: pl.Tensor[[ROWS, COLS], pl.FP32],
    value: pl.Scalar[pl.FP32],
    y: pl.Out[pl.Tensor[[ROWS, COLS], pl.FP32]],
):
    for b in pl.spmd(ROWS // BLOCK, name_hint="add_scalar"):
        tile = pl.slice(x, [BLOCK, COLS], [b * BLOCK, 0])
        pl.assemble(y, pl.add(tile, value), [b * BLOCK, 0])


SPECS = [
    TensorSpec("x", (ROWS, COLS), torch.float32, torch.randn),
    ScalarSpec("value", torch.float32, 1.5),
    TensorSpec("y", (ROWS, COLS), torch.float32, is_output=True),
]


def golden(tensors: dict[str, Any]) -> None:
    tensors["y"][:] = tensors["x"] + tensors["value"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Add a scalar to a matrix.")
    parser.add_argument("-p", "--platform", default="a2a3sim", help="such as a2a3sim (default) or h200sim")
    options = parser.parse_args()
    result = run_jit(add_scalar, SPECS, golden_fn=golden, runtime_cfg={"platform": options.platform})
    if result.error:
        print(result.error)
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
