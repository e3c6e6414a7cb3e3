"""Ranks' partial outputs add up to the whole layer's; what cannot be shared out is an error."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.common import equations as eq
from models.common.config import DecoderConfig
from models.common.relayout import copy_rows, grouped_qkvz_rows
from models.common.sharding import Cuts, Section, cut, shard
from models.common.weights import head_cuts
from models.qwen3_5_27b import config as hybrid
from models.qwen3_5_27b import inputs as hybrid_inputs
from models.qwen3_5_27b import reference
from models.qwen3_5_27b import weights as hybrid_weights
from models.qwen3_14b import config as dense
from models.qwen3_14b import inputs as dense_inputs
from models.qwen3_14b import weights as dense_weights
from pypto_models.errors import UserError

RANKS = (1, 2, 4, 8)
EXACT = eq.Precision(torch.float64)

# 8 and 4 KV heads, 8 key heads of another width than the values: every section can be told from the others.
DENSE = replace(dense.TINY, q_heads=40, kv_heads=8, head_dim=16, max_seq=32)
HYBRID = replace(
    hybrid.TINY, q_heads=24, kv_heads=4, head_dim=16, rotary_dim=8, k_heads=8, v_heads=24, k_dim=4, v_dim=8,
    max_seq=32,
)  # fmt: skip

WEIGHTS = ("w_qkv", "w_o", "q_norm", "k_norm", "input_norm", "post_norm", "w_gate_up", "w_down", "w_in")
WEIGHTS += ("conv_weight", "a_log", "dt_bias", "gdn_norm", "w_out")


def branches(tensors: dict[str, Tensor], config: DecoderConfig, kind: str) -> tuple[Tensor, Tensor]:
    """Outputs in fp64 of the mixer and of the MLP, both of the step's hidden rows; caches are not changed."""
    rows = eq.live_rows(tensors, config)
    x = tensors["hidden"].double()
    stored = ("k_cache", "v_cache", "state", "conv_state")
    own = {**tensors, **{name: tensors[name].double() for name in stored if name in tensors}}
    mixer = eq.attention if kind == "full" else reference.delta_net
    return mixer(x, rows, own, config, EXACT), eq.mlp(x, own, config, EXACT)


def split_states(tensors: dict[str, Tensor], whole: DecoderConfig, tp: int, rank: int) -> dict[str, Tensor]:
    """A rank's caches and states: the same cut, by heads, of what lies in them."""
    found = {}
    c = whole
    heads = Section("KV heads", c.kv_heads, 1, shared=True)
    for name in ("k_cache", "v_cache"):
        if name in tensors:
            paged = tensors[name].view(-1, c.kv_heads, c.page, c.head_dim)
            found[name] = cut(paged, (heads,), tp, rank, 1).reshape(-1, c.head_dim)
    if "state" in tensors:
        assert isinstance(c, hybrid.Config)
        states = tensors["state"].view(-1, c.v_heads, c.k_dim, c.v_dim)
        found["state"] = cut(states, (Section("v", c.v_heads, 1),), tp, rank, 1).reshape(-1, c.v_dim)
        channels = hybrid_weights.gdn_cuts(c)["conv_weight"]
        assert channels is not None
        found["conv_state"] = cut(tensors["conv_state"], channels.sections, tp, rank, 1)
    return found


def partial_sums(
    tensors: dict[str, Tensor], config: DecoderConfig, kind: str, cuts: Cuts, tp: int
) -> tuple[Tensor, Tensor]:
    """The sums over `tp` ranks of what each computes from its part."""
    package = hybrid_weights if isinstance(config, hybrid.Config) else dense_weights
    local = package.rank_config(config, tp)  # type: ignore[arg-type]
    weights = {name: tensors[name] for name in WEIGHTS if name in tensors}
    sums = None
    for rank in range(tp):
        own = {**tensors, **shard(weights, cuts, tp, rank), **split_states(tensors, config, tp, rank)}
        parts = branches(own, local, kind)
        sums = parts if sums is None else tuple(a + b for a, b in zip(sums, parts, strict=True))
    assert sums is not None
    return sums[0], sums[1]


def step(config: DecoderConfig, kind: str) -> tuple[dict[str, Tensor], Cuts]:
    """Inputs of a step with ragged contexts, and how the layer is cut."""
    if isinstance(config, hybrid.Config):
        tensors = hybrid_inputs.make_inputs(config, 3, layer=kind, seed=4)  # type: ignore[arg-type]
        return tensors, hybrid_weights.layer_cuts(config, kind)
    return dense_inputs.make_inputs(config, 3, seed=4), dense_weights.layer_cuts(config)


LAYERS = [(DENSE, "full"), (HYBRID, "full"), (HYBRID, "gdn")]
layers = pytest.mark.parametrize(("config", "kind"), LAYERS, ids=["dense", "gated", "gdn"])


@pytest.mark.parametrize("tp", RANKS)
@layers
def test_partial_outputs_add_up(config: DecoderConfig, kind: str, tp: int) -> None:
    tensors, cuts = step(config, kind)
    want, got = branches(tensors, config, kind), partial_sums(tensors, config, kind, cuts, tp)
    for whole, summed in zip(want, got, strict=True):
        assert whole.abs().max() > 0.5
        torch.testing.assert_close(summed, whole, atol=1e-12, rtol=0)


@layers
def test_one_cut_through_all_sections_is_wrong(config: DecoderConfig, kind: str) -> None:
    """A contiguous part of a stacked projection has the right shape and the wrong rows."""
    tensors, cuts = step(config, kind)
    name = "w_in" if kind == "gdn" else "w_qkv"
    naive = {**cuts, name: replace(cuts[name], sections=(Section("rows", tensors[name].shape[0], 1),))}
    want, _ = branches(tensors, config, kind)
    got, _ = partial_sums(tensors, config, kind, naive, 4)
    assert (got - want).abs().max() > 0.1


def test_kv_heads_are_copied_to_the_ranks_that_read_them() -> None:
    """8 ranks, 4 KV heads, 24 query heads: ranks 2 j and 2 j + 1 hold KV head j, and 3 of its 6 queries."""
    c = HYBRID
    heads = c.q_heads + c.q_heads + 2 * c.kv_heads  # gate | q | k | v
    labels = torch.arange(heads).repeat_interleave(c.head_dim)[:, None].expand(-1, 2)
    how = hybrid_weights.layer_cuts(c, "full")["w_qkv"]
    assert how is not None
    for rank in range(8):
        held = cut(labels, how.sections, 8, rank)[:: c.head_dim, 0].tolist()
        queries = [3 * rank, 3 * rank + 1, 3 * rank + 2]
        assert held == [*queries, *(24 + q for q in queries), 48 + rank // 2, 52 + rank // 2]
        assert {q // c.group for q in queries} == {rank // 2}


@pytest.mark.parametrize("tp", [2, 3])
def test_a_cut_of_our_order_is_our_order_of_a_cut(tp: int) -> None:
    """Qwen3-Next's grouped rows can be cut in one piece, by groups; ours section by section, alike."""
    nk, nv, dk, dv = 6, 12, 4, 8
    c = replace(HYBRID, k_heads=nk, v_heads=nv, k_dim=dk, v_dim=dv)
    stored = torch.arange(2 * nk * dk + 2 * nv * dv)[:, None].float()

    def ordered(rows: Tensor, k_heads: int, v_heads: int) -> Tensor:
        take = tuple(r for section in grouped_qkvz_rows(k_heads, v_heads, dk, dv) for r in section)
        return copy_rows(torch.empty_like(rows), rows, take)

    how = hybrid_weights.layer_cuts(c, "gdn")["w_in"]
    assert how is not None
    whole = ordered(stored, nk, nv)
    for rank, grouped in enumerate(stored.chunk(tp)):
        want = ordered(grouped, nk // tp, nv // tp)
        assert torch.equal(cut(whole, how.sections[:4], tp, rank), want)
        straight = whole.chunk(tp)[rank]
        assert not torch.equal(straight, want)


@layers
def test_a_part_does_not_hold_on_to_the_whole(config: DecoderConfig, kind: str) -> None:
    tensors, cuts = step(config, kind)
    weights = {name: tensors[name] for name, how in cuts.items() if how is not None}
    for part in shard(weights, cuts, 2, 1).values():
        assert part.is_contiguous()
        assert part.untyped_storage().nbytes() == part.nbytes


def test_vocabulary_parts_are_the_whole() -> None:
    c = DENSE
    head = {
        "table": torch.randn(c.vocab, 4),
        "w_lm_head": torch.randn(c.vocab_padded, 4),
        "final_norm": torch.ones(1, 4),
    }
    parts = [shard(head, head_cuts(c), 8, rank) for rank in range(8)]
    for name in ("table", "w_lm_head"):
        assert torch.equal(torch.cat([part[name] for part in parts]), head[name])
    assert all(torch.equal(part["final_norm"], head["final_norm"]) for part in parts)


@pytest.mark.parametrize("tp", RANKS)
def test_published_models_can_be_shared_out(tp: int) -> None:
    local = dense_weights.rank_config(dense.FULL, tp)
    assert (local.q_heads, local.kv_heads, local.intermediate) == (40 // tp, 8 // tp, 17408 // tp)
    mixed = hybrid_weights.rank_config(hybrid.FULL, tp)
    assert (mixed.q_heads, mixed.kv_heads, mixed.v_heads) == (24 // tp, max(1, 4 // tp), 48 // tp)
    assert mixed.in_width * tp == hybrid.FULL.in_width
    assert head_cuts(dense.FULL).keys() == {"table", "w_lm_head", "final_norm"}


# ---------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("config", "tp", "message"),
    [
        (dense.FULL, 3, "3 ranks cannot share 40 query heads evenly\n  fix: use one of 1, 2, 4, 8$"),
        (dense.FULL, 5, "5 ranks cannot share 8 KV heads evenly"),
        (dense.FULL, 0, "0 is not a number of ranks"),
        (hybrid.FULL, 16, "16 ranks cannot share 24 query heads evenly\n  fix: use one of 1, 2, 4, 8$"),
        (hybrid.TINY, 4, "4 ranks cannot share 2 key heads evenly\n  fix: use one of 1, 2$"),
        (replace(hybrid.FULL, intermediate=17412), 8, "8 ranks cannot share 17412 MLP columns evenly"),
    ],
)
def test_heads_that_cannot_be_shared(config: DecoderConfig, tp: int, message: str) -> None:
    package = hybrid_weights if isinstance(config, hybrid.Config) else dense_weights
    with pytest.raises(UserError, match=rf"argument 'tp': {message}"):
        package.rank_config(config, tp)  # type: ignore[arg-type]


def test_cut_refuses_what_it_cannot_share() -> None:
    q, kv = Section("query heads", 6, 4), Section("KV heads", 2, 4, shared=True)
    x = torch.zeros(32, 3)
    with pytest.raises(
        UserError, match=r"4 ranks cannot share 6 query heads evenly\n  fix: use one of 1, 2, 6$"
    ):
        cut(x, (q, kv), 4, 0)
    with pytest.raises(UserError, match=r"argument 'rank': 2 of 2 ranks\n  fix: use 0 to 1"):
        cut(x, (q, kv), 2, 2)
    with pytest.raises(ValueError, match=re.escape("sections of 32 in all do not fill axis 1 of [32, 3]")):
        cut(x, (q, kv), 2, 0, axis=1)
    with pytest.raises(KeyError, match="w_new"):
        shard({"w_new": x}, {}, 2, 0)
