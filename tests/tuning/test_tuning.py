"""Planning, running and picking with a stand-in for the device: nothing is compiled and no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from backends.cute.lower import lower
from pypto_models.compile import lower_for
from pypto_models.errors import UserError
from pypto_models.kernel_file import KernelFile
from pypto_models.schedule import Schedule, problems
from pypto_models.schedule.overrides import load, overrides
from pypto_models.target import load_target
from pypto_models.tuning import picking, planning, running
from pypto_models.tuning.choices import groups, legal, schedules, values_of
from pypto_models.tuning.records import RESULTS, Plan, Results

from .support import Kept, StandIn, Toy

H200 = load_target("h200")
FILE = KernelFile.load(Path(__file__).with_name("kernels.py"))
MOST = 5


def source(**arguments: Any) -> planning.Source:
    kernel = FILE.entry(None)
    return planning.Source(
        "kernels.py", kernel, H200, FILE.constants(kernel, "h200"), FILE.arguments("h200", arguments),
        groups(FILE.tuning("h200")),
    )  # fmt: skip


def planned(folder: Path, **options: Any) -> Plan:
    said: list[str] = []
    return planning.plan(source(), Toy(), folder, **{"most": MOST, "say": said.append, **options})


def by_slots(values: dict[str, Any]) -> float:
    """The more slots the faster."""
    return 50e-6 - 1e-6 * values.get("slots", 0) - 1e-7 * values.get("warps_n", 0)


def stand_in(**options: Any) -> StandIn:
    return StandIn(**{"times": by_slots, **options})


# ------------------------------------------------------------------------------------------ plan
def test_all_schedules_are_legal_distinct_and_reach_the_kernel() -> None:
    found = lower_for(FILE.entry(None), (), H200, FILE.constants(FILE.entry(None), "h200"))
    (domain,) = (d for d in found.domains if d.name == "up")
    every = schedules(domain, H200, 1000)
    (default,) = (s for s in found.schedules() if s.region == "up")
    assert every[0] == default, "the default leads"
    assert len(every) > 20 and len({tuple(values_of(s).values()) for s in every}) == len(every)
    assert schedules(domain, H200, 7) == every[:7]
    families = [(s.stream.warps_n, s.stream.warps_k, s.ctas) for s in every if s.stream is not None][1:]
    count = len(set(families))
    assert count > 3 and len(set(families[:count])) == count, "one of each family comes first"
    estimates = [s.estimate_s for s in every[1 : count + 1]]
    assert estimates == sorted(estimates) and estimates[-1] <= 1.2 * every[0].estimate_s
    for s in every:
        assert problems(s, H200) == () and s.stream is not None
        assert legal(domain, H200, values_of(s)) == s, "the values fix all of it"
    for s in every[:12]:
        (k,) = (
            k
            for k in lower(found.function, H200, given=overrides({"up": values_of(s)})).kernels
            if k.region == "up"
        )
        v = values_of(s)
        fields = f"warps_n={v['warps_n']}, warps_k={v['warps_k']}, chunk={v['step']}, stages={v['slots']},"
        assert fields in k.text and f"ctas={v['walkers']}," in k.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slots": 99}, r"'up: slots 99': it takes \d+ bytes of shared memory"),
        ({"warps_k": 64}, "'up: warps_k 64': "),
        ({"step": 96}, "'up: step 96': "),
        ({"owner": "warp"}, "'up: owner warp': "),
    ],
)
def test_an_illegal_schedule_is_refused_by_name(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        planned(tmp_path, regions=["up"], tried={"up": [values]})


def test_the_plan(tmp_path: Path) -> None:
    plan = planned(tmp_path, tried={"up": [{"slots": 7, "warps_n": 8, "warps_k": 1}]})
    assert plan == Plan.read(tmp_path), "it is what was written"
    parts = {p.name: p for p in plan.parts}
    assert list(parts) == ["up", "down", "gather"]
    up = parts["up"]
    assert [v.default for v in up.variants] == [True] + [False] * (len(up.variants) - 1)
    assert any(v.values["slots"] == 7 for v in up.variants), "what was asked for is there"
    assert len(up.variants) == MOST + 1 and len({v.folder for v in up.variants}) == len(up.variants)
    assert up.sizes == {"rows": 16, "n": 256, "k": 512}
    assert {a.name: (a.direction, a.shape) for a in up.arguments} == {
        "x": ("in", (5, 512)), "first": ("in", (256, 512)), "middle": ("out", (5, 256))
    }  # fmt: skip
    assert [v.values for v in parts["gather"].variants] == [{"TILE": 64}, {"TILE": 32}]
    (refused,) = plan.refused
    assert (refused.part, refused.values) == ("gather", {"TILE": 1024})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": ["side"]}, "'side': it is no streamed product and no group"),
        ({"regions": ["look_up"]}, "'look_up': it is no streamed product and no group"),
        ({"limit": 1000}, r"it takes .* MiB of 0\.000954"),
    ],
)
def test_what_cannot_be_planned(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(tmp_path, **options)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"it holds thesis\.tex, which is not of a tuning"):
        planned(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": {"TILE": [1]}}, "it names no regions"),
        ({"a": {"regions": ["r"], "TILE": 3}}, "TILE has no list of integers"),
        ({"a": {"regions": ["r"], "TILE": []}}, "TILE has no list of integers"),
    ],
)
def test_a_hook_that_says_nothing_useful(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        groups(given)


# ------------------------------------------------------------------------------------------ run
def test_run_and_pick(tmp_path: Path) -> None:
    plan = planned(tmp_path, regions=["up", "down"])
    device = stand_in()
    results = running.run(tmp_path, device, lambda text: None)
    assert len(results.found) == sum(len(p.variants) for p in plan.parts)
    assert {r.status for r in results.found.values()} == {"ok"}
    for part, pick in zip(plan.parts, picking.picks(plan, Results.read(tmp_path)), strict=True):
        times = {v.name: by_slots(v.values) * 1e6 for v in part.variants}
        best, second = sorted(times, key=times.__getitem__)[:2]
        assert pick.best[0].name == best and pick.best[1].us == pytest.approx(times[best])
        assert pick.second is not None and pick.second[0].name == second
    again = stand_in()
    running.run(tmp_path, again, lambda text: None)
    assert again.loaded == [], "nothing is measured twice"


def test_a_wrong_variant_is_never_picked(tmp_path: Path) -> None:
    plan = planned(tmp_path, regions=["up"])
    best = min(plan.parts[0].variants, key=lambda v: by_slots(v.values))

    def skip_a_row(values: dict[str, Any], args: Mapping[str, Any]) -> None:
        if values == best.values:
            args["middle"][3] = 0.0

    results = running.run(tmp_path, stand_in(break_it=skip_a_row), lambda text: None)
    found = results.found["up", best.folder]
    assert found.status == "wrong" and found.why.startswith("middle: ") and found.us == 0
    (pick,) = picking.picks(plan, results)
    assert pick.best[0] != best and pick.best[1].status == "ok"
    assert pick.best[1].us == min(r.us for r in results.found.values() if r.status == "ok")


def test_a_variant_that_is_right_only_once_is_wrong(tmp_path: Path) -> None:
    planned(tmp_path, regions=["up"])
    runs: list[int] = []

    def left_behind(values: dict[str, Any], args: Mapping[str, Any]) -> None:
        runs.append(1)
        if len(runs) % 2 == 0:
            args["middle"][0, 0] += 100.0

    results = running.run(tmp_path, stand_in(break_it=left_behind), lambda text: None)
    assert {r.status for r in results.found.values()} == {"wrong"}
    with pytest.raises(UserError, match="'up': none of its variants is right"):
        picking.picks(Plan.read(tmp_path), results)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    plan = planned(tmp_path, regions=["up"])
    with pytest.raises(KeyboardInterrupt):
        running.run(tmp_path, stand_in(dies_at=2), lambda text: None)
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"part": "up", "vari')  # the kill came while it wrote
    device = stand_in()
    running.run(tmp_path, device, lambda text: None)
    assert device.loaded == [v.values for v in plan.parts[0].variants[2:]]
    assert len(Results.read(tmp_path).found) == len(plan.parts[0].variants)
    picking.picks(plan, Results.read(tmp_path))


def test_a_variant_that_ends_two_processes_counts_as_failed(tmp_path: Path) -> None:
    plan = planned(tmp_path, regions=["up"])
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            running.run(tmp_path, stand_in(dies_at=0), lambda text: None)
    device = stand_in()
    results = running.run(tmp_path, device, lambda text: None)
    first, *rest = plan.parts[0].variants
    assert device.loaded == [v.values for v in rest]
    found = results.of(plan.parts[0], first)
    assert found is not None and found.status == "failed"
    assert found.why == "2 processes ended while they ran it"
    assert picking.picks(plan, results)[0].best[0] != first


def test_a_kernel_that_breaks_the_device_ends_the_process(tmp_path: Path) -> None:
    plan = planned(tmp_path, regions=["up"])

    def fault(values: dict[str, Any], args: Mapping[str, Any]) -> None:
        raise RuntimeError("an illegal memory access\nand its trace")

    with pytest.raises(running.DeviceLost, match="up/0 broke the device"):
        running.run(tmp_path, stand_in(break_it=fault, lost=True), lambda text: None)
    results = running.run(tmp_path, stand_in(), lambda text: None)
    found = results.found["up", plan.parts[0].variants[0].folder]
    assert (found.status, found.why) == ("failed", "RuntimeError: an illegal memory access")
    assert sum(r.status == "ok" for r in results.found.values()) == len(plan.parts[0].variants) - 1


def test_a_part_that_does_not_fit(tmp_path: Path) -> None:
    planned(tmp_path, regions=["up"])
    with pytest.raises(ValueError, match="up takes .* and two copies of that do not fit"):
        running.run(tmp_path, stand_in(free_bytes=2**18), lambda text: None)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99}', None])
def test_a_folder_that_is_no_tuning(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match="this is no tuning"):
        running.run(tmp_path, stand_in(), lambda text: None)


# ------------------------------------------------------------------------------------------ pick
BEFORE = """# Small products on h200
source:
  TILE: 64 # two blocks share an SM
  OTHER: 3

# what was measured
schedule:
  # up: 9.99 us long ago
  up: {slots: 2}
  side:
    warps: 4 # stays
"""


def measured(tmp_path: Path, times: Callable[[dict[str, Any]], float] = by_slots) -> tuple[picking.Pick, ...]:
    plan = planned(tmp_path / "t")
    tiles = {v.folder: v.values for p in plan.parts for v in p.variants if p.kind == "source"}

    class Device(StandIn):
        def load(self, folder: Path) -> Any:
            program = super().load(folder)
            self.loaded[-1] = tiles.get(f"programs/{folder.name}", self.loaded[-1])
            return program

    running.run(tmp_path / "t", Device(times), lambda text: None)
    return picking.picks(plan, Results.read(tmp_path / "t"))


def test_the_file_keeps_what_it_held_and_reads_as_meant(tmp_path: Path) -> None:
    path = tmp_path / "tiling" / "h200.yaml"
    path.parent.mkdir()
    path.write_text(BEFORE)
    up, down, gather = measured(tmp_path, lambda v: by_slots(v) + 1e-6 * (v.get("TILE") == 64))
    picking.write(path, (up, down, gather))
    text = path.read_text()
    assert text.startswith("# Small products on h200\nsource:\n  OTHER: 3\n")
    for stays in ("# what was measured\n", "    warps: 4 # stays\n"):
        assert stays in text
    for gone in ("long ago", "{slots: 2}", "TILE: 64"):
        assert gone not in text
    assert yaml.safe_load(text)["source"] == {"OTHER": 3, "TILE": 32}
    found = load(path)
    assert dict(found["up"].values) == {"rows": 16, "n": 256, "k": 512, **up.best[0].values}
    assert dict(found["side"].values) == {"warps": 4}
    r = up.best[1]
    assert up.default is not None and up.second is not None
    assert f"  # up: {r.us:.2f} us of {up.default.us:.2f} by default, " in text
    assert f", stand-in, {r.date}\n  # up: next: {up.second[1].us:.2f} us with warps_n " in text
    picking.write(path, (up, down, gather))
    assert path.read_text() == text, "writing it again changes nothing"
    lowered = lower_for(FILE.entry(None), (), H200, {"TILE": 32}, schedules=found)
    (s,) = (s for s in lowered.schedules() if s.region == "up")
    assert isinstance(s, Schedule) and values_of(s) == up.best[0].values, "and the compiler takes it"


def test_a_file_is_made_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "new" / "h200.yaml"
    picking.write(path, measured(tmp_path))
    assert set(load(path)) == {"up", "down"} and yaml.safe_load(path.read_text())["source"] == {"TILE": 64}


def test_no_gain_leaves_the_default(tmp_path: Path) -> None:
    picks = measured(tmp_path, lambda v: 50e-6 - 1e-9 * v.get("slots", 0))
    assert all(p.best[0].default for p in picks)


def test_a_file_of_another_form_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "h200.yaml"
    path.write_text("schedule: {up: {slots: 2}}\n")
    with pytest.raises(UserError, match="it cannot take the choice"):
        picking.write(path, measured(tmp_path))
    assert path.read_text() == "schedule: {up: {slots: 2}}\n"


def test_nothing_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of its variants is measured"):
        picking.picks(planned(tmp_path), Results.read(tmp_path))


def test_the_toy_is_a_backend_that_keeps_programs() -> None:
    from pypto_models.backend import Bundles, Reopens, Saved

    assert isinstance(Toy(), Bundles) and isinstance(Toy(), Reopens)
    assert isinstance(Kept(lower_for(FILE.entry(None), (), H200, {"TILE": 32})), Saved)
