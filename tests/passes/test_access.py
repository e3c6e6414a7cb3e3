"""Access records against the elements that numpy views of an arange really touch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import pypto_models.language as pl
from pypto_models.ir.expr import Var, dim_expr, evaluate
from pypto_models.ir.graph import Access, expr_text
from pypto_models.ir.nodes import Bind, Block, For, Function, If, Let, Region
from pypto_models.ir.rewrite import walk
from pypto_models.ir.types import TensorType
from pypto_models.passes.access import region_accesses, regroup
from pypto_models.passes.affine import definitions

T = pl.dynamic("T")
NB = pl.dynamic("NB")
EXTENTS = {"T": 6, "NB": 4}


def accesses(fn: Function, number: int = 0) -> tuple[Access, ...]:
    regions = [s for s in walk(fn.body) if isinstance(s, Region)]
    return region_accesses(definitions(fn), regions[number])


@dataclass
class Oracle:
    """Runs the views and loads of a function on arrays of element numbers; tiles have no value."""

    fn: Function
    env: dict[Any, Any] = field(default_factory=dict)

    def value(self, x: Any) -> Any:
        return evaluate(x, lambda v: EXTENTS[v.name] if v not in self.env else self.env[v])

    def tensor(self, v: Var) -> np.ndarray:
        if v not in self.env:
            assert isinstance(v.type, TensorType)
            shape = [self.value(d) if not isinstance(d, int) else d for d in v.type.shape]
            self.env[v] = np.arange(int(np.prod(shape))).reshape(shape)
        return self.env[v]

    def run(self, block: Block) -> Iterator[tuple[Let, np.ndarray]]:
        """Every load or store executed, with the element numbers of its box."""
        for s in block:
            if isinstance(s, Region):
                for at in range(self.value(s.count) if s.count is not None else 1):
                    self.env[s.block] = at
                    yield from self.run(s.body)
            elif isinstance(s, For):
                for at in range(self.value(s.start), self.value(s.stop), self.value(s.step)):
                    self.env[s.var] = at
                    yield from self.run(s.body)
            elif isinstance(s, If):
                yield from self.run(s.then if self.value(s.cond) else s.orelse)
            elif isinstance(s, Bind):
                self.env[s.var] = self.value(s.value)
            elif isinstance(s, Let):
                yield from self.let(s)

    def let(self, s: Let) -> Iterator[tuple[Let, np.ndarray]]:
        if s.op.name == "view_reshape":
            base = self.tensor(s.args[0])
            self.env[s.result] = base.reshape([self.value(d) for d in s.arg("shape")])
            assert np.shares_memory(base, self.env[s.result])
        elif s.op.name in ("view", "load"):
            starts = [self.value(o) for o in s.arg("offset")]
            extents = [self.value(n) for n in s.arg("valid_shape") or s.arg("shape")]
            part = self.tensor(s.args[0])[
                tuple(slice(a, a + n) for a, n in zip(starts, extents, strict=True))
            ]
            if s.op.name == "load":
                yield s, part
            else:
                drop = s.arg("drop_dims") or ()
                kept = [
                    n for i, n in enumerate(part.shape) if i not in [getattr(d, "value", d) for d in drop]
                ]
                self.env[s.result] = part.reshape(kept)
        elif s.op.name == "read_tensor":
            # A table of pages holds any page in any order
            at = tuple(self.value(i) for i in s.arg("index"))
            self.env[s.result] = int(self.tensor(s.args[0])[at]) * 3 % EXTENTS["NB"]


def elements(a: Access, oracle: Oracle) -> set[int]:
    root = oracle.tensor(a.tensor)
    box = []
    for i in a.index:
        start = oracle.value(i.start.expr())
        end = start + oracle.value(dim_expr(i.extent))
        low, high = i.hull
        assert low is not None and low <= start
        assert high is None or min(end, root.shape[len(box)]) <= high
        assert i.limit is None or end - start <= i.limit
        box.append(slice(start, end))
    return set(root[tuple(box)].ravel().tolist())


def check(kernel: Any) -> tuple[Access, ...]:
    """Every load of the kernel's first region touches the elements of its record."""
    fn = pl.lower(kernel)
    records = {id(a.span): a for a in accesses(fn) if a.op == "load"}
    oracle = Oracle(fn)
    seen = 0
    for let, touched in oracle.run(fn.body):
        a = records[id(let.span)]
        mine = elements(a, oracle) if a.index else set(oracle.tensor(a.tensor).ravel().tolist())
        assert set(touched.ravel().tolist()) <= mine
        assert not a.exact or mine == set(touched.ravel().tolist())
        seen += 1
    assert seen > 0
    return tuple(records.values())


@pl.jit
def views(x: pl.Tensor[[24, 64], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    half = pl.slice(x, [12, 64], [8, 0])
    for b in pl.spmd(3, name_hint="views"):
        acc = pl.full([4, 16], dtype=pl.FP32, value=0.0)
        for k in pl.range(0, 64, 16):
            acc = pl.add(acc, half[b * 4 : b * 4 + 4, k : k + 16])
        out = pl.assemble(out, acc, [b * 2, 0])


def test_a_view_shifts_the_index() -> None:
    (a,) = check(views)
    assert a.box == "[4 * b + 8 : +4, k : +16]"
    assert [i.hull for i in a.index] == [(8, 20), (0, 64)]
    assert (a.map, a.exact, a.tensor.name) == ("affine", True, "x")
    assert [v.name for v in a.loops] == ["k"]


@pl.jit
def split_axis(x: pl.Tensor[[6, 64], pl.FP32], out: pl.Out[pl.Tensor[[1, 2, 8], pl.FP32]]):
    heads = pl.reshape(x, [6, 8, 8])
    for b in pl.spmd(6, name_hint="split_axis"):
        for h in pl.range(4):
            t = pl.slice(heads, [1, 2, 8], [b, h * 2, 0])
            _u = pl.slice(heads, [1, 1, 3], [b, h, 2])
            _v = pl.slice(heads, [1, 2, 3], [b, h, 2])
            out = pl.assemble(out, t, [0, 0, 0])


def test_a_reshape_that_splits_an_axis() -> None:
    whole, one, torn = check(split_axis)
    assert whole.box == "[b, 16 * h : +16]"
    assert one.box == "[b, 8 * h + 2 : +3]"
    assert torn.box == "[b, 8 * h + 2 : +11]"  # elements 2..4 of two rows of 8: 11 apart from end to end
    assert [a.exact for a in (whole, one, torn)] == [True, True, False]


@pl.jit
def merged_axes(x: pl.Tensor[[6, 4, 16], pl.FP32], out: pl.Out[pl.Tensor[[4, 16], pl.FP32]]):
    rows = pl.reshape(x, [24, 16])
    for b in pl.spmd(6, name_hint="merged_axes"):
        t = pl.slice(rows, [4, 16], [b * 4, 0])
        _u = pl.slice(rows, [2, 16], [b * 4 + 1, 3 - 3])
        _v = pl.slice(rows, [1, 8], [b, 8])
        for k in pl.range(5):
            _w = pl.slice(rows, [3, 16], [b + k, 0])
        out = pl.assemble(out, t, [0, 0])


def test_a_reshape_that_merges_axes() -> None:
    block, inside, row, across = check(merged_axes)
    assert block.box == "[b, 0:4, 0:16]"
    assert inside.box == "[b, 1:3, 0:16]"
    assert row.box == "[b // 4, b % 4, 8 : +8]" or row.box == "[b // 4, b % 4, 8:16]"
    assert row.map == "quasi-affine"
    assert (across.exact, across.index[0].extent) == (False, 2)


@pl.jit
def flat(x: pl.Tensor[[4, 6], pl.FP32], out: pl.Out[pl.Tensor[[1, 8], pl.FP32]]):
    rows = pl.reshape(x, [3, 8])
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="flat"):
        for r in pl.range(3):
            out = pl.assemble(out, rows[r : r + 1, :], [0, 0])


def test_a_reshape_that_tears_rows_gives_a_box_around() -> None:
    (a,) = check(flat)
    assert (a.exact, a.map) == (False, "quasi-affine")


@pl.jit
def paged(
    pool: pl.Tensor[[NB, 16, 8], pl.FP32],
    table: pl.Tensor[[2, 4], pl.INT32],
    x: pl.Tensor[[T, 8], pl.FP32],
    out: pl.Out[pl.Tensor[[16, 8], pl.FP32]],
):
    rows = pl.reshape(pool, [pl.tensor.dim(pool, 0) * 16, 8])
    for b in pl.spmd(2, name_hint="paged"):
        for p in pl.range(4):
            page = pl.cast(pl.read(table, [b, p]), pl.INDEX)
            k = pl.slice(rows, [16, 8], [page * 16, 0])
            _one = pl.slice(rows, [1, 8], [page * 16 + p, 0])
            _some = pl.slice(rows, [16, 8], [page * 16 + 2, 0], valid_shape=[5, 8])
            _live = pl.slice(x, [8, 8], [0, 0], valid_shape=[pl.tensor.dim(x, 0), 8])
            out = pl.assemble(out, k, [0, 0])


def test_reads_through_a_table() -> None:
    page, row, some, live = check(paged)
    assert (page.map, [t.name for t in page.tables]) == ("paged", ["table"])
    assert [i.extent for i in page.index] == [1, 16, 8]
    assert [i.start.is_constant for i in page.index] == [False, True, True]
    assert [i.extent for i in row.index] == [1, 1, 8]
    assert row.exact
    assert str(row.index[1].start) == "p"  # 16 * page + p is row p of its page
    assert some.exact and [str(i) for i in some.index[1:]] == ["2:7", "0:8"]  # five rows stay in one page
    assert some.tile == (5, 8)
    assert (expr_text(live.index[0].extent), live.index[0].limit) == ("T", 8)
    table = next(a for a in accesses(pl.lower(paged)) if a.op == "read_tensor")
    assert (table.box, table.map) == ("[b, p]", "affine")


@pl.jit
def effects(
    x: pl.Tensor[[4, 8], pl.FP32],
    y: pl.InOut[pl.Tensor[[4, 8], pl.FP32]],
    z: pl.InOut[pl.Tensor[[4, 8], pl.FP32]],
    n: pl.Scalar[pl.INT32],
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="effects"):
        t = x[0:2, :]
        if n > 3:
            y = pl.assemble(y, t, [0, 0], atomic=pl.AtomicType.Add)
        pl.write(z, [3, 2], 1.0)


def test_effects_and_conditions() -> None:
    read, add, write = accesses(pl.lower(effects))
    assert (read.effect, read.always) == ("read", True)
    assert (add.effect, add.always, add.box) == ("atomic", False, "[0:2, 0:8]")
    assert (write.effect, write.always, write.box) == ("write", True, "[3:4, 2:3]")


@pl.jit
def two_buffers(x: pl.Tensor[[4, 8], pl.FP32], out: pl.Out[pl.Tensor[[4, 8], pl.FP32]]):
    a = pl.create_tensor([4, 8], dtype=pl.FP32)
    b = pl.create_tensor([4, 8], dtype=pl.FP32)
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="first"):
        a[:, :] = x
    for i in pl.range(4):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="swap"):
            b[:, :] = pl.add(a, 1.0)
        a, b = b, a
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="last"):
        out[:, :] = a


def test_a_carried_reference_stands_for_every_buffer_it_may_name() -> None:
    fn = pl.lower(two_buffers)
    swap, last = accesses(fn, 1), accesses(fn, 2)
    assert {(a.effect, a.tensor.name) for a in swap} == {(e, n) for e in ("read", "write") for n in "ab"}
    assert not any(a.always for a in swap)
    assert {a.tensor.name for a in last if a.effect == "read"} == {"a", "b"}


@pytest.mark.parametrize(
    ("old", "new", "groups"),
    [
        ((6, 64), (6, 8, 8), (((0,), (0,)), ((1,), (1, 2)))),
        ((6, 4, 16), (24, 16), (((0, 1), (0,)), ((2,), (1,)))),
        ((4, 6), (3, 8), (((0, 1), (0, 1)),)),
        ((5, 1), (5,), (((0, 1), (0,)),)),
        ((8,), (1, 8), (((0,), (0, 1)),)),
        ((2, 3, 5), (6, 5, 1), (((0, 1), (0,)), ((2,), (1, 2)))),
    ],
)
def test_regroup(old: tuple[int, ...], new: tuple[int, ...], groups: Any) -> None:
    assert regroup(old, new) == groups
