"""compute-sanitizer over the small layers, each tool and each layer in a process of its own.

    python -m tests.backends.on_gpu.sanitize build/gpu [--tools memcheck,initcheck,racecheck] [--limit 120]

Prints one line for each run and the reports that differ, by kernel.  The exit status is 0 if all were clean,
1 if there are reports, 2 if something did not run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .catalogue import ACROSS, Platform, layers, not_sliced, sliced_step, span_entry, step_entry
from .programs import gpu_platform, load

TOOLS = ("memcheck", "initcheck", "racecheck")
# The runtime checks what the driver answers; torch asks it for much that is refused and harmless
OF_A_TOOL = {"memcheck": ("--report-api-errors", "no"), "racecheck": ("--racecheck-report", "all")}
LIMIT_S = 120
PRINTED = 200  # reports of a run, at most
RAN = "the program has run"
KINDS = ("step", "span", *ACROSS)


Report = tuple[str, str, str]
"""What happened, the kernel, the place in it."""


@dataclass(frozen=True)
class Run:
    """One layer under one tool.

    ``errors`` is the number that the tool counted, None where it came to no summary; ``reports`` counts equal
    ones.
    """

    tool: str
    name: str
    errors: int | None
    reports: Counter[Report]
    ran: bool
    seconds: float
    why: str = ""

    @property
    def clean(self) -> bool:
        return self.ran and self.errors == 0 and not self.why

    def line(self) -> str:
        verdict = self.why or ("clean" if self.clean else f"{self.errors} reports")
        return f"{self.tool:<10} {self.name:<40} {self.seconds:>6.1f} s  {verdict}"


# A report begins with what happened; the place follows, on the same line or on one of the next
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)")
_BEGIN = re.compile(r"^=+ (?P<what>(?:Error|Warning|Info|Invalid|Uninitialized|Program hit|Misaligned).*)")
_PLACE = re.compile(
    r"\bat (?:0x[0-9a-f]+ in )?(?P<kernel>(?!__shared__|__global__)[a-zA-Z_]\w+)"
    r"(?:\(.*\))?(?P<offset>\+0x[0-9a-f]+)?"
)
_ACCESS = re.compile(r"(Read|Write) access at (\w+)(?:\([^+]*\))?(\+0x[0-9a-f]+)")


def parse(output: str) -> tuple[int | None, Counter[Report]]:
    """The number of errors in a tool's summary, None without one, and its reports."""
    summary = _SUMMARY.search(output)
    reports: Counter[Report] = Counter()
    what = ""  # of a report whose place has not come yet

    def close() -> None:
        if what:
            reports[what, "?", ""] += 1

    for line in output.splitlines():
        if not line.startswith("==="):
            continue
        begin = None if "SUMMARY" in line else _BEGIN.match(line)
        if begin is not None:
            close()
            what = _plain(begin["what"])
            if accesses := _ACCESS.findall(line):
                places = " and ".join(f"{kind} at {offset}" for kind, _, offset in accesses)
                reports[f"{what.split(':')[0]}: race of {places}", accesses[0][1], ""] += 1
                what = ""
                continue
        if what and (place := _PLACE.search(line)) is not None:
            reports[what, place["kernel"], place["offset"] or ""] += 1
            what = ""
    close()
    return (None if summary is None else int(summary[1])), reports


def _plain(what: str) -> str:
    """Without the addresses, blocks and threads that set equal reports apart."""
    return re.sub(r"0x[0-9a-f]+|\(\d+,\d+,\d+\)", "*", re.split(r" at ", what)[0]).strip(" :")


def sanitize(tool: str, name: str, folder: Path, limit: float) -> Run:
    """One run; the time limit ends it and all that it started."""
    command = [
        "compute-sanitizer", "--tool", tool, "--print-limit", str(PRINTED),
        *OF_A_TOOL.get(tool, ()),
        sys.executable, "-m", "tests.backends.on_gpu.sanitize", str(folder), "--only", name,
    ]  # fmt: skip
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor is an allocation of its own
    started = time.monotonic()
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    why = ""
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        why = f"stopped after {limit:.0f} s"
    errors, reports = parse(output)
    ran = RAN in output
    if not why and (errors is None or not ran):
        why = "did not run: " + (output.strip().splitlines() or ["no output"])[-1]
    return Run(tool, name, errors, reports, ran, time.monotonic() - started, why)


def run_one(name: str, folder: Path) -> None:
    """The program ``<layer>/<kind>`` on a step of three sequences, one of them dead, in this process."""
    layer_name, _, kind = name.rpartition("/")
    layer, on = layers()[layer_name], gpu_platform(folder)
    if kind in ACROSS:
        program = load(f"sliced/{name}", sliced_step(layer, on, kind), folder)
    else:
        make = span_entry if kind == "span" else step_entry
        program = load(f"layers/{name}", make(layer, on), folder)
    span = layer.power.span if kind == "span" else 1
    tensors = layer.kind.make_inputs(
        layer.config, 3, "ragged", tokens=[1, span, 2] if kind == "span" else 1, span=span,
        lm_head="skip" if kind == "span" else "single", dead_rows={1: "all"},
    )  # fmt: skip
    given = [tensors[p.name].cuda() for p in program.params]
    program(*given)
    torch.cuda.synchronize()
    hidden = dict(zip((p.name for p in program.params), given, strict=True))["next_hidden"]
    if not bool(hidden.isfinite().all()):
        raise SystemExit(f"{name}: the hidden states are not finite")
    print(RAN)


def names(on: Platform) -> list[str]:
    """The programs that are examined: the smallest size, bf16."""
    tiny = [n for n, layer in layers().items() if layer.size == "tiny" and layer.config.dtype == "bf16"]
    kinds = [k for k in KINDS if k not in ACROSS or not_sliced(on) is None]
    return [f"{n}/{kind}" for kind in kinds for n in tiny]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="sanitize", description="compute-sanitizer over the small layers.")
    parser.add_argument("folder", type=Path, help="bundles, as `prepare` writes them")
    parser.add_argument("--tools", default=",".join(TOOLS), help="default %(default)s")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of a run (default %(default)s)")
    parser.add_argument("--only", metavar="NAME", help="run this program, without a tool")
    options = parser.parse_args(argv)
    if options.only is not None:
        run_one(options.only, options.folder)
        return 0
    if shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit", file=sys.stderr)
        return 2
    runs = []
    for tool in options.tools.split(","):
        for name in names(gpu_platform(options.folder)):
            runs.append(sanitize(tool, name, options.folder, options.limit))
            print(runs[-1].line(), flush=True)
    return summarise(runs)


def summarise(runs: Sequence[Run]) -> int:
    """Print what was reported, by tool and kernel; the exit status."""
    total: Counter[tuple[str, str, str, str]] = Counter()
    for run in runs:
        for (what, kernel, offset), count in run.reports.items():
            total[run.tool, what, kernel, offset] += count
    for (tool, what, kernel, offset), count in sorted(total.items()):
        print(f"{tool}: {count:>4} x {kernel}{offset}: {what}")
    clean = sum(run.clean for run in runs)
    print(f"{clean} of {len(runs)} runs clean")
    if any(run.why for run in runs):
        return 2
    return 0 if clean == len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
