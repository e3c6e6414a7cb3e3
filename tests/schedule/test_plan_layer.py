"""Schedules of a decode layer at its published size, on the GPU targets, and what they must keep."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from models.qwen3_14b import decode_layer
from pypto_models.backend import Compiled
from pypto_models.compile import lower_for
from pypto_models.cost.loads import loads_by_block
from pypto_models.ir.types import Mem, TensorType
from pypto_models.schedule import Schedule, item_traffic, plan, plan_all, problems, stream_traffic
from pypto_models.schedule.overrides import overrides
from pypto_models.schedule.stream import BESIDE_BYTES
from pypto_models.target import load_target
from tests.schedule.coverage import bytes_by_cta, faults

TARGETS = ("h200", "gb10")  # whose tile sizes were chosen
GPUS = (*TARGETS, "mi300x", "mi355x")
PROJECTIONS = ("qkv_proj", "out_proj", "gate_up_silu", "down_proj")
BALANCE = 1.04  # the busiest CTA over the mean
MB = 1024 * 1024

# Runs per KV head on gb10 such that the items of 16 full contexts are equal and divide among 48 SMs
TARGET_RUNS = {"gb10": 48}


@cache
def layer(target: str) -> Compiled:
    constants = decode_layer.cli_constants(target)
    if target in TARGET_RUNS:
        constants["TARGET_RUNS"] = TARGET_RUNS[target]
    return lower_for(decode_layer.decode_layer_with_head, (), load_target(target), constants)


@cache
def schedules(target: str) -> dict[str, Schedule]:
    return {s.region: s for s in plan_all(layer(target).domains, load_target(target))}


def weight_shapes(target: str, s: Schedule) -> dict[str, tuple[int, int]]:
    assert s.stream is not None
    names = {w.tensor for w in s.stream.weights}
    found = {}
    for p in layer(target).function.params:
        t = p.var.type
        if p.name in names and isinstance(t, TensorType):
            rows, columns = (int(d) for d in t.shape if isinstance(d, int))
            found[p.name] = (rows, columns * t.dtype.bytes)
    assert set(found) == names
    return found


each = pytest.mark.parametrize("target", TARGETS)
both = pytest.mark.parametrize(("target", "region"), [(t, r) for t in TARGETS for r in PROJECTIONS])
every_gpu = pytest.mark.parametrize("target", GPUS)
everywhere = pytest.mark.parametrize(("target", "region"), [(t, r) for t in GPUS for r in PROJECTIONS])


@everywhere
def test_each_weight_byte_is_read_once_in_whole_lines(target: str, region: str) -> None:
    s = schedules(target)[region]
    assert s.form == "stream"
    assert faults(s, weight_shapes(target, s)) == []


@both
def test_balance_and_traffic(target: str, region: str) -> None:
    s, cores = schedules(target)[region], load_target(target).cores
    t = stream_traffic(s, cores)
    assert t.whole_lines
    assert t.by_cta == bytes_by_cta(s), "the accounting is that of the cells"
    assert t.total == sum(rows * size for rows, size in weight_shapes(target, s).values())
    assert t.imbalance <= BALANCE
    assert t.busiest / (t.total / cores) == t.imbalance, "an idle core counts"
    # x: what a CTA needs of it, at most once per warp column; never as much as the weights
    assert s.stream is not None
    assert t.x_bytes >= s.stream.rows * s.stream.k * 2 * s.stream.walkers
    assert t.x_bytes <= 0.42 * t.total
    assert t.written_bytes + t.merged_bytes <= 0.06 * t.total


@every_gpu
def test_every_schedule_is_legal(target: str) -> None:
    t = load_target(target)
    for s in schedules(target).values():
        assert problems(s, t) == (), s.describe()
        assert s.shared_bytes <= t.spaces[Mem.Mat].bytes
    assert {s.form for s in schedules(target).values()} == {"stream", "items", "blocks"}


@every_gpu
def test_the_default_is_deterministic(target: str) -> None:
    for s in schedules(target).values():
        assert s.stream is None or s.stream.across in ("none", "workspace")
        assert s.workspace is None or not s.workspace.zeroed


@everywhere
def test_the_ring_keeps_enough_in_flight(target: str, region: str) -> None:
    s, gpu = schedules(target)[region], load_target(target).gpu
    assert s.ring is not None and gpu is not None
    assert s.ring.in_flight >= gpu.in_flight_bytes
    assert s.ring.owners == (s.warps if s.ring.owner == "warp" else 1) and s.ring.slots >= 2
    assert s.prefetch == tuple(dict.fromkeys(w.tensor for w in s.stream.weights))  # type: ignore[union-attr]


def test_attention_of_h200_leaves_room_for_the_next() -> None:
    """Two CTAs fit an SM, so that the next kernel fills its ring before this one ends."""
    s = schedules("h200")["attention"]
    assert s.resident and s.shared_bytes <= 233472 // 2 - 1024


FAST = {  # within 1.2 % of the fastest on an H200: warps along columns and K, elements of a step, slots
    "qkv_proj": (2, 4, 256, 6), "out_proj": (2, 4, 256, 7), "gate_up_silu": (4, 2, 128, 3),
    "down_proj": (1, 8, 512, 3),
}  # fmt: skip


@pytest.mark.parametrize("region", PROJECTIONS)
def test_the_default_is_among_the_fastest_that_were_measured(region: str) -> None:
    s, room = schedules("h200")[region], load_target("h200").spaces[Mem.Mat].bytes - 1024 - BESIDE_BYTES
    assert s.stream is not None and s.ring is not None
    assert (s.stream.warps_n, s.stream.warps_k, s.stream.step, s.ring.slots) == FAST[region]
    assert (s.stream.slices, s.stream.owner, s.stream.x_place, s.ctas) == (1, "cta", "ring", 132)
    assert (s.ring.slots + 1) * s.ring.slot_bytes > room >= s.shared_bytes, (
        "the ring takes what there is, and leaves room for a small block"
    )


def test_what_does_not_fit_one_wave_runs_in_several() -> None:
    """46 granules for each core of gb10, of gate and of up: not even two lines of them fit a block."""
    s = schedules("gb10")["gate_up_silu"]
    assert s.stream is not None and s.ctas == s.stream.units == s.stream.walkers == 5 * 48
    columns = [b - a for a, b in map(s.stream.unit_columns, range(s.stream.units))]
    assert sum(columns) == 17408 and set(columns) == {72, 73}
    assert stream_traffic(s, 48).imbalance <= BALANCE


def test_two_accumulators_share_one_stream() -> None:
    s = schedules("h200")["gate_up_silu"].stream
    assert s is not None
    assert [(w.tensor, w.row, w.accumulator) for w in s.weights] == [
        ("w_gate_up", 0, 0), ("w_gate_up", 17408, 1)
    ]  # fmt: skip
    rows = [{c.row for c in s.cells(0, n * s.warps_k)} for n in range(s.warps_n)]
    assert all(min(r) < 17408 <= max(r) for r in rows), "all granules of the first, then those of the second"


def test_the_same_arguments_give_the_same_schedules() -> None:
    again = plan_all(layer("h200").domains, load_target("h200"))
    assert again == tuple(schedules("h200").values())


# ------------------------------------------------------------------------------------------ attention
@each
def test_attention_runs_as_written_and_says_why(target: str) -> None:
    s = schedules(target)["attention"]
    assert s.form == "items" and s.items is not None and s.ring is not None
    assert {p.tensor for p in s.items.pages} == {"k_cache", "v_cache"}
    assert all(p.paged and p.row_bytes % 128 == 0 for p in s.items.pages)
    assert {"row_max", "row_sum"} == {x.op for x in s.fixed_by}
    assert all(x.line > 0 and "reduces along" in x.why for x in s.fixed_by)
    assert len(set(s.fixed_by)) == len(s.fixed_by), "an op inlined twice is named once"
    assert s.prefetch == (), "the caches are written in the same step"
    assert max(p.bytes for p in s.items.pages) == s.items.cuts * s.ring.slot_bytes


@each
@pytest.mark.parametrize("batch", [16, 1])
def test_attention_of_a_launch(target: str, batch: int) -> None:
    """Every cached token is read once; the busiest CTA at batch 16, or at 1 within a page of the mean."""
    context, t = 4096, load_target(target)
    given = decode_layer.cli_arguments(target, {"BATCH": batch, "ctx": context})
    blocks = loads_by_block(layer(target).graph, t, given, "attention")
    kv = [b.get("k_cache", 0) + b.get("v_cache", 0) for b in blocks]
    traffic = item_traffic(schedules(target)["attention"], kv, t.cores)
    assert traffic.total == sum(kv) == batch * (context - 1) * 4096
    new = sum(b.get("k_new", 0) + b.get("v_new", 0) for b in blocks)
    assert new == 2 * batch * 4096, "for the run that attends to the token, and for the one that writes it"
    assert traffic.whole_lines
    if batch == 16:
        assert traffic.imbalance <= BALANCE
    else:
        page = 2 * 128 * 256
        assert traffic.busiest < traffic.mean + page


# ------------------------------------------------------------------------------------------ planted
@cache
def down(owner: str) -> Schedule:
    """A schedule of down_proj with four slices; legal and balanced."""
    keys = overrides({"down_proj": {"owner": owner, "x": "ring", "slices": 4, "warps_n": 1, "warps_k": 4}})
    (found,) = (d for d in layer("h200").domains if d.name == "down_proj")
    s = plan(found, load_target("h200"), keys["down_proj"])
    assert faults(s, weight_shapes("h200", s)) == [] and stream_traffic(s, 132).imbalance < BALANCE
    return s


def broken(owner: str = "warp", **changes: Any) -> Schedule:
    """That schedule with some of its mapping changed."""
    s = down(owner)
    assert s.stream is not None
    return replace(s, stream=replace(s.stream, **changes))


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        (lambda: broken(columns=168), []),  # other units cover it too: a unit may be short
        (lambda: broken(walkers=31), ["read twice"]),
        (lambda: replace(down("warp"), ctas=124), ["not read"]),
        (lambda: broken("cta", walkers=31), ["read twice"]),
        (lambda: broken("cta", warps_n=2), ["not read"]),
        (lambda: broken("cta", cuts=(0, 4336, 8704, 13056, 17408)), ["parts of lines", "not read"]),
        (lambda: broken(cuts=(0, 4352, 8704, 13056, 17344)), ["not read"]),
        (lambda: broken(cuts=(0, 4352, 8704, 13056, 17472)), ["outside of the tensor"]),
        (lambda: broken(cuts=(0, 4336, 8704, 13056, 17408)), ["parts of lines", "not read"]),
        (lambda: broken(step=96), ["parts of lines", "not read"]),
        (lambda: broken(warps_k=5), ["not read"]),
    ],
)
def test_coverage_finds_a_planted_fault(planted: Any, found: list[str]) -> None:
    s = planted()
    assert faults(s, weight_shapes("h200", s)) == found


def test_balance_finds_a_planted_fault() -> None:
    s = down("warp")
    assert s.stream is not None
    lopsided = replace(s, ctas=84, stream=replace(s.stream, columns=248, walkers=21))
    assert faults(lopsided, weight_shapes("h200", s)) == []
    assert stream_traffic(lopsided, 132).imbalance > 1.5
    torn = replace(s, stream=replace(s.stream, step=96))
    assert not stream_traffic(torn, 132).whole_lines


def test_balance_of_items_finds_a_planted_fault() -> None:
    s = schedules("h200")["attention"]
    assert item_traffic(replace(s, ctas=132), [1] * 264, 132).imbalance == 1.0
    assert item_traffic(replace(s, ctas=132), [1] * 265, 132).imbalance > 1.4
    assert item_traffic(replace(s, ctas=66), [1] * 264, 132).imbalance == 2.0, "idle cores count"
