"""A region in the tail of the launch before it, on a GPU: fewer blocks than may wait, as many, and more."""

from __future__ import annotations

import pytest
import torch

from ..cute.tail_kernels import halves_where_asked, sums_and_halves
from .catalogue import Entry
from .programs import cuda_graph, program_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("rows", [1, 2, 3, 100, 131, 132, 133, 263, 264, 265, 1000, 20000])
def test_a_tail_sees_all_that_its_head_wrote(rows: int) -> None:
    """Of whole numbers, so that the sums are exact."""
    launch = program_of("small/sums_and_halves", lambda on: Entry(sums_and_halves, on, {}))
    x = torch.zeros(rows, 64, device="cuda")
    y, z = torch.empty(rows, 64, device="cuda"), torch.empty(rows, 2, device="cuda")
    twice, sums = torch.empty_like(x), torch.empty(rows, 1, device="cuda")
    replay = cuda_graph(lambda: launch(x, twice, sums, y, z))
    generator = torch.Generator().manual_seed(rows)
    for _ in range(50 if rows < 2000 else 5):  # other values each time: nothing may come from the last one
        given = torch.randint(-100, 100, (rows, 64), generator=generator).float()
        x.copy_(given)
        y.fill_(float("nan"))
        z.fill_(float("nan"))
        replay()
        doubled = 2 * given
        assert torch.equal(y.cpu(), doubled * doubled.sum(1, keepdim=True).flip(0))
        assert torch.equal(z.cpu(), doubled.view(rows, 2, 32).sum(2))


@pytest.mark.parametrize("rows", [1, 2, 131, 132, 133, 264, 265, 1000, 20000])
def test_a_tail_does_what_is_asked_for_and_no_more(rows: int) -> None:
    """Nothing at all, a row here and there, one of the last blocks, everything."""
    launch = program_of("small/halves_where_asked", lambda on: Entry(halves_where_asked, on, {}))
    x, asked = torch.zeros(rows, 64, device="cuda"), torch.zeros(rows, dtype=torch.int32, device="cuda")
    twice, kinds = torch.empty_like(x), torch.empty_like(asked)
    sums, y = torch.empty(rows, 1, device="cuda"), torch.empty(rows, 64, device="cuda")
    replay = cuda_graph(lambda: launch(x, asked, twice, kinds, sums, y))
    generator = torch.Generator().manual_seed(rows)
    for trip in range(60 if rows < 2000 else 12):
        given = torch.randint(-100, 100, (rows, 64), generator=generator).float()
        wanted = torch.full((rows,), 2, dtype=torch.int32)  # nobody's kind
        if trip % 6 == 1:
            wanted[torch.randint(rows, (3,), generator=generator)] = 1
        elif trip % 6 == 2:
            wanted[-1] = 1
        elif trip % 6 == 3:
            wanted[0] = 3
        elif trip % 6 == 4:
            wanted = torch.randint(1, 4, (rows,), generator=generator, dtype=torch.int32)
        elif trip % 6 == 5:
            wanted[:] = 1
        x.copy_(given)
        asked.copy_(wanted)
        y.fill_(-0.5)
        replay()
        doubled = 2 * given
        expected = torch.full((rows, 64), -0.5)
        first = (wanted.flip(0) == 3) & (wanted != 1)
        expected[first, :32] = doubled[first, :32]
        whole = wanted == 1
        expected[whole] = (doubled * doubled.sum(1, keepdim=True).flip(0))[whole]
        assert torch.equal(y.cpu(), expected), f"trip {trip}"


def test_two_of_them_side_by_side() -> None:
    """Each may hold room that the other one waits for."""
    launch = program_of("small/sums_and_halves", lambda on: Entry(sums_and_halves, on, {}))
    rows = 3000
    streams = [torch.cuda.Stream() for _ in range(2)]
    given = [torch.full((rows, 64), float(i + 1), device="cuda") for i in range(2)]
    outputs = [[torch.full((rows, n), float("nan"), device="cuda") for n in (64, 1, 64, 2)] for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(20):
        for stream, x, out in zip(streams, given, outputs, strict=True):
            with torch.cuda.stream(stream):
                launch(x, *out)
    torch.cuda.synchronize()
    for i, (_, _, y, z) in enumerate(outputs, 1):
        assert bool((y == 2 * i * 128 * i).all()) and bool((z == 64 * i).all())
