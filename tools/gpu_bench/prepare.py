"""All bundles of the bench, made on a machine with CUTLASS:

    python -m tools.gpu_bench.prepare h200 build/bench [--only NAME...] [--config tiny]

Every program of the catalogue, and every layer once more as a timing build.  Kernels that were compiled
before come from the cache.
"""

from __future__ import annotations

import argparse
import fnmatch
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pypto_models.compile import compile, resolve_platform, schedule_overrides, tiling_name
from pypto_models.errors import UserError
from tools.gpu_bench.catalogue import ENTRIES, LAYERS, Entry

LIMIT_BYTES = 48 * 2**20
TIMING = "timing"


def wanted(only: Sequence[str] = ()) -> Iterator[tuple[str, Entry, bool]]:
    """Folder, program and whether it is a timing build, of those that one of the patterns `only` names."""
    for name, entry in ENTRIES.items():
        for timing in (False, True) if name in LAYERS else (False,):
            folder = f"{name}/{TIMING}" if timing else name
            if not only or any(fnmatch.fnmatch(folder, p) for p in only):
                yield folder.replace("/", "-"), entry, timing


def prepare(
    platform: str,
    folder: Path,
    size: str = "full",
    only: Sequence[str] = (),
    say: Callable[[str], Any] = print,
) -> int:
    """Write the bundles; the bytes that they take together.

    Raises:
        UserError: a program does not lower for the platform, or CUTLASS is missing.
        ValueError: they take more than may be carried, or no program has such a name.
    """
    target, backend = resolve_platform(platform)
    if not (todo := list(wanted(only))):
        raise ValueError(f"no program is called {' or '.join(only)}; known: {', '.join(ENTRIES)}")
    if backend.name != "cute" and not (todo := [x for x in todo if not x[1].schedules]):
        raise ValueError(f"{' or '.join(only)} is for CuTe DSL alone")
    for name, entry, timing in todo:
        started = time.monotonic()
        program = compile(
            entry.kernel,
            platform=platform,
            constants=entry.constants(entry.kind.configs[size], tiling_name(target, backend)),
            backend_options={"timing": True} if timing else {},
            schedules=schedule_overrides(Path(entry.step.file), target, backend) | entry.schedules,
        )
        shutil.rmtree(folder / name, ignore_errors=True)
        program.save(folder / name)
        say(f"{name} in {time.monotonic() - started:.0f} s")
    bytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    if bytes > LIMIT_BYTES:
        raise ValueError(f"{folder} takes {bytes / 2**20:.1f} MiB, {LIMIT_BYTES >> 20} at most")
    return bytes


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="prepare", description="Compile all that tools/bench.py runs.")
    parser.add_argument("platform", help="the GPU, such as h200")
    parser.add_argument("folder", type=Path, help="where the bundles go")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names or patterns of programs")
    parser.add_argument("--config", default="full", metavar="SIZE", help="the models' (default %(default)s)")
    options = parser.parse_args(argv)
    started = time.monotonic()
    try:
        size = prepare(options.platform, options.folder, options.config, options.only)
    except (UserError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {options.folder}: {size / 2**20:.1f} MiB in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
