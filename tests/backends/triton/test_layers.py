"""The blocks and the tiny layers of all kinds, in Triton's interpreter, against their goldens."""

from __future__ import annotations

from functools import cache

import pytest

from backends.triton import rules
from golden import run
from golden.runner import RunResult
from pypto_models.compile import Program

from ..on_gpu.catalogue import (
    block_entry,
    blocks,
    layers,
    platform,
    span_entry,
    step_entry,
)
from ..on_gpu.programs import options
from .support import interpreted_entry, needs_interpreter

pytestmark = needs_interpreter
H200 = platform("h200:triton")
BLOCKS = [name for name, one in blocks().items() if one.layer.size == "tiny"]
TINY = [name for name, layer in layers().items() if layer.size == "tiny"]
STEPS = [name for name in TINY if layers()[name].config.dtype == "bf16"]


@cache
def step_program(name: str, on: str = H200.name) -> Program:
    return interpreted_entry(step_entry(layers()[name], platform(on)))


@cache
def span_program(name: str) -> Program:
    return interpreted_entry(span_entry(layers()[name], H200))


def check_block(name: str, seed: int, program: Program | None = None) -> RunResult:
    one = blocks()[name]
    check = one.block.check(one.layer.power, one.layer.config, seed)
    program = program or interpreted_entry(block_entry(one, H200))
    return run(program, check.specs, seed=seed, **options(check))


# -------------------------------------------------------------------------------------------------- blocks
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block(name: str) -> None:
    result = check_block(name, blocks()[name].seeds[0])
    assert result.status == "PASS", result.error


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_on_all_its_inputs(name: str) -> None:
    program = interpreted_entry(block_entry(blocks()[name], H200))
    for seed in blocks()[name].seeds[1:]:
        result = check_block(name, seed, program)
        assert result.status == "PASS", f"inputs {seed}: {result.error}"


@pytest.mark.parametrize(
    ("name", "table", "op", "template"),
    [
        ("14b/tiny/bf16/norms_block", "UNARY", "rsqrt", "tl.sqrt_rn({a})"),
        ("14b/tiny/fp32/gate_up_block", "UNARY", "exp", "tl.exp({a} * 1.001)"),
        ("5_27b/tiny/bf16/rope_block", "BINARY", "add", "{a} - {b}"),
        ("5_27b/tiny/fp32/attention_block", "REDUCE", "row_sum", (1, "max")),
        ("5_27b/tiny/fp32/delta_rule_block", "BINARY", "mul", "{a} * {b} * 1.0001"),
        ("5_27b/tiny/bf16/greedy_block", "REDUCE", "row_max", (1, "min")),
    ],
)
def test_a_wrong_rule_is_noticed(
    name: str, table: str, op: str, template: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(getattr(rules, table), op, template)
    assert check_block(f"qwen3_{name}", 0).status == "FAIL"


# -------------------------------------------------------------------------------------------------- layers
def assert_step_is_right(name: str, batch: int, context: int | str, on: str = H200.name) -> None:
    layer = layers()[name]
    tensors = layer.kind.make_inputs(layer.config, batch, context, seed=batch, lm_head="single")
    result = layer.kind.check(layer.config, tensors, step_program(name, on))
    assert result.status == "PASS", result.error
    assert {*result.reports} == {n for n in layer.kind.mutated if n in tensors}


@pytest.mark.parametrize(
    ("batch", "context"), [(1, 1), (3, "ragged"), pytest.param(16, "ragged", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", STEPS)
def test_one_row_a_sequence(name: str, batch: int, context: int | str) -> None:
    assert_step_is_right(name, batch, context)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_the_longest_context(name: str) -> None:
    assert_step_is_right(name, 2, layers()[name].config.max_seq)


@pytest.mark.slow
@pytest.mark.parametrize("on", ["gb10:triton", "mi300x", "mi355x"])
@pytest.mark.parametrize("name", STEPS)
def test_other_targets_with_schedules_of_their_own(name: str, on: str) -> None:
    assert_step_is_right(name, 3, "ragged", on)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_several_rows_dead_sequences_and_small_values(name: str) -> None:
    """The steps on which the power of the comparison is measured, and ragged batches behind them."""
    layer = layers()[name]
    assert len(layer.power.steps) >= 15
    for seed in range(len(layer.power.steps)):
        _, tensors = layer.power.step_of(layer.config, seed)
        result = layer.kind.check(layer.config, tensors, span_program(name))
        assert result.status == "PASS", f"step {seed}: {result.error}"
