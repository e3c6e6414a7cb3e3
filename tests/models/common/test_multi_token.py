"""Attention, RoPE and the rows of a step with several query rows per sequence, against fp64."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pypto_models.language as pl
from models.common import sizes
from models.common.attention import attention
from models.common.rope import rope
from models.common.rows import context_of, enter, rows_of, sequence_of
from models.common.sizes import DTYPE, GATE_HEADS, HALF_DIM, HEAD_DIM, KV_HEADS, Q_HEADS
from pypto_models.compile import Program, compile
from pypto_models.errors import UserError
from pypto_models.language.parameters import constant_names
from tests.models.common.paged import (
    Step,
    attend,
    by_head,
    by_token,
    caches,
    ints,
    make_step,
    random,
    without_own,
)

WIDTH = 128
HEADS = GATE_HEADS + Q_HEADS + 2 * KV_HEADS
Q_WIDTH = Q_HEADS * HEAD_DIM

T = pl.dynamic("T")
B = pl.dynamic("B")
B1 = pl.dynamic("B1")
PAGES = pl.dynamic("PAGES")
CACHE_ROWS = pl.dynamic("CACHE_ROWS")
POSITIONS = pl.dynamic("POSITIONS")
QUERIES = pl.dynamic("QUERIES")  # T * GROUP


@pl.jit
def rows_entry(
    slot_mapping: pl.Tensor[[T], pl.INT32],
    cu_q: pl.Tensor[[B1], pl.INT32],
    ctx: pl.Tensor[[B], pl.INT32],
    sequences: pl.Out[pl.Tensor[[T], pl.INT32]],
    live: pl.Out[pl.Tensor[[B], pl.INT32]],
    contexts: pl.Out[pl.Tensor[[B], pl.INT32]],
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="rows"):
        for t in pl.range(pl.tensor.dim(slot_mapping, 0)):
            pl.write(sequences, [t], pl.cast(sequence_of(t, slot_mapping, cu_q, ctx), pl.INT32))
        for s in pl.range(pl.tensor.dim(ctx, 0)):
            pl.write(live, [s], pl.cast(rows_of(s, slot_mapping, cu_q, ctx), pl.INT32))
            pl.write(contexts, [s], pl.cast(context_of(s, slot_mapping, cu_q, ctx), pl.INT32))


@pl.jit
def enter_entry(
    hidden: pl.Tensor[[T, WIDTH], DTYPE],
    weight: pl.Tensor[[1, WIDTH], pl.FP32],
    slot_mapping: pl.Tensor[[T], pl.INT32],
    cu_q: pl.Tensor[[B1], pl.INT32],
    ctx: pl.Tensor[[B], pl.INT32],
    residual: pl.Out[pl.Tensor[[T, WIDTH], DTYPE]],
    normed: pl.Out[pl.Tensor[[T, WIDTH], DTYPE]],
):
    residual, normed = enter(hidden, weight, slot_mapping, cu_q, ctx, residual, normed)


@pl.jit
def rope_entry(
    qkv: pl.Tensor[[T, HEADS * HEAD_DIM], pl.FP32],
    q_weight: pl.Tensor[[1, HEAD_DIM], pl.FP32],
    k_weight: pl.Tensor[[1, HEAD_DIM], pl.FP32],
    positions: pl.Tensor[[T], pl.INT32],
    cos: pl.Tensor[[POSITIONS, HALF_DIM], pl.FP32],
    sin: pl.Tensor[[POSITIONS, HALF_DIM], pl.FP32],
    q: pl.InOut[pl.Tensor[[KV_HEADS, QUERIES, HEAD_DIM], DTYPE]],
    k_new: pl.InOut[pl.Tensor[[KV_HEADS, T, HEAD_DIM], DTYPE]],
    v_new: pl.InOut[pl.Tensor[[KV_HEADS, T, HEAD_DIM], DTYPE]],
):
    q, k_new, v_new = rope(qkv, q_weight, k_weight, positions, cos, sin, q, k_new, v_new)


@pl.jit
def attention_entry(
    q: pl.Tensor[[KV_HEADS, QUERIES, HEAD_DIM], DTYPE],
    k_new: pl.Tensor[[KV_HEADS, T, HEAD_DIM], DTYPE],
    v_new: pl.Tensor[[KV_HEADS, T, HEAD_DIM], DTYPE],
    k_cache: pl.InOut[pl.Tensor[[CACHE_ROWS, HEAD_DIM], DTYPE]],
    v_cache: pl.InOut[pl.Tensor[[CACHE_ROWS, HEAD_DIM], DTYPE]],
    block_table: pl.Tensor[[B, PAGES], pl.INT32],
    slot_mapping: pl.Tensor[[T], pl.INT32],
    cu_q: pl.Tensor[[B1], pl.INT32],
    ctx: pl.Tensor[[B], pl.INT32],
    projected: pl.Tensor[[T, HEADS * HEAD_DIM], pl.FP32],
    out: pl.Out[pl.Tensor[[T, Q_WIDTH], DTYPE]],
):
    out = attention(q, k_new, v_new, k_cache, v_cache, block_table, slot_mapping, cu_q, ctx, projected, out)


ENTRIES = {k.name: k for k in (rows_entry, enter_entry, rope_entry, attention_entry)}

# Qwen3.5's full-attention layer: gate heads first, 256 dims of which 64 turn, groups of six, Gemma norms
GATED: dict[str, Any] = {
    "GEMMA_NORM": True, "Q_HEADS": 12, "KV_HEADS": 2, "GROUP": 6, "HEAD_DIM": 256, "HALF_DIM": 32,
    "GATE_HEADS": 12, "SCALE": 1 / 16, "HEADS": 28, "Q_WIDTH": 12 * 256,
}  # fmt: skip


@cache
def _program(
    name: str, options: tuple[tuple[str, Any], ...], constants: tuple[tuple[str, Any], ...]
) -> Program:
    return compile(ENTRIES[name], constants=dict(constants), backend_options=dict(options), check=True)


def entry(name: str, options: dict[str, Any] | None = None, **constants: Any) -> Program:
    """A block as a program for a2a3, in fp32 unless `constants`, of which it takes its own, say otherwise."""
    read = constant_names(ENTRIES[name])
    given = {n: v for n, v in ({"DTYPE": pl.FP32} | constants).items() if n in read}
    return _program(name, tuple((options or {}).items()), tuple(given.items()))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiles are small: threads cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


# --------------------------------------------------------------------------------------------------
# Rows


@settings(max_examples=60)
@given(st.data())
def test_live_rows(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=8))
    cu_q = [sum(counts[:s]) for s in range(len(counts) + 1)]
    total = max(1, cu_q[-1]) + data.draw(st.integers(0, 3))
    slots = data.draw(st.lists(st.sampled_from([0, 1, 5000, -1]), min_size=total, max_size=total))
    ctx = data.draw(st.lists(st.sampled_from([0, 8, 130]), min_size=len(counts), max_size=len(counts)))
    expected, owner = [], [-1] * total
    for s in range(len(counts)):
        own = slots[cu_q[s] : cu_q[s + 1]]
        dead = [j for j, slot in enumerate(own) if slot < 0]
        expected.append((dead[0] if dead else len(own)) if ctx[s] else 0)
        owner[cu_q[s] : cu_q[s] + expected[-1]] = [s] * expected[-1]
    sequences, live, contexts = (torch.empty(n, dtype=torch.int32) for n in (total, len(ctx), len(ctx)))
    entry("rows_entry")(ints(slots), ints(cu_q), ints(ctx), sequences, live, contexts)
    assert sequences.tolist() == owner
    assert live.tolist() == expected
    assert contexts.tolist() == [n if rows else 0 for n, rows in zip(ctx, expected, strict=True)]


# (rows, live rows, ctx): one row, all eight, none, no context, no slot, dead from the fourth on
MIXED = [(1, 1, 40), (8, 8, 65), (0, 0, 30), (3, 3, 0), (2, 0, 17), (5, 3, 19), (8, 8, 8), (4, 4, 100)]


def test_dead_rows_enter_as_zeros() -> None:
    step = make_step(MIXED, sizes.PAGE, before=1, after=2)
    live = [row for row, _, _ in step.live]
    hidden, weight = random(step.rows, WIDTH), random(1, WIDTH, seed=1)
    hidden[step.dead] = torch.nan
    residual, normed = torch.empty(2, step.rows, WIDTH).unbind(0)
    entry("enter_entry", GEMMA_NORM=True)(hidden, weight, *step.indices, residual, normed)
    assert torch.equal(residual[live], hidden[live])
    close(normed[live], torch.nn.functional.rms_norm(hidden[live], [WIDTH], 1 + weight[0], sizes.EPS), 1e-5)
    assert len(step.dead) == 10 and not residual[step.dead].any() and not normed[step.dead].any()


# --------------------------------------------------------------------------------------------------
# RoPE


@pytest.mark.parametrize("model", [{}, GATED], ids=["whole", "gated_partial"])
def test_rope_of_several_rows(model: dict[str, Any]) -> None:
    """Positions are apart from KV indices; gate heads are left alone; dims that do not turn pass through."""
    size = vars(sizes) | model
    q_heads, kv_heads, dim, half = (size[n] for n in ("Q_HEADS", "KV_HEADS", "HEAD_DIM", "HALF_DIM"))
    gate = size["GATE_HEADS"]
    step = make_step(MIXED, size["PAGE"], before=1, after=2)
    live = [row for row, _, _ in step.live]
    qkv = random(step.rows, (gate + q_heads + 2 * kv_heads) * dim, std=2.0)
    qkv[step.dead] = 0.0
    qkv[:, : gate * dim] = torch.nan
    weights = random(2, 1, dim, seed=1)
    positions = torch.randperm(200, generator=torch.Generator().manual_seed(2))[: step.rows].int()
    angles = torch.arange(200).double()[:, None] * 1e4 ** (-torch.arange(half).double() / half)
    new = [torch.full((kv_heads, step.rows, dim), torch.nan) for _ in range(2)]
    q = torch.full((kv_heads, step.rows * q_heads // kv_heads, dim), torch.nan)
    positions[step.dead] = torch.tensor([1 << 20, -7] * 5)[: len(step.dead)].int()  # may be anything
    entry("rope_entry", **model)(
        qkv, *weights, positions, angles.cos().float(), angles.sin().float(), q, *new
    )

    heads = qkv.view(step.rows, -1, dim)[live, gate:].double()
    raw_q, raw_k, v = heads.split([q_heads, kv_heads, kv_heads], dim=1)

    def turned(x: Tensor, weight: Tensor) -> Tensor:
        normed = torch.nn.functional.rms_norm(x, [dim], weight[0].double() + bool(model), sizes.EPS)
        turn = torch.polar(torch.ones_like(angles), angles)[positions[live].long(), None]
        pairs = torch.complex(normed[..., :half], normed[..., half : 2 * half]) * turn
        return torch.cat([pairs.real, pairs.imag, normed[..., 2 * half :]], dim=-1)

    close(by_token(q, step.rows)[live], turned(raw_q, weights[0]), 3e-5)
    close(by_token(new[0], step.rows)[live], turned(raw_k, weights[1]), 3e-5)
    close(by_token(new[1], step.rows)[live], v, 0.0)
    assert not any(by_token(x, step.rows)[step.dead].any() for x in (q, *new))


# --------------------------------------------------------------------------------------------------
# Attention


def run_attention(
    step: Step, span: int, target_runs: int, *, scale_q: float = 1.0, options: Any = None, **model: Any
) -> tuple[Tensor, Tensor]:
    """The block's result and fp64's, both `[T, Q, D]`; the step's tokens must have come to their slots.

    A model with GATE_HEADS has its gate in the first of HEADS heads of what was projected.
    """
    size = vars(sizes) | model
    q_heads, kv_heads, dim = (size[n] for n in ("Q_HEADS", "KV_HEADS", "HEAD_DIM"))
    dtype = torch.bfloat16 if "DTYPE" in model else torch.float32
    contexts, *pools = caches(step, kv_heads, size["PAGE"], dim, dtype)
    given, new = without_own(step, pools, kv_heads, size["PAGE"], span)
    q = random(step.rows, q_heads, dim, seed=1, std=scale_q).to(dtype)
    q[step.dead] = torch.nan
    tall = -(-span * size["GROUP"] // 16) * 16
    out = torch.full((step.rows, q_heads * dim), torch.nan, dtype=dtype)
    program = entry(
        "attention_entry", options, **{"TARGET_RUNS": target_runs, "SPAN": span, "GROUP_ROWS": tall} | model
    )
    projected = torch.full((step.rows, size["HEADS"] if "HEADS" in model else HEADS, dim), torch.nan)
    gate = projected[:, : size["GATE_HEADS"]]
    gate[:] = random(*gate.shape, seed=2, std=3.0)
    program(by_head(q, kv_heads), *new, *given, step.block_table, *step.indices, projected.flatten(1), out)
    for pool, whole in zip(given, pools, strict=True):
        torch.testing.assert_close(pool, whole, rtol=0, atol=0, equal_nan=True)
    expected = attend(q, contexts, step, size["SCALE"])
    if size["GATE_HEADS"]:
        expected = expected * torch.sigmoid(gate.double())
    return out.view(step.rows, q_heads, dim), expected


@pytest.mark.parametrize("target_runs", [1, 4, 64])
@pytest.mark.parametrize("merge_runs", [1, 2])
def test_ragged_rows_and_dead_rows(target_runs: int, merge_runs: int) -> None:
    """With 64 runs every page is one: the last page of 65 tokens is hidden from seven of its eight rows."""
    step = make_step(MIXED, sizes.PAGE, before=1, after=2)
    actual, expected = run_attention(step, 8, target_runs, MERGE_RUNS=merge_runs)
    close(actual, expected, 5e-6)
    assert not actual[step.dead].any()


@pytest.mark.parametrize("span", [2, 3, 5, 8])
@pytest.mark.parametrize("target_runs", [1, 64])
def test_every_offset_to_a_page(span: int, target_runs: int) -> None:
    lengths = range(span, span + sizes.PAGE)
    step = make_step([(span, span, n + sizes.PAGE) for n in lengths], sizes.PAGE)
    actual, expected = run_attention(step, span, target_runs)
    close(actual, expected, 5e-6)


def test_hidden_pages_weigh_nothing_however_low_the_scores() -> None:
    """Scores of minus thousands still outweigh a page that a row does not see."""
    step = make_step([(8, 8, 33), (8, 8, 17), (8, 8, 9)], sizes.PAGE)
    for target_runs in (1, 64):
        actual, expected = run_attention(step, 8, target_runs, scale_q=3000.0)
        close(actual, expected, 1e-2)


@pytest.mark.parametrize("target_runs", [3, 64])
def test_sixteen_sequences_of_eight_rows(target_runs: int) -> None:
    step = make_step([(8, 8, 8 + 11 * s) for s in range(16)], sizes.PAGE)
    assert step.rows == 128
    actual, expected = run_attention(step, 8, target_runs)
    close(actual, expected, 5e-6)


@pytest.mark.parametrize("span", [1, 8])
@pytest.mark.parametrize("merge_runs", [1, 2])
def test_heads_of_256_in_groups_of_six(span: int, merge_runs: int) -> None:
    sequences = [(min(r, span), min(n, span), c) for r, n, c in MIXED]
    step = make_step(sequences, 64, after=1)
    actual, expected = run_attention(step, span, 4, **{**GATED, "PAGE": 64, "MERGE_RUNS": merge_runs})
    close(actual, expected, 5e-6)


def test_bf16_is_as_close_as_its_rounding() -> None:
    step = make_step(MIXED, sizes.PAGE)
    actual, expected = run_attention(step, 8, 4, DTYPE=pl.BF16)
    error = (actual.double() - expected).abs()
    assert error.max() <= 2.0**-7 * expected.abs().max()


def test_any_order_of_blocks_and_either_split() -> None:
    step = make_step(MIXED, sizes.PAGE, before=1, after=2)
    plain, _ = run_attention(step, 8, 8)
    for seed in range(3):
        options = {"schedule": "random", "seed": seed, "check_splits": True}
        assert torch.equal(run_attention(step, 8, 8, options=options)[0], plain)


def test_rows_beyond_span_are_not_written() -> None:
    """Nor made up: in a layer, what reads them stops with an error."""
    step = make_step([(3, 3, 20), (1, 1, 5)], sizes.PAGE)
    actual, expected = run_attention(step, 2, target_runs=1)
    assert actual[2].isnan().all()
    close(actual[3], expected[3], 5e-6)


def test_rows_beyond_span_are_a_race_between_runs() -> None:
    """One run takes for cached what another is about to write."""
    step = make_step([(3, 3, 20), (1, 1, 5)], sizes.PAGE)
    with pytest.raises(UserError, match=r"of region 'attention' touch k_cache\["):
        run_attention(step, 2, target_runs=4)
