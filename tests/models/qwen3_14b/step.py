"""Compiled decode steps, and what a run of one changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from backends.sim.machine import simulate
from models.qwen3_14b import harness, reference
from models.qwen3_14b.config import FULL, TINY, Config
from models.qwen3_14b.inputs import LmHead
from models.qwen3_14b.reference import MUTATED
from pypto_models.compile import DEFAULT_PLATFORM, Program, compile
from pypto_models.ir.nodes import Function

TINY_FP32 = replace(TINY, dtype="fp32")

# Heads, pages and contexts of Qwen3-14B; only the residual stream, the MLP and the vocabulary are smaller.
REAL_HEADS = replace(FULL, hidden=1024, intermediate=1024, vocab=1024)


@cache
def step(
    config: Config = TINY, lm_head: LmHead = "full", platform: str = DEFAULT_PLATFORM, **changed: int
) -> Program:
    """The decode step, compiled once for all tests; `changed` replaces constants."""
    options = harness.compile_options(config, platform, lm_head)
    constants = options["constants"] | changed
    return compile(harness.kernel_for(lm_head), platform=platform, constants=constants, check=True)


def execute(program: Program | Function, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a step mutates, after it; `tensors` stays as it is."""
    params = program.params
    own = {p.name: tensors[p.name].clone() if p.name in MUTATED else tensors[p.name] for p in params}
    if isinstance(program, Program):
        program(*own.values())
    else:
        simulate(program, own)
    return {name: own[name] for name in MUTATED if name in own}


def golden(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The same from torch, in the model's element type."""
    own = {name: t.clone() if name in MUTATED else t for name, t in tensors.items()}
    reference.golden(own, config)
    return {name: own[name] for name in MUTATED if name in own}


def bits(x: Tensor) -> Tensor:
    """The elements as integers, so that NaN can be compared."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.dtype.itemsize])


def same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two runs left the same bits in the same tensors."""
    return a.keys() == b.keys() and all(torch.equal(bits(a[name]), bits(b[name])) for name in a)


def max_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference; NaN (slots without a token) must be in the same places."""
    assert actual.shape == expected.shape
    assert torch.equal(actual.isnan(), expected.isnan())
    return float((actual.double() - expected.double()).nan_to_num(0.0).abs().max())
