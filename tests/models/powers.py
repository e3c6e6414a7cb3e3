"""What holds for the power of every comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from golden.bench import Bench
from golden.power import Case, PowerReport, load_cases, measure_power
from pypto_models.compile import DEFAULT_PLATFORM
from pypto_models.faults import SCORED

MODELS = Path(__file__).parents[2] / "models"
SECONDS = 300  # on two cores that do nothing else

IDLE = "the grid has more blocks than work: a block beyond it stores nothing"


def measured(file: Path, subject: str) -> PowerReport:
    """Every fault of a kernel, on two processes."""
    return measure_power(partial(load_cases, file, "tiny", subject), workers=2)


def show(report: PowerReport) -> str:
    missed = [f"{o.file}:{o.line}: {o.kind}: {o.what}" for o in report.scored if o.status == "missed"]
    return "\n".join([report.summary(), *report.shortfalls(), *missed])


def assert_good_layer(report: PowerReport, reasons: Mapping[str, str]) -> None:
    """98 % caught, 90 % of every class, 300 faults, every class, a reason for each equivalent one."""
    assert report.shortfalls() == [], show(report)
    assert report.total.total >= 300
    assert all(report.by_class()[kind].total > 0 for kind in SCORED)
    assert report.seconds <= SECONDS, show(report)
    found = {o.detail for o in report.scored if o.status == "equivalent"}
    assert found <= {*reasons.values(), IDLE}


def assert_good_block(report: PowerReport) -> None:
    """98 % caught of 40 faults or more."""
    assert report.shortfalls() == [], show(report)
    assert report.total.total >= 40


def assert_sound(case: Case) -> None:
    """Without a fault every comparison passes, on all inputs; one that shows nothing would be refused."""
    bench = Bench(case, DEFAULT_PLATFORM)
    for seed in range(case.runs):
        assert bench.round(seed).sound.keys() == bench.round(seed).compared.keys() != set()


def assert_reasons_exist(reasons: Iterable[str]) -> None:
    """Reasons name lines of the blocks."""
    files = (MODELS / "common").glob("*.py")
    lines = {line.strip() for file in files for line in file.read_text().splitlines()}
    assert set(reasons) <= lines


def name_of(case: Case) -> str:
    return f"{case.subject}-{case.name}"
