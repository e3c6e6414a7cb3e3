"""Everything that the tests of this folder run, as bundles: for a machine without a compiler.

    python -m tests.backends.on_gpu.prepare h200 build/gpu
    python -m tests.backends.on_gpu.prepare h200:triton build/gpu_triton

Kernels that were compiled before come from the cache.  A program that does not lower is named, and the exit
status is then 1.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.gpu.backend import GpuBackend
from backends.gpu.bundle import assemble, save
from backends.gpu.cache import Store, default_folder, kernel_key
from backends.gpu.module import Module
from backends.gpu.toolchain import MachineCode, Refusal, Results, Toolchain, Unit
from pypto_models.backend import Progress
from pypto_models.compile import lower_for
from pypto_models.errors import UserError
from pypto_models.ir.nodes import Function
from pypto_models.target import Target

from ..random_programs import Found, attempt
from .catalogue import Entry, Platform, entries, platform

LIMIT_BYTES = 48 * 2**20
RANDOM = 60
Compile = Callable[[Sequence[Unit], str, Progress | None], Results]


@dataclass(frozen=True)
class Lowered:
    """A program on its way to a bundle."""

    name: str
    function: Function
    target: Target
    module: Module


def lowered(name: str, entry: Entry) -> Lowered:
    """Raises UserError where an op has no lowering."""
    target, backend = entry.platform.target, entry.platform.backend
    found = lower_for(entry.kernel, (), target, entry.constants, schedules=entry.schedules, backend=backend)
    module = backend.lower(found.function, target, given=found.overrides)
    return Lowered(name, found.function, target, module)


def random_programs(on: Platform, count: int) -> Iterator[Lowered]:
    """The first ``count`` random programs that lower, named by their seeds."""
    found, seed = Found(), 0
    while count:
        if (got := attempt(seed, on.target, on.backend, found)) is not None:
            count -= 1
            yield Lowered(f"random/{seed}", got[0], on.target, got[1])
        seed += 1


def machine_code(
    toolchain: Toolchain,
    programs: Sequence[Lowered],
    store: Store,
    compile: Compile,
    progress: Progress | None,
) -> list[dict[str, MachineCode]]:
    """The kernels of every program, from the cache or compiled in one process.

    Raises ValueError if the compiler refuses one: what is lowered must compile.
    """
    arch = str(programs[0].target.arch)
    keys = [{k.name: kernel_key(toolchain, p.module, k, arch) for k in p.module.kernels} for p in programs]
    code = [store.read(own) for own in keys]
    wanted: set[str] = set()  # digests: a kernel of several programs is compiled once
    units, places = [], []
    for i, p in enumerate(programs):
        missing = [
            k for k in p.module.kernels if k.name not in code[i] and keys[i][k.name].digest not in wanted
        ]
        wanted |= {keys[i][k.name].digest for k in missing}
        if missing:
            units.append(Unit(p.module.source, missing))
            places.append(i)
    for i, made in zip(places, compile(units, arch, progress) if units else [], strict=True):
        if isinstance(made, Refusal):
            raise ValueError(f"{programs[i].name}: {toolchain.package} refused {made.kernel}: {made.message}")
        for name, one in made.items():
            store.write(keys[i][name], one)
    return [{**own, **store.read({n: k for n, k in named.items() if n not in own})}
            for own, named in zip(code, keys, strict=True)]  # fmt: skip


def prepare(
    backend: GpuBackend,
    folder: Path,
    programs: Sequence[Lowered],
    compile: Compile | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the bundles; the bytes that they take.

    Raises ValueError if they take more than the tests may carry.
    """
    toolchain = backend.toolchain
    store = Store(default_folder(toolchain.name))
    code = machine_code(toolchain, programs, store, compile or toolchain.compile_units, progress)
    for old in ("small", "layers", "gb10", "blocks", "random"):
        shutil.rmtree(folder / old, ignore_errors=True)
    for p, own in zip(programs, code, strict=True):
        built = assemble(toolchain, p.function, p.target, p.module, own)
        save(folder / p.name, built.manifest, built.binaries, p.module.source)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    if size > LIMIT_BYTES:
        raise ValueError(f"{folder} takes {size / 2**20:.1f} MiB, {LIMIT_BYTES / 2**20:.0f} at most")
    return size


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="prepare", description="Compile what the tests on a GPU run.")
    parser.add_argument("platform", help="the GPU of the tests and the backend, such as h200 or h200:triton")
    parser.add_argument("folder", type=Path, help="where the bundles go; what was there before is replaced")
    parser.add_argument("--random", type=int, default=RANDOM, metavar="N",
                        help="random programs (default %(default)s)")  # fmt: skip
    options = parser.parse_args(argv)
    on = platform(options.platform)
    started = last = time.monotonic()
    programs: list[Lowered] = []
    refused = 0
    for name, entry in entries(on):
        try:
            programs.append(lowered(name, entry))
        except UserError as error:
            refused += 1
            print(f"{name}: {error}", file=sys.stderr)
    programs += random_programs(on, options.random)

    def progress(done: int, total: int, label: str) -> None:
        nonlocal last
        if time.monotonic() - last >= 5 or done == total:
            last = time.monotonic()
            print(f"  compiled {done}/{total} {label}", flush=True)

    kernels = sum(len(p.module.kernels) for p in programs)
    print(f"{len(programs)} programs with {kernels} kernels for {on.name}", flush=True)
    size = prepare(on.backend, options.folder, programs, progress=progress)
    took = time.monotonic() - started
    print(f"wrote {options.folder}: {size / 2**20:.1f} MiB in {took:.0f} s, {refused} programs do not lower")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
