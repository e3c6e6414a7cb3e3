"""The command behind `tools/bench.py`: bundles, the device and its read ceiling, all tasks, the tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from backends.gpu.manifest import Repeat
from backends.gpu.runtime import Loaded, no_device
from models.common.step_time import Device, Gpu, read_rate
from tools.gpu_bench.agenda import tasks
from tools.gpu_bench.catalogue import BenchError, identify
from tools.gpu_bench.report import Ceiling, Report, Row, tables
from tools.gpu_bench.session import Program, Session
from tools.gpu_bench.tasks import run_all, selected, short

Load = Callable[[Path], Any]
"""A folder -> what it holds: a call with tensors by name, and its `manifest`."""

LISTED = Ceiling(1.0, "not measured", 0.0)


def run(options: argparse.Namespace, device: Device | None = None, load: Load | None = None) -> int:
    """Do all that the options ask for; the exit status.  `device` and `load` stand in for the GPU in tests.

    Raises:
        BenchError: there is no GPU, or a bundle that is no program of the bench.
    """
    if device is None and (why := no_device()) is not None:
        raise BenchError(f"nothing can be measured here: {why}")
    about: dict[str, Any] = {"torch": torch.__version__, "bundles": list(map(str, options.bundles))}
    if device is None:
        device, about = Gpu(), {"device": torch.cuda.get_device_name(), **about}
    programs = [_program((load or Loaded.open)(folder), folder) for folder in _folders(options.bundles)]
    report = Report(options.json, about)
    session = Session(device, report, LISTED, programs, options.batch, options.layers)
    todo = selected(tasks(session, options.peers), options.only)
    if not todo:
        raise BenchError("nothing to do: no task has such a name, or no bundle is for one; see --list")
    if options.list:
        print("\n".join(t.name for t in todo))
        return 0
    session.ceiling = find_ceiling(options.ceiling, device, report)
    run_all(todo, report, options.seconds)
    print(f"\n{tables(report)}")
    return 1 if report.failed else 0


def show(file: Path) -> int:
    """Print the tables of an earlier run; its exit status."""
    report = Report.parse(json.loads(file.read_text()))
    print(tables(report))
    return 1 if report.failed else 0


def _folders(given: Sequence[Path]) -> list[Path]:
    found = []
    for folder in given:
        own = sorted(f.parent for f in folder.rglob("manifest.json"))
        if not own:
            raise BenchError(
                f"{folder} holds no bundle; python -m tools.gpu_bench.prepare h200 {folder} makes them"
            )
        found += own
    return found


def _program(loaded: Any, folder: Path) -> Program:
    m = loaded.manifest
    given = [p for p in m.parameters if p.kind == "tensor"]
    try:
        found = identify(m.name, {p.name: p.shape for p in given})
    except BenchError as error:
        raise BenchError(f"{folder}: {error}") from error
    dtypes = {p.name: getattr(torch, p.dtype) for p in given}
    apart = getattr(loaded, "launches", None)  # a stand-in may have none
    return Program(found, dtypes, loaded, tuple(_launches(m.launches)), m.backend, apart)


def _launches(launches: Sequence[Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Kernels and their tensors; those of a loop once."""
    for x in launches:
        if isinstance(x, Repeat):
            yield from _launches(x.body)
        else:
            yield x.kernel, tuple(text for kind, text in x.arguments if kind == "pointer")


def find_ceiling(given: float | None, device: Device, report: Report) -> Ceiling:
    """The read ceiling: as `given` in TB/s, or measured.

    Where the read kernels fail, which becomes a row, it is that of torch.sum.
    """
    if given is not None:
        found = Ceiling(given * 1e12, "as given", 0.0)
    else:
        try:
            from tools.gpu_bench.reading import read_ceiling

            found = read_ceiling(device, report.note)
        except Exception as error:
            plain = read_rate(device)
            found = Ceiling(plain, "torch.sum, since the read kernels failed", plain)
            report.add(Row("read ceiling", "Triton", why=short(error)))
    report.about["ceiling"] = {
        "bytes_per_s": found.rate, "how": found.how, "torch_sum": found.torch_sum,
    }  # fmt: skip
    report.note(f"read ceiling {found.rate / 1e12:.3f} TB/s: {found.how}")
    return found
