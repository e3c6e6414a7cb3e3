"""CuTe DSL as a backend: programs are compiled anywhere and run where their GPU is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pypto_models.backend import Compiled, KernelRow, Progress
from pypto_models.errors import NOWHERE, Diag, UserError, user_error

from . import bundle as bundles
from .cache import fill
from .compiler import missing_compiler
from .lower import lower
from .manifest import BundleError, Manifest, check_arch, digest, read_bundle
from .module import Module
from .runtime import Loaded, no_device


class CuteProgram:
    """Compiled kernels: ``program(args)`` launches them on torch's current GPU, ``save`` keeps them.

    Calling it raises :class:`.runtime.NoDevice` where there is none.
    """

    device = "cuda"

    def __init__(self, manifest: Manifest, cubins: dict[str, bytes], source: str) -> None:
        self.manifest = manifest
        self.cubins = cubins
        self.source = source
        self._loaded: dict[int, Loaded] = {}

    def __call__(self, args: Mapping[str, Any], progress: Progress | None = None) -> None:
        self.load()(args, progress)

    def cannot_run(self) -> str | None:
        """Why this machine has no device for it, or None."""
        import torch

        if (why := no_device()) is not None:
            return why
        try:
            check_arch(self.manifest, torch.cuda.get_device_capability())
        except BundleError as error:
            return str(error)
        return None

    def load(self) -> Loaded:
        """The program on torch's current GPU, loaded the first time that it is asked for."""
        import torch

        where = torch.cuda.current_device() if torch.cuda.is_available() else -1
        if where not in self._loaded:
            self._loaded[where] = Loaded(self.manifest, self.cubins)
        return self._loaded[where]

    def save(self, folder: Path) -> None:
        """Write the bundle: cubins, kernels.py, manifest.json.  ``Loaded.open(folder)`` reads it."""
        bundles.save(folder, self.manifest, self.cubins, self.source)

    @property
    def kernels(self) -> tuple[KernelRow, ...]:
        return tuple(
            KernelRow(
                k.name, k.region, k.line, k.how, k.threads, k.shared_bytes, k.registers, k.local_bytes,
                len(self.cubins[k.name]),
            )
            for k in self.manifest.kernels
        )  # fmt: skip


class CuteBackend:
    """Compiles any program for an NVIDIA GPU, ahead of time and without one."""

    name = "cute"
    kinds: tuple[str, ...] = ("gpu",)
    default_for: str | None = "gpu"  # the platform h200 is the target h200 and this backend

    def unusable(self) -> str | None:
        """Why nothing can be compiled here; a bundle can be loaded all the same."""
        return missing_compiler()

    def emit(self, compiled: Compiled) -> str:
        """The CuTe DSL source of a program.  Needs neither CUTLASS nor a GPU."""
        return lower(compiled.function, compiled.target, given=compiled.overrides).source

    def build(
        self,
        compiled: Compiled,
        *,
        bundle: str | Path | None = None,
        timing: bool = False,
        progress: Progress | None = None,
    ) -> CuteProgram:
        """Compile the kernels, or take them from the cache or from the folder ``bundle``.

        With ``timing`` the kernels note when they run, in a further output: see timing.py.

        Raises:
            UserError: an op has no lowering; or CUTLASS is not installed and something must be compiled.
            BundleError: ``bundle`` is damaged, or was not built from this program for this target.
        """
        if bundle is None:
            if self.unusable() is not None:
                what = f"compiling {compiled.name} for {compiled.target.name}"
                raise user_error(
                    Diag.MISSING_EXTRA, NOWHERE, what=what, package="nvidia-cutlass-dsl", extra=self.name
                )
            manifest, cubins, module = bundles.build(
                compiled.function, compiled.target, progress, timing, compiled.overrides
            )
            return CuteProgram(manifest, cubins, module.source)
        manifest, cubins = read_bundle(Path(bundle))
        source = lower(compiled.function, compiled.target, timing, compiled.overrides).source
        _check_origin(Path(bundle), manifest, compiled, source)
        return CuteProgram(manifest, cubins, source)

    def bundle(
        self, compiled: Compiled, progress: Progress | None = None, **options: Any
    ) -> CuteProgram:
        """The compiled program, for :meth:`CuteProgram.save`; options as of :meth:`build`."""
        return self.build(compiled, progress=progress, **options)


    def prepare(self, programs: Sequence[Compiled], progress: Progress | None = None) -> None:
        """Compile the kernels of several programs for one target in one process, into the cache."""
        by_arch: dict[str, list[Module]] = {}
        for p in programs:
            try:
                found = lower(p.function, p.target, given=p.overrides)
            except UserError:
                continue  # ``bundle`` says what is wrong with it
            by_arch.setdefault(str(p.target.arch), []).append(found)
        for arch, modules in by_arch.items():
            fill(modules, arch, progress)

    def open(self, folder: Path) -> Loaded:
        """The program of a bundle, on torch's current GPU."""
        return Loaded.open(folder)


def _check_origin(folder: Path, manifest: Manifest, compiled: Compiled, source: str) -> None:
    wanted = (compiled.name, compiled.target.name)
    if (manifest.name, manifest.target) != wanted:
        raise BundleError(
            f"{folder} holds {manifest.name} for {manifest.target}, not {wanted[0]} for {wanted[1]}: "
            "give its own bundle, or build one"
        )
    if digest(source.encode()) != manifest.source_sha256:
        raise BundleError(
            f"{folder} was built from another source of {manifest.name}, or other constants: build it again"
        )
