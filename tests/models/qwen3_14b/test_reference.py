"""The torch reference against transformers, and the power of the inputs against seeded faults."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from models.common import equations
from models.qwen3_14b import inputs, reference
from models.qwen3_14b.config import FULL, TINY, Config
from models.qwen3_14b.inputs import make_inputs
from models.qwen3_14b.reference import MUTATED, Precision
from tests.models.checks import assert_rounded_alike, chain, errors, evaluate, max_error, rms, speculate
from tests.models.mistakes import norm_last
from tests.models.qwen3_14b.oracle import oracle

TINY_FP32 = replace(TINY, dtype="fp32")
LAYERS, STEPS = range(TINY.layers), range(3)

# Heads, pages and contexts of Qwen3-14B; only the residual stream, the MLP and the vocabulary are smaller.
REAL_HEADS = replace(FULL, hidden=1024, intermediate=1024, vocab=1024)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are small: handing them to a second thread costs more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_golden(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The mutated tensors after `golden`; `tensors` is left unchanged."""
    return evaluate(reference, tensors, config, "full")


# --------------------------------------------------------------------------------------------------
# Equations, against transformers


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("layer", LAYERS)
def test_fp32_layer_matches_transformers(layer: int, step: int) -> None:
    run = oracle("fp32")
    actual = run_golden(run.tensors(step, layer), run.config)
    for name, expected in run.expected(step, layer).items():
        assert rms(expected[~expected.isnan()]) > 0.5, name
        assert max_error(actual[name], expected) <= 1e-5, name


def test_fp32_chain_of_layers_and_steps_matches_transformers() -> None:
    assert chain(oracle("fp32", seed=1, lens=(1, 15, 16, 90), steps=4), reference) <= 1e-5


def test_fp32_real_head_size_matches_transformers() -> None:
    config = replace(REAL_HEADS, layers=2, max_seq=512)
    assert chain(oracle("fp32", lens=(3, 127, 140), steps=2, config=config), reference) <= 1e-5


@pytest.mark.parametrize("counts", [[3, 3, 3, 3], [3, 0, 1, 2], [1, 2, 0, 0]], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_several_rows_match_transformers_one_at_a_time(layer: int, counts: list[int]) -> None:
    """S rows in one call give what transformers gives in S steps: each row sees the cache up to itself.

    Their positions need not be their indices in the cache.
    """
    run = oracle("fp32", deltas=(40, -1, 25, -40))
    actual = run_golden(run.tensors(0, layer, counts), run.config)
    for name, error in errors(actual, run.expected(0, layer, counts)).items():
        assert error <= 1e-5, name


@pytest.mark.parametrize("layer", LAYERS)
def test_several_rows_match_transformers_at_once(layer: int) -> None:
    run = oracle("fp32", deltas=(40, -1, 25, -40))
    counts = [run.steps] * len(run.lens)
    actual = run_golden(run.tensors(0, layer, counts) | {"hidden": run.multi[layer]}, run.config)
    assert max_error(actual["next_hidden"], run.multi[layer + 1]) <= 1e-5
    if layer == run.config.layers - 1:
        assert max_error(actual["logits"], torch.cat(run.multi_logits)) <= 1e-5


def test_rejected_tokens_leave_no_trace() -> None:
    """All layers chained, from 1 to 8 rows and none, of which some, all or no rows stay valid."""
    plan = [
        [(1, 7), (2, 0), (3, 2), (0, 0)],
        [(2, 1), (1, 3), (1, 0), (5, 3)],
        [(1, 0), (3, 3), (2, 0), (1, 1)],
    ]
    run = oracle("fp32", seed=2, steps=6)
    assert speculate(run, reference, plan, span=8) <= 1e-5


# --------------------------------------------------------------------------------------------------
# Rounding points, against transformers in bf16


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("layer", LAYERS)
def test_bf16_rounding_points_are_those_of_transformers(
    layer: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_rounded_alike(oracle("bf16"), reference, layer, step, monkeypatch)


@pytest.mark.parametrize("layer", LAYERS)
def test_bf16_is_as_close_to_fp64_as_transformers_is(layer: int) -> None:
    run = oracle("bf16")
    for step in STEPS:
        tensors = run.tensors(step, layer)
        y64 = reference.exact(tensors, run.config)
        actual = run_golden(tensors, run.config)
        for name in reference.OUTPUTS:
            ours, theirs = (rms(y[name].double() - y64[name]) for y in (actual, run.expected(step, layer)))
            size = rms(y64[name])
            # bf16 keeps 8 bits: one rounding costs about 2^-9.8 of the value, a layer a few times that.
            assert 2**-11 * size < ours < 2**-6 * size, name
            assert ours < 1.1 * theirs, name


@pytest.mark.parametrize("own", [1, 4, 9])
def test_softmax_in_two_pieces_is_softmax(own: int) -> None:
    generator = torch.Generator().manual_seed(own)
    scores, values = (torch.randn(s, generator=generator).double() for s in ((2, 3, 9), (2, 9, 8)))
    pieces = equations.weighted(4 * scores, values, own, Precision(torch.float64, round_weights=True))
    torch.testing.assert_close(pieces, torch.softmax(4 * scores, -1) @ values, rtol=0, atol=1e-14)


def test_weights_are_rounded_relative_to_the_maximum_so_far() -> None:
    """Of one token of the step and one before it: the first weight is 1, and the second alone is rounded."""
    own, before = 0.3, 0.1
    scores, values = torch.tensor([[before, own]]), torch.tensor([[1.0], [0.0]])
    p = Precision(torch.float32, torch.bfloat16, round_weights=True)
    weight = torch.tensor(math.exp(before - own))
    expected = weight.bfloat16().float() / (1 + weight)
    torch.testing.assert_close(equations.weighted(scores, values, 1, p)[0], expected[None], rtol=0, atol=1e-7)
    assert abs(float(expected - weight / (1 + weight))) > 1e-4


def test_fp32_is_a_thousand_times_closer_to_fp64_than_bf16() -> None:
    run = oracle("fp32")
    tensors = run.tensors(0, 0)
    y64 = reference.exact(tensors, run.config)
    actual = run_golden(tensors, run.config)
    for name in reference.OUTPUTS:
        assert 0 < rms(actual[name].double() - y64[name]) < 2**-18 * rms(y64[name]), name


# --------------------------------------------------------------------------------------------------
# Dead rows, untouched memory, bad indices


@pytest.mark.parametrize(
    "dead",
    [
        {1: "slot", 3: "ctx"},
        {0: "all", 2: "slot"},
        {4: "cu_q", 5: "cu_q"},
        {2: "ctx", 5: "cu_q"},
        dict.fromkeys(range(6), "all"),
    ],
    ids=["slot_ctx", "first", "tail", "mixed", "every"],
)
def test_dead_rows_give_zeros_and_touch_nothing(dead: dict[int, inputs.Dead]) -> None:
    context = [128, 1, 17, 16, 33, 90]
    live = [row for row in range(6) if row not in dead]
    alive = make_inputs(TINY, 6, context, seed=4, lm_head="full")
    tensors = make_inputs(TINY, 6, context, seed=4, lm_head="full", dead_rows=dead)
    expected, actual = run_golden(alive, TINY), run_golden(tensors, TINY)
    for name in reference.OUTPUTS:
        assert torch.all(actual[name][list(dead)] == 0), name
        # Fewer rows may change the order of sums inside a GEMM, hence not bit for bit.
        torch.testing.assert_close(actual[name][live], expected[name][live], rtol=2**-6, atol=0.05)
    written = reference.live_rows(tensors, TINY)
    assert [r.row for r in written] == live
    for name in ("k_cache", "v_cache"):
        shape = (-1, TINY.kv_heads, TINY.page, TINY.head_dim)
        before, after = tensors[name].view(shape), actual[name].view(shape)
        changed = (~(before.isnan() & after.isnan()) & (before != after)).any(-1).any(1).flatten()
        assert changed.nonzero().flatten().tolist() == sorted(tensors["slot_mapping"][live].tolist()), name


def test_exact_leaves_its_arguments_alone() -> None:
    tensors = make_inputs(TINY, 3, lm_head="single")
    before = {name: t.clone() for name, t in tensors.items()}
    y64 = reference.exact(tensors, TINY)
    assert set(y64) == set(MUTATED)
    assert all(t.dtype == torch.float64 for t in y64.values())
    assert not y64["next_hidden"].isnan().any()
    for name, t in tensors.items():
        torch.testing.assert_close(t, before[name], rtol=0, atol=0, equal_nan=True)


def test_outputs_too_narrow_for_the_result_are_refused() -> None:
    with pytest.raises(ValueError, match=r"next_hidden is torch.bfloat16 and cannot hold torch.float64; use"):
        reference.decode_layer(make_inputs(TINY, 2), TINY, compute=torch.float64)


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("ctx", 1, 129, r"ctx\[1\] = 129 must lie between the sequence's 1 live rows and max_seq = 128"),
        ("ctx", 1, 40, r"block_table\[1\] = \[\d+, \d+, -1\] names a page outside 0\.\.7"),
        ("slot_mapping", 0, 1000, r"slot_mapping\[0\] = 1000 lies beyond the cache's 128 slots"),
    ],
)
def test_inconsistent_indices_are_refused(name: str, index: int, value: int, message: str) -> None:
    tensors = make_inputs(TINY, 2, [48, 20])
    tensors[name][index] = value
    with pytest.raises(ValueError, match=message):
        reference.golden(tensors, TINY)


# --------------------------------------------------------------------------------------------------
# Inputs


def test_full_size_geometry() -> None:
    assert (FULL.q_width, FULL.kv_width, FULL.qkv_width, FULL.group) == (5120, 1024, 7168, 5)
    assert (FULL.pages_per_seq, FULL.vocab_padded) == (32, 152064)
    assert TINY.group == FULL.group
    layer = FULL.hidden * (FULL.qkv_width + FULL.q_width + 3 * FULL.intermediate + 2) + 2 * FULL.head_dim
    assert layer * FULL.layers + 2 * FULL.vocab * FULL.hidden + FULL.hidden == 14_768_307_200


def test_config_refuses_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"q_heads = 9 must be a multiple of kv_heads = 2"):
        replace(TINY, q_heads=9)
    with pytest.raises(ValueError, match=r"max_seq = 100 must be a multiple of page = 16"):
        replace(TINY, max_seq=100)
    with pytest.raises(ValueError, match=r"dtype is 'fp16'; use one of bf16, fp32"):
        replace(TINY, dtype="fp16")
    with pytest.raises(ValueError, match=r"head_dim = 63 must be even"):
        replace(TINY, head_dim=63)


def test_normal_values_are_normal_and_independent() -> None:
    n = 3_000_001  # not a whole number of chunks
    x = inputs.normal((n,), torch.float32, std=2.0, seed=5, name="x").double()
    assert abs(x.mean()) < 5 * 2.0 / n**0.5
    assert math.isclose(x.std(), 2.0, rel_tol=5e-3)
    assert math.isclose((x / 2).pow(4).mean(), 3.0, rel_tol=2e-2)
    for lag in (1, 64, 5120, 1 << 20):
        assert abs((x[:-lag] * x[lag:]).mean()) < 5 * 4.0 / (n - lag) ** 0.5, lag
    assert torch.equal(x.float(), inputs.normal((n,), torch.float32, std=2.0, seed=5, name="x"))
    for seed, name in ((6, "x"), (5, "y")):
        y = inputs.normal((n,), torch.float32, std=2.0, seed=seed, name=name).double()
        assert abs((x * y).mean()) < 5 * 4.0 / n**0.5


def test_inputs_are_seeded_and_rows_differ() -> None:
    a, b, c = (make_inputs(TINY, 8, seed=s, lm_head="full") for s in (1, 1, 2))
    for name, t in a.items():
        torch.testing.assert_close(t, b[name], rtol=0, atol=0, equal_nan=True)
    drawn = ("hidden", "ctx", "block_table", *(n for n in a if n.startswith("w_") or n.endswith("_norm")))
    assert len(drawn) == 13
    for name in drawn:
        assert not torch.equal(a[name], c[name]), name
    for name in ("hidden", "w_qkv", "w_o", "w_gate_up", "w_down", "w_lm_head"):
        assert len(torch.unique(a[name], dim=0)) == a[name].shape[0], name
    for name in ("input_norm", "post_norm", "final_norm", "q_norm", "k_norm"):
        assert a[name].dtype == torch.float32
        assert torch.equal(a[name], a[name].bfloat16().float()), name
        assert a[name].std() > 0.1, name


def test_pages_are_shuffled_and_hold_values_only_below_the_context() -> None:
    tensors = make_inputs(TINY, 16, seed=2)
    ctx = tensors["ctx"].tolist()
    assert {TINY.max_seq, 1, TINY.page, TINY.page + 1} <= set(ctx)
    table = tensors["block_table"]
    used = table[table >= 0]
    assert len(torch.unique(used)) == len(used) == sum(-(-n // TINY.page) for n in ctx)
    assert (used.diff() == 1).double().mean() < 0.2
    holds = torch.zeros(len(used) + inputs.SPARE_PAGES, TINY.page, dtype=torch.bool)
    for row, n in zip(table.tolist(), ctx, strict=True):
        for token in range(n - 1):
            holds[row[token // TINY.page], token % TINY.page] = True
        assert all(page == -1 for page in row[-(-n // TINY.page) :])
    last = [int(table[s, (n - 1) // TINY.page]) * TINY.page + (n - 1) % TINY.page for s, n in enumerate(ctx)]
    assert tensors["slot_mapping"].tolist() == last
    assert tensors["positions"].tolist() == [n - 1 for n in ctx]
    for name in ("k_cache", "v_cache"):
        pool = tensors[name].view(-1, TINY.kv_heads, TINY.page, TINY.head_dim)
        assert torch.equal(~pool.isnan(), holds[:, None, :, None].expand_as(pool)), name


def test_lm_head_modes_agree_on_what_they_share() -> None:
    modes: tuple[inputs.LmHead, ...] = ("skip", "single", "full")
    skip, single, full = (make_inputs(REAL_HEADS, 2, seed=3, lm_head=mode) for mode in modes)
    assert "logits" not in run_golden(skip, REAL_HEADS)
    one, all_ = run_golden(single, REAL_HEADS), run_golden(full, REAL_HEADS)
    assert (one["logits"].shape, all_["logits"].shape) == ((2, 512), (2, 1024))
    torch.testing.assert_close(one["logits"], all_["logits"][:, :512], rtol=2**-7, atol=2**-7)
    assert rms(all_["logits"], dim=0).min() > 0
    assert torch.equal(run_golden(skip, REAL_HEADS)["normed"], all_["normed"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_inputs(TINY, 17), r"batch is 17; it must lie in 1\.\.16"),
        (lambda: make_inputs(TINY, 2, 129), r"lengths \[129, 129\] must lie in 1\.\.128"),
        (lambda: make_inputs(TINY, 2, [3]), r"context lists 1 lengths for a batch of 2"),
        (lambda: make_inputs(TINY, 2, "short"), r"context is 'short'; give 'ragged'"),
        (lambda: make_inputs(TINY, 2, lm_head="half"), r"lm_head is 'half'; use"),
        (lambda: make_inputs(TINY, 2, dead_rows=[2]), r"dead_rows names sequence 2 of a batch of 2"),
        (lambda: make_inputs(TINY, 2, dead_rows={0: "cu_q"}), r"dead_rows\[0\] = 'cu_q' needs every later"),
    ],
)
def test_bad_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --------------------------------------------------------------------------------------------------
# Power: what the inputs make visible


def branch_sizes(config: Config, context: int) -> list[float]:
    """Standard deviations of residual, attention branch and MLP branch."""
    tensors = make_inputs(config, 4, context, seed=7)
    p = Precision(torch.float32, config.torch_dtype)
    x = tensors["hidden"].float()
    attention = reference.attention(x, reference.live_rows(tensors, config), tensors, config, p)
    mlp = reference.mlp(p.rnd(x + attention), tensors, config, p)
    return [float(t.std()) for t in (x, attention, mlp)]


@pytest.mark.parametrize(
    ("config", "context"),
    [(TINY, 1), (TINY, 128), (REAL_HEADS, 500), (REAL_HEADS, 4096)],
    ids=["tiny_1", "tiny_128", "real_heads_500", "real_heads_4096"],
)
def test_residual_attention_and_mlp_have_similar_size(config: Config, context: int) -> None:
    sizes = branch_sizes(config, context)
    assert max(sizes) < 3 * min(sizes), sizes


def without_columns(name: str, keep: Callable[[Config], Tensor]) -> Callable[..., dict[str, Tensor]]:
    """A fault that ignores input columns of a projection."""

    def fault(tensors: dict[str, Tensor], config: Config, _: pytest.MonkeyPatch) -> dict[str, Tensor]:
        return tensors | {name: tensors[name] * keep(config).to(tensors[name].dtype)}

    return fault


def reading(cut: Callable[[Tensor], Tensor]) -> Callable[..., dict[str, Tensor]]:
    """A fault that attends to a part of the context, `[kv heads, length, D]`."""

    def fault(tensors: dict[str, Tensor], _: Config, patch: pytest.MonkeyPatch) -> dict[str, Tensor]:
        read = equations.read_kv
        patch.setattr(equations, "read_kv", lambda *args: cut(read(*args)))
        return tensors

    return fault


def replacing(name: str, function: Callable[..., Tensor]) -> Callable[..., dict[str, Tensor]]:
    """A fault in one of the equations."""

    def fault(tensors: dict[str, Tensor], _: Config, patch: pytest.MonkeyPatch) -> dict[str, Tensor]:
        patch.setattr(equations, name, function)
        return tensors

    return fault


def lower_half(config: Config) -> Tensor:
    return torch.arange(config.intermediate) < config.intermediate // 2


def even_kv_heads(config: Config) -> Tensor:
    return torch.arange(config.q_width) // (config.group * config.head_dim) % 2 == 0


FAULTS = {
    "attention zero": without_columns("w_o", lambda c: torch.zeros(c.q_width)),
    "odd KV heads zero": without_columns("w_o", even_kv_heads),
    "older half of the context ignored": reading(lambda kv: kv[:, kv.shape[1] // 2 :]),
    "newer half of the context ignored": reading(lambda kv: kv[:, : kv.shape[1] // 2]),
    "current token not attended": reading(lambda kv: kv[:, :-1]),
    "q and k norm after RoPE": replacing("norm_rope", norm_last),
    "MLP zero": without_columns("w_down", lambda c: torch.zeros(c.intermediate)),
    "half of the intermediate dropped": without_columns("w_down", lower_half),
    "SiLU removed": replacing("silu", lambda x: x),
}


@dataclass(frozen=True)
class Case:
    """Inputs, and what `golden` makes of them without a fault."""

    config: Config
    tensors: dict[str, Tensor]
    good: Tensor  # next_hidden
    noise: Tensor  # its RMS distance from fp64, per row


@pytest.fixture(
    scope="module",
    params=[(TINY, (128,) * 4), (TINY, (64, 67, 96, 127)), (REAL_HEADS, (4096,) * 4)],
    ids=["tiny", "tiny_ragged", "real_heads"],
)
def case(request: pytest.FixtureRequest) -> Case:
    config, lengths = request.param
    tensors = make_inputs(config, len(lengths), lengths, seed=8)
    good = run_golden(tensors, config)["next_hidden"].double()
    return Case(config, tensors, good, rms(good - reference.exact(tensors, config)["next_hidden"], dim=1))


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_stands_out_of_the_bf16_noise(fault: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every row, a fault moves next_hidden by more than 20 times the error that bf16 makes anyway."""
    faulty = FAULTS[fault](case.tensors, case.config, monkeypatch)
    bad = run_golden(faulty, case.config)["next_hidden"].double()
    assert case.noise.min() > 0
    ratio = rms(bad - case.good, dim=1) / case.noise
    assert ratio.min() > 20, ratio
