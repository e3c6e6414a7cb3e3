"""The torch reference of both kinds of layer against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.common import equations as eq
from models.common.step_inputs import Dead
from models.qwen3_5_27b import reference
from models.qwen3_5_27b.config import REAL_HEADS, TINY
from models.qwen3_5_27b.inputs import make_inputs
from models.qwen3_5_27b.reference import Layer, Precision, mutated
from tests.models.checks import assert_rounded_alike, chain, errors, evaluate, max_error, rms, speculate
from tests.models.qwen3_5_27b.oracle import oracle

LAYERS, STEPS = range(TINY.layers), range(4)
KINDS: tuple[Layer, ...] = ("full", "gdn")
TOLERANCE = 1e-5

RAGGED = {
    "all_rows": ([4, 4, 4, 4], 4, [1, 2, 3, 4]),
    "ragged": ([4, 0, 2, 1], 5, [5, 3, 1, 2]),
    "few_of_eight": ([1, 3, 0, 2], 8, [1, 8, 4, 7]),
    "one_row": ([1, 1, 1, 1], 3, [3, 2, 1, 3]),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are small: handing them to a second thread costs more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --------------------------------------------------------------------------------------------------
# Equations, in fp32


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("layer", LAYERS)
def test_fp32_layer_matches_transformers(layer: int, step: int) -> None:
    run = oracle("fp32")
    actual = evaluate(reference, run.tensors(step, layer), run.config, run.config.kinds[layer])
    expected = run.expected(step, layer)
    for name, error in errors(actual, expected).items():
        assert rms(expected[name][~expected[name].isnan()]) > 0.05, name
        assert error <= TOLERANCE, name


@pytest.mark.parametrize(("counts", "span", "kept"), RAGGED.values(), ids=RAGGED)
@pytest.mark.parametrize("layer", LAYERS)
def test_several_rows_match_transformers_one_at_a_time(
    layer: int, counts: list[int], span: int, kept: list[int]
) -> None:
    """Rows, caches, the state after every row, and the convolution's buffer, from any kept row on."""
    run = oracle("fp32")
    tensors = run.tensors(0, layer, counts, span, kept)
    actual = evaluate(reference, tensors, run.config, run.config.kinds[layer])
    for name, error in errors(actual, run.expected(0, layer, counts, span, kept)).items():
        assert error <= TOLERANCE, name


@pytest.mark.parametrize("layer", LAYERS)
def test_several_rows_match_transformers_at_once(layer: int) -> None:
    """transformers takes a chunked form of the delta rule for more than one token."""
    run = oracle("fp32")
    counts = [run.steps] * len(run.lens)
    tensors = run.tensors(0, layer, counts) | {"hidden": run.multi[layer]}
    actual = evaluate(reference, tensors, run.config, run.config.kinds[layer])
    assert max_error(actual["next_hidden"], run.multi[layer + 1]) <= TOLERANCE
    if layer == run.config.layers - 1:
        assert max_error(actual["logits"], torch.cat(run.multi_logits)) <= TOLERANCE


def test_fp32_chain_of_layers_and_steps_matches_transformers() -> None:
    assert chain(oracle("fp32", seed=1, lens=(1, 15, 16, 90), steps=5), reference) <= TOLERANCE


def test_fp32_real_head_size_matches_transformers() -> None:
    run = oracle("fp32", lens=(3, 126, 140), steps=3, config=REAL_HEADS, deltas=(0, 400, -100))
    assert chain(run, reference) <= TOLERANCE
    for layer, kind in enumerate(run.config.kinds):
        counts, span, kept = [3, 0, 2], 4, [2, 4, 1]
        actual = evaluate(reference, run.tensors(0, layer, counts, span, kept), run.config, kind)
        assert max(errors(actual, run.expected(0, layer, counts, span, kept)).values()) <= TOLERANCE, layer


def test_rejected_tokens_leave_no_trace() -> None:
    """All layers chained, from 1 to 8 rows and none, of which some, all or no rows stay valid."""
    run = oracle("fp32", seed=2, lens=(2, 17, 48, 65), steps=7)
    plan = [
        [(1, 7), (2, 0), (3, 2), (0, 0)],
        [(2, 1), (1, 3), (1, 0), (5, 3)],
        [(0, 0), (4, 4), (2, 6), (1, 1)],
        [(3, 0), (0, 0), (1, 2), (1, 0)],
    ]
    assert speculate(run, reference, plan, span=8) <= TOLERANCE


# --------------------------------------------------------------------------------------------------
# Rounding points, against transformers in bf16


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("layer", LAYERS)
def test_bf16_rounding_points_are_those_of_transformers(
    layer: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_rounded_alike(oracle("bf16"), reference, layer, step, monkeypatch)


@pytest.mark.parametrize("layer", [0, 3])
def test_bf16_rounding_points_at_real_head_size(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = oracle("bf16", lens=(3, 126, 140), steps=1, config=REAL_HEADS, deltas=(0, 400, -100))
    assert_rounded_alike(run, reference, layer, 0, monkeypatch)


@pytest.mark.parametrize("layer", LAYERS)
def test_bf16_is_as_close_to_fp64_as_transformers_is(layer: int) -> None:
    run = oracle("bf16")
    kind = run.config.kinds[layer]
    for step in STEPS:
        tensors = run.tensors(step, layer)
        y64 = reference.exact(tensors, run.config, layer=kind)
        actual = evaluate(reference, tensors, run.config, kind)
        for name in reference.OUTPUTS:
            ours, theirs = (rms(y[name].double() - y64[name]) for y in (actual, run.expected(step, layer)))
            size = rms(y64[name])
            # bf16 keeps 8 bits: one rounding costs about 2^-9.8 of the value, a layer a few times that.
            assert 2**-11 * size < ours < 2**-6 * size, name
            assert ours < 1.1 * theirs, name


@pytest.mark.parametrize("layer", [0, 3])
def test_fp32_is_a_thousand_times_closer_to_fp64_than_bf16(layer: int) -> None:
    run = oracle("fp32")
    kind = run.config.kinds[layer]
    tensors = run.tensors(0, layer)
    y64 = reference.exact(tensors, run.config, layer=kind)
    actual = evaluate(reference, tensors, run.config, kind)
    for name in mutated(kind):
        error = (actual[name].double() - y64[name]).nan_to_num(0.0)
        assert 0 < rms(error) < 2**-18 * rms(y64[name].nan_to_num(0.0)), name


# --------------------------------------------------------------------------------------------------
# Dead rows, untouched memory, bad indices

MARKS: dict[str, dict[int, Dead]] = {
    "slot_ctx": {1: "slot", 3: "ctx"},
    "first": {0: "all", 2: "slot"},
    "trailing_rows": {0: "tail", 3: "tail"},
    "empty_ranges": {4: "cu_q", 5: "cu_q"},
    "mixed": {0: "tail", 2: "ctx", 5: "cu_q"},
    "every": dict.fromkeys(range(6), "all"),
}
COUNTS = [4, 1, 3, 2, 0, 5]


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Which elements a step wrote."""
    return ~(before.isnan() & after.isnan()) & (before != after)


@pytest.mark.parametrize("dead", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("layer", KINDS)
def test_dead_rows_give_zeros_and_touch_nothing(layer: Layer, dead: dict[int, Dead]) -> None:
    context = [128, 1, 17, 16, 33, 90]
    alive = make_inputs(TINY, 6, context, layer=layer, tokens=COUNTS, seed=4, lm_head="full")
    tensors = make_inputs(
        TINY, 6, context, layer=layer, tokens=COUNTS, seed=4, lm_head="full", padding=3, dead_rows=dead
    )
    # Of a sequence with a dead tail, the rows before it count as if there were no others.
    halves = {s: COUNTS[s] // 2 if mark == "tail" else 0 for s, mark in dead.items()}
    live = [halves.get(s, n) for s, n in enumerate(COUNTS)]
    first = torch.tensor([0, *COUNTS]).cumsum(0).tolist()
    rows = [first[s] + j for s, n in enumerate(live) for j in range(n)]
    alive["ctx"] -= torch.tensor([COUNTS[s] - live[s] if live[s] else 0 for s in range(6)], dtype=torch.int32)
    for s in halves:
        alive["slot_mapping"][first[s] + live[s] : first[s + 1]] = -1
    assert [row.row for row in reference.live_rows(tensors, TINY)] == rows

    expected = evaluate(reference, alive, TINY, layer)
    actual = evaluate(reference, tensors, TINY, layer)
    others = [row for row in range(len(tensors["hidden"])) if row not in rows]
    for name in reference.OUTPUTS:
        assert torch.all(actual[name][others] == 0), name
        # Another number of rows may change the order of sums inside a GEMM, hence not bit for bit.
        torch.testing.assert_close(actual[name][rows], expected[name][rows], rtol=2**-6, atol=0.05)
    if layer == "full":
        for name in eq.CACHES:
            shape = (-1, TINY.kv_heads, TINY.page, TINY.head_dim)
            wrote = changed(tensors[name].view(shape), actual[name].view(shape)).any(-1).any(1).flatten()
            assert wrote.nonzero().flatten().tolist() == sorted(tensors["slot_mapping"][rows].tolist()), name
        return
    wrote = changed(tensors["state"], actual["state"]).view(-1, TINY.v_heads * TINY.k_dim * TINY.v_dim).any(1)
    slots = [int(tensors["state_slots"][s, j]) for s, n in enumerate(live) for j in range(n)]
    assert wrote.nonzero().flatten().tolist() == sorted(slots)
    width = TINY.taps - 2 + tensors["state_slots"].shape[1]
    wrote = changed(tensors["conv_state"], actual["conv_state"]).any(1)
    columns = [
        int(tensors["conv_slots"][s]) * width + j
        for s, n in enumerate(live)
        if n
        for j in range(n + TINY.taps - 2)
    ]
    assert set(wrote.nonzero().flatten().tolist()) == set(columns)


def test_rows_behind_a_negative_slot_are_dead() -> None:
    tensors = make_inputs(TINY, 2, 40, layer="full", tokens=5)
    tensors["slot_mapping"][1] = -1  # the slots of rows 2 to 4 stay
    tensors["ctx"][0] -= 4
    assert [(r.row, r.seq, r.length) for r in reference.live_rows(tensors, TINY)] == [
        (0, 0, 36),
        *((5 + j, 1, 36 + j) for j in range(5)),
    ]


@pytest.mark.parametrize("layer", KINDS)
def test_exact_leaves_its_arguments_alone(layer: Layer) -> None:
    tensors = make_inputs(TINY, 3, layer=layer, tokens="ragged", lm_head="single")
    before = {name: t.clone() for name, t in tensors.items()}
    y64 = reference.exact(tensors, TINY, layer=layer)
    assert set(y64) == set(mutated(layer))
    assert all(t.dtype == torch.float64 for t in y64.values())
    assert not y64["next_hidden"].isnan().any()
    for name, t in tensors.items():
        torch.testing.assert_close(t, before[name], rtol=0, atol=0, equal_nan=True)


def test_outputs_and_states_too_narrow_for_the_result_are_refused() -> None:
    with pytest.raises(ValueError, match=r"next_hidden is torch.bfloat16 and cannot hold torch.float64; use"):
        reference.decode_layer(make_inputs(TINY, 2, layer="gdn"), TINY, layer="gdn", compute=torch.float64)
    tensors = make_inputs(TINY, 2, layer="gdn")
    tensors["state"] = tensors["state"].bfloat16()
    with pytest.raises(ValueError, match=r"state is torch.bfloat16 and cannot hold torch.float32; use"):
        reference.golden(tensors, TINY, layer="gdn")


@pytest.mark.parametrize(
    ("layer", "name", "value", "message"),
    [
        ("full", "ctx", 129, r"ctx\[1\] = 129 must lie between the sequence's 2 live rows and max_seq = 128"),
        ("full", "ctx", 1, r"ctx\[1\] = 1 must lie between the sequence's 2 live rows and max_seq = 128"),
        ("full", "cu_q", 5, r"cu_q = \[0, 5, 4\] must ascend within the step's 4 rows"),
        ("gdn", "kept", 0, r"kept\[1\] = 0 must lie in 1\.\.3"),
        ("gdn", "kept", 4, r"kept\[1\] = 4 must lie in 1\.\.3"),
        ("gdn", "conv_slots", 4, r"conv_slots\[1\] = 4 must lie in 0\.\.3"),
        ("gdn", "state_slots", 8, r"state_slots\[1\] = \[8, 8, 8\] names a slot outside 0\.\.7"),
    ],
)
def test_inconsistent_indices_are_refused(layer: Layer, name: str, value: int, message: str) -> None:
    tensors = make_inputs(TINY, 2, [48, 20], layer=layer, tokens=2, span=3)
    tensors[name][1] = value
    with pytest.raises(ValueError, match=message):
        reference.golden(tensors, TINY, layer=layer)


def test_more_rows_than_state_slots_are_refused() -> None:
    tensors = make_inputs(TINY, 2, layer="gdn", tokens=2)
    tensors["cu_q"] = torch.tensor([0, 3, 4], dtype=torch.int32)
    tensors["ctx"][0] = 10
    with pytest.raises(ValueError, match=r"sequence 0 has 3 live rows; state_slots holds 2 per sequence"):
        reference.golden(tensors, TINY, layer="gdn")


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layer is 'mamba'; use 'full' or 'gdn'"):
        reference.golden(make_inputs(TINY, 2, layer="gdn"), TINY, layer="mamba")


# --------------------------------------------------------------------------------------------------
# Parts of the equations that have a closed form


def test_a_token_that_is_written_at_full_strength_is_recalled() -> None:
    """With beta 1, the delta rule replaces what k recalls by v; it leaves what is orthogonal to k alone."""
    rng = torch.Generator().manual_seed(0)
    k = reference.unit_length(torch.randn(3, 32, generator=rng, dtype=torch.float64))
    other = torch.randn(3, 32, generator=rng, dtype=torch.float64)
    other -= (other * k).sum(-1, keepdim=True) / k.square().sum(-1, keepdim=True) * k
    state = torch.randn(3, 32, 64, generator=rng, dtype=torch.float64)
    v = torch.randn(3, 64, generator=rng, dtype=torch.float64)
    decay = torch.tensor([1.0, 0.5, 0.01], dtype=torch.float64)
    recalled, after = reference.delta_rule(state, k, k, v, torch.ones(3, dtype=torch.float64), decay)
    torch.testing.assert_close(recalled, v, rtol=0, atol=1e-5)  # |k| is 1 up to the epsilon
    before = torch.einsum("hkv,hk->hv", state * decay[:, None, None], other)
    torch.testing.assert_close(torch.einsum("hkv,hk->hv", after, other), before, rtol=0, atol=1e-12)


def test_rope_turns_only_the_leading_dims() -> None:
    x = torch.randn(5, 3, TINY.head_dim, generator=torch.Generator().manual_seed(1))
    angle = torch.rand(5, TINY.rotary_dim // 2, generator=torch.Generator().manual_seed(2)) * 6
    y = eq.rope(x, angle.cos(), angle.sin(), Precision())
    n = TINY.rotary_dim // 2
    assert torch.equal(y[..., 2 * n :], x[..., 2 * n :])
    turned = (
        torch.complex(x[..., :n], x[..., n : 2 * n]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    )
    torch.testing.assert_close(y[..., :n], turned.real)
    torch.testing.assert_close(y[..., n : 2 * n], turned.imag)


def test_precision_says_what_a_stored_value_is() -> None:
    third = torch.tensor([1 / 3], dtype=torch.float64)
    rounded = Precision(torch.float64, torch.bfloat16)
    assert rounded.rnd(third).item() == third.bfloat16().item() != third.item()
    assert Precision(torch.float64).rnd(third).item() == third.item()
    assert (rounded.stored, Precision(torch.float64).stored) == (torch.bfloat16, torch.float64)


def test_fp32_config_rounds_nothing() -> None:
    config = replace(TINY, dtype="fp32")
    for layer in KINDS:
        tensors = make_inputs(config, 3, layer=layer)
        golden = evaluate(reference, tensors, config, layer)
        plain = {name: t.clone() for name, t in tensors.items()}
        reference.decode_layer(plain, config, layer=layer)
        assert all(max_error(golden[name], plain[name]) == 0 for name in golden)
