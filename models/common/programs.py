"""The programs of a whole decode step: one for each kind of layer and one for each end, compiled on demand.

A program holds for all steps of up to ROWS rows in which a sequence has up to SPAN of them; weights are
arguments, so that 64 layers are 64 launches of two programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from models.common.checkpoint import Checkpoint, Progress
from models.common.config import DecoderConfig
from models.common.step import embed_step, head_step
from models.common.tiling import tile_rows
from pypto_models.compile import DEFAULT_PLATFORM, Program, compile, resolve_platform, tiling_name
from pypto_models.language import Kernel
from pypto_models.language.parameters import constant_names

EMBED, HEAD = "embed", "head"
"""The ends of a step, by the names that `StepPrograms.program` takes besides the kinds of layers."""


class Checkpoints(Protocol):
    """How the checkpoints of a model are read: `models/*/weights.py`."""

    @property
    def MODEL_TYPES(self) -> tuple[str, ...]: ...

    def config_of(self, directory: str | Path, *, page: int, max_batch: int, max_seq: int) -> Any: ...

    def open_weights(self, directory: str | Path, config: Any, progress: Progress | None) -> Checkpoint: ...

    def layer_weights(self, checkpoint: Checkpoint, config: Any, layer: int) -> dict[str, Tensor]: ...

    def head_weights(self, checkpoint: Checkpoint, config: Any) -> dict[str, Tensor]: ...


@dataclass(frozen=True, eq=False)
class DecoderModel:
    """What sets the decode step of one model apart.

    Args:
        name: of the model's package.
        layers: kind of layer -> entry kernel, from `hidden` to `next_hidden`.
        constants: `(config, target, *, rows, span, head_rows)` -> constants of all its kernels together.
        checkpoints: the module that reads its checkpoints.
    """

    name: str
    layers: Mapping[str, Kernel]
    constants: Callable[..., dict[str, Any]]
    checkpoints: Checkpoints

    @property
    def kernels(self) -> dict[str, Kernel]:
        """All kernels of a step, the ends included, by name."""
        return {EMBED: embed_step, **self.layers, HEAD: head_step}

    def kernel_constants(
        self, name: str, config: DecoderConfig, target: str, rows: int, span: int
    ) -> dict[str, Any]:
        """The constants of one kernel, for steps of up to `rows` rows, `span` of one sequence.

        `target` names the tiling file, as `tiling_name` does.  `constants` gives those of all kernels; a
        kernel is handed the ones that it reads.
        """
        values = self.constants(config, target, rows=rows, span=span, head_rows=config.vocab_padded)
        values["VOCAB"] = config.vocab
        read = constant_names(self.kernels[name])
        return {key: value for key, value in values.items() if key in read}


@dataclass
class StepPrograms:
    """The programs of `model` at the sizes of `config`, each compiled when it is first asked for."""

    model: DecoderModel
    config: DecoderConfig
    platform: str = DEFAULT_PLATFORM
    _made: dict[tuple[str, int, int], Program] = field(default_factory=dict, repr=False)

    @property
    def made(self) -> tuple[tuple[str, int, int], ...]:
        """What was compiled: name, tile rows and span."""
        return tuple(self._made)

    def program(self, name: str, rows: int, span: int) -> Program:
        """Kernel `name` for a step of `rows` rows, at most `span` of them in one sequence.

        Raises:
            ValueError: if there is no tile for so many rows.
            UserError: if the platform is unknown, or the kernel does not fit it.
        """
        key = name, tile_rows(rows), span
        if key not in self._made:
            tiling = tiling_name(*resolve_platform(self.platform))
            constants = self.model.kernel_constants(name, self.config, tiling, key[1], span)
            kernel = self.model.kernels[name]
            self._made[key] = compile(kernel, platform=self.platform, constants=constants)
        return self._made[key]
