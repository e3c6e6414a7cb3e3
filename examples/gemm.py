"""A matrix product with a K loop: the accumulator stays on chip, the weights stream.

python examples/gemm.py
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

import pypto_models.language as pl
from golden import TensorSpec, run_jit

M, N, K = 32, 256, 512
BLOCK_N, BLOCK_K = 64, 128


@pl.jit
def gemm(
    x: pl.Tensor[[M, K], pl.BF16],
    w: pl.Tensor[[N, K], pl.BF16],
    y: pl.Out[pl.Tensor[[M, N], pl.FP32]],
):
    for n in pl.spmd(N // BLOCK_N, name_hint="gemm"):
        acc = pl.create_tensor([M, BLOCK_N], pl.FP32)
        for k in pl.pipeline(K // BLOCK_K, stage=2):
            xk = pl.slice(x, [M, BLOCK_K], [0, k * BLOCK_K])
            wk = pl.slice(w, [BLOCK_N, BLOCK_K], [n * BLOCK_N, k * BLOCK_K])
            if k == 0:
                acc = pl.matmul(xk, wk, out_dtype=pl.FP32, b_trans=True)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        pl.assemble(y, acc, [0, n * BLOCK_N])


SPECS = [
    TensorSpec("x", (M, K), torch.bfloat16, torch.randn),
    TensorSpec("w", (N, K), torch.bfloat16, torch.randn),
    TensorSpec("y", (M, N), torch.float32, is_output=True),
]


def golden(tensors: dict[str, Any]) -> None:
    tensors["y"][:] = tensors["x"].double() @ tensors["w"].double().T


def main() -> int:
    parser = argparse.ArgumentParser(description="Multiply two matrices in K slices.")
    parser.add_argument("-p", "--platform", default="a2a3sim", help="such as a2a3sim (default) or h200sim")
    options = parser.parse_args()
    result = run_jit(
        gemm, SPECS, golden_fn=golden, rtol=1e-3, atol=1e-3, runtime_cfg={"platform": options.platform}
    )
    if result.error:
        print(result.error)
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
