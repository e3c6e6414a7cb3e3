"""Programs as these tests run them: from bundles or compiled here, twice, or replayed as a graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backends.gpu.driver import CudaDriver, HipDriver
from backends.gpu.manifest import BundleError, digest, read_bundle
from backends.gpu.program import GpuProgram
from golden.memory import bits
from golden.program import Param, Program
from pypto_models.compile import Program as Compiled
from pypto_models.compile import lower_for
from pypto_models.errors import UserError
from pypto_models.target import known_targets, load_target

from .catalogue import Entry, Platform, platform

VARIABLE = "PYPTO_MODELS_BUNDLES"
BACKEND_VARIABLE = "PYPTO_MODELS_BACKEND"


def bundle_folder() -> Path | None:
    """The folder that ``prepare`` has filled, or None: then programs are compiled here."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else None


@cache
def gpu_platform(folder: Path | None) -> Platform:
    """The target whose code torch's GPU runs, and the backend of the bundles in ``folder``.

    Without a folder the backend is $PYPTO_MODELS_BACKEND, by default the target's own.  LookupError where no
    target is for the GPU, or the backend does not cover it.
    """
    gpu = (CudaDriver if torch.version.hip is None else HipDriver).gpu(torch.device("cuda"))
    names = [t.name for t in map(load_target, known_targets()) if str(t.arch).removesuffix("a") == gpu]
    if not names:
        raise LookupError(f"no target is for {gpu}")
    given = os.environ.get(BACKEND_VARIABLE) if folder is None else bundled_backend(folder)
    try:
        return platform(names[0] if given is None else f"{names[0]}:{given}")
    except (UserError, ValueError) as error:
        raise LookupError(str(error)) from error


def bundled_backend(folder: Path) -> str:
    """Which backend the bundles of ``prepare`` are by.  Raises BundleError if there are none."""
    manifest, _ = read_bundle(folder / "small" / "twice")
    return manifest.backend


def this_platform() -> Platform:
    """The platform of a test, which is skipped where nothing can be run."""
    folder = bundle_folder()
    try:
        on = gpu_platform(folder)
    except LookupError as error:
        pytest.skip(str(error))
    if folder is None and (why := on.backend.unusable()) is not None:
        pytest.skip(f"{why}; or name a folder of bundles: {VARIABLE}")
    return on


def load(name: str, entry: Entry, folder: Path | None = None) -> Compiled:
    """The program of an entry: its bundle below ``folder``, or compiled now where there is no folder.

    Raises BundleError for a bundle that is missing, damaged, or of other sources than these.
    """
    target, backend = entry.platform.target, entry.platform.backend
    given = entry.schedules
    compiled = lower_for(entry.kernel, (), target, entry.constants, schedules=given, backend=backend)
    if folder is None:
        return Compiled(compiled, backend.build(compiled))
    source = backend.emit(compiled)
    manifest, binaries = read_bundle(folder / name)
    if (manifest.source_sha256, manifest.arch) != (digest(source.encode()), target.arch):
        raise BundleError(
            f"{folder / name} was not built from these sources for {target.arch}: run "
            "python -m tests.backends.on_gpu.prepare again"
        )
    return Compiled(compiled, GpuProgram(manifest, binaries, source))


_LOADED: dict[str, Compiled] = {}


def program_of(name: str, make: Callable[[Platform], Entry]) -> Compiled:
    """The program of an entry for this GPU, loaded once."""
    if name not in _LOADED:
        _LOADED[name] = load(name, make(this_platform()), bundle_folder())
    return _LOADED[name]


# ------------------------------------------------------------------------------------------- ways to run one
@dataclass
class Both:
    """Two programs as one: both run from the same arguments, and leave the same bits or it is an error."""

    first: Program
    second: Program
    device: str = "cuda"
    warnings: tuple[str, ...] = ()

    @property
    def params(self) -> tuple[Param, ...]:
        return tuple(self.first.params)

    @property
    def written(self) -> frozenset[str]:
        return frozenset(self.first.written)

    def __call__(self, *args: Any) -> None:
        names, written = [p.name for p in self.params], self.written
        again = [a.clone() if n in written else a for n, a in zip(names, args, strict=True)]
        self.first(*args)
        self.second(*again)
        for name, a, b in zip(names, args, again, strict=True):
            if isinstance(a, Tensor) and not torch.equal(bits(a), bits(b)):
                place = int((bits(a) != bits(b)).int().argmax())
                raise AssertionError(f"{name} differs between two runs, first at element {place}")


def twice(program: Program, device: str = "cuda") -> Both:
    """The program, which must do the same bit for bit a second time."""
    return Both(program, program, device)


def cuda_graph(call: Callable[[], object]) -> Callable[[], None]:
    """A call as a graph; the result replays it."""
    call()  # what is loaded late is loaded before
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Callable[[], None] = graph.replay
    return replay


@dataclass
class Replayed:
    """A program as one graph, captured in the first call over buffers of its own.

    A call writes its arguments into the buffers and replays: the graph knows only their shapes.
    """

    program: Program
    capture: Callable[[Callable[[], object]], Callable[[], None]] = cuda_graph
    device: str = "cuda"
    buffers: list[Tensor] = field(default_factory=list)
    replay: Callable[[], None] | None = None
    replays: int = 0

    @property
    def params(self) -> tuple[Param, ...]:
        return tuple(self.program.params)

    @property
    def written(self) -> frozenset[str]:
        return frozenset(self.program.written)

    @property
    def warnings(self) -> tuple[str, ...]:
        return ()

    def __call__(self, *args: Tensor) -> None:
        if self.replay is None:
            self.buffers = [a.clone() for a in args]
            self.replay = self.capture(lambda: self.program(*self.buffers))
        for buffer, a in zip(self.buffers, args, strict=True):
            assert buffer.shape == a.shape
            buffer.copy_(a)
        self.replay()
        self.replays += 1
        written = self.written
        for p, buffer, a in zip(self.params, self.buffers, args, strict=True):
            if p.name in written:
                a.copy_(buffer)


def options(check: Any) -> Mapping[str, Any]:
    """What golden.run takes of a check, besides its specs."""
    return {
        "golden_fn": check.golden_fn, "compare_fn": check.compare_fn, "rtol": check.rtol, "atol": check.atol,
    }  # fmt: skip
