"""Each block of models/common alone, against torch or against plain Python."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pypto_models.language as pl
from models.common import projection, sizes, tiling
from models.common.attention import attention
from models.common.norm import apply_final_norm, apply_post_norm
from models.common.projection import (
    project_down,
    project_gate_up,
    project_logits,
    project_out,
    project_qkv,
)
from models.common.rope import rope
from models.common.rows import context_of, enter, sequence_of
from models.common.sizes import DTYPE, HALF_DIM, HEAD_DIM, KV_HEADS, PAGE, Q_HEADS, TARGET_RUNS
from models.qwen3_14b.config import FULL, TINY
from models.qwen3_14b.constants import constants
from pypto_models.compile import Program, compile
from pypto_models.errors import UserError
from tests.models.common.paged import by_head, by_token

WIDTH, INNER, VOCAB = 128, 192, 256
HEADS = Q_HEADS + 2 * KV_HEADS

T = pl.dynamic("T")
B = pl.dynamic("B")
B1 = pl.dynamic("B1")
PAGES = pl.dynamic("PAGES")
CACHE_ROWS = pl.dynamic("CACHE_ROWS")
POSITIONS = pl.dynamic("POSITIONS")
QUERIES = pl.dynamic("QUERIES")  # T * GROUP


# --------------------------------------------------------------------------------------------------
# Entries around the blocks


@pl.jit
def layout_entry(
    slot_mapping: pl.Tensor[[T], pl.INT32],
    cu_q: pl.Tensor[[B1], pl.INT32],
    ctx: pl.Tensor[[B], pl.INT32],
    sequences: pl.Out[pl.Tensor[[T], pl.INT32]],
    contexts: pl.Out[pl.Tensor[[B], pl.INT32]],
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="layout"):
        for t in pl.range(pl.tensor.dim(slot_mapping, 0)):
            pl.write(sequences, [t], pl.cast(sequence_of(t, slot_mapping, cu_q, ctx), pl.INT32))
        for s in pl.range(pl.tensor.dim(ctx, 0)):
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
def norm_entry(
    x: pl.Tensor[[T, WIDTH], DTYPE],
    weight: pl.Tensor[[1, WIDTH], pl.FP32],
    post: pl.Out[pl.Tensor[[T, WIDTH], DTYPE]],
    final: pl.Out[pl.Tensor[[T, WIDTH], DTYPE]],
):
    post = apply_post_norm(x, weight, post)
    final = apply_final_norm(x, weight, final)


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
    projected: pl.Tensor[[T, Q_HEADS * HEAD_DIM], pl.FP32],
    out: pl.Out[pl.Tensor[[T, Q_HEADS * HEAD_DIM], DTYPE]],
):
    out = attention(q, k_new, v_new, k_cache, v_cache, block_table, slot_mapping, cu_q, ctx, projected, out)


@pl.jit
def qkv_entry(
    x: pl.Tensor[[T, WIDTH], DTYPE],
    w: pl.Tensor[[INNER, WIDTH], DTYPE],
    out: pl.Out[pl.Tensor[[T, INNER], pl.FP32]],
):
    out = project_qkv(x, w, out)


@pl.jit
def logits_entry(
    x: pl.Tensor[[T, WIDTH], DTYPE],
    w: pl.Tensor[[INNER, WIDTH], DTYPE],
    out: pl.Out[pl.Tensor[[T, INNER], DTYPE]],
):
    out = project_logits(x, w, out)


@pl.jit
def out_entry(
    x: pl.Tensor[[T, WIDTH], DTYPE],
    w: pl.Tensor[[INNER, WIDTH], DTYPE],
    residual: pl.Tensor[[T, INNER], DTYPE],
    out: pl.Out[pl.Tensor[[T, INNER], DTYPE]],
):
    out = project_out(x, w, residual, out)


@pl.jit
def down_entry(
    x: pl.Tensor[[T, WIDTH], DTYPE],
    w: pl.Tensor[[INNER, WIDTH], DTYPE],
    residual: pl.Tensor[[T, INNER], DTYPE],
    out: pl.Out[pl.Tensor[[T, INNER], DTYPE]],
):
    out = project_down(x, w, residual, out)


@pl.jit
def gate_up_entry(
    x: pl.Tensor[[T, WIDTH], DTYPE],
    w: pl.Tensor[[2 * INNER, WIDTH], DTYPE],
    out: pl.Out[pl.Tensor[[T, INNER], DTYPE]],
):
    out = project_gate_up(x, w, out)


ENTRIES = {
    k.name: k
    for k in (
        layout_entry, enter_entry, norm_entry, rope_entry, attention_entry, qkv_entry, logits_entry,
        out_entry, down_entry, gate_up_entry,
    )
}  # fmt: skip


@cache
def entry(name: str, **changed: Any) -> Program:
    """A block as a program for a2a3, in fp32 unless `changed` says otherwise."""
    given = {} if name == "layout_entry" else {"DTYPE": pl.FP32}
    return compile(ENTRIES[name], constants=given | changed, check=True)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps=sizes.EPS)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


def random(*shape: int, seed: int = 0, std: float = 1.0) -> Tensor:
    return std * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


# --------------------------------------------------------------------------------------------------
# Which rows are live


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Slots, cu_q and ctx: sequences with one row or none, rows that no sequence owns, dead marks."""
    rows_of = draw(st.lists(st.integers(0, 1), min_size=1, max_size=16))
    cu_q = [sum(rows_of[:s]) for s in range(len(rows_of) + 1)]
    total = max(1, cu_q[-1]) + draw(st.integers(0, 3))
    slots = draw(st.lists(st.sampled_from([-1, 0, 1, 5000]), min_size=total, max_size=total))
    ctx = draw(st.lists(st.integers(0, 130), min_size=len(rows_of), max_size=len(rows_of)))
    return slots, cu_q, ctx


@settings(max_examples=60)
@given(layouts())
def test_rows_and_contexts(layout: tuple[list[int], list[int], list[int]]) -> None:
    slots, cu_q, ctx = layout
    sequences, contexts = (torch.empty(n, dtype=torch.int32) for n in (len(slots), len(ctx)))
    entry("layout_entry")(ints(*slots), ints(*cu_q), ints(*ctx), sequences, contexts)

    def live(s: int) -> bool:
        return cu_q[s] < cu_q[s + 1] and ctx[s] > 0 and slots[cu_q[s]] >= 0

    owner = {cu_q[s]: s for s in range(len(ctx)) if live(s)}
    assert sequences.tolist() == [owner.get(t, -1) for t in range(len(slots))]
    lengths = [n if live(s) else 0 for s, n in enumerate(ctx)]
    assert contexts.tolist() == lengths


def test_enter_zeroes_dead_rows_without_reading_them() -> None:
    hidden, weight = random(5, WIDTH), random(1, WIDTH, seed=1)
    hidden[[1, 3, 4]] = torch.nan
    residual, normed = torch.empty(2, 5, WIDTH).unbind(0)
    # Row 1 has no slot, row 3 a sequence without context, row 4 no sequence
    indices = ints(7, -1, 0, 9, 5), ints(0, 1, 2, 3, 4), ints(3, 3, 1, 0)
    entry("enter_entry")(hidden, weight, *indices, residual, normed)
    assert torch.equal(residual[[0, 2]], hidden[[0, 2]])
    close(normed[[0, 2]], rms_norm(hidden[[0, 2]], weight[0]))
    assert not residual[[1, 3, 4]].any() and not normed[[1, 3, 4]].any()


# --------------------------------------------------------------------------------------------------
# Norms


@pytest.mark.parametrize("rows", [1, 9, 16])
def test_norms(rows: int) -> None:
    x, weight = random(rows, WIDTH, seed=rows, std=3.0), random(1, WIDTH, seed=1)
    x[0] = 0
    post, final = torch.empty(2, rows, WIDTH).unbind(0)
    entry("norm_entry")(x, weight, post, final)
    close(post, rms_norm(x, weight[0]))
    assert torch.equal(post, final)
    assert not post[0].any()


def test_norm_rounds_twice_in_bf16() -> None:
    """As Llama does: x / rms(x) is rounded, then its product with the weight."""
    x, weight = random(8, WIDTH, std=2.0).bfloat16(), random(1, WIDTH, seed=1)
    post, final = torch.empty(2, 8, WIDTH, dtype=torch.bfloat16).unbind(0)
    entry("norm_entry", DTYPE=pl.BF16)(x, weight, post, final)
    unit = x.double() * torch.rsqrt(x.double().square().mean(1, keepdim=True) + sizes.EPS)
    expected = (weight.double() * unit.bfloat16().double()).bfloat16()
    once = (weight.double() * unit).bfloat16()
    assert (post == expected).double().mean() > 0.99  # fp32 sums may end on the other side of a tie
    assert (post == once).double().mean() < 0.9


# --------------------------------------------------------------------------------------------------
# RoPE


def rotated(x: Tensor, positions: Tensor, theta: float = 1e4) -> Tensor:
    """Pairs (i, i + D/2) of x `[rows, heads, D]` as complex numbers, turned by position * theta^(-2i/D)."""
    low, high = x.double().chunk(2, dim=-1)
    angles = positions.double()[:, None] * theta ** (-torch.arange(HALF_DIM).double() / HALF_DIM)
    turned = torch.complex(low, high) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def test_rope() -> None:
    positions = [0, 40, 1 << 20, 99]
    rows, live = len(positions), [0, 1, 3]
    qkv = random(rows, HEADS * HEAD_DIM, std=2.0)
    qkv[2] = 0.0  # as a dead row is, whose position may be anything
    q_weight, k_weight = random(1, HEAD_DIM, seed=1), random(1, HEAD_DIM, seed=2)
    angles = torch.arange(100).double()[:, None] * 1e4 ** (-torch.arange(HALF_DIM).double() / HALF_DIM)
    new = [torch.full((KV_HEADS, rows, HEAD_DIM), torch.nan) for _ in range(2)]
    q = torch.full((KV_HEADS, rows * Q_HEADS // KV_HEADS, HEAD_DIM), torch.nan)
    entry("rope_entry")(
        qkv, q_weight, k_weight, ints(*positions),
        angles.cos().float(), angles.sin().float(), q, *new,
    )  # fmt: skip

    heads = qkv.view(rows, HEADS, HEAD_DIM)[live]
    raw_q, raw_k, v = heads.split([Q_HEADS, KV_HEADS, KV_HEADS], dim=1)
    at = ints(*positions)[live]
    close(by_token(q, rows)[live], rotated(rms_norm(raw_q, q_weight[0]), at), 2e-5)
    close(by_token(new[0], rows)[live], rotated(rms_norm(raw_k, k_weight[0]), at), 2e-5)
    assert torch.equal(by_token(new[1], rows)[live], v)
    assert all((by_token(x, rows)[2] == 0).all() for x in (q, *new))


# --------------------------------------------------------------------------------------------------
# Attention


def paged_attention(
    lengths: list[int],
    scale_q: float,
    target_runs: int,
    seed: int,
    dead: tuple[int, ...] = (),
    **merge: int,
) -> tuple[Tensor, Tensor]:
    """Attention of the block and of torch `[B, Q, D]`, for sequences on shuffled pages; zeros for dead ones.

    The last token of each is the step's own: the block must bring it to its slot, where NaN is.
    """
    batch = len(lengths)
    counts = [math.ceil(n / PAGE) for n in lengths]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(seed)).tolist()
    table = torch.full((batch, max(counts)), -1, dtype=torch.int32)
    shape = (sum(counts), KV_HEADS, PAGE, HEAD_DIM)
    pools = [torch.full(shape, torch.nan) for _ in range(2)]
    q = random(batch, Q_HEADS, HEAD_DIM, seed=seed, std=scale_q)
    new, slots = torch.empty(2, KV_HEADS, batch, HEAD_DIM), []
    expected = torch.empty(batch, Q_HEADS, HEAD_DIM)
    for s, (n, count) in enumerate(zip(lengths, counts, strict=True)):
        pages = [order.pop() for _ in range(count)]
        table[s, :count] = torch.tensor(pages)
        kv = random(2, KV_HEADS, n, HEAD_DIM, seed=100 * seed + s)
        for pool, whole in zip(pools, kv, strict=True):
            for token in range(n):
                pool[pages[token // PAGE], :, token % PAGE] = whole[:, token]
        new[:, :, s] = kv[:, :, -1]
        slots.append(pages[-1] * PAGE + (n - 1) % PAGE)
        expected[s] = torch.nn.functional.scaled_dot_product_attention(
            q[s, None, :, None].double(), kv[0, None].double(), kv[1, None].double(),
            scale=sizes.SCALE, enable_gqa=True,
        )[0, :, 0]  # fmt: skip
    for s in dead:
        slots[s], q[s], new[:, :, s], expected[s] = -1, torch.nan, torch.nan, 0.0
    given = [pool.clone() for pool in pools]
    for pool, slot in itertools.product(given, (x for x in slots if x >= 0)):
        pool[slot // PAGE, :, slot % PAGE] = torch.nan
    out = torch.empty(batch, Q_HEADS * HEAD_DIM)
    entry("attention_entry", TARGET_RUNS=target_runs, **merge)(
        by_head(q, KV_HEADS), *new, *(pool.view(-1, HEAD_DIM) for pool in given), table,
        ints(*slots), ints(*range(batch + 1)), ints(*lengths), torch.full_like(out, torch.nan), out,
    )  # fmt: skip
    for pool, whole in zip(given, pools, strict=True):
        assert torch.equal(pool.view(torch.int32), whole.view(torch.int32))
    return out.view_as(expected), expected


@pytest.mark.parametrize("target_runs", [1, 3, TARGET_RUNS, 64])
@pytest.mark.parametrize(
    "lengths",
    [[1], [PAGE], [200], [5, 64, 1, 65, 16], [1, 2, PAGE, 3, 150, 2 * PAGE, 7], [130] * 16, [PAGE] * 16],
    ids=lambda lengths: f"{len(lengths)}x{lengths[0]}",
)
@pytest.mark.parametrize("merge_from", [1, 2])
@pytest.mark.parametrize("merge_runs", [1, 2, 8])
def test_attention(lengths: list[int], target_runs: int, merge_from: int, merge_runs: int) -> None:
    merge = {"MERGE_FROM": merge_from, "MERGE_RUNS": merge_runs}
    actual, expected = paged_attention(lengths, 1.0, target_runs, seed=1, **merge)
    close(actual, expected, 3e-6)


@pytest.mark.parametrize("target_runs", [1, 3, 64])
@pytest.mark.parametrize("dead", [(0,), (1, 2), (3, 6), (0, 1, 2, 4, 5, 6), tuple(range(7))], ids=str)
def test_attention_with_dead_sequences(dead: tuple[int, ...], target_runs: int) -> None:
    """They have pages, of which none is counted or read."""
    lengths = [40, 2, PAGE, 90, 1, 2 * PAGE, 7]
    actual, expected = paged_attention(lengths, 1.0, target_runs, seed=3, dead=dead)
    close(actual, expected, 3e-6)
    assert not actual[list(dead)].any()


@pytest.mark.parametrize("target_runs", [1, 64])
def test_attention_with_huge_scores(target_runs: int) -> None:
    """Scores of plus and minus hundreds: exp would overflow, or vanish for a whole row."""
    actual, expected = paged_attention([100, 33, 1], 300.0, target_runs, seed=2)
    close(actual, expected, 1e-3)
    assert expected.abs().max() > 1


# --------------------------------------------------------------------------------------------------
# Projections


@pytest.mark.parametrize("rows", [1, 8, 13, 16])
@pytest.mark.parametrize("name", ["qkv_entry", "logits_entry", "out_entry", "down_entry"])
def test_projections(name: str, rows: int) -> None:
    x, w = random(rows, WIDTH, seed=rows), random(INNER, WIDTH, seed=1, std=WIDTH**-0.5)
    expected = x.double() @ w.double().T
    given = [x, w]
    if name in ("out_entry", "down_entry"):
        given.append(random(rows, INNER, seed=2))
        expected += given[-1].double()
    out = torch.empty(rows, INNER)
    entry(name)(*given, out)
    close(out, expected, 3e-6)


@pytest.mark.parametrize("rows", [1, 8, 13, 16])
def test_gate_up(rows: int) -> None:
    x, w = random(rows, WIDTH, seed=rows), random(2 * INNER, WIDTH, seed=1, std=WIDTH**-0.5)
    gate, up = (x.double() @ w.double().T).chunk(2, dim=1)
    out = torch.empty(rows, INNER)
    entry("gate_up_entry")(x, w, out)
    close(out, torch.nn.functional.silu(gate) * up, 3e-6)


def test_silu_of_extreme_values() -> None:
    """silu(-large) is 0 although exp(large) overflows, and silu(large) is itself."""
    x = torch.zeros(3, WIDTH)
    x[:, 0] = torch.tensor([-1000.0, 1000.0, 0.0])
    x[:, 1] = 1
    w = torch.zeros(2 * INNER, WIDTH)
    w[:INNER, 0] = 1  # gate = x[:, 0]
    w[INNER:, 1] = 1  # up = 1
    out = torch.empty(3, INNER)
    entry("gate_up_entry")(x, w, out)
    assert torch.equal(out, torch.tensor([0.0, 1000.0, 0.0])[:, None].expand_as(out))


@pytest.mark.parametrize(("n", "k"), [(16, 16), (192, 128), (32, 128), (96, 32)])
def test_tile_sizes_do_not_change_the_result(n: int, k: int) -> None:
    x, w = random(7, WIDTH), random(INNER, WIDTH, seed=1, std=WIDTH**-0.5)
    out = torch.empty(7, INNER)
    entry("qkv_entry", QKV_N=n, QKV_K=k)(x, w, out)
    close(out, x.double() @ w.double().T, 3e-6)


def test_residual_is_added_to_the_rounded_product_in_bf16() -> None:
    """The product is rounded before the sum, and the sum again."""
    x = random(16, WIDTH).bfloat16()
    w = random(INNER, WIDTH, seed=1, std=WIDTH**-0.5).bfloat16()
    residual = random(16, INNER, seed=2, std=8.0).bfloat16()
    out = torch.empty(16, INNER, dtype=torch.bfloat16)
    entry("out_entry", DTYPE=pl.BF16)(x, w, residual, out)
    product = x.double() @ w.double().T
    twice = (product.bfloat16().double() + residual.double()).bfloat16()
    once = (product + residual.double()).bfloat16()
    assert (out == twice).double().mean() > 0.99
    assert (out == once).double().mean() < (out == twice).double().mean()


# --------------------------------------------------------------------------------------------------
# Tiling files


def write(folder: Path, text: str) -> Path:
    (folder / "a2a3.yaml").write_text(text)
    return folder


def test_tiling_constants(tmp_path: Path) -> None:
    text = "source:\n  QKV_N: 128\n  TARGET_RUNS: 12\nschedule:\n  qkv_proj: {stages: 3}\n"
    assert tiling.load_source(write(tmp_path, text), "a2a3") == {"QKV_N": 128, "TARGET_RUNS": 12}
    assert tiling.load_source(write(tmp_path, "schedule: {}\n"), "a2a3") == {}
    assert tiling.load_source(tmp_path, "another") == {}


def test_tiling_constants_of_another_backend(tmp_path: Path) -> None:
    """They come before those of the target; without them, or without a file, the target's hold."""
    folder = write(tmp_path, "source:\n  QKV_N: 256\n  OUT_N: 64\n  rows:\n    128: {QKV_N: 128}\n")
    assert tiling.load_source(folder, "a2a3.other") == {"QKV_N": 256, "OUT_N": 64}
    (folder / "a2a3.other.yaml").write_text("source:\n  QKV_N: 32\n  rows:\n    64: {QKV_N: 16}\n")
    assert tiling.load_source(folder, "a2a3.other") == {"QKV_N": 32, "OUT_N": 64}
    assert tiling.load_source(folder, "a2a3.other", 64) == {"QKV_N": 16, "OUT_N": 64}
    assert tiling.load_source(folder, "a2a3.other", 128) == {"QKV_N": 32, "OUT_N": 64}
    assert tiling.load_source(folder, "a2a3", 128) == {"QKV_N": 128, "OUT_N": 64}
    (folder / "a2a3.other.yaml").write_text("source: {QKV_N: -1}\n")
    with pytest.raises(UserError, match=r"a2a3\.other\.yaml: QKV_N is -1"):
        tiling.load_source(folder, "a2a3.other")


def test_tiling_of_taller_steps(tmp_path: Path) -> None:
    folder = write(tmp_path, "source:\n  QKV_N: 256\n  OUT_N: 256\n  rows:\n    128: {OUT_N: 128}\n")
    assert tiling.load_source(folder, "a2a3", 64) == {"QKV_N": 256, "OUT_N": 256}
    assert tiling.load_source(folder, "a2a3", 128) == {"QKV_N": 256, "OUT_N": 128}


def test_height_of_a_step() -> None:
    heights = {rows: tiling.tile_rows(rows) for rows in (1, 16, 17, 32, 33, 64, 65, 128)}
    assert heights == {1: 16, 16: 16, 17: 32, 32: 32, 33: 64, 64: 64, 65: 128, 128: 128}
    for rows in (0, 129):
        with pytest.raises(ValueError, match=f"rows = {rows} in one step: the tallest tile holds 1 to 128"):
            tiling.tile_rows(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source:\n  QKV_N: [\n", r"a2a3\.yaml:3:1: error\[tiling\]: a2a3\.yaml: not YAML"),
        ("QKV_N: 64\n", r"its top level is QKV_N\n(.*\n)*  fix: use the keys source and schedule"),
        ("- 1\n", r"its top level is list"),
        ("source: 64\n", r"source: is no mapping"),
        ("source:\n  QKV_N: 64.5\n", r"QKV_N is 64\.5\n(.*\n)*  fix: tile sizes are positive integers"),
        ("source:\n  QKV_N: 0\n", r"QKV_N is 0\n"),
        ("source:\n  QKV_N: true\n", r"QKV_N is True\n"),
        ("source:\n  QKV_N: wide\n", r"QKV_N is 'wide'\n"),
        ("source:\n  rows: 64\n", r"rows: is no mapping of mappings"),
        ("source:\n  rows: {64: 1}\n", r"rows: is no mapping of mappings"),
        ("source:\n  rows: {48: {QKV_N: 1}}\n", r"rows: has 48\n(.*\n)*  fix: tiles have 16, 32, 64, 128"),
        ("source:\n  rows: {64: {QKV_N: 0}}\n", r"QKV_N is 0\n"),
        ("source:\n  rows: {64: {QKV_N: 1}}\n", r"QKV_N stands below rows: only"),
    ],
)
def test_a_bad_tiling_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        tiling.load_source(write(tmp_path, text), "a2a3")


def tile_bytes(values: Mapping[str, Any], name: str) -> int:
    width: int = values["DTYPE"].bytes
    n: int = values[f"{name}_N"]
    k: int = values[f"{name}_K"]
    return n * k * width


def test_published_tiles_keep_their_bytes_in_fp32() -> None:
    for target in ("a2a3", "a5", "gb10", "h200"):
        bf16 = constants(FULL, target, head_rows=512)
        fp32 = constants(replace(FULL, dtype="fp32"), target, head_rows=512)
        for name in ("QKV", "OUT", "MLP", "DOWN", "HEAD"):
            assert tile_bytes(bf16, name) == tile_bytes(fp32, name)
        assert "HEAD_N" not in constants(FULL, target)
        assert "QKV_N" not in constants(TINY, target)


def test_defaults_are_one_consistent_model() -> None:
    """The constants that the blocks are given here, and those that other sizes fall back on."""
    assert sizes.Q_HEADS == sizes.GROUP * sizes.KV_HEADS
    assert sizes.HALF_DIM * 2 == sizes.HEAD_DIM
    assert sizes.V_HEADS % sizes.K_HEADS == 0
    assert sizes.CONV_WIDTH == sizes.TAPS - 2 + sizes.SPAN
    assert sizes.SCALE == sizes.HEAD_DIM**-0.5
    assert sizes.GROUP_ROWS >= sizes.SPAN * sizes.GROUP
    assert sizes.PAGE % sizes.KV_TILE == 0
    assert sizes.ROWS >= sizes.MAX_BATCH * sizes.SPAN
    for name in ("QKV", "OUT", "MLP", "DOWN", "HEAD"):
        assert getattr(projection, f"{name}_N") % 16 == getattr(projection, f"{name}_K") % 16 == 0
