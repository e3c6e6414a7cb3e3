"""Epilogues of streamed products on a GPU: any rows, uneven shares of columns, reads ahead and in place."""

from __future__ import annotations

import pytest
import torch

from ..cute.epilogue_kernels import BLOCKS, DEPTH, WIDTH, added, epilogues
from .catalogue import Entry
from .programs import program_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("rows", [1, 16, 17, 31, 48])
def test_every_element_is_finished_once(rows: int) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, DEPTH).bfloat16(), (torch.randn(WIDTH, DEPTH) / 16).bfloat16()
    bias, scale = torch.randn(1, WIDTH), torch.randn(rows, 1)
    residual, summed = torch.randn(rows, WIDTH).bfloat16(), torch.randn(rows, WIDTH)
    order = torch.randperm(BLOCKS).int()
    product = x.double() @ weight.double().T
    ordered = torch.empty_like(product)
    ordered.view(rows, BLOCKS, 8)[:, order] = product.view(rows, BLOCKS, 8)
    want = {
        "summed": product + summed.double(),
        "before": summed.double(),
        "y": (product + bias.double()) * scale.double() + residual.double(),
        "ordered": ordered,
    }
    # Rows behind those of the step, which nothing may touch
    starts = [summed, *(torch.full_like(summed, torch.nan) for _ in range(3))]
    held = [torch.cat([t, torch.full_like(t, 7.0)]).cuda() for t in starts]
    launch = program_of("small/epilogues", lambda on: Entry(epilogues, on, {}))
    launch(*(t.cuda() for t in (x, weight, bias, scale, residual, order)), *(t[:rows] for t in held))
    for t, (name, exact) in zip(held, want.items(), strict=True):
        torch.testing.assert_close(t[:rows].double().cpu(), exact, rtol=1e-5, atol=1e-4, msg=name)
        assert (t[rows:] == 7.0).all(), name


@pytest.mark.parametrize("rows", [1, 17, 48])
def test_a_product_is_added_once(rows: int) -> None:
    """Of whole numbers, whose sums are exact."""
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randint(-2, 3, (n, DEPTH), generator=generator).bfloat16() for n in (rows, WIDTH))
    held = torch.randint(-9, 9, (2 * rows, WIDTH), generator=generator).float()
    want = held.double()
    want[:rows] += 2 * (x.double() @ weight.double().T)
    y = held.cuda()
    launch = program_of("small/added", lambda on: Entry(added, on, {}))
    for _ in range(2):
        launch(x.cuda(), weight.cuda(), y[:rows])
    assert torch.equal(y.cpu().double(), want)
