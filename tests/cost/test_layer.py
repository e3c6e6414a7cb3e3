"""The cost model on a decode layer: it counts what the simulator moves, and its trace is sound."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch

from backends.sim.memory import View
from models.qwen3_14b.config import TINY
from models.qwen3_14b.inputs import make_inputs
from pypto_models.cost import Estimate, estimate, from_arguments, trace_events
from pypto_models.cost.operations import Pipe
from pypto_models.target import load_target
from tests.models.qwen3_14b.step import execute, step

CONTEXTS = (1, 37, 128, 90)


@cache
def tensors() -> dict[str, torch.Tensor]:
    return make_inputs(TINY, len(CONTEXTS), CONTEXTS, seed=3, lm_head="skip")


def layer(target: str = "a2a3", persistent: bool = False) -> Estimate:
    compiled = step(TINY, "skip", platform=f"{target}sim").compiled
    given = from_arguments(compiled.function, tensors())
    return estimate(compiled.graph, load_target(target), given, persistent=persistent)


@pytest.fixture(scope="module")
def found() -> Estimate:
    return layer()


def test_bytes_are_those_that_the_simulator_moves(found: Estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are of floats and scalars of integers, so that the two can be told apart in the simulator."""
    moved = {"load": 0, "store": 0}
    load, store = View.load, View.store

    def counted_load(self: View, *args: Any) -> torch.Tensor:
        out = load(self, *args)
        moved["load"] += out.numel() * out.element_size() if out.is_floating_point() else 0
        return out

    def counted_store(self: View, offsets: Any, data: torch.Tensor, atomic: bool) -> None:
        moved["store"] += data.numel() * data.element_size() if data.is_floating_point() else 0
        store(self, offsets, data, atomic)

    monkeypatch.setattr(View, "load", counted_load)
    monkeypatch.setattr(View, "store", counted_store)
    execute(step(TINY, "skip"), tensors())
    asked = {p: sum(s.operation.bytes for s in found.timeline.slices if s.pipe is p) for p in Pipe}
    assert asked[Pipe.LOAD] == moved["load"] > 0
    assert asked[Pipe.STORE] == moved["store"] > 0
    assert found.assumptions == (), "everything that decides a trip or a branch was given"


def test_flops_of_the_projections(found: Estimate) -> None:
    c = TINY
    flops = {t.name: t.flops for t in found.summary.tasks}
    assert flops["qkv_proj"] == 2 * 16 * c.hidden * c.qkv_width
    # The epilogues count one operation an element and op: the residual of out_proj has five
    assert flops["out_proj"] - 2 * 16 * c.hidden * c.q_width == 5 * 16 * c.hidden


@pytest.mark.parametrize("target", ["a2a3", "a5", "gb10", "h200", "mi300x", "mi355x"])
def test_nothing_is_faster_than_the_bandwidth_or_the_critical_path(target: str) -> None:
    found = layer(target)
    s = found.summary
    assert 0 < s.floor < s.seconds
    assert all(0 <= t.roofline <= 1 for t in s.tasks)
    by_name = {t.name: t for t in s.tasks}
    assert sum(by_name[name].seconds for name in s.critical_path) >= s.seconds * (1 - 1e-9)
    assert [t.name for t in s.tasks][0] == s.critical_path[0] == "input_norm"
    assert s.critical_path[-1] == "final_norm"


def test_barriers_are_cheaper_than_launches() -> None:
    chain, persistent = layer("h200").summary, layer("h200", persistent=True).summary
    figures = load_target("h200").figures
    assert figures.launch_s is not None and figures.grid_barrier_s is not None
    saved = (len(chain.critical_path) - 1) * (figures.launch_s - figures.grid_barrier_s)
    assert chain.seconds - persistent.seconds == pytest.approx(saved, rel=1e-6)


def test_no_pipe_does_two_things_at_once(found: Estimate) -> None:
    rows: dict[tuple[int, Pipe], list[tuple[float, float]]] = {}
    for s in found.timeline.slices:
        rows.setdefault((s.core, s.pipe), []).append((s.start, s.end))
    for spans in rows.values():
        spans.sort()
        assert all(a[1] <= b[0] + 1e-15 for a, b in zip(spans, spans[1:], strict=False))


def test_operations_wait_for_what_they_need(found: Estimate) -> None:
    rates, times = found.timeline.rates, {}
    for s in found.timeline.slices:
        times[s.run, s.block, id(s.operation)] = s
    for r, run in enumerate(found.timeline.runs):
        for b, block in enumerate(run.blocks):
            for o in block:
                for before in (block[a] for a in o.after):
                    if o.pipe is not None and before.pipe is not None:
                        late = 0.0 if before.pipe in (Pipe.STORE, Pipe.CUBE, Pipe.VECTOR) else rates.latency
                        first, second = times[r, b, id(before)], times[r, b, id(o)]
                        assert second.start >= first.end + late - 1e-12


def test_tasks_wait_for_their_dependencies(found: Estimate) -> None:
    for i, run in enumerate(found.timeline.runs):
        for before in run.after:
            gap = found.timeline.times[i].start - found.timeline.times[before].end
            assert gap >= found.timeline.rates.launch - 1e-15


def test_trace_events(found: Estimate) -> None:
    data = json.loads(json.dumps(trace_events(found.timeline, "a title")))
    assert "estimate" in data["otherData"]["note"]
    events = [e for e in data["traceEvents"] if e["ph"] == "X"]
    named = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in data["traceEvents"] if e["name"] == "thread_name"
    }
    assert {e["ph"] for e in data["traceEvents"]} == {"X", "M"}
    assert [e["ts"] for e in events] == sorted(e["ts"] for e in events)
    rows: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for e in events:
        assert set(e) == {"ph", "name", "pid", "tid", "ts", "dur", "args"} and e["dur"] >= 0
        rows.setdefault((e["pid"], e["tid"]), []).append(e)
    assert set(rows) == set(named)
    for row in rows.values():
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-6 for a, b in zip(row, row[1:], strict=False))
    # Each operation lies within a block of its core, and each block within its task
    tasks = {e["name"]: e for (pid, _), row in rows.items() if pid == 0 for e in row}
    blocks = [e for (pid, tid), row in rows.items() if pid > 0 and tid == 0 for e in row]
    assert set(tasks) == {t.name for t in found.summary.tasks}
    for block in blocks:
        assert _within(block, tasks[block["name"]])
    homes = {pid: rows[pid, 0] for pid, tid in rows if pid > 0 and tid == 0}
    for (pid, tid), row in rows.items():
        if pid > 0 and tid > 0:
            assert named[pid, tid] == Pipe(tid - 1).name.lower()
            assert all(any(_within(e, b) for b in homes[pid]) for e in row)


def _within(inner: dict[str, Any], outer: dict[str, Any]) -> bool:
    slack = 2e-6  # times are rounded to picoseconds
    ends = inner["ts"] + inner["dur"], outer["ts"] + outer["dur"]
    return bool(outer["ts"] - slack <= inner["ts"] and ends[0] <= ends[1] + slack)
