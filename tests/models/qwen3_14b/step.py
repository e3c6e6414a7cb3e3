"""Decode steps of Qwen3-14B, compiled, and what a run of one changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from models.common.step_inputs import LmHead
from models.qwen3_14b.config import FULL, TINY, Config
from models.qwen3_14b.harness import LAYER
from pypto_models.compile import Program
from pypto_models.ir.nodes import Function
from tests.models import step as any_step

TINY_FP32 = replace(TINY, dtype="fp32")

# Heads, pages and contexts of Qwen3-14B; only the residual stream, the MLP and the vocabulary are smaller.
REAL_HEADS = replace(FULL, hidden=1024, intermediate=1024, vocab=1024)

bits, same_bits, max_error = any_step.bits, any_step.same_bits, any_step.max_error


def step(config: Config = TINY, lm_head: LmHead = "full", **options: int | str) -> Program:
    """The decode step, compiled once for all tests; see `tests.models.step.step`."""
    return any_step.step(LAYER, config, lm_head, **options)


def execute(program: Program | Function, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a step mutates, after it; `tensors` stays as it is."""
    return any_step.execute(LAYER, program, tensors)


def golden(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The same from torch, in the model's element type."""
    return any_step.golden(LAYER, tensors, config)
