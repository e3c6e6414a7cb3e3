"""Seeded faults: whatever is wrong with the layer, the comparison that the front door makes must fail.

Each fault is an edit of the layer's IR.  The step runs without its LM head unless the fault sits there, so
that `--lm-head skip` is shown to compare enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from golden import RunResult
from models.qwen3_14b.config import TINY, Config
from models.qwen3_14b.harness import LAYER
from models.qwen3_14b.inputs import LmHead, make_inputs
from pypto_models.compile import Program, compile_function
from pypto_models.errors import UserError
from pypto_models.ir.expr import Const, binary
from tests.models.mutate import (
    Edit,
    bypass,
    drop_store,
    first_half,
    last_half,
    less_one,
    loop,
    mutated,
    never,
    one_more,
    read_as,
    read_at,
    scalar,
    without_last,
)
from tests.models.qwen3_14b.step import REAL_HEADS, TINY_FP32, step

CONFIGS = {"bf16": TINY, "fp32": TINY_FP32}

# Several pages each, and behind none a single cached token, so that one less would not be an empty page
CONTEXT = (128, 99, 64, 35, 112, 80)

ONE_RUN, SEVERAL_RUNS = 1, 16  # TARGET_RUNS for these 34 pages: shares of 34 pages, or of 3

OUTPUTS = ("next_hidden", "normed")


@dataclass(frozen=True)
class Fault:
    """``fails`` names tensors whose comparison must fail; others may as well."""

    edits: tuple[Edit, ...]
    fails: tuple[str, ...] = OUTPUTS
    target_runs: int = ONE_RUN
    lm_head: LmHead = "skip"


def fault(*edits: Edit, fails: tuple[str, ...] = OUTPUTS, target_runs: int = ONE_RUN) -> Fault:
    return Fault(edits, fails, target_runs)


def no_norm(region: str, nth: int = 0, weight_nth: int = 0) -> tuple[Edit, Edit]:
    """RMSNorm that scales by neither the root mean square nor the weight."""
    return bypass(region, "row_expand_mul", 0, nth), bypass(region, "col_expand_mul", 0, weight_nth)


FAULTS = {
    # branches
    "attention zero": fault(bypass("out_proj", "add", 1)),
    "MLP zero": fault(bypass("down_proj", "add", 1)),
    "residual before attention dropped": fault(bypass("out_proj", "add", 0)),
    "residual before the MLP dropped": fault(bypass("down_proj", "add", 0)),
    "half of the heads dropped": fault(loop("out_proj", first_half, "k")),
    "half of the intermediate dropped": fault(loop("down_proj", first_half, "k")),
    # context
    "older half of the context ignored": fault(loop("attention", last_half, "p")),
    "newer half of the context ignored": fault(loop("attention", first_half, "p")),
    "current token not attended": fault(never("attention")),
    "token before it not attended": fault(scalar("attention", "cached", less_one)),
    "current token taken from its slot as well": fault(scalar("attention", "cached", one_more)),
    "every page the first": fault(read_at("attention", "block_table", lambda index: (index[0], Const(0)))),
    "the page before": fault(
        read_at("attention", "block_table", lambda i: (i[0], binary("max", less_one(i[1]), Const(0))))
    ),
    "last run not merged": fault(scalar("attention_merge", "here", less_one), target_runs=SEVERAL_RUNS),
    "older runs not rescaled": fault(
        bypass("attention_merge", "row_expand_mul", 0), target_runs=SEVERAL_RUNS
    ),
    "newer runs not rescaled": fault(
        bypass("attention_merge", "row_expand_mul", 0, nth=1), target_runs=SEVERAL_RUNS
    ),
    "runs side by side not rescaled": fault(
        bypass("attention_merge", "row_expand_mul", 0, nth=2), target_runs=SEVERAL_RUNS
    ),
    "older pages not rescaled": fault(bypass("attention", "row_expand_mul", 0, nth=1)),
    "sum of older pages not rescaled": fault(bypass("attention", "mul", 0, nth=3)),
    "score of the current token not scaled": fault(bypass("attention", "mul", 0)),
    "scores of cached tokens not scaled": fault(bypass("attention", "mul", 0, nth=2)),
    # KV write; the caches hold stale values where the token belongs
    "K not written": fault(drop_store("attention", "k_cache"), fails=("k_cache",)),
    "V not written": fault(drop_store("attention", "v_cache"), fails=("v_cache",)),
    "KV of several runs not written": fault(
        never("attention", nth=2), fails=("k_cache", "v_cache"), target_runs=SEVERAL_RUNS
    ),
    "wrong slot": fault(scalar("attention", "slot", less_one), fails=("k_cache", "v_cache")),
    # norms and RoPE
    "input norm skipped": fault(*no_norm("input_norm"), fails=(*OUTPUTS, "v_cache")),
    "post norm skipped": fault(*no_norm("post_norm")),
    "final norm skipped": fault(*no_norm("final_norm"), fails=("normed",)),
    "input norm without its weight": fault(bypass("input_norm", "col_expand_mul", 0)),
    "post norm without its weight": fault(bypass("post_norm", "col_expand_mul", 0)),
    "q norm skipped": fault(*no_norm("rope")),
    "k norm skipped": fault(*no_norm("rope", nth=1, weight_nth=3), fails=(*OUTPUTS, "k_cache")),
    "q norm without its weight": fault(bypass("rope", "col_expand_mul", 0)),
    "RoPE skipped": fault(scalar("rope", "position", lambda value: Const(0)), fails=(*OUTPUTS, "k_cache")),
    "RoPE one position late": fault(scalar("rope", "position", less_one), fails=(*OUTPUTS, "k_cache")),
    # MLP
    "SiLU removed": fault(bypass("gate_up_silu", "mul", 0)),
    "gate without its sigmoid's argument": fault(bypass("gate_up_silu", "neg", 0)),
    "up projection ignored": fault(bypass("gate_up_silu", "mul", 0, nth=1)),
    # one K slice
    "K slice of the QKV projection skipped": fault(
        loop("qkv_proj", without_last, "k"), fails=(*OUTPUTS, *LAYER.written)
    ),
    "K slice of the output projection skipped": fault(loop("out_proj", without_last, "k")),
    "K slice of the gate and up projections skipped": fault(loop("gate_up_silu", without_last, "k")),
    "K slice of the down projection skipped": fault(loop("down_proj", without_last, "k")),
    "K slice of the LM head skipped": Fault(
        (loop("lm_head", without_last, "k"),), fails=("logits",), lm_head="full"
    ),
}


REFUSED = {
    "block table ignored": read_as("attention", "block_table", lambda value, index: index[1]),
    "one page too low": read_as(
        "attention", "block_table", lambda value, index: binary("max", less_one(value), Const(0))
    ),
    "every sequence the rows of the first": scalar("attention", "first", lambda _: Const(0)),
}
"""Faults that get no further than the simulator: a sequence touches the slot that another one writes."""


def stale(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Plausible values in place of NaN in the caches: a fault must show without the help of NaN."""
    generator = torch.Generator().manual_seed(0)
    for name in LAYER.written:
        cache_ = tensors[name]
        old = torch.randn(cache_.shape, generator=generator).to(cache_.dtype)
        tensors[name] = torch.where(cache_.isnan(), old, cache_)
    return tensors


@cache
def inputs(config: Config, context: tuple[int, ...], lm_head: LmHead) -> dict[str, Tensor]:
    return stale(make_inputs(config, len(context), context, seed=11, lm_head=lm_head))


def outcome(program: Program, config: Config, context: tuple[int, ...], lm_head: LmHead) -> RunResult:
    return LAYER.check(config, inputs(config, context, lm_head), program=program)


@pytest.mark.parametrize("target_runs", [ONE_RUN, SEVERAL_RUNS])
@pytest.mark.parametrize("lm_head", ["skip", "full"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_layer_passes(config: Config, lm_head: LmHead, target_runs: int) -> None:
    """Rebuilt from its IR and run as the mutants are, so that the edit alone makes them fail."""
    program = step(config, lm_head, TARGET_RUNS=target_runs)
    again = compile_function(program.compiled.stages[0][1])
    result = outcome(again, config, CONTEXT, lm_head)
    assert result.status == "PASS", result.error
    names = {*OUTPUTS, *LAYER.written} | ({"logits"} if lm_head == "full" else set())
    assert {name: report.status for name, report in result.reports.items()} == dict.fromkeys(names, "PASS")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails(name: str, config: Config) -> None:
    seeded = FAULTS[name]
    program = step(config, seeded.lm_head, TARGET_RUNS=seeded.target_runs)
    mutant = compile_function(mutated(program.compiled.stages[0][1], seeded.edits))
    result = outcome(mutant, config, CONTEXT, seeded.lm_head)
    assert result.status == "FAIL"
    assert not result.passed
    failed = {name for name, report in result.reports.items() if report.status == "FAIL"}
    assert failed >= set(seeded.fails)


@pytest.mark.parametrize("name", REFUSED)
def test_a_fault_is_refused(name: str) -> None:
    mutant = compile_function(mutated(step(TINY, "skip").compiled.stages[0][1], (REFUSED[name],)))
    with pytest.raises(UserError, match=r"of region 'attention' touch k_cache\["):
        outcome(mutant, TINY, CONTEXT, "skip")


HARD = (
    "attention zero",
    "MLP zero",
    "half of the heads dropped",
    "older half of the context ignored",
    "newer half of the context ignored",
    "current token not attended",
    "SiLU removed",
)


@pytest.mark.parametrize("name", HARD)
def test_a_fault_fails_at_real_context_lengths(name: str) -> None:
    """Thousands of tokens would average a fault away if the inputs did not make each of them matter."""
    program = step(REAL_HEADS, "skip")
    context = (4096, 1500)
    assert outcome(program, REAL_HEADS, context, "skip").status == "PASS"
    mutant = compile_function(mutated(program.compiled.stages[0][1], FAULTS[name].edits))
    result = outcome(mutant, REAL_HEADS, context, "skip")
    assert result.status == "FAIL"
    assert all(result.reports[tensor].status == "FAIL" for tensor in OUTPUTS)


def test_an_edit_without_a_place_is_an_error() -> None:
    function = step().compiled.stages[0][1]
    with pytest.raises(LookupError, match=r"region 'out_proj' has 1 such statements, not 2"):
        mutated(function, (bypass("out_proj", "add", 0, nth=1),))
    with pytest.raises(LookupError, match=r"region 'no_such' has 0 such statements, not 1"):
        mutated(function, (bypass("no_such", "add", 0),))
