"""The torch reference against transformers, and the power of the inputs against seeded faults."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from models.qwen3_14b import inputs, reference
from models.qwen3_14b.config import FULL, TINY, Config
from models.qwen3_14b.inputs import make_inputs
from models.qwen3_14b.reference import MUTATED, Precision
from tests.models.qwen3_14b.oracle import OracleRun, oracle

TINY_FP32 = replace(TINY, dtype="fp32")
LAYERS, STEPS = range(TINY.layers), range(3)

# Heads, pages and contexts of Qwen3-14B; only the residual stream, the MLP and the vocabulary are smaller.
REAL_HEADS = replace(FULL, hidden=1024, intermediate=1024, vocab=1024)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with copies of those that a step mutates."""
    return {name: t.clone() if name in MUTATED else t for name, t in tensors.items()}


def run_golden(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The mutated tensors after `golden`; `tensors` is left unchanged."""
    after = copied(tensors)
    reference.golden(after, config)
    return {name: after[name] for name in MUTATED if name in after}


def rms(x: Tensor, dim: int | None = None) -> Tensor:
    return x.double().square().mean(dim).sqrt()


def max_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference; NaN (slots without a token) must be in the same places."""
    assert actual.shape == expected.shape
    assert torch.equal(actual.isnan(), expected.isnan())
    return float((actual.double() - expected.double()).nan_to_num(0.0).abs().max())


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


def chain(run: OracleRun) -> float:
    """Largest error of logits and final caches when every layer and step runs on our own earlier results."""
    caches = [{n: t.clone() for n, t in c.items()} for c in run.caches[0]]
    worst = 0.0
    for step in range(run.steps):
        x = run.hidden[step][0]
        for layer in range(run.config.layers):
            tensors = {**run.tensors(step, layer), **caches[layer], "hidden": x}
            reference.golden(tensors, run.config)
            x = tensors["next_hidden"]
        worst = max(worst, max_error(tensors["logits"], run.logits[step][-1]))
    for layer, cache in enumerate(caches):
        for name, pool in cache.items():
            worst = max(worst, max_error(pool, run.caches[run.steps][layer][name]))
    return worst


def test_fp32_chain_of_layers_and_steps_matches_transformers() -> None:
    assert chain(oracle("fp32", seed=1, lens=(1, 15, 16, 90), steps=4)) <= 1e-5


def test_fp32_real_head_size_matches_transformers() -> None:
    config = replace(REAL_HEADS, layers=2, max_seq=512)
    assert chain(oracle("fp32", lens=(3, 127, 300), steps=2, config=config)) <= 1e-5


@pytest.mark.parametrize("layer", LAYERS)
def test_several_rows_per_sequence_match_one_at_a_time(layer: int) -> None:
    """S rows in one call give what transformers gives in S steps: each row sees the cache up to itself."""
    run, rows = oracle("fp32"), len(STEPS)
    batch = len(run.lens)
    start = run.tensors(0, layer)
    end = run.indices[-1]

    def by_sequence(per_step: list[Tensor]) -> Tensor:
        return torch.stack(per_step, dim=1).flatten(0, 1)

    tensors = start | {
        "hidden": by_sequence([run.hidden[s][layer] for s in STEPS]),
        "positions": by_sequence([run.indices[s]["positions"] for s in STEPS]),
        "slot_mapping": by_sequence([run.indices[s]["slot_mapping"] for s in STEPS]),
        "cu_q": torch.arange(batch + 1, dtype=torch.int32) * rows,
        "ctx": end["ctx"],
    }
    for name in reference.OUTPUTS:
        tensors[name] = torch.full((batch * rows, start[name].shape[1]), torch.nan)
    actual = run_golden(tensors, run.config)
    expected = {
        "next_hidden": by_sequence([run.hidden[s][layer + 1] for s in STEPS]),
        "normed": by_sequence([run.normed[s][layer] for s in STEPS]),
        "logits": by_sequence([run.logits[s][layer] for s in STEPS]),
        **run.caches[rows][layer],
    }
    for name, value in expected.items():
        assert max_error(actual[name], value) <= 1e-5, name


# --------------------------------------------------------------------------------------------------
# Rounding points, against transformers in bf16


linear, attend = reference.linear, reference.attend


def is_bf16(x: Tensor) -> bool:
    return torch.equal(x, x.bfloat16().to(x.dtype))


def linear_by_row(x: Tensor, weight: Tensor, p: Precision) -> Tensor:
    """One bf16 GEMM per row, as transformers ran one sequence at a time: batching reorders the sums."""
    assert is_bf16(x)
    out = p.up(torch.cat([torch.nn.functional.linear(row, weight) for row in x.bfloat16().split(1)]))
    ours = linear(x, weight, p)
    assert is_bf16(ours)
    assert (ours != out).double().mean() < 0.05
    return out


def eager_attend(
    q: Tensor, rows: list[reference.LiveRow], tensors: dict[str, Tensor], config: Config, p: Precision
) -> Tensor:
    """Attention as eager code has it: bf16 operands and results, so scores and probabilities are rounded."""
    assert is_bf16(q)
    assert is_bf16(attend(q, rows, tensors, config, p))
    out = torch.empty_like(q)
    for i, live in enumerate(rows):
        pages = tensors["block_table"][live.seq]
        keys, values = (
            reference.read_kv(tensors[name], pages, live.length, config).repeat_interleave(
                config.group, dim=0
            )
            for name in ("k_cache", "v_cache")
        )
        scores = q[i, :, None].bfloat16() @ keys.transpose(1, 2) * config.scale
        weights = torch.softmax(scores.float(), dim=-1).bfloat16()
        out[i] = p.up(weights @ values)[:, 0]
    return out


@pytest.mark.parametrize("layer", LAYERS)
def test_bf16_rounding_points_are_those_of_transformers(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With transformers' order of sums and its eager attention, results agree bit for bit.

    One flipped bit in an intermediate value moves a few per cent of what is computed from it, so a small part
    may differ where a CPU's bf16 kernels depend on the shape; a rounding too many or too few moves far more.
    """
    monkeypatch.setattr(reference, "linear", linear_by_row)
    monkeypatch.setattr(reference, "attend", eager_attend)
    run = oracle("bf16")
    for step in STEPS:
        actual = run_golden(run.tensors(step, layer), run.config)
        for name, expected in run.expected(step, layer).items():
            new = ~expected.isnan()
            if name in run.caches[step][layer]:
                new &= run.caches[step][layer][name].isnan()
            moved = (actual[name][new] != expected[new]).double().mean()
            assert moved <= 0.02, (name, step, float(moved))
            assert max_error(actual[name], expected) <= 2**-5, (name, step)


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
        ("ctx", 1, 129, r"ctx\[1\] = 129 must lie between the sequence's 1 rows and max_seq = 128"),
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
        (lambda: make_inputs(TINY, 2, dead_rows=[2]), r"dead_rows names row 2 of a batch of 2"),
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
        read = reference.read_kv
        patch.setattr(reference, "read_kv", lambda *args: cut(read(*args)))
        return tensors

    return fault


def replacing(name: str, function: Callable[..., Tensor]) -> Callable[..., dict[str, Tensor]]:
    """A fault in one of the reference's functions."""

    def fault(tensors: dict[str, Tensor], _: Config, patch: pytest.MonkeyPatch) -> dict[str, Tensor]:
        patch.setattr(reference, name, function)
        return tensors

    return fault


def rope_then_norm(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, p: Precision) -> Tensor:
    return reference.rms_norm(reference.rope(x, cos, sin, p), weight, eps, p)


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
    "q and k norm after RoPE": replacing("norm_rope", rope_then_norm),
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
