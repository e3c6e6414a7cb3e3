"""Sizes of Qwen3.5-27B, its inputs, and their power against seeded faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from models.common import equations as eq
from models.common.equations import Precision
from models.qwen3_5_27b import reference
from models.qwen3_5_27b.config import FULL, REAL_HEADS, TINY, Config
from models.qwen3_5_27b.inputs import SPARE_SLOTS, layer_weights, make_inputs
from models.qwen3_5_27b.reference import Layer
from tests.models.checks import evaluate, rms
from tests.models.mistakes import Mistake, given, norm_last, replacing
from tests.models.qwen3_5_27b.oracle import hf_config

KINDS: tuple[Layer, ...] = ("full", "gdn")


# --------------------------------------------------------------------------------------------------
# Sizes


def test_full_size_geometry() -> None:
    assert (FULL.q_width, FULL.kv_width, FULL.qkv_width, FULL.group) == (6144, 1024, 14336, 6)
    assert (FULL.conv_dim, FULL.v_width, FULL.in_width, FULL.v_group) == (10240, 6144, 16480, 3)
    assert (FULL.pages_per_seq, FULL.vocab_padded, FULL.scale) == (32, 248320, 1 / 16)
    assert [i for i, kind in enumerate(FULL.kinds) if kind == "full"] == list(range(3, 64, 4))
    assert set(FULL.kinds) == set(TINY.kinds) == set(REAL_HEADS.kinds) == set(KINDS)
    for small in (TINY, REAL_HEADS):
        assert (small.group, small.v_group) == (FULL.group, FULL.v_group)
    assert (REAL_HEADS.head_dim, REAL_HEADS.k_dim, REAL_HEADS.v_dim) == (256, 128, 128)
    assert (REAL_HEADS.rotary_dim, TINY.rotary_dim / TINY.head_dim) == (FULL.rotary_dim, 0.25)


def test_transformers_model_of_these_sizes_has_the_published_parameters() -> None:
    with torch.device("meta"):
        model = Qwen3_5ForCausalLM(hf_config(FULL))
    assert sum(p.numel() for p in model.parameters()) == 26_895_998_464
    kinds = {"linear_attention": "gdn", "full_attention": "full"}
    assert tuple(kinds[kind] for kind in model.config.layer_types) == FULL.kinds


def test_every_layer_has_the_parameters_of_transformers() -> None:
    small = replace(TINY, layers=4)
    with torch.device("meta"):
        model = Qwen3_5ForCausalLM(hf_config(small))
    for i, kind in enumerate(small.kinds):
        ours = sum(w.numel() for w in layer_weights(small, 0, kind).values())
        assert ours == sum(p.numel() for p in model.model.layers[i].parameters()), kind


def test_defaults_of_transformers_describe_another_model() -> None:
    """Sizes that a configuration leaves out must not be taken from there."""
    other = Qwen3_5TextConfig()
    assert (other.hidden_size, other.num_hidden_layers, other.linear_num_value_heads) == (4096, 32, 32)
    assert (FULL.hidden, FULL.layers, FULL.v_heads) == (5120, 64, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotary_dim": 15}, r"rotary_dim = 15 must be even and lie in 2\.\.head_dim = 64"),
        ({"rotary_dim": 66}, r"rotary_dim = 66 must be even and lie in 2\.\.head_dim = 64"),
        ({"rotary_dim": 0}, r"rotary_dim = 0 must be even and lie in 2\.\.head_dim = 64"),
        ({"v_heads": 5}, r"v_heads = 5 must be a multiple of k_heads = 2"),
        ({"taps": 1}, r"taps = 1 must be at least 2"),
        ({"full_interval": 0}, r"full_interval = 0 must be at least 1"),
        ({"q_heads": 9}, r"q_heads = 9 must be a multiple of kv_heads = 2"),
    ],
)
def test_config_refuses_sizes_that_do_not_fit(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


# --------------------------------------------------------------------------------------------------
# What is there, and what is NaN


def test_states_hold_values_only_where_they_are_read() -> None:
    tensors = make_inputs(TINY, 6, layer="gdn", tokens="ragged", seed=3)
    span = tensors["state_slots"].shape[1]
    kept, slots = tensors["kept"].tolist(), tensors["state_slots"]
    assert span == 8 and 1 <= min(kept) < max(kept) <= span
    assert len(slots.unique()) == slots.numel()
    assert (slots.flatten().diff() == 1).double().mean() < 0.2
    state = tensors["state"].view(-1, TINY.v_heads * TINY.k_dim * TINY.v_dim)
    assert len(state) == 6 * span + SPARE_SLOTS
    held = {int(slots[s, n - 1]) for s, n in enumerate(kept)}
    assert {i for i, slot in enumerate(state) if not slot.isnan().any()} == held
    assert all(slot.isnan().all() for i, slot in enumerate(state) if i not in held)

    columns = tensors["conv_state"].view(-1, TINY.taps - 2 + span, TINY.conv_dim)
    assert len(columns) == 6 + SPARE_SLOTS
    filled = torch.zeros(columns.shape[:2], dtype=torch.bool)
    for slot, n in zip(tensors["conv_slots"].tolist(), kept, strict=True):
        filled[slot, n - 1 : n + TINY.taps - 2] = True
    assert torch.equal(~columns.isnan(), filled[..., None].expand_as(columns))


def test_positions_differ_from_the_index_in_the_cache() -> None:
    tensors = make_inputs(TINY, 8, 40, layer="full", tokens=3)
    rows = reference.live_rows(tensors, TINY)
    offsets = tensors["positions"] - torch.tensor([row.length - 1 for row in rows])
    assert torch.equal(offsets.view(8, 3), offsets.view(8, 3)[:, :1].expand(8, 3))
    assert offsets.min() < 0 < offsets.max()
    for seed in range(20):
        positions = make_inputs(TINY, 8, layer="full", tokens="ragged", seed=seed)["positions"]
        assert positions.min() >= 0 and positions.max() < TINY.max_seq


@pytest.mark.parametrize("layer", KINDS)
def test_inputs_are_seeded(layer: Layer) -> None:
    a, b, c = (make_inputs(TINY, 8, layer=layer, tokens="ragged", seed=s, lm_head="full") for s in (1, 1, 2))
    for name, t in a.items():
        torch.testing.assert_close(t, b[name], rtol=0, atol=0, equal_nan=True)
        if name not in (*reference.OUTPUTS, "rope_cos", "rope_sin"):
            assert t.shape != c[name].shape or not torch.equal(t, c[name]), name


@pytest.mark.parametrize("layer", KINDS)
def test_weights_have_the_types_of_a_checkpoint(layer: Layer) -> None:
    weights = layer_weights(TINY, 0, layer)
    for name, w in weights.items():
        matrix = name.startswith("w_") or name == "conv_weight"
        assert w.dtype == (torch.bfloat16 if matrix else torch.float32), name
        kept_in_fp32 = name in ("a_log", "gdn_norm")
        assert torch.equal(w, w.bfloat16().to(w.dtype)) != kept_in_fp32, name


# --------------------------------------------------------------------------------------------------
# Power: what the inputs make visible


def mixer(layer: Layer) -> Callable[..., Tensor]:
    return eq.attention if layer == "full" else reference.delta_net


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize(
    ("config", "context"),
    [(TINY, 5), (TINY, 128), (REAL_HEADS, 1000)],
    ids=["tiny_5", "tiny_128", "real_heads_1000"],
)
@pytest.mark.parametrize("layer", KINDS)
def test_residual_mixer_and_mlp_have_similar_size(
    layer: Layer, config: Config, context: int, tokens: int
) -> None:
    tensors = make_inputs(config, 4, context, layer=layer, tokens=tokens, seed=7)
    p = Precision(torch.float32, config.torch_dtype)
    x = tensors["hidden"].float()
    mixed = mixer(layer)(x, reference.live_rows(tensors, config), tensors, config, p)
    sizes = [float(t.std()) for t in (x, mixed, eq.mlp(p.rnd(x + mixed), tensors, config, p))]
    assert max(sizes) < 3 * min(sizes), sizes


@pytest.mark.parametrize("config", [TINY, REAL_HEADS], ids=["tiny", "real_heads"])
def test_state_and_token_have_a_similar_say(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a head reads is as much from the state before as from the token; no gate is at its end."""
    old, new, strength, kept = [], [], [], []

    def watched(state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Any:
        out, after = rule(state, q, k, v, beta, decay)
        before = (state * decay[:, None, None] * q[..., None]).sum(-2)
        old.append(before), new.append(out - before), strength.append(beta), kept.append(decay)
        return out, after

    rule = reference.delta_rule
    monkeypatch.setattr(reference, "delta_rule", watched)
    for seed in range(4):
        evaluate(reference, make_inputs(config, 8, layer="gdn", tokens=3, seed=seed), config, "gdn")
    assert 1 / 3 < rms(torch.stack(old)) / rms(torch.stack(new)) < 3
    assert 0.01 < torch.stack(strength).quantile(0.01) < torch.stack(strength).quantile(0.99) < 0.99
    assert torch.stack(kept).quantile(0.1) < 0.9
    assert 0.99 < torch.stack(kept).quantile(0.9) <= 1


def columns(name: str, keep: Callable[[Config], Tensor]) -> Mistake:
    """Input columns of a projection are ignored."""
    return given(lambda t, c: {name: t[name] * keep(c).to(t[name].dtype)})


def reading(cut: Callable[[Tensor], Tensor]) -> Mistake:
    """Only a part of the context `[kv heads, length, D]` is attended to."""
    return replacing(eq, "read_kv", lambda f: lambda *args: cut(f(*args)))


def even(width: Callable[[Config], int], heads: Callable[[Config], int]) -> Callable[[Config], Tensor]:
    """The columns of every second head."""
    return lambda c: torch.arange(width(c)) // (width(c) // heads(c)) % 2 == 0


FAULTS: dict[str, tuple[Layer, Mistake]] = {
    "attention zero": ("full", columns("w_o", lambda c: torch.zeros(c.q_width))),
    "odd KV heads zero": ("full", columns("w_o", even(lambda c: c.q_width, lambda c: c.kv_heads))),
    "older half of the context ignored": ("full", reading(lambda kv: kv[:, kv.shape[1] // 2 :])),
    "newer half of the context ignored": ("full", reading(lambda kv: kv[:, : kv.shape[1] // 2])),
    "current token not attended": ("full", reading(lambda kv: kv[:, :-1])),
    "q and k norm after RoPE": ("full", replacing(eq, "norm_rope", lambda _: norm_last)),
    "output gate forgotten": ("full", replacing(eq, "output_gate", lambda _: lambda x, g, p: x)),
    "delta net zero": ("gdn", columns("w_out", lambda c: torch.zeros(c.v_width))),
    "odd value heads zero": ("gdn", columns("w_out", even(lambda c: c.v_width, lambda c: c.v_heads))),
    "state ignored": ("gdn", given(lambda t, c: {"state": torch.zeros_like(t["state"])})),
    "token not written": (
        "gdn",
        replacing(reference, "write_strength", lambda f: lambda b, p: torch.zeros_like(b)),
    ),
    "nothing forgotten": ("gdn", replacing(reference, "log_decay", lambda f: lambda *a: 0 * f(*a))),
    "history ignored": ("gdn", given(lambda t, c: {"conv_state": torch.zeros_like(t["conv_state"])})),
    "oldest tap ignored": (
        "gdn",
        given(lambda t, c: {"conv_weight": t["conv_weight"] * (torch.arange(c.taps) > 0)[:, None]}),
    ),
    **{
        f"{layer}: {name}": (layer, mistake)
        for layer in KINDS
        for name, mistake in {
            "MLP zero": columns("w_down", lambda c: torch.zeros(c.intermediate)),
            "half of the intermediate dropped": columns(
                "w_down", lambda c: torch.arange(c.intermediate) < c.intermediate // 2
            ),
            "SiLU of the MLP removed": replacing(
                eq, "gated_up", lambda _: lambda gate, up, p: p.rnd(gate * up)
            ),
        }.items()
    },
}


@dataclass(frozen=True)
class Case:
    """Inputs, and what `golden` makes of them without a fault."""

    config: Config
    tensors: dict[str, Tensor]
    good: Tensor  # next_hidden
    noise: Tensor  # its RMS distance from fp64, per row


@pytest.fixture(scope="module", params=[TINY, REAL_HEADS], ids=["tiny", "real_heads"])
def cases(request: pytest.FixtureRequest) -> dict[Layer, Case]:
    config, made = request.param, {}
    for layer in KINDS:
        lengths = [config.max_seq, config.max_seq // 2, config.max_seq // 2 + 3, config.max_seq - 1]
        tensors = make_inputs(config, 4, lengths, layer=layer, seed=8)
        good = evaluate(reference, tensors, config, layer)["next_hidden"].double()
        exact = reference.exact(tensors, config, layer=layer)["next_hidden"]
        made[layer] = Case(config, tensors, good, rms(good - exact, dim=1))
    return made


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_stands_out_of_the_bf16_noise(
    fault: str, cases: dict[Layer, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every row, a fault moves next_hidden by more than 20 times the error that bf16 makes anyway."""
    layer, mistake = FAULTS[fault]
    case = cases[layer]
    faulty = mistake(case.tensors, case.config, monkeypatch)
    bad = evaluate(reference, faulty, case.config, layer)["next_hidden"].double()
    assert case.noise.min() > 0
    ratio = rms(bad - case.good, dim=1) / case.noise
    assert ratio.min() > 20, ratio
