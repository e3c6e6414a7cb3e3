"""Both layers under the simulator's safety checks: any legal order, splits, races, hazards."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from models.qwen3_5_27b.config import TINY
from models.qwen3_5_27b.harness import FULL_LAYER, GDN_LAYER
from pypto_models.compile import DEFAULT_PLATFORM, compile
from pypto_models.errors import UserError
from pypto_models.passes.grid import suspects
from tests.models.step import execute, same_bits

KINDS = {"full": FULL_LAYER, "gdn": GDN_LAYER}
SPAN = 4
PLATFORMS = ("a2a3sim", "a5sim", "gb10sim", "h200sim")
EVERY_LAYER = pytest.mark.parametrize("layer", KINDS)

# Rows, context and dead sequences of a step that has some of everything
TOKENS, CONTEXT, DEAD = [3, 1, 0, 4, 2, 1], [90, 17, 20, 33, 128, 16], {1: "slot", 4: "tail"}


def program(layer: str, platform: str = DEFAULT_PLATFORM, dtype: str = "bf16", **options: Any) -> Any:
    kind, config = KINDS[layer], replace(TINY, dtype=dtype)
    how = kind.compile_options(config, platform, "full", span=SPAN)
    return compile(kind.kernel_with_head, platform=platform, backend_options=options, **how)


def inputs(layer: str, dtype: str = "bf16") -> dict[str, Tensor]:
    config, how = replace(TINY, dtype=dtype), {"tokens": TOKENS, "span": SPAN, "dead_rows": DEAD}
    return KINDS[layer].make_inputs(config, 6, CONTEXT, seed=3, lm_head="full", **how)


def step(layer: str, dtype: str = "bf16", **options: Any) -> dict[str, Tensor]:
    """What one step leaves in the tensors that it may change."""
    return execute(KINDS[layer], program(layer, dtype=dtype, **options), inputs(layer, dtype))


@cache
def in_order(layer: str) -> dict[str, Tensor]:
    return step(layer)


@EVERY_LAYER
@pytest.mark.parametrize("seed", range(3))
def test_any_legal_order_gives_the_same_bits(layer: str, seed: int) -> None:
    assert same_bits(step(layer, schedule="random", seed=seed), in_order(layer))


@EVERY_LAYER
def test_splits_change_no_bit(layer: str) -> None:
    assert same_bits(step(layer, check_splits=True), in_order(layer))


@EVERY_LAYER
def test_the_same_in_fp32(layer: str) -> None:
    assert same_bits(step(layer, "fp32", schedule="random", seed=1), step(layer, "fp32"))


@EVERY_LAYER
@pytest.mark.parametrize("platform", PLATFORMS)
def test_there_is_no_hazard_on_any_platform(layer: str, platform: str) -> None:
    compiled = program(layer, platform)
    assert compiled.compiled.graph.hazards == ()
    assert same_bits(execute(KINDS[layer], compiled, inputs(layer)), in_order(layer))


SUSPECTS = {
    "full": {"k_cache", "v_cache", "run_table", "part_m", "part_sum", "part_acc"},
    "gdn": {"conv_state", "unit", "values", "recalled", "state"},
}


@EVERY_LAYER
def test_only_data_dependent_rows_are_left_to_the_watch(layer: str) -> None:
    """Every other tensor is proved free of races for all blocks."""
    found = suspects(program(layer).compiled.graph)
    assert {t.name for tensors in found.values() for t in tensors} == SUSPECTS[layer]


def test_two_sequences_with_one_state_slot_are_a_race() -> None:
    tensors = inputs("gdn")
    tensors["state_slots"][3] = tensors["state_slots"][0]
    with pytest.raises(UserError, match=r"of region 'delta_rule'"):
        execute(GDN_LAYER, program("gdn"), tensors)


def test_two_sequences_with_one_convolution_slot_are_a_race() -> None:
    tensors = inputs("gdn")
    tensors["conv_slots"][3] = tensors["conv_slots"][0]
    tensors["kept"][3] = tensors["kept"][0]
    with pytest.raises(UserError, match=r"of region 'gdn_conv'"):
        execute(GDN_LAYER, program("gdn"), tensors)


@pytest.mark.parametrize("name", ["state", "conv_state"])
def test_states_of_other_sequences_are_not_touched(name: str) -> None:
    """Spare slots, slots of dead sequences and of rows that do not exist keep every bit."""
    before, after = inputs("gdn")[name], in_order("gdn")[name]
    kept = torch.ones(len(before), dtype=torch.bool)
    kept[GDN_LAYER.written[name](inputs("gdn"), TINY)] = False
    assert 0 < int(kept.sum()) < len(before)
    if name == "conv_state":  # the history moves to the front of the buffers of live sequences
        width = TINY.taps - 2 + SPAN
        live = {0: 3, 3: 4, 4: 1, 5: 1}
        for slot in inputs("gdn")["conv_slots"][list(live)].tolist():
            kept[slot * width : slot * width + TINY.taps - 2] = False
    integer = torch.int16 if before.dtype.itemsize == 2 else torch.int32
    assert torch.equal(before[kept].view(integer), after[kept].view(integer))
