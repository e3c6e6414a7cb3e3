"""Both layers in the kernel language: against transformers, against torch, and against themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import pypto_models.language as pl
from models.common.harness import LayerKind
from models.qwen3_5_27b.config import FULL, REAL_HEADS, TINY, Config
from models.qwen3_5_27b.harness import FULL_LAYER, GDN_LAYER
from pypto_models.compile import compile
from pypto_models.ir.equal import difference
from pypto_models.ir.printer import format_function
from tests.models.qwen3_5_27b.oracle import oracle
from tests.models.step import execute, max_error, same_bits, step

KINDS = {"full": FULL_LAYER, "gdn": GDN_LAYER}
EVERY_LAYER = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
TINY_FP32 = replace(TINY, dtype="fp32")
TOLERANCE = 1e-5
PLATFORMS = ("a2a3sim", "a5sim", "gb10sim", "h200sim")


# --------------------------------------------------------------------------------------------------
# Equations, against transformers


@pytest.mark.parametrize("step_", range(4))
@pytest.mark.parametrize("layer", range(TINY.layers))
def test_fp32_layer_matches_transformers(layer: int, step_: int) -> None:
    run, kind = oracle("fp32"), KINDS[TINY.kinds[layer]]
    actual = execute(kind, step(kind, TINY_FP32), run.tensors(step_, layer))
    for name, expected in run.expected(step_, layer).items():
        assert max_error(actual[name], expected) <= TOLERANCE, name


@pytest.mark.parametrize("kept", [(1, 1, 1, 1), (4, 2, 1, 3)], ids=str)
@pytest.mark.parametrize("counts", [(4, 4, 4, 4), (0, 3, 1, 2)], ids=str)
@pytest.mark.parametrize("layer", range(TINY.layers))
def test_several_tokens_match_transformers_one_at_a_time(
    layer: int, counts: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    """Also what is left behind for a next step that keeps only some of the rows."""
    run, kind = oracle("fp32"), KINDS[TINY.kinds[layer]]
    actual = execute(kind, step(kind, TINY_FP32, span=4), run.tensors(0, layer, counts, 4, kept))
    expected = run.expected(0, layer, counts, 4, kept)
    for name in ("next_hidden", "normed", "logits"):
        assert max_error(actual[name], expected[name]) <= TOLERANCE, name
    before = run.tensors(0, layer, counts, 4, kept)
    for name in kind.written:
        rows = kind.written[name](before, TINY)
        assert max_error(actual[name][rows], expected[name][rows]) <= TOLERANCE, name


def test_fp32_chained_layers_and_steps_match_transformers() -> None:
    """Every layer on what the program made of the one before, caches and states on its own earlier steps."""
    run = oracle("fp32")
    memory = [{n: t.clone() for n, t in held.items()} for held in run.caches[0]]
    worst: dict[str, float] = {}
    for s in range(run.steps):
        x = run.hidden[s][0]
        for layer, name in enumerate(TINY.kinds):
            kind = KINDS[name]
            given = {**run.tensors(s, layer), **memory[layer], "hidden": x}
            after = execute(kind, step(kind, TINY_FP32), given)
            memory[layer] = {n: after[n] for n in kind.written}
            x = after["next_hidden"]
            for n, expected in run.expected(s, layer).items():
                worst[n] = max(worst.get(n, 0.0), max_error(after[n], expected))
    largest = max(float(h.abs().max()) for hidden in run.hidden for h in hidden)
    assert worst.pop("next_hidden") <= TOLERANCE * largest
    assert set(worst) == {"normed", "logits", "k_cache", "v_cache", "conv_state", "state"}
    assert max(worst.values()) <= TOLERANCE, worst


# --------------------------------------------------------------------------------------------------
# bf16: no further from fp64 than bf16 itself


@EVERY_LAYER
@pytest.mark.parametrize("config", [TINY, REAL_HEADS], ids=["tiny", "real_heads"])
@pytest.mark.parametrize("tokens", [1, 4, "ragged"])
@pytest.mark.parametrize("seed", range(3))
def test_bf16_is_as_close_to_fp64_as_torch(
    seed: int, tokens: int | str, config: Config, kind: LayerKind
) -> None:
    tensors = kind.make_inputs(config, 5, "ragged", tokens=tokens, span=4, seed=seed, lm_head="full")
    program = step(kind, config, rows=32, span=4)
    result = kind.check(config, tensors, program)
    assert result.status == "PASS", result.error
    assert {*result.reports} == {*kind.mutated}


# --------------------------------------------------------------------------------------------------
# Padded rows, other programs


@EVERY_LAYER
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rows_that_are_not_live_give_zeros(dtype: str, kind: LayerKind) -> None:
    config, dead = replace(TINY, dtype=dtype), {1: "all", 2: "ctx", 4: "tail", 5: "cu_q"}
    tensors = kind.make_inputs(
        config, 6, "ragged", tokens=[2, 3, 1, 1, 4, 2], span=4, padding=3, lm_head="full", dead_rows=dead
    )
    actual = execute(kind, step(kind, config, span=4), tensors)
    live = torch.tensor([True] * 2 + [False] * 4 + [True] * 3 + [False] * 7)
    for name in kind.outputs:
        assert torch.all(actual[name][~live] == 0), name
        assert torch.all(actual[name][live].abs().amax(1) > 0), name


@EVERY_LAYER
def test_a_program_for_more_rows_gives_the_same_bits(kind: LayerKind) -> None:
    """However tall the tile is that holds the rows, and however many of them a sequence might have."""
    tensors = kind.make_inputs(TINY, 16, "ragged", seed=2, lm_head="full")
    expected = execute(kind, step(kind, TINY), tensors)
    for rows in (32, 64, 128):
        assert same_bits(execute(kind, step(kind, TINY, rows=rows), tensors), expected), rows


@EVERY_LAYER
@pytest.mark.parametrize("config", [TINY, FULL], ids=["tiny", "full"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_full_size_compiles_without_warnings(platform: str, config: Config, kind: LayerKind) -> None:
    """It fits the scratchpad targets, has no hazards, and the GPU targets say that nothing was checked."""
    for lm_head in ("skip", "full"):
        options = kind.compile_options(config, platform, lm_head)
        program = compile(kind.kernel_for(lm_head), platform=platform, check=True, **options)
        if platform in ("a2a3sim", "a5sim"):
            assert program.warnings == ()
            assert program.compiled.plan.checked
        else:
            (warning,) = program.warnings
            assert "nothing is checked" in warning


# --------------------------------------------------------------------------------------------------
# Passes, printed text


def inputs(kind: LayerKind) -> dict[str, Tensor]:
    tokens, dead = [3, 1, 4], {1: "slot"}
    return kind.make_inputs(
        TINY, 3, [128, 20, 9], tokens=tokens, span=4, seed=10, lm_head="full", dead_rows=dead
    )


@EVERY_LAYER
@pytest.mark.parametrize("stage", ["front_end", "spill", "infer_memory", "split"])
def test_every_pass_keeps_every_bit_and_prints_what_it_means(stage: str, kind: LayerKind) -> None:
    program = step(kind, TINY, span=4)
    stages = dict(program.compiled.stages)
    assert len(stages) == 4
    expected = execute(kind, program, inputs(kind))
    assert same_bits(execute(kind, stages[stage], inputs(kind)), expected)
    again = pl.parse(format_function(stages[stage]))
    assert difference(stages[stage], again) is None
    assert same_bits(execute(kind, again, inputs(kind)), expected)
