"""FP8 weights with one scale per block of 128 x 128 elements.

A matrix `[N, K]` of float8_e4m3fn comes with `scale` `[ceil(N / 128), ceil(K / 128)]`: element (n, k) stands
for `weight[n, k] * scale[n // 128, k // 128]`. The tensor is named weight_scale_inv, and yet it multiplies.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

BLOCK = 128
"""Rows and columns that share a scale."""


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The scale's shape for a matrix of `shape`."""
    return tuple(-(-extent // BLOCK) for extent in shape)


def scale_rows(take: Iterable[range], rows: int) -> tuple[range, ...]:
    """The rows of the scale that go with the row ranges `take` of a matrix with `rows` rows.

    Only whole blocks can be moved: a range starts on a block, and ends on one or with the matrix.

    Raises:
        ValueError: if a range cuts a block in two.
    """
    found = []
    for part in take:
        if part.start % BLOCK or (part.stop % BLOCK and part.stop != rows):
            raise ValueError(
                f"rows {part.start}:{part.stop} of {rows} are not whole blocks of {BLOCK} rows, "
                f"which share a scale"
            )
        found.append(range(part.start // BLOCK, -(-part.stop // BLOCK)))
    return tuple(found)


def dequantise(weight: Tensor, scale: Tensor, out: Tensor) -> Tensor:
    """`out` `[N, K]` = weight * scale: multiplied in fp32, rounded once to the element type of `out`.

    Args:
        weight: `[N, K]` float8_e4m3fn.
        scale: `[ceil(N / 128), ceil(K / 128)]`, float32 or bfloat16.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    if tuple(scale.shape) != scale_shape(tuple(weight.shape)) or out.shape != weight.shape:
        raise ValueError(
            f"weight {list(weight.shape)}, scale {list(scale.shape)} and out {list(out.shape)}: the scale of "
            f"such a weight is {list(scale_shape(tuple(weight.shape)))}"
        )
    # A row of blocks at a time: the fp32 product of a whole matrix would be the largest tensor of a layer.
    for block, factors in enumerate(scale.float()):
        rows = slice(block * BLOCK, (block + 1) * BLOCK)
        wide = factors.repeat_interleave(BLOCK)[: weight.shape[1]]
        out[rows] = weight[rows].to(torch.float32) * wide
    return out
