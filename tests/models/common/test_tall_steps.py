"""Blocks on up to 128 rows: projections with tails, the gate, the norm, embedding and argmax."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import pypto_models.language as pl
from models.common.embedding import embed, greedy
from models.common.gate import gated
from models.common.norm import apply_post_norm
from models.common.projection import (
    project_down,
    project_gate_up,
    project_logits,
    project_out,
    project_qkv,
)
from models.common.sizes import DTYPE, EPS
from models.common.tiling import HEIGHTS
from models.qwen3_5_27b.config import FULL as QWEN3_5
from models.qwen3_5_27b.constants import constants as constants_27b
from models.qwen3_5_27b.full_layer import full_decode_layer_with_head
from models.qwen3_14b.config import FULL as QWEN3
from models.qwen3_14b.config import TINY
from models.qwen3_14b.constants import constants as constants_14b
from models.qwen3_14b.decode_layer import decode_layer_with_head
from pypto_models.compile import Program, compile
from pypto_models.cost import estimate
from pypto_models.language.parameters import constant_names
from pypto_models.target import load_target
from tests.models.common.paged import ints, make_step, random

WIDTH, INNER, COLUMNS, TABLE = 80, 144, 2500, 50

T = pl.dynamic("T")
B = pl.dynamic("B")
B1 = pl.dynamic("B1")


@pl.jit
def projections_entry(
    x: pl.Tensor[[T, WIDTH], DTYPE],
    w: pl.Tensor[[INNER, WIDTH], DTYPE],
    residual: pl.Tensor[[T, INNER], DTYPE],
    wide: pl.Out[pl.Tensor[[T, INNER], pl.FP32]],
    logits: pl.Out[pl.Tensor[[T, INNER], DTYPE]],
    out: pl.Out[pl.Tensor[[T, INNER], DTYPE]],
    down: pl.Out[pl.Tensor[[T, INNER], DTYPE]],
    act: pl.Out[pl.Tensor[[T, INNER // 2], DTYPE]],
):
    wide = project_qkv(x, w, wide)
    logits = project_logits(x, w, logits)
    out = project_out(x, w, residual, out)
    down = project_down(x, w, residual, down)
    act = project_gate_up(x, w, act)


@pl.jit
def gate_entry(
    attended: pl.Tensor[[T, WIDTH], DTYPE],
    projected: pl.Tensor[[T, INNER], pl.FP32],
    out: pl.Out[pl.Tensor[[T, WIDTH], DTYPE]],
):
    for t in pl.spmd(pl.tensor.dim(attended, 0), name_hint="gate"):
        head = pl.cast(pl.slice(attended, [1, WIDTH], [t, 0]), pl.FP32)
        pl.assemble(out, gated(head, pl.slice(projected, [1, WIDTH], [t, 0])), [t, 0])


@pl.jit
def norm_entry(
    x: pl.Tensor[[T, WIDTH], DTYPE],
    weight: pl.Tensor[[1, WIDTH], pl.FP32],
    out: pl.Out[pl.Tensor[[T, WIDTH], DTYPE]],
):
    out = apply_post_norm(x, weight, out)


@pl.jit
def embed_entry(
    tokens: pl.Tensor[[T], pl.INT32],
    table: pl.Tensor[[TABLE, WIDTH], DTYPE],
    slot_mapping: pl.Tensor[[T], pl.INT32],
    cu_q: pl.Tensor[[B1], pl.INT32],
    ctx: pl.Tensor[[B], pl.INT32],
    out: pl.Out[pl.Tensor[[T, WIDTH], DTYPE]],
):
    out = embed(tokens, table, slot_mapping, cu_q, ctx, out)


@pl.jit
def greedy_entry(
    logits: pl.Tensor[[T, COLUMNS], DTYPE],
    token: pl.Out[pl.Tensor[[T], pl.INT32]],
):
    token = greedy(logits, token)


ENTRIES = {k.name: k for k in (projections_entry, gate_entry, norm_entry, embed_entry, greedy_entry)}


@cache
def entry(name: str, platform: str = "a2a3sim", **constants: Any) -> Program:
    return compile(ENTRIES[name], platform=platform, constants={"DTYPE": pl.FP32} | constants, check=True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiles are small: threads cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def close(actual: Tensor, expected: Tensor, tolerance: float = 3e-6) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


# --------------------------------------------------------------------------------------------------
# Projections

# Tiles that do not divide 144 columns (72 of each half), nor K = 80
TAILS = {f"{name}_{axis}": 32 for name in ("QKV", "OUT", "MLP", "DOWN", "HEAD") for axis in "NK"}


@pytest.mark.parametrize(("height", "rows"), [(16, 5), (32, 17), (64, 64), (128, 65), (128, 128)])
def test_tall_projections_with_tails(height: int, rows: int) -> None:
    x, w = random(rows, WIDTH, seed=rows), random(INNER, WIDTH, seed=1, std=WIDTH**-0.5)
    residual = random(rows, INNER, seed=2)
    outs = [torch.full((rows, n), torch.nan) for n in (INNER,) * 4 + (INNER // 2,)]
    entry("projections_entry", ROWS=height, **TAILS)(x, w, residual, *outs)
    product = x.double() @ w.double().T
    gate, up = product.chunk(2, dim=1)
    added = product + residual.double()
    act = torch.nn.functional.silu(gate) * up
    for actual, expected in zip(outs, (product, product, added, added, act), strict=True):
        close(actual, expected)


ARGUMENTS = {"SEQ_PAGES": 1, "CACHE_ROWS": 512, "ROPE_ROWS": 8, "ctx": 1, "cu_q": 0, "positions": 0}


def moved_bytes(rows: int) -> dict[str, int]:
    """Bytes that each projection of a step with `rows` rows moves."""
    values = constants_14b(TINY, "a2a3", rows=rows, head_rows=TINY.vocab_padded)
    program = compile(decode_layer_with_head, constants=values)
    given = ARGUMENTS | {"TOKENS": rows, "BATCH": rows, "BATCH_ENDS": rows + 1}
    given |= {"slot_mapping": 0, "block_table": 0}
    found = estimate(program.compiled.graph, load_target("a2a3"), given)
    bytes_of = {t.name: t.bytes for t in found.summary.tasks}
    return {n: bytes_of[n] for n in ("qkv_proj", "out_proj", "gate_up_silu", "down_proj", "lm_head")}


def test_weights_are_loaded_once_whatever_the_rows() -> None:
    """What a projection moves is its weight, and a number of bytes for each row."""
    c = TINY
    weights = {
        "qkv_proj": c.qkv_width * c.hidden, "out_proj": c.hidden * c.q_width,
        "gate_up_silu": 2 * c.intermediate * c.hidden, "down_proj": c.hidden * c.intermediate,
        "lm_head": c.vocab_padded * c.hidden,
    }  # fmt: skip
    for low, high in ((1, 16), (17, 32), (33, 64), (65, 128)):
        few, many = moved_bytes(low), moved_bytes(high)
        for name, elements in weights.items():
            a_row = (many[name] - few[name]) / (high - low)
            assert few[name] - low * a_row == 2 * elements, (name, low)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["a2a3", "a5"])
@pytest.mark.parametrize("rows", HEIGHTS)
@pytest.mark.parametrize("span", [1, 8])
def test_the_published_sizes_fit(target: str, rows: int, span: int) -> None:
    """Alignment, fractals and budgets of the target, for every height of a step."""
    sizes = {"rows": rows, "span": span}
    dense = constants_14b(QWEN3, target, head_rows=QWEN3.vocab_padded, **sizes)
    gated = constants_27b(QWEN3_5, target, layer="full", head_rows=QWEN3_5.vocab_padded, **sizes)
    for kernel, values in ((decode_layer_with_head, dense), (full_decode_layer_with_head, gated)):
        assert values["ROWS"] == rows
        assert set(values) <= constant_names(kernel)
        compile(kernel, platform=f"{target}sim", constants=values, check=True)


# --------------------------------------------------------------------------------------------------
# Norm and gate


def test_gemma_norm_rounds_once() -> None:
    x, weight = random(40, WIDTH, std=2.0).bfloat16(), random(1, WIDTH, seed=1)
    out = torch.empty_like(x)
    entry("norm_entry", DTYPE=pl.BF16, GEMMA_NORM=True)(x, weight, out)
    unit = x.double() * torch.rsqrt(x.double().square().mean(1, keepdim=True) + EPS)
    once = ((1 + weight.double()) * unit).bfloat16()
    twice = ((1 + weight.double()) * unit.bfloat16().double()).bfloat16()
    assert (out == once).double().mean() > 0.999  # fp32 sums may end on the other side of a tie
    assert (out == twice).double().mean() < 0.9


@pytest.mark.parametrize("rows", [1, 128])
def test_gate(rows: int) -> None:
    attended, projected = random(rows, WIDTH), random(rows, INNER, seed=1, std=3.0)
    attended[0] = 0
    projected[:, WIDTH:] = torch.nan  # q, k and v
    projected[-1, :2] = torch.tensor([-200.0, 200.0])
    out = torch.empty_like(attended)
    entry("gate_entry")(attended, projected, out)
    close(out, attended.double() * torch.sigmoid(projected[:, :WIDTH].double()))
    assert not out[0].any()


def test_gate_rounds_thrice_in_bf16() -> None:
    attended, projected = random(64, WIDTH).bfloat16(), random(64, INNER, seed=1)
    out = torch.empty_like(attended)
    entry("gate_entry", DTYPE=pl.BF16)(attended, projected, out)
    gate = projected[:, :WIDTH]
    rounded = torch.sigmoid(gate.bfloat16().double()).bfloat16()
    expected = (attended.double() * rounded.double()).bfloat16()
    unrounded = (attended.double() * torch.sigmoid(gate.double())).bfloat16()
    assert (out == expected).double().mean() > 0.999
    assert (out == unrounded).double().mean() < 0.9


# --------------------------------------------------------------------------------------------------
# Embedding and argmax


def test_embedding_of_live_rows() -> None:
    step = make_step([(1, 1, 4), (3, 2, 9), (0, 0, 5), (2, 2, 0), (4, 4, 4)], 16, before=1, after=2)
    live = [row for row, _, _ in step.live]
    table = random(TABLE, WIDTH)
    tokens = torch.randint(0, TABLE, [step.rows], generator=torch.Generator().manual_seed(0)).int()
    tokens[step.dead] = -7  # no row of the table
    tokens[live[0]], tokens[live[1]] = 0, TABLE - 1
    out = torch.full((step.rows, WIDTH), torch.nan)
    entry("embed_entry")(tokens, table, *step.indices, out)
    assert torch.equal(out[live], table[tokens[live].long()])
    assert len(step.dead) == 6 and not out[step.dead].any()


@pytest.mark.parametrize("platform", ["a2a3sim", "a5sim"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 16, 17, 128])
def test_greedy(rows: int, dtype: torch.dtype, platform: str) -> None:
    """bf16 logits are often equal; torch gives the first of equal maxima too.  Padding never wins."""
    vocab = 2400
    logits = random(rows, COLUMNS, seed=rows).to(dtype)
    logits[:, vocab:] = 100.0
    logits[0, :vocab] = 0.0
    expected = logits[:, :vocab].float().numpy().argmax(axis=1)
    token = torch.empty(rows, dtype=torch.int32)
    typed = pl.BF16 if dtype == torch.bfloat16 else pl.FP32
    entry("greedy_entry", platform, DTYPE=typed, VOCAB=vocab, ROWS=128)(logits, token)
    assert token.tolist() == expected.tolist()
    assert token[0] == 0


def test_greedy_takes_the_lowest_of_equal_logits() -> None:
    """Equal within a chunk, across two chunks, in the last column, all of them minus infinity."""
    places = [(5, 700), (1023, 1024), (1500, 2399), (2399,), tuple(range(2400))]
    logits = torch.full((len(places), COLUMNS), -3.0)
    logits[4] = -torch.inf
    for row, columns in enumerate(places[:4]):
        logits[row, list(columns)] = 7.0
    logits[:, 2400:] = 9.0
    token = ints([-1] * len(places))
    entry("greedy_entry", VOCAB=2400)(logits, token)
    assert token.tolist() == [columns[0] for columns in places]
