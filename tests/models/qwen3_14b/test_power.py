"""The power of the comparisons of the dense layer and of its blocks; docs/power.md states the figures."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from golden.bench import Bench
from golden.power import Case, PowerReport, subjects_in
from models.common.power import hole, single
from models.qwen3_14b import blocks, power
from pypto_models.compile import DEFAULT_PLATFORM
from pypto_models.faults import FaultClass
from tests.models import powers

MODEL = powers.MODELS / "qwen3_14b"
POWERS = {p.cases("tiny")[0].subject: p for p in (power.POWER, power.ONE_TOKEN)}
BLOCKS = subjects_in(blocks.power_cases("tiny"))


@cache
def layer(subject: str) -> PowerReport:
    return powers.measured(MODEL / "decode_layer.py", subject)


@pytest.mark.slow
@pytest.mark.parametrize("subject", POWERS)
def test_dense_layer(subject: str) -> None:
    powers.assert_good_layer(layer(subject), POWERS[subject].reasons)


@pytest.mark.slow
@pytest.mark.parametrize("subject", POWERS)
def test_what_the_layer_misses_is_known(subject: str) -> None:
    """How many pages a run has is a matter of speed: a wrong number is right in every result.  Three runs in
    a share, which no set of inputs has, are compared by tests/models/common/test_shares.py.
    """
    missed = {(Path(o.file).name, o.kind) for o in layer(subject).scored if o.status == "missed"}
    assert missed <= {
        ("attention.py", FaultClass.CONSTANT.name),
        ("attention.py", FaultClass.OFF_BY_ONE.name),
        ("rows.py", FaultClass.OFF_BY_ONE.name),
        ("rows.py", FaultClass.STALE.name),
    }


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


def test_one_row_and_several_are_measured_apart() -> None:
    subjects = ["decode_layer", "decode_layer@one_token"]
    assert list(POWERS) == subjects_in(power.power_cases("tiny")) == subjects


def test_fp32_and_bf16_have_the_same_faults_but_for_roundings() -> None:
    fp32, bf16 = (Bench(case, DEFAULT_PLATFORM).faults for case in power.POWER.cases("tiny"))
    different = {kind for kind, _, _ in fp32.keys() ^ bf16.keys()}
    assert different == {FaultClass.ROUNDING.name, FaultClass.ROUNDING_MODE.name}


def test_reasons_name_lines_that_exist() -> None:
    powers.assert_reasons_exist(power.ONE_TOKEN.reasons)


# ------------------------------------------------------------------------------------------------- inputs
def test_first_slot_is_written_by_a_live_row() -> None:
    _, tensors = power.POWER.step_of(power.LAYER.configs["tiny"], 0)
    assert 0 in tensors["slot_mapping"].tolist()
    used = tensors["block_table"][tensors["block_table"] >= 0].tolist()
    assert len(used) == len(set(used))


def test_a_hole_kills_the_rows_behind_it_and_no_other() -> None:
    (seed,) = (i for i, step in enumerate(power.POWER.steps) if hole in step.changes)
    step, tensors = power.POWER.step_of(power.LAYER.configs["tiny"], seed)
    first, end = tensors["cu_q"][3:5].tolist()
    assert (tensors["slot_mapping"][first:end] >= 0).tolist() == [True, False, True, True]
    assert int(tensors["ctx"][3]) == step.lengths[3] - 3
    assert tensors["hidden"][first:end].isnan().any(dim=1).tolist() == [False, True, True, True]


def test_steps_with_one_row_of_a_sequence_have_no_more() -> None:
    for step in power.ONE_TOKEN.steps:
        assert step == single(step)
    for seed in range(len(power.ONE_TOKEN.steps) + 5):
        _, tensors = power.ONE_TOKEN.step_of(power.LAYER.configs["tiny"], seed)
        assert int(tensors["cu_q"].diff().max()) == 1
