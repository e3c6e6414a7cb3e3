"""Scalars: constants, arithmetic, conversions, and what reaches the IR as one expression."""

from __future__ import annotations

import pytest
import torch

import pypto_models.language as pl
from pypto_models.ir.expr import Const, DimVar, Expr, Unary
from pypto_models.ir.nodes import Bind
from pypto_models.ir.printer import format_expr
from pypto_models.ir.types import BOOL, FP32, INDEX, INT32, Dim, DType, TensorType

from . import support
from .support import fails, lets, lowered, marked, randn, run, statements

CORE = pl.Level.CORE_GROUP
COUNT = 5120
RATIO = 0.25
ENABLED = True
DTYPE = pl.BF16
LIST = [4, 8]


def value(text: str) -> Expr:
    """The expression that ``text`` becomes, over the index scalars i and j and the fp32 scalar f."""
    fn = pl.parse(
        "import math\nimport pypto_models.language as pl\nCOUNT, RATIO, ENABLED = 5120, 0.25, True\n\n"
        "@pl.jit\ndef k(i: pl.Scalar[pl.INDEX], j: pl.Scalar[pl.INDEX], f: pl.Scalar[pl.FP32]):\n"
        f"    return {text}\n"
    )
    return fn.body[-1].values[0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "want", "dtype"),
    [
        ("COUNT // 3", 1706, INDEX), ("-7 // 2", -4, INDEX), ("-7 % 4", 1, INDEX), ("7 - 2 * 3", 1, INDEX),
        ("1 / COUNT", 1 / 5120, FP32), ("1.0 / COUNT", 1 / 5120, FP32), ("RATIO * 2", 0.5, FP32), ("2 ** 5",
         32, INDEX),
        ("2 ** -1", 0.5, FP32), ("-RATIO", -0.25, FP32), ("+3", 3, INDEX),
        ("COUNT > 3 and not ENABLED", False, BOOL), ("ENABLED or COUNT == 1", True, BOOL), ("3 != 4", True,
         BOOL),
        ("pl.min(3, 4, 2)", 2, INDEX), ("pl.max(3, 4)", 4, INDEX), ("min(1, 2)", 1, INDEX), ("max(1, 2)", 2,
         INDEX),
        ("abs(-3)", 3, INDEX), ("int(3.7)", 3, INDEX), ("float(3)", 3.0, FP32), ("len([1, 2, 3])", 3, INDEX),
        ("pl.cast(3.7, pl.INDEX)", 3, INDEX), ("pl.cast(-3.7, target_type=pl.INT32)", -3, INT32),
        ("pl.const(4, pl.INT32)", 4, INT32), ("pl.add(3, 4)", 7, INDEX), ("pl.div(1, 4)", 0.25, FP32),
        ("pl.mul(RATIO, 2)", 0.5, FP32), ("pl.maximum(2, 3)", 3, INDEX), ("math.inf", float("inf"), FP32),
        ('float("-inf")', float("-inf"), FP32), ("-1e999", float("-inf"), FP32), ("pl.FP32 == pl.FP32",
         True, BOOL),
        ("pl.Mem.Vec != pl.Mem.Acc", True, BOOL),
    ],
)  # fmt: skip
def test_constants_are_folded(text: str, want: float, dtype: DType) -> None:
    assert value(text) == Const(want, dtype)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("i * 16 + 0 * j", "i * 16"), ("(i + j) // 4 % 3", "(i + j) // 4 % 3"), ("i - (j - 1)",
         "i - (j - 1)"),
        ("pl.min(i, 16) * 1", "pl.min(i, 16)"), ("pl.max(i, j, 0)", "pl.max(pl.max(i, j), 0)"),
        ("i < 3 and j >= i or not i == j", "i < 3 and j >= i or not i == j"), ("-i", "-i"), ("i + 0", "i"),
        ("abs(i)", "pl.max(i, -i)"), ("pl.cast(f, pl.INDEX)",
         "pl.cast(f, pl.INDEX)"), ("pl.cast(i, pl.INDEX)", "i"),
        ("pl.sub(i, j)", "i - j"), ("f * i", "f * i"), ("i / j", "i / j"),
    ],
)  # fmt: skip
def test_run_time_scalars_are_expressions(text: str, shown: str) -> None:
    assert format_expr(value(text)) == shown


def test_dtypes_of_expressions() -> None:
    assert value("f * i").dtype == FP32
    assert value("i / j").dtype == FP32
    assert value("i < j").dtype == BOOL
    cast = value("pl.cast(i, pl.INT32) + 1")
    assert cast.dtype == INT32


@pl.jit
def arithmetic(
    i: pl.Scalar[pl.INDEX],
    j: pl.Scalar[pl.INDEX],
    f: pl.Scalar[pl.FP32],
    out: pl.Out[pl.Tensor[[12], pl.FP32]],
):
    q = i // j
    with pl.at(level=CORE):
        out[0] = q * 1.0
        out[1] = i % j * 1.0
        out[2] = pl.cast(i, pl.FP32) / j
        out[3] = pl.min(i, j, 3) * 1.0
        out[4] = pl.max(i, j) * 1.0
        out[5] = f * 2 - 1
        out[6] = pl.cast(pl.cast(f, pl.INDEX), pl.FP32)
        same = i == j and f > 0.0
        if same or i < j:
            out[7] = 1.0
        else:
            out[7] = 0.0
        out[8] = abs(i) * 1.0
        out[9] = pl.cast(not i > j, pl.FP32)
        out[10] = -f
        out[11] = f**2


@pytest.mark.parametrize(("i", "j", "f"), [(-7, 3, 2.5), (8, 3, -2.5), (3, 3, 0.5)])
def test_run_time_arithmetic_is_pythons(i: int, j: int, f: float) -> None:
    """// and % floor, / is exact, a conversion to an integer truncates."""
    out = torch.zeros(12)
    run(arithmetic, i=i, j=j, f=f, out=out)
    want = [
        i // j, i % j, i / j, min(i, j, 3), max(i, j), f * 2 - 1, int(f), (i == j and f > 0) or i < j, abs(i),
        not i > j, -f, f**2,
    ]  # fmt: skip
    torch.testing.assert_close(out, torch.tensor([float(x) for x in want]))


def test_a_named_expression_is_a_variable_of_that_name() -> None:
    fn = lowered(arithmetic)
    names = [s.var.name for s in statements(fn) if isinstance(s, Bind)]
    assert names == ["q", "same"]


@pl.jit
def constants(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        t = pl.slice(x, [LIST[1] * 2, 64], [0, 0])
        if ENABLED:
            t = pl.mul(t, RATIO)
        out[:, :] = pl.cast(pl.cast(pl.add(t, COUNT), DTYPE, mode="rint"), pl.FP32)


def test_module_constants_of_every_kind() -> None:
    x, out = randn(16, 64), torch.empty(16, 64)
    run(constants, x=x, out=out)
    assert torch.equal(out, (x * 0.25 + 5120).bfloat16().float())
    run(constants, {"ENABLED": False, "COUNT": 1, "DTYPE": pl.FP16}, x=x, out=out)
    assert torch.equal(out, (x + 1).half().float())


@pl.jit
def dotted(
    x: pl.Tensor[[support.OUT_ROWS, 64], pl.FP32], out: pl.Out[pl.Tensor[[support.OUT_ROWS, 64], pl.FP32]]
):
    with pl.at(level=CORE):
        out[0:1, :] = pl.mul(x[0:1, :], support.FACTOR)


def test_constants_and_extents_of_another_module() -> None:
    assert lowered(dotted).params[0].var.type == TensorType((DimVar("OUT"), 64), FP32)
    x, out = randn(3, 64), torch.empty(3, 64)
    for constants, factor in [({}, 4), ({"FACTOR": 5}, 5)]:
        run(dotted, constants, x=x, out=out)
        assert torch.equal(out[0], x[0] * factor)


def test_constants_of_a_closure() -> None:
    def make(scale: float, rows: int) -> pl.Kernel:
        @pl.jit
        def kernel(x: pl.Tensor[[rows, 64], pl.FP32], out: pl.Out[pl.Tensor[[rows, 64], pl.FP32]]):
            with pl.at(level=CORE):
                out[:, :] = pl.mul(pl.slice(x, [rows, 64], [0, 0]), scale)

        return kernel

    for scale, rows in [(2.0, 16), (3.0, 8)]:
        x, out = randn(rows, 64), torch.empty(rows, 64)
        run(make(scale, rows), x=x, out=out)
        assert torch.equal(out, x * scale)


def test_operators_on_tiles_are_ops() -> None:
    @pl.jit
    def kernel(
        x: pl.Tensor[[16, 64], pl.FP32],
        y: pl.Tensor[[16, 64], pl.FP32],
        out: pl.Out[pl.Tensor[[16, 64], pl.FP32]],
    ):
        with pl.at(level=CORE):
            t = 2.0 * x + y / 3.0
            out[:, :] = -(t - x) * (1.0 + y)

    x, y, out = randn(16, 64), randn(16, 64, seed=1), torch.empty(16, 64)
    run(kernel, x=x, y=y, out=out)
    torch.testing.assert_close(out, -(2 * x + y / 3 - x) * (1 + y))


def test_a_conversion_of_a_run_time_scalar_stays_in_the_text() -> None:
    assert isinstance(value("pl.cast(f, pl.INDEX)"), Unary)


def test_extents_of_a_tensor_are_scalars() -> None:
    fn = lowered(dims)
    (view,) = lets(fn, "view")
    extent: Dim = view.result.type.shape[0]  # type: ignore[union-attr]
    assert isinstance(extent, Expr) and format_expr(extent) == "R"


R = pl.dynamic("R")


@pl.jit
def dims(x: pl.Tensor[[R, 64], pl.FP32], out: pl.Out[pl.Tensor[[R, 64], pl.FP32]]):
    rows = pl.tensor.dim(x, axis=0)
    assert_even = pl.tensor.dim(x, -1) // 2
    v = pl.slice(x, [rows, 2 * assert_even], [0, 0])
    for r in pl.parallel(rows):
        with pl.at(level=CORE):
            out[r : r + 1, :] = v[r : r + 1, :]


CASES = [
    ("c = 1 // 0", "arithmetic", "1 // 0", "the divisor is 0", "pl.max"),
    ("c = n < 3 < 4", "syntax", "n < 3 < 4", "a chained comparison", "a <= b and b < c"),
    ("c = n in [1, 2]", "syntax", "n in [1, 2]", "`in` and `is`", "=="),
    ("c = ~n", "syntax", "~n", "the operator ~", "not"),
    ("c = n << 2", "syntax", "n << 2", "the operator LShift", "+ - *"),
    ("c = pl.min(x, 3)", "bad-argument", "pl.min(x, 3)", "pl.min is for scalars", "pl.minimum"),
    ("c = pl.max(3)", "bad-call", "pl.max(3)", "needs two scalars", "pl.max(a, b)"),
    ("c = pl.const(n, pl.INT32)", "bad-call", "pl.const(n, pl.INT32)", "a number and a dtype",
     "pl.const(value, dtype)"),
    ("c = pl.cast(n)", "bad-call", "pl.cast(n)", "missing target_type", "pl.cast(x, pl.INDEX)"),
    ("c = pl.cast(n, pl.INDEX, moed='rint')", "unknown-keyword", "moed='rint'", "'moed'", "mode"),
    ("c = pl.tensor.dim(x, 2)", "shape", "pl.tensor.dim(x, 2)", "axis 2 of 2 axes", "from 0"),
    ("c = pl.tensor.dim(n, 0)", "bad-call", "pl.tensor.dim(n, 0)", "needs a tensor",
     "pl.tensor.dim(tensor, axis)"),
    ("c = D + 1", "syntax", "D", "the dynamic extent D as a value", "pl.tensor.dim"),
    ("c = TABLE", "not-constant", "TABLE", "'TABLE' (a dict of the module)", "constants"),
    ("c = 1 if n else 2", "syntax", "1 if n else 2", "a conditional expression", "if statement"),
    ("c = f'{n}'", "syntax", "f'{n}'", "an f-string", "string"),
    ("c = [i for i in pl.range(n)]", "not-constant", "pl.range(n)", "the range of a list comprehension",
     "constant"),
    ("c = [i for i in x]", "syntax", "[i for i in x]", "this list comprehension", "range(N)"),
    ("c = float('much')", "bad-argument", "float('much')", "'much' is not a number", "-inf"),
    ("c = int(x)", "syntax", "int(x)", "Python's int()", "pl.cast"),
    ("c = 1j", "syntax", "1j", "the literal 1j", "integers"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "place", "message", "fix"), CASES, ids=[c[0] for c in CASES])
def test_mistakes(line: str, code: str, place: str, message: str, fix: str) -> None:
    error = fails(f"with pl.at(level=CORE):\n    {line}\n    out[:, :] = x")
    assert (error.code, marked(error)) == (code, place)
    assert message in error.message and fix in error.fix
