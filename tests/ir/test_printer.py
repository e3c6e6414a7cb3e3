"""The printed text: what it looks like, that Python reads expressions the same way, that it reads back."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pypto_models.errors import UserError
from pypto_models.ir.equal import difference
from pypto_models.ir.expr import Binary, Const, DimVar, Expr, Unary, Var, evaluate
from pypto_models.ir.nodes import (
    Bind,
    Block,
    Direction,
    For,
    Function,
    If,
    Let,
    LoopKind,
    Param,
    Region,
    RegionKind,
    RegionOptions,
    Return,
    Scope,
    Unit,
)
from pypto_models.ir.printer import (
    format_block,
    format_expr,
    format_function,
    format_head,
    format_stmt,
    format_type,
)
from pypto_models.ir.rewrite import Rewriter, uses, walk
from pypto_models.ir.types import (
    BF16,
    BOOL,
    FP32,
    INDEX,
    INT32,
    TASK_ID,
    ArrayType,
    Mem,
    ScalarType,
    SplitMode,
    TaskType,
    TensorType,
    tile,
)
from pypto_models.ir.verify import verify
from pypto_models.language import parse
from pypto_models.language.constructs import Role
from pypto_models.language.joins import drop_dead_joins
from pypto_models.ops import REGISTRY
from pypto_models.ops.registry import Kind, T
from tests.ir.build import at, full, function, ints, let, load, placed, scalar, store, tensor
from tests.ir.programs import program

J, K, N = (scalar(n) for n in "jkn")


def body_of(fn: Function) -> str:
    """The printed body, without header and indentation."""
    lines = format_function(fn).split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("def ")) + 1
    return textwrap.dedent("\n".join(lines[start:])).rstrip("\n")


def reads_back(fn: Function) -> str:
    """The text of a well-formed function, after checking that it reads back."""
    verify(fn)
    text = format_function(fn)
    assert difference(fn, parse(text)) is None, text
    return body_of(fn)


# ------------------------------------------------------------------------------------------ expressions
A, B = scalar("a"), scalar("b")


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (Binary("-", Binary("-", A, B), A), "a - b - a"),
        (Binary("-", A, Binary("-", B, A)), "a - (b - a)"),
        (Binary("*", Binary("+", A, B), A), "(a + b) * a"),
        (Binary("+", A, Binary("*", B, A)), "a + b * a"),
        (Binary("//", A, Binary("*", B, A)), "a // (b * a)"),
        (Binary("**", Unary("-", A), Const(2)), "(-a) ** 2"),
        (Unary("-", Binary("**", A, Const(2))), "-a ** 2"),
        (Binary("**", A, Unary("-", B)), "a ** -b"),
        (Binary("**", Const(-2), A), "(-2) ** a"),
        (Binary("-", A, Const(-3)), "a - -3"),
        (Binary("==", Binary("<", A, B), Const(True, BOOL)), "(a < b) == True"),
        (Binary("or", Binary("and", A, B), Unary("not", Binary("<", A, B))), "a and b or not a < b"),
        (Binary("and", Binary("or", A, B), A), "(a or b) and a"),
        (Unary("not", Binary("or", A, B)), "not (a or b)"),
        (Binary("min", Binary("+", A, B), Const(1)), "pl.min(a + b, 1)"),
        (Unary("cast", Binary("+", A, B), FP32), "pl.cast(a + b, pl.FP32)"),
        (Const(3, INT32), "pl.const(3, pl.INT32)"),
        (Const(0.5, BF16), "pl.const(0.5, pl.BF16)"),
        (Const(2, FP32), "2.0"),
        (Const(float("-inf"), FP32), "-1e999"),
        (DimVar("T"), "T"),
    ],
)
def test_expression(x: Expr, text: str) -> None:
    assert format_expr(x) == text


def expressions(depth: int = 4) -> tuple[st.SearchStrategy[Expr], st.SearchStrategy[Expr]]:
    """Integer and boolean expressions."""
    number = st.one_of(st.sampled_from([A, B]), st.integers(-3, 5).map(Const))
    truth: st.SearchStrategy[Expr] = st.booleans().map(lambda b: Const(b, BOOL))
    for _ in range(depth):
        symbols = st.sampled_from(["+", "-", "*", "//", "%", "min", "max"])
        arithmetic = st.builds(Binary, symbols, number, number)
        power = st.builds(lambda x, n: Binary("**", x, Const(n)), number, st.integers(0, 2))
        compare = st.builds(Binary, st.sampled_from(["<", "<=", "==", "!=", ">", ">="]), number, number)
        same = st.builds(Binary, st.sampled_from(["==", "!="]), truth, truth)
        logic = st.builds(Binary, st.sampled_from(["and", "or"]), truth, truth)
        truth = st.one_of(truth, compare, same, logic, st.builds(Unary, st.just("not"), truth))
        number = st.one_of(number, arithmetic, power, st.builds(Unary, st.just("-"), number))
    return number, truth


@given(st.one_of(*expressions()), st.integers(-4, 6), st.integers(1, 6))
def test_python_computes_what_the_expression_means(x: Expr, a: int, b: int) -> None:
    values: dict[Expr, int] = {A: a, B: b}
    try:
        meant = evaluate(x, lambda v: values[v])
    except UserError as error:
        assert "divisor is 0" in str(error)
        return  # Python may skip the operand that divides: its `and` and `or` are lazy
    pl = SimpleNamespace(min=min, max=max)
    assert eval(format_expr(x), {"pl": pl, "a": a, "b": b}) == meant


def test_infinities_and_nan_are_literals() -> None:
    pl = SimpleNamespace(const=lambda v, t: v, BF16=None)
    for value in (float("inf"), float("-inf"), 1e-30, -0.0):
        for dtype in (FP32, BF16):
            assert repr(eval(format_expr(Const(value, dtype)), {"pl": pl})) == repr(value)
    assert math.isnan(eval(format_expr(Const(float("nan"), FP32))))


# ------------------------------------------------------------------------------------------ types
@pytest.mark.parametrize(
    ("t", "text"),
    [
        (TensorType((DimVar("T"), 5120), BF16), "pl.Tensor[[T, 5120], pl.BF16]"),
        (tile((16, 256), FP32), "pl.Tile[[16, 256], pl.FP32]"),
        (tile((16, 256), FP32).with_(space=Mem.Acc), "pl.Tile[[16, 256], pl.FP32, pl.Mem.Acc]"),
        (
            tile((16, 256), FP32).with_(space=Mem.Vec, split=SplitMode.UP_DOWN),
            "pl.Tile[[16, 256], pl.FP32, pl.Mem.Vec, pl.SplitMode.UP_DOWN]",
        ),
        (ScalarType(INT32), "pl.Scalar[pl.INT32]"),
        (TaskType(), "pl.Scalar[pl.TASK_ID]"),
        (ArrayType(4, TASK_ID), "pl.Array[4, pl.TASK_ID]"),
    ],
)
def test_type(t: Any, text: str) -> None:
    assert format_type(t) == text


# ------------------------------------------------------------------------------------------ header
def test_header() -> None:
    t = DimVar("T")
    x, o, n = tensor("x", t, 64), tensor("o", t, 64), scalar("n", INT32)
    rows = Bind(scalar("rows"), Binary("+", t, n))
    fn = Function("f", (Param(x, Direction.IN), Param(o, Direction.OUT), Param(n, Direction.IN)), (rows,))
    assert format_function(fn) == textwrap.dedent("""\
        import pypto_models.language as pl

        T = pl.dynamic("T")


        @pl.jit
        def f(x: pl.Tensor[[T, 64], pl.FP32], o: pl.Out[pl.Tensor[[T, 64], pl.FP32]], n: pl.Scalar[pl.INT32]):
            rows = pl.tensor.dim(x, 0) + n
        """)


def test_long_header_breaks_and_empty_body_passes() -> None:
    params = [tensor(f"weight_{i}", 5120, 5120, dtype=BF16) for i in range(3)]
    text = format_function(function((), *params))
    assert text.endswith(
        "def kernel(\n"
        "    weight_0: pl.InOut[pl.Tensor[[5120, 5120], pl.BF16]],\n"
        "    weight_1: pl.InOut[pl.Tensor[[5120, 5120], pl.BF16]],\n"
        "    weight_2: pl.InOut[pl.Tensor[[5120, 5120], pl.BF16]],\n"
        "):\n    pass\n"
    )


def test_extent_names_are_identifiers_of_their_own() -> None:
    x = tensor("x", DimVar("user batch"), DimVar("pl"))
    fn = function((Bind(scalar("user_batch"), Binary("+", DimVar("user batch"), Const(1))),), x)
    assert format_function(fn) == textwrap.dedent("""\
        import pypto_models.language as pl

        user_batch = pl.dynamic("user batch")
        pl_1 = pl.dynamic("pl")


        @pl.jit
        def kernel(x: pl.InOut[pl.Tensor[[user_batch, pl_1], pl.FP32]]):
            user_batch_1 = pl.tensor.dim(x, 0) + 1
        """)
    assert difference(fn, parse(format_function(fn))) is None


# ------------------------------------------------------------------------------------------ calls
X = tensor("x", 64, 256)


def calls() -> list[tuple[Let, str]]:
    t, s, w = full("t").result, full("s").result, full("w", shape=(32, 16)).result
    low = let("h", "cast", t, BF16).result
    tids = let("tids", "array_create", (4,), TASK_ID).result
    one = let("one", "array_get", tids, ints(2))
    return [
        (full("r", 1.5), "r = pl.full([16, 16], pl.FP32, 1.5)"),
        (let("r", "cast", t, BF16), "r = pl.cast(t, pl.BF16)"),
        (let("r", "cast", t, BF16, mode="rint"), 'r = pl.cast(t, pl.BF16, mode="rint")'),
        (let("r", "fillpad", t), "r = pl.fillpad(t)"),
        (let("r", "fillpad", t, "min"), "r = pl.fillpad(t, pad_value=pl.PadValue.min)"),
        (let("r", "fillpad", t, float("-inf")), "r = pl.fillpad(t, pad_value=-1e999)"),
        (let("r", "cmp", t, s, 4), "r = pl.cmp(t, s, cmp_type=4)"),
        (let("r", "mul", t, Const(0.5, FP32)), "r = pl.mul(t, 0.5)"),
        (let("r", "rsqrt", t, True), "r = pl.rsqrt(t, high_precision=True)"),
        (load("r", X), "r = pl.slice(x, [16, 16], [0, 0])"),
        (
            let("r", "load", X, ints(1, 16), ints(N, 0), ints(1, N), (0,), "zero", True),
            "r = pl.slice(x, [1, 16], [n, 0], valid_shape=[1, n], drop_dims=[0], pad_value=pl.PadValue.zero, "
            "clamp=True)",
        ),
        (
            let("r", "matmul", low, low, FP32, b_trans=True),
            "r = pl.matmul(h, h, out_dtype=pl.FP32, b_trans=True)",
        ),
        (
            let("r", "matmul_acc", s, low, low, init_cond=Binary("==", K, Const(0))),
            "r = pl.matmul_acc(s, h, h, init_cond=k == 0)",
        ),
        (let("r", "insert", w, t, ints(16, 0)), "r = pl.assemble(w, t, [16, 0])"),
        (store(X, t, K), "pl.assemble(x, t, [k, 0])"),
        (
            let("", "store", X, t, ints(0, 0), "add"),
            "pl.assemble(x, t, [0, 0], atomic=pl.AtomicType.Add)",
        ),
        (let("", "write_tensor", X, ints(0, K), N), "pl.write(x, [0, k], n)"),
        (let("r", "read_tensor", X, ints(0, K)), "r = pl.read(x, [0, k])"),
        (let("r", "create", ints(N, 16), FP32), "r = pl.create_tensor([n, 16], pl.FP32)"),
        (
            let("r", "create", ints(4, 4), FP32, layout="NZ", manual_dep=True, init_value=Const(0)),
            'r = pl.create_tensor([4, 4], pl.FP32, layout="NZ", manual_dep=True, init_value=0)',
        ),
        (let("r", "view", X, ints(32, 256), ints(N, 0)), "r = pl.slice(x, [32, 256], [n, 0])"),
        (let("r", "move", t, Mem.Vec), "r: pl.Tile[[16, 16], pl.FP32, pl.Mem.Vec] = pl.move(t, pl.Mem.Vec)"),
        (let("r", "array_create", (4,), TASK_ID), "r = pl.array.create(4, pl.TASK_ID)"),
        (let("r", "array_get", tids, ints(2)), "r = tids[2]"),
        (let("tids", "array_set", tids, ints(N), one.result), "tids[n] = one"),
        (let("r", "array_set", tids, ints(N), one.result), "r = tids\nr[n] = one"),
        (let("r", "task_dummy"), "r = pl.system.task_dummy()"),
        (let("r", "task_dummy", (one.result, tids)), "r = pl.system.task_dummy(deps=[one, tids])"),
    ]


@pytest.mark.parametrize(("stmt", "text"), calls(), ids=[text for _, text in calls()])
def test_call(stmt: Let, text: str) -> None:
    assert format_stmt(stmt).replace("\n    ", "").replace(",\n)", ")") == text


@pytest.mark.parametrize("name", [o.name for o in REGISTRY if o.samples])
def test_every_op_reads_back(name: str) -> None:
    op = REGISTRY[name]
    for sample in op.samples:
        given_args = dict(zip(op.param_names, sample.args, strict=False)) | dict(sample.keywords)
        source: list[Var] = []
        stmts: list[Let] = []
        args: list[Any] = []
        for p in op.params:
            value = given_args.get(p.name, p.default)
            if isinstance(value, T):
                source.append(tensor(f"t{len(source)}", *value.shape, dtype=value.dtype))
                valid = ints(*value.valid) if value.valid else None
                box = (ints(*value.shape), ints(*(0 for _ in value.shape)), valid)
                stmts.append(let("x", "load", source[-1], *box))
                value = stmts[-1].result
            elif p.kind in (Kind.SCALAR, Kind.TILE_OR_SCALAR) and isinstance(value, int | float):
                value = Const(value, FP32 if isinstance(value, float) else INDEX)
            elif p.kind is Kind.INDEX and value is not None:
                value = ints(*value)
            args.append(value)
        stmt = let("y", name, *args)
        unit = op.unit if op.unit is Unit.CUBE else Unit.VEC
        reads_back(function((replace(at(*stmts, stmt), unit=unit),), *source))


# ------------------------------------------------------------------------------------------ constructs
def test_loops() -> None:
    pipeline = For(LoopKind.PIPELINE, scalar("k"), *ints(0, 512, 64), (), (), stage=2)
    parallel = For(LoopKind.PARALLEL, scalar("p"), *ints(2, 8, 1), (), (full("t"),))
    stepped = For(LoopKind.RANGE, scalar("i"), *ints(1, N, 3), (), ())
    assert format_block((pipeline, parallel, stepped)) == textwrap.dedent("""\
        for k in pl.pipeline(0, 512, 64, stage=2):
            pass
        for p in pl.parallel(2, 8):
            t = pl.full([16, 16], pl.FP32, 0.0)
        for i in pl.range(1, n, 3):
            pass""")


def test_regions() -> None:
    block, tid, first = scalar("b"), Var("tid", TaskType()), Var("first", TaskType())
    body = (load("x", X, block),)

    def spmd(block: Var | None, tid: Var | None, body: Block, **options: Any) -> Region:
        return Region(RegionKind.SPMD, block, N, body, RegionOptions(**options), tid)

    hints = (("allow_early_resolve", True), ("no_dep_args", (X,)), ("role", Role.CUBE))
    split = at(full("t"), name_hint="mixed", split=SplitMode.UP_DOWN, slot_num=4, hints=hints)
    parts = (
        at(),
        replace(at(), tid=first),
        spmd(block, None, body),
        replace(spmd(scalar("b"), tid, ()), deps=(first,)),
        split,
        at(full("t"), slot_num=3),
        Scope(False, (at(name_hint='a "b"'),)),
        Scope(True, ()),
    )
    assert format_block(parts) == textwrap.dedent("""\
        with pl.at(level=pl.Level.CORE_GROUP):
            pass
        with pl.at(level=pl.Level.CORE_GROUP) as first:
            pass
        for b in pl.spmd(n):
            x_1 = pl.slice(x, [16, 16], [b, 0])
        with pl.spmd(n, deps=[first]) as tid:
            pass
        with pl.at(
            level=pl.Level.CORE_GROUP,
            optimizations=[pl.split(pl.SplitMode.UP_DOWN, 4)],
            name_hint="mixed",
            allow_early_resolve=True,
            no_dep_args=[x],
            role=pl.Role.CUBE,
        ):
            t = pl.full([16, 16], pl.FP32, 0.0)
        with pl.at(level=pl.Level.CORE_GROUP, optimizations=[pl.split(pl.SplitMode.NONE, 3)]):
            t_1 = pl.full([16, 16], pl.FP32, 0.0)
        with pl.scope():
            with pl.at(level=pl.Level.CORE_GROUP, name_hint="a \\"b\\""):
                pass
        with pl.manual_scope():
            pass""")


def test_a_grid_with_a_task_id_reads_its_index_first() -> None:
    block = scalar("b")
    grid = Region(
        RegionKind.SPMD, block, N, (load("t", X, block),), tid=Var("tid", TaskType()), unit=Unit.VEC
    )
    assert reads_back(function((grid, Return((X,))), X, N)) == textwrap.dedent("""\
        with pl.spmd(n) as tid:
            b = pl.get_block_idx()
            t = pl.slice(x, [16, 16], [b, 0])
        return x""")


def test_spaces_and_splits_survive() -> None:
    t = placed(full("t"), space=Mem.Vec, split=SplitMode.UP_DOWN)
    u = placed(let("u", "exp", t.result), split=SplitMode.LEFT_RIGHT)
    fn = function((replace(at(t, u, store(X, u.result)), unit=Unit.VEC),), X)
    assert reads_back(fn) == textwrap.dedent("""\
        with pl.at(level=pl.Level.CORE_GROUP):
            t: pl.Tile[[16, 16], pl.FP32, pl.Mem.Vec, pl.SplitMode.UP_DOWN] = pl.full([16, 16], pl.FP32, 0.0)
            u: pl.Tile[[16, 16], pl.FP32, pl.SplitMode.LEFT_RIGHT] = pl.exp(t)
            pl.assemble(x, u, [0, 0])""")


@pytest.mark.parametrize(
    ("stmt", "text"),
    [
        (full("t"), "t = pl.full([16, 16], pl.FP32, 0.0)"),
        (Bind(scalar("i"), Binary("+", J, Const(1))), "i = j + 1"),
        (For(LoopKind.RANGE, J, *ints(0, N, 1), (), (full("t"),)), "for j in pl.range(n):"),
        (If(Binary("<", J, N), (full("t"),), (), ()), "if j < n:"),
        (at(full("t")), "with pl.at(level=pl.Level.CORE_GROUP):"),
        (Return((X, N)), "return x, n"),
        (Return(()), "return"),
    ],
)
def test_head(stmt: Any, text: str) -> None:
    assert format_head(stmt) == text


# ------------------------------------------------------------------------------------------ whole programs
def test_a_mixed_kernel(golden_text: Callable[[str, str], None]) -> None:
    text = format_function(parse(MIXED))
    golden_text(text, "mixed")
    assert format_function(parse(text)) == text


MIXED = """
import pypto_models.language as pl

T = pl.dynamic("T")

@pl.jit
def gemm_residual(
    x: pl.Tensor[[T, 512], pl.BF16], w: pl.Tensor[[512, 256], pl.BF16], r: pl.Tensor[[T, 256], pl.FP32],
    o: pl.Out[pl.Tensor[[T, 256], pl.FP32]],
):
    rows = pl.tensor.dim(x, 0)
    zeroed = pl.array.create(2, pl.TASK_ID)
    for half in pl.unroll(2):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="zero") as tid:
            o[half * 8 : half * 8 + 8, 0:256] = pl.full([8, 256], pl.FP32, 0.0)
        zeroed[half] = tid
    with pl.spmd(
        (rows + 15) // 16, optimizations=[pl.split(pl.SplitMode.UP_DOWN)], deps=[zeroed[i] for i in range(2)],
        name_hint="mm",
    ) as done:
        b = pl.get_block_idx()
        row = b * 16
        live = pl.min(rows - row, 16)
        acc = pl.create_tensor([16, 256], pl.FP32)
        for k in pl.pipeline(0, 512, 64, stage=2):
            a = pl.slice(x, [16, 64], [row, k], valid_shape=[live, 64])
            if k == 0:
                acc = pl.matmul(a, w[k : k + 64, :], out_dtype=pl.FP32)
            else:
                acc = pl.matmul_acc(acc, a, w[k : k + 64, :])
        top = pl.row_max(acc)
        again = top
        for i in pl.range(4):
            if i > 1 and not live == 16:
                top = pl.add(top, again)
            elif i == 0:
                top = pl.mul(top, 2.0)
        acc = pl.row_expand_sub(acc, top)
        acc[0:8, :] = pl.slice(acc, [8, 256], [8, 0])
        res = pl.slice(r, [16, 256], [row, 0], valid_shape=[live, 256])
        pl.assemble(o, pl.add(acc, res), [row, 0])
    return o
"""


class _DropUnread(Rewriter):
    """Removes ops and scalars that nothing reads, which leaves programs that no text gives directly."""

    def __init__(self, read: frozenset[Var]) -> None:
        super().__init__()
        self.read = read

    def stmt(self, s: Any) -> Any:
        unread = isinstance(s, Let) and s.results and s.result not in self.read
        return () if unread or (isinstance(s, Bind) and s.var not in self.read) else self.descend(s)


def drop_unread(fn: Function) -> Function:
    while True:
        body = drop_dead_joins(_DropUnread(frozenset(uses(fn.body))).block(fn.body))
        if len(list(walk(body))) == len(list(walk(fn.body))):
            return replace(fn, body=body)
        fn = replace(fn, body=body)


def folded(fn: Function) -> bool:
    """No statement left that reading folds away: a branch on a constant, a constant with a name."""
    stmts = list(walk(fn.body))
    branches = any(isinstance(s, If) and isinstance(s.cond, Const) for s in stmts)
    return not branches and not any(isinstance(s, Bind) and isinstance(s.value, Const) for s in stmts)


@given(st.integers(0, 10**9))
@settings(max_examples=60)
def test_random_programs_read_back(seed: int) -> None:
    fn = parse(program(seed))
    assume(folded(fn))
    reads_back(fn)
    reads_back(drop_unread(fn))
