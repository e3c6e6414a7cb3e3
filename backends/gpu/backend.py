"""What every GPU backend does: it lowers programs, compiles them ahead of time, keeps and opens them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pypto_models.backend import Compiled, Progress, Saved
from pypto_models.errors import UserError
from pypto_models.ir.nodes import Function
from pypto_models.schedule import Override
from pypto_models.target import Target

from .bundle import Built, assemble
from .cache import fill, machine_code
from .manifest import BundleError, Manifest, digest, read_bundle
from .module import Module
from .program import GpuProgram
from .runtime import Loaded
from .toolchain import Toolchain, require


class GpuBackend(ABC):
    """Compiles any program ahead of time, and without a GPU.

    A backend is a ``toolchain``, a lowering to source for it with ``handlers`` by op, and the targets that it
    covers.
    """

    name: str
    toolchain: Toolchain
    handlers: Collection[str]
    native = True

    @abstractmethod
    def covers(self, target: Target) -> str | None:
        """Why it builds nothing for ``target``, or None."""

    def support(self, op: str) -> str:
        """Ops of regions have handlers.  A task that does nothing is no kernel: they run in program order."""
        known = op in self.handlers or op == "task_dummy"
        return "rule" if known else "unsupported: no rule of this backend covers it"

    @abstractmethod
    def lower(
        self,
        function: Function,
        target: Target,
        timing: bool = False,
        given: Mapping[str, Override] | None = None,
    ) -> Module:
        """The kernels of a function, their launches and its source.

        With ``timing`` the kernels note when they run, in a further output: see timing.py.  ``given`` fixes
        parts of the schedules of regions, by name.

        Raises UserError for an op without a lowering.
        """

    def unusable(self) -> str | None:
        """Why nothing can be compiled here; a bundle can be loaded all the same."""
        return self.toolchain.missing()

    def emit(self, compiled: Compiled) -> str:
        """The source of a program.  Needs neither a compiler nor a GPU."""
        return self._lower(compiled).source

    def build(
        self,
        compiled: Compiled,
        *,
        bundle: str | Path | None = None,
        timing: bool = False,
        progress: Progress | None = None,
    ) -> Saved:
        """Compile the kernels, or take them from the cache or from the folder ``bundle``.

        Raises:
            UserError: an op has no lowering; or something must be compiled, and there is no compiler.
            BundleError: ``bundle`` is damaged, or was not built from this program for this target.
        """
        if bundle is None:
            require(self.toolchain, f"compiling {compiled.name} for {compiled.target.name}")
            module = self._lower(compiled, timing)
            built = self.built(compiled.function, compiled.target, module, progress)
            return GpuProgram(built.manifest, built.binaries, module.source)
        manifest, binaries = read_bundle(Path(bundle))
        source = self._lower(compiled, timing).source
        _check_origin(Path(bundle), manifest, self.name, compiled, source)
        return GpuProgram(manifest, binaries, source)

    def bundle(self, compiled: Compiled, progress: Progress | None = None, **options: Any) -> Saved:
        """The compiled program, for :meth:`~.Saved.save`; options as of :meth:`build`."""
        return self.build(compiled, progress=progress, **options)

    def prepare(self, programs: Sequence[Compiled], progress: Progress | None = None) -> None:
        """Compile the kernels of several programs in one go for each architecture, into the cache."""
        if self.unusable() is not None:
            return  # ``bundle`` says so
        by_arch: dict[str, list[Module]] = {}
        for p in programs:
            try:
                found = self._lower(p)
            except UserError:
                continue  # ``bundle`` says what is wrong with it
            by_arch.setdefault(str(p.target.arch), []).append(found)
        for arch, modules in by_arch.items():
            fill(self.toolchain, modules, arch, progress)

    def open(self, folder: Path) -> Loaded:
        """The program of a bundle, on torch's current GPU."""
        return Loaded.open(folder)

    def built(
        self, function: Function, target: Target, module: Module, progress: Progress | None = None
    ) -> Built:
        """A lowered function with its machine code, compiled now or from the cache."""
        code = machine_code(self.toolchain, module, str(target.arch), progress)
        return assemble(self.toolchain, function, target, module, code)

    def _lower(self, compiled: Compiled, timing: bool = False) -> Module:
        return self.lower(compiled.function, compiled.target, timing, compiled.overrides)


def _check_origin(folder: Path, manifest: Manifest, backend: str, compiled: Compiled, source: str) -> None:
    wanted, target = compiled.name, compiled.target.name
    if (manifest.name, manifest.target) != (wanted, target):
        raise BundleError(
            f"{folder} holds {manifest.name} for {manifest.target}, not {wanted} for {target}: "
            "give its own bundle, or build one"
        )
    if manifest.backend != backend:
        raise BundleError(
            f"{folder} holds {manifest.name} by the backend {manifest.backend}, not {backend}: "
            "give its own bundle, or build one"
        )
    if digest(source.encode()) != manifest.source_sha256:
        raise BundleError(
            f"{folder} was built from another source of {manifest.name}, or other constants: build it again"
        )
