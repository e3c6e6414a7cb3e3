"""Conflicts, dependencies and hazards of small programs, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

import pypto_models.language as pl
from pypto_models.ir.graph import TaskGraph
from pypto_models.passes import spill
from pypto_models.passes.task_graph import build

CORE = pl.Level.CORE_GROUP
T = pl.dynamic("T")


@dataclass(frozen=True)
class RunTime:
    """As much of a target as the task graph reads."""

    name: str
    orders: frozenset[str]


SCRATCHPAD = RunTime("scratchpad", frozenset({"RAW", "WAW"}))
GPU = RunTime("gpu", frozenset({"RAW", "WAW", "WAR"}))


def graph(kernel: Any, target: RunTime = SCRATCHPAD) -> TaskGraph:
    fn = spill.run(pl.lower(kernel), target)
    return build(fn, target)


def conflicts(g: TaskGraph) -> set[tuple[str, str, str, str, str | None]]:
    return {
        (c.kind, *c.names, c.tensor.name, c.carried_by.name if c.carried_by else None) for c in g.conflicts
    }


def edges(g: TaskGraph) -> set[tuple[str, str, str | None]]:
    names = [t.name for t in g.tasks]
    return {
        (names[d.before], names[d.after], d.carried_by.name if d.carried_by else None) for d in g.dependencies
    }


def hazards(g: TaskGraph) -> set[tuple[str, str, str, str]]:
    return {(h.kind, *h.names, h.tensor.name) for h in g.hazards}


@pl.jit
def chain(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    mid = pl.create_tensor([16, 64], dtype=pl.FP32)
    for b in pl.spmd(2, name_hint="make"):
        mid[b * 8 : b * 8 + 8, :] = pl.add(x[b * 8 : b * 8 + 8, :], 1.0)
    with pl.at(level=CORE, name_hint="use"):
        out[:, :] = pl.mul(mid, 2.0)


def test_producer_and_consumer() -> None:
    g = graph(chain)
    assert conflicts(g) == {("RAW", "make", "use", "mid", None)}
    assert edges(g) == {("make", "use", None)}
    assert g.dependencies[0].why == ("RAW mid",)
    assert not g.hazards
    make, use = g.tasks
    assert [(a.name, a.kind, a.extent) for a in make.grid] == [("b", "spmd", 2)]
    assert use.grid == ()
    assert g.producers(use, g.conflicts[0].tensor) == (make,)


@pl.jit
def reuse(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    tmp = pl.create_tensor([16, 64], dtype=pl.FP32)
    with pl.at(level=CORE, name_hint="fill"):
        tmp[:, :] = pl.add(x, 1.0)
    with pl.at(level=CORE, name_hint="read"):
        out[0:8, :] = tmp[0:8, :]
    with pl.at(level=CORE, name_hint="refill"):
        tmp[:, :] = pl.mul(x, 2.0)
    with pl.at(level=CORE, name_hint="read_again"):
        out[8:16, :] = tmp[8:16, :]


def test_a_write_after_read_that_the_run_time_does_not_order_is_a_hazard() -> None:
    g = graph(reuse)
    assert hazards(g) == {("WAR", "read", "refill", "tmp")}
    (h,) = g.hazards
    assert h.box == "[0:8, 0:64]"
    text = h.describe()
    first, second = (t.region.body for t in (g.task("read"), g.task("refill")))
    assert f"test_task_graph.py:{first[0].span.line}" in text
    assert f"test_task_graph.py:{second[-1].span.line}" in text
    assert "refill overwrites what read reads: tmp[0:8, 0:64]" in text
    assert ("read", "refill", None) not in edges(g)


def test_a_run_time_that_orders_everything_has_no_hazard() -> None:
    g = graph(reuse, GPU)
    assert not g.hazards
    assert ("read", "refill", None) in edges(g)


@pl.jit
def reuse_with_deps(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    tmp = pl.create_tensor([16, 64], dtype=pl.FP32)
    ids = pl.array.create(2, pl.TASK_ID)
    with pl.at(level=CORE, name_hint="fill"):
        tmp[:, :] = pl.add(x, 1.0)
    with pl.at(level=CORE, name_hint="read_top") as top:
        out[0:8, :] = tmp[0:8, :]
    with pl.at(level=CORE, name_hint="read_bottom") as bottom:
        out[8:16, :] = tmp[8:16, :]
    ids[0] = top
    ids[1] = bottom
    both = pl.system.task_dummy(deps=[ids[k] for k in range(2)])
    with pl.at(level=CORE, name_hint="refill", deps=[both]):
        tmp[:, :] = pl.mul(x, 2.0)


def test_deps_order_it_through_arrays_and_dummies() -> None:
    g = graph(reuse_with_deps)
    assert not g.hazards
    assert g.task("refill").deps == (1, 2)
    assert {("read_top", "refill", None), ("read_bottom", "refill", None)} <= edges(g)


@pl.jit
def reuse_with_one_dep(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    tmp = pl.create_tensor([16, 64], dtype=pl.FP32)
    ids = pl.array.create(2, pl.TASK_ID)
    with pl.at(level=CORE, name_hint="read_top") as top:
        out[0:8, :] = pl.add(x[0:8, :], tmp[0:8, :])
    with pl.at(level=CORE, name_hint="read_bottom") as bottom:
        out[8:16, :] = pl.add(x[8:16, :], tmp[8:16, :])
    ids[0] = bottom
    ids[0] = top
    with pl.at(level=CORE, name_hint="refill", deps=[ids[0]]):
        tmp[:, :] = pl.mul(x, 2.0)


def test_an_overwritten_array_element_waits_for_nothing() -> None:
    g = graph(reuse_with_one_dep)
    assert g.task("refill").deps == (0,)
    assert hazards(g) == {("WAR", "read_bottom", "refill", "tmp")}


@pl.jit
def ordered_by_data(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    tmp = pl.create_tensor([16, 64], dtype=pl.FP32)
    mid = pl.create_tensor([16, 64], dtype=pl.FP32)
    with pl.at(level=CORE, name_hint="fill"):
        tmp[:, :] = pl.add(x, 1.0)
    with pl.at(level=CORE, name_hint="read"):
        mid[:, :] = pl.mul(tmp, 2.0)
    with pl.at(level=CORE, name_hint="refill"):
        tmp[:, :] = pl.add(mid, 1.0)
    with pl.at(level=CORE, name_hint="store"):
        out[:, :] = tmp


def test_data_flow_orders_it() -> None:
    g = graph(ordered_by_data)
    assert ("WAR", "read", "refill", "tmp", None) in conflicts(g)
    assert not g.hazards


@pl.jit
def sometimes_ordered(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    tmp = pl.create_tensor([16, 64], dtype=pl.FP32)
    mid = pl.create_tensor([16, 64], dtype=pl.FP32)
    end = pl.create_tensor([16, 64], dtype=pl.FP32)
    with pl.at(level=CORE, name_hint="read"):
        mid[:, :] = pl.add(x, tmp)
    if n > 3:
        with pl.at(level=CORE, name_hint="link"):
            end[:, :] = pl.mul(mid, 2.0)
    else:
        with pl.at(level=CORE, name_hint="other"):
            end[:, :] = pl.mul(x, 2.0)
    with pl.at(level=CORE, name_hint="refill"):
        tmp[:, :] = pl.add(end, 1.0)
    with pl.at(level=CORE, name_hint="store"):
        out[:, :] = tmp


def test_a_task_that_may_not_run_orders_nothing() -> None:
    g = graph(sometimes_ordered)
    assert ("WAR", "read", "refill", "tmp") in hazards(g)
    # The two branches both write `end` and never both run
    assert ("WAW", "link", "other", "end", None) not in conflicts(g)
    assert [x.text for x in g.task("link").guards] == ["n > 3"]
    assert [x.branch for x in g.task("other").guards] == [False]


@pl.jit
def apart(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    for b in pl.spmd(2, name_hint="top"):
        out[b * 4 : b * 4 + 4, :] = x[b * 4 : b * 4 + 4, :]
    for b in pl.spmd(2, name_hint="bottom"):
        out[b * 4 + 8 : b * 4 + 12, :] = x[b * 4 + 8 : b * 4 + 12, :]


def test_boxes_that_do_not_meet_are_no_conflict() -> None:
    g = graph(apart)
    assert g.conflicts == ()
    assert g.dependencies == ()


@pl.jit
def apart_at_run_time(x: pl.Tensor[[T, 64], pl.FP32], out: pl.Out[pl.Tensor[[T, 64], pl.FP32]]):
    rows = pl.tensor.dim(x, 0)
    half = rows // 2
    with pl.at(level=CORE, name_hint="top"):
        out = pl.assemble(out, pl.slice(x, [16, 64], [0, 0], valid_shape=[half, 64]), [0, 0])
    with pl.at(level=CORE, name_hint="bottom"):
        out = pl.assemble(out, pl.slice(x, [16, 64], [half, 0], valid_shape=[rows - half, 64]), [half, 0])


def test_run_time_boxes_cancel_where_they_are_the_same_expression() -> None:
    g = graph(apart_at_run_time)
    assert g.conflicts == ()
    captures = {c.name: (c.kind, c.value) for c in g.task("top").captures}
    assert captures["half"] == ("extent", "T // 2")


@pl.jit
def trips(x: pl.Tensor[[64, 64], pl.FP32], out: pl.Out[pl.Tensor[[64, 64], pl.FP32]]):
    state = pl.create_tensor([16, 64], dtype=pl.FP32)
    with pl.at(level=CORE, name_hint="start"):
        state[:, :] = pl.full([16, 64], dtype=pl.FP32, value=0.0)
    for i in pl.range(4):
        fresh = pl.create_tensor([16, 64], dtype=pl.FP32)
        with pl.at(level=CORE, name_hint="prepare"):
            fresh[:, :] = pl.mul(x[i * 16 : i * 16 + 16, :], 2.0)
        with pl.at(level=CORE, name_hint="step"):
            state[:, :] = pl.add(state, fresh)
            out[i * 16 : i * 16 + 16, :] = state


def test_conflicts_carried_by_a_loop() -> None:
    g = graph(trips)
    found = conflicts(g)
    assert {(k, t, by) for k, a, b, t, by in found if (a, b) == ("step", "step")} == {
        ("RAW", "state", "i"), ("WAW", "state", "i"), ("WAR", "state", "i")
    }  # fmt: skip
    assert ("RAW", "prepare", "step", "fresh", None) in found
    # `fresh` is another buffer in every trip, and each trip writes its own rows of `out`
    assert not any(t in ("fresh", "out") and by for *_, t, by in found)
    assert edges(g) == {("start", "step", None), ("prepare", "step", None), ("step", "step", "i")}
    assert not g.hazards
    assert [x.var.name for x in g.task("step").loops] == ["i"]


@pl.jit
def scratch_outside(x: pl.Tensor[[64, 64], pl.FP32], out: pl.Out[pl.Tensor[[64, 64], pl.FP32]]):
    tmp = pl.create_tensor([16, 64], dtype=pl.FP32)
    for i in pl.range(4):
        with pl.at(level=CORE, name_hint="make"):
            tmp[:, :] = pl.mul(x[i * 16 : i * 16 + 16, :], 2.0)
        with pl.at(level=CORE, name_hint="use"):
            out[i * 16 : i * 16 + 16, :] = tmp


def test_scratch_shared_by_trips_is_overwritten_while_it_is_read() -> None:
    assert hazards(graph(scratch_outside)) == {("WAR", "use", "make", "tmp")}
    (h,) = graph(scratch_outside).hazards
    assert h.carried_by is not None and h.carried_by.name == "i"
    assert "in an earlier trip of i" in h.describe()
    assert not graph(scratch_outside, GPU).hazards


@pl.jit
def chained_ids(x: pl.Tensor[[64, 64], pl.FP32], out: pl.Out[pl.Tensor[[64, 64], pl.FP32]]):
    tmp = pl.create_tensor([16, 64], dtype=pl.FP32)
    with pl.at(level=CORE, name_hint="zero") as last:
        tmp[:, :] = pl.full([16, 64], dtype=pl.FP32, value=0.0)
    for i in pl.range(4):
        with pl.at(level=CORE, name_hint="make", deps=[last]):
            tmp[:, :] = pl.mul(x[i * 16 : i * 16 + 16, :], 2.0)
        with pl.at(level=CORE, name_hint="use") as last:
            out[i * 16 : i * 16 + 16, :] = tmp


def test_a_task_id_carried_by_the_loop_orders_the_trips() -> None:
    g = graph(chained_ids)
    assert not g.hazards
    assert {("use", "make", "i"), ("zero", "make", None)} <= edges(g)


@pl.jit
def manual(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    a = pl.create_tensor([16, 64], dtype=pl.FP32)
    b = pl.create_tensor([16, 64], dtype=pl.FP32)
    with pl.manual_scope():
        with pl.at(level=CORE, name_hint="first") as first:
            a[:, :] = pl.add(x, 1.0)
        with pl.at(level=CORE, name_hint="second", deps=[first]):
            b[:, :] = pl.mul(a, 2.0)
        with pl.at(level=CORE, name_hint="third"):
            out[:, :] = pl.add(a, b)


def test_a_manual_scope_infers_nothing() -> None:
    g = graph(manual, GPU)
    assert edges(g) == {("first", "second", None)}
    assert g.dependencies[0].why == ("deps=",)
    assert hazards(g) == {("RAW", "first", "third", "a"), ("RAW", "second", "third", "b")}
    assert all(t.manual for t in g.tasks)


@pl.jit
def atomics(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE, name_hint="zero"):
        out[:, :] = pl.full([16, 64], dtype=pl.FP32, value=0.0)
    with pl.at(level=CORE, name_hint="add_a"):
        out = pl.assemble(out, x[:, :], [0, 0], atomic=pl.AtomicType.Add)
    with pl.at(level=CORE, name_hint="add_b"):
        out = pl.assemble(out, x[:, :], [0, 0], atomic=pl.AtomicType.Add)


def test_atomic_adds_commute() -> None:
    g = graph(atomics)
    assert conflicts(g) == {("WAW", "zero", "add_a", "out", None), ("WAW", "zero", "add_b", "out", None)}


@pl.jit
def launch_reads(
    lens: pl.InOut[pl.Tensor[[4], pl.INT32]],
    x: pl.Tensor[[16, 64], pl.FP32],
    scale: pl.Scalar[pl.FP32],
    out: pl.Out[pl.Tensor[[16, 64], pl.FP32]],
):
    with pl.at(level=CORE, name_hint="count"):
        pl.write(lens, [0], 3)
    n = pl.cast(pl.read(lens, [0]), pl.INDEX)
    for b in pl.spmd(n, name_hint="work"):
        out[b : b + 1, :] = pl.mul(x[b : b + 1, :], scale)
    with pl.at(level=CORE, name_hint="reset"):
        pl.write(lens, [0], 0)


def test_what_the_orchestration_reads_must_be_written_before() -> None:
    g = graph(launch_reads)
    assert ("count", "work", None) in edges(g)
    assert not g.hazards  # the grid extent was read before `reset` was launched
    captures = {c.name: c.kind for c in g.task("work").captures}
    assert captures == {"scale": "argument"}
    (axis,) = g.task("work").grid
    assert not isinstance(axis.extent, int)


@pl.jit
def captured(
    table: pl.Tensor[[4], pl.INT32], x: pl.Tensor[[T, 64], pl.FP32], out: pl.Out[pl.Tensor[[T, 64], pl.FP32]]
):
    for i in pl.parallel(pl.tensor.dim(x, 0)):
        row = pl.cast(pl.read(table, [i]), pl.INDEX)
        with pl.at(level=CORE, name_hint="row"):
            out[row : row + 1, :] = x[i : i + 1, :]


def test_captures_say_where_a_scalar_comes_from() -> None:
    (t,) = graph(captured).tasks
    found = {c.name: c for c in t.captures}
    assert (found["row"].kind, [x.name for x in found["row"].tables]) == ("data", ["table"])
    assert found["i"].kind == "index"
    assert [(a.name, a.kind) for a in t.grid] == [("i", "parallel")]
    (store,) = t.writes
    assert (store.map, [x.name for x in store.tables]) == ("paged", ["table"])


def test_text_and_json() -> None:
    g = graph(reuse)
    text = g.describe()
    assert "[1] read: vec, one block" in text
    assert "after fill (RAW tmp)" in text
    assert "hazards: 1" in text
    data = json.loads(json.dumps(g.to_json()))
    assert [t["name"] for t in data["tasks"]] == ["fill", "read", "refill", "read_again"]
    assert data["hazards"][0]["kind"] == "WAR"
    with pytest.raises(KeyError, match="no task 'nothing'; tasks: fill, read"):
        g.task("nothing")
