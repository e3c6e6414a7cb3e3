"""Power: a good comparison catches faults, a weak one is shown to be weak, harmless ones are told apart."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

import pypto_models.language as pl
from golden import ScalarSpec, TensorSpec, allclose, power_run
from golden.bench import Timeout, time_limit
from golden.power import Case, Check, PowerReport, load_cases, measure_power
from golden.power_report import Outcome
from golden.verdict import CompareFn
from pypto_models.cli import main
from pypto_models.errors import UserError
from pypto_models.faults import FaultClass

ROOT = Path(__file__).parent.parent.parent
ROWS, COLS = 8, 32


@pl.jit
def softmax(
    x: pl.Tensor[[ROWS * 4, COLS], pl.FP32],
    y: pl.Out[pl.Tensor[[ROWS * 4, COLS], pl.FP32]],
):
    for b in pl.spmd(4, name_hint="softmax"):
        t = pl.slice(x, [ROWS, COLS], [b * ROWS, 0])
        e = pl.exp(pl.row_expand_sub(t, pl.row_max(t)))
        pl.assemble(y, pl.row_expand_div(e, pl.row_sum(e)), [b * ROWS, 0])


@pl.jit
def shifted(
    x: pl.Tensor[[ROWS, COLS], pl.FP32],
    limit: pl.Scalar[pl.INDEX],
    y: pl.Out[pl.Tensor[[ROWS, COLS], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="shifted"):
        t = pl.slice(x, [ROWS, COLS], [0, 0])
        if limit < 1000:
            t = pl.add(t, 1.0)
        pl.assemble(y, t, [0, 0])


def softmax_check(
    seed: int, compare: CompareFn = allclose, constant: bool = False, spread: float = 800
) -> Check:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS * 4, COLS, generator=generator)
    # The maximum of another row changes no softmax, unless it is so far away that exp overflows
    x += torch.linspace(-spread, spread, ROWS * 4)[torch.randperm(ROWS * 4, generator=generator), None]
    if constant:
        x = x[:1].expand_as(x).contiguous()

    def golden(values: dict[str, torch.Tensor]) -> None:
        values["y"][:] = torch.softmax(values["x"].double(), dim=1)

    specs = [
        TensorSpec("x", x.shape, x.dtype, x),
        TensorSpec("y", x.shape, x.dtype, is_output=True),
    ]
    return Check(specs, golden, compare)


def softmax_cases() -> list[Case]:
    return [Case("fp32", softmax, softmax_check)]


def statuses(report: PowerReport) -> dict[str, str]:
    return {f"{o.kind}: {o.what}": o.status for o in report.outcomes}


# ------------------------------------------------------------------------------------------ power
def test_a_good_comparison_catches_every_fault() -> None:
    report = measure_power(softmax_cases())
    assert report.total.power == 1.0, [o for o in report.outcomes if o.status != "caught"]
    assert report.total.total >= 20
    assert report.shortfalls() == []
    assert report.name == "softmax"


def test_a_weak_comparison_shows_low_power() -> None:
    """The mean of a softmax is the same whichever row it is taken of."""

    def means(actual: torch.Tensor, expected: torch.Tensor, **_context: object) -> tuple[bool, str]:
        error = float((actual.double().mean() - expected.double().mean()).abs())
        return error < 0.02, f"the means differ by {error}"

    report = measure_power([Case("weak", softmax, partial(softmax_check, compare=means, spread=0))])
    assert report.total.power < 0.9
    assert any("98% are asked for" in line for line in report.shortfalls())
    missed = [o for o in report.outcomes if o.status == "missed"]
    assert "load of x at +1 on axis 0" not in {o.what for o in missed}  # the last block leaves the tensor
    assert all(o.detail == "the result changes, and every comparison passes" for o in missed)
    strict = statuses(measure_power(softmax_cases()))
    assert {strict[f"{o.kind}: {o.what}"] for o in missed} == {"caught"}


def test_poor_inputs_show_low_power() -> None:
    """Where all rows are equal, nobody can tell a row from its neighbour."""
    rich = statuses(measure_power(softmax_cases()))
    poor = statuses(measure_power([Case("poor", softmax, partial(softmax_check, constant=True))]))
    lost = {what for what, status in poor.items() if status != "caught" and rich[what] == "caught"}
    assert "BROADCAST: row_expand_div takes row_sum of the next row" in lost
    assert "OFF_BY_ONE: load of x at -1 on axis 0" not in lost  # the first block leaves the tensor


def test_a_second_case_catches_what_the_first_misses() -> None:
    poor = Case("poor", softmax, partial(softmax_check, constant=True))
    report = measure_power([poor, *softmax_cases()])
    assert report.total.power == 1.0
    by_second = [o for o in report.outcomes if o.detail.startswith("fp32")]
    assert any(o.kind == FaultClass.BROADCAST.name for o in by_second)


def test_more_inputs_catch_what_the_first_miss() -> None:
    def check(seed: int) -> Check:
        return softmax_check(seed, constant=seed == 0)

    assert measure_power([Case("one", softmax, check, runs=1)]).total.missed > 0
    assert measure_power([Case("two", softmax, check, runs=2)]).total.missed == 0


# ------------------------------------------------------------------------------------------ equivalence
def shifted_cases(limits: tuple[int, ...], reasons: dict[str, str]) -> list[Case]:
    def check(seed: int) -> Check:
        def golden(values: dict[str, torch.Tensor]) -> None:
            values["y"][:] = values["x"] + (1.0 if values["limit"] < 1000 else 0.0)  # type: ignore[operator]

        return Check(
            [
                TensorSpec("x", (ROWS, COLS), torch.float32, torch.randn),
                ScalarSpec("limit", torch.int64, limits[seed % len(limits)]),
                TensorSpec("y", (ROWS, COLS), torch.float32, is_output=True),
            ],
            golden,
        )

    return [Case("fp32", shifted, check, reasons=reasons)]


EDGE = "OFF_BY_ONE: <= in limit < 1000"
WHY = {"if limit < 1000:": "no caller gives 1000"}


def test_a_fault_that_changes_no_bit_and_has_a_reason_is_equivalent() -> None:
    report = measure_power(shifted_cases((3, 4, 5), WHY))
    assert statuses(report)[EDGE] == "equivalent"
    (edge,) = [o for o in report.outcomes if f"{o.kind}: {o.what}" == EDGE]
    assert edge.detail == "no caller gives 1000"
    assert Path(edge.file) == Path(__file__)


def test_without_a_reason_it_is_missed() -> None:
    report = measure_power(shifted_cases((3, 4, 5), {}))
    (edge,) = [o for o in report.outcomes if f"{o.kind}: {o.what}" == EDGE]
    assert edge.status == "missed"
    assert "nobody says why" in edge.detail


def test_one_of_five_further_inputs_disproves_equivalence() -> None:
    report = measure_power(shifted_cases((3, 4, 5, 6, 1000, 8), WHY))
    assert statuses(report)[EDGE] == "missed"


# ------------------------------------------------------------------------------------------ refusals
def test_a_comparison_that_fails_by_itself_has_no_power() -> None:
    def wrong(seed: int) -> Check:
        def golden(values: dict[str, torch.Tensor]) -> None:
            values["y"][:] = values["x"]

        good = softmax_check(seed)
        return Check(good.specs, golden)

    with pytest.raises(ValueError, match="fp32, inputs 0: the comparison fails without any fault"):
        measure_power([Case("fp32", softmax, wrong)])


def test_a_comparison_that_shows_nothing_has_no_power() -> None:
    def everything_passes(*_args: object, **_context: object) -> tuple[bool, str]:
        return True, ""

    with pytest.raises(ValueError, match="the comparison of 'y' shows nothing"):
        measure_power([Case("idle", softmax, partial(softmax_check, compare=everything_passes))])


def test_cases_have_names_of_their_own() -> None:
    with pytest.raises(ValueError, match="each with its own name"):
        measure_power([*softmax_cases(), *softmax_cases()])
    with pytest.raises(ValueError, match="give at least one"):
        measure_power([])


def test_workers_make_their_own_cases() -> None:
    with pytest.raises(ValueError, match="need a callable source"):
        measure_power(softmax_cases(), workers=2)


def test_a_run_without_end_is_stopped() -> None:
    with pytest.raises(Timeout), time_limit(0.05):  # noqa: PT012
        while True:
            pass
    with time_limit(0.01):
        pass  # nothing is left armed behind it


# ------------------------------------------------------------------------------------------ reports
def test_report_figures() -> None:
    def outcome(kind: FaultClass, line: int, status: str) -> Outcome:
        return Outcome(kind.name, line, "x", "f.py", line, status, "")

    report = PowerReport(
        "k",
        ("fp32",),
        (
            *(outcome(FaultClass.CONSTANT, 1, "caught") for _ in range(8)),
            outcome(FaultClass.CONSTANT, 2, "missed"),
            outcome(FaultClass.OFF_BY_ONE, 2, "equivalent"),
            outcome(FaultClass.ROUNDING_MODE, 3, "missed"),
        ),
        1.0,
    )
    assert (report.total.caught, report.total.missed, report.total.equivalent) == (8, 1, 1)
    assert report.total.power == pytest.approx(8 / 9)
    assert report.by_class()[FaultClass.OFF_BY_ONE].power == 1.0
    assert report.by_class()[FaultClass.STALE].total == 0
    assert {at: t.total for at, t in report.by_line().items()} == {("f.py", 1): 8, ("f.py", 2): 2}
    shortfalls = report.shortfalls()
    assert len(shortfalls) == 3
    assert "88.9% of the faults are caught" in shortfalls[0]
    assert shortfalls[1].startswith("change a constant: 88.9%")
    assert "10.0% of the faults are called equivalent" in shortfalls[2]
    console = Console(width=120, record=True)
    for table in report.tables():
        console.print(table)
    assert "f.py:2" in console.export_text()


def test_a_count_samples_over_classes() -> None:
    report = measure_power(softmax_cases(), count=8)
    assert len(report.outcomes) == 8
    assert len({o.kind for o in report.outcomes}) >= 6


# ------------------------------------------------------------------------------------------ command line
KERNEL_FILE = '''
import torch
import pypto_models.language as pl
from golden import TensorSpec
from golden.power import Case, Check

@pl.jit
def doubled(x: pl.Tensor[[8, 32], pl.FP32], y: pl.Out[pl.Tensor[[8, 32], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="doubled"):
        pl.assemble(y, pl.mul(pl.slice(x, [8, 32], [0, 0]), 2.0), [0, 0])

def golden(values):
    values["y"][:] = 2 * values["x"]

def check(seed):
    x = TensorSpec("x", (8, 32), torch.float32, torch.randn)
    return Check([x, TensorSpec("y", (8, 32), torch.float32, is_output=True)], golden)

def power_cases(config):
    return [Case(config, doubled, check)]
'''


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "doubled.py", tmp_path / "power.json"
    file.write_text(KERNEL_FILE)
    assert main(["power", str(file), "--config", "small", "--workers", "0", "--json", str(out)]) == 0
    (report,) = json.loads(out.read_text())
    assert report["name"] == "doubled"
    assert report["cases"] == ["small"]
    assert report["total"]["power"] == 1.0
    assert report["total"]["caught"] == len(report["faults"]) >= 3
    assert {f["line"] for f in report["faults"]} <= {9, 10}
    assert "power 100.0%" in capsys.readouterr().out


def test_command_with_workers_gives_the_same(tmp_path: Path) -> None:
    file = tmp_path / "doubled.py"
    file.write_text(KERNEL_FILE)
    source = partial(load_cases, file, "small")
    alone, spread = measure_power(source), measure_power(source, workers=2)
    assert alone.outcomes == spread.outcomes


def test_command_refuses_a_file_without_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "empty.py"
    file.write_text("import pypto_models.language as pl\n")
    assert main(["power", str(file)]) == 2
    assert "define power_cases(config)" in capsys.readouterr().err
    with pytest.raises(UserError, match="power_cases"):
        load_cases(file, "tiny")


def test_command_names_the_kernels_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "doubled.py"
    file.write_text(KERNEL_FILE)
    assert main(["power", str(file), "--kernel", "tripled"]) == 2
    assert "known: doubled" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cpu", "given", "expected"),
    [("GenuineIntel", None, "AVX2,STRICT"), ("GenuineIntel", "AVX", "AVX"), ("AuthenticAMD", None, None)],
)
def test_sums_have_one_order_on_intel(
    cpu: str, given: str | None, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"vendor_id : {cpu}\n")
    monkeypatch.setattr(power_run, "CPU", tmp_path / "cpuinfo")
    monkeypatch.setenv("MKL_CBWR", given or "")
    if given is None:
        monkeypatch.delenv("MKL_CBWR")
    power_run.one_order_of_sums()
    assert os.environ.get("MKL_CBWR") == expected
