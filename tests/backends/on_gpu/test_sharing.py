"""Regions that share a launch, on a GPU: any number of blocks of each, and what comes after them."""

from __future__ import annotations

import pytest
import torch

from ..cute.sharing_kernels import around_a_stream, three_apart
from .catalogue import Entry
from .programs import cuda_graph, program_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("parts", [1, 7, 300])
def test_a_region_from_behind_a_product_runs_ahead_of_it(parts: int) -> None:
    torch.manual_seed(parts)
    x, w = torch.randn(16, 512), (torch.randn(256, 512) / 16).bfloat16()
    counts = torch.randint(0, 5, (parts,), dtype=torch.int32)
    sums = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)[:-1]])
    normed = (x.double() * x.double().square().mean(1, keepdim=True).rsqrt()).bfloat16().double()
    want = normed @ w.double().T + float(sums[-1])

    there = [t.cuda() for t in (x, w, counts)]
    before = torch.full((parts,), -1, dtype=torch.int32, device="cuda")
    y = torch.full((16, 256), float("nan"), device="cuda")
    launch = program_of("small/around_a_stream", lambda on: Entry(around_a_stream, on, {}))
    launch(*there, before, y)
    assert torch.equal(before.cpu().long(), sums)
    # A few elements of `normed` round the other way than in fp64, by 2^-8 of it
    torch.testing.assert_close(y.double().cpu(), want, rtol=0, atol=2e-3)
    first = y.clone()
    replay = cuda_graph(lambda: launch(*there, before, y))
    for _ in range(20):
        before.fill_(-1)
        y.fill_(float("nan"))
        replay()
        assert torch.equal(before.cpu().long(), sums) and torch.equal(y, first)


@pytest.mark.parametrize("rows", [1, 15, 16, 40, 1000])
def test_three_regions_of_other_shapes(rows: int) -> None:
    torch.manual_seed(rows)
    x, a, b = torch.randn(rows, 512), torch.randn(16, 512).bfloat16(), torch.randn(512, 64).bfloat16()
    outputs = [torch.full(s, float("nan")).cuda() for s in ((rows, 512), (rows, 1), (16, 64), (rows, 512))]
    launch = program_of("small/three_apart", lambda on: Entry(three_apart, on, {}))
    launch(*(t.cuda() for t in (x, a, b)), *outputs)
    y, sums, product, after = (t.cpu() for t in outputs)
    whole = rows // 16 * 16
    assert torch.equal(y[:whole], x[:whole] * 2) and y[whole:].isnan().all()
    torch.testing.assert_close(sums.double(), x.double().sum(1, keepdim=True), rtol=0, atol=1e-4)
    torch.testing.assert_close(product.double(), a.double() @ b.double(), rtol=0, atol=1e-3)
    assert torch.equal(after, x + sums + product[0, 0])
