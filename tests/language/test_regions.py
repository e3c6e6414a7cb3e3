"""Regions: pl.at, pl.spmd, scopes, their options, task ids, and values that outlive them."""

from __future__ import annotations

import pytest
import torch

import pypto_models.language as pl
from pypto_models.ir.nodes import RegionKind, Scope, Unit
from pypto_models.ir.types import TASK_ID, ArrayType, SplitMode, TaskType

from .support import (
    error_of,
    fails,
    lets,
    line_of,
    loops,
    lowered,
    marked,
    op_names,
    randn,
    regions,
    run,
    statements,
)

CORE = pl.Level.CORE_GROUP


@pl.jit
def every_keyword(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(
        level=CORE,
        role=pl.Role.VECTOR,
        optimizations=[pl.split(pl.SplitMode.UP_DOWN, 4), pl.auto_chunk],
        no_dep_args=[x],
        dumps=[x, out],
        allow_early_resolve=True,
        windowize=False,
        name_hint="first",
    ) as first:
        out[:, :] = x
    with pl.at(CORE, deps=[first], optimizations=[pl.cross_core_slot(slot_num=8)], name_hint="second"):
        out[:, :] = pl.add(out, 1.0)


def test_every_keyword_of_at() -> None:
    first, second = regions(lowered(every_keyword))
    assert (first.kind, first.name, second.name) == (RegionKind.AT, "first", "second")
    assert (first.options.split, first.options.slot_num) == (SplitMode.UP_DOWN, 4)
    assert (second.options.split, second.options.slot_num) == (SplitMode.NONE, 8)
    assert dict(first.options.hints) == {
        "role": pl.Role.VECTOR, "no_dep_args": ("x",), "dumps": ("x", "out"), "allow_early_resolve": True,
        "windowize": False,
    }  # fmt: skip
    assert first.tid is not None and first.tid.type == TaskType()
    assert second.deps == (first.tid,) and second.tid is None


def test_a_region_without_a_name_is_named_by_its_line() -> None:
    (region,) = regions(lowered(unnamed))
    assert region.name == f"at_line{region.span.line}"


@pl.jit
def unnamed(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        out[:, :] = x


@pl.jit
def grids(x: pl.Tensor[[64, 64], pl.FP32], out: pl.Out[pl.Tensor[[64, 64], pl.FP32]]):
    for i in pl.spmd(2, name_hint="loop", sync_start=True):
        out[i * 16 : i * 16 + 16, :] = pl.add(x[i * 16 : i * 16 + 16, :], 1.0)
    with pl.spmd(1, name_hint="with"):
        j = pl.get_block_idx() + 2
        out[j * 16 : j * 16 + 16, :] = pl.add(x[j * 16 : j * 16 + 16, :], 2.0)
    with pl.spmd(1, deps=[]) as tid:
        k = pl.tile.get_block_idx() + 3
        out[k * 16 : k * 16 + 16, :] = pl.add(x[k * 16 : k * 16 + 16, :], 3.0)
    with pl.at(level=CORE, deps=[tid]):
        out[0:16, :] = pl.neg(out[0:16, :])


def test_the_forms_of_spmd() -> None:
    fn = lowered(grids)
    loop, with_, as_form, at = regions(fn)
    assert [r.kind for r in (loop, with_, as_form)] == [RegionKind.SPMD] * 3
    assert loop.block is not None and loop.block.name == "i"
    assert dict(loop.options.hints) == {"sync_start": True}
    assert at.deps == (as_form.tid,)
    x, out = randn(64, 64), torch.empty(64, 64)
    run(grids, x=x, out=out)
    want = x + torch.tensor([1.0, 1.0, 2.0, 3.0]).repeat_interleave(16)[:, None]
    want[:16] = -want[:16]
    assert torch.equal(out, want)


BLOCKS = 4
PER_BLOCK = 64 // BLOCKS


@pl.jit
def constant_grid(x: pl.Tensor[[64, 64], pl.FP32], out: pl.Out[pl.Tensor[[64, 64], pl.FP32]]):
    for i in pl.spmd(64 // PER_BLOCK):
        t = pl.slice(x, [PER_BLOCK, 64], [i * PER_BLOCK, 0])
        out = pl.assemble(out, pl.exp(t), [i * PER_BLOCK, 0])


def test_a_block_count_from_module_constants() -> None:
    (region,) = regions(lowered(constant_grid))
    assert region.count is not None and region.count.value == 4  # type: ignore[attr-defined]
    x, out = randn(64, 64), torch.empty(64, 64)
    run(constant_grid, x=x, out=out)
    torch.testing.assert_close(out, x.exp())


@pl.jit
def modes(
    x: pl.Tensor[[16, 64], pl.BF16],
    w: pl.Tensor[[64, 32], pl.BF16],
    out: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
):
    with pl.at(level=CORE, optimizations=[pl.split(pl.SplitMode.NONE)], name_hint="cube"):
        out[:, :] = pl.matmul(x, w, out_dtype=pl.FP32)
    with pl.at(level=CORE, optimizations=[pl.split(pl.SplitMode.UP_DOWN)], name_hint="mixed"):
        acc = pl.matmul(x, w, out_dtype=pl.FP32)
        out[:, :] = pl.add(acc, 1.0)
    with pl.at(level=CORE, optimizations=[pl.split(mode=pl.SplitMode.LEFT_RIGHT)], name_hint="vec"):
        out[:, :] = pl.add(out, 1.0)
    with pl.at(level=CORE, name_hint="narrowed"):
        out[:, :] = pl.set_validshape(pl.matmul(x, w, out_dtype=pl.FP32), 8, 32)
    with pl.at(level=CORE, name_hint="copy"):
        out[:, :] = out[:, :]


def test_split_modes_and_units() -> None:
    assert [(r.name, r.options.split.name, r.unit) for r in regions(lowered(modes))] == [
        ("cube", "NONE", Unit.CUBE),
        ("mixed", "UP_DOWN", Unit.MIXED),
        ("vec", "LEFT_RIGHT", Unit.VEC),
        ("narrowed", "NONE", Unit.CUBE),  # no vector unit is needed to leave elements out
        ("copy", "NONE", Unit.VEC),
    ]


@pl.jit
def scopes(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.scope():
        scratch = pl.create_tensor([16, 64], pl.FP32)
        with pl.at(level=CORE) as a:
            scratch[:, :] = x
    with pl.manual_scope():
        with pl.at(level=CORE, deps=[a]):
            out[:, :] = scratch


def test_scopes() -> None:
    fn = lowered(scopes)
    assert [s.manual for s in statements(fn) if isinstance(s, Scope)] == [False, True]
    x, out = randn(16, 64), torch.empty(16, 64)
    run(scopes, x=x, out=out)
    assert torch.equal(out, x)


@pl.jit
def across(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        t = pl.add(x, 1.0)
        total = pl.row_sum(t)
        first = pl.read(x, [0, 0])
    with pl.at(level=CORE):
        u = pl.row_expand_mul(t, total)
        out[:, :] = pl.add(u, first)


def test_values_live_across_regions() -> None:
    """A tile and a scalar of one region are read in another: the IR has them, a pass makes the round trip."""
    fn = lowered(across)
    one, two = regions(fn)
    defined = {v for s in statements(one) for v in s.results}
    read = {a for let in lets(two, "row_expand_mul") for a in let.args}
    assert read <= defined and len(read) == 2
    x, out = randn(16, 64), torch.empty(16, 64)
    run(across, x=x, out=out)
    t = x + 1
    torch.testing.assert_close(out, t * t.sum(1, keepdim=True) + x[0, 0])


N = 4


@pl.jit
def task_ids(x: pl.Tensor[[64, 64], pl.FP32], out: pl.Out[pl.Tensor[[64, 64], pl.FP32]]):
    tids = pl.array.create(N, pl.TASK_ID)
    for k in pl.unroll(N):
        with pl.at(level=CORE) as tid:
            out[k * 16 : k * 16 + 16, :] = x[k * 16 : k * 16 + 16, :]
        tids[k] = tid
    join = pl.system.task_dummy(deps=[tids[k] for k in range(N)])
    with pl.at(level=CORE, deps=[join, tids, tids[0]]) as last:
        out[0:16, :] = pl.neg(out[0:16, :])
    with pl.spmd(2, deps=[last]) as done:
        i = pl.get_block_idx()
        out[i * 16 + 32 : i * 16 + 48, :] = pl.neg(out[i * 16 + 32 : i * 16 + 48, :])
    pl.system.task_dummy(deps=[done])


def test_task_ids() -> None:
    fn = lowered(task_ids)
    (create,) = lets(fn, "array_create")
    assert create.result.type == ArrayType(4, TASK_ID)
    assert len(lets(fn, "array_set")) == N
    join, end = lets(fn, "task_dummy")
    gets = lets(fn, "array_get")
    assert join.arg("deps") == tuple(g.result for g in gets[:N])
    *writers, last, grid = regions(fn)
    assert last.deps == (join.result, lets(fn, "array_set")[-1].result, gets[N].result)
    assert grid.deps == (last.tid,) and end.arg("deps") == (grid.tid,)
    assert all(r.tid is not None for r in writers)
    x, out = randn(64, 64), torch.empty(64, 64)
    run(task_ids, x=x, out=out)
    sign = torch.tensor([-1.0, 1.0, -1.0, -1.0]).repeat_interleave(16)[:, None]
    assert torch.equal(out, x * sign)


@pl.jit
def ids_in_a_loop(x: pl.Tensor[[64, 64], pl.FP32], out: pl.Out[pl.Tensor[[64, 64], pl.FP32]]):
    tids = pl.array.create(4, pl.TASK_ID)
    for k in pl.range(4):
        with pl.at(level=CORE) as tid:
            out[k * 16 : k * 16 + 16, :] = x[k * 16 : k * 16 + 16, :]
        tids[k] = tid
    with pl.at(level=CORE, deps=[tids]):
        out[0:16, :] = pl.neg(out[0:16, :])


def test_a_loop_carries_an_array_of_ids() -> None:
    fn = lowered(ids_in_a_loop)
    (loop,) = loops(fn)
    (carried,) = loop.carried
    assert carried.result.type == ArrayType(4, TASK_ID)
    assert regions(fn)[-1].deps == (carried.result,)


def test_a_call_of_an_op_emits_it_once_and_constants_are_folded() -> None:
    fn = lowered(constant_grid)
    assert op_names(fn) == ["load", "exp", "store"]


# ------------------------------------------------------------------------------------------ mistakes
@pl.jit
def block_value(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    for i in pl.spmd(4):
        y = pl.mul(x, 2.0)
        out[:, :] = y
    with pl.at(level=CORE):
        out[:, :] = y


def test_a_value_of_one_block_has_no_meaning_outside() -> None:
    error = error_of(block_value)
    assert (error.code, marked(error)) == ("spill", "y")
    assert error.span.line == line_of(block_value, "with pl.at") + 1
    assert "pl.assemble" in error.fix


def test_tensors_and_outer_scalars_keep_their_names_after_a_grid() -> None:
    @pl.jit
    def kernel(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
        for _i in pl.spmd(1):
            filled = pl.assemble(out, pl.mul(x, 2.0), [0, 0])
        with pl.at(level=CORE):
            filled[:, :] = pl.add(filled, 1.0)

    x, out = randn(16, 64), torch.empty(16, 64)
    run(kernel, x=x, out=out)
    assert torch.equal(out, x * 2 + 1)


CASES = [
    ("with pl.at(level=CORE):\n    with pl.at(level=CORE):\n        out[:, :] = x", "misplaced",
     "pl.at(level=CORE)", "regions do not nest", "close the outer region first"),
    ("for i in pl.spmd(2):\n    for j in pl.spmd(2):\n        out[:, :] = x", "misplaced",
     "pl.spmd(2)", "pl.spmd is inside of pl.spmd", "close the outer"),
    ("with pl.at(level=CORE, nam_hint='a'):\n    out[:, :] = x", "unknown-keyword",
     "nam_hint='a'", "pl.at has no parameter 'nam_hint'", "name_hint"),
    ("with pl.at(level=pl.Level.HOST):\n    out[:, :] = x", "unsupported",
     "level=pl.Level.HOST", "only core groups run regions", "CORE_GROUP"),
    ("with pl.at(level=CORE, role=3):\n    out[:, :] = x", "bad-argument", "role=3", "role is 3", "pl.Role"),
    ("for i in pl.spmd(2, deps=[]):\n    out[:, :] = x", "bad-call",
     "deps=[]", "needs the `as` form", "with pl.spmd(n, deps=[...]) as tid:"),
    ("with pl.at(level=CORE, deps=[x]):\n    out[:, :] = x", "bad-argument",
     "deps=[x]", "the tensor x [16, 64] FP32 is not a task id", "as tid"),
    ("for i in pl.spmd(2, predicate=True):\n    out[:, :] = x", "unsupported",
     "predicate=True", "not implemented", "use an if"),
    ("for i in pl.spmd(2.0):\n    out[:, :] = x", "bad-call", "pl.spmd(2.0)", "the block count is 2.0",
     "n an integer"),
    ("for i in pl.spmd():\n    out[:, :] = x", "bad-call", "pl.spmd()", "0 block counts", "pl.spmd(n)"),
    ("with pl.at(level=CORE, optimizations=[4]):\n    out[:, :] = x", "bad-argument",
     "optimizations=[4]", "4 is not an optimization", "pl.split"),
    ("with pl.at(level=CORE):\n    i = pl.get_block_idx()\n    out[:, :] = x", "misplaced",
     "pl.get_block_idx()", "outside of a pl.spmd grid", "pl.spmd body"),
    ("with pl.at(level=CORE):\n    with pl.scope():\n        out[:, :] = x", "misplaced",
     "pl.scope()", "is inside of pl.at", "open it outside"),
    ("with pl.range(4):\n    out[:, :] = x", "syntax", "pl.range(4)", "in a with", "for i in"),
    ("with python_function(x):\n    out[:, :] = x", "syntax", "python_function(x)", "this context manager",
     "pl.at"),
    ("with pl.at(level=CORE), pl.at(level=CORE):\n    out[:, :] = x", "syntax",
     "pl.at(level=CORE)", "second context manager", "nest"),
    ("with pl.at(level=CORE, optimizations=[pl.split()]):\n    out[:, :] = x", "bad-call",
     "pl.split()", "missing 1 required", "pl.split(mode"),
    ("t = pl.array.create(4, pl.TASK_ID)\nwith pl.at(level=CORE, deps=[t[4]]):\n    out[:, :] = x",
     "out-of-bounds",
     "t[4]", "element 4 of an array of 4", "within the size"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "place", "message", "fix"), CASES, ids=[c[2] for c in CASES])
def test_mistakes(body: str, code: str, place: str, message: str, fix: str) -> None:
    error = fails(body)
    assert (error.code, marked(error)) == (code, place)
    assert message in error.message and fix in error.fix
