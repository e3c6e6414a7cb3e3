"""Compiled decode steps of any layer kind, and what a run of one changes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from backends.sim.machine import simulate
from models.common.harness import LayerKind
from models.common.step_inputs import LmHead
from pypto_models.compile import DEFAULT_PLATFORM, Program, compile
from pypto_models.ir.nodes import Function


@cache
def step(
    kind: LayerKind,
    config: Any,
    lm_head: LmHead = "full",
    platform: str = DEFAULT_PLATFORM,
    rows: int | None = None,
    span: int = 1,
    **changed: int,
) -> Program:
    """The decode step, compiled once for all tests; `changed` replaces constants."""
    options = kind.compile_options(config, platform, lm_head, rows=rows, span=span)
    constants = options["constants"] | changed
    return compile(kind.kernel_for(lm_head), platform=platform, constants=constants, check=True)


def execute(kind: LayerKind, program: Program | Function, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a step mutates, after it; `tensors` stays as it is."""
    names = [p.name for p in program.params]
    own = {n: tensors[n].clone() if n in kind.mutated else tensors[n] for n in names}
    if isinstance(program, Program):
        program(*own.values())
    else:
        simulate(program, own)
    return {name: own[name] for name in kind.mutated if name in own}


def golden(kind: LayerKind, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The same from torch, in the model's element type."""
    own = {name: t.clone() if name in kind.mutated else t for name, t in tensors.items()}
    kind.golden(own, config)
    return {name: own[name] for name in kind.mutated if name in own}


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
