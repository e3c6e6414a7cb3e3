"""The power of the comparisons of the dense layer and of its blocks; docs/power.md states the figures."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import pytest

from golden.bench import Bench
from golden.power import Case, PowerReport, kernels_in, load_cases, measure_power
from models.qwen3_14b import blocks, power
from pypto_models.compile import DEFAULT_PLATFORM
from pypto_models.faults import SCORED, FaultClass

MODEL = Path(power.__file__).parent
LAYER, BLOCKS = MODEL / "decode_layer.py", MODEL / "blocks.py"
BLOCK_NAMES = kernels_in(blocks.power_cases("tiny"))
SECONDS = 300


@cache
def layer() -> PowerReport:
    return measure_power(partial(load_cases, LAYER, "tiny"), workers=2)


def show(report: PowerReport) -> str:
    missed = [f"{o.file}:{o.line}: {o.kind}: {o.what}" for o in report.scored if o.status == "missed"]
    return "\n".join([report.summary(), *report.shortfalls(), *missed])


@pytest.mark.slow
def test_dense_layer() -> None:
    report = layer()
    assert report.shortfalls() == [], show(report)
    assert report.total.total >= 300
    assert all(report.by_class()[kind].total > 0 for kind in SCORED)
    assert report.seconds <= SECONDS, show(report)


@pytest.mark.slow
def test_equivalent_faults_of_the_layer_have_reasons() -> None:
    equivalent = [o for o in layer().scored if o.status == "equivalent"]
    notes = {"the grid has more blocks than work: a block beyond it stores nothing"}
    assert equivalent
    assert {o.detail for o in equivalent} <= set(power.REASONS.values()) | notes


@pytest.mark.slow
def test_what_the_layer_misses_is_known() -> None:
    """How many pages a run has is a matter of speed: a wrong number is right in every result."""
    lines = {(Path(o.file).name, o.kind) for o in layer().scored if o.status == "missed"}
    assert lines <= {
        ("attention.py", FaultClass.CONSTANT.name),
        ("rows.py", FaultClass.OFF_BY_ONE.name),
        ("rows.py", FaultClass.STALE.name),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kernel", BLOCK_NAMES)
def test_block(kernel: str) -> None:
    report = measure_power(partial(load_cases, BLOCKS, "tiny", kernel), workers=2)
    assert report.shortfalls() == [], show(report)
    assert report.total.total >= 40


# ------------------------------------------------------------------------------------------ without faults
def cases() -> list[Case]:
    return [*power.power_cases("tiny"), *blocks.power_cases("tiny")]


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.kernel.name}-{c.name}")
def test_comparisons_pass_without_a_fault(case: Case) -> None:
    """On all inputs; a comparison that fails, or that shows nothing, would be refused."""
    bench = Bench(case, DEFAULT_PLATFORM)
    for seed in range(case.runs):
        assert bench.round(seed).sound.keys() == bench.round(seed).compared.keys() != set()


def test_fp32_and_bf16_have_the_same_faults_but_for_roundings() -> None:
    fp32, bf16 = (Bench(case, DEFAULT_PLATFORM).faults for case in power.power_cases("tiny"))
    different = {kind for kind, _, _ in fp32.keys() ^ bf16.keys()}
    assert different == {FaultClass.ROUNDING.name, FaultClass.ROUNDING_MODE.name}


def test_reasons_name_lines_that_exist() -> None:
    files = (MODEL.parent / "common").glob("*.py")
    lines = {line.strip() for file in files for line in file.read_text().splitlines()}
    assert set(power.REASONS) <= lines


def test_first_slot_is_written_by_a_live_row() -> None:
    _, tensors = power.step_of(power.harness.CONFIGS["tiny"], 0)
    assert 0 in tensors["slot_mapping"].tolist()
    used = tensors["block_table"][tensors["block_table"] >= 0].tolist()
    assert len(used) == len(set(used))
