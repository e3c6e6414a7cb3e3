"""``pypto-models emit``: the source that a backend writes for a kernel."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from ..backend import Backend, Compiled, Emits
from ..compile import lower_for, tiling_name
from ..errors import NOWHERE, Diag, user_error
from ..kernel_file import KernelFile
from .options import add_file_options, numbers, platform_of, writable


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "emit",
        help="print the source that a backend writes for a kernel",
        description="Lower a kernel for a platform and print the source that its backend writes.  Nothing is "
        "compiled, and neither a toolchain nor a device is needed.",
    )
    add_file_options(parser, compiles=True)
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="write it to a file instead")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    writable(options.output)
    backend, compiled = lowered(options)
    if not isinstance(backend, Emits):
        raise user_error(
            Diag.ARGUMENT, NOWHERE, name="--platform", why=f"the backend {backend.name} writes no source",
            fix="name a GPU, such as h200",
        )  # fmt: skip
    source = backend.emit(compiled)
    if options.output is None:
        print(source, end="")
    else:
        options.output.write_text(source)
        console.print(f"wrote {options.output}", markup=False, soft_wrap=True)
    return 0


def lowered(options: argparse.Namespace) -> tuple[Backend, Compiled]:
    """The backend, and the kernel as far as it takes it from."""
    target, backend = platform_of(options)
    file = KernelFile.load(options.file)
    kernel = file.entry(options.kernel)
    constants = file.constants(kernel, tiling_name(target, backend), numbers(options.set, "--set"))
    return backend, lower_for(kernel, (), target, constants, backend=backend)
