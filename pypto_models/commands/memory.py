"""``pypto-models memory``: what lies where on chip, and when."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import plot
from ..check import KernelReport, check_kernel, unknown_overrides
from ..compile import schedule_overrides, tiling_name
from ..errors import NOWHERE, Diag, Span, user_error
from ..ir.nodes import Region
from ..ir.rewrite import walk
from ..kernel_file import KernelFile
from ..passes.liveness import analyse
from ..passes.plan_memory import Buffer, RegionPlan
from ..target import Target
from .options import add_file_options, numbers, platform_of, writable
from .schedules import details, schedule_json


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "memory",
        help="show the memory plan of a kernel file, tile by tile",
        description="The memory plan of every region: for each tile bytes, buffers, offset and live range, "
        "per memory space of one core (Vec: of one lane).  The space of a dead tile is used again.  On a "
        "GPU: the shared memory, registers and workspace of every region's schedule.",
        epilog="exit status: 0 if everything fits, 1 if not, 2 for a mistake in the arguments",
    )
    add_file_options(parser)
    parser.add_argument("--kernel", metavar="NAME", help="one entry of the file (default: all)")
    parser.add_argument("--region", metavar="NAME", help="one region (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--png", type=Path, metavar="OUT", help="draw live ranges and offsets (of one entry)")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class _Row:
    """A buffer with the source places of the statements at the ends of its live range."""

    buffer: Buffer
    first: str
    last: str


@dataclass(frozen=True)
class _Region:
    plan: RegionPlan
    places: dict[int, str]

    def rows(self, buffers: tuple[Buffer, ...]) -> Iterator[_Row]:
        for b in buffers:
            yield _Row(b, self.places[b.first], self.places[b.last])


def run(options: argparse.Namespace, console: Console) -> int:
    target, backend = platform_of(options)
    if options.png is not None:
        plot.check_plotting()
    file = KernelFile.load(options.file)
    given = numbers(options.set, "--set")
    first = file.entry(options.kernel)
    chosen = file.entries if options.kernel is None and options.png is None else (first,)
    fixed, tiling = schedule_overrides(options.file, target, backend), tiling_name(target, backend)
    reports = [check_kernel(k, target, file.constants(k, tiling, given), fixed) for k in chosen]
    if chosen == file.entries:
        for error in unknown_overrides(fixed, reports):
            raise error
    kernels = [(r, _regions(r)) for r in reports]
    if options.region is not None:
        kernels = [(_only_schedules(r, options.region), _only(rs, options.region)) for r, rs in kernels]
        if not any(regions or r.schedules for r, regions in kernels):
            planned = [p.name for r in reports if r.plan for p in r.plan.regions]
            known = ", ".join(dict.fromkeys([*planned, *(s.region for r in reports for s in r.schedules)]))
            raise user_error(
                Diag.ARGUMENT, NOWHERE, name="--region", why=f"no region is called {options.region!r}",
                fix=f"known: {known or 'none'}",
            )  # fmt: skip
    if options.json:
        print(json.dumps(_json(options.file, target, kernels), indent=2))
    else:
        for report, regions in kernels:
            _show(report, regions, target, console)
    if options.png is not None:
        writable(options.png)
        plot.draw_memory([r.plan for _, regions in kernels for r in regions], target.name, options.png)
        if not options.json:
            console.print(f"wrote {options.png}", markup=False, soft_wrap=True)
    return 1 if any(r.errors for r in reports) else 0


def _regions(report: KernelReport) -> list[_Region]:
    if report.plan is None or report.graph is None:
        return []
    regions = [s for s in walk(report.graph.function.body) if isinstance(s, Region)]
    return [_Region(p, _places(r)) for p, r in zip(report.plan.regions, regions, strict=False)]


def _only(regions: list[_Region], name: str) -> list[_Region]:
    return [r for r in regions if r.plan.name == name]


def _only_schedules(report: KernelReport, name: str) -> KernelReport:
    return replace(report, schedules=tuple(s for s in report.schedules if s.region == name))


def _places(region: Region) -> dict[int, str]:
    """``file:line`` by position of the plan; the end of a loop or branch is the place of its head."""
    out: dict[int, str] = {}
    for node in analyse(region.body).nodes:
        out.update(dict.fromkeys((node.position, *node.ends), place(node.stmt.span)))
    return out


def place(span: Span) -> str:
    return f"{PurePath(span.file).name}:{span.line}"


def _show(report: KernelReport, regions: list[_Region], target: Target, console: Console) -> None:
    console.rule(f"{report.name} on {target.name}")
    for s in report.schedules:
        console.print(details(s, target))
    for r in regions:
        split = f", {r.plan.split.name}" if r.plan.split.axis is not None else ""
        table = Table(
            "space", "tile", "bytes", "buffers", "offset", "live", "from", "to",
            title=f"{r.plan.name} ({r.plan.unit.value}{split})", title_justify="left",
        )  # fmt: skip
        for mem, space in r.plan.spaces.items():
            for row in r.rows(space.buffers):
                b = row.buffer
                table.add_row(
                    mem.name, str(b).removesuffix(f" x {b.count}"), f"{b.bytes:,}", str(b.count),
                    f"{b.offset:,}", f"{b.first}-{b.last}", row.first, row.last,
                )  # fmt: skip
            share = f"{space.peak / space.limit:.1%}"
            style = "red" if not space.fits else "bold"
            table.add_row(
                mem.name,
                f"peak, {share} of {space.limit:,}",
                f"{space.peak:,}",
                style=style,
                end_section=True,
            )
        console.print(table)
    for error in report.errors:
        console.print(f"\n{error}", markup=False, highlight=False, soft_wrap=True)


def _json(path: Path, target: Target, kernels: list[tuple[KernelReport, list[_Region]]]) -> dict[str, Any]:
    return {
        "file": str(path),
        "target": target.name,
        "kernels": [
            {
                "name": report.name,
                "checked": bool(report.schedules) or (report.plan is not None and report.plan.checked),
                "findings": [{"code": e.code, "message": e.message, "fix": e.fix} for e in report.errors],
                "regions": [_region_json(r) for r in regions],
                "schedules": [schedule_json(s, target) for s in report.schedules],
            }
            for report, regions in kernels
        ],
    }


def _region_json(r: _Region) -> dict[str, Any]:
    return {
        "name": r.plan.name,
        "line": r.plan.span.line,
        "unit": r.plan.unit.value,
        "split": r.plan.split.name,
        "spaces": [
            {
                "space": mem.name,
                "limit": space.limit,
                "peak": space.peak,
                "fits": space.fits,
                "buffers": [
                    {
                        "tile": row.buffer.name, "shape": list(row.buffer.shape),
                        "dtype": row.buffer.dtype.name, "bytes": row.buffer.bytes,
                        "buffers": row.buffer.count, "offset": row.buffer.offset,
                        "place": place(row.buffer.span),
                        "live": [row.buffer.first, row.buffer.last], "from": row.first, "to": row.last,
                        "shared_with": list(row.buffer.shared_with),
                    }
                    for row in r.rows(space.buffers)
                ],
            }
            for mem, space in r.plan.spaces.items()
        ],
    }  # fmt: skip
