"""Equality up to names: what counts, what does not, and what the difference says."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pypto_models.errors import Span
from pypto_models.ir.equal import difference, equal
from pypto_models.ir.expr import Binary, Const, DimVar, Unary, Var
from pypto_models.ir.nodes import (
    Bind,
    Block,
    Carried,
    Direction,
    For,
    Function,
    If,
    LoopKind,
    Merged,
    Param,
    Region,
    RegionKind,
    RegionOptions,
    Return,
    Scope,
    Unit,
)
from pypto_models.ir.types import BF16, FP32, INT32, Mem, SplitMode, TaskType, tile
from pypto_models.language import parse
from tests.ir.build import at, full, function, ints, let, load, placed, renamed, scalar, store, tensor
from tests.ir.programs import program

X, Y, N, M = tensor("x", 64, 16), tensor("y", 64, 16), scalar("n"), scalar("m")


def kernel(*body: Any) -> Function:
    return function((at(*body),), X, Y, N, M)


@given(st.integers(0, 10**9))
@settings(max_examples=30)
def test_renaming_keeps_equality(seed: int) -> None:
    fn = parse(program(seed))
    assert difference(fn, fn) is None
    assert difference(fn, renamed(fn)) is None
    assert difference(renamed(fn), fn) is None


@given(st.integers(0, 10**9))
@settings(max_examples=30)
def test_two_random_programs_differ(seed: int) -> None:
    a, b = parse(program(seed)), parse(program(seed + 1))
    assert not equal(a, b)
    assert not equal(b, a)


def test_spans_do_not_count() -> None:
    stmt = full("t")
    assert equal(kernel(stmt), kernel(replace(stmt, span=Span("other.py", 99))))


T1, T2 = full("t"), full("u", 1.0)
ADD = let("r", "add", T1.result, T2.result)


def swapped(**changes: Any) -> Function:
    return kernel(T1, T2, replace(ADD, **changes))


def loop(**changes: Any) -> Function:
    base = For(LoopKind.RANGE, scalar("i"), *ints(0, N, 1), (), (full("t"),))
    return kernel(replace(base, **changes))


def region(**changes: Any) -> Function:
    spmd = Region(RegionKind.SPMD, scalar("b"), N, (full("t"),), RegionOptions("name"), unit=Unit.VEC)
    return function((replace(spmd, **changes),), X, Y, N, M)


def bound(x: Any) -> Function:
    return kernel(Bind(scalar("s"), x))


def one(stmt: Any) -> Function:
    return kernel(stmt)


PAIRS: list[tuple[Function, Function, str]] = [
    (kernel(T1), replace(kernel(T1), name="other"), "the name: kernel and other"),
    (function((), X), function((), X, Y), "the number of parameters: 1 and 2"),
    (function((), X), function((), tensor("x", 64, 32)), "the type of x: pl.Tensor[[64, 16], pl.FP32] and "),
    (
        function((), X),
        replace(function((), X), params=(Param(X, Direction.OUT),)),
        "the direction of x: inout and out",
    ),
    (one(T1), one(full("t", 1.0)), "value: 0.0 and 1.0"),
    (one(T1), kernel(T1, T2), "only the second goes on with `u = pl.full([16, 16], pl.FP32, 1.0)`"),
    (kernel(T1, T2), one(T1), "only the first goes on with"),
    (one(T1), one(at(T1)), "the kind of statement: Let and Region"),
    (swapped(), swapped(op=let("r", "sub", T1.result, T2.result).op), "the op: add and sub"),
    (swapped(), swapped(args=(T2.result, T1.result)), "lhs: t and u"),
    (swapped(), swapped(args=(T1.result, Const(1.0, FP32))), "rhs: u and 1.0"),
    (
        one(let("r", "cast", T1.result, BF16)),
        one(let("r", "cast", T1.result, BF16, mode="rint")),
        "mode: round and rint",
    ),
    (
        one(T1),
        one(placed(T1, space=Mem.Vec)),
        "pl.Tile[[16, 16], pl.FP32] and pl.Tile[[16, 16], pl.FP32, pl.Mem.Vec]",
    ),
    (
        one(T1),
        one(placed(T1, split=SplitMode.UP_DOWN)),
        "and pl.Tile[[16, 16], pl.FP32, pl.SplitMode.UP_DOWN]",
    ),
    (one(T1), one(placed(T1, valid=(16, N))), "the type of t, valid: 16 and n"),
    (one(T1), one(placed(T1, valid=(16, None))), "the type of t, valid: 16 and None"),
    (one(placed(T1, valid=(N, 16))), one(placed(T1, valid=(M, 16))), "the type of t, valid: n and m"),
    (one(load("t", X)), one(load("t", Y)), "t: x and y"),
    (one(load("t", X)), one(load("t", X, N)), "offset: 0 and n"),
    (bound(Binary("+", N, M)), bound(Binary("-", N, M)), "the value: n + m and n - m"),
    (bound(Binary("+", N, M)), bound(Binary("+", N, N)), "the value: m and n"),
    (bound(Unary("-", N)), bound(Unary("cast", N, INT32)), "the value: -n and pl.cast(n, pl.INT32)"),
    (bound(Const(1)), bound(Const(1, INT32)), "the value: 1 and pl.const(1, pl.INT32)"),
    (bound(DimVar("A")), bound(DimVar("B")), "the value: A and B"),
    (loop(), loop(kind=LoopKind.PIPELINE), "the kind of loop: range and pipeline"),
    (loop(), loop(start=Const(1)), "start: 0 and 1"),
    (loop(), loop(stop=M), "stop: n and m"),
    (loop(), loop(step=Const(2)), "step: 1 and 2"),
    (loop(), loop(stage=2), "stage: 1 and 2"),
    (region(), region(kind=RegionKind.AT), "the kind of region: spmd and at"),
    (region(), region(count=M), "the count: n and m"),
    (region(), region(unit=Unit.CUBE), "the unit: vec and cube"),
    (region(), region(block=None), "the block index: b and None"),
    (region(), region(tid=Var("tid", TaskType())), "the task id: None and tid"),
    (
        region(),
        region(options=RegionOptions("name", SplitMode.UP_DOWN)),
        "split: SplitMode.NONE and SplitMode.UP",
    ),
    (region(), region(options=RegionOptions("name", slot_num=3)), "slot_num: 2 and 3"),
    (region(), region(options=RegionOptions("other")), "name_hint: name and other"),
    (region(), region(options=RegionOptions("name", hints=(("k", 1),))), "the length of the hints: 0 and 1"),
    (one(Scope(False, ())), one(Scope(True, ())), "manual: False and True"),
    (function((Return((X,)),), X, Y), function((Return((Y,)),), X, Y), "returned value: x and y"),
    (
        function((Return((X,)),), X, Y),
        function((Return((X, Y)),), X, Y),
        "the number of returned values: 1 and 2",
    ),
]


@pytest.mark.parametrize(("a", "b", "what"), PAIRS, ids=[what for _, _, what in PAIRS])
def test_difference(a: Function, b: Function, what: str) -> None:
    found = difference(a, b)
    assert found is not None
    assert what in found
    assert not equal(b, a)


def test_the_difference_has_a_place() -> None:
    def nested(value: float) -> Function:
        body = (If(Binary("<", N, M), (), (full("t"), full("u", value)), ()),)
        return kernel(full("s"), For(LoopKind.RANGE, scalar("i"), *ints(0, 4, 1), (), body))

    found = difference(nested(1.0), nested(2.0))
    assert found == (
        "kernel / 1. `with pl.at(level=pl.Level.CORE_GROUP):` / 2. `for i in pl.range(4):` / "
        "1. `if n < m:` / else / 2. `u = pl.full([16, 16], pl.FP32, 1.0)`: value: 1.0 and 2.0"
    )


# ------------------------------------------------------------------------------------------ joins
TILE = tile((16, 16), FP32)


def two_carried(
    order: tuple[int, int] = (0, 1), inits: tuple[int, int] = (0, 1), cross: bool = False
) -> Function:
    """Two carried values, the first squared and the second negated; stored in order."""
    starts = [full("a"), full("b", 1.0)]
    params, results = [Var("a", TILE), Var("b", TILE)], [Var("a", TILE), Var("b", TILE)]
    steps = [let("a", "mul", params[0], params[0]), let("b", "neg", params[1])]
    nexts = [s.result for s in (steps[::-1] if cross else steps)]
    carried = [Carried(params[i], starts[inits[i]].result, nexts[i], results[i]) for i in range(2)]
    body = For(LoopKind.RANGE, scalar("i"), *ints(0, 4, 1), tuple(carried[i] for i in order), tuple(steps))
    return kernel(*starts, body, store(X, results[0]), store(X, results[1], 16))


def test_the_order_of_carried_values_does_not_count() -> None:
    assert difference(two_carried(), two_carried(order=(1, 0))) is None


def test_what_carried_values_start_as_and_become_counts() -> None:
    assert "the initial value of a: a and b" in str(difference(two_carried(), two_carried(inits=(1, 0))))
    assert "the next value of a: a and b" in str(difference(two_carried(), two_carried(cross=True)))


def swap(results: tuple[int, int] = (0, 1)) -> Function:
    """A loop without statements, whose carried values are only read by each other and after it."""
    starts = [full("a"), full("b", 1.0)]
    p, q, r = Var("a", TILE), Var("b", TILE), [Var("a", TILE), Var("b", TILE)]
    carried = Carried(p, starts[0].result, q, r[0]), Carried(q, starts[1].result, p, r[1])
    body = For(LoopKind.RANGE, scalar("i"), *ints(0, 3, 1), carried, ())
    return kernel(*starts, body, *(store(X, r[i], 16 * k) for k, i in enumerate(results)))


def test_results_pair_what_the_body_does_not_read() -> None:
    assert difference(swap(), swap()) is None
    assert "the initial value of a: a and b" in str(difference(swap(), swap((1, 0))))


def merged(order: tuple[int, int] = (0, 1), cross: bool = False) -> Function:
    a, b = full("a"), full("b", 1.0)
    m, n = Var("m", TILE), Var("n", TILE)
    both = (
        Merged(m, a.result, b.result),
        Merged(n, *((a.result, a.result) if cross else (b.result, a.result))),
    )
    branch = If(Binary("<", N, M), (), (), tuple(both[i] for i in order))
    return kernel(a, b, branch, store(X, m), store(X, n, 16))


def test_merged_values_are_paired_by_their_readers() -> None:
    assert difference(merged(), merged(order=(1, 0))) is None
    assert "n of the then branch: b and a" in str(difference(merged(), merged(cross=True)))


def test_the_number_of_joins_counts() -> None:
    def dead(n: int) -> Block:
        return (If(Binary("<", N, M), (), (), tuple(Merged(scalar("d"), N, M) for _ in range(n))),)

    assert "the number of merged values: 1 and 2" in str(difference(kernel(*dead(1)), kernel(*dead(2))))
    fn = two_carried()
    assert "the number of carried values" in str(difference(fn, _without_second(fn)))


def _without_second(fn: Function) -> Function:
    (outer,) = fn.body
    assert isinstance(outer, Region)
    body = tuple(replace(s, carried=s.carried[:1]) if isinstance(s, For) else s for s in outer.body)
    return replace(fn, body=(replace(outer, body=body),))


def test_a_variable_of_another_loop_is_no_match() -> None:
    """The same text, but the second loop goes on from the first one's start."""

    def chained(from_result: bool) -> Function:
        a, p, q, r, s = full("a"), *(Var(n, TILE) for n in "pqrs")
        first = For(
            LoopKind.RANGE,
            scalar("i"),
            *ints(0, 3, 1),
            (Carried(p, a.result, (e := let("e", "exp", p)).result, r),),
            (e,),
        )
        init = r if from_result else a.result
        step = let("f", "exp", q)
        second = For(
            LoopKind.RANGE, scalar("j"), *ints(0, 3, 1), (Carried(q, init, step.result, s),), (step,)
        )
        return kernel(a, first, second, store(X, r), store(X, s, 16))

    assert difference(chained(True), chained(True)) is None
    found = difference(chained(True), chained(False))
    assert found is not None and re.search(r"for j in .*the initial value of s: r and a", found)
