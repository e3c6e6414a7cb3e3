"""The power of the comparisons of the Qwen3.5-27B layers and blocks; docs/power.md states the figures."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from golden.power import Case, PowerReport, subjects_in
from models.qwen3_5_27b import blocks, power
from pypto_models.faults import FaultClass
from tests.models import powers

MODEL = powers.MODELS / "qwen3_5_27b"
POWERS = {p.cases("tiny")[0].subject: p for p in power.POWERS}
BLOCKS = subjects_in(blocks.power_cases("tiny"))


@cache
def layer(subject: str) -> PowerReport:
    return powers.measured(MODEL / "decode_layer.py", subject)


@pytest.mark.slow
@pytest.mark.parametrize("subject", POWERS)
def test_layer(subject: str) -> None:
    powers.assert_good_layer(layer(subject), POWERS[subject].reasons)


@pytest.mark.slow
def test_what_the_delta_net_misses_is_known() -> None:
    """The last terms of the series of the softplus count for next to nothing."""
    missed = {(Path(o.file).name, o.kind) for o in layer("gdn_decode_layer").scored if o.status == "missed"}
    assert missed <= {("delta_net.py", FaultClass.CONSTANT.name)}


@pytest.mark.slow
@pytest.mark.parametrize("subject", BLOCKS)
def test_block(subject: str) -> None:
    powers.assert_good_block(powers.measured(MODEL / "blocks.py", subject))


# ------------------------------------------------------------------------------------------ without faults
def cases() -> list[Case]:
    return [*power.power_cases("tiny"), *blocks.power_cases("tiny")]


@pytest.mark.parametrize("case", cases(), ids=powers.name_of)
def test_comparisons_pass_without_a_fault(case: Case) -> None:
    powers.assert_sound(case)


def test_every_layer_is_measured_and_every_block() -> None:
    assert list(POWERS) == ["full_decode_layer", "full_decode_layer@one_token", "gdn_decode_layer"]
    assert {"out_block", "gates_block", "conv_block", "delta_rule_block", "in_block"} <= set(BLOCKS)
    assert {"embed_block", "greedy_block", "attention_block", "rope_block"} <= set(BLOCKS)


def test_reasons_name_lines_that_exist() -> None:
    for measured in power.POWERS:
        powers.assert_reasons_exist(measured.reasons)


def test_steps_quiet_enough_for_every_epsilon() -> None:
    """Of a delta net even the inputs before the step are small, or the unit length would not see its own."""
    _, tensors = power.GDN_POWER.step_of(power.GDN_LAYER.configs["tiny"], len(power.GDN_POWER.steps) - 1)
    assert tensors["conv_state"].nan_to_num().abs().max() < 0.01
    assert tensors["hidden"].abs().max() < 0.01
