"""``pypto-models tune``: choose schedules and tile sizes by measurement, in three steps."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..backend import Bundles, Reopens
from ..compile import backend_table, resolve_platform, tiling_name
from ..errors import NOWHERE, Diag, user_error
from ..kernel_file import KernelFile
from ..tuning import picking, planning, running
from ..tuning.choices import groups
from ..tuning.device import Gpu
from ..tuning.records import Plan, Results, Value
from .options import add_file_options, numbers, platform_of

LIMIT_MIB = 48
MOST = 24


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "tune",
        help="choose schedules and tile sizes by measurement: plan, run, pick",
        description="Choose how the regions of a kernel run on a GPU, in three steps: plan on any machine, "
        "run where the GPU is, pick the best.",
    )
    steps = parser.add_subparsers(title="steps", metavar="STEP", required=True)
    _add_plan(steps)
    run = steps.add_parser(
        "run",
        help="check and time the variants on the GPU at hand",
        description="Check each variant of a tuning against the simulator's results and time it, as CUDA "
        "graphs over rotating tensors.  Needs torch and the driver's bindings, and no compiler.  What was "
        "measured before stays: after a kill, the same command goes on.",
    )
    run.add_argument("folder", type=Path, metavar="DIR", help="the folder that tune plan has made")
    run.set_defaults(run=_run)
    pick = steps.add_parser(
        "pick",
        help="write the fastest variants into the tiling file",
        description="Take the fastest right variant of every part, and write it into tiling/<target>.yaml "
        "beside the kernel's file, with its figure, the device, the date and the runner-up.",
    )
    pick.add_argument("folder", type=Path, metavar="DIR", help="the folder that tune run has filled")
    pick.add_argument("-o", "--output", type=Path, metavar="FILE", help="another tiling file")
    pick.add_argument("--dry-run", action="store_true", help="show the choice and write nothing")
    pick.set_defaults(run=_pick)


def _add_plan(steps: Any) -> None:
    plan = steps.add_parser(
        "plan",
        help="enumerate variants and compile them into one folder, on any machine",
        description="Enumerate the legal schedules of every streamed product of a kernel, and the tile sizes "
        "that its file's cli_tuning(target) names; keep the best by the cost model, compile them, and store "
        "them with what they must compute.",
    )
    add_file_options(plan, compiles=True)
    plan.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to make")
    plan.add_argument(
        "--extent", action="append", default=[], metavar="NAME=VALUE",
        help="a run-time extent, a scalar argument, or every element of an index tensor",
    )  # fmt: skip
    plan.add_argument("--region", action="append", default=[], metavar="NAME", help="tune this one (or more)")
    plan.add_argument("--most", type=int, default=MOST, metavar="N", help=f"variants of a part ({MOST})")
    plan.add_argument(
        "--limit-mib", type=float, default=LIMIT_MIB, metavar="MIB", help=f"of the folder ({LIMIT_MIB})"
    )
    plan.add_argument(
        "--try", dest="tried", action="append", default=[], metavar="REGION:KEY=VALUE,...",
        help="a schedule to measure in any case",
    )  # fmt: skip
    plan.set_defaults(run=_plan)


def _plan(options: argparse.Namespace, console: Console) -> int:
    target, backend = platform_of(options)
    if not isinstance(backend, Bundles) or not isinstance(backend, Reopens):
        raise user_error(
            Diag.ARGUMENT, NOWHERE, name="--platform", why=f"the backend {backend.name} keeps no programs",
            fix="name a GPU, such as h200",
        )  # fmt: skip
    file = KernelFile.load(options.file)
    kernel = file.entry(options.kernel)
    source = planning.Source(
        str(options.file), kernel, target,
        file.constants(kernel, tiling_name(target, backend), numbers(options.set, "--set")),
        file.arguments(target.name, numbers(options.extent, "--extent")),
        groups(file.tuning(tiling_name(target, backend))),
    )  # fmt: skip
    found = planning.plan(
        source, backend, options.output, regions=options.region, most=options.most,
        limit=int(options.limit_mib * 2**20), tried=_tried(options.tried), say=_say(console),
    )  # fmt: skip
    for r in found.refused:
        values = ", ".join(f"{k} {v}" for k, v in r.values.items())
        console.print(f"refused: {r.part} [{values}]: {r.why}", markup=False, soft_wrap=True)
    return 0


def _tried(given: list[str]) -> dict[str, list[dict[str, Value]]]:
    found: dict[str, list[dict[str, Value]]] = {}
    for text in given:
        region, _, pairs = text.partition(":")
        values = numbers(pairs.split(",") if pairs else [""], "--try")
        found.setdefault(region, []).append(values)
    return found


def _say(console: Console) -> planning.Say:
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


def _run(options: argparse.Namespace, console: Console) -> int:
    plan = Plan.read(options.folder)
    backend = backend_table()[plan.backend]
    assert isinstance(backend, Reopens)
    import torch

    if not torch.cuda.is_available():
        console.print(f"SKIPPED: torch {torch.__version__} sees no GPU", markup=False)
        return 2
    try:
        running.run(options.folder, Gpu(backend), _say(console))
    except running.DeviceLost as error:
        console.print(str(error), markup=False, soft_wrap=True)
        sys.stdout.flush()
        os._exit(3)  # what is left of the device can hold up an orderly end
    return 0


def _pick(options: argparse.Namespace, console: Console) -> int:
    plan = Plan.read(options.folder)
    chosen = picking.picks(plan, Results.read(options.folder))
    table = Table("part", "choice", "us", "default", "gain", "next", title=f"{plan.kernel} for {plan.target}")
    for p in chosen:
        (variant, r), default = p.best, p.default
        values = "default" if variant.default else ", ".join(f"{k} {v}" for k, v in variant.values.items())
        table.add_row(
            p.part.name, values, f"{r.us:.2f}", f"{default.us:.2f}" if default else "-",
            f"{default.us / r.us - 1:.1%}" if default else "-", f"{p.second[1].us:.2f}" if p.second else "-",
        )  # fmt: skip
    console.print(table)
    if options.dry_run:
        return 0
    own = f"{tiling_name(*resolve_platform(plan.target, plan.backend))}.yaml"
    path = options.output or Path(plan.file).parent / "tiling" / own
    picking.write(path, chosen)
    console.print(f"wrote {path}", markup=False, soft_wrap=True)
    return 0
