"""A compiled program: kernels that can be kept in a folder, and launched where their GPU is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pypto_models.backend import KernelRow, Progress

from .bundle import save
from .driver import driver_for
from .manifest import BundleError, Manifest, check_arch
from .runtime import Loaded, no_device


class GpuProgram:
    """Compiled kernels: ``program(args)`` launches them on torch's current GPU, ``save`` keeps them.

    Calling it raises :class:`.runtime.NoDevice` where there is none.
    """

    device = "cuda"  # torch's name for AMD GPUs, too

    def __init__(self, manifest: Manifest, binaries: Mapping[str, bytes], source: str) -> None:
        self.manifest = manifest
        self.binaries = binaries
        self.source = source
        self._loaded: dict[int, Loaded] = {}

    def __call__(self, args: Mapping[str, Any], progress: Progress | None = None) -> None:
        self.load()(args, progress)

    def cannot_run(self) -> str | None:
        """Why this machine has no device for it, or None."""
        arch = self.manifest.arch
        if (why := no_device(arch)) is not None:
            return why
        try:
            check_arch(self.manifest, driver_for(arch).gpu(torch.device("cuda")))
        except BundleError as error:
            return str(error)
        return None

    def load(self) -> Loaded:
        """The program on torch's current GPU, loaded the first time that it is asked for."""
        where = torch.cuda.current_device() if torch.cuda.is_available() else -1
        if where not in self._loaded:
            self._loaded[where] = Loaded(self.manifest, self.binaries)
        return self._loaded[where]

    def save(self, folder: Path) -> None:
        """Write the bundle: machine code, kernels.py, manifest.json.  ``Loaded.open(folder)`` reads it."""
        save(folder, self.manifest, self.binaries, self.source)

    @property
    def kernels(self) -> tuple[KernelRow, ...]:
        return tuple(
            KernelRow(
                k.name, k.region, k.line, k.how, k.threads, k.shared_bytes, k.registers, k.local_bytes,
                len(self.binaries[k.name]),
            )
            for k in self.manifest.kernels
        )  # fmt: skip
