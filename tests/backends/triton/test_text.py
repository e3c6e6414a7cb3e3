"""The emitted source: as it is read, the same every time, and written without Triton."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

import pypto_models.language as pl
from pypto_models.compile import lower_for
from pypto_models.target import load_target

from ..cute.support import project, shifted, twice
from .support import TRITON


def source_of(kernel: pl.Kernel, target: str) -> str:
    return TRITON.emit(lower_for(kernel, (), load_target(target), backend=TRITON))


@pytest.mark.parametrize(
    ("kernel", "target"),
    [(twice, "h200"), (twice, "mi300x"), (project, "h200"), (project, "mi300x")],
    ids=lambda x: getattr(x, "name", x),
)
def test_the_emitted_source(kernel: pl.Kernel, target: str, golden_text: Callable[[str, str], None]) -> None:
    golden_text(source_of(kernel, target), f"{kernel.name}_{target}")


def test_emitting_is_deterministic_and_needs_no_triton() -> None:
    code = (
        "import sys\nfrom tests.backends.triton.test_text import project, source_of\n"
        "print(source_of(project, 'h200'))\n"
        "assert 'triton' not in sys.modules\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and "tl.dot(" in runs[0]


def test_only_nvidia_gpus_start_early_and_wait() -> None:
    for kernel in (twice, project):
        for target, waits in (("h200", 1), ("gb10", 1), ("mi300x", 0), ("mi355x", 0)):
            text = source_of(kernel, target)
            assert (text.count("tile.wait()"), text.count("tile.trigger()")) == (waits, waits), target


def test_a_barrier_stands_between_reads_and_writes_of_one_tensor() -> None:
    text = source_of(shifted, "h200")
    assert text.index("tl.load(") < text.index("tl.debug_barrier()") < text.index("tl.store(")
    assert "debug_barrier" not in source_of(twice, "h200")
