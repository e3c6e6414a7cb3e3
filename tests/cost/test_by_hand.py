"""The cost model against times worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from pypto_models.errors import UserError
from pypto_models.language import Kernel

from . import kernels as k
from .support import TILE, timed

# kernel, changes to the rates, seconds; a load, an add and a store of one tile take 1 s each.
CASES: list[tuple[Kernel, dict[str, Any], float]] = [
    (k.one, {}, 3),
    (k.one, {"launch": 0.5}, 3.5),
    (k.one, {"latency": 0.25}, 3.25),  # the loaded tile is usable later
    (k.one, {"vector": 64.0}, 1 + 4 + 1),
    (k.one, {"core": 0.5 * TILE}, 2 + 1 + 2),
    (k.two, {}, 6),
    (k.two, {"launch": 0.5}, 7),
    (k.two, {"launch": 0.5, "barrier": 0.1, "persistent": True}, 0.5 + 3 + 0.1 + 3),
    (k.grid, {"cores": 4, "memory": 4.0 * TILE}, 3),
    (k.grid, {}, 6),  # 4 blocks on 2 cores: two rounds
    (k.grid, {"cores": 3, "memory": 4.0 * TILE}, 6),  # and on 3 cores as well
    (k.grid, {"cores": 1}, 12),
    (k.parallel, {}, 6),
    # Two cores share what one can draw: loads and stores take 2 s, adds 1 s
    (k.grid, {"memory": 1.0 * TILE, "constants": {"BLOCKS": 2}}, 2 + 1 + 2),
    (k.grid, {"memory": 1.0 * TILE, "l2": 1.0 * TILE, "cores": 1}, 12),  # alone, a core draws all of it
    # A box that is loaded again: half of the bytes at twice the rate, 0.75 s a load
    (k.same, {"cores": 1, "memory": 1.0 * TILE, "l2": 2.0 * TILE, "constants": {"BLOCKS": 2}}, 2 * 2.75),
    (k.same, {"cores": 1, "memory": 1.0 * TILE, "l2_bytes": 0, "constants": {"BLOCKS": 2}}, 6),
    # Plain: load, add, load, add ...  Pipelined: the next load during the add
    (k.plain, {}, 4 * 2 + 1),
    (k.pipelined, {}, 1 + 4 + 1),
    (k.pipelined, {"constants": {"STAGE": 1}}, 4 * 2 + 1),
    (k.pipelined, {"vector": 128.0}, 2 + 4 * 2 + 1),  # pl.full takes 2 s too
    (k.pipelined, {"latency": 1.0}, 1 + 6 + 1),  # 3 s a trip, two in flight: 0-3, 1-4, 3-6, 4-7
    (k.pipelined, {"latency": 1.0, "constants": {"STAGE": 4}}, 4 + 1 + 1 + 1),
    (k.product, {}, 0.5 + 0.5 + 1 + 1),
    (k.wide_product, {}, 1 + 1 + 2 + 1),
    (k.wide_product, {"fp32_passes": 8}, 1 + 1 + 8 + 1),
    # Acc to Vec through global memory: written and read; two lanes add
    (k.mixed, {"ring_in_memory": True}, 0.5 + 0.5 + 1 + 2 + 0.5 + 1),
    (k.mixed, {"ring_in_memory": True, "l2": 4.0 * TILE}, 0.5 + 0.5 + 1 + 1 + 0.5 + 1),
    (k.mixed, {}, 0.5 + 0.5 + 1 + 0.5 + 1),
    (k.diamond, {}, 3 + 4 + (2 + 1 + 1)),
    (k.diamond, {"cores": 1}, 3 + 3 + 4 + 4),
    (k.layers, {}, 9),
    (k.rows, {"transfer_bytes": 2048, "short_share": 0.5}, 2 + 1 + 2),  # runs of 1024 bytes at half the rate
    (k.rows, {"transfer_bytes": 1024, "short_share": 0.5}, 3),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "changes", "seconds"), CASES)
def test_seconds(kernel: Kernel, changes: dict[str, Any], seconds: float) -> None:
    given = {"B": 16} if kernel is k.rows else {}
    assert timed(kernel, given, **changes).summary.seconds == pytest.approx(seconds)


def test_critical_path_through_a_diamond() -> None:
    found = timed(k.diamond)
    assert found.summary.critical_path == ("top", "long", "bottom")
    assert {t.name: t.critical for t in found.summary.tasks}["short"] is False
    # On one core the short task is in the way of the long one
    assert timed(k.diamond, cores=1).summary.critical_path == ("top", "short", "long", "bottom")


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"vector": 64.0}, "vector"),
        ({"core": 0.25 * TILE}, "load"),
        ({"launch": 10.0}, "launch"),
        ({"latency": 10.0}, "latency"),
    ],
)
def test_what_bounds_a_task(changes: dict[str, Any], bound: str) -> None:
    (task,) = timed(k.pipelined, **changes).summary.tasks
    assert task.bound == bound


def test_a_product_is_bound_by_the_cube() -> None:
    (task,) = timed(k.product, cube=8.0).summary.tasks
    assert (task.bound, task.flops) == ("cube", 2 * 16**3)


def test_figures_of_a_task() -> None:
    (task,) = timed(k.one, launch=0.5).summary.tasks
    assert task.bytes == 2 * TILE  # one tile in, one out
    assert task.seconds == pytest.approx(3.5)
    assert task.roofline == pytest.approx(1.0 / 3.5)  # 2048 bytes at 2048 bytes a second
    assert task.busy["load"] == task.busy["vector"] == task.busy["store"] == pytest.approx(1 / 3)
    assert (task.blocks, task.cores, task.launches) == (1, 1, 1)


def test_a_box_loaded_again_counts_once() -> None:
    (task,) = timed(k.same, constants={"BLOCKS": 3}).summary.tasks
    assert task.bytes == TILE + 3 * TILE
    (task,) = timed(k.same, constants={"BLOCKS": 3}, l2_bytes=TILE - 1).summary.tasks
    assert task.bytes == 3 * TILE + 3 * TILE


def test_a_loop_around_a_region_is_one_run_a_trip() -> None:
    found = timed(k.layers)
    assert [r.name for r in found.timeline.runs] == ["layer[0]", "layer[1]", "layer[2]"]
    assert [r.after for r in found.timeline.runs] == [(), (0,), (0, 1)]
    assert found.summary.critical_path == ("layer[0]", "layer[1]", "layer[2]")
    (task,) = found.summary.tasks
    assert (task.launches, task.seconds) == (3, pytest.approx(9))


# ------------------------------------------------------------------------------------------ inputs
def test_trips_by_data() -> None:
    for contents in ([3], 3):
        found = timed(k.by_data, {"n": contents})
        assert found.summary.seconds == pytest.approx(3 * 2 + 1)
        assert found.assumptions == ()
    unknown = timed(k.by_data)
    assert unknown.summary.seconds == pytest.approx(1 * 2 + 1)
    assert unknown.assumptions[0] == "contents of n unknown"
    assert unknown.assumptions[1].startswith("trips of k at kernels.py:")


def test_a_branch_by_data() -> None:
    assert timed(k.by_branch, {"n": 1}).summary.seconds == pytest.approx(3)
    assert timed(k.by_branch, {"n": 0}).summary.seconds == pytest.approx(4)
    unknown = timed(k.by_branch)
    assert unknown.summary.seconds == pytest.approx(4), "the dearer branch"
    assert any(a.startswith("unknown condition at kernels.py:") for a in unknown.assumptions)


def test_extents() -> None:
    assert timed(k.rows, {"B": 4}).summary.tasks[0].bytes == 2 * 4 * 64
    default = timed(k.rows)
    assert default.summary.tasks[0].bytes == 2 * TILE
    assert default.assumptions == ("extent B = 16",)


def test_wrong_inputs() -> None:
    with pytest.raises(UserError, match=r"argument 'C': no extent .*\n  fix: known: B, x, y"):
        timed(k.rows, {"C": 4})
    with pytest.raises(UserError, match="argument 'B': the extent is -1"):
        timed(k.rows, {"B": -1})


def test_a_target_without_a_barrier_figure() -> None:
    with pytest.raises(UserError, match="a2a3 has no figure 'grid_barrier_s'"):
        timed(k.two, persistent=True)
