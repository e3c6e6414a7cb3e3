"""What every test shares: thread counts, Triton's interpreter, the `gpu` marker, golden texts."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from golden.power_run import one_order_of_sums
from pypto_models.compile import PROGRAMS

TESTS = Path(__file__).parent
GOLDEN_TEXT = TESTS / "golden_text"

# No deadline: the time of one example on two busy cores says nothing.  A run repeats the last one, so that a
# red one speaks of the change; EXPLORE=1 draws other examples.
hypothesis.settings.register_profile("project", deadline=None, derandomize=not os.environ.get("EXPLORE"))
hypothesis.settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden texts, compare none")


def pytest_configure(config: pytest.Config) -> None:
    # The tests interpret Triton's kernels, which it decides when it is imported; its compiler runs in a
    # process of its own, without this.  Where there is a GPU, torch.compile needs a Triton that compiles.
    if no_gpu():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    one_order_of_sums()
    # xdist workers share the cores; torch would start one thread per core in each of them.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and (why_not := no_gpu()):
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {why_not}"))


def no_gpu() -> str | None:
    """Why torch cannot use a GPU here, or None where it can.  torch.cuda stands for HIP devices too."""
    with warnings.catch_warnings(record=True) as caught:  # a driver too old is only a warning
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA and HIP"
    warned = "; ".join(str(warning.message) for warning in caught)
    return warned or f"torch {torch.__version__} sees no CUDA or HIP device"


@pytest.fixture(autouse=True)
def fresh_programs() -> None:
    """No test is handed what another one compiled, perhaps with a planted mistake that no key can see."""
    PROGRAMS.clear()


@pytest.fixture
def golden_text(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden_text(text, name)``: `text` must equal tests/golden_text/<test file>/<name>.txt.

    <test file> is the path below tests/ without ".py".  A missing file is a failure that shows the text;
    ``pytest --update-golden`` writes it, and the diff is then read as part of the change.
    """
    folder = GOLDEN_TEXT / request.path.relative_to(TESTS).with_suffix("")
    update = request.config.getoption("--update-golden")

    def check(text: str, name: str) -> None:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"golden text name {name!r}: use letters, digits, '_', '-' and '.'")
        file = folder / f"{name}.txt"
        text = text.rstrip("\n") + "\n"
        if update:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            return
        shown = file.relative_to(TESTS.parent)
        if not file.exists():
            missing = f"{shown} is missing; if this text is right, run pytest --update-golden:"
            pytest.fail(f"{missing}\n{text}", pytrace=False)
        want = file.read_text(encoding="utf-8")
        if text != want:
            lines = want.splitlines(), text.splitlines()
            diff = difflib.unified_diff(*lines, fromfile=str(shown), tofile="this run", lineterm="")
            pytest.fail("\n".join(["golden text differs:", *diff]), pytrace=False)

    return check
