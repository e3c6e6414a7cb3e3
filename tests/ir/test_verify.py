"""The verifier accepts what the front end makes, and every check refuses a program that breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pypto_models.errors import InternalError
from pypto_models.ir.expr import Binary, Const, DimVar, Var
from pypto_models.ir.nodes import (
    Bind,
    Carried,
    For,
    Function,
    If,
    LoopKind,
    Merged,
    Operation,
    Region,
    RegionKind,
    Return,
    Scope,
)
from pypto_models.ir.types import BF16, FP32, INT32, TASK_ID, Mem, SplitMode, TaskType, tile
from pypto_models.ir.verify import verify
from pypto_models.language import parse
from tests.ir.build import at, full, function, ints, let, load, placed, renamed, scalar, store, tensor
from tests.ir.programs import program

X, N = tensor("x", 64, 16), scalar("n")
TILE = tile((16, 16), FP32)


@given(st.integers(0, 10**9))
@settings(max_examples=30)
def test_accepts_random_programs(seed: int) -> None:
    fn = parse(program(seed))
    verify(fn)
    verify(renamed(fn))


def kernel(*body: Any) -> Function:
    return function(body, X, N)


def inside(*body: Any) -> Function:
    return kernel(at(*body))


def loop(
    *body: Any, carried: tuple[Carried, ...] = (), kind: LoopKind = LoopKind.RANGE, **changes: Any
) -> For:
    return replace(For(kind, scalar("i"), *ints(0, N, 1), carried, body), **changes)


def t(name: str = "t") -> Var:
    return Var(name, TILE)


def branch(then: tuple[Any, ...], merged: tuple[Merged, ...] = ()) -> If:
    return If(Binary("<", N, Const(2)), then, (), merged)


def carried(**changes: Any) -> Function:
    """A loop that carries one tile, with one of its variables replaced."""
    start, p = full("acc"), t("acc")
    step = let("acc", "exp", p)
    c = Carried(p, start.result, step.result, t("acc"))
    extra = changes.pop("extra", ())
    return inside(start, *extra, loop(step, carried=(replace(c, **changes),)))


def merging(value: Any, otherwise: bool = False) -> Function:
    """A tile, or ``value`` from one branch."""
    a = full("a")
    values = (a.result, value) if otherwise else (value, a.result)
    return inside(a, branch((), (Merged(t("m"), *values),)))


def spmd(**changes: Any) -> Region:
    return replace(Region(RegionKind.SPMD, scalar("b"), N, (), tid=Var("tid", TaskType())), **changes)


def insert_then_read(wrap: Callable[..., Any] = lambda *body: body) -> Function:
    a, b = full("a"), full("b")
    change = let("c", "insert", a.result, b.result, ints(0, 0))
    return inside(a, b, *wrap(change), store(X, a.result))


A, B = full("a"), full("b")
TIDS = let("tids", "array_create", (4,), TASK_ID)
TASK = let("task", "task_dummy")
SET = let("tids", "array_set", TIDS.result, ints(0), TASK.result)
ADD = let("r", "add", A.result, A.result)
LOOP = loop()
CARRYING = loop(carried=(Carried(t("p"), A.result, A.result, t("r")),))
NARROW = placed(full("s"), space=Mem.Vec)
HALVED = placed(full("h"), split=SplitMode.UP_DOWN)
SMALL, LOW = full("s", shape=(8, 16)), let("low", "cast", A.result, BF16)

BROKEN: list[tuple[str, Function, str]] = [
    # --- SSA
    ("read before", inside(let("r", "exp", A.result), A), "a is read before its definition"),
    ("twice", inside(A, A), "a is defined twice"),
    ("parameter again", kernel(Bind(N, Const(1))), "n is defined twice"),
    ("out of a branch", inside(branch((A,)), store(X, A.result)), "a is read out of its scope"),
    ("out of a loop", inside(loop(A), store(X, A.result)), "a is read out of its scope"),
    (
        "from the other branch",
        inside(If(Binary("<", N, Const(2)), (A,), (store(X, A.result),), ())),
        "out of its scope",
    ),
    (
        "loop variable",
        kernel(LOOP, Bind(scalar("j"), Binary("+", LOOP.var, N))),
        "i is read out of its scope",
    ),
    (
        "carried parameter",
        inside(A, CARRYING, store(X, CARRYING.carried[0].param)),
        "p is read out of its scope",
    ),
    ("next from outside", carried(next=t("later")), "later is read before its definition"),
    ("merged too late", merging(t("later")), "later is read before its definition"),
    (
        "dependency on nothing",
        kernel(spmd(deps=(Var("gone", TaskType()),))),
        "gone is read before its definition",
    ),
    (
        "valid extent",
        inside(placed(full("t"), valid=(scalar("gone"), 16))),
        "gone is read before its definition",
    ),
    (
        "extent of nobody",
        kernel(Bind(scalar("j"), DimVar("T"))),
        "the run-time extent T belongs to no parameter",
    ),
    # --- types
    (
        "op result",
        inside(replace(A, results=(Var("a", tile((8, 16), FP32)),))),
        "full gives pl.Tile[[16, 16], pl.FP32]",
    ),
    (
        "op operand",
        inside(A, SMALL, replace(ADD, args=(A.result, SMALL.result))),
        "add does not accept its arguments",
    ),
    ("tensor as a tile", inside(A, replace(let("r", "exp", A.result), args=(X,))), "expected a tile"),
    ("arguments", inside(A, replace(let("r", "exp", A.result), args=(A.result, N))), "2 arguments for exp"),
    ("results", inside(A, replace(store(X, A.result), results=(t(),))), "store has 0 results"),
    (
        "carried start",
        carried(init=SMALL.result, extra=(SMALL,)),
        "the initial value of acc is pl.Tile[[8, 16], pl.FP32]",
    ),
    (
        "carried next",
        carried(next=LOW.result, extra=(A, LOW)),
        "the next value of acc is pl.Tile[[16, 16], pl.BF16]",
    ),
    ("carried result", carried(result=SMALL.result), "the result s is pl.Tile[[8, 16], pl.FP32], not"),
    (
        "carried space",
        carried(result=NARROW.result, extra=(NARROW,)),
        "pl.Tile[[16, 16], pl.FP32, pl.Mem.Vec], not",
    ),
    (
        "carried split",
        carried(init=HALVED.result, extra=(HALVED,)),
        "pl.Tile[[16, 16], pl.FP32, pl.SplitMode.UP_DOWN]",
    ),
    (
        "carried scalar",
        kernel(loop(carried=(Carried(scalar("s", FP32), Const(0), Const(1.0, FP32), scalar("r", FP32)),))),
        "the initial value of s is pl.Scalar[pl.INDEX], not pl.Scalar[pl.FP32]",
    ),
    ("merged then", merging(Const(1.0, FP32)), "the then value of m is pl.Scalar[pl.FP32]"),
    ("merged else", merging(N, otherwise=True), "the else value of m is pl.Scalar[pl.INDEX]"),
    (
        "bind",
        kernel(Bind(scalar("f", FP32), N)),
        "the value of f is pl.Scalar[pl.INDEX], not pl.Scalar[pl.FP32]",
    ),
    ("condition", kernel(If(N, (), (), ())), "the condition is pl.Scalar[pl.INDEX], not a condition"),
    ("bound", kernel(loop(stop=Const(1.5, FP32))), "the stop is pl.Scalar[pl.FP32], not an integer"),
    ("step", kernel(loop(step=Const(0))), "the step is 0"),
    ("stage", kernel(loop(stage=0)), "the number of stages is 0"),
    ("count", kernel(spmd(count=Const(1.5, FP32))), "the block count is pl.Scalar[pl.FP32], not an integer"),
    ("dependency", kernel(replace(at(), deps=(N,))), "the dependency n is not a task id"),
    ("task id", kernel(spmd(tid=scalar("tid"))), "the task id tid is pl.Scalar[pl.INDEX]"),
    ("no grid", kernel(spmd(count=None)), "pl.spmd has a block count"),
    ("grid without spmd", kernel(replace(at(), count=N)), "pl.at has none"),
    ("index without spmd", kernel(replace(at(), block=scalar("b"))), "only pl.spmd has a block index"),
    (
        "unknown op",
        inside(replace(A, op=Operation("odd", "odd", A.op.param_names))),
        "the op odd is not from the registry",
    ),
    # --- placement
    ("compute outside", kernel(A), "full stands outside of any region"),
    ("store outside", kernel(at(A), store(X, A.result)), "store stands outside of any region"),
    ("nested regions", inside(at()), "a region stands inside of a region"),
    ("scope in a region", inside(Scope(False, ())), "a scope stands inside of a region"),
    ("pipeline outside", kernel(loop(kind=LoopKind.PIPELINE)), "pl.pipeline stands outside of any region"),
    ("parallel inside", inside(loop(kind=LoopKind.PARALLEL)), "pl.parallel stands inside of a region"),
    (
        "new tensor inside",
        inside(let("g", "create", ints(16, 16), FP32)),
        "create makes a tensor inside of a region",
    ),
    ("early return", kernel(Return(()), at()), "a return stands before the end of the function"),
    ("return in a loop", kernel(loop(Return(()))), "a return stands before the end of the function"),
    # --- in-place changes
    ("insert", insert_then_read(), "insert changes a in place, and its old value is read afterwards"),
    ("insert in a branch", insert_then_read(lambda s: (branch((s,)),)), "insert changes a in place"),
    (
        "insert in a loop",
        inside(A, B, loop(let("c", "insert", A.result, B.result, ints(0, 0)))),
        "insert changes a in place",
    ),
    (
        "write",
        inside(A, let("c", "write_tile", A.result, ints(0, 0), Const(1.0, FP32)), store(X, A.result)),
        "write_tile changes a in place",
    ),
    ("array", kernel(TIDS, TASK, SET, replace(at(), deps=(TIDS.result,))), "array_set changes tids in place"),
]


@pytest.mark.parametrize(
    ("fn", "why"), [(fn, why) for _, fn, why in BROKEN], ids=[name for name, _, _ in BROKEN]
)
def test_refuses(fn: Function, why: str) -> None:
    with pytest.raises(InternalError, match=re.escape(why)):
        verify(fn)


def test_a_joined_tile_without_a_space_takes_one_that_has_it() -> None:
    verify(carried(init=NARROW.result, extra=(NARROW,)))


def test_the_error_names_the_place_and_the_statement() -> None:
    wrong = replace(ADD, args=(A.result, SMALL.result))
    with pytest.raises(InternalError) as caught:
        verify(inside(A, SMALL, loop(wrong)))
    first = str(caught.value).split("\n")[0]
    assert first.startswith("kernel.py:7:5: kernel: `r = pl.add(a, s)`: add does not accept its arguments: ")
    assert "the shapes differ: [16, 16] FP32 and [8, 16] FP32" in first


def test_accepts_what_is_close_to_broken() -> None:
    a, b = full("a"), full("b")
    other = let("c", "insert", a.result, b.result, ints(0, 0))
    then = If(Binary("<", N, Const(2)), (other, store(X, other.result)), (store(X, a.result),), ())
    verify(inside(a, b, then))  # the old value is read in the other branch only
    verify(kernel(at(a), at(store(X, a.result))))  # a value that lives across regions
    literal = Carried(scalar("c", INT32), Const(0), Const(1), scalar("c", INT32))
    verify(kernel(loop(carried=(literal,))))  # a literal adapts to the integer type
    verify(kernel(let("g", "create", ints(16, 16), FP32), at(let("v", "view_reshape", X, ints(16, 64)))))
    verify(inside(load("t", X, N), replace(full("v"), results=(Var("v", TILE.with_(valid=(N, 16))),))))
