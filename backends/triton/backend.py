"""Triton as a backend: NVIDIA's and AMD's GPUs, compiled for anywhere; or interpreted on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pypto_models.backend import Compiled, Progress, Saved
from pypto_models.errors import NOWHERE, Diag, user_error
from pypto_models.ir.nodes import Function
from pypto_models.schedule import Contraction, Override, Schedule
from pypto_models.target import Target

from ..gpu.backend import GpuBackend
from ..gpu.bundle import without_code
from ..gpu.module import Module
from ..gpu.toolchain import require
from .compiler import GPUS, TritonToolchain
from .forms import ranked
from .handlers import HANDLERS
from .interpreted import InterpretedProgram
from .interpreter import why_not
from .lower import lower


class TritonBackend(GpuBackend):
    """Compiles any program for a GPU that Triton knows."""

    name = "triton"
    toolchain = TritonToolchain()
    handlers = HANDLERS

    def covers(self, target: Target) -> str | None:
        """It is for GPUs, by what their compilers call them."""
        return None if target.arch in GPUS else f"Triton compiles for {', '.join(GPUS)}"

    def lower(
        self,
        function: Function,
        target: Target,
        timing: bool = False,
        given: Mapping[str, Override] | None = None,
    ) -> Module:
        """As of :class:`.GpuBackend`."""
        return lower(function, target, timing, given)

    def schedules(self, region: str, line: int, found: Contraction, target: Target) -> list[Schedule]:
        """Of the forms of a product (forms.py), the best first."""
        return [form.schedule for form in ranked(found, target, region, line)]

    def build(
        self,
        compiled: Compiled,
        *,
        bundle: str | Path | None = None,
        timing: bool = False,
        progress: Progress | None = None,
        interpret: bool = False,
    ) -> Saved:
        """As of :class:`.GpuBackend`; with ``interpret`` an :class:`.InterpretedProgram`.

        Interpreting takes Triton, and TRITON_INTERPRET=1 in the environment of the process; a user error says
        so.  It is for neither bundles nor times.
        """
        if not interpret:
            return super().build(compiled, bundle=bundle, timing=timing, progress=progress)
        require(self.toolchain, f"interpreting {compiled.name}")
        if bundle is not None or timing:
            other = "timing" if bundle is None else "bundle"
            raise user_error(
                Diag.ARGUMENT, NOWHERE, name="interpret", why=f"it does not go together with {other}",
                fix=f"leave {other} out",
            )  # fmt: skip
        if (why := why_not()) is not None:
            raise user_error(
                Diag.ARGUMENT, NOWHERE, name="interpret", why=why,
                fix="or compile it: leave interpret out",
            )  # fmt: skip
        module = self._lower(compiled)
        manifest = without_code(self.toolchain, compiled.function, compiled.target, module)
        return InterpretedProgram(manifest, module)
