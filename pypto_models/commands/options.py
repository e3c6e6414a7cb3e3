"""Options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..backend import Backend
from ..compile import DEFAULT_PLATFORM, resolve_platform
from ..errors import NOWHERE, Diag, user_error
from ..target import Target


def add_file_options(parser: argparse.ArgumentParser, compiles: bool = False) -> None:
    """The file, the platform and the constants.  A command that ``compiles`` has no default platform."""
    parser.add_argument("file", type=Path, help="a Python file with @pl.jit kernels")
    names = ("-p", "--platform", "--target")
    if compiles:
        parser.add_argument(*names, required=True, help="what to compile for, such as h200 or gb10")
        parser.add_argument("--kernel", metavar="NAME", help="the entry (default: the first of the file)")
    else:
        parser.add_argument(*names, default=DEFAULT_PLATFORM, help="whose limits hold (default %(default)s)")
    parser.add_argument(
        "--backend", metavar="NAME", help="of the target: --target h200 --backend cute is -p h200:cute"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="replace an integer or float constant",
    )


def platform_of(options: argparse.Namespace) -> tuple[Target, Backend]:
    """What ``--platform`` and ``--backend`` say; raises a user error if they contradict each other."""
    return resolve_platform(options.platform, options.backend)


def numbers(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """``NAME=NUMBER`` arguments by name; raises a user error that shows the one that is wrong."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            value = int(text) if text.lstrip("-").isdigit() else float(text)
        except ValueError:
            equals = ""
        if not equals or not name.isidentifier():
            raise user_error(
                Diag.ARGUMENT, NOWHERE, name=option, why=f"it says {pair!r}", fix="write NAME=NUMBER"
            )
        found[name] = value
    return found


def writable(path: Path | None) -> None:
    """Make the folder of an output file, before the work that fills it; raises a user error if that fails."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise user_error(
            Diag.ARGUMENT,
            NOWHERE,
            name=str(path),
            why=f"it cannot be written: {error.strerror}",
            fix="give another path",
        ) from error
