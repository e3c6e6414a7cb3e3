"""Steps with several rows per sequence over a paged cache, and what a block makes of them in fp64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DEAD_SLOT = -1


def random(*shape: int, seed: int = 0, std: float = 1.0) -> Tensor:
    """Normal fp32 values of standard deviation `std`."""
    return std * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ints(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@dataclass(frozen=True)
class Rows:
    """`rows` rows of which the leading `live` have a slot; `ctx` tokens with them."""

    rows: int
    live: int
    ctx: int


@dataclass(frozen=True)
class Step:
    """The index tensors of a step, and which row is live: `(row, sequence, kv index)`."""

    slot_mapping: Tensor
    cu_q: Tensor
    ctx: Tensor
    block_table: Tensor
    live: tuple[tuple[int, int, int], ...]
    pages: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        return len(self.slot_mapping)

    @property
    def indices(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.slot_mapping, self.cu_q, self.ctx

    @property
    def dead(self) -> list[int]:
        live = {row for row, _, _ in self.live}
        return [row for row in range(self.rows) if row not in live]


def make_step(
    sequences: Sequence[tuple[int, int, int]], page: int, *, before: int = 0, after: int = 0
) -> Step:
    """A step of `(rows, live, ctx)` sequences on shuffled pages, with rows of nobody before and after them.

    A dead row within a sequence has a negative slot, and the row behind it a good one, which must not count.
    """
    given = [Rows(*s) for s in sequences]
    counts = [-(-s.ctx // page) for s in given]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).tolist()
    pages = tuple(tuple(order.pop() for _ in range(n)) for n in counts)
    table = torch.full((len(given), max([1, *counts])), -1, dtype=torch.int32)
    slots, ends, live = [0] * before, [before], []
    for s, (q, own) in enumerate(zip(given, pages, strict=True)):
        table[s, : len(own)] = ints(own)
        for j in range(q.rows):
            index = q.ctx - q.live + j
            if j < q.live and q.ctx > 0:
                live.append((len(slots), s, index))
                slots.append(own[index // page] * page + index % page)
            else:
                slots.append(DEAD_SLOT if j == q.live and q.ctx > 0 else 0)
        ends.append(len(slots))
    slots += [0] * after
    ctx = ints([q.ctx for q in given])
    return Step(ints(slots), ints(ends), ctx, table, tuple(live), pages)


def caches(
    step: Step, kv_heads: int, page: int, dim: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Any, ...]:
    """K and V: for each sequence `[KV, ctx, D]`, and pools `[pages KV PAGE, D]`, NaN where no token is."""
    total = max(1, sum(map(len, step.pages)))
    pools = [torch.full((total, kv_heads, page, dim), torch.nan, dtype=dtype) for _ in range(2)]
    contexts = []
    for s, own in enumerate(step.pages):
        n = int(step.ctx[s])
        kv = random(2, kv_heads, n, dim, seed=seed * 1000 + s).to(dtype)
        for pool, new in zip(pools, kv, strict=True):
            for i, p in enumerate(own):
                part = new[:, i * page : (i + 1) * page]
                pool[p, :, : part.shape[1]] = part
        contexts.append(kv)
    return contexts, *(pool.view(-1, dim) for pool in pools)


def without_own(
    step: Step, pools: Sequence[Tensor], kv_heads: int, page: int, span: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The pools before the step, NaN in its slots, and what it adds to them: `[KV, T, D]`, NaN on dead rows.

    A sequence's rows beyond `span` add nothing: `pools` lose them.
    """
    before, added = [], []
    for pool in pools:
        paged, dim = pool.view(-1, kv_heads, page, pool.shape[1]), pool.shape[1]
        old, new = paged.clone(), torch.full((kv_heads, step.rows, dim), torch.nan, dtype=pool.dtype)
        for row, s, _ in step.live:
            at, offset = divmod(int(step.slot_mapping[row]), page)
            new[:, row] = paged[at, :, offset]
            old[at, :, offset] = torch.nan
            if row - int(step.cu_q[s]) >= span:
                paged[at, :, offset] = torch.nan
        before.append(old.view(-1, dim))
        added.append(new)
    return before, added


def by_head(q: Tensor, kv_heads: int) -> Tensor:
    """Query heads `[T, Q, D]` in the layout between RoPE and attention: `[KV, T GROUP, D]`."""
    return q.unflatten(1, (kv_heads, -1)).transpose(0, 1).flatten(1, 2).contiguous()


def by_token(q: Tensor, rows: int) -> Tensor:
    """The inverse: `[KV, T GROUP, D]` as `[T, Q, D]`."""
    return q.unflatten(1, (rows, -1)).transpose(0, 1).flatten(1, 2)


def attend(q: Tensor, contexts: Sequence[Tensor], step: Step, scale: float) -> Tensor:
    """Causal attention in fp64 of the live rows of `q` `[T, Q, D]`; zero rows elsewhere."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for row, s, index in step.live:
        k, v = contexts[s].double()[:, :, : index + 1]
        heads = q[row].double().unflatten(0, (k.shape[0], -1))
        weights = torch.softmax(torch.einsum("hgd,hnd->hgn", heads, k) * scale, dim=-1)
        out[row] = torch.einsum("hgn,hnd->hgd", weights, v).flatten(0, 1)
    return out
