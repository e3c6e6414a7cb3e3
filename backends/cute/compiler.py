"""From emitted source to cubins, in a process of its own: the DSL reads its options from the environment.

    python -m backends.cute.compiler FOLDER

compiles what FOLDER/request.json asks for.  Runs where CUTLASS is installed; no GPU is needed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pypto_models.backend import Progress
from pypto_models.cache import sources
from pypto_models.errors import InternalError

from ..gpu import cubin
from ..gpu.module import KernelSource
from ..gpu.toolchain import MachineCode, Refusal, Resources, Results, Unit, require

ALIGNMENT_SLACK = 1024  # bytes that the allocator in a kernel may skip to align what it gives


class CuteToolchain:
    """CUTLASS' Python DSL."""

    name = "cute"
    package = "nvidia-cutlass-dsl"

    def missing(self) -> str | None:
        """Why nothing can be compiled here, or None."""
        if importlib.util.find_spec("cutlass") is None:
            return "CUTLASS is not installed: pip install 'pypto-models[cute]'"
        return None

    def versions(self) -> dict[str, str]:
        """Of Python, which the DSL compiles from, and of the DSL."""
        return {"python": platform.python_version(), self.package: importlib.metadata.version(self.package)}

    def key_parts(self) -> dict[str, object]:
        """The device code, and this module."""
        here = Path(__file__)
        return {
            "device": sources(here.with_name("device")),
            "compiler": hashlib.sha256(here.read_bytes()).hexdigest(),
        }

    def suffix(self, arch: str) -> str:
        """Of a file of machine code."""
        return "cubin"

    def compile_units(self, units: Sequence[Unit], arch: str, progress: Progress | None = None) -> Results:
        """The kernels of every unit, or what was wrong with the first that failed.  One process for all.

        Raises a user error where CUTLASS is not installed.
        """
        require(self, f"compiling for {arch}")
        with tempfile.TemporaryDirectory(prefix="pypto-cute-") as name:
            folder = Path(name)
            for i, unit in enumerate(units):
                (folder / f"emitted_{i}.py").write_text(unit.source)
            wanted = [{k.name: k.parameters for k in u.kernels} for u in units]
            (folder / "request.json").write_text(json.dumps(wanted))
            _run(folder, arch, sum(map(len, wanted)), progress)
            return [_collect(folder, i, unit) for i, unit in enumerate(units)]


def _run(folder: Path, arch: str, total: int, progress: Progress | None) -> None:
    env = {
        **os.environ, "CUTE_DSL_ARCH": arch, "CUTE_DSL_KEEP_PTX": "1", "CUTE_DSL_KEEP_CUBIN": "1",
        "CUTE_DSL_DUMP_DIR": str(folder),
    }  # fmt: skip
    command = [sys.executable, "-m", "backends.cute.compiler", str(folder)]
    log = folder / "log"
    # Its own output goes to a file: a pipe that nobody empties would stop it.
    with log.open("w") as errors:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        with process.stdout:
            done = 0
            for line in process.stdout:
                if line.startswith("done "):
                    done += 1
                    if progress is not None:
                        progress(done, total, line.removeprefix("done ").strip())
        status = process.wait()
    if status != 0:
        raise InternalError(f"the CuTe DSL process ended with status {status}:\n{log.read_text()[-4000:]}")


def _collect(folder: Path, i: int, unit: Unit) -> dict[str, MachineCode] | Refusal:
    out = {}
    for kernel in unit.kernels:
        stem = folder / f"{i}_{kernel.name}"
        error = stem.with_suffix(".error")
        if error.exists():
            return Refusal(kernel.name, error.read_text())
        ptx = stem.with_suffix(".ptx").read_text()
        found = re.search(r"\.visible \.entry (\w+)\(", ptx)
        if found is None:
            return Refusal(kernel.name, "its PTX has no entry")
        binary = stem.with_suffix(".cubin").read_bytes()
        out[kernel.name] = MachineCode(binary, ptx, found.group(1), _resources(kernel, binary))
    return out


def _resources(kernel: KernelSource, binary: bytes) -> Resources:
    """Threads and shared memory as the lowering says; every kernel waits by itself (order.py)."""
    used = cubin.resources(binary)
    shared = kernel.shared_bytes + ALIGNMENT_SLACK if kernel.shared_bytes else 0
    return Resources(kernel.threads, shared, used.registers, used.local_bytes, overlaps=True)


# ------------------------------------------------------------------------------------- the other process
def _main(folder: Path) -> None:
    for i, kernels in enumerate(json.loads((folder / "request.json").read_text())):
        for name, parameters in kernels.items():
            stem = folder / f"{i}_{name}"
            try:
                module = _module(folder, i)
                cubin, ptx = _compile(getattr(module, f"launch_{name}"), parameters)
            except Exception as error:  # of any class: the DSL's own checks, MLIR's or ptxas'
                stem.with_suffix(".error").write_text(f"{type(error).__name__}: {error}"[-4000:])
            else:
                stem.with_suffix(".cubin").write_bytes(cubin)
                stem.with_suffix(".ptx").write_text(ptx)
            print(f"done {name}", flush=True)


def _module(folder: Path, i: int) -> Any:
    name = f"emitted_{i}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


def _compile(launch: Any, parameters: Sequence[tuple[str, str]]) -> tuple[bytes, str]:
    import cutlass
    import cutlass.cute as cute
    from cutlass.cute.runtime import make_ptr

    from .scalars import DSL_TYPES

    def argument(kind: str) -> Any:
        if kind.startswith("pointer:"):
            element = getattr(cutlass, DSL_TYPES[kind.split(":")[1]])
            return make_ptr(element, 0, cute.AddressSpace.gmem, assumed_align=16)
        return getattr(cutlass, kind)(1)

    compiled = cute.compile(launch, *(argument(kind) for _, kind in parameters))
    return compiled.__cubin__, compiled.__ptx__


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
