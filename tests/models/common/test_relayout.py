"""Row orders: Qwen3-Next's grouped projections against transformers' own module, and gated attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.common import equations as eq
from models.common.relayout import (
    Matrix,
    Ranges,
    Rows,
    Taps,
    Vector,
    copy_rows,
    gated_rows,
    grouped_ba_rows,
    grouped_qkvz_rows,
)
from models.qwen3_5_27b import reference
from models.qwen3_5_27b.config import TINY, Config
from models.qwen3_5_27b.weights import config_of, gdn_recipes, open_weights
from tests.models import checkpoints

TOKENS = 9


def with_ratio(ratio: int, k_heads: int = 2) -> Config:
    """`TINY` with `ratio` value heads per key head, and d_k != d_v."""
    return replace(TINY, dtype="fp32", layers=1, k_heads=k_heads, v_heads=ratio * k_heads)


def flat(ranges: Ranges) -> list[int]:
    return [row for part in ranges for row in part]


def branch(x: Tensor, weights: dict[str, Tensor], c: Config) -> Tensor:
    """The gated-delta-net branch of x `[n, H]`, one sequence from its start, in fp32."""
    n = len(x)
    tensors = {
        **weights,
        "state_slots": torch.arange(n)[None],
        "conv_slots": torch.tensor([0]),
        "kept": torch.tensor([1]),
        "state": torch.zeros(n * c.v_heads * c.k_dim, c.v_dim),
        "conv_state": torch.zeros(c.taps - 2 + n, c.conv_dim),
    }
    rows = [eq.LiveRow(i, 0, i + 1) for i in range(n)]
    return reference.delta_net(x, rows, tensors, c, eq.Precision(torch.float32))


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_grouped_projections_against_transformers(tmp_path: Path, ratio: int) -> None:
    """Our equations on rows in our order = Qwen3NextGatedDeltaNet on rows in its own."""
    c = with_ratio(ratio)
    model = checkpoints.qwen3_next(c, seed=ratio)
    directory = checkpoints.saved(model, tmp_path)
    checkpoint = open_weights(directory, config_of(directory, page=c.page, max_seq=c.max_seq))
    recipes = gdn_recipes(c, "model.layers.0.", grouped=True)
    weights = {name: recipe.load(checkpoint, torch.float32) for name, recipe in recipes.items()}
    layer = model.model.layers[0]
    weights["input_norm"] = layer.input_layernorm.weight.detach()[None]
    x = torch.randn(TOKENS, c.hidden, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        want = layer.linear_attn(layer.input_layernorm(x)[None])[0]
    torch.testing.assert_close(branch(x, weights, c), want, atol=1e-5, rtol=1e-5)

    # b and a read as pairs b_0 a_0 b_1 a_1 ..., which is right for R = 1 only.
    stored = checkpoint["model.layers.0.linear_attn.in_proj_ba.weight"]
    paired = weights["w_in"].clone()
    paired[-2 * c.v_heads :] = torch.cat([stored[0::2], stored[1::2]])
    error = (branch(x, {**weights, "w_in": paired}, c) - want).abs().max()
    assert (error < 1e-4) if ratio == 1 else (error > 0.1)


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_grouped_rows_are_a_permutation_by_the_published_formula(ratio: int) -> None:
    nk, dk, dv = 3, 4, 5
    nv = ratio * nk
    q, k, v, z = map(flat, grouped_qkvz_rows(nk, nv, dk, dv))
    b, a = map(flat, grouped_ba_rows(nk, nv))
    size = 2 * dk + 2 * ratio * dv
    # (group, offset in it) of element i of head h, written down head by head
    assert q == [g * size + i for g in range(nk) for i in range(dk)]
    assert k == [g * size + dk + i for g in range(nk) for i in range(dk)]
    heads = [(h // ratio, h % ratio) for h in range(nv)]
    assert v == [g * size + 2 * dk + r * dv + i for g, r in heads for i in range(dv)]
    assert z == [g * size + 2 * dk + (ratio + r) * dv + i for g, r in heads for i in range(dv)]
    assert b == [g * 2 * ratio + r for g, r in heads]
    assert a == [g * 2 * ratio + ratio + r for g, r in heads]
    assert sorted(q + k + v + z) == list(range(nk * size))
    assert sorted(b + a) == list(range(2 * nv))


def test_gated_rows() -> None:
    gates, queries = map(flat, gated_rows(2, 3))
    assert queries == [0, 1, 2, 6, 7, 8]
    assert gates == [3, 4, 5, 9, 10, 11]


def test_copied_rows_are_counted_and_the_rest_is_left() -> None:
    weight = torch.arange(12.0).view(6, 2)
    out = torch.full((5, 2), -1.0)
    got = copy_rows(out, weight, (range(4, 6), range(0, 1)))
    assert torch.equal(got, weight[[4, 5, 0]])
    assert torch.equal(out[:3], got)
    assert bool((out[3:] == -1).all())


def test_recipes_own_what_they_give(tmp_path: Path) -> None:
    """Stacked, padded, transposed and widened as asked, in memory of their own."""
    c = with_ratio(3)
    model = checkpoints.qwen3_5(replace(c, dtype="bf16"))
    directory = checkpoints.saved(model, tmp_path)
    checkpoint = open_weights(directory, replace(c, dtype="bf16"))
    at, net = "model.layers.0.linear_attn.", model.model.layers[0].linear_attn
    b, a = (f"{at}in_proj_{name}.weight" for name in "ba")
    shape = (c.v_heads, c.hidden)
    recipe = Matrix((Rows(b, shape), Rows(a, shape, (range(2, 4), range(0, 1)))), 16)
    got = recipe.load(checkpoint, torch.bfloat16)
    want = torch.cat([net.in_proj_b.weight, net.in_proj_a.weight[[2, 3, 0]]])
    assert torch.equal(got[:9], want)
    assert got.shape == (16, c.hidden)
    assert not got[9:].any()
    conv = Taps(f"{at}conv1d.weight", c.conv_dim, c.taps).load(checkpoint, torch.bfloat16)
    assert torch.equal(conv, net.conv1d.weight[:, 0].T)
    assert conv.is_contiguous()
    norm = Vector(f"{at}norm.weight", c.v_dim).load(checkpoint, torch.bfloat16)
    assert torch.equal(norm, net.norm.weight.float()[None])
    for file in directory.glob("*.safetensors"):
        file.write_bytes(b"")  # a map of it could not be read any more
    assert torch.equal(got[:9], want)
    assert torch.equal(conv, net.conv1d.weight[:, 0].T)
