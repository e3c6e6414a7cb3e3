"""``pypto-models build``: a kernel as a folder that runs where nothing can be compiled."""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from ..backend import Bundles, Compiled, KernelRow, Saved
from ..errors import NOWHERE, Diag, user_error
from .emit import lowered
from .options import add_file_options


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "build",
        help="compile a kernel into a bundle: machine code, emitted source and a manifest",
        description="Compile a kernel ahead of time, on any machine, into a folder that a machine with the "
        "device loads with nothing but torch and its driver's bindings.  Kernels that were compiled before "
        "come from the cache.",
    )
    add_file_options(parser, compiles=True)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    parser.add_argument(
        "--timing", action="store_true", help="kernels also note when they run, in a further output `stamps`"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    started = time.perf_counter()
    backend, compiled = lowered(options)
    if not isinstance(backend, Bundles):
        raise user_error(
            Diag.ARGUMENT, NOWHERE, name="--platform", why=f"the backend {backend.name} makes no bundles",
            fix="name a GPU, such as h200",
        )  # fmt: skip
    asked = {"timing": True} if options.timing else {}
    if unknown := asked.keys() - inspect.signature(backend.build).parameters.keys():
        raise user_error(
            Diag.ARGUMENT, NOWHERE, name=f"--{min(unknown)}",
            why=f"the backend {backend.name} has no such option", fix="leave it out",
        )  # fmt: skip
    _make(options.output)
    program = _build(backend, compiled, Console(stderr=True), asked)
    program.save(options.output)
    seconds = time.perf_counter() - started
    if options.json:
        report = {
            "program": compiled.name, "target": compiled.target.name, "backend": backend.name,
            "folder": str(options.output), "seconds": round(seconds, 3),
            "kernels": [asdict(k) for k in program.kernels],
        }  # fmt: skip
        print(json.dumps(report, indent=2))
    else:
        console.print(table(f"{compiled.name} for {compiled.target.name}", program.kernels))
        for k in program.kernels:
            console.print(f"{k.name}: {k.how}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"wrote {options.output} in {seconds:.1f} s", markup=False, soft_wrap=True)
    return 0


def _make(folder: Path) -> None:
    """Before the work that fills it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise user_error(
            Diag.ARGUMENT, NOWHERE, name=str(folder), why=f"it cannot be written: {error.strerror}",
            fix="give another folder",
        ) from error  # fmt: skip


def _build(backend: Bundles, compiled: Compiled, console: Console, asked: Mapping[str, Any]) -> Saved:
    """With a bar that counts the kernels that are compiled, where somebody looks."""
    columns = (
        TextColumn("compiling"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.description}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)

        def progress(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total, description=label, visible=True)

        return backend.bundle(compiled, progress, **asked)


def table(title: str, kernels: tuple[KernelRow, ...]) -> Table:
    """One line for each kernel, sizes in bytes; what spills is red."""
    out = Table(title=title)
    for heading in ("kernel", "line", "threads", "shared", "registers", "spills", "code"):
        out.add_column(heading, no_wrap=True, justify="left" if heading == "kernel" else "right")
    for k in kernels:
        out.add_row(
            k.name, str(k.line), str(k.threads), f"{k.shared_bytes:,}", str(k.registers),
            f"{k.local_bytes:,}", f"{k.code_bytes:,}", style="red" if k.local_bytes else None,
        )  # fmt: skip
    return out
