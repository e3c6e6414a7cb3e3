"""Epilogues of streamed products on a GPU: any rows, uneven shares of columns, reads ahead and in place."""

from __future__ import annotations

import pytest
import torch

from ..cute.epilogue_kernels import DEPTH, WIDTH, epilogues
from .catalogue import Entry
from .programs import program_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("rows", [1, 16, 17, 31, 48])
def test_every_element_is_finished_once(rows: int) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, DEPTH).bfloat16(), (torch.randn(WIDTH, DEPTH) / 16).bfloat16()
    bias, scale = torch.randn(1, WIDTH), torch.randn(rows, 1)
    residual, summed = torch.randn(rows, WIDTH).bfloat16(), torch.randn(rows, WIDTH)
    product = x.double() @ weight.double().T
    want = (product + bias.double()) * scale.double() + residual.double()

    # Rows behind those of the step, which nothing may touch
    held = [
        torch.cat([t, torch.full_like(t, 7.0)]).cuda() for t in (summed, torch.full_like(summed, torch.nan))
    ]
    there, y = held[0][:rows], held[1][:rows]
    launch = program_of("small/epilogues", lambda on: Entry(epilogues, on, {}))
    launch(*(t.cuda() for t in (x, weight, bias, scale, residual)), there, y)
    torch.testing.assert_close(y.double().cpu(), want, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(there.double().cpu(), product + summed.double(), rtol=1e-5, atol=1e-4)
    assert all((t[rows:] == 7.0).all() for t in held)
