"""Names in printed text: no copies where a user would write none, and right ones where they are needed."""

from __future__ import annotations

import textwrap
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pypto_models.ir.equal import difference
from pypto_models.ir.expr import Binary, Const, Expr, Var
from pypto_models.ir.nodes import (
    Bind,
    Block,
    Carried,
    For,
    If,
    Let,
    LoopKind,
    Merged,
    Region,
    RegionKind,
    Stmt,
    Unit,
)
from pypto_models.ir.printer import format_block
from pypto_models.ir.types import FP32, INDEX, TASK_ID, ScalarType, TaskType, tile
from pypto_models.ir.verify import verify
from pypto_models.language import parse
from tests.ir.build import at, full, function, ints, let, load, scalar, store, tensor

X, N = tensor("x", 64, 16), scalar("n")
TILE = tile((16, 16), FP32)


def t(name: str) -> Var:
    return Var(name, TILE)


def loop(var: str, stop: Expr | int, body: Block, *carried: Carried) -> For:
    return For(LoopKind.RANGE, scalar(var), *ints(0, stop, 1), carried, body)


def printed(*body: Stmt) -> str:
    """The text of statements that a region holds; the program around it must be sound and read back."""
    region = replace(at(*body), unit=Unit.VEC)
    text = format_block(region.body)
    fn = function((region,), X, N)
    verify(fn)
    body = textwrap.indent(text, " " * 8)
    assert difference(fn, parse(f"{HEAD}{body}\n")) is None, text
    return text


HEAD = """
import pypto_models.language as pl

@pl.jit
def kernel(x: pl.InOut[pl.Tensor[[64, 16], pl.FP32]], n: pl.Scalar[pl.INDEX]):
    with pl.at(level=pl.Level.CORE_GROUP):
"""


def same(text: str, wanted: str) -> None:
    assert text == textwrap.dedent(wanted).strip("\n")


# ------------------------------------------------------------------------------------------ no copies
def test_an_accumulator_has_one_name() -> None:
    first, p, r = full("acc"), t("acc"), t("acc")
    step = let("acc", "exp", p)
    same(
        printed(first, loop("k", 8, (step,), Carried(p, first.result, step.result, r)), store(X, r)),
        """
        acc = pl.full([16, 16], pl.FP32, 0.0)
        for k in pl.range(8):
            acc = pl.exp(acc)
        pl.assemble(x, acc, [0, 0])
        """,
    )


def test_an_accumulator_that_one_branch_starts() -> None:
    first, p, r, m, k = full("acc"), t("acc"), t("acc"), t("acc"), scalar("k")
    b = let("acc", "neg", p)
    a = let("acc", "full", ints(16, 16), FP32, Const(1.0, FP32))
    branch = If(Binary("==", k, Const(0)), (a,), (b,), (Merged(m, a.result, b.result),))
    body = For(LoopKind.RANGE, k, *ints(0, 8, 1), (Carried(p, first.result, m, r),), (branch,))
    same(
        printed(first, body, store(X, r)),
        """
        acc = pl.full([16, 16], pl.FP32, 0.0)
        for k in pl.range(8):
            if k == 0:
                acc = pl.full([16, 16], pl.FP32, 1.0)
            else:
                acc = pl.neg(acc)
        pl.assemble(x, acc, [0, 0])
        """,
    )


def test_nested_loops_hand_one_name_down() -> None:
    first, p, q, r, s = full("acc"), t("acc"), t("acc"), t("acc"), t("acc")
    step = let("acc", "exp", q)
    inner = loop("j", 4, (step,), Carried(q, p, step.result, r))
    same(
        printed(first, loop("i", 4, (inner,), Carried(p, first.result, r, s)), store(X, s)),
        """
        acc = pl.full([16, 16], pl.FP32, 0.0)
        for i in pl.range(4):
            for j in pl.range(4):
                acc = pl.exp(acc)
        pl.assemble(x, acc, [0, 0])
        """,
    )


def test_a_value_that_one_branch_changes() -> None:
    a, m = full("a"), t("a")
    b = let("a", "exp", a.result)
    same(
        printed(a, If(Binary(">", N, Const(2)), (b,), (), (Merged(m, b.result, a.result),)), store(X, m)),
        """
        a = pl.full([16, 16], pl.FP32, 0.0)
        if n > 2:
            a = pl.exp(a)
        pl.assemble(x, a, [0, 0])
        """,
    )
    b = let("a", "exp", a.result)
    same(
        printed(a, If(Binary(">", N, Const(2)), (), (b,), (Merged(m, a.result, b.result),)), store(X, m)),
        """
        a = pl.full([16, 16], pl.FP32, 0.0)
        if n > 2:
            pass
        else:
            a = pl.exp(a)
        pl.assemble(x, a, [0, 0])
        """,
    )


def test_other_names_join_where_nothing_forbids_it() -> None:
    first, p, r = full("zero"), t("acc"), t("acc")
    step = let("next", "exp", p)
    same(
        printed(first, loop("k", 8, (step,), Carried(p, first.result, step.result, r)), store(X, r)),
        """
        acc = pl.full([16, 16], pl.FP32, 0.0)
        for k in pl.range(8):
            acc = pl.exp(acc)
        pl.assemble(x, acc, [0, 0])
        """,
    )


def test_an_array_is_set_in_place() -> None:
    create = let("tids", "array_create", (4,), TASK_ID)
    tid, i = Var("tid", TaskType()), scalar("i")
    p, r = Var("tids", create.result.type), Var("tids", create.result.type)
    region = Region(RegionKind.AT, None, None, (), tid=tid)
    put = let("tids", "array_set", p, ints(i), tid)
    body = For(LoopKind.RANGE, i, *ints(0, 4, 1), (Carried(p, create.result, put.result, r),), (region, put))
    same(
        format_block((create, body, let("all", "task_dummy", (r,)))),
        """
        tids = pl.array.create(4, pl.TASK_ID)
        for i in pl.range(4):
            with pl.at(level=pl.Level.CORE_GROUP) as tid:
                pass
            tids[i] = tid
        all = pl.system.task_dummy(deps=[tids])
        """,
    )


def test_an_in_place_write_keeps_the_name() -> None:
    a, b = full("a"), full("b", 1.0)
    c = let("other", "insert", a.result, b.result, ints(0, 0))
    same(
        printed(a, b, c, store(X, c.result)),
        """
        a = pl.full([16, 16], pl.FP32, 0.0)
        b = pl.full([16, 16], pl.FP32, 1.0)
        a = pl.assemble(a, b, [0, 0])
        pl.assemble(x, a, [0, 0])
        """,
    )


# ------------------------------------------------------------------------------------------ copies
def test_a_start_value_that_is_read_later_is_copied() -> None:
    first, p, r = full("acc"), t("acc"), t("acc")
    step = let("acc", "exp", p)
    carried = Carried(p, first.result, step.result, r)
    same(
        printed(first, loop("k", 8, (step,), carried), store(X, r), store(X, first.result, 16)),
        """
        acc = pl.full([16, 16], pl.FP32, 0.0)
        acc_1 = acc
        for k in pl.range(8):
            acc_1 = pl.exp(acc_1)
        pl.assemble(x, acc_1, [0, 0])
        pl.assemble(x, acc, [16, 0])
        """,
    )


def test_a_swap_goes_through_a_third_name() -> None:
    a, b, p, q, r, s = full("a"), full("b", 1.0), t("a"), t("b"), t("a"), t("b")
    carried = Carried(p, a.result, q, r), Carried(q, b.result, p, s)
    same(
        printed(a, b, loop("k", 3, (), *carried), store(X, r), store(X, s, 16)),
        """
        a = pl.full([16, 16], pl.FP32, 0.0)
        b = pl.full([16, 16], pl.FP32, 1.0)
        for k in pl.range(3):
            a_1 = a
            a = b
            b = a_1
        pl.assemble(x, a, [0, 0])
        pl.assemble(x, b, [16, 0])
        """,
    )


def test_a_shift_needs_an_order_only() -> None:
    a, b, c = full("a"), full("b", 1.0), full("c", 2.0)
    p, q, u, r = t("a"), t("b"), t("c"), t("a")
    new = let("c", "exp", u)
    carried = (
        Carried(u, c.result, new.result, t("c")), Carried(q, b.result, u, t("b")), Carried(p, a.result, q, r),
    )  # fmt: skip
    same(
        printed(a, b, c, loop("k", 3, (new,), *carried), store(X, r)),
        """
        a = pl.full([16, 16], pl.FP32, 0.0)
        b = pl.full([16, 16], pl.FP32, 1.0)
        c = pl.full([16, 16], pl.FP32, 2.0)
        for k in pl.range(3):
            c_1 = pl.exp(c)
            a = b
            b = c
            c = c_1
        pl.assemble(x, a, [0, 0])
        """,
    )


def test_bounds_are_read_before_the_carried_names_change() -> None:
    """``m`` is rebound to 0 before the loop, whose stop is the old ``m``."""
    outer, p, r = scalar("m"), scalar("m"), scalar("m")
    result, start = scalar("m"), Bind(scalar("m"), Binary("+", N, Const(5)))
    step = Bind(scalar("m"), Binary("+", p, Const(1)))
    inner = loop("j", outer, (step,), Carried(p, Const(0), step.var, r))
    text = printed(start, loop("i", 2, (inner,), Carried(outer, start.var, r, result)), use(result))
    same(
        text,
        """
        m = n + 5
        for i in pl.range(2):
            m_1 = m
            m = 0
            for j in pl.range(m_1):
                m = m + 1
        pl.write(x, [m, 0], 1.0)
        """,
    )


def use(x: Expr) -> Let:
    return let("", "write_tensor", X, ints(x, 0), Const(1.0, FP32))


def test_branches_assign_what_they_do_not_compute() -> None:
    a, b, m, k = full("a"), full("b", 1.0), t("m"), Var("k", ScalarType(INDEX))
    branch = If(Binary(">", N, Const(2)), (), (), (Merged(m, a.result, b.result), Merged(k, Const(3), N)))
    same(
        printed(a, b, branch, *(store(X, v) for v in (m, a.result, b.result)), store(X, m, k)),
        """
        a = pl.full([16, 16], pl.FP32, 0.0)
        b = pl.full([16, 16], pl.FP32, 1.0)
        if n > 2:
            k = 3
            m = a
        else:
            k = n
            m = b
        pl.assemble(x, m, [0, 0])
        pl.assemble(x, a, [0, 0])
        pl.assemble(x, b, [0, 0])
        pl.assemble(x, m, [k, 0])
        """,
    )  # fmt: skip


def test_a_loop_in_a_branch_does_not_rebind_a_name_from_outside() -> None:
    """The name would come out of the branch as a merged value that the function does not have."""
    first, p, r = full("acc"), t("acc"), t("acc")
    step = let("acc", "exp", p)
    inner = loop("k", 8, (step,), Carried(p, first.result, step.result, r))
    same(
        printed(first, If(Binary(">", N, Const(2)), (inner, store(X, r)), (), ())),
        """
        acc = pl.full([16, 16], pl.FP32, 0.0)
        if n > 2:
            acc_1 = acc
            for k in pl.range(8):
                acc_1 = pl.exp(acc_1)
            pl.assemble(x, acc_1, [0, 0])
        """,
    )


# ------------------------------------------------------------------------------------------ identifiers
def test_names_are_unique_and_no_keywords() -> None:
    names = ["t", "t", "t_1", "pl", "min", "class", "2x", "a.b"]
    stmts = [full(name) for name in names]
    got = [line.split(" = ")[0] for line in format_block(tuple(stmts)).split("\n")]
    assert got == ["t", "t_1", "t_1_1", "pl_1", "min_1", "class_1", "v2x", "a_b"]


def test_loops_side_by_side_share_the_name_of_their_variable() -> None:
    i, j, inner = scalar("i"), scalar("i"), scalar("i")

    def over(v: Var, body: Block) -> For:
        return For(LoopKind.RANGE, v, *ints(0, 4, 1), (), body)

    nested = over(inner, (load("b", X, Binary("+", j, inner)), load("c", X, j)))
    same(
        format_block((over(i, (load("a", X, i),)), over(j, (nested,)))),
        """
        for i in pl.range(4):
            a = pl.slice(x, [16, 16], [i, 0])
        for i in pl.range(4):
            for i_1 in pl.range(4):
                b = pl.slice(x, [16, 16], [i + i_1, 0])
                c = pl.slice(x, [16, 16], [i, 0])
        """,
    )


@given(st.permutations(range(4)), st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=40)
def test_any_permutation_of_carried_values_reads_back(order: list[int], fresh: list[bool]) -> None:
    """Each next value is a parameter, or computed from one: every mix of chains and cycles."""
    starts = [full(f"t{i}", float(i)) for i in range(4)]
    params, results = [t(f"t{i}") for i in range(4)], [t(f"t{i}") for i in range(4)]
    body: list[Let] = []
    carried: list[Carried] = []
    for p, start, j, new, r in zip(params, starts, order, fresh, results, strict=True):
        value = params[j]
        if new or value is p:  # no text carries a value that no trip changes
            body.append(let(p.name, "exp", value))
            value = body[-1].result
        carried.append(Carried(p, start.result, value, r))
    printed(
        *starts, loop("k", 3, tuple(body), *carried), *(store(X, r, 16 * i) for i, r in enumerate(results))
    )
