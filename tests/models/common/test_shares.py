"""The shares of decode attention: their tables against plain Python, and which contexts are cut where."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pypto_models.language as pl
from models.common.attention import plan_runs
from models.common.sizes import PAGE
from pypto_models.compile import Program, compile

T = pl.dynamic("T")
B = pl.dynamic("B")
B1 = pl.dynamic("B1")
RUNS = pl.dynamic("RUNS")

LIVE = 7  # columns that describe a run; the next one counts those of a share
UNWRITTEN = -(2**31)  # what the simulator fills an output with


@pl.jit
def plan_entry(
    slot_mapping: pl.Tensor[[T], pl.INT32],
    cu_q: pl.Tensor[[B1], pl.INT32],
    ctx: pl.Tensor[[B], pl.INT32],
    run_table: pl.Out[pl.Tensor[[RUNS, 8], pl.INT32]],
    row_table: pl.Out[pl.Tensor[[T, 3], pl.INT32]],
):
    run_table, row_table = plan_runs(slot_mapping, cu_q, ctx, run_table, row_table)


@cache
def planner(shares: int, span: int) -> Program:
    return compile(plan_entry, constants={"TARGET_RUNS": shares, "SPAN": span})


@dataclass(frozen=True)
class Layout:
    """Of each sequence its rows in the step and its context; those in `dead` have rows without slots."""

    rows: list[int]
    ctx: list[int]
    dead: frozenset[int] = frozenset()
    behind: int = 0  # rows that no sequence owns

    @property
    def starts(self) -> list[int]:
        return [sum(self.rows[:s]) for s in range(len(self.rows) + 1)]

    @property
    def total(self) -> int:
        return self.starts[-1] + self.behind

    def live(self, s: int) -> bool:
        return self.rows[s] > 0 and self.ctx[s] > 0 and s not in self.dead

    @property
    def slots(self) -> list[int]:
        out = [-1] * self.total
        for s, n in enumerate(self.rows):
            for j in range(n if self.live(s) else 0):
                out[self.starts[s] + j] = 7
        return out


def tables(layout: Layout, shares: int, span: int) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """First runs of the shares, runs and rows as the region writes them."""
    sizes = ((len(layout.ctx) * shares, 8), (layout.total, 3))
    out = [torch.zeros(size, dtype=torch.int32) for size in sizes]
    given = (layout.slots, layout.starts, layout.ctx)
    planner(shares, span)(*(torch.tensor(x, dtype=torch.int32) for x in given), *out)
    by_share = out[0].view(-1, shares, 8).transpose(0, 1).tolist()
    runs = [run for share in by_share for run in share[: share[0][LIVE]]]
    assert [run[6] for run in runs] == list(range(len(runs)))
    idle = [run[:LIVE] for share in by_share for run in share[share[0][LIVE] :]]
    assert {x for run in idle for x in run} <= {UNWRITTEN}
    firsts = list(accumulate((share[0][LIVE] for share in by_share), initial=0))
    return firsts, [run[:6] for run in runs], out[1].tolist()


def expected(layout: Layout, shares: int, span: int) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """The same from the list of all pages."""
    pages = [(s, p) for s, n in enumerate(layout.ctx) if layout.live(s) for p in range(math.ceil(n / PAGE))]
    length = max(1, math.ceil(len(pages) / shares))
    firsts, runs = [], []
    for j in range(shares):
        firsts.append(len(runs))
        for s, own in groupby(pages[j * length : (j + 1) * length], key=lambda page: page[0]):
            numbers = [p for _, p in own]
            count = min(layout.rows[s], span) if span > 1 else 1
            runs.append([s, numbers[0], numbers[-1] + 1, layout.ctx[s], layout.starts[s], count])
    firsts.append(len(runs))
    rows = [[0, 0, 0] for _ in range(layout.total)]
    for s, n in enumerate(layout.rows):
        mine = [i for i, run in enumerate(runs) if run[0] == s]
        for j in range(n if layout.live(s) else 0):
            rows[layout.starts[s] + j] = [mine[0], len(mine), j]
    return firsts, runs, rows


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    rows = draw(st.lists(st.sampled_from([0, 1, 1, 1, 2, 4]), min_size=1, max_size=16))
    lengths = st.one_of(st.integers(0, 9 * PAGE), st.sampled_from([1, PAGE, 4 * PAGE, 4 * PAGE + 1]))
    ctx = [max(n, draw(lengths)) if draw(st.booleans()) else draw(lengths) for n in rows]
    ctx = [n if n == 0 else max(n, r) for n, r in zip(ctx, rows, strict=True)]
    dead = frozenset(draw(st.sets(st.integers(0, len(rows) - 1), max_size=3)))
    return Layout(rows, ctx, dead, behind=max(draw(st.integers(0, 2)), int(not any(rows))))


@settings(max_examples=200, deadline=None)
@given(layouts(), st.sampled_from([(1, 1), (3, 1), (8, 1), (64, 1), (1, 4), (5, 4), (33, 4)]))
def test_the_tables(layout: Layout, sizes: tuple[int, int]) -> None:
    if sizes[1] == 1:  # what one row a sequence says of those behind it is not used
        layout = Layout([min(n, 1) for n in layout.rows], layout.ctx, layout.dead, layout.behind + 1)
    firsts, runs, rows = tables(layout, *sizes)
    wanted = expected(layout, *sizes)
    assert (firsts, runs, rows) == wanted


@pytest.mark.parametrize("seed", range(5))
def test_every_page_is_in_one_share_and_no_share_is_longer_than_its_part(seed: int) -> None:
    """From the tables alone."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30 * PAGE, (16,), generator=g).tolist()
    layout, shares = Layout([1] * 16, lengths, frozenset({seed, 9})), 13
    firsts, runs, _ = tables(layout, shares, 1)
    live = [s for s in range(16) if layout.live(s)]
    pages = [(s, p) for s in live for p in range(math.ceil(lengths[s] / PAGE))]
    here = [[(s, p) for s, a, b, *_ in runs[i:j] for p in range(a, b)]
            for i, j in zip(firsts, firsts[1:], strict=False)]  # fmt: skip
    assert [page for share in here for page in share] == pages
    length = math.ceil(len(pages) / shares)
    assert {len(x) for x in here[:-1]} == {length} and len(here[-1]) <= length
    assert firsts[-1] <= shares + len(live) - 1


CASES: dict[str, tuple[list[int], int, list[int]]] = {  # contexts in pages, shares, first runs
    "a share is a sequence": ([4, 4, 4], 3, [0, 1, 2, 3]),
    "a sequence is cut": ([4, 4, 4], 2, [0, 2, 4]),
    "three sequences and more in a share": ([1, 1, 1, 9], 3, [0, 4, 5, 6]),
    "one sequence in many shares": ([12], 6, [0, 1, 2, 3, 4, 5, 6]),
    "one sequence, and a share left over": ([12], 5, [0, 1, 2, 3, 4, 4]),
    "shares without pages": ([1, 1], 5, [0, 1, 2, 2, 2, 2]),
    "ragged": ([7, 1, 2, 6], 4, [0, 1, 3, 5, 6]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_where_contexts_are_cut(case: str) -> None:
    pages, shares, firsts = CASES[case]
    layout = Layout([1] * len(pages), [n * PAGE for n in pages])
    found, runs, _ = tables(layout, shares, 1)
    assert found == firsts
    cut = [run[2] - run[1] for run in runs]
    length = math.ceil(sum(pages) / shares)
    assert sum(cut) == sum(pages) and max(cut) <= length
