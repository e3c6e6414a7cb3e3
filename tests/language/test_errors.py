"""Bad input: each mistake has a code, a place with a caret, a message and a fix; all can be had at once."""

from __future__ import annotations

import pytest

import pypto_models.language as pl
from pypto_models.errors import NOWHERE, Diag, UserError, user_error
from pypto_models.language.kernel import Kernel

from .support import error_of, fails, line_of, marked, source

CORE = pl.Level.CORE_GROUP


@pl.jit
def misspelt(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        t = pl.row_summ(x)
        out[:, :] = t


def test_the_whole_text_of_an_error() -> None:
    error = error_of(misspelt)
    line = line_of(misspelt, "pl.row_summ")
    assert isinstance(error, ValueError)
    assert str(error) == (
        f"{__file__}:{line}:13: error[unknown-op]: unknown operation 'pl.row_summ'\n"
        f"{line:5d} |         t = pl.row_summ(x)\n"
        "                    ^^^^^^^^^^^\n"
        "  fix: did you mean pl.row_sum?"
    )


IN_REGION = [
    # --- names and calls
    ("t = pl.ad(x, y)", "unknown-op", "pl.ad", "unknown operation 'pl.ad'", "did you mean pl.add?"),
    ("t = pl.tensor.matmull(x, w)", "unknown-op", "pl.tensor.matmull", "'pl.tensor.matmull'",
     "pl.tensor.matmul?"),
    ("t = pl.zzz(x)", "unknown-op", "pl.zzz", "'pl.zzz'", "docs/language.md"),
    ("t = pl.exp(xx)", "undefined", "xx", "the name 'xx' is not defined here", "did you mean 'x'?"),
    ("t = pl.exp(q)", "undefined", "q", "the name 'q' is not defined here", "a value first"),
    ("t = pl.sort32(x, y)", "unsupported", "pl.sort32(x, y)",
     "pl.sort32 of pypto.language is not supported", "ops"),
    ("t = pl.tile.load(x, [0, 0], [16, 64])", "unsupported", "pl.tile.load(x, [0, 0], [16, 64])",
     "pl.tile.load",
     "use pl.slice"),
    ("pl.system.syncall()", "unsupported", "pl.system.syncall()", "a barrier between the blocks",
     "end the region"),
    ("t = pl.cast(x, pl.BF16, moed='rint')", "unknown-keyword", "moed='rint'",
     "pl.cast has no parameter 'moed'",
     "x, target_type, mode"),
    ("t = pl.add(x)", "bad-call", "pl.add(x)", "missing rhs", "signature: pl.add(lhs, rhs)"),
    ("t = pl.add(x, y, x)", "bad-call", "pl.add(x, y, x)", "3 arguments, it takes at most 2",
     "pl.add(lhs, rhs)"),
    ("t = pl.add(x, y, lhs=x)", "bad-call", "lhs=x", "'lhs' is given twice", "pl.add(lhs, rhs)"),
    ("t = pl.slice([16, 64], [0, 0])", "bad-argument", "pl.slice([16, 64], [0, 0])",
     "the first argument is a list of 2", "a tensor or a tile"),
    ("t = pl.at(level=CORE)", "syntax", "pl.at(level=CORE)", "pl.at as an expression", "with pl.at(...)"),
    ("t = pl.FP32(x)", "not-a-kernel", "pl.FP32", "'pl.FP32' is not a kernel", "@pl.jit"),
    ("t = x.foo", "syntax", "x.foo", "the attribute .foo of a tensor", ".shape, .dtype"),
    # --- shapes
    ("t = pl.add(x, pl.slice(y, [16, 1], [0, 0]))", "shape", "pl.add(x, pl.slice(y, [16, 1], [0, 0]))",
     "[16, 64] FP32 and [16, 1] FP32", "pl.row_expand_add(lhs, rhs)"),
    ("t = pl.mul(x, y[0:1, :])", "shape", "pl.mul(x, y[0:1, :])", "[16, 64] FP32 and [1, 64] FP32",
     "pl.col_expand_mul(lhs, rhs)"),
    ("t = pl.sub(x, w)", "shape", "pl.sub(x, w)", "the shapes differ", "need one shape"),
    ("t = x + w", "shape", "x + w", "the shapes differ", "need one shape"),
    ("t = pl.matmul(x, y)", "shape", "pl.matmul(x, y)",
     "lhs [16, 64] FP32 gives K = 64, rhs [16, 64] FP32 gives K = 16",
     "pass b_trans=True"),
    ("t = pl.matmul(x, w, b_trans=True)", "shape", "pl.matmul(x, w, b_trans=True)", "gives K = 32",
     "b_trans=False"),
    ("t = pl.matmul(x, w[0:32, :])", "shape", "pl.matmul(x, w[0:32, :])", "gives K = 32", "one K extent"),
    ("t = pl.matmul_acc(y, x, w)", "shape", "pl.matmul_acc(y, x, w)", "the accumulator is [16, 64] FP32",
     "pl.create_tensor([16, 32], pl.FP32)"),
    ("t = pl.row_expand_mul(x, y)", "shape", "pl.row_expand_mul(x, y)", "rhs must be [16, 1]", "pl.reshape"),
    ("t = pl.reshape(x, [16, 65])", "shape", "pl.reshape(x, [16, 65])", "does not have the elements",
     "product"),
    ("t = pl.slice(x, [16], [0, 0])", "shape", "pl.slice(x, [16], [0, 0])", "the shape has 1 entries",
     "give 2"),
    ("t = pl.slice(x, [0, 0], [16, 64])", "shape", "pl.slice(x, [0, 0], [16, 64])",
     "the extent 0 is not positive", "1"),
    ("t = pl.slice(x, [16, 64], [1, 0])", "out-of-bounds", "pl.slice(x, [16, 64], [1, 0])",
     "elements 1..17 of axis 0",
     "sizes first, then offsets"),
    ("t = pl.slice(x, [16, 64], [0, 0], valid_shape=[17, 64])", "shape",
     "pl.slice(x, [16, 64], [0, 0], valid_shape=[17, 64])", "valid_shape is 17 on axis 0",
     "within the shape"),
    ("t = pl.set_validshape(x, 17, 64)", "shape", "pl.set_validshape(x, 17, 64)", "17 is more than the 16",
     "shrink"),
    ("t = pl.reshape(pl.set_validshape(x, 4, 64), [32, 32])", "shape",
     "pl.reshape(pl.set_validshape(x, 4, 64), [32, 32])", "tear apart", "pl.fillpad it first"),
    ("t = pl.row_sum(pl.reshape(x, [4, 4, 64]))", "shape", "pl.row_sum(pl.reshape(x, [4, 4, 64]))",
     "needs two axes",
     "pl.reshape"),
    ("out = pl.assemble(out, x, [0, 1])", "out-of-bounds", "pl.assemble(out, x, [0, 1])",
     "elements 1..65 of axis 1",
     "0"),
    ("out = pl.assemble(out, pl.reshape(x, [1024]), [0, 0])", "shape",
     "pl.assemble(out, pl.reshape(x, [1024]), [0, 0])",
     "the target is [16, 64] FP32 and the source [1024] FP32", "rank"),
    # --- dtypes and other arguments
    ("t = pl.exp(pl.cast(x, pl.INT32))", "dtype", "pl.exp(pl.cast(x, pl.INT32))", "needs a float tile",
     "pl.cast"),
    ("t = pl.add(pl.cast(x, pl.INT32), 1.5)", "dtype", "pl.add(pl.cast(x, pl.INT32), 1.5)",
     "a float scalar", "pl.cast"),
    ("t = pl.matmul(x, pl.cast(w, pl.INT8))", "dtype", "pl.matmul(x, pl.cast(w, pl.INT8))", "FP32 and INT8",
     "float"),
    ("out = pl.assemble(out, b, [0, 0])", "dtype", "pl.assemble(out, b, [0, 0])", "FP32 and the source BF16",
     "pl.cast(source, pl.FP32)"),
    ("t = pl.cast(x, 'bf16')", "bad-argument", "'bf16'", "target_type is bf16", "a dtype such as pl.FP32"),
    ("t = pl.cast(x, pl.BF16, mode='nearest')", "bad-argument", "mode='nearest'",
     "mode='nearest' is not a choice",
     "'rint'"),
    ("t = pl.fillpad(x, 3)", "bad-argument", "3", "pad_value is 3", "+-inf"),
    ("t = pl.matmul(x, w, a_trans=n)", "bad-argument", "a_trans=n", "a_trans is a INT32 scalar",
     "True or False"),
    ("t = pl.slice(x, [16, n], [0, 0])", "not-constant", "pl.slice(x, [16, n], [0, 0])",
     "every extent of the tile",
     "valid_shape="),
    ("t = pl.slice(x, 16.0, [0, 0])", "bad-argument", "16.0", "shape is 16.0", "integers"),
    ("t = pl.slice(x, [16, 64], x)", "bad-argument", "x", "offset is the tensor x",
     "a list such as [16, 128]"),
    ("t = pl.slice(x, [16, 64], [0, x])", "bad-argument", "[0, x]", "offset is the tensor x",
     "index scalars"),
    ("t = pl.full([16, 64], pl.FP32, x)", "bad-argument", "x", "value is the tensor x", "a scalar"),
    ("t = pl.maximum(x, pl.FP32)", "bad-argument", "pl.FP32", "rhs is FP32", "a tile or a scalar"),
    ("t = pl.transpose(x, 0, 0)", "bad-argument", "pl.transpose(x, 0, 0)", "two different axes",
     "pl.transpose(x, 0, 1)"),
    ("t = pl.move(x, pl.FP32)", "bad-argument", "pl.FP32", "target_memory is FP32", "pl.Mem.Vec"),
    ("t = 1.0 - x", "bad-argument", "1.0 - x", "the operands are 1.0 and the tensor x", "on the right"),
    ("t = x // y", "bad-argument", "x // y", "operator //", "+ - * /"),
    # --- Python that is not part of the language
    ("while n > 0:\n        pass", "syntax", "while n > 0:", "a while loop", "pl.range"),
    ("n += 1", "syntax", "n += 1", "an augmented assignment", "x = x + ..."),
    ("a = c = 1", "syntax", "a = c = 1", "a chained assignment", "one name"),
    ("t.a = 1", "syntax", "t.a", "this assignment target", "a name or a slice"),
    ("def f():\n        pass", "syntax", "def f():", "a nested function", "@pl.jit.inline"),
    ("assert n", "syntax", "assert n", "assert", "where the kernel is called"),
    ("import torch", "syntax", "import torch", "an import", "top of the module"),
    ("t = lambda: 0", "syntax", "lambda: 0", "a lambda", "@pl.jit.inline"),
    ("t = {1: 2}", "syntax", "{1: 2}", "a dict", "tuples"),
    ("t: pl.FP32", "syntax", "t: pl.FP32", "this annotation", "name: type = value"),
    ("t: 3 = x", "annotation", "3", "3 is not a type of the language", "pl.Tile"),
    ("t: 'pl.Tile[' = x", "syntax", "'pl.Tile['", "the annotation 'pl.Tile['", "pl.Tensor"),
    ("t: pl.Tile[[16, 64], pl.FP4] = x", "unsupported", "pl.FP4", "torch has no such element type", "INT8"),
    ("return x", "syntax", "return x", "a return before the end", "at the end"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "code", "place", "message", "fix"), IN_REGION, ids=[c[0].split("\n")[0] for c in IN_REGION]
)
def test_in_a_region(line: str, code: str, place: str, message: str, fix: str) -> None:
    error = fails(f"with pl.at(level=CORE):\n    {line}\n    out[:, :] = x")
    assert (error.code, marked(error)) == (code, place)
    assert message in error.message and fix in (error.fix if code != "bad-call" else f"{error.fix}")


@pytest.mark.parametrize(
    "line", ["t = pl.add(x, y)", "t = pl.matmul(x, w)", "t = pl.full([16, 64], pl.FP32, 0.0)", "t = x + y",
             "out = pl.assemble(out, x, [0, 0])", "out[:, :] = x", "out[0, 0] = 1.0",
             "pl.write(out, [0, 0], 1.0)"],
)  # fmt: skip
def test_computing_outside_of_a_region(line: str) -> None:
    error = fails(f"{line}\nwith pl.at(level=CORE):\n    out[:, :] = x")
    assert error.code == "misplaced" and "outside of any region" in error.message
    assert marked(error) in line and "with pl.at(level=pl.Level.CORE_GROUP):" in error.fix


def test_a_view_has_no_valid_shape() -> None:
    error = fails(
        "t = pl.slice(x, [16, 64], [0, 0], valid_shape=[n, 64])\nwith pl.at(level=CORE):\n    out[:, :] = x"
    )
    assert error.code == "bad-argument" and "outside of a region a slice is a view" in error.message


# ------------------------------------------------------------------------------------------ all at once
@pl.jit.inline
def two_mistakes(t: pl.Tensor):
    u = pl.exp(t, 3)
    v = pl.add(u, 1.0)
    w = pl.cast(v, pl.INT32)
    z = pl.row_sun(t)
    return pl.mul(z, w)


@pl.jit
def four_mistakes(
    x: pl.Tensor[[16, 64], pl.FP32],
    w: pl.Tensor[[64, 32], pl.FP32],
    out: pl.Out[pl.Tensor[[16, 64], pl.FP32]],
):
    stray = pl.add(x, x)
    for i in pl.range(4):
        with pl.at(level=CORE):
            a = two_mistakes(x)
            b = pl.add(a, stray)
            c = pl.sub(x, w)
            d = two_mistakes(pl.mul(x, c))
            out = pl.assemble(out, pl.add(d, b), [i, 0])
    return stray


def collected(kernel: Kernel) -> list[UserError]:
    return list(pl.elaborate(kernel, collect=True).errors)


def test_all_errors_are_found_at_once_and_none_follows_from_another() -> None:
    errors = collected(four_mistakes)
    assert [(e.code, marked(e)) for e in errors] == [
        ("misplaced", "pl.add(x, x)"),
        ("bad-call", "pl.exp(t, 3)"),
        ("unknown-op", "pl.row_sun"),
        ("shape", "pl.sub(x, w)"),
    ]
    line = line_of(four_mistakes, "a = two_mistakes(x)")
    inside = f"in the inline kernel two_mistakes, called at {__file__}:{line}:17"
    assert [inside in e.notes for e in errors] == [False, True, True, False]


def test_the_first_of_them_is_raised_otherwise() -> None:
    assert marked(error_of(four_mistakes)) == "pl.add(x, x)"


def test_a_kernel_without_mistakes_has_none() -> None:
    @pl.jit
    def kernel(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
        with pl.at(level=CORE):
            out[:, :] = x

    assert collected(kernel) == []


@pl.jit
def bad_parameters(x: pl.Tensor, y, out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        out[:, :] = pl.add(x, y)
        if pl.read(x, [0, 0]) > 0.0:
            out[:, :] = z  # noqa: F821


def test_mistakes_in_parameters_are_collected_too() -> None:
    assert [(e.code, marked(e)) for e in collected(bad_parameters)] == [
        ("annotation", "x: pl.Tensor"), ("annotation", "y")
    ]  # fmt: skip


@pl.jit
def poisoned_joins(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
):
    with pl.at(level=CORE):
        t = x[:, :]
        u = x[:, :]
        for _ in pl.range(4):
            t = pl.no_such(t)
            if n > 0:
                u = pl.nor_this(u)
        a, b = missing  # noqa: F821
        out[:, :] = pl.add(pl.add(t, u), a)
        out[0:16] = b[0]


def test_joins_of_a_name_with_an_error_are_silent() -> None:
    assert [(e.code, marked(e)) for e in collected(poisoned_joins)] == [
        ("unknown-op", "pl.no_such"), ("unknown-op", "pl.nor_this"), ("undefined", "missing")
    ]  # fmt: skip


def test_two_reads_of_one_undefined_name_are_two_places() -> None:
    @pl.jit
    def kernel(
        x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]
    ):
        with pl.at(level=CORE):
            if n > 0:
                t = pl.exp(x)
            out[0:8, :] = t[0:8, :]
            out[8:16, :] = t[8:16, :]

    errors = collected(kernel)
    assert [e.span.line for e in errors] == [line_of(kernel, "t[0:8"), line_of(kernel, "t[8:16")]


# ------------------------------------------------------------------------------------------ the catalogue
def test_only_kernels_are_lowered() -> None:
    with pytest.raises(UserError, match=r"error\[not-a-kernel\]"):
        pl.lower(test_only_kernels_are_lowered)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="without an entry is not a kernel"):
        pl.parse("import pypto_models.language as pl\n")


def test_every_mistake_of_the_front_end_has_a_message_and_a_fix() -> None:
    fields = dict.fromkeys(
        ("what", "why", "fix", "name", "op", "known", "keyword", "signature", "construct", "line", "before",
         "after"), "?"
    )  # fmt: skip
    for diag in list(Diag)[: list(Diag).index(Diag.SPLIT)]:
        error = user_error(diag, NOWHERE, **fields)
        assert error.message and error.fix


def test_a_kernel_without_source() -> None:
    namespace: dict[str, object] = {"pl": pl}
    exec("@pl.jit\ndef kernel():\n    pass\n", namespace)
    with pytest.raises(UserError, match="the source of kernel is not available"):
        pl.lower(namespace["kernel"])  # type: ignore[arg-type]


def test_the_sources_of_these_tests_are_kernels() -> None:
    """The table's frame itself lowers, so that each of its errors is the line's own."""
    assert pl.parse(source("with pl.at(level=CORE):\n    out[:, :] = x"), "k").name == "k"
