"""The matrix product of a decode step: a few rows against a stream of weights, and the stream alone."""

import pypto_models.language as pl

M, N, K = 16, 7168, 5120
BLOCK_N, BLOCK_K = 64, 256  # of the product
CORES, TILES = 132, 2240  # of the stream: the same 73 MB, one block to a core
ROWS, WIDTH = 16, 1024  # of one of its tiles: 32 KiB, two in flight


@pl.jit
def skinny_gemm(
    x: pl.Tensor[[M, K], pl.BF16],
    w: pl.Tensor[[N, K], pl.BF16],
    y: pl.Out[pl.Tensor[[M, N], pl.FP32]],
):
    for n in pl.spmd(N // BLOCK_N, name_hint="skinny_gemm"):
        acc = pl.create_tensor([M, BLOCK_N], pl.FP32)
        for k in pl.pipeline(K // BLOCK_K, stage=2):
            xk = pl.slice(x, [M, BLOCK_K], [0, k * BLOCK_K])
            wk = pl.slice(w, [BLOCK_N, BLOCK_K], [n * BLOCK_N, k * BLOCK_K])
            if k == 0:
                acc = pl.matmul(xk, wk, out_dtype=pl.FP32, b_trans=True)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        pl.assemble(y, acc, [0, n * BLOCK_N])


@pl.jit
def read_only(w: pl.Tensor[[TILES * ROWS, WIDTH], pl.BF16], y: pl.Out[pl.Tensor[[CORES * ROWS, 1], pl.BF16]]):
    for c in pl.spmd(CORES, name_hint="read_only"):
        top = pl.full([ROWS, WIDTH], pl.BF16, 0.0)
        for t in pl.pipeline(c, TILES, CORES, stage=2):
            top = pl.maximum(top, pl.slice(w, [ROWS, WIDTH], [t * ROWS, 0]))
        pl.assemble(y, pl.row_max(top), [c * ROWS, 0])
