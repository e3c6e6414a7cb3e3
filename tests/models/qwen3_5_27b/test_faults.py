"""Seeded faults: whatever is wrong with a layer, the comparison that the front door makes must fail.

Each fault is an edit of the layer's IR; those of the blocks that Qwen3-14B shares are in its tests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from golden import RunResult
from models.qwen3_5_27b.config import TINY, Config
from models.qwen3_5_27b.harness import FULL_LAYER, GDN_LAYER
from pypto_models.compile import Program, compile_function
from pypto_models.errors import UserError
from pypto_models.ir.expr import Const, binary
from tests.models.mutate import (
    Edit,
    bypass,
    drop_store,
    first_half,
    less_one,
    loop,
    mutated,
    never,
    read_as,
    scalar,
    without_last,
)
from tests.models.step import step

KINDS = {"full": FULL_LAYER, "gdn": GDN_LAYER}
CONFIGS = {"bf16": TINY, "fp32": replace(TINY, dtype="fp32")}
SPAN = 4
TOKENS, CONTEXT = [3, 1, 4, 2], [99, 34, 112, 80]

OUTPUTS = ("next_hidden", "normed")
STATES = ("conv_state", "state")


@dataclass(frozen=True)
class Fault:
    """``fails`` names tensors whose comparison must fail; others may as well."""

    layer: str
    edits: tuple[Edit, ...]
    fails: tuple[str, ...] = OUTPUTS


def gdn(*edits: Edit, fails: tuple[str, ...] = (*OUTPUTS, "state")) -> Fault:
    return Fault("gdn", edits, fails)


def full(*edits: Edit, fails: tuple[str, ...] = OUTPUTS) -> Fault:
    return Fault("full", edits, fails)


FAULTS = {
    # convolution
    "convolution without its SiLU": gdn(bypass("gdn_conv", "mul", 0, nth=2)),
    "convolution without its history": gdn(bypass("gdn_conv", "add", 1)),
    "convolution without the current token": gdn(bypass("gdn_conv", "add", 0)),
    "inputs of the convolution not kept": gdn(
        drop_store("gdn_conv", "conv_state", nth=1), fails=("conv_state",)
    ),
    "history of the convolution not moved": gdn(drop_store("gdn_conv", "conv_state"), fails=("conv_state",)),
    "history as if one row more was kept": gdn(
        read_as("gdn_conv", "kept", lambda value, index: Const(1)), fails=(*OUTPUTS, *STATES)
    ),
    # gates
    "decay without the rate": gdn(bypass("gdn_gates", "col_expand_mul", 0)),
    "decay without its bias": gdn(bypass("gdn_gates", "col_expand_add", 0)),
    # delta rule
    "q and k of any length": gdn(bypass("gdn_conv", "row_expand_mul", 0)),
    "state does not decay": gdn(bypass("delta_rule", "mul", 0)),
    "what the state recalls is not subtracted": gdn(bypass("delta_rule", "sub", 0)),
    "the whole error is written": gdn(bypass("delta_rule", "mul", 0, nth=1)),
    "nothing is written into the state": gdn(bypass("delta_rule", "add", 0)),
    "states not stored": gdn(drop_store("delta_rule", "state"), fails=("state",)),
    # output norm and projection
    "output norm without its weight": gdn(bypass("gdn_out_norm", "col_expand_mul", 0), fails=OUTPUTS),
    "output not normed": gdn(bypass("gdn_out_norm", "row_expand_mul", 0), fails=OUTPUTS),
    "output not gated": gdn(bypass("gdn_out_norm", "mul", 0, nth=3), fails=OUTPUTS),
    "half of the value heads dropped": gdn(loop("out_proj", first_half, "k"), fails=OUTPUTS),
    # full layer
    "attention not gated": full(bypass("attention_merge", "mul", 0, nth=3)),
    "gate without its sigmoid's argument": full(bypass("attention_merge", "neg", 0)),
    "norm weights not centred": full(bypass("input_norm", "add", 0, nth=1), fails=(*OUTPUTS, "v_cache")),
    "later tokens of the step attended": full(bypass("attention", "minimum", 0, nth=SPAN - 1)),
    "no token of the step attended": full(never("attention")),
    "the current token alone attended": full(
        *(bypass("attention", "add", 0, nth=j) for j in reversed(range(SPAN - 1)))
    ),
    "tokens before the step not counted": full(scalar("attention", "cached", less_one)),
    "K of one row alone written": full(drop_store("attention", "k_cache", nth=1), fails=("k_cache",)),
    "V of the third row not written": full(drop_store("attention", "v_cache", nth=2), fails=("v_cache",)),
    "RoPE skipped": full(scalar("rope", "position", lambda value: Const(0)), fails=(*OUTPUTS, "k_cache")),
}

REFUSED = {
    "last row of a sequence left out": (
        gdn(loop("delta_rule", without_last, "j")),
        r"reads recalled\[2, 0\], which was never written",
    ),
    "every state in one slot": (
        gdn(read_as("delta_rule", "state_slots", lambda value, index: binary("-", value, value))),
        r"of region 'delta_rule' touch state\[0, 0\], and nothing orders them",
    ),
}
"""Faults that get no further than the simulator."""


@cache
def inputs(layer: str, config: Config) -> dict[str, Tensor]:
    """Plausible values in place of NaN in caches and states: a fault must show without the help of NaN."""
    kind = KINDS[layer]
    tensors = kind.make_inputs(config, len(TOKENS), CONTEXT, tokens=TOKENS, span=SPAN, seed=11)
    generator = torch.Generator().manual_seed(0)
    for name in kind.written:
        held = tensors[name]
        old = torch.randn(held.shape, generator=generator).to(held.dtype)
        tensors[name] = torch.where(held.isnan(), old, held)
    return tensors


def sound(layer: str, config: Config) -> Program:
    return step(KINDS[layer], config, "skip", span=SPAN)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("layer", KINDS)
def test_the_layer_passes(layer: str, config: Config) -> None:
    """Rebuilt from its IR and run as the mutants are, so that the edit alone makes them fail."""
    again = compile_function(sound(layer, config).compiled.stages[0][1])
    result = KINDS[layer].check(config, inputs(layer, config), program=again)
    assert result.status == "PASS", result.error
    names = {*OUTPUTS, *KINDS[layer].written}
    assert {name: report.status for name, report in result.reports.items()} == dict.fromkeys(names, "PASS")


def faulty(fault: Fault, config: Config) -> RunResult:
    function = mutated(sound(fault.layer, config).compiled.stages[0][1], fault.edits)
    program = compile_function(function)
    return KINDS[fault.layer].check(config, inputs(fault.layer, config), program=program)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails(name: str, config: Config) -> None:
    result = faulty(FAULTS[name], config)
    assert result.status == "FAIL"
    failed = {name for name, report in result.reports.items() if report.status == "FAIL"}
    assert failed >= set(FAULTS[name].fails)


@pytest.mark.parametrize("name", REFUSED)
def test_a_fault_is_refused(name: str) -> None:
    fault, why = REFUSED[name]
    with pytest.raises(UserError, match=why):
        faulty(fault, TINY)
