"""``pypto-models power``: can the comparison of a kernel fail?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from golden.power import load_cases, subjects_in
from golden.power_run import run_power

from ..errors import NOWHERE, Diag, user_error
from .options import writable


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "power",
        help="measure whether a kernel's comparison can fail, with faults put into the kernel",
        description="Put semantic faults into the kernels of a file, one at a time, and count those that the "
        "comparison notices: a dropped region, an index off by one, swapped operands and so on.  The file "
        "says how it is compared: power_cases(config) returns a list of golden.power.Case.",
        epilog="exit status: 0 if 98%% are caught, 90%% in every class, and at most 5%% are equivalent; "
        "1 if not; 2 for a mistake in the arguments",
    )
    parser.add_argument("file", type=Path, help="a Python file that defines power_cases(config)")
    parser.add_argument(
        "--config", default="tiny", metavar="NAME", help="handed to power_cases (default tiny)"
    )
    parser.add_argument("--kernel", metavar="NAME", help="one kernel of the file (default: all)")
    parser.add_argument(
        "--faults", type=int, metavar="N", help="at most N for each kernel, spread over classes and lines"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides which, with --faults")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes (default 2; 0: this one)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and every fault as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    if options.json is not None:
        writable(options.json)
    known = subjects_in(load_cases(options.file, options.config))
    if options.kernel is not None and options.kernel not in known:
        raise user_error(
            Diag.ARGUMENT, NOWHERE, name="--kernel", why=f"no case has a kernel called {options.kernel!r}",
            fix=f"known: {', '.join(known)}",
        )  # fmt: skip
    chosen = known if options.kernel is None else [options.kernel]
    return run_power(
        options.file, options.config, chosen, console,
        count=options.faults, seed=options.seed, workers=options.workers, json_file=options.json,
    )  # fmt: skip
