"""A decode step of one kind of layer as data, and the comparison that follows from it.

    LAYER = LayerKind(model="qwen3_14b", name="full", kernel=decode_layer, golden=reference.golden, ...)
    program = LAYER.compile(TINY, "a2a3sim")
    result = LAYER.check(TINY, make_inputs(TINY, batch=4), program)

Models fill in the table; `frontdoor.py` makes the command line of it, and `power.py` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from golden import Comparator, RunResult, TensorSpec, allclose, on_rows, rounding_bound, run
from golden import Program as Runnable
from models.common.config import DecoderConfig
from models.common.step_bytes import StepBytes, step_bytes
from models.common.step_inputs import LmHead
from pypto_models.compile import Program, compile, resolve_platform, tiling_name
from pypto_models.language import Kernel

Tensors = dict[str, Tensor]

FP32_TOLERANCE = 1e-5  # max abs, against the fp32 evaluation of the same equations


@dataclass(frozen=True, eq=False)
class LayerKind:
    """Everything that sets a decode step of one layer kind apart.

    Args:
        model: name of the model's package.
        title: what the step is called on the screen.
        name: of the layer kind, such as `"full"`.
        configs: the model's sizes by name.
        kernel: the step without the LM head.
        kernel_with_head: the same with it.
        constants: `(config, tiling, *, rows, span, head_rows)` -> constants of either kernel.
        make_inputs: `(config, batch, context, *, tokens, span, seed, lm_head, dead_rows)` -> tensors by name.
        golden: evaluates a step in place, in the model's element type.
        exact: evaluates it in fp64, into tensors of its own.
        outputs: tensors that a step overwrites.
        written: for every cache and state the function of `(tensors, config)` that gives the computed rows.
        head_chunk: rows of the LM head in a step with one chunk of it.
    """

    model: str
    title: str
    name: str
    configs: Mapping[str, Any]
    kernel: Kernel
    kernel_with_head: Kernel
    constants: Callable[..., dict[str, Any]]
    make_inputs: Callable[..., Tensors]
    golden: Callable[..., None]
    exact: Callable[..., Tensors]
    outputs: tuple[str, ...]
    written: Mapping[str, Callable[[Mapping[str, Tensor], Any], Tensor]]
    head_chunk: int

    @property
    def mutated(self) -> tuple[str, ...]:
        """Tensors that a step may change."""
        return (*self.outputs, *self.written)

    def kernel_for(self, lm_head: LmHead) -> Kernel:
        """The entry kernel of a step with or without the LM head."""
        return self.kernel if lm_head == "skip" else self.kernel_with_head

    def compile_options(
        self, config: DecoderConfig, platform: str, lm_head: LmHead, *, rows: int | None = None, span: int = 1
    ) -> dict[str, Any]:
        """Keywords of `pypto_models.compile.compile`, for at most `rows` rows (default: max_batch)."""
        head_rows = {"skip": None, "single": self.head_chunk, "full": config.vocab_padded}[lm_head]
        tiling = tiling_name(*resolve_platform(platform))
        values = self.constants(config, tiling, rows=rows, span=span, head_rows=head_rows)
        return {"constants": values}

    def compile(
        self,
        config: DecoderConfig,
        platform: str,
        lm_head: LmHead = "skip",
        *,
        rows: int | None = None,
        span: int = 1,
        **options: Any,
    ) -> Program:
        """The step as a program, for at most `rows` rows (default: max_batch), `span` of one sequence.

        `options` are further keywords of `pypto_models.compile.compile`.
        """
        own = self.compile_options(config, platform, lm_head, rows=rows, span=span)
        return compile(self.kernel_for(lm_head), platform=platform, **own, **options)

    def check(self, config: DecoderConfig, tensors: Mapping[str, Tensor], program: Runnable) -> RunResult:
        """Run a step on `tensors` (as made by `make_inputs`) and compare all that it may change.

        In bf16 a tensor passes if its distance from the fp64 evaluation is at most 2 times (maximum) and
        1.25 times (RMS) that of torch's bf16 evaluation; in fp32, if it is within 1e-5 of torch's.  Of the
        caches and states, this holds for the rows that the step computes; no other row may change by a bit.
        """
        how = self.comparison(config, tensors, [p.name for p in program.params])
        return run(program, how.pop("specs"), **how)

    def bytes_of(
        self, config: DecoderConfig, tensors: Mapping[str, Tensor], lm_head: LmHead = "skip"
    ) -> StepBytes:
        """What a step on `tensors` must move."""
        return step_bytes(tensors, names_of(self.kernel_for(lm_head)), self.mutated, config)

    def comparison(
        self, config: DecoderConfig, tensors: Mapping[str, Tensor], names: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """What `golden` needs to compare a step on `tensors`: specs, golden, comparators, tolerances.

        `names` are the parameters of the kernel; by default those of the step without its LM head.
        """
        names = names_of(self.kernel) if names is None else names
        exact: Tensors = {}

        def golden(values: dict[str, Any]) -> None:
            exact.update(self.exact(values, config))
            self.golden(values, config)

        return {
            "specs": [self._spec(name, tensors[name]) for name in names],
            "golden_fn": golden,
            "compare_fn": self._comparators(config, tensors, names, exact),
            "rtol": 0.0,
            "atol": FP32_TOLERANCE,
        }

    def _spec(self, name: str, tensor: Tensor) -> TensorSpec:
        output = name in self.outputs
        return TensorSpec(name, tuple(tensor.shape), tensor.dtype, None if output else tensor, output)

    def _comparators(
        self,
        config: DecoderConfig,
        tensors: Mapping[str, Tensor],
        names: Sequence[str],
        exact: Mapping[str, Tensor],
    ) -> dict[str, Comparator]:
        """One for each tensor that a step changes; `exact` is filled when the golden has run."""

        def near(name: str, only: Tensor | slice = slice(None)) -> Comparator:
            return allclose if config.dtype == "fp32" else rounding_bound(lambda: exact[name][only])

        found = {name: near(name) for name in self.outputs if name in names}
        for name, rows_of in self.written.items():
            rows = rows_of(tensors, config)
            found[name] = on_rows(rows, near(name, rows))
        return found


def names_of(kernel: Kernel) -> list[str]:
    """Names of the parameters of a kernel."""
    return [p.arg for p in kernel.node.args.args]
