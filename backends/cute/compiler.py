"""From emitted source to cubins, in a process of its own: the DSL reads its options from the environment.

    python -m backends.cute.compiler FOLDER

compiles what FOLDER/request.json asks for.  Runs where CUTLASS is installed; no GPU is needed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pypto_models.errors import NOWHERE, Diag, InternalError, user_error

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class MachineCode:
    """One compiled kernel: ``symbol`` is its name in the cubin."""

    cubin: bytes
    ptx: str
    symbol: str


@dataclass(frozen=True)
class Unit:
    """Emitted source and the parameters, (name, kind), of the kernels in it that are wanted."""

    source: str
    kernels: Mapping[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class Refusal:
    """What the DSL said to a kernel that it did not compile."""

    kernel: str
    message: str


def missing_compiler() -> str | None:
    """Why nothing can be compiled here, or None."""
    if importlib.util.find_spec("cutlass") is None:
        return "CUTLASS is not installed: pip install 'pypto-models[cute]'"
    return None


def compile_source(
    source: str, kernels: Mapping[str, Sequence[tuple[str, str]]], arch: str, progress: Progress | None = None
) -> dict[str, MachineCode]:
    """Every kernel of ``kernels`` in ``source``.

    Raises InternalError if the DSL refuses one: what is lowered must compile.
    """
    (out,) = compile_units([Unit(source, kernels)], arch, progress)
    if isinstance(out, Refusal):
        raise InternalError(f"CuTe DSL refused {out.kernel}, which this backend emitted:\n{out.message}")
    return out


def compile_units(
    units: Sequence[Unit], arch: str, progress: Progress | None = None
) -> list[dict[str, MachineCode] | Refusal]:
    """The kernels of every unit, or what was wrong with the first that failed.  One process for all."""
    if missing_compiler() is not None:
        what = f"compiling for {arch}"
        raise user_error(Diag.MISSING_EXTRA, NOWHERE, what=what, package="nvidia-cutlass-dsl", extra="cute")
    with tempfile.TemporaryDirectory(prefix="pypto-cute-") as name:
        folder = Path(name)
        for i, unit in enumerate(units):
            (folder / f"emitted_{i}.py").write_text(unit.source)
        (folder / "request.json").write_text(json.dumps([dict(u.kernels) for u in units]))
        _run(folder, arch, sum(len(u.kernels) for u in units), progress)
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
        stem = folder / f"{i}_{kernel}"
        error = stem.with_suffix(".error")
        if error.exists():
            return Refusal(kernel, error.read_text())
        ptx = stem.with_suffix(".ptx").read_text()
        found = re.search(r"\.visible \.entry (\w+)\(", ptx)
        if found is None:
            return Refusal(kernel, "its PTX has no entry")
        out[kernel] = MachineCode(stem.with_suffix(".cubin").read_bytes(), ptx, found.group(1))
    return out


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
