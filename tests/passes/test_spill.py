"""Values that cross regions: the program after the pass computes what it computed before, through tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import pypto_models.language as pl
from pypto_models.errors import UserError
from pypto_models.ir.expr import Var, index
from pypto_models.ir.nodes import For, Function, If, Let, LoopKind, Region, RegionKind
from pypto_models.ir.rewrite import defs, inner_defs, uses, walk
from pypto_models.ir.types import INDEX, ScalarType, TensorType, TileType
from pypto_models.passes import spill

CORE = pl.Level.CORE_GROUP


class Target:
    """The pass reads nothing of it."""

    name = "any"


def spilled(kernel: Any) -> tuple[Function, Function]:
    fn = pl.lower(kernel)
    return fn, spill.run(fn, Target())  # type: ignore[arg-type]


def regions(fn: Function) -> dict[str, Region]:
    return {s.name: s for s in walk(fn.body) if isinstance(s, Region)}


def ops(region: Region) -> list[str]:
    return [s.op.name for s in walk(region.body) if isinstance(s, Let)]


def check_closed(fn: Function) -> None:
    """No value of a region is read outside of it, and the orchestration hands on no tile."""
    found = [s for s in walk(fn.body) if isinstance(s, Region)]
    inside = {v: r for r in found for s in walk(r.body) for v in (*defs(s), *inner_defs(s))}
    for s in walk(fn.body):
        if isinstance(s, Region):
            assert {inside.get(v, s).name for v in uses(s.body)} <= {s.name}
        tiles = [v for v in (*defs(s), *inner_defs(s)) if isinstance(v.type, TileType)]
        assert all(v in inside for v in tiles)


@pl.jit
def independent(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE, name_hint="only"):
        out[:, :] = pl.add(x, 1.0)


def test_a_function_without_such_values_is_the_same_object() -> None:
    before, after = spilled(independent)
    assert after is before


@pl.jit
def tile(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE, name_hint="first"):
        y = pl.add(x, 1.0)
    with pl.at(level=CORE, name_hint="second"):
        out[:, :] = pl.mul(y, y)


def test_a_tile_is_stored_once_and_loaded_once() -> None:
    _, fn = spilled(tile)
    check_closed(fn)
    create = fn.body[0]
    assert isinstance(create, Let) and create.op.name == "create"
    assert create.result.type == TensorType((16, 64), pl.FP32)
    first, second = regions(fn).values()
    assert ops(first) == ["load", "add", "store"]
    assert ops(second) == ["load", "mul", "store"]
    store, load = first.body[-1], second.body[0]
    assert isinstance(store, Let) and isinstance(load, Let)
    assert store.arg("target") is load.arg("t") is create.result


@pl.jit
def carried(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE, name_hint="start"):
        y = pl.add(x, 1.0)
    for i in pl.range(3):
        with pl.at(level=CORE, name_hint="step"):
            y = pl.mul(y, 2.0)
    with pl.at(level=CORE, name_hint="end"):
        out[:, :] = y


def test_a_carried_tile_becomes_a_carried_reference() -> None:
    _, fn = spilled(carried)
    check_closed(fn)
    (loop,) = (s for s in fn.body if isinstance(s, For))
    (c,) = loop.carried
    assert {type(v.type) for v in (c.param, c.init, c.next, c.result)} == {TensorType}
    create = loop.body[0]
    assert isinstance(create, Let) and create.op.name == "create" and create.result is c.next


@pl.jit
def branch(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    if n > 2:
        with pl.at(level=CORE, name_hint="more"):
            y = pl.add(x, 1.0)
    else:
        with pl.at(level=CORE, name_hint="less"):
            y = pl.sub(x, 1.0)
    with pl.at(level=CORE, name_hint="end"):
        out[:, :] = y


def test_a_merged_tile_becomes_a_merged_reference() -> None:
    _, fn = spilled(branch)
    check_closed(fn)
    (choice,) = (s for s in fn.body if isinstance(s, If))
    (m,) = choice.merged
    assert {type(v.type) for v in (m.result, m.then, m.orelse)} == {TensorType}
    load = regions(fn)["end"].body[0]
    assert isinstance(load, Let) and load.arg("t") is m.result


@pl.jit
def scalars(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Tensor[[1], pl.INT32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    with pl.at(level=CORE, name_hint="first"):
        s = pl.read(x, [0, 0])
        rows = pl.cast(pl.read(n, [0]), pl.INDEX)
    with pl.at(level=CORE, name_hint="second"):
        out[:, :] = pl.mul(x, s)
    for b in pl.spmd(rows, name_hint="third"):
        out[b : b + 1, :] = x[b : b + 1, :]


def test_scalars_go_through_one_element() -> None:
    _, fn = spilled(scalars)
    check_closed(fn)
    assert ops(regions(fn)["first"])[-2:] == ["write_tensor", "write_tensor"]
    assert ops(regions(fn)["second"])[0] == "read_tensor"
    # The grid extent is known to the orchestration, which reads it after the region that computes it
    after = fn.body[[isinstance(s, Region) for s in fn.body].index(True) + 1]
    assert isinstance(after, Let) and after.op.name == "read_tensor"
    third = regions(fn)["third"]
    assert third.count is not None and third.count.dtype == pl.INDEX


@pl.jit
def valid(x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE, name_hint="first"):
        y = pl.add(pl.slice(x, [16, 64], [0, 0], valid_shape=[n, 64]), 1.0)
    with pl.at(level=CORE, name_hint="second"):
        out = pl.assemble(out, pl.mul(y, 2.0), [0, 0])


def test_a_valid_rectangle_survives() -> None:
    before, fn = spilled(valid)
    n = before.params[1].var
    load = regions(fn)["second"].body[0]
    assert isinstance(load, Let)
    rows, columns = load.arg("valid_shape")  # type: ignore[misc]
    assert rows is n and columns.value == 64
    assert load.result.type.valid == (n, 64)


@pl.jit
def unknown_valid(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Tensor[[1], pl.INT32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    with pl.at(level=CORE, name_hint="first"):
        rows = pl.cast(pl.read(n, [0]), pl.INDEX)
        y = pl.add(pl.slice(x, [16, 64], [0, 0], valid_shape=[rows, 64]), 1.0)
    with pl.at(level=CORE, name_hint="second"):
        out = pl.assemble(out, pl.mul(y, 2.0), [0, 0])


def test_a_valid_rectangle_that_only_the_region_knows_is_an_error() -> None:
    with pytest.raises(UserError, match=r"axis 0 of the valid rectangle of 'y' depends on 'rows'"):
        spilled(unknown_valid)


def test_a_value_of_one_block_is_nobody_elses() -> None:
    fn = pl.lower(tile)
    first, *rest = fn.body
    assert isinstance(first, Region)
    grid = replace(first, kind=RegionKind.SPMD, count=index(4))
    with pytest.raises(UserError, match="'y' is defined per block") as caught:
        spill.run(replace(fn, body=(grid, *rest)), Target())  # type: ignore[arg-type]
    assert "each block of the grid has its own" in str(caught.value)
    assert "out[:, :] = pl.mul(y, y)" in caught.value.span.excerpt()


def test_a_value_of_one_iteration_is_nobody_elses() -> None:
    fn = pl.lower(tile)
    first, *rest = fn.body
    i = Var("i", ScalarType(INDEX))
    loop = For(LoopKind.PARALLEL, i, index(0), index(4), index(1), (), (first,))
    with pytest.raises(UserError, match="each iteration of pl.parallel has its own"):
        spill.run(replace(fn, body=(loop, *rest)), Target())  # type: ignore[arg-type]


@pl.jit
def view_inside(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE, name_hint="first"):
        rows = pl.reshape(x, [32, 32])
        out[0:8, :] = x[0:8, :]
    with pl.at(level=CORE, name_hint="second"):
        out[8:16, 0:32] = rows[0:8, :]


def test_a_view_moves_before_its_region() -> None:
    _, fn = spilled(view_inside)
    check_closed(fn)
    assert isinstance(fn.body[0], Let) and fn.body[0].op.name == "view_reshape"
    assert "view_reshape" not in ops(regions(fn)["first"])


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(16, 64, generator=generator), "n": torch.tensor([5], dtype=torch.int32)}


@pytest.mark.parametrize(
    ("kernel", "extra", "expected"),
    [
        (tile, (), lambda x: (x + 1) ** 2),
        (carried, (), lambda x: (x + 1) * 8),
        (branch, (3,), lambda x: x + 1),
        (branch, (1,), lambda x: x - 1),
        (scalars, (torch.tensor([5], dtype=torch.int32),), lambda x: torch.cat([x[:5], x[5:] * x[0, 0]])),
        (view_inside, (), None),
    ],
    ids=["tile", "carried", "branch-then", "branch-else", "scalars", "view"],
)
def test_simulated_values(kernel: Any, extra: tuple[Any, ...], expected: Any) -> None:
    from pypto_models.compile import compile

    x = inputs()["x"]
    out = torch.zeros(16, 64)
    compile(kernel, x, *extra, out, check=True)(x, *extra, out)
    if expected is None:
        torch.testing.assert_close(out[0:8], x[0:8], rtol=0, atol=0)
        torch.testing.assert_close(out[8:16, 0:32], x.reshape(32, 32)[0:8], rtol=0, atol=0)
    else:
        torch.testing.assert_close(out, expected(x), rtol=1e-6, atol=1e-6)
