"""A program whose kernels run on the CPU: what the emitted text means, without a GPU and a compiler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pypto_models.backend import KernelRow, Progress
from pypto_models.errors import NOWHERE, Diag, user_error

from ..gpu.arguments import bind, calls
from ..gpu.extents import evaluate
from ..gpu.manifest import Manifest
from ..gpu.module import Module
from .interpreter import Interpreted

CPU = torch.device("cpu")


class InterpretedProgram:
    """The launches of a program, one after another, each by Triton's interpreter, on tensors of the CPU.

    ``program(args)`` mutates the tensors of Out and InOut parameters.  What no kernel has written yet, of Out
    tensors and of the workspace, is poison.  ValueError for arguments that do not fit, as on a GPU.
    """

    kernels: tuple[KernelRow, ...] = ()  # none is compiled

    def __init__(self, manifest: Manifest, module: Module) -> None:
        self.manifest = manifest
        self.source = module.source
        self._interpreted = Interpreted(module.source, module.kernels)

    def __call__(self, args: Mapping[str, Any], progress: Progress | None = None) -> None:
        m = self.manifest
        bound = bind(m, args, CPU)
        tensors: dict[str, torch.Tensor] = {}
        for p in m.parameters:
            if p.kind == "tensor":
                tensors[p.name] = args[p.name].clone() if p.private else args[p.name].detach()
                if p.direction == "out":
                    poison(tensors[p.name])
        for w in m.workspaces:
            shape = [evaluate(x, bound.extents) for x in w.shape]
            tensors[w.name] = torch.empty(shape, dtype=getattr(torch, w.dtype))
            poison(tensors[w.name])
        reachable = list(tensors.values())  # a kernel may keep an address for a later one
        todo = list(calls(m, bound, tensors))
        for done, (launch, grid, values) in enumerate(todo, 1):
            self._interpreted.launch(launch.kernel, grid, values, reachable)
            if progress is not None:
                progress(done, len(todo), launch.kernel)

    def save(self, folder: Path) -> None:
        """Raises a user error: there is no machine code."""
        raise user_error(
            Diag.ARGUMENT, NOWHERE, name=str(folder), why=f"{self.manifest.name} is interpreted",
            fix="build it without interpret=True to keep it",
        )  # fmt: skip


def poison(data: torch.Tensor) -> None:
    """Fill with what no program computes by accident: NaN, or an integer that is too large for an index."""
    if data.is_floating_point() and data.itemsize > 1:
        data.fill_(torch.nan)
    else:
        data.view(torch.uint8).fill_(0x7F)
