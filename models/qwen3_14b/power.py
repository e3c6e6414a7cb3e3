"""Inputs on which the comparison of a decode step is to notice every fault in it.

    pypto-models power models/qwen3_14b/decode_layer.py --config tiny

One set of inputs cannot do: which sequence has several runs, which row is dead and which norm sees values as
small as its epsilon exclude each other.  Each set below is there for faults that the others let pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from golden.power import Case, Check
from models.qwen3_14b import harness
from models.qwen3_14b.config import Config
from models.qwen3_14b.inputs import Dead, make_inputs
from pypto_models.compile import DEFAULT_PLATFORM

QUIET = 1e-3
"""Scale at which the mean square of a row is about the epsilon of its norm."""


@dataclass(frozen=True)
class Step:
    """Inputs of one step: tokens of each sequence, dead rows, and what else is done to the tensors."""

    lengths: tuple[int, ...]
    dead: dict[int, Dead] = field(default_factory=dict)
    change: Callable[[dict[str, Tensor]], None] = lambda tensors: None


def _quiet(tensors: dict[str, Tensor]) -> None:
    """All branches and the residual so small that every epsilon counts.

    Row 1 attends to nothing but its own token, so that its attention branch is as small as its values.
    """
    for name in ("hidden", "w_qkv", "w_down"):
        tensors[name] *= QUIET


STEPS = (
    # pages 2, 8, 1, 1, 3, 6: the second sequence has two runs, the others one
    Step((17, 128, 1, 16, 33, 90), {3: "slot", 4: "ctx"}),
    # six pages, runs of two: three runs of one sequence
    Step((96,)),
    Step((40, 1, 5), {}, _quiet),
    Step((100, 30, 64, 2), {0: "ctx", 3: "cu_q"}),
)


def check(config: Config, seed: int) -> Check:
    """The inputs of one seed: those above, then random ones."""
    if seed < len(STEPS):
        step = STEPS[seed]
    else:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, config.max_seq + 1, rng.integers(1, 9)).tolist()
        step = Step(tuple(lengths), {0: "slot"} if len(lengths) > 2 and seed % 2 else {})
    tensors = make_inputs(config, len(step.lengths), step.lengths, seed=seed, dead_rows=step.dead)
    step.change(tensors)
    how: dict[str, Any] = harness.comparison(config, tensors)
    return Check(**how)


def power_cases(config: str) -> list[Case]:
    """The step without LM head in fp32 and in bf16."""
    return [
        Case(
            name=dtype,
            kernel=harness.kernel_for("skip"),
            check=partial(check, sized),
            options=harness.compile_options(sized, DEFAULT_PLATFORM, "skip"),
            runs=len(STEPS),
        )
        for dtype in ("fp32", "bf16")
        for sized in (replace(harness.CONFIGS[config], dtype=dtype),)
    ]
