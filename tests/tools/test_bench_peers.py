"""The peers are right: PyTorch's layers and projections at tiny sizes, against the models' equations in fp64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from models.qwen3_5_27b import harness as harness_27b
from models.qwen3_14b import harness as harness_14b
from tests.tools.stand_ins import Slow
from tools.gpu_bench import attention, stock
from tools.gpu_bench.catalogue import BenchError
from tools.gpu_bench.check import PEER_LIMITS, Error, compare, layer_references, product_references
from tools.gpu_bench.data import Case, Layers, Tensors, make_layers, make_products

KINDS = {"14b": harness_14b.LAYER, "27b": harness_27b.FULL_LAYER, "gdn": harness_27b.GDN_LAYER}
WITHIN = (2.0, 1.25)  # of torch's own errors: what is asked of our programs, too


def layers_of(name: str, batch: int = 3, length: int = 100) -> Layers:
    return make_layers(Case(KINDS[name], "tiny", str(length), (length,) * batch), 2, Slow())


def steps(name: str) -> dict[str, stock.Step]:
    config = KINDS[name].configs["tiny"]
    if name == "gdn":
        return {rule: stock.delta_step(config, rule) for rule in stock.RULES}
    ways = {"dispatched": attention.dispatched, "flash": attention.flash, "split": attention.split_flash(4)}
    return {way: stock.attention_step(config, attend) for way, attend in ways.items()}


def inputs(name: str, layers: Layers) -> list[Tensors]:
    return stock.delta_inputs(layers) if name == "gdn" else stock.attention_inputs(layers)


@pytest.mark.parametrize("name", KINDS)
def test_layers(name: str) -> None:
    layers = layers_of(name)
    references = layer_references(layers)
    for way, step in steps(name).items():
        given = inputs(name, layers)
        got = step(layers.tensors[0]["hidden"], given[0])
        (verdict,) = compare(references, {"next_hidden": got}, WITHIN)
        assert verdict.passed, (way, verdict)
        assert verdict.torch.rms > 1e-4


def test_the_caches_and_states_that_layers_leave() -> None:
    for name in ("14b", "27b"):
        layers = layers_of(name)
        c, references = layers.config, layer_references(layers)
        given = stock.attention_inputs(layers)[0]
        steps(name)["dispatched"](layers.tensors[0]["hidden"], given)
        for cache in "kv":
            written = given[cache][:, :, 99].reshape(-1, c.head_dim)
            (found,) = compare({cache: references[f"{cache}_cache"]}, {cache: scattered(layers, written)})
            assert found.passed, (name, cache)
    layers = layers_of("gdn")
    references = layer_references(layers)
    for step in steps("gdn").values():
        given = stock.delta_inputs(layers)[0]
        step(layers.tensors[0]["hidden"], given)
        left = {"state": given["state"], "conv_state": given["history"][:, -1]}
        for state, got in left.items():
            wanted = references[state]
            own = Error.of(wanted.rounded, wanted.exact)
            assert Error.of(got.reshape(wanted.exact.shape), wanted.exact).rms < 1.5 * own.rms and own.rms > 0


def scattered(layers: Layers, written: Tensor) -> Tensor:
    """Rows by sequence and KV head, where this step puts them in the paged cache."""
    rows = layers.case.kind.written["k_cache"](layers.host, layers.config)
    cache = layers.tensors[0]["k_cache"].clone()
    cache[rows] = written
    return cache


def no_gate(layers: Layers, t: Tensors) -> None:
    gate = layers.config.gate_width
    t["w_qkv"] = torch.cat([torch.zeros_like(t["w_qkv"][:gate]), t["w_qkv"][gate:]])


def other_heads(layers: Layers, t: Tensors) -> None:
    t["k"] = t["k"].roll(1, 1)


def turned(layers: Layers, t: Tensors) -> None:
    t["sin"] = -t["sin"]


def old_state(layers: Layers, t: Tensors) -> None:
    t["state"] = t["state"].roll(1, 0)


def no_history(layers: Layers, t: Tensors) -> None:
    t["history"] = torch.zeros_like(t["history"])


MISTAKES = [
    ("27b", no_gate), ("14b", other_heads), ("14b", turned), ("27b", turned), ("gdn", old_state),
    ("gdn", no_history),
]  # fmt: skip


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_mistakes_are_noticed(name: str, mistake: Callable[[Layers, Tensors], None]) -> None:
    layers = layers_of(name)
    references = layer_references(layers)
    given = inputs(name, layers)[0]
    mistake(layers, given)
    step = next(iter(steps(name).values()))
    (verdict,) = compare(references, {"next_hidden": step(layers.tensors[0]["hidden"], given)}, PEER_LIMITS)
    assert not verdict.passed


def test_layers_differ_and_follow_each_other() -> None:
    layers = layers_of("14b")
    first, second = layers.tensors
    assert second["hidden"] is first["next_hidden"]
    for name in ("w_qkv", "w_o", "w_gate_up", "w_down", "k_cache"):
        assert first[name].data_ptr() != second[name].data_ptr()
        assert not torch.equal(first[name], second[name]), name
    assert not layers.tensors[0]["k_cache"].isnan().any()
    before = first["k_cache"].clone()
    first["k_cache"].zero_()
    layers.reset()
    assert torch.equal(first["k_cache"], before)


def test_peers_take_contexts_of_one_length() -> None:
    layers = make_layers(Case(KINDS["14b"], "tiny", "ragged", (5, 70)), 1, Slow())
    with pytest.raises(BenchError, match=r"peers take contexts of one length; these have \[5, 70\]"):
        stock.attention_inputs(layers)


@pytest.mark.parametrize("name", ["qkv", "o", "gate_up", "down"])
def test_projections(name: str) -> None:
    config = harness_14b.LAYER.configs["tiny"]
    products = make_products(name, config, 5, 2, torch.bfloat16, Slow())
    references = product_references(products)
    step = stock.product_step(name, config.eps)
    got = step(stock.product_inputs(products.tensors[0], config))
    (verdict,) = compare(references, {"out": got}, WITHIN)
    assert verdict.passed and verdict.torch.rms > 1e-4
    (other,) = compare(references, {"out": step(stock.product_inputs(products.tensors[1], config))}, WITHIN)
    assert not other.passed  # another layer's weights
    assert products.tensors[0]["weight"].data_ptr() != products.tensors[1]["weight"].data_ptr()


# --------------------------------------------------------------------------------------------- attention
def test_ways_to_attend() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(s, dtype=torch.float32) for s in ((2, 6, 16), (2, 3, 64, 16), (2, 3, 64, 16)))
    want = attention.exact(q, k, v, torch.float64)
    by_hand = torch.empty_like(want)
    for b in range(2):
        for h in range(6):  # query head h reads KV head h // 2
            scores = (k[b, h // 2].double() @ q[b, h].double()) / 4.0
            by_hand[b, 16 * h : 16 * h + 16] = torch.softmax(scores, 0) @ v[b, h // 2].double()
    assert torch.allclose(want, by_hand, rtol=0, atol=1e-12)
    for attend in (attention.dispatched, attention.flash, attention.split_flash(4)):
        assert torch.allclose(attend(q, k, v).double(), want, rtol=0, atol=1e-6)


def test_pages_become_contiguous() -> None:
    layers = layers_of("14b")
    c, first = layers.config, layers.tensors[0]
    got = attention.contiguous(first["k_cache"], first["block_table"][:, :7].long(), c)
    paged = first["k_cache"].view(-1, c.kv_heads, c.page, c.head_dim)
    for seq, token in ((0, 0), (1, 37), (2, 99)):
        page = int(first["block_table"][seq, token // c.page])
        assert torch.equal(got[seq, :, token], paged[page, :, token % c.page])


def test_how_contexts_are_cut_by_hand() -> None:
    assert attention.pieces(1, 8, 4096) == [16, 32]  # 128 and 256 CTAs
    assert attention.pieces(1, 4, 4096) == [32, 64]
    assert attention.pieces(16, 4, 4096) == [2, 4]
    assert attention.pieces(16, 8, 4096) == [2]
    assert attention.pieces(1, 8, 100) == []
    names = [one.name for one in attention.candidates(harness_14b.LAYER.configs["full"], 1, 4096)]
    assert names == ["dispatched", "flash", "cudnn", "efficient", "flex", "flash in 16 parts",
                     "flash in 32 parts"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_layers_compile_as_one_graph(name: str) -> None:
    """With the tracing and the functionalisation of torch.compile, though not its code generation."""
    layers = layers_of(name, batch=2)
    references = layer_references(layers)
    for step in steps(name).values():
        torch._dynamo.reset()
        run: Any = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=False)
        given = inputs(name, layers)
        with torch.no_grad():
            got = run(layers.tensors[0]["hidden"], given[0])
            run(got, given[1])
        (verdict,) = compare(references, {"next_hidden": got}, WITHIN)
        assert verdict.passed
