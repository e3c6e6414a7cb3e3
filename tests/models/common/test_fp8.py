"""Block scales: the value of a weight, and permutations that move scales and rows together."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from models.common import fp8
from models.common.relayout import Ranges, copy_rows, gated_rows, grouped_qkvz_rows


def blocks(
    rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A random FP8 weight, and scales that span a factor of a thousand."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    shape = fp8.scale_shape((rows, columns))
    scale = torch.exp(torch.rand(shape, generator=generator) * 7 - 7).to(dtype)
    return weight, scale


def plain(weight: Tensor, scale: Tensor) -> Tensor:
    """weight * scale in fp64: every scale blown up to a block of 128 x 128."""
    wide = torch.kron(scale.double(), torch.ones(128, 128, dtype=torch.float64))
    return weight.double() * wide[: weight.shape[0], : weight.shape[1]]


def taken(x: Tensor, take: Ranges) -> Tensor:
    return torch.cat([x[part.start : part.stop] for part in take])


@pytest.mark.parametrize("shape", [(256, 384), (200, 130), (48, 64), (1, 1)])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_value(shape: tuple[int, int], scale_dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    weight, scale = blocks(*shape, scale_dtype)
    got = fp8.dequantise(weight, scale, torch.empty(shape, dtype=out_dtype))
    # The product of 4 and 24 bits may need rounding to fp32, then to bf16; of 4 and 8 bits it needs none.
    want = plain(weight, scale).to(torch.float32).to(out_dtype)
    assert torch.equal(got, want)


LAYOUTS = [
    ("gated attention", gated_rows(2, 256)),
    ("grouped, R = 1", grouped_qkvz_rows(2, 2, 128, 128)),
    ("grouped, R = 2", grouped_qkvz_rows(2, 4, 128, 256)),
    ("grouped, R = 3", grouped_qkvz_rows(3, 9, 256, 128)),
]


@pytest.mark.parametrize(("what", "sections"), LAYOUTS)
def test_scales_move_with_their_rows(what: str, sections: tuple[Ranges, ...]) -> None:
    take = tuple(part for section in sections for part in section)
    rows = sum(map(len, take))
    weight, scale = blocks(rows, 256)
    dequantised_first = taken(fp8.dequantise(weight, scale, torch.empty(rows, 256)), take)
    moved_weight = taken(weight.view(torch.uint8), take).view(torch.float8_e4m3fn)
    moved_scale = taken(scale, fp8.scale_rows(take, rows))
    permuted_first = fp8.dequantise(moved_weight, moved_scale, torch.empty(rows, 256))
    assert torch.equal(permuted_first, dequantised_first)
    assert torch.equal(copy_rows(torch.empty(rows, 256), weight, take, scale), dequantised_first)
    # What leaving the scales where they were would cost.
    forgotten = fp8.dequantise(moved_weight, scale, torch.empty(rows, 256))
    assert (forgotten - dequantised_first).norm() > 0.3 * dequantised_first.norm()


@pytest.mark.parametrize(
    ("take", "rows", "message"),
    [
        ((range(0, 64), range(64, 128)), 128, "rows 0:64 of 128 are not whole blocks of 128 rows"),
        ((range(64, 256),), 256, "rows 64:256 of 256 are not whole blocks"),
        ((range(0, 192),), 200, "rows 0:192 of 200 are not whole blocks"),
    ],
)
def test_only_whole_blocks_can_move(take: Ranges, rows: int, message: str) -> None:
    weight, scale = blocks(rows, 128)
    with pytest.raises(ValueError, match=message):
        copy_rows(torch.empty(rows, 128), weight, take, scale)


def test_a_partial_block_at_the_end_can_move() -> None:
    weight, scale = blocks(200, 128)
    take = (range(128, 200), range(0, 128))
    got = copy_rows(torch.empty(200, 128), weight, take, scale)
    assert torch.equal(got, taken(plain(weight, scale).float(), take))


def test_scale_of_another_weight() -> None:
    weight, scale = blocks(256, 128)
    message = re.escape(
        "weight [256, 128], scale [1, 1] and out [256, 128]: the scale of such a weight is [2, 1]"
    )
    with pytest.raises(ValueError, match=message):
        fp8.dequantise(weight, scale[:1], torch.empty(256, 128))
