"""Time bundles of decode layers on the GPU that is here, check them against fp64, with PyTorch beside them.

    python -m tools.gpu_bench.prepare h200 build/bench                    # on a machine with CUTLASS
    python tools/bench.py build/bench --peers --json bench.json           # on the machine with the GPU

A BUNDLE is a folder that holds one, or folders of them.  The GPU's machine needs this checkout, torch,
cuda-bindings and triton.  Exit status: 0, 1 if a result is wrong or a program of ours fails, 2 for a mistake
in the arguments or where there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def _batches(text: str) -> list[int]:
    found = [int(n) if n.isdecimal() else 0 for n in text.split(",")]
    if not all(1 <= n <= 16 for n in found):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers of sequences, 1 to 16, such as 16,1")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.py", description="Time programs on a GPU against the floor, and PyTorch beside them."
    )
    add = parser.add_argument
    add("bundles", nargs="*", type=Path, metavar="BUNDLE", help="a bundle, or a folder of bundles")
    add("--peers", action="store_true", help="also cuBLAS, torch eager, torch.compile and max-autotune")
    add("--only", nargs="+", default=[], metavar="NAME", help="tasks with such a name, as --list prints it")
    add("--list", action="store_true", help="print the names of the tasks, and run nothing")
    add("--batch", type=_batches, default="16,1", metavar="N,N", help="sequences (default %(default)s)")
    add("--layers", type=int, default=6, metavar="N", help="that take turns (default %(default)s)")
    add("--seconds", type=float, default=0.0, metavar="S", help="for one task, at most (default: no limit)")
    add("--ceiling", type=float, metavar="TB/S", help="take this read ceiling instead of measuring it")
    add("--json", type=Path, metavar="FILE", help="rewritten after every row")
    add("--show", type=Path, metavar="FILE", help="only print the tables of such a file")
    return parser


def main(
    argv: Sequence[str] | None = None, device: Any = None, load: Callable[..., Any] | None = None
) -> int:
    """The command; `device` and `load` stand in for the GPU and its bundles in tests."""
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:  # run as a file, and not installed
        sys.path.insert(0, root)
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.bundles and options.show is None:
        parser.error("give a BUNDLE")
    from tools.gpu_bench import command
    from tools.gpu_bench.catalogue import BenchError

    try:
        return command.run(options, device, load) if options.show is None else command.show(options.show)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
