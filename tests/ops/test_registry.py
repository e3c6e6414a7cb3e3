"""What the OpDefs say of themselves: signatures, docs, costs, accesses, result types, mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import pypto_models.language as pl
from pypto_models.errors import InternalError, UserError
from pypto_models.ir.expr import Expr, Var, binary, dim_expr, index
from pypto_models.ir.nodes import Let, Unit
from pypto_models.ir.rewrite import walk
from pypto_models.ir.types import (
    BF16,
    BOOL,
    DTYPES,
    FP8E4M3FN,
    FP8E8M0,
    FP16,
    FP32,
    INDEX,
    INT8,
    INT16,
    INT32,
    INT64,
    TASK_ID,
    UINT16,
    UINT64,
    ArrayType,
    DType,
    ScalarType,
    TaskType,
    TensorType,
    TileType,
    tile,
)
from pypto_models.ops import REGISTRY, Registry
from pypto_models.ops.registry import Access, Cost, Effect, Kind, OpDef, op
from pypto_models.ops.value import TileValue, torch_dtype
from tests.backends.build import Builder

from .test_split_rules import definition, the_let

OPS = pytest.mark.parametrize("o", list(REGISTRY), ids=lambda o: o.name)
HINTS = {"shape", "offset", "dtype", "index", "value", "target_memory"}  # say what they are by their name


# ------------------------------------------------------------------------------------------ definitions
@OPS
def test_definition(o: OpDef) -> None:
    names = [p.name for p in o.params]
    assert len(set(names)) == len(names)
    required = [p.required for p in o.params]
    assert required == sorted(required, reverse=True), "a required parameter after an optional one"
    assert {*o.inplace, *filter(None, (o.alias, o.mutates))} <= set(names)
    assert o.param_names == tuple(names)
    for p in o.params:
        assert p.kind is not Kind.CHOICE or p.required or p.default in p.choices


@OPS
def test_documentation(o: OpDef) -> None:
    assert re.fullmatch(r"[^\s].*[.]", o.doc, re.DOTALL), "a sentence"
    together = " ".join(other.doc for other in REGISTRY.by_spelling[o.spelling])
    options = {p.name for p in o.params if not p.required and p.kind not in (Kind.TASKS,)} - HINTS
    assert not {n for n in options if n not in together}, "the doc does not mention an option"


@OPS
def test_overloads_are_told_apart(o: OpDef) -> None:
    """Of the ops with one spelling, at most one takes a first operand at a place."""
    firsts = (None, tile((8, 8), FP32), TensorType((8, 8), FP32), ScalarType(FP32), ArrayType(2, TASK_ID))
    for space in o.namespaces:
        overloads = REGISTRY.overloads(space, o.spelling)
        for first in firsts:
            for inside in (False, True):
                takers = [x for x in overloads if x.accepts is None or x.accepts(first, inside)]
                assert len(takers) <= 1 or len(overloads) == 1, [x.name for x in takers]


def test_signatures() -> None:
    want = {
        "matmul": "pl.matmul(lhs, rhs, out_dtype=None, a_trans=False, b_trans=False, c_matrix_nz=False)",
        "fillpad": "pl.fillpad(x, pad_value=pl.PadValue.zero)",
        "cast": "pl.cast(x, target_type, mode='round')",
        "load": "pl.slice(t, shape, offset, valid_shape=None, drop_dims=None, pad_value=None, clamp=False)",
    }
    assert {n: REGISTRY[n].signature for n in want} == want


def test_two_ops_of_one_name() -> None:
    twice = op("exp", doc="Again.", infer=lambda: None)
    with pytest.raises(InternalError, match="two ops are named exp"):
        Registry((*REGISTRY, twice))


def test_every_spelling_is_a_member_of_the_language() -> None:
    for o in REGISTRY:
        for space in o.namespaces:
            holder = getattr(pl, space) if space else pl
            assert str(getattr(holder, o.spelling)).endswith(o.spelling)


# ------------------------------------------------------------------------------------------ facets
@OPS
def test_a_result_that_takes_over_an_operand_has_its_extents(o: OpDef) -> None:
    for s in o.samples:
        let = the_let(o, s)
        for x in (let.arg(name) for name in o.inplace):
            if isinstance(x, Var) and isinstance(x.type, TileType):  # not a scalar rhs
                assert let.result.type.shape == x.type.shape  # type: ignore[union-attr]


COMBINE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "add": torch.add, "mul": torch.mul, "max": torch.maximum, "min": torch.minimum,
}  # fmt: skip


ASSOCIATIVE = [o for o in REGISTRY if o.combine and o.name != "matmul_acc"]


@pytest.mark.parametrize("o", ASSOCIATIVE, ids=lambda o: o.name)
def test_combine_joins_partial_results(o: OpDef) -> None:
    """A reduction of two parts, joined, is that of the whole; an elementwise op is its own operator."""
    assert o.reference is not None and o.combine is not None
    join = COMBINE[o.combine]
    x = torch.arange(-12.0, 12.0).reshape(4, 6) / 8
    a, b = x.chunk(2, dim=0 if o.name.startswith("col_") else 1)
    if len(o.params) == 1:
        parts = [run_reference(o, part) for part in (a, b)]
        assert torch.equal(join(*parts), run_reference(o, x))
    else:
        assert torch.equal(run_reference(o, a, b), join(a, b))


def test_which_ops_combine() -> None:
    assert {o.name: o.combine for o in REGISTRY if o.combine} == {
        "add": "add", "mul": "mul", "maximum": "max", "minimum": "min", "matmul_acc": "add",
        "row_sum": "add", "row_max": "max", "row_min": "min",
        "col_sum": "add", "col_max": "max", "col_min": "min",
    }  # fmt: skip


def run_reference(o: OpDef, *xs: torch.Tensor, rest: tuple[Any, ...] = ()) -> torch.Tensor:
    assert o.reference is not None
    data = o.reference(*(TileValue(x, tuple(x.shape)) for x in xs), *rest).data
    assert isinstance(data, torch.Tensor)
    return data


NUMBERS = [d for d in DTYPES if d.kind not in ("task", "index", "bool")]


@pytest.mark.parametrize(
    ("name", "shapes", "rest"),
    [
        ("add", ((4, 4), (4, 4)), ()),
        ("cmp", ((4, 4), (4, 4)), (0,)),
        ("row_expand_mul", ((4, 4), (4, 1)), ()),
        ("col_expand", ((4, 4), (1, 4)), ()),
        ("matmul", ((4, 4), (4, 4)), (None, False, False, False)),
    ],
)
def test_the_type_rule_and_the_reference_agree(
    name: str, shapes: tuple[tuple[int, int], ...], rest: tuple[Any, ...]
) -> None:
    """For every two element types: the rule refuses them, or says what the reference gives."""
    o, accepted = REGISTRY[name], 0
    for a in NUMBERS:
        for b in NUMBERS:
            tiles = [tile(s, d) for s, d in zip(shapes, (a, b), strict=True)]
            try:
                want = o.infer(*(Var("x", t) for t in tiles), *rest)
            except UserError:
                continue
            ones = [torch.ones(t.shape).to(torch_dtype(t.dtype)) for t in tiles]
            assert isinstance(want, TileType)
            assert run_reference(o, *ones, rest=rest).dtype == torch_dtype(want.dtype), (a, b)
            accepted += 1
    assert accepted > 20


# ------------------------------------------------------------------------------------------ cost, access
def last_let(build: Callable[[Builder], Any], name: str) -> Let:
    """The op ``name`` of a region that ``build`` fills."""
    b = Builder()
    with b.region():
        build(b)
    return [s for s in walk(b.function().body) if isinstance(s, Let) and s.op.name == name][-1]


@OPS
def test_costs_are_not_negative(o: OpDef) -> None:
    for s in o.samples:
        cost = o.cost(the_let(o, s))
        assert cost.flops >= 0 and cost.bytes >= 0
        assert o.unit is not Unit.CUBE or cost.flops > 0


@pytest.mark.parametrize(
    ("name", "sample", "flops"),
    [
        ("matmul", 0, 2 * 16 * 16 * 32),
        ("matmul", 1, 2 * 16 * 48 * 32),  # rhs is [48, 32], transposed
        ("matmul", 2, 2 * 16 * 16 * 32),  # both [32, 16], lhs transposed
        ("matmul_acc", 0, 2 * 16 * 16 * 32),
        ("add", 0, 16 * 32),
        ("exp", 0, 16 * 32),
        ("row_sum", 0, 16 * 32),  # of its operand, not of the column that it gives
        ("col_max", 0, 16 * 32),
        ("row_expand_mul", 0, 16 * 32),
        ("row_expand", 0, 16 * 32),
        ("row_argmax", 0, 16 * 32),
        ("arange", 0, 32),
        ("cast", 0, 16 * 32),
    ],
)
def test_work(name: str, sample: int, flops: int) -> None:
    o = REGISTRY[name]
    assert o.cost(the_let(o, o.samples[sample])) == Cost(flops=flops)


def gm(b: Builder, *shape: Any, dtype: DType = FP32, name: str = "x") -> Var:
    return b.param(name, TensorType(shape, dtype))


def test_a_load() -> None:
    n = Var("n", ScalarType(INDEX))
    let = last_let(lambda b: b("load", gm(b, 64, 32, dtype=BF16), (16, 32), (n, 0), (5, 20)), "load")
    assert REGISTRY["load"].cost(let) == Cost(bytes=16 * 32 * 2)
    (a,) = REGISTRY["load"].access(let)
    assert a == Access(let.args[0], Effect.READ, (n, index(0)), (16, 32), (5, 20))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"pad_value": "zero"}], ids=str)
def test_a_clamped_load_touches_what_is_there(options: dict[str, Any]) -> None:
    n = Var("n", ScalarType(INDEX))
    fixed = last_let(lambda b: b("load", gm(b, 20, 32), (16, 32), (8, 0), clamp=True, **options), "load")
    assert REGISTRY["load"].access(fixed)[0].valid == (12, 32)
    let = last_let(lambda b: b("load", gm(b, 20, 32), (16, 32), (n, 0), clamp=True, **options), "load")
    room = binary("max", binary("-", index(20), n), index(0))
    assert REGISTRY["load"].access(let)[0].valid == (binary("min", index(16), room), 32)


@pytest.mark.parametrize(("atomic", "effect"), [("none", Effect.WRITE), ("add", Effect.ATOMIC)])
def test_a_store(atomic: str, effect: Effect) -> None:
    def build(b: Builder) -> None:
        t = b("load", gm(b, 16, 32), (16, 32), (0, 0), (3, 32))
        b("store", gm(b, 64, 64, name="y"), t, (8, 32), atomic)

    let = last_let(build, "store")
    assert REGISTRY["store"].cost(let) == Cost(bytes=16 * 32 * 4)
    (a,) = REGISTRY["store"].access(let)
    assert a == Access(let.args[0], effect, (index(8), index(32)), (16, 32), (3, 32))  # type: ignore[arg-type]


def test_single_elements() -> None:
    def build(b: Builder) -> None:
        x = gm(b, 4, 8)
        b("write_tensor", x, (2, 3), b("read_tensor", x, (1, 7)))

    for name, effect, at in (
        ("read_tensor", Effect.READ, (1, 7)),
        ("write_tensor", Effect.WRITE, (2, 3)),
    ):
        let = last_let(build, name)
        (a,) = REGISTRY[name].access(let)
        assert a == Access(let.args[0], effect, tuple(map(index, at)), (1, 1), (1, 1))  # type: ignore[arg-type]
        assert REGISTRY[name].cost(let) == Cost(bytes=4)


@OPS
def test_only_four_ops_touch_global_memory(o: OpDef) -> None:
    touching = {definition(s).name for x in o.samples for s in [the_let(o, x)] if o.access(s)}
    assert touching == set()
    assert (o.access is not REGISTRY["exp"].access) == (
        o.name in ("load", "store", "read_tensor", "write_tensor")
    )


# ------------------------------------------------------------------------------------------ result types
def typed(name: str, *args: Any, **keywords: Any) -> Any:
    """The result type of an op; TileType and TensorType arguments become variables."""
    b = Builder()

    def variable(x: Any) -> Any:
        return Var("v", x) if isinstance(x, TileType | TensorType | ArrayType) else x

    with b.region():
        y = b(name, *map(variable, args), **keywords)
    return None if y is None else y.type


F, H, I8, I32 = (tile((16, 32), d) for d in (FP32, BF16, INT8, INT32))
PART = tile((16, 32), FP32, (5, 17))
GM = TensorType((64, 32), FP32)
N: Expr = Var("n", ScalarType(INDEX))
HALF_SCALAR: Expr = Var("s", ScalarType(FP32))


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (lambda: typed("add", PART, F), PART),
        (lambda: typed("add", H, F), F),
        (lambda: typed("add", I32, 3), I32),
        (lambda: typed("mul", I8, H), H),
        (lambda: typed("row_sum", PART), tile((16, 1), FP32, (5, 1))),
        (lambda: typed("col_sum", PART), tile((1, 32), FP32, (1, 17))),
        (lambda: typed("row_argmax", PART), tile((16, 1), INT32, (5, 1))),
        (lambda: typed("row_expand", PART, tile((16, 1), BF16)), PART),
        (lambda: typed("col_expand", I8, tile((1, 32), INT32)), I32),
        (lambda: typed("arange", 3, (1, 32), UINT16), tile((1, 32), UINT16)),
        (lambda: typed("arange", -(2**31), (1, 32), INT32), tile((1, 32), INT32)),
        (lambda: typed("arange", Var("s", ScalarType(INT16)), (1, 8), INT16, True), tile((1, 8), INT16)),
        (lambda: typed("cast", PART, INT32), tile((16, 32), INT32, (5, 17))),
        (lambda: typed("fillpad", PART), F),
        (lambda: typed("transpose", PART, 0, 1), tile((32, 16), FP32, (17, 5))),
        (lambda: typed("transpose", PART, -1, -2), tile((32, 16), FP32, (17, 5))),
        (lambda: typed("matmul", H, tile((32, 16), BF16)), tile((16, 16), BF16)),
        (lambda: typed("matmul", H, tile((8, 32), BF16), FP32, b_trans=True), tile((16, 8), FP32)),
        (lambda: typed("matmul", I8, tile((32, 16), INT8)), tile((16, 16), INT32)),
        (lambda: typed("load", GM, (16, 32), (56, 0), clamp=True), tile((16, 32), FP32, (8, 32))),
        (lambda: typed("load", GM, (16, 32), (N, 0), pad_value="max"), F),
        (lambda: typed("load", GM, (1, 32), (3, 0), drop_dims=(0,)), tile((32,), FP32)),
        (lambda: typed("extract", PART, (8, 32), (2, 0)), tile((8, 32), FP32, (3, 17))),
        (lambda: typed("insert", PART, tile((2, 4), FP32), (3, 0)), PART),
        (lambda: typed("insert", PART, tile((2, 4), FP32), (4, 0)), tile((16, 32), FP32, (None, None))),
        (lambda: typed("insert", PART, F, (0, 0)), F),
        (lambda: typed("view", GM, (32, 32), (N, 0)), TensorType((32, 32), FP32)),
        (lambda: typed("view_reshape", GM, (8, 8, 32)), TensorType((8, 8, 32), FP32)),
        (lambda: typed("create", (N, 4), BF16), TensorType((N, 4), BF16)),
        (lambda: typed("read_tensor", GM, (N, 0)), ScalarType(FP32)),
        (lambda: typed("array_get", ArrayType(3, TASK_ID), (1,)), TaskType()),
        (lambda: typed("array_get", ArrayType(3, INT32), (1,)), ScalarType(INT32)),
        (lambda: typed("store", GM, F, (0, 0)), None),
    ],
)  # fmt: skip
def test_result_types(got: Callable[[], Any], want: Any) -> None:
    assert got() == want


# ------------------------------------------------------------------------------------------ mistakes
# (the op and its arguments, the code, a part of the message, a part of the fix)
MISTAKES: list[tuple[tuple[Any, ...], str, str, str]] = [
    (("add", F, tile((16, 1), FP32)), "shape",
     "shapes differ: [16, 32] FP32 and [16, 1] FP32", "pl.row_expand_add"),
    (("mul", F, tile((1, 32), FP32)), "shape", "shapes differ", "pl.col_expand_mul"),
    (("maximum", F, tile((16, 16), FP32)), "shape", "shapes differ", "pl.row_expand_* and pl.col_expand_*"),
    (("add", I32, HALF_SCALAR), "dtype",
     "a float scalar where the elements are INT32", "pl.cast(value, pl.INT32)"),
    (("add", I8, 300), "dtype", "300 does not fit INT8, which holds -128 to 127", "a wider type"),
    (("add", tile((16, 32), BOOL), 1), "dtype", "BOOL has no arithmetic", "cast it first"),
    (("neg", tile((16, 32), UINT64)), "dtype", "UINT64 has no arithmetic", "cast it first"),
    (("add", tile((16, 32), FP16), H), "dtype", "FP16 and BF16 are equally wide", "pl.cast(x, pl.FP32)"),
    (("row_expand_mul", H, tile((16, 1), FP16)), "dtype", "equally wide", "cast one"),
    (("exp", I32), "dtype", "needs a float tile, got [16, 32] INT32", "pl.cast(x, pl.FP32)"),
    (("row_sum", I32), "dtype", "needs a float tile", "cast it first"),
    (("row_sum", tile((32,), FP32)), "shape", "needs two axes, got [32] FP32", "pl.reshape(x, [rows, cols])"),
    (("row_expand_mul", F, tile((1, 32), FP32)), "shape",
     "so rhs must be [16, 1], got [1, 32]", "other broadcast"),
    (("col_expand_add", F, tile((16, 1), FP32)), "shape", "so rhs must be [1, 32]", "other broadcast"),
    (("row_expand", F, tile((1, 32), FP32)), "shape", "so rhs must be [16, 1]", "other broadcast"),
    (("col_expand", F, tile((1, 16), FP32)), "shape", "so rhs must be [1, 32], got [1, 16]", "pl.reshape"),
    (("col_expand", tile((16, 32), FP16), tile((1, 32), BF16)), "dtype", "equally wide", "cast one"),
    (("row_argmax", I32), "dtype", "needs a float tile, got [16, 32] INT32", "pl.cast(x, pl.FP32)"),
    (("row_argmax", tile((32,), FP32)), "shape", "needs two axes", "pl.reshape(x, [rows, cols])"),
    (("arange", 0, (2, 32), INT32), "shape", "one row of two elements or more, got [2, 32]", "pl.col_expand"),
    (("arange", 0, (1, 1), INT32), "shape", "one row of two elements or more", "make [1, N]"),
    (("arange", 0, (32,), INT32), "shape", "one row of two elements or more, got [32]", "make [1, N]"),
    (("arange", 0, (1, N), INT32), "not-constant", "pl.arange makes", "constant shape"),
    (("arange", 0, (1, 32), FP32), "dtype", "counts in INT16, INT32, UINT16, UINT32, got FP32",
     "pl.cast(ramp, pl.FP32)"),
    (("arange", 0, (1, 32), INT64), "dtype", "got INT64", "count in pl.INT32"),
    (("arange", N, (1, 32), INT32), "dtype", "start is INDEX and the elements are INT32",
     "pl.cast(start, pl.INT32)"),
    (("arange", 0.0, (1, 32), INT32), "dtype", "start is FP32 and the elements are INT32", "pl.cast"),
    (("arange", 2**31 - 31, (1, 32), INT32), "dtype", "2147483648 does not fit INT32", "wider type"),
    (("arange", 30, (1, 32), UINT16, True), "dtype", "-1 does not fit UINT16", "wider type"),
    (("cmp", F, tile((8, 8), FP32)), "shape", "shapes differ", "tiles of one shape"),
    (("cmp", I32, HALF_SCALAR), "dtype", "a float scalar where", "pl.cast"),
    (("fillpad", I32, float("inf")), "dtype", "INT32 has no infinity", "pl.PadValue.min"),
    (("fillpad", tile((8, 8), FP8E4M3FN), float("-inf")), "dtype", "has no infinity", "pl.PadValue.min"),
    (("fillpad", tile((8, 8), FP8E8M0), "zero"), "dtype", "FP8E8M0 has no zero", "pl.PadValue.min"),
    (("matmul", H, H), "shape",
     "lhs [16, 32] BF16 gives K = 32, rhs [16, 32] BF16 gives K = 16", "b_trans=True"),
    (("matmul", H, tile((9, 9), BF16)), "shape", "inner extents differ", "one K extent"),
    (("matmul", H, tile((32, 8), INT8)), "dtype", "operands are BF16 and INT8", "both to float"),
    (("matmul", tile((16, 32), INT64), tile((32, 8), INT64)), "dtype", "[16, 32] INT64", "floats, INT8"),
    (("matmul", H, tile((32, 8), BF16, (9, 8))), "shape",
     "valid inner extents differ: 32 and 9", "pl.fillpad"),
    (("matmul", H, tile((32, 8), BF16), INT32), "dtype",
     "out_dtype=INT32 of a product of BF16", "pl.cast the result"),
    (("matmul", I8, tile((32, 8), INT8), FP32), "dtype", "out_dtype=FP32 of a product of INT8", "is INT32"),
    (("matmul", H, tile((32, 8), FP16)), "dtype", "equally wide", "cast one"),
    (("matmul_acc", F, H, tile((32, 16), BF16)), "shape",
     "accumulator is [16, 32] FP32, the product [16, 16]",
     "pl.create_tensor([16, 16], pl.FP32)"),
    (("matmul_acc", H, H, tile((32, 32), BF16)), "dtype",
     "accumulator is BF16, it must be FP32", "out_dtype=pl.FP32"),
    (("load", GM, (16,), (0, 0)), "shape", "the shape has 1 entries, the operand 2 axes", "give 2 entries"),
    (("load", GM, (16, 32), (0,)), "shape", "the offset has 1 entries", "give 2 entries"),
    (("load", GM, (16, 32), (0, 0), (5,)), "shape", "valid_shape has 1 entries", "give 2 entries"),
    (("load", GM, (16, 32), (56, 0)), "out-of-bounds",
     "elements 56..72 of axis 0, which has 64", "clamp=True"),
    (("load", GM, (16, 32), (-1, 0)), "out-of-bounds", "elements -1..15", "sizes first, then offsets"),
    (("load", GM, (16, 32), (0, 0), (17, 32)), "shape", "valid_shape is 17 on axis 0", "within the shape"),
    (("load", GM, (N, 32), (0, 0)), "not-constant",
     "every extent of the tile that pl.slice makes", "valid_shape="),
    (("load", GM, (0, 32), (0, 0)), "shape", "the extent 0 is not positive", "at least 1"),
    (("load", GM, (2, 32), (0, 0), None, (0,)), "shape",
     "drop_dims has axis 0, which has 2", "of one element"),
    (("load", GM, (1, 32), (0, 0), None, (2,)), "shape", "axis 2 of a shape with 2", "of one element"),
    (("load", TensorType((8, 8), INT32), (8, 8), (0, 0), None, None, float("inf")), "dtype",
     "no infinity", "min"),
    (("view", GM, (16, 32), (0, 0), (5, 32)), "bad-argument", "valid_shape, pad_value and clamp make a tile",
     "inside of the region"),
    (("view", GM, (65, 32), (0, 0)), "out-of-bounds",
     "elements 0..65 of axis 0, which has 64", "sizes first"),
    (("view", GM, (2, 32), (0, 0), None, (0,)), "shape", "drop_dims has axis 0", "of one element"),
    (("view", GM, (-1, 32), (0, 0)), "shape", "the view would be [-1, 32]", "at least 1"),
    (("extract", F, (8, 32), (12, 0)), "out-of-bounds",
     "elements 12..20 of axis 0, which has 16", "clamp=True"),
    (("extract", F, (8, 32), (0, 0), (5,)), "shape", "valid_shape has 1 entries", "give 2 entries"),
    (("store", GM, tile((16,), FP32), (0, 0)), "shape",
     "target is [64, 32] FP32 and the source [16] FP32", "reshape"),
    (("store", GM, H, (0, 0)), "dtype", "the target is FP32 and the source BF16", "pl.cast(source, pl.FP32)"),
    (("store", GM, F, (60, 0)), "out-of-bounds", "elements 60..76 of axis 0", "0 to the extent"),
    (("store", GM, F, (0,)), "shape", "the offset has 1 entries", "give 2 entries"),
    (("store", TensorType((64, 32), INT64), tile((16, 32), INT64), (0, 0), "add"), "dtype",
     "no atomic add for INT64", "atomic targets: FP32"),
    (("insert", F, tile((8, 8), FP32), (0, 0), "add"), "bad-argument",
     "private to its block", "drop atomic="),
    (("create_tile", (N, 32), FP32), "not-constant", "pl.create_tensor makes", "constant shape"),
    (("create_tile", (16, 32), INT32, "ND", False, 0.5), "dtype", "a float scalar where", "pl.cast"),
    (("create", (16, 32), INT8, "ND", False, 128), "dtype", "128 does not fit INT8", "wider"),
    (("full", (16, 32), INT32, 0.5), "dtype", "a float scalar where the elements are INT32", "pl.cast"),
    (("full", (16, 32), INT8, -129), "dtype", "-129 does not fit INT8", "wider"),
    (("reshape", F, (16, 16)), "shape", "[16, 32] FP32 does not have the elements of [16, 16]", "product"),
    (("reshape", PART, (32, 16)), "shape", "would tear apart", "pl.fillpad"),
    (("view_reshape", GM, (63, 32)), "shape", "does not have the elements", "product of the extents"),
    (("set_validshape", tile((8,), FP32), 1, 1), "shape", "needs two axes", "reshape"),
    (("set_validshape", F, 17, 4), "shape", "17 is more than the 16 valid", "can only shrink"),
    (("set_validshape", PART, 6, 4), "shape", "6 is more than the 5 valid", "pl.fillpad"),
    (("transpose", tile((8,), FP32), 0, 1), "shape", "needs two axes", "reshape"),
    (("transpose", F, 0, 0), "bad-argument", "two different axes", "pl.transpose(x, 0, 1)"),
    (("read_tensor", GM, (0,)), "shape", "the index has 1 entries", "give 2 entries"),
    (("read_tensor", GM, (64, 0)), "out-of-bounds",
     "elements 64..65 of axis 0, which has 64", "0 to the extent"),
    (("read_tile", F, (0, 32)), "out-of-bounds", "axis 1, which has 32", "0 to the extent"),
    (("write_tensor", GM, (0, -1), 1.0), "out-of-bounds", "elements -1..0", "0 to the extent"),
    (("write_tensor", TensorType((4,), INT32), (0,), 1.5), "dtype", "a float scalar where", "pl.cast"),
    (("write_tile", I32, (0, 0), 1.5), "dtype", "a float scalar where", "pl.cast"),
    (("array_create", (0,), TASK_ID), "bad-argument", "the size is [0]", "one positive constant"),
    (("array_get", F, (0,)), "dtype", "only arrays, tiles and tensors have elements", "pl.array.create"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: f"{m[0][0]}-{m[2][:30]}")
def test_mistakes(mistake: tuple[tuple[Any, ...], str, str, str]) -> None:
    (name, *args), code, message, fix = mistake
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        typed(name, *args)
    assert caught.value.code == code
    assert fix in caught.value.fix
    assert REGISTRY[name].spelling in caught.value.message or name == "array_get"


def test_extents_of_run_time_are_not_mistakes() -> None:
    """What only the run can know is left to the run."""
    rows = dim_expr(N)
    assert typed("load", TensorType((rows, 32), FP32), (16, 32), (N, 0)) == F
    assert typed("store", TensorType((rows, 32), FP32), F, (N, 0)) is None
    assert typed("full", (16, 32), INT8, N) == tile((16, 32), INT8)
