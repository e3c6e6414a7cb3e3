"""From emitted source to cubins and code objects, in a process of its own.

    python -m backends.triton.compiler FOLDER

compiles what FOLDER/request.json asks for.  Triton reads its options from the environment, some when it is
imported, and this process may have imported it to interpret kernels.  Runs where Triton is installed; no GPU
is needed.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pypto_models.backend import Progress
from pypto_models.cache import sources
from pypto_models.errors import InternalError

from ..gpu import cubin
from ..gpu.toolchain import MachineCode, Refusal, Resources, Results, Unit, require
from .binary import amd_resources, extra_pointers, waits
from .types import TYPES

GPUS: dict[str, tuple[str, int | str, int]] = {  # Triton's backend, its name of the GPU, threads of a warp
    "sm_90a": ("cuda", 90, 32), "sm_121a": ("cuda", 121, 32),
    "gfx942": ("hip", "gfx942", 64), "gfx950": ("hip", "gfx950", 64),
}  # fmt: skip
FILES = {"cuda": ("cubin", "ptx"), "hip": ("hsaco", "amdgcn")}  # Triton's names of machine code and assembly
POINTER_ALIGN = 16  # bytes, of every pointer that a kernel is given
_SCALARS = {"Int32": "i32", "Int64": "i64", "Float32": "fp32"}
_MESSAGE = 4000  # characters of a compiler's complaint that are kept, its end


class TritonToolchain:
    """Triton, for NVIDIA's and AMD's GPUs."""

    name = "triton"
    package = "triton"

    def missing(self) -> str | None:
        """Why nothing can be compiled here, or None."""
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed: pip install 'pypto-models[triton]'"
        return None

    def versions(self) -> dict[str, str]:
        """What the machine code depends on besides all that this project says."""
        return {"python": platform.python_version(), self.package: importlib.metadata.version(self.package)}

    def key_parts(self) -> dict[str, object]:
        """The device code, and the modules that compile it."""
        here = Path(__file__)
        own = [here, here.with_name("binary.py"), here.with_name("types.py"), Path(cubin.__file__)]
        return {
            "device": sources(here.with_name("device")),
            "compiler": [hashlib.sha256(path.read_bytes()).hexdigest() for path in own],
        }

    def suffix(self, arch: str) -> str:
        """Of a file of machine code.  ValueError for an architecture that this backend does not know."""
        return FILES[_gpu(arch)[0]][0]

    def compile_units(self, units: Sequence[Unit], arch: str, progress: Progress | None = None) -> Results:
        """The kernels of every unit, or what was wrong with the first that failed.  One process for all.

        A kernel is the function of that name; its parameters are of the kinds pointer:<element type>, Int32,
        Int64 and Float32, its options those of Triton's backend.  More shared memory than the GPU has is no
        error here: the resources say how much there is.

        Raises a user error where Triton is not installed, ValueError for an unknown architecture,
        InternalError if Triton itself breaks down.
        """
        require(self, f"compiling for {arch}")
        gpu = _gpu(arch)
        with tempfile.TemporaryDirectory(prefix="pypto-triton-") as name:
            folder = Path(name)
            for i, unit in enumerate(units):
                (folder / f"emitted_{i}.py").write_text(unit.source)
            wanted = [{k.name: (k.parameters, dict(k.options)) for k in u.kernels} for u in units]
            (folder / "request.json").write_text(json.dumps({"gpu": gpu, "units": wanted}))
            _run(folder, sum(map(len, wanted)), progress)
            return [_collect(folder, i, unit) for i, unit in enumerate(units)]


def _gpu(arch: str) -> tuple[str, int | str, int]:
    if arch not in GPUS:
        raise ValueError(f"the Triton backend compiles for {', '.join(GPUS)}; not for {arch}")
    return GPUS[arch]


def environment(given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """For a process that compiles: nobody's options but ours, and no files but in ``folder``.

    Without the places of source lines, which are a temporary folder's, the machine code of a source is always
    the same.
    """
    return {name: value for name, value in given.items() if not name.startswith("TRITON_")} | {
        "TRITON_DEFAULT_FP_FUSION": "1", "TRITON_DISABLE_LINE_INFO": "1",
        "TRITON_HOME": str(folder), "TRITON_CACHE_DIR": str(folder / "cache"),
    }  # fmt: skip


def _run(folder: Path, total: int, progress: Progress | None) -> None:
    command = [sys.executable, "-m", "backends.triton.compiler", str(folder)]
    log = folder / "log"
    # Its own output goes to a file: a pipe that nobody empties would stop it.
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=environment(os.environ, folder), stdout=subprocess.PIPE, stderr=errors, text=True
        )
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
        said = "\n".join(path.read_text() for path in (log, *folder.glob("*.log")))
        raise InternalError(f"the Triton process ended with status {status}:\n{said[-_MESSAGE:]}")


def _collect(folder: Path, i: int, unit: Unit) -> dict[str, MachineCode] | Refusal:
    out = {}
    for kernel in unit.kernels:
        stem = folder / f"{i}_{kernel.name}"
        error = stem.with_suffix(".error")
        if error.exists():
            return Refusal(kernel.name, error.read_text())
        about = json.loads(stem.with_suffix(".json").read_text())
        out[kernel.name] = MachineCode(
            stem.with_suffix(".binary").read_bytes(), stem.with_suffix(".text").read_text(),
            about["symbol"], Resources(**about["resources"]),
        )  # fmt: skip
    return out


# ------------------------------------------------------------------------------------- the other process
def _main(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    for i, kernels in enumerate(request["units"]):
        for name, (parameters, options) in kernels.items():
            stem = folder / f"{i}_{name}"
            log = stem.with_suffix(".log")
            try:
                with _errors_in(log):
                    kernel = getattr(_module(folder, i), name)
                    code = _compile(kernel, parameters, options, request["gpu"])
                if said := _errors(log.read_text()):  # LLVM goes on after some
                    raise ValueError(said[-1])
            except Exception as error:  # of any class: Triton's own checks, MLIR's, LLVM's or ptxas'
                stem.with_suffix(".error").write_text(_message(error, log.read_text()))
            else:
                stem.with_suffix(".binary").write_bytes(code.binary)
                stem.with_suffix(".text").write_text(code.text)
                about = {"symbol": code.symbol, "resources": asdict(code.resources)}
                stem.with_suffix(".json").write_text(json.dumps(about))
            log.unlink()
            print(f"done {name}", flush=True)


@contextmanager
def _errors_in(log: Path) -> Iterator[None]:
    """Standard error goes to a file: MLIR writes there what an exception of it leaves out."""
    kept = os.dup(2)
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _errors(log: str) -> list[str]:
    return [line for line in log.splitlines() if re.search(r"\berror: ", line)]


def _message(error: BaseException, log: str) -> str:
    """An exception with what caused it, innermost last, and the errors among what was written meanwhile."""
    said = _errors(log)
    cause: BaseException | None = error
    while cause is not None:
        said.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__
    return "\n".join(said)[-_MESSAGE:]


def _module(folder: Path, i: int) -> Any:
    name = f"emitted_{i}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


def _compile(
    kernel: Any, parameters: Sequence[tuple[str, str]], options: Mapping[str, int], gpu: Sequence[Any]
) -> MachineCode:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    target = GPUTarget(*gpu)
    known = asdict(make_backend(target).parse_options({}))
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"Triton has no option {unknown[0]} for {target.arch}; it has {', '.join(known)}")
    names = tuple(name for name, _ in parameters)
    if names != tuple(kernel.arg_names):
        raise ValueError(f"its parameters are {kernel.arg_names}, not {list(names)}")
    aligned = {
        (i,): [["tt.divisibility", POINTER_ALIGN]]
        for i, (_, kind) in enumerate(parameters)
        if kind.startswith("pointer:")
    }
    source = ASTSource(kernel, {name: _signature(kind) for name, kind in parameters}, attrs=aligned)
    compiled = triton.compile(source, target=target, options=dict(options))
    about = compiled.metadata
    if scratch := about.global_scratch_size + about.profile_scratch_size:
        raise ValueError(f"it wants {scratch} bytes of global memory for each block, which nobody gives it")
    binary, text = (compiled.asm[kind] for kind in FILES[target.backend])
    overlaps = bool(options.get("launch_pdl"))
    if overlaps and not waits(text):
        raise ValueError("it is to start before the kernels before it end, and never waits for them")
    used = cubin.resources(binary) if target.backend == "cuda" else amd_resources(text)
    resources = Resources(
        about.num_warps * target.warp_size, about.shared, used.registers, used.local_bytes,
        extra_pointers(text, len(parameters)), overlaps,
    )  # fmt: skip
    return MachineCode(binary, text, about.name, resources)


def _signature(kind: str) -> str:
    """Triton's name of a parameter's type."""
    import triton.language as tl

    if kind in _SCALARS:
        return _SCALARS[kind]
    pointer, _, name = kind.partition(":")
    if pointer != "pointer" or name not in TYPES:
        raise ValueError(f"no kernel has parameters of the kind {kind}")
    element = getattr(tl, TYPES[name].removeprefix("tl."))
    if element.is_floating():
        return f"*{element.name}"
    return f"*{'i' if element.is_int_signed() else 'u'}{element.int_bitwidth}"


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
