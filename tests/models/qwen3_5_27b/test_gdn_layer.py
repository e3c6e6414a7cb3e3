"""The whole gated-delta-net layer, against its equations token by token, and its constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

import pypto_models.language as pl
from models.common import tiling
from models.qwen3_5_27b.config import FULL, REAL_HEADS, TINY, Config
from models.qwen3_5_27b.constants import FULL_TILES, TILING, cli_arguments, constants
from models.qwen3_5_27b.full_layer import full_decode_layer, full_decode_layer_with_head
from models.qwen3_5_27b.gdn_blocks import conv_block
from models.qwen3_5_27b.gdn_layer import gdn_decode_layer, gdn_decode_layer_with_head
from pypto_models.compile import Program, compile
from pypto_models.cost import estimate
from pypto_models.cost.inputs import known_names
from pypto_models.errors import UserError
from pypto_models.language.parameters import constant_names
from pypto_models.passes.grid import suspects
from tests.models.common.gdn_step import OUTPUTS, STATES, Layout, Step, evaluate, make, to_bf16

TINY_FP32 = replace(TINY, dtype="fp32")
TARGETS = ("a2a3", "a5", "gb10", "h200")
KERNELS = {
    "full": (full_decode_layer, full_decode_layer_with_head),
    "gdn": (gdn_decode_layer, gdn_decode_layer_with_head),
}

LAYOUTS = {
    "one_token": Layout((1,) * 16, (1,) * 16, span=1),
    "one_row": Layout((1,), (1,), span=1),
    "ragged": Layout((0, 1, 2, 3, 4, 5, 6, 7, 8), (1, 8, 7, 6, 5, 4, 3, 2, 1)),
    "dead": Layout((3, 0, 8, 1, 2, 4), (1, 4, 8, 2, 3, 5), no_slot=(1, 7, 9, 12), no_context=(4,), extra=3),
    "nothing_live": Layout((2, 0, 1), (1, 1, 2), span=2, no_slot=(0, 1), no_context=(2,), extra=1),
    "128_rows": Layout((8,) * 16, tuple(1 + s % 8 for s in range(16))),
}
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@cache
def step(config: Config, span: int, rows: int = 16, platform: str = "a2a3sim", **changed: int) -> Program:
    """The step with its LM head, compiled once for all tests; `changed` replaces constants."""
    target = platform.removesuffix("sim")
    values = constants(config, target, layer="gdn", rows=rows, span=span, head_rows=config.vocab_padded)
    return compile(gdn_decode_layer_with_head, platform=platform, constants=values | changed, check=True)


def run(program: Program, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a step leaves in the tensors that it may change; `tensors` stay as they are."""
    own = {name: t.clone() if name in (*OUTPUTS, *STATES) else t for name, t in tensors.items()}
    program(*(own[p.name] for p in program.params))
    return {name: own[name] for name in (*OUTPUTS, *STATES)}


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.dtype.itemsize])


def written(
    layout: Layout, config: Config, actual: Mapping[str, Tensor], before: Mapping[str, Tensor], like: Step
) -> dict[str, Tensor]:
    """The outputs of live rows and the parts of the states that the step writes, by name.

    That dead rows are zero, and that nothing else of the states changed by a bit, is asserted here.
    """
    found = {name: actual[name][layout.all_live] for name in OUTPUTS}
    assert not any(actual[name][layout.dead].any() for name in OUTPUTS)
    shape = (-1, config.v_heads, config.k_dim, config.v_dim)
    old, new = before["state"].view(shape), actual["state"].view(shape).clone()
    for slot in like.state:
        found[f"state {slot}"] = new[slot].clone()
        new[slot] = old[slot]
    assert torch.equal(bits(new), bits(old))
    shape = (-1, layout.span + 2, config.conv_dim)
    old, new = before["conv_state"].view(shape), actual["conv_state"].view(shape).clone()
    for slot, columns in like.conv.items():
        found[f"conv {slot}"] = new[slot, : len(columns)].clone()
        new[slot, : len(columns)] = old[slot, : len(columns)]
    assert torch.equal(bits(new), bits(old))
    return found


def parts(layout: Layout, expected: Step) -> dict[str, Tensor]:
    """The same of an evaluation."""
    found = {name: t[layout.all_live] for name, t in expected.outputs.items()}
    found |= {f"state {slot}": t for slot, t in expected.state.items()}
    return found | {f"conv {slot}": t for slot, t in expected.conv.items()}


# --------------------------------------------------------------------------------------------------
# Values


@EVERY_LAYOUT
@pytest.mark.parametrize("seed", range(2))
def test_fp32_layer(layout: Layout, seed: int) -> None:
    tensors = make(layout, TINY_FP32, seed=seed)
    expected = evaluate(layout, tensors, TINY_FP32)
    actual = run(step(TINY_FP32, layout.span, layout.rows), tensors)
    found = written(layout, TINY_FP32, actual, tensors, expected)
    for name, exact in parts(layout, expected).items():
        torch.testing.assert_close(found[name].double(), exact, rtol=0, atol=1e-5, msg=name)


def assert_as_close_as_torch(layout: Layout, config: Config, seed: int, **changed: int) -> None:
    """bf16: as far from fp64 as torch's bf16 evaluation, times 2 at most and 1.25 in the RMS."""
    tensors = make(layout, config, torch.bfloat16, seed)
    exact = evaluate(layout, tensors, config)
    like = parts(layout, evaluate(layout, tensors, config, to_bf16, torch.float32))
    actual = run(step(config, layout.span, layout.rows, **changed), tensors)
    found = written(layout, config, actual, tensors, exact)
    totals: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for name, y64 in parts(layout, exact).items():
        mine, torchs = totals.setdefault(name.split()[0], ([], []))
        mine.append((found[name].double() - y64).flatten())
        torchs.append((like[name].double() - y64).flatten())
    for name, (mine, torchs) in totals.items():
        error, allowed = torch.cat(mine), torch.cat(torchs)
        assert allowed.abs().max() > 0, name
        assert error.abs().max() <= 2 * allowed.abs().max(), name
        assert error.square().mean().sqrt() <= 1.25 * allowed.square().mean().sqrt(), name


@pytest.mark.parametrize("name", ["one_token", "ragged", "dead", "128_rows"])
@pytest.mark.parametrize("seed", range(2))
def test_bf16_layer_is_as_close_to_fp64_as_torch(name: str, seed: int) -> None:
    assert_as_close_as_torch(LAYOUTS[name], TINY, seed)


@pytest.mark.slow
def test_real_heads_and_published_tiles_in_bf16() -> None:
    """All 16 and 48 heads of 128 x 128 on a narrow residual stream, 17 rows in tiles of 32."""
    config = replace(REAL_HEADS, k_heads=16, v_heads=48, vocab=512)
    tiles = tiling.load_source(TILING, "a2a3", 32)
    tiles = {name: v for name, v in tiles.items() if name not in FULL_TILES}
    layout = Layout((4, 0, 1, 8, 3), (2, 1, 1, 8, 4), no_slot=(9,), extra=1)
    assert_as_close_as_torch(layout, config, 0, **tiles)


# --------------------------------------------------------------------------------------------------
# Safety


@pytest.mark.parametrize("seed", range(3))
def test_any_legal_order_gives_the_same_bits(seed: int) -> None:
    layout = LAYOUTS["dead"]
    values = constants(TINY, "a2a3", layer="gdn", rows=layout.rows, span=8, head_rows=TINY.vocab_padded)
    tensors = make(layout, TINY, torch.bfloat16)
    in_order = run(step(TINY, 8, layout.rows), tensors)
    options = {"schedule": "random", "seed": seed}
    shuffled = run(compile(gdn_decode_layer_with_head, constants=values, backend_options=options), tensors)
    assert all(torch.equal(bits(in_order[name]), bits(shuffled[name])) for name in in_order)


@pytest.mark.parametrize("target", TARGETS)
def test_every_platform_gives_the_same_bits_and_has_no_hazard(target: str) -> None:
    layout = LAYOUTS["dead"]
    tensors = make(layout, TINY, torch.bfloat16)
    program = step(TINY, 8, layout.rows, f"{target}sim")
    graph = program.compiled.graph
    assert graph.hazards == ()
    watched = [{t.name for t in names} for names in suspects(graph).values() if names]
    assert watched == [{"unit", "values", "conv_state"}, {"recalled", "state"}]
    expected = run(step(TINY, 8, layout.rows), tensors)
    actual = run(program, tensors)
    assert all(torch.equal(bits(expected[name]), bits(actual[name])) for name in expected)


# --------------------------------------------------------------------------------------------------
# Constants and tilings


@pytest.mark.parametrize("layer", ["gdn", "full"])
@pytest.mark.parametrize("rows", tiling.HEIGHTS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_published_size_fits_every_target_in_every_height(
    target: str, rows: int, layer: str, dtype: str
) -> None:
    config = replace(FULL, dtype=dtype)
    for span in (1, 8):
        values = constants(config, target, layer=layer, rows=rows, span=span, head_rows=FULL.vocab_padded)
        assert values["ROWS"] == rows
        program = compile(KERNELS[layer][1], platform=f"{target}sim", constants=values)
        plan = program.compiled.plan
        assert plan.checked == (target in ("a2a3", "a5"))
        assert all(space.fits for region in plan.regions for space in region.spaces.values())
        assert program.compiled.graph.hazards == ()


@pytest.mark.parametrize("layer", ["gdn", "full"])
@pytest.mark.parametrize("config", [TINY, FULL], ids=["tiny", "published"])
def test_each_kind_reads_all_its_constants(config: Config, layer: str) -> None:
    """A name that no kernel reads is an error, so that a misspelt one cannot pass."""
    for kernel, head_rows in zip(KERNELS[layer], (None, 512), strict=True):
        for target in TARGETS:
            names = constants(config, target, layer=layer, head_rows=head_rows).keys()
            assert names <= constant_names(kernel)
            assert names <= constants(config, target, head_rows=head_rows).keys()
    with pytest.raises(UserError, match=r"K_HEADS|Q_HEADS"):
        compile(KERNELS[layer][0], constants=constants(config, "a2a3"))


def test_constants_refuse_what_they_cannot_mean() -> None:
    with pytest.raises(ValueError, match=r"layer is 'linear'; use 'full', 'gdn' or None"):
        constants(TINY, "a2a3", layer="linear")
    with pytest.raises(ValueError, match=r"rows = 129"):
        constants(TINY, "a2a3", rows=129)


@pytest.mark.parametrize("heads", [48, 24, 12, 6], ids=lambda n: f"tp{48 // n}")
def test_tiles_divide_the_heads_of_every_shard(heads: int) -> None:
    """The published tiles, for the heads that one of 1, 2, 4 or 8 ranks holds."""
    shard = replace(FULL, k_heads=heads // 3, v_heads=heads)
    for target in TARGETS:
        values = constants(shard, target, layer="gdn")
        assert shard.conv_dim % values["CONV_TILE"] == shard.v_dim % values["V_TILE"] == 0
        assert heads % values["NORM_HEADS"] == 0
        assert values["CONV_TILE"] >= 256 and values["V_TILE"] >= 32
        compile(gdn_decode_layer, platform=f"{target}sim", constants=values)


@pytest.mark.parametrize("target", TARGETS)
def test_fp32_tiles_take_the_same_bytes(target: str) -> None:
    bf16 = constants(FULL, target, layer="gdn", head_rows=512)
    fp32 = constants(replace(FULL, dtype="fp32"), target, layer="gdn", head_rows=512)
    assert bf16["DTYPE"] == pl.BF16 and fp32["DTYPE"] == pl.FP32
    for name in ("QKV_K", "OUT_K", "MLP_K", "DOWN_K", "HEAD_K"):
        assert bf16[name] == 2 * fp32[name]
    assert bf16["V_TILE"] == fp32["V_TILE"]  # the state is fp32 either way


@pytest.mark.parametrize(("batch", "span"), [(1, 1), (16, 1), (4, 8), (16, 8)])
def test_weights_are_read_once_however_many_rows_there_are(batch: int, span: int) -> None:
    """All rows are one tile inside the K loop, by the cost model's count of the bytes of every load."""
    rows = batch * span
    values = constants(FULL, "a2a3", layer="gdn", rows=rows, span=span)
    compiled = compile(gdn_decode_layer, constants=values).compiled
    given = cli_arguments("a2a3", {"BATCH": batch}) | {
        "TOKENS": rows,
        "cu_q": [s * span for s in range(batch + 1)],
        "slot_mapping": list(range(rows)),
        "state_slots": [[s * span + j for j in range(span)] for s in range(batch)],
        "STATE_ROWS": rows * FULL.v_heads * FULL.k_dim,
        "CONV_ROWS": batch * (span + 2),
    }
    known = known_names(compiled.function)
    given = {name: value for name, value in given.items() if name in known}
    loaded: dict[str, int] = {}
    for launch in estimate(compiled.graph, compiled.target, given).timeline.runs:
        for operation in (op for block in launch.blocks for op in block):
            if operation.tensor is not None and operation.tensor.name.startswith("w_"):
                name = operation.tensor.name
                loaded[name] = loaded.get(name, 0) + operation.bytes
    h, i = FULL.hidden, FULL.intermediate
    sizes = {"w_in": FULL.in_width * h, "w_out": FULL.v_width * h, "w_gate_up": 2 * i * h, "w_down": i * h}
    assert loaded == {name: 2 * elements for name, elements in sizes.items()}


@pytest.mark.parametrize("tile", [64, 192])
def test_a_tile_that_cuts_a_head_does_not_compile(tile: int) -> None:
    with pytest.raises(UserError, match=f"elements .* of axis 1, which has {tile}"):
        compile(conv_block, platform="a2a3sim", constants={"K_DIM": 128, "CONV_TILE": tile})
