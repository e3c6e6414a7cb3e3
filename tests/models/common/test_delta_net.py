"""The blocks of the gated delta net, each against its equation in fp64, and against its rounding in bf16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pypto_models.language as pl
from models.common.delta_net import delta_rule, gdn_conv, gdn_gates, gdn_out_norm, softplus
from models.common.sizes import DTYPE, K_DIM, K_HEADS, SPAN, TAPS, V_DIM, V_HEADS
from models.qwen3_5_27b.config import REAL_HEADS, TINY, Config
from pypto_models.compile import Program, compile
from pypto_models.errors import UserError
from pypto_models.language import Kernel
from pypto_models.passes.grid import suspects
from tests.models.common.gdn_step import (
    STATES,
    Layout,
    Rounding,
    Step,
    convolve,
    exactly,
    gates,
    make,
    mix,
    out_norm,
    recur,
    to_bf16,
    units,
)

T = pl.dynamic("T")
B = pl.dynamic("B")
B1 = pl.dynamic("B1")
STATE_ROWS = pl.dynamic("STATE_ROWS")
CONV_ROWS = pl.dynamic("CONV_ROWS")

V_WIDTH = V_HEADS * V_DIM
UNIT_WIDTH = 2 * K_HEADS * K_DIM
CONV_DIM = UNIT_WIDTH + V_WIDTH
IN_WIDTH = CONV_DIM + V_WIDTH + 2 * V_HEADS


# --------------------------------------------------------------------------------------------------
# Entries around the blocks


@pl.jit
def softplus_entry(x: pl.Tensor[[16, 128], pl.FP32], out: pl.Out[pl.Tensor[[16, 128], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        pl.assemble(out, softplus(pl.slice(x, [16, 128], [0, 0])), [0, 0])


@pl.jit
def gates_entry(
    projected: pl.Tensor[[T, IN_WIDTH], pl.FP32],
    a_log: pl.Tensor[[1, V_HEADS], pl.FP32],
    dt_bias: pl.Tensor[[1, V_HEADS], pl.FP32],
    decay: pl.Out[pl.Tensor[[T, V_HEADS], pl.FP32]],
    beta: pl.Out[pl.Tensor[[T, V_HEADS], pl.FP32]],
):
    decay, beta = gdn_gates(projected, a_log, dt_bias, decay, beta)


@pl.jit
def conv_entry(
    projected: pl.Tensor[[T, IN_WIDTH], pl.FP32],
    conv_weight: pl.Tensor[[TAPS, CONV_DIM], DTYPE],
    slot_mapping: pl.Tensor[[T], pl.INT32],
    cu_q: pl.Tensor[[B1], pl.INT32],
    ctx: pl.Tensor[[B], pl.INT32],
    kept: pl.Tensor[[B], pl.INT32],
    conv_slots: pl.Tensor[[B], pl.INT32],
    conv_state: pl.InOut[pl.Tensor[[CONV_ROWS, CONV_DIM], DTYPE]],
    unit: pl.InOut[pl.Tensor[[T, UNIT_WIDTH], pl.FP32]],
    values: pl.InOut[pl.Tensor[[T, V_WIDTH], DTYPE]],
):
    unit, values = gdn_conv(
        projected, conv_weight, slot_mapping, cu_q, ctx, kept, conv_slots, conv_state, unit, values
    )


@pl.jit
def rule_entry(
    unit: pl.Tensor[[T, UNIT_WIDTH], pl.FP32],
    values: pl.Tensor[[T, V_WIDTH], DTYPE],
    decay: pl.Tensor[[T, V_HEADS], pl.FP32],
    beta: pl.Tensor[[T, V_HEADS], pl.FP32],
    slot_mapping: pl.Tensor[[T], pl.INT32],
    cu_q: pl.Tensor[[B1], pl.INT32],
    ctx: pl.Tensor[[B], pl.INT32],
    kept: pl.Tensor[[B], pl.INT32],
    state_slots: pl.Tensor[[B, SPAN], pl.INT32],
    state: pl.InOut[pl.Tensor[[STATE_ROWS, V_DIM], pl.FP32]],
    out: pl.InOut[pl.Tensor[[T, V_WIDTH], DTYPE]],
):
    out = delta_rule(unit, values, decay, beta, slot_mapping, cu_q, ctx, kept, state_slots, state, out)


@pl.jit
def norm_entry(
    x: pl.Tensor[[T, V_WIDTH], DTYPE],
    projected: pl.Tensor[[T, IN_WIDTH], pl.FP32],
    gdn_norm: pl.Tensor[[1, V_DIM], pl.FP32],
    slot_mapping: pl.Tensor[[T], pl.INT32],
    cu_q: pl.Tensor[[B1], pl.INT32],
    ctx: pl.Tensor[[B], pl.INT32],
    out: pl.Out[pl.Tensor[[T, V_WIDTH], DTYPE]],
):
    out = gdn_out_norm(x, projected, gdn_norm, slot_mapping, cu_q, ctx, out)


@pl.jit
def mix_entry(
    projected: pl.Tensor[[T, IN_WIDTH], pl.FP32],
    conv_weight: pl.Tensor[[TAPS, CONV_DIM], DTYPE],
    a_log: pl.Tensor[[1, V_HEADS], pl.FP32],
    dt_bias: pl.Tensor[[1, V_HEADS], pl.FP32],
    gdn_norm: pl.Tensor[[1, V_DIM], pl.FP32],
    slot_mapping: pl.Tensor[[T], pl.INT32],
    cu_q: pl.Tensor[[B1], pl.INT32],
    ctx: pl.Tensor[[B], pl.INT32],
    kept: pl.Tensor[[B], pl.INT32],
    state_slots: pl.Tensor[[B, SPAN], pl.INT32],
    conv_slots: pl.Tensor[[B], pl.INT32],
    conv_state: pl.InOut[pl.Tensor[[CONV_ROWS, CONV_DIM], DTYPE]],
    state: pl.InOut[pl.Tensor[[STATE_ROWS, V_DIM], pl.FP32]],
    out: pl.Out[pl.Tensor[[T, V_WIDTH], DTYPE]],
):
    rows = pl.tensor.dim(projected, 0)
    decay = pl.create_tensor([rows, V_HEADS], pl.FP32)
    beta = pl.create_tensor([rows, V_HEADS], pl.FP32)
    unit = pl.create_tensor([rows, UNIT_WIDTH], pl.FP32)
    values = pl.create_tensor([rows, V_WIDTH], DTYPE)
    recalled = pl.create_tensor([rows, V_WIDTH], DTYPE)
    decay, beta = gdn_gates(projected, a_log, dt_bias, decay, beta)
    unit, values = gdn_conv(
        projected, conv_weight, slot_mapping, cu_q, ctx, kept, conv_slots, conv_state, unit, values
    )
    recalled = delta_rule(
        unit, values, decay, beta, slot_mapping, cu_q, ctx, kept, state_slots, state, recalled
    )
    out = gdn_out_norm(recalled, projected, gdn_norm, slot_mapping, cu_q, ctx, out)


KINDS = {torch.float32: pl.FP32, torch.bfloat16: pl.BF16}
WIDTHS = {  # of these entries, at the sizes of a configuration
    "CONV_DIM": lambda c: c.conv_dim,
    "UNIT_WIDTH": lambda c: 2 * c.k_width,
    "IN_WIDTH": lambda c: c.in_width,
    "V_WIDTH": lambda c: c.v_width,
    "K_HEADS": lambda c: c.k_heads,
    "V_HEADS": lambda c: c.v_heads,
    "K_DIM": lambda c: c.k_dim,
    "V_DIM": lambda c: c.v_dim,
    "TAPS": lambda c: c.taps,
}


@cache
def entry(
    kernel: Kernel, dtype: torch.dtype = torch.float32, span: int | None = None, **changed: Any
) -> Program:
    """A block as a program for a2a3; `span` where the block has a convolution or a recurrence."""
    values = {"DTYPE": KINDS[dtype]} | changed
    if span is not None:
        values["SPAN"] = span
    if span is not None and kernel is not rule_entry:
        values["CONV_WIDTH"] = values.get("TAPS", TAPS) - 2 + span
    return compile(kernel, constants=values, check=True)


def call(program: Program, tensors: Mapping[str, Tensor]) -> None:
    program(*(tensors[p.name] for p in program.params))


def random(*shape: int, seed: int = 0, std: float = 1.0) -> Tensor:
    return std * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nan(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.dtype.itemsize])


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


def agree(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """fp32: within 2e-6.  bf16: the same bits but for the few sums that end on the other side of a tie."""
    if dtype == torch.float32:
        close(actual, expected, 2e-6)
    else:
        assert (actual == expected.to(dtype)).double().mean() > 0.995
        close(actual, expected, 2**-7 * float(expected.abs().max()))


def rounding(dtype: torch.dtype) -> Rounding:
    return exactly if dtype == torch.float32 else to_bf16


BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])

# Ragged counts and every number of kept rows; a sequence without rows; every way of being dead, in the middle
# of a sequence too; rows that nobody owns
LAYOUTS = {
    "one_token": Layout((1,) * 5, (1,) * 5, span=1),
    "one_of_four": Layout((1, 1, 1, 1), (1, 2, 3, 4), span=4),
    "ragged": Layout((0, 1, 2, 3, 4, 5, 6, 7, 8), (1, 8, 7, 6, 5, 4, 3, 2, 1)),
    "ragged_reversed": Layout((8, 7, 6, 5, 4, 3, 2, 1, 0), (8, 1, 2, 3, 4, 5, 6, 7, 3)),
    "dead": Layout((3, 0, 8, 1, 2, 4), (1, 4, 8, 2, 3, 5), no_slot=(1, 7, 9, 12), no_context=(4,), extra=3),
    "dead_at_once": Layout((3, 2), (2, 1), span=3, no_slot=(0, 4)),
    "nothing_live": Layout((2, 0, 1), (1, 1, 2), span=2, no_slot=(0, 1), no_context=(2,), extra=1),
    "no_row_owned": Layout((0, 0), (1, 1), span=2, extra=2),
    "128_rows": Layout((8,) * 16, tuple(1 + s % 8 for s in range(16))),
}
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def projection(layout: Layout, config: Config = TINY, seed: int = 0) -> Tensor:
    """What the stacked projection of the step gives: zeros in dead rows."""
    projected = random(layout.rows, config.in_width, seed=seed + 100)
    projected[layout.dead] = 0
    return projected


# --------------------------------------------------------------------------------------------------
# Gates


def test_softplus_keeps_its_relative_accuracy() -> None:
    x = torch.cat([torch.linspace(-85, 60, 1948), torch.linspace(-1e-3, 1e-3, 98), torch.tensor([0.0, -0.0])])
    out = torch.empty(16, 128)
    entry_ = compile(softplus_entry, check=True)
    entry_(x.view(16, 128), out)
    exact = torch.where(x > 0, x.double(), 0) + torch.log1p(torch.exp(-x.double().abs()))
    relative = (out.flatten().double() / exact - 1).abs()
    assert relative.max() < 4e-7
    plain = (torch.log(1 + torch.exp(x)).double() / exact - 1).abs()
    assert plain[x < -17].min() > 0.1  # where log(1 + e^x) has nothing left


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 100, 128])
def test_gates(rows: int) -> None:
    tensors = make(Layout((1,), (1,)), seed=rows)
    projected = random(rows, TINY.in_width, seed=rows, std=3.0)
    decay, beta = nan(2, rows, TINY.v_heads).unbind(0)
    entry(gates_entry)(projected, tensors["a_log"], tensors["dt_bias"], decay, beta)
    b, a = projected[:, -2 * TINY.v_heads :].double().chunk(2, -1)
    exact_decay, exact_beta = gates(b, a, tensors["a_log"].double(), tensors["dt_bias"].double())
    close(decay, exact_decay, 3e-7)
    close(beta, exact_beta, 2e-7)
    assert exact_decay.max() > 0.99  # memories of many tokens are among them


def test_gates_round_b_a_and_beta_but_not_the_decay() -> None:
    tensors = make(Layout((1,), (1,)))
    projected = random(64, TINY.in_width, std=3.0)
    decay, beta = nan(2, 64, TINY.v_heads).unbind(0)
    entry(gates_entry, torch.bfloat16)(projected, tensors["a_log"], tensors["dt_bias"], decay, beta)
    b, a = projected[:, -2 * TINY.v_heads :].double().chunk(2, -1)
    exact_decay, exact_beta = gates(b, a, tensors["a_log"].double(), tensors["dt_bias"].double(), to_bf16)
    close(decay, exact_decay, 3e-7)
    assert torch.equal(beta.double(), exact_beta)
    assert (decay.bfloat16() != decay).any()
    unrounded = gates(b, a, tensors["a_log"].double(), tensors["dt_bias"].double())[0]
    assert (decay - unrounded).abs().max() > 1e-3


def test_gates_of_huge_inputs_are_finite() -> None:
    """Nothing overflows: 0 and 1 are the ends of both gates."""
    projected = torch.zeros(4, TINY.in_width)
    projected[:, -2 * TINY.v_heads :] = torch.tensor([300.0, -300.0, 3e4, -3e4])[:, None]
    decay, beta = nan(2, 4, TINY.v_heads).unbind(0)
    heads = torch.ones(1, TINY.v_heads)
    entry(gates_entry)(projected, 2.7 * heads, -6 * heads, decay, beta)
    ends = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None].expand_as(decay)
    assert torch.equal(decay, ends) and torch.equal(beta, 1 - ends)


# --------------------------------------------------------------------------------------------------
# Convolution


@BOTH
@EVERY_LAYOUT
def test_convolution(layout: Layout, dtype: torch.dtype) -> None:
    tensors = make(layout, dtype=dtype)
    tensors["projected"] = projection(layout)
    tensors["unit"] = nan(layout.rows, 2 * TINY.k_width)
    tensors["values"] = nan(layout.rows, TINY.v_width, dtype=dtype)
    before = tensors["conv_state"].clone()
    call(entry(conv_entry, dtype, layout.span), tensors)

    width = layout.span + 2
    old, new = (t.view(-1, width, TINY.conv_dim).clone() for t in (before, tensors["conv_state"]))
    rnd = rounding(dtype)
    weight = tensors["conv_weight"].double()
    for s in range(len(layout.counts)):
        rows = layout.live(s)
        if not rows:
            continue
        slot, kept = int(tensors["conv_slots"][s]), int(tensors["kept"][s])
        x = rnd(tensors["projected"][rows, : TINY.conv_dim].double())
        inputs = torch.cat([old[slot, kept - 1 : kept + 2].double(), x])
        expected = torch.stack([convolve(inputs[j : j + 4], weight, rnd) for j in range(len(rows))])
        q, k, v = expected.split([TINY.k_width, TINY.k_width, TINY.v_width], -1)
        agree(tensors["values"][rows], v, dtype)
        heads = torch.cat(units(*(x.view(-1, TINY.k_heads, TINY.k_dim) for x in (q, k))), 1).flatten(1)
        # A sum on the other side of a tie turns its head, too little for more than a rounding
        close(tensors["unit"][rows], heads, 2e-6 if dtype == torch.float32 else 2**-8)
        columns = len(rows) + 2
        assert torch.equal(new[slot, :columns].double(), inputs[1:])
        new[slot, :columns] = old[slot, :columns]
    assert torch.equal(bits(new), bits(old))  # and nothing else changed
    assert tensors["unit"][layout.dead].isnan().all()
    assert tensors["values"][layout.dead].isnan().all()


@pytest.mark.parametrize("scale", [0.0, 3e-4])
def test_short_vectors_are_not_blown_up(scale: float) -> None:
    """They are divided by sqrt(1e-6) at least, and not by 0."""
    layout = Layout((2,), (1,), span=2)
    tensors = make(layout)
    tensors["projected"] = scale * projection(layout)
    tensors["conv_state"] *= scale
    tensors |= {"unit": nan(2, 2 * TINY.k_width), "values": nan(2, TINY.v_width)}
    given = {name: t.double() for name, t in tensors.items()}
    window = given["conv_state"].view(-1, layout.span + 2, TINY.conv_dim)[int(tensors["conv_slots"][0]), :3]
    inputs = torch.cat([window, given["projected"][:, : TINY.conv_dim]])
    y = torch.stack([convolve(inputs[j : j + 4], given["conv_weight"]) for j in range(2)])
    q, k = (x.view(2, TINY.k_heads, -1) for x in y.split(TINY.k_width, -1)[:2])
    call(entry(conv_entry, span=2), tensors)
    unit = torch.cat(units(q, k), 1).flatten(1)
    close(tensors["unit"], unit, 2e-6)
    lengths = k.norm(dim=-1) / (k.square().sum(-1) + 1e-6).sqrt()
    assert lengths.max() < 0.95


# --------------------------------------------------------------------------------------------------
# Delta rule


@BOTH
@EVERY_LAYOUT
def test_delta_rule(layout: Layout, dtype: torch.dtype) -> None:
    c = TINY
    tensors = make(layout, dtype=dtype)
    heads = random(2, layout.rows, c.k_heads, c.k_dim, seed=1)
    tensors["unit"] = torch.cat(units(*heads), 1).flatten(1)
    tensors["values"] = random(layout.rows, c.v_width, seed=3).to(dtype)
    g = torch.Generator().manual_seed(2)
    tensors["decay"] = 1 - 0.2 * torch.rand(layout.rows, c.v_heads, generator=g)
    tensors["beta"] = torch.rand(layout.rows, c.v_heads, generator=g)
    for name in ("unit", "values", "decay", "beta"):
        tensors[name][layout.dead] = torch.nan
    tensors["out"] = nan(layout.rows, c.v_width, dtype=dtype)
    before = tensors["state"].clone()
    call(entry(rule_entry, dtype, layout.span), tensors)

    old, new = (t.view(-1, c.v_heads, c.k_dim, c.v_dim).clone() for t in (before, tensors["state"]))
    for s in range(len(layout.counts)):
        rows, slots = layout.live(s), tensors["state_slots"][s].tolist()
        state = old[slots[int(tensors["kept"][s]) - 1]].double() if rows else None
        for j, t in enumerate(rows):
            q, k = tensors["unit"][t].double().view(2, c.k_heads, -1)
            v = tensors["values"][t].double().view(c.v_heads, -1)
            decay, beta = tensors["decay"][t].double(), tensors["beta"][t].double()
            assert state is not None
            state, out = recur(state, q, k, v, decay, beta, rounding(dtype))
            agree(tensors["out"][t], out.flatten(), dtype)
            close(new[slots[j]], state, 2e-6)  # the state after this prefix
            new[slots[j]] = old[slots[j]]
    assert torch.equal(bits(new), bits(old))  # and nothing else changed
    assert tensors["out"][layout.dead].isnan().all()


def test_delta_rule_of_zero_vectors() -> None:
    """k = q = 0: the state only decays."""
    layout, c = Layout((2,), (1,), span=2), TINY
    tensors = make(layout)
    tensors |= {"unit": torch.zeros(2, 2 * c.k_width), "decay": torch.full((2, c.v_heads), 0.5)}
    tensors |= {"beta": torch.ones(2, c.v_heads), "out": nan(2, c.v_width)}
    tensors["values"] = torch.ones(2, c.v_width)
    slots = tensors["state_slots"][0].tolist()
    state = tensors["state"].clone().view(-1, c.v_heads, c.k_dim, c.v_dim)[slots[0]]
    call(entry(rule_entry, span=2), tensors)
    after = tensors["state"].view(-1, c.v_heads, c.k_dim, c.v_dim)
    assert torch.equal(after[slots[0]], state / 2) and torch.equal(after[slots[1]], state / 4)
    assert not tensors["out"].any()


# --------------------------------------------------------------------------------------------------
# Output norm


@BOTH
@EVERY_LAYOUT
def test_output_norm(layout: Layout, dtype: torch.dtype) -> None:
    c = TINY
    tensors = make(layout, dtype=dtype)
    tensors["projected"] = projection(layout)
    tensors["x"] = random(layout.rows, c.v_width, seed=4, std=0.1).to(dtype)
    tensors["x"][layout.dead] = torch.nan
    tensors["out"] = nan(layout.rows, c.v_width, dtype=dtype)
    call(entry(norm_entry, dtype), tensors)

    rows = layout.all_live
    z = tensors["projected"][rows, c.conv_dim : c.conv_dim + c.v_width].double()
    x, z = (t.reshape(-1, c.v_heads, c.v_dim) for t in (tensors["x"][rows].double(), z))
    expected = out_norm(x, z, tensors["gdn_norm"].double(), rounding(dtype))
    if rows:
        agree(tensors["out"][rows], expected.flatten(1), dtype)
    assert not tensors["out"][layout.dead].any()


# --------------------------------------------------------------------------------------------------
# All four


def run(
    layout: Layout, config: Config, dtype: torch.dtype, seed: int = 0, **changed: Any
) -> dict[str, Tensor]:
    """The tensors of a step before it, and after it as `out` and `after_*`; checked against the equations."""
    tensors = make(layout, config, dtype, seed)
    tensors["projected"] = projection(layout, config, seed)
    tensors["out"] = nan(layout.rows, config.v_width, dtype=dtype)
    own = tensors | {name: tensors[name].clone() for name in STATES}
    sizes = {name: of(config) for name, of in WIDTHS.items()}
    call(entry(mix_entry, dtype, layout.span, **(sizes | changed)), own)
    tensors |= {"after_" + name: own[name] for name in STATES}
    check(layout, config, tensors, dtype)
    return tensors


def check(layout: Layout, config: Config, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """fp32: at most twice as far from fp64 as torch's fp32 evaluation, and 2e-6; bf16: a few roundings."""
    projected = tensors["projected"]
    expected, after = mix(layout, tensors, config, projected.double(), rounding(dtype))
    tolerances = 2**-6 * float(expected.abs().max()), 2e-2
    if dtype == torch.float32:
        out, like = mix(layout, tensors, config, projected)
        states = [float((like.state[slot] - state).abs().max()) for slot, state in after.state.items()]
        tolerances = 2 * float((out - expected).abs().max()) + 2e-6, 2 * max(states, default=0.0) + 2e-6
    close(tensors["out"], expected, tolerances[0])
    assert not tensors["out"][layout.dead].any()
    check_states(layout, config, tensors, after, tolerances[1])


def check_states(
    layout: Layout, config: Config, tensors: Mapping[str, Tensor], after: Step, tolerance: float
) -> None:
    """Every prefix's state, the new columns of the convolution, and that no other bit changed."""
    shape = (-1, config.v_heads, config.k_dim, config.v_dim)
    old, new = tensors["state"].view(shape), tensors["after_state"].view(shape).clone()
    for slot, state in after.state.items():
        close(new[slot], state, tolerance)
        new[slot] = old[slot]
    assert torch.equal(bits(new), bits(old))
    shape = (-1, config.taps - 2 + layout.span, config.conv_dim)
    old, new = tensors["conv_state"].view(shape), tensors["after_conv_state"].view(shape).clone()
    for slot, columns in after.conv.items():
        assert torch.equal(new[slot, : len(columns)].double(), columns)
        new[slot, : len(columns)] = old[slot, : len(columns)]
    assert torch.equal(bits(new), bits(old))


@BOTH
@EVERY_LAYOUT
def test_all_blocks(layout: Layout, dtype: torch.dtype) -> None:
    run(layout, TINY, dtype)


@pytest.mark.parametrize("taps", [2, 3, 5])
def test_other_lengths_of_the_convolution(taps: int) -> None:
    run(LAYOUTS["dead"], replace(TINY, taps=taps), torch.float32)


@pytest.mark.parametrize(
    ("tile", "dtype"), [(32, torch.bfloat16), (64, torch.float32), (128, torch.bfloat16)], ids=str
)
def test_real_head_sizes(tile: int, dtype: torch.dtype) -> None:
    """128 x 128 states, the published tiles and several heads in a block of the norm."""
    config = replace(REAL_HEADS, k_heads=8, v_heads=24)
    layout = Layout((3, 0, 4), (2, 4, 8), no_slot=(2,), extra=1)
    run(layout, config, dtype, V_TILE=tile, CONV_TILE=1024, NORM_HEADS=8)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    batch, span = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    counts = draw(st.lists(st.integers(0, span), min_size=batch, max_size=batch))
    kept = draw(st.lists(st.integers(1, span), min_size=batch, max_size=batch))
    no_slot = draw(st.sets(st.integers(0, max(0, sum(counts) - 1)), max_size=4)) if sum(counts) else set()
    no_context = draw(st.sets(st.integers(0, batch - 1), max_size=2))
    extra = draw(st.integers(0 if sum(counts) else 1, 2))
    return Layout(tuple(counts), tuple(kept), span, tuple(no_slot), tuple(no_context), extra)


@settings(max_examples=15)
@given(layouts(), st.integers(0, 99))
def test_any_layout(layout: Layout, seed: int) -> None:
    run(layout, TINY, torch.float32, seed)


def test_steps_that_keep_some_rows_are_the_same_as_one_token_at_a_time() -> None:
    """Speculative decoding: rows that are not kept leave no trace, whatever each step proposes and keeps."""
    span, steps, c = 4, 6, TINY
    g = torch.Generator().manual_seed(9)
    tensors = make(Layout((span,), (1,), span))
    program = entry(mix_entry, torch.float32, span)
    history = tensors["conv_state"].view(-1, span + 2, c.conv_dim)[int(tensors["conv_slots"][0]), :3].double()
    slots = tensors["state_slots"][0].tolist()
    state = tensors["state"].view(-1, c.v_heads, c.k_dim, c.v_dim)[slots[0]].double()
    accepted, outputs = [], []
    for step in range(steps):
        rows, keep = [(4, 2), (1, 1), (3, 3), (4, 1), (4, 4), (2, 1)][step]
        tensors |= {"cu_q": torch.tensor([0, rows]).int(), "ctx": torch.tensor([50]).int()}
        tensors["slot_mapping"] = torch.arange(rows).int()
        tensors["projected"] = torch.randn(rows, c.in_width, generator=g)
        tensors["out"] = nan(rows, c.v_width)
        call(program, tensors)
        tensors["kept"] = torch.tensor([keep]).int()
        accepted.append(tensors["projected"][:keep])
        outputs.append(tensors["out"][:keep])
    whole = torch.cat(accepted).double()
    weight, norm, a_log, dt_bias = (
        tensors[name].double() for name in ("conv_weight", "gdn_norm", "a_log", "dt_bias")
    )
    x, z, b, a = whole.split([c.conv_dim, c.v_width, c.v_heads, c.v_heads], -1)
    decay, beta = gates(b, a, a_log, dt_bias)
    inputs = torch.cat([history, x])
    expected = []
    for t in range(len(whole)):
        q, k, v = convolve(inputs[t : t + 4], weight).split([c.k_width, c.k_width, c.v_width])
        q, k = units(q.view(c.k_heads, -1), k.view(c.k_heads, -1))
        state, out = recur(state, q, k, v.view(c.v_heads, -1), decay[t], beta[t])
        expected.append(out_norm(out, z[t].view(c.v_heads, -1), norm).flatten())
    close(torch.cat(outputs), torch.stack(expected), 1e-5)
    last = tensors["state"].view(-1, c.v_heads, c.k_dim, c.v_dim)[slots[int(tensors["kept"][0]) - 1]]
    close(last, state, 5e-6)


# --------------------------------------------------------------------------------------------------
# Safety


@pytest.mark.parametrize("seed", range(3))
def test_any_legal_order_gives_the_same_bits(seed: int) -> None:
    layout = LAYOUTS["dead"]
    results = []
    for options in ({}, {"schedule": "random", "seed": seed}):
        constants = {"DTYPE": pl.FP32, "SPAN": 8, "CONV_WIDTH": 10}
        program = compile(mix_entry, constants=constants, backend_options=options)
        tensors = make(layout)
        tensors |= {"projected": projection(layout), "out": nan(layout.rows, TINY.v_width)}
        call(program, tensors)
        results.append([bits(tensors[name]) for name in ("out", *STATES)])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("platform", ["a2a3sim", "a5sim", "gb10sim", "h200sim"])
def test_there_is_no_hazard_and_only_rows_that_data_chooses_are_watched(platform: str) -> None:
    graph = compile(mix_entry, platform=platform, constants={"DTYPE": pl.BF16}).compiled.graph
    assert graph.hazards == ()
    watched = [{t.name for t in tensors} for tensors in suspects(graph).values() if tensors]
    assert watched == [{"unit", "values", "conv_state"}, {"recalled", "state"}]


def test_two_sequences_with_one_slot_are_a_race() -> None:
    layout = LAYOUTS["one_token"]
    for name, region in (("state_slots", "delta_rule"), ("conv_slots", "gdn_conv")):
        tensors = make(layout)
        tensors |= {"projected": projection(layout), "out": nan(layout.rows, TINY.v_width)}
        tensors[name][3] = tensors[name][1]
        with pytest.raises(UserError, match=rf"block \d+ .* of region '{region}"):
            call(entry(mix_entry, torch.float32, 1), tensors)


def test_more_rows_than_the_span_are_refused() -> None:
    layout = Layout((3,), (1,), span=2)
    tensors = make(replace(layout, span=4))  # a larger pool, so that only the span is too small
    tensors["state_slots"] = tensors["state_slots"][:, :2].contiguous()
    tensors |= {"projected": projection(layout), "out": nan(layout.rows, TINY.v_width)}
    with pytest.raises(UserError, match=r"state_slots"):
        call(entry(mix_entry, torch.float32, 2), tensors)
