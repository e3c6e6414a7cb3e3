"""A norm between two products that do it themselves, on a GPU: any number of rows, the same bits twice."""

from __future__ import annotations

import pytest
import torch

from ..cute.norm_kernels import norm_between
from .catalogue import Entry
from .programs import program_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_two_products_share_a_norm(rows: int) -> None:
    torch.manual_seed(rows)
    x = torch.randn(rows, 512).bfloat16()
    first, second = (torch.randn(256, 512) / 16).bfloat16(), (torch.randn(192, 256) / 16).bfloat16()
    scale = torch.randn(1, 256) / 8
    middle = (x.double() @ first.double().T).bfloat16().double()
    hat = (middle * (middle.square().mean(1, keepdim=True) + 1e-6).rsqrt()).bfloat16().double()
    want = (hat * (1 + scale.double())).bfloat16().double() @ second.double().T

    y = torch.full((rows, 192), float("nan"), device="cuda")
    launch = program_of("small/norm_between", lambda on: Entry(norm_between, on, {}))
    there = [t.cuda() for t in (x, first, scale, second)]
    launch(*there, y)
    # A few of the 256 elements of a row round the other way than in fp64, by 2^-8 of themselves
    torch.testing.assert_close(y.double().cpu(), want, rtol=0, atol=1e-2)
    again = torch.full_like(y, float("nan"))
    launch(*there, again)
    assert torch.equal(again, y)
