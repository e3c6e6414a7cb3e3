"""``pypto-models trace``: an estimated timeline, as text, as a trace for Perfetto and as a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import plot
from ..compile import lower_for, tiling_name
from ..cost import CAVEAT, Estimate, estimate, trace_events
from ..cost.inputs import DEFAULT_EXTENT, known_names
from ..kernel_file import KernelFile
from .options import add_file_options, numbers, platform_of, writable


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "trace",
        help="estimate the time of a kernel and write its timeline",
        description="Estimate where the time goes: every task, block and operation on the pipes of a core, "
        "with the bandwidth shared.  It is an estimate; docs/performance.md compares it with measured times.",
        epilog="Extents, arguments and contents of index tensors come from --extent, then from the file's "
        f"cli_arguments(target, given), then an extent is {DEFAULT_EXTENT} and contents are unknown; the "
        "summary says what was assumed.",
    )
    add_file_options(parser)
    parser.add_argument("--kernel", metavar="NAME", help="the entry (default: the first of the file)")
    parser.add_argument(
        "--extent", action="append", default=[], metavar="NAME=VALUE",
        help="a run-time extent, a scalar argument, or every element of an index tensor",
    )  # fmt: skip
    parser.add_argument(
        "--persistent", action="store_true", help="one launch, with grid barriers between dependent tasks"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="write trace events for ui.perfetto.dev"
    )
    parser.add_argument("--png", type=Path, metavar="OUT", help="draw the timeline")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    target, backend = platform_of(options)
    if options.png is not None:
        plot.check_plotting()
    for path in (options.output, options.png):
        writable(path)
    file = KernelFile.load(options.file)
    kernel = file.entry(options.kernel)
    constants = file.constants(kernel, tiling_name(target, backend), numbers(options.set, "--set"))
    compiled = lower_for(kernel, (), target, constants, backend=backend)
    extents = numbers(options.extent, "--extent")
    known = known_names(compiled.function)
    arguments = {n: v for n, v in file.arguments(target.name, extents).items() if n in known or n in extents}
    found = estimate(compiled.graph, target, arguments, persistent=options.persistent)
    if options.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        show(found, console)
    title = f"{found.kernel} on {found.target}: {found.summary.seconds * 1e6:.1f} us, an estimate"
    if options.output is not None:
        options.output.write_text(json.dumps(trace_events(found.timeline, title)))
    if options.png is not None:
        plot.draw_timeline(found.timeline, title, options.png)
    for path in (options.output, options.png):
        if path is not None and not options.json:
            console.print(f"wrote {path}", markup=False, soft_wrap=True)
    return 0


def show(found: Estimate, console: Console) -> None:
    """The summary as a table."""
    s = found.summary
    table = Table(title=f"{found.kernel} on {found.target}, estimated")
    for heading in ("task", "blocks", "us", "bound", "busiest pipes", "MB", "roofline"):
        table.add_column(heading, no_wrap=True)
    for t in s.tasks:
        times = f" ({t.launches} launches)" if t.launches > 1 else ""
        busiest = sorted((p for p in t.busy if t.busy[p] >= 0.005), key=lambda p: -t.busy[p])[:2]
        table.add_row(
            f"{'*' if t.critical else ' '} {t.name}{times}", str(t.blocks), f"{t.seconds * 1e6:.2f}", t.bound,
            ", ".join(f"{p} {t.busy[p]:.0%}" for p in busiest), f"{t.bytes / 1e6:.2f}", f"{t.roofline:.1%}",
        )  # fmt: skip
    console.print(table)
    lines = [
        f"{s.seconds * 1e6:.2f} us in all, {s.roofline:.1%} of the roofline, which is {s.floor * 1e6:.2f} us",
        f"critical path (*): {' -> '.join(s.critical_path) or 'none'}",
        *(f"assumed: {a}" for a in found.assumptions),
    ]
    if found.assumed_figures:
        lines.append(f"assumed figures of {found.target}: {', '.join(found.assumed_figures)}")
    lines.append(f"This is {CAVEAT}.")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
