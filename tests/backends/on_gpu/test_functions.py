"""What exp, rsqrt and recip err by on a GPU (backends/cute/rules.py), against fp64."""

from __future__ import annotations

import pytest
import torch

from ..cute.function_kernels import COLUMNS, ROWS, functions
from .catalogue import Entry
from .programs import program_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("largest", [1.0, 80.0, 1e30])
def test_functions_are_as_near_as_said(largest: float) -> None:
    torch.manual_seed(7)
    sizes = torch.exp(torch.empty(ROWS, COLUMNS).uniform_(-4, 0)) * largest
    x = torch.where(torch.rand_like(sizes) < 0.5, -sizes, sizes)
    x[0, :4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    outs = [torch.full((ROWS, COLUMNS), torch.nan).cuda() for _ in range(4)]
    program_of("small/functions", lambda on: Entry(functions, on, {}))(x.cuda(), *outs)
    exps, roots, exact, inverses = (y.double().cpu() for y in outs)
    assert inverses[0, :4].tolist() == [torch.inf, -torch.inf, 0.0, -0.0]
    assert exps[0, :4].tolist() == [1.0, 1.0, torch.inf, 0.0]
    assert roots[0, :4].tolist() == exact[0, :4].tolist() == [torch.inf, torch.inf, 0.0, 0.0]
    exps, roots, exact, inverses = (y.flatten()[4:] for y in (exps, roots, exact, inverses))
    wide = x.double().flatten()[4:]
    for name, found, want, bound in (
        ("rsqrt", roots, wide.abs().rsqrt(), 2**-22.4),
        ("exact rsqrt", exact, wide.abs().rsqrt(), 2**-23),  # a root and a quotient
        ("recip", inverses, 1 / wide, 2**-24),
    ):
        assert ((found - want).abs() <= bound * want.abs()).all(), name
    if largest <= 80:
        assert ((exps - wide.exp()).abs() <= (2**-22 + wide.abs() * 2**-23) * wide.exp()).all()
    else:
        assert torch.equal(exps, torch.where(wide > 0, torch.inf, 0.0).double())
