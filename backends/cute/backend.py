"""CuTe DSL as a backend: programs are compiled anywhere and run where their GPU is."""

from __future__ import annotations

from collections.abc import Mapping

from pypto_models.ir.nodes import Function
from pypto_models.schedule import Override
from pypto_models.target import Target

from ..gpu.backend import GpuBackend
from ..gpu.module import Module
from .compiler import CuteToolchain
from .handlers import HANDLERS
from .lower import lower


class CuteBackend(GpuBackend):
    """Compiles any program for an NVIDIA GPU."""

    name = "cute"
    toolchain = CuteToolchain()
    handlers = HANDLERS

    def covers(self, target: Target) -> str | None:
        """It is for the GPUs of one vendor, whose compiler calls them ``sm_``."""
        return None if (target.arch or "").startswith("sm_") else "CuTe DSL compiles for NVIDIA GPUs"

    def lower(
        self,
        function: Function,
        target: Target,
        timing: bool = False,
        given: Mapping[str, Override] | None = None,
    ) -> Module:
        """As of :class:`.GpuBackend`."""
        return lower(function, target, timing, given)
