"""The arithmetic of the bench, its tables and files, timing builds, and what bundles are told apart by."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backends.cute.compiler import CuteToolchain
from backends.cute.lower import lower
from backends.gpu.manifest import read_bundle
from backends.gpu.timing import ARRIVED, END, EVENTS, START, WAITED
from pypto_models.compile import lower_for
from pypto_models.target import load_target
from tests.backends.cute.support import CountingCompiler, needs_cutlass
from tests.tools.stand_ins import Slow
from tools.gpu_bench import prepare, stamps
from tools.gpu_bench.catalogue import ENTRIES, LAYERS, SLICED, BenchError, identify
from tools.gpu_bench.check import Error, Verdict, Wanted
from tools.gpu_bench.data import level, spread
from tools.gpu_bench.measure import Timing, summary, time_calls
from tools.gpu_bench.report import Ceiling, Region, Report, Row, by_subject, cells, table, tables


# ------------------------------------------------------------------------------------------------ figures
def test_medians() -> None:
    found = summary([4e-6, 1e-6, 10e-6, 2e-6], calls=2)
    assert (found.us, found.least, found.most) == pytest.approx((1.5, 0.5, 5.0))
    device = Slow()
    calls = [lambda: None for _ in range(7)]
    assert time_calls(device, calls).us == pytest.approx(2.0)
    assert device.graphs == [28]  # four rounds of 7 are at least 24


def test_floor_and_share() -> None:
    ceiling = Ceiling(4.0e12, "by hand", 3.9e12)
    assert ceiling.us(660_000_000) == pytest.approx(165.0)
    row = Row("s", "ours", Timing(200.0, 190.0, 220.0), 660_000_000, ceiling.us(660_000_000))
    assert row.share == pytest.approx(0.825) and row.status == "-"
    assert Row("s", "ours", why="no").share is None and Row("s", "ours", why="no").status == "ERROR"
    assert Row("s", "ours", Timing(0.0, 0.0, 0.0), 1, 1.0).share is None


def test_errors() -> None:
    exact = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    error = Error.of(torch.tensor([1.0, 2.5, 3.0, 3.0]), exact)
    assert (error.most, error.rms) == pytest.approx((1.0, math.sqrt(1.25 / 4)))
    with pytest.raises(ValueError, match=r"has shape \[2\] instead of \[4\]"):
        Error.of(torch.zeros(2), exact)


@pytest.mark.parametrize(
    ("got", "passed"),
    [((0.2, 0.0), True), ((0.21, 0.0), False), ((0.126, 0.126), False), ((0.12, 0.12), True),
     ((math.nan, 0.0), False), ((math.inf, 0.0), False)],
)  # fmt: skip
def test_limits(got: tuple[float, float], passed: bool) -> None:
    """Torch is off by 0.1 in both places: maximum up to 0.2, RMS up to 0.125."""
    zero = torch.zeros(2, dtype=torch.float64)
    wanted = Wanted(zero, torch.full((2,), 0.1, dtype=torch.float64))
    limits = (2.0, 1.5) if got == (0.2, 0.0) else (2.0, 1.25)
    assert wanted.verdict("x", torch.tensor(got, dtype=torch.float64), limits).passed is passed


def test_only_the_rows_that_are_computed_count() -> None:
    rows = torch.tensor([2, 0])
    wanted = Wanted(torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.tensor([[1.1], [2.0]]), rows)
    cache = torch.tensor([[2.0], [math.nan], [1.1]])
    assert wanted.verdict("x", cache, (2.0, 1.25)).passed
    assert not wanted.verdict("x", cache.flip(0), (2.0, 1.25)).passed


def test_contexts() -> None:
    lengths = spread(4096, 16)
    assert (min(lengths), max(lengths), len({*lengths})) == (1, 4096, 16)
    assert list(lengths) != sorted(lengths)
    even = level(lengths)
    assert sum(even) == sum(lengths) and max(even) - min(even) <= 1 and len(even) == 16
    assert spread(128, 1) == (128,) and spread(9, 2) in ((1, 9), (9, 1))
    for batch in range(1, 17):
        assert len(spread(4096, batch)) == batch == len({*spread(4096, batch)})


# ------------------------------------------------------------------------------------------------- tables
GOOD = Verdict("next_hidden", Error(1e-2, 1e-3), Error(1.1e-2, 1e-3), True)
BAD = Verdict("v_cache", Error(math.nan, math.nan), Error(1e-2, 1e-3), False)
ROWS = [
    Row("layer", "ours", Timing(200.0, 190.0, 220.0), 660, 165.0, (GOOD,)),
    Row("product", "ours", Timing(20.0, 19.0, 22.0), 66, 16.5, (GOOD, BAD)),
    Row("layer", "a | peer", why="RuntimeError: no"),
    Row("product", "ours again", Timing(1.0, 1.0, 1.0), 66, 0.5, (GOOD,), "a replay differs", failed=True),
]
REGION = Region("layer", "qkv_proj", 132, -1.25, 0.5, 20.0, True, 15.0)


def test_the_file_holds_everything(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    report = Report(file, {"device": "none", "ceiling": {"bytes_per_s": 4e12, "how": "x", "torch_sum": 3e12}})
    report.say = lambda text: None
    for i, row in enumerate(ROWS):
        report.add(row)
        assert len(json.loads(file.read_text())["rows"]) == i + 1  # a killed run loses nothing
    report.add_regions("layer", [REGION], 0.75)
    back = Report.parse(json.loads(file.read_text()))
    assert repr(back.rows) == repr(report.rows)  # by text: NaN is not equal to itself
    assert (back.regions, back.gaps, back.about) == ([REGION], {"layer": 0.75}, report.about)
    assert tables(back) == tables(report) and back.failed
    assert list(tmp_path.iterdir()) == [file]


def test_the_table() -> None:
    report = Report(None, rows=list(ROWS), regions=[REGION], gaps={"layer": 0.75}, say=lambda text: None)
    assert [r.status for r in ROWS] == ["PASS", "FAIL", "ERROR", "FAIL"]
    assert [(r.subject, r.program) for r in by_subject(ROWS)] == [
        ("layer", "ours"), ("layer", "a | peer"), ("product", "ours"), ("product", "ours again"),
    ]  # fmt: skip
    assert cells(ROWS[0]) == ["layer", "ours", "200.0", "190.0", "220.0", "165.0", "82.5%",
                              "1.0e-02", "1.1e-02", "1.0e-03", "1.0e-03", "PASS"]  # fmt: skip
    assert cells(ROWS[1])[7:] == ["nan", "1.0e-02", "nan", "1.0e-03", "FAIL"]  # the worse of the two
    assert cells(ROWS[2])[2:] == [""] * 9 + ["ERROR: RuntimeError: no"]
    text = tables(report)
    assert "to the first weights of the next, median: 0.75 us (layer)." in text
    assert len({len(line) for line in text.splitlines()[:6]}) == 1  # aligned
    launch = [cell.strip() for cell in text.splitlines()[-3].split("|")[1:-1]]
    assert launch == ["layer", "qkv_proj", "132", "-1.25", "+0.50", "+20.00", "15.0", "75%", "weights"]
    assert table(("a", "b", "c"), [["x", "y", "z"]]).splitlines()[1] == "|---|---|---|"


def test_what_fails() -> None:
    silent = {"say": lambda text: None}
    assert not Report(rows=[ROWS[0], ROWS[2]], **silent).failed  # a peer that raises
    assert Report(rows=[ROWS[1]], **silent).failed
    assert Report(rows=[Row("s", "ours", why="raised")], **silent).failed
    assert Report(rows=[Row("s", "ours, timing build", why="raised")], **silent).failed


# ------------------------------------------------------------------------------------------ timing builds
def noted(*ctas: dict[int, int]) -> Tensor:
    """Stamps of a launch, by event; 8 CTAs have room."""
    made = torch.zeros(8, EVENTS, dtype=torch.int64)
    for i, events in enumerate(ctas):
        for event, ns in events.items():
            made[i, event] = ns
    return made


def test_the_timeline_by_hand() -> None:
    """Two layers of two launches; the second streams, and its weights come before the first has ended."""

    def layer(t: int) -> Tensor:
        early = {START: t + 100, WAITED: t + 600, END: t + 2000}
        first = noted(early, {START: t + 300, WAITED: t + 700, END: t + 3000})
        second = noted({START: t + 2500, WAITED: t + 3100, ARRIVED: t + 2800, END: t + 9000})
        return torch.stack([first, second])

    launches = [stamps.Launch("norm"), stamps.Launch("qkv", 4.5)]
    regions, gap = stamps.timeline("layer", launches, [[layer(1_000_000), layer(1_010_000)]])
    assert [r.kernel for r in regions] == ["norm", "qkv"]
    norm, qkv = regions
    # the second layer's norm: after 1,009,000 it starts at 1,010,100, has waited at 1,010,600 (it streams
    # nothing) and ends at 1,013,000
    assert (norm.start, norm.gap, norm.end, norm.ctas, norm.streams) == (1.1, 1.6, 4.0, 2, False)
    assert (qkv.start, qkv.gap, qkv.end, qkv.ctas, qkv.streams) == (-0.5, -0.2, 6.0, 1, True)
    assert (norm.share, qkv.share) == (0.0, 0.75)
    assert gap == pytest.approx(-0.2)
    regions, gap = stamps.timeline("layer", launches[:1], [[noted()[None], noted()[None]]])
    assert regions == [] and math.isnan(gap)


def test_the_events_are_those_of_the_backend() -> None:
    assert (stamps.START, stamps.WAITED, stamps.ARRIVED, stamps.END) == (START, WAITED, ARRIVED, END)


# ---------------------------------------------------------------------------------------------- bundles
@needs_cutlass
def test_bundles_are_prepared_and_known_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYPTO_MODELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(CuteToolchain, "compile_units", CountingCompiler())
    said: list[str] = []
    only = ["qwen3_14b/o", "*/without", "qwen3_5_27b/gdn/timing"]
    size = prepare.prepare("h200", tmp_path / "b", "tiny", only, said.append)
    assert size == sum(f.stat().st_size for f in (tmp_path / "b").rglob("*") if f.is_file())
    found = {}
    for folder in (tmp_path / "b").iterdir():
        manifest, _ = read_bundle(folder)
        shapes = {p.name: p.shape for p in manifest.parameters}
        made = identify(manifest.name, shapes)
        found[folder.name] = (made.entry.name, made.size, made.timing)
    assert found == {
        "qwen3_14b-o": ("qwen3_14b/o", "tiny", False),
        "qwen3_14b-full-without": ("qwen3_14b/full/without", "tiny", False),
        "qwen3_5_27b-full-without": ("qwen3_5_27b/full/without", "tiny", False),
        "qwen3_5_27b-gdn-timing": ("qwen3_5_27b/gdn", "tiny", True),
    }
    assert len(said) == 4
    monkeypatch.setattr(prepare, "LIMIT_BYTES", 1 << 10)
    with pytest.raises(ValueError, match=r"takes 0\.\d MiB, 0 at most"):
        prepare.prepare("h200", tmp_path / "b", "tiny", ["qwen3_14b/o"], said.append)
    with pytest.raises(ValueError, match="no program is called nothing; known: qwen3_14b/full"):
        prepare.prepare("h200", tmp_path / "b", "tiny", ["nothing"], said.append)


def test_everything_that_the_goals_name_is_prepared() -> None:
    names = [name for name, _, _ in prepare.wanted()]
    assert len(names) == len({*names}) == len(ENTRIES) + len(LAYERS) == 14
    assert {"qwen3_14b-qkv", "qwen3_14b-full-timing", "qwen3_5_27b-gdn"} <= {*names}


@pytest.mark.parametrize(("name", "zeroed"), [(SLICED[0], False), (SLICED[1], True)])
def test_the_cut_of_down_is_for_its_published_size(name: str, zeroed: bool) -> None:
    entry, target = ENTRIES[name], load_target("h200")
    constants = entry.constants(entry.kind.configs["full"], "h200")
    found = lower_for(entry.kernel, (), target, constants, schedules=entry.schedules)
    kernels = [k.region for k in lower(found.function, target, given=found.overrides).kernels]
    assert kernels == [*(["down_proj_zero"] if zeroed else []), "down_proj", "down_proj_epilogue"]


def test_other_programs_are_refused() -> None:
    with pytest.raises(BenchError, match="softmax is no program of the bench; python -m tools.gpu_bench"):
        identify("softmax", {"x": ("ROWS", "512")})
    with pytest.raises(BenchError, match=r"bench_o has weights \{'weight': \('7', '8'\)\}, which no size"):
        identify("bench_o", {"weight": ("7", "8")})
