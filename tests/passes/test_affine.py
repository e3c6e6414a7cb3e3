"""Affine forms and interval bounds against evaluation at every point of small ranges."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pypto_models.errors import NOWHERE
from pypto_models.ir.expr import Binary, Const, DimVar, Expr, Unary, Var, binary, evaluate, index
from pypto_models.ir.graph import Affine, expr_text
from pypto_models.ir.nodes import Bind, Carried, Direction, For, Function, If, Let, LoopKind, Merged, Param
from pypto_models.ir.types import INDEX, INT8, INT32, ScalarType, TensorType
from pypto_models.ops import REGISTRY
from pypto_models.passes.affine import Definitions, bounds, definitions

SCALAR = ScalarType(INDEX)
X, Y = Var("x", SCALAR), Var("y", SCALAR)
N = DimVar("N")
RANGES = {X: (-3, 5), Y: (0, 7)}


def known() -> Definitions:
    return Definitions(Function("f", (), ()), ranges=dict(RANGES))


def loop(var: Var, start: Expr, stop: Expr, step: int, body: tuple = (), carried: tuple = ()) -> For:
    return For(LoopKind.RANGE, var, start, stop, index(step), carried, body)


leaves = st.one_of(st.sampled_from([X, Y]), st.integers(-4, 9).map(index))
sums = st.sampled_from(["+", "-", "*", "min", "max"])
divisions = st.tuples(st.sampled_from(["//", "%"]), st.integers(1, 6).map(index))


def grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(
        st.builds(Binary, sums, inner, inner),
        st.builds(lambda x, d: Binary(d[0], x, d[1]), inner, divisions),
        st.builds(lambda x: Unary("-", x), inner),
    )


@given(st.recursive(leaves, grow, max_leaves=8))
def test_form_and_bounds_agree_with_evaluation(x: Expr) -> None:
    form = known().affine(x)
    low, high = bounds(form, RANGES)
    raw_low, raw_high = bounds(x, RANGES)
    for a, b in itertools.product(range(-3, 6), range(8)):
        value = evaluate(x, {X: a, Y: b}.__getitem__)
        assert evaluate(form.expr(), {X: a, Y: b}.__getitem__) == value
        assert low is not None and high is not None and low <= value <= high
        assert raw_low is not None and raw_high is not None and raw_low <= value <= raw_high


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (binary("+", binary("*", X, index(4)), binary("*", index(3), X)), "7 * x"),
        (binary("-", X, X), "0"),
        (binary("//", binary("+", binary("*", X, index(8)), Y), index(8)), "x"),
        (binary("%", binary("+", binary("*", X, index(8)), Y), index(8)), "y"),
        (binary("//", binary("+", binary("*", X, index(8)), Y), index(4)), "2 * x + y // 4"),
        (binary("min", Y, index(7)), "y"),
        (binary("max", X, index(-3)), "x"),
        (binary("min", X, Y), "min(x, y)"),
        (binary("*", X, Y), "x * y"),
        (binary("-", index(2), binary("*", N, index(3))), "-3 * N + 2"),
    ],
)
def test_simplification(x: Expr, text: str) -> None:
    assert str(known().affine(x)) == text


def test_equal_forms_are_equal_objects() -> None:
    a = known().affine(binary("+", binary("*", X, index(2)), Y))
    b = known().affine(binary("+", Y, binary("+", X, X)))
    assert a == b
    assert (a - b) == Affine()
    assert a.divided(2) is None
    assert (a * 6).divided(3) == a * 2


def test_bounds_of_the_unknown() -> None:
    free = Var("s", SCALAR)
    assert bounds(free, {}) == (None, None)
    assert bounds(N, {}) == (1, None)
    assert bounds(binary("%", free, index(8)), {}) == (0, 7)
    assert bounds(binary("min", free, index(8)), {}) == (None, 8)
    assert bounds(binary("max", binary("-", N, index(4)), index(0)), {}) == (0, None)
    assert bounds(binary("//", binary("+", N, index(127)), index(128)), {}) == (1, None)
    assert bounds(binary("//", index(100), binary("+", N, index(1))), {}) == (0, 50)


def test_narrowing_keeps_the_value_only_where_it_fits() -> None:
    d = known()
    assert str(d.affine(Unary("cast", X, INT8))) == "x"
    assert str(d.affine(Unary("cast", N, INT32))) == "INT32(N)"
    wide = Var("w", ScalarType(INT32))
    assert str(d.affine(Unary("cast", wide, INDEX))) == "w"


@pytest.mark.parametrize(
    ("start", "stop", "step", "interval", "trips"),
    [(0, 20, 1, (0, 19), 20), (3, 20, 5, (3, 18), 4), (8, 0, -3, (2, 8), 3), (5, 5, 1, (5, 5), 0)],
)
def test_loop_ranges(start: int, stop: int, step: int, interval: tuple[int, int], trips: int) -> None:
    i = Var("i", SCALAR)
    s = loop(i, index(start), index(stop), step)
    d = definitions(Function("f", (), (s,)))
    assert d.ranges[i] == interval
    assert d.loop(s).trips == trips == len(range(start, stop, step))


def test_run_time_trip_counts() -> None:
    i, j = Var("i", SCALAR), Var("j", SCALAR)
    inner = loop(j, i, N, 4)
    outer = loop(i, index(0), N, 1, (inner,))
    d = definitions(Function("f", (), (outer,)))
    assert d.ranges[i] == (0, None)
    assert expr_text(d.loop(outer).trips) == "N"
    trips = d.loop(inner).trips
    for n, at in itertools.product(range(9), range(9)):
        assert evaluate(trips, {N: n, i: at}.__getitem__) == len(range(at, n, 4))


def test_named_scalars_are_expanded() -> None:
    i, k0, k1 = (Var(n, SCALAR) for n in ("i", "k0", "k1"))
    body = (Bind(k0, binary("*", i, index(64))), Bind(k1, binary("+", k0, index(16))))
    d = definitions(Function("f", (), (loop(i, index(0), index(4), 1, body),)))
    assert str(d.affine(k1)) == "64 * i + 16"
    assert d.bounds(k1) == (16, 208)
    assert d.homes[k1].loops == (i,)


def test_data_dependent_scalars_name_their_table() -> None:
    table = Var("table", TensorType((8, 32), INT32))
    page, row, either = Var("page", ScalarType(INT32)), Var("row", SCALAR), Var("either", SCALAR)
    total, at, after = Var("total", SCALAR), Var("at", SCALAR), Var("after", SCALAR)
    i = Var("i", SCALAR)
    body = (
        Let((page,), REGISTRY["read_tensor"], (table, (index(0), index(3))), NOWHERE),
        Bind(row, binary("*", page, index(128))),
        If(binary("<", X, index(0)), (), (), (Merged(either, row, index(0)),)),
        loop(
            i, index(0), index(4), 1, (Bind(total, binary("+", at, either)),), (Carried(at, X, total, after),)
        ),
    )
    d = definitions(Function("f", (Param(table, Direction.IN), Param(X, Direction.IN)), body))
    assert d.tables(row) == (table,)
    assert d.tables(binary("+", either, index(1))) == (table,)
    assert d.tables(after) == (table,)
    assert d.tables(X) == ()
    assert str(d.affine(row)) == "128 * page"
    assert Const(128) not in [a for a, _ in d.affine(row).terms]
