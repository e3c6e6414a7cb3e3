"""The functions of one operand that a GPU approximates."""

from __future__ import annotations

import pypto_models.language as pl

ROWS = 8
COLUMNS = 1024


@pl.jit
def functions(
    x: pl.Tensor[[ROWS, COLUMNS], pl.FP32],
    exps: pl.Out[pl.Tensor[[ROWS, COLUMNS], pl.FP32]],
    roots: pl.Out[pl.Tensor[[ROWS, COLUMNS], pl.FP32]],
    exact: pl.Out[pl.Tensor[[ROWS, COLUMNS], pl.FP32]],
    inverses: pl.Out[pl.Tensor[[ROWS, COLUMNS], pl.FP32]],
):
    """exp(x), 1 / sqrt|x| twice, the second time with high precision, and 1 / x."""
    for r in pl.spmd(ROWS, name_hint="functions"):
        row = pl.slice(x, [1, COLUMNS], [r, 0])
        pl.assemble(exps, pl.exp(row), [r, 0])
        pl.assemble(roots, pl.rsqrt(pl.abs(row)), [r, 0])
        pl.assemble(exact, pl.rsqrt(pl.abs(row), high_precision=True), [r, 0])
        pl.assemble(inverses, pl.recip(row), [r, 0])
