"""The command ``pypto-models``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .check import FileReport, KernelReport, check_file
from .commands import build, emit, memory, power, trace, tune
from .commands.options import add_file_options, numbers, platform_of
from .commands.schedules import summary
from .compile import backend_table, option_names, platforms, resolve_platform
from .docs import render_language_reference
from .errors import UserError
from .ir.graph import dim_text
from .target import known_targets, load_target

LANGUAGE_REFERENCE = Path(__file__).parent.parent / "docs" / "language.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.run is None:
        parser.print_help()
        return 2
    try:
        return int(options.run(options, Console()))
    except UserError as error:
        print(f"pypto-models: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pypto-models",
        description="Compile decode layers written once as tile code.  See README.md for a first kernel.",
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    check = commands.add_parser(
        "check",
        help="list everything the compiler finds in a kernel file",
        description="Check a kernel file, ours or an unmodified pypto file, against a target: unknown names, "
        "errors, the region table and the memory plan.  Nothing is run.",
        epilog="exit status: 0 without findings, 1 with findings, 2 for a mistake in the arguments",
    )
    add_file_options(check)
    check.add_argument("--json", action="store_true", help="print JSON instead of tables")
    check.set_defaults(run=_check)
    memory.add(commands)
    trace.add(commands)
    power.add(commands)
    emit.add(commands)
    build.add(commands)
    tune.add(commands)

    targets = commands.add_parser(
        "targets", help="list targets and backends, and what is usable on this machine"
    )
    targets.add_argument("--json", action="store_true", help="print JSON instead of a table")
    targets.set_defaults(run=_targets)

    docs = commands.add_parser("docs", help="print the language reference, made from the op definitions")
    docs.add_argument("--write", action="store_true", help=f"write it to {LANGUAGE_REFERENCE.name} in docs/")
    docs.set_defaults(run=_docs)
    return parser


# ------------------------------------------------------------------------------------------ check
def _check(options: argparse.Namespace, console: Console) -> int:
    target, backend = platform_of(options)
    report = check_file(options.file, target, numbers(options.set, "--set"), backend)
    if options.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        _show_report(report, console)
    return 1 if report.findings else 0


def _show_report(report: FileReport, console: Console) -> None:
    for kernel in report.kernels:
        console.rule(f"{kernel.name} on {report.target}")
        if kernel.graph is not None:
            console.print(_region_table(kernel))
        if kernel.schedules:
            console.print(summary(kernel.schedules, load_target(report.target)))
        elif kernel.plan is not None and kernel.plan.checked:
            console.print(_memory_table(kernel))
        for warning in kernel.warnings:
            console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    findings = report.findings
    for error in findings:
        console.print(f"\n{error}", markup=False, highlight=False, soft_wrap=True)
    count = f"{len(findings)} finding{'s' if len(findings) != 1 else ''}" if findings else "no findings"
    console.print(f"\n{report.file}: {count}", markup=False, soft_wrap=True)


def _region_table(kernel: KernelReport) -> Table:
    table = Table("#", "region", "unit", "split", "grid", "reads", "writes", "after", title="regions")
    assert kernel.graph is not None
    for task in kernel.graph.tasks:
        after = dict.fromkeys(d.before for d in kernel.graph.dependencies if d.after == task.index)
        table.add_row(
            str(task.index), task.name, task.unit.value, task.split.name,
            " x ".join(f"{axis.name}: {dim_text(axis.extent)}" for axis in task.grid) or "1",
            ", ".join(dict.fromkeys(a.tensor.name for a in task.reads)),
            ", ".join(dict.fromkeys(a.tensor.name for a in task.writes)),
            ", ".join(map(str, after)) or "-",
        )  # fmt: skip
    return table


def _memory_table(kernel: KernelReport) -> Table:
    table = Table("region", "unit", "split", "space", "peak bytes", "limit", "share", title="memory plan")
    assert kernel.plan is not None
    for region, unit, split, space, peak, limit, share in kernel.plan.table():
        style = "red" if share > 1 else None
        table.add_row(region, unit, split, space, f"{peak:,}", f"{limit:,}", f"{share:.1%}", style=style)
    return table


# ------------------------------------------------------------------------------------------ targets, docs
def _targets(options: argparse.Namespace, console: Console) -> int:
    table = backend_table()
    backends = {name: b.unusable() for name, b in table.items()}
    if options.json:
        data = {
            "targets": {t: load_target(t).description for t in known_targets()},
            "backends": {n: {"usable": why is None, "why_not": why} for n, why in backends.items()},
            "platforms": platforms(),
            "compile_options": list(option_names()),
        }
        print(json.dumps(data, indent=2))
        return 0
    shown = Table("platform", "target", "cores", "memory plan", "backend", "usable here", title="platforms")
    for platform in platforms():
        target, backend = resolve_platform(platform)
        plan = "of tiles" if target.is_scratchpad else "of schedules"
        why = backends[backend.name] or "yes"
        shown.add_row(platform, target.description, str(target.cores), plan, backend.name, why)
    console.print(shown)
    return 0


def _docs(options: argparse.Namespace, console: Console) -> int:
    text = render_language_reference()
    if options.write:
        LANGUAGE_REFERENCE.write_text(text)
        console.print(f"wrote {LANGUAGE_REFERENCE.name}")
    else:
        print(text)
    return 0
