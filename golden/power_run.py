"""Measure the power of the kernels of a file, with a bar on the screen, and print and keep what was found."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from golden.power import load_cases, measure_power
from golden.power_report import PowerReport

CPU = Path("/proc/cpuinfo")


def one_order_of_sums() -> None:
    """Have MKL add in one order on all CPUs by Intel, to be called before its first product.

    Some comparisons ask for equal roundings.  Where a sum lies at a tie its order decides, which MKL takes
    from the CPU; on those by Intel it promises to take the same on all.  A given MKL_CBWR stays.
    """
    if CPU.exists() and "GenuineIntel" in CPU.read_text(errors="replace"):
        os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")


def run_power(
    file: Path,
    config: str,
    subjects: Sequence[str],
    console: Console,
    *,
    count: int | None = None,
    seed: int = 0,
    workers: int = 2,
    json_file: Path | None = None,
) -> int:
    """The exit status: 0 if every comparison is good, 1 if one falls short.

    Args:
        file: defines ``power_cases(config)``.
        config: handed to it.
        subjects: those to measure, one after the other; see :func:`golden.power.subjects_in`.
        count, seed, workers: see :func:`golden.power.measure_power`.
        json_file: for the figures and every fault.
    """
    one_order_of_sums()
    reports = [_measure(file, config, subject, console, count, seed, workers) for subject in subjects]
    for report in reports:
        for table in report.tables():
            console.print(table)
    for report in reports:
        console.print(report.summary(), markup=False, highlight=False)
        for line in report.shortfalls():
            console.print(f"  {line}", markup=False, highlight=False)
    if json_file is not None:
        json_file.write_text(json.dumps([r.to_json() for r in reports], indent=2) + "\n")
    return 1 if any(r.shortfalls() for r in reports) else 0


def _measure(
    file: Path, config: str, subject: str, console: Console, count: int | None, seed: int, workers: int
) -> PowerReport:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{subject}: goldens", total=None)

        def show(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{subject}: {label}")

        source = partial(load_cases, file, config, subject)
        return measure_power(source, count=count, seed=seed, workers=workers, progress=show)
