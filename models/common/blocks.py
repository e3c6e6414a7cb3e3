"""What a block is compared with, and what its power is measured on.

Alone, a block is given inputs that its neighbours would never make, and nothing behind it hides what it does.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from golden import Comparator, TensorSpec, allclose, on_rows, ratio_allclose, rounding_bound
from golden.power import Case, Check
from models.common.config import DecoderConfig
from models.common.equations import Precision
from models.common.harness import FP32_TOLERANCE, names_of
from models.common.power import QUIET, Power
from pypto_models.compile import DEFAULT_PLATFORM, resolve_platform
from pypto_models.language import Kernel
from pypto_models.language.parameters import constant_names

Tensors = dict[str, Tensor]
Golden = Callable[[Tensors, Any, Precision], None]
"""Evaluates a block in place; it may use all tensors of the inputs."""

Inputs = Callable[[Power, Any, int], Tensors]
"""The tensors of a seed, those to be overwritten included."""


@dataclass(frozen=True)
class Block:
    """A block of a layer as a kernel of its own, with its golden and its inputs.

    Args:
        kernel: the kernel.
        golden: what it computes.
        inputs: of one seed.
        runs: sets of inputs, beginning with seed 0.
        rows: for a tensor of which it writes a few rows, the function of `(tensors, config)` that gives them.
        constants: values of its own, such as tiles small enough for several of them.
        tolerance: of the tensors that are fp32, max abs.
        derived: fp32 tensors computed from rounded values; in bf16 as large a part of them may differ.
        differing: the part that may differ in bf16, where both round at the same places: sums are taken in
            another order.
        in_pieces: whether kernel and golden round at different places on the inputs of a seed, so that only a
            bound on the distance from fp64 holds.
    """

    kernel: Kernel
    golden: Golden
    inputs: Inputs
    runs: int
    rows: Mapping[str, Callable[[Tensors, Any], Tensor]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = FP32_TOLERANCE
    derived: tuple[str, ...] = ()
    differing: float = 0.01
    in_pieces: Callable[[Power, int], bool] = lambda power, seed: False

    def check(
        self, power: Power, config: DecoderConfig, seed: int, shared_out: bool = False
    ) -> Check:
        """The comparison of one seed.

        ``shared_out``: the backend takes parts of a loop side by side, so that what is computed in pieces on
        some seed is on all.
        """
        tensors = self.inputs(power, config, seed)
        rows = {name: rows_of(tensors, config) for name, rows_of in self.rows.items()}
        names, outputs = names_of(self.kernel), written(self.kernel)
        compared = [n for n in names if n in outputs | changed(self.kernel)]
        others = {name: t for name, t in tensors.items() if name not in names}
        rounded = torch.bfloat16 if config.dtype == "bf16" else None
        seeds = range(self.runs) if shared_out else (seed,)
        bounded = rounded is not None and any(self.in_pieces(power, s) for s in seeds)
        precision = Precision(torch.float32, rounded, round_weights=rounded is not None and not bounded)

        def evaluate(values: dict[str, Any]) -> None:
            self.golden({**others, **values}, config, precision)

        if bounded:
            exact = tensors | {name: tensors[name].double() for name in compared}
            self.golden(exact, config, Precision(torch.float64))
            near = {name: rounding_bound(exact[name][rows.get(name, slice(None))]) for name in compared}
        else:
            near = {name: self._alike(name, tensors[name], config) for name in compared}
        near |= {name: on_rows(some, near[name]) for name, some in rows.items()}
        specs = [
            TensorSpec(n, tuple(t.shape), t.dtype, None if n in outputs else t, n in outputs)
            for n, t in ((n, tensors[n]) for n in names)
        ]
        return Check(specs, evaluate, near, rtol=0.0, atol=self.tolerance)

    def _alike(self, name: str, tensor: Tensor, config: DecoderConfig) -> Comparator:
        if name in self.derived and config.dtype == "bf16":
            return ratio_allclose(self.tolerance, 0.0, self.differing, max_outlier=2.0**-6)
        if tensor.dtype is not torch.bfloat16:
            return allclose
        return ratio_allclose(0.0, 0.0, self.differing, max_outlier=2.0**-6)


def _direction(kernel: Kernel, kind: str) -> set[str]:
    types = {p.arg: ast.unparse(p.annotation) for p in kernel.node.args.args if p.annotation is not None}
    return {name for name, text in types.items() if text.startswith(f"pl.{kind}[")}


def written(kernel: Kernel) -> set[str]:
    """The pure outputs: ``pl.Out`` parameters."""
    return _direction(kernel, "Out")


def changed(kernel: Kernel) -> set[str]:
    """The parameters that a kernel may change in part: ``pl.InOut``."""
    return _direction(kernel, "InOut")


def block_cases(power: Power, config: str, blocks: Sequence[Block]) -> list[Case]:
    """Every block in fp32 and in bf16."""
    target, _ = resolve_platform(DEFAULT_PLATFORM)
    kind = power.kind
    cases = []
    for dtype in ("fp32", "bf16"):
        sizes = replace(kind.configs[config], dtype=dtype)
        values = kind.constants(sizes, target.name, span=power.span, head_rows=kind.head_chunk)
        for block in blocks:
            read, given = constant_names(block.kernel), {**values, **power.constants, **block.constants}
            options = {"constants": {name: v for name, v in given.items() if name in read}}
            check = partial(block.check, power, sizes)
            case = Case(dtype, block.kernel, check, options, block.runs, power.reasons, power.variant)
            cases.append(case)
    return cases


# ------------------------------------------------------------------------------------------------- inputs
DENSE_RUNS = 2
"""Sets of inputs of a block that knows no sequences."""


def random(shape: Sequence[int], dtype: torch.dtype, seed: int, scale: Tensor | float = 1.0) -> Tensor:
    """Normal values; `scale` multiplies them before they are rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(tuple(shape), generator=generator) * scale).to(dtype)


def dense(
    widths: Mapping[str, int], *, fp32: Sequence[str] = (), small_rows: bool = False, scale: float = 1.0
) -> Inputs:
    """Activations of these widths for any number of rows, with all weights of a step.

    With `small_rows` the last rows are as small as the epsilon of a norm.  The tensors in `fp32` are fp32
    whatever the model's type is.  Values are normal, times `scale`.
    """

    def inputs(power: Power, c: DecoderConfig, seed: int) -> Tensors:
        rows = (5, 16)[seed] if seed < DENSE_RUNS else 1 + seed * 7 % c.max_batch
        tensors = power.kind.make_inputs(c, 1, 1, seed=seed, lm_head="single")
        by_row = torch.linspace(1.0, QUIET, rows)[:, None] if small_rows else torch.ones(1)
        for i, (name, width) in enumerate(widths.items()):
            dtype = torch.float32 if name in fp32 else c.torch_dtype
            tensors[name] = random((rows, width), dtype, 1000 * seed + i, scale * by_row)
        return tensors

    return inputs
