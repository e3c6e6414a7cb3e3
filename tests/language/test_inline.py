"""Inline kernels: arguments, aliases, nesting, results."""

from __future__ import annotations

import pytest
import torch

import pypto_models.language as pl
from pypto_models.ir.expr import Const
from pypto_models.ir.types import INT32

from .support import error_of, error_of_text, lets, lowered, marked, op_names, randn, regions, run, source

CORE = pl.Level.CORE_GROUP


@pl.jit.inline
def scaled(t: pl.Tensor, factor: pl.Scalar[pl.FP32], bias=1.0):
    return pl.add(pl.mul(t, factor), bias)


@pl.jit.inline
def statistics(t: pl.Tensor[[16, 64], pl.FP32]):
    """A tuple of results."""
    low = pl.row_min(t)
    return low, pl.row_max(t)


@pl.jit.inline
def normalised(t: pl.Tensor, *, shift: pl.Scalar[pl.FP32] = 0.0):
    low, high = statistics(t)
    span = pl.sub(high, low)
    return scaled(pl.row_expand_div(pl.row_expand_sub(t, low), span), bias=shift, factor=2.0)


@pl.jit
def nested(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        t = pl.slice(x, [16, 64], [0, 0])
        out[:, :] = normalised(t, shift=3.0)


def test_tuples_keywords_defaults_and_nesting() -> None:
    fn = lowered(nested)
    assert op_names(fn) == [
        "load", "row_min", "row_max", "sub", "row_expand_sub", "row_expand_div", "mul", "add", "store"
    ]  # fmt: skip
    x, out = randn(16, 64), torch.empty(16, 64)
    run(nested, x=x, out=out)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    torch.testing.assert_close(out, (x - low) / (high - low) * 2 + 3)


@pl.jit.inline
def add_rows(acc: pl.Tensor, x: pl.Tensor, row: pl.Scalar[pl.INT32]):
    """Changes its first argument in place, tensor or tile, and gives nothing back."""
    acc[row : row + 8, :] = pl.exp(x[row : row + 8, :])


@pl.jit.inline
def fill(target: pl.Tensor, x: pl.Tensor):
    for i in pl.range(2):
        with pl.at(level=CORE):
            target = pl.assemble(target, pl.neg(x[i * 8 : i * 8 + 8, :]), [i * 8, 0])
    return target


@pl.jit
def aliasing(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    current = fill(out, x)
    scratch = pl.create_tensor([16, 64], pl.FP32)
    fill(scratch, current)
    with pl.at(level=CORE):
        tile = pl.create_tensor([16, 64], pl.FP32)
        same = tile
        add_rows(tile, x, 0)
        add_rows(tile, x, 8)
        add_rows(current, tile, 8)
        out[0:8, :] = pl.add(same[0:8, :], scratch[0:8, :])


def test_parameters_are_the_callers_tensors_and_tiles() -> None:
    fn = lowered(aliasing)
    out_param = fn.params[1].var
    assert [let.arg("target") for let in lets(fn, "store")][0] is out_param
    x, out = randn(16, 64), torch.empty(16, 64)
    run(aliasing, x=x, out=out)
    want = torch.empty(16, 64)
    want[0:8] = x[0:8].exp() + x[0:8]
    want[8:16] = x[8:16].exp().exp()
    torch.testing.assert_close(out, want)


@pl.jit.inline
def layer(hidden: pl.Tensor, weight: pl.Tensor, index: pl.Scalar[pl.INT32]):
    with pl.at(level=CORE, name_hint="layer"):
        hidden[:, :] = pl.col_expand_mul(hidden, weight[index : index + 1, :])
    return hidden


@pl.jit
def stack(w: pl.Tensor[[4, 64], pl.FP32], hidden: pl.InOut[pl.Tensor[[16, 64], pl.FP32]]):
    current_hidden = hidden
    current_hidden = layer(current_hidden, w, 0)
    for i in pl.range(1, 4):
        current_hidden = layer(current_hidden, w, i)
    return current_hidden


def test_a_kernel_that_returns_its_own_parameter() -> None:
    fn = lowered(stack)
    first = regions(fn)[0]
    (load,) = [let for let in lets(first, "load") if let.arg("t") is fn.params[0].var]
    assert load.arg("offset")[0] == Const(0, INT32)  # type: ignore[index]
    w, hidden = randn(4, 64), randn(16, 64, seed=1)
    want = hidden * w.prod(0)
    run(stack, w=w, hidden=hidden)
    torch.testing.assert_close(hidden, want)


@pl.jit.inline
def directed(x: pl.Tensor, out: pl.Out[pl.Tensor], more: pl.InOut[pl.Tensor]):
    with pl.at(level=CORE):
        out[:, :] = x
        more[:, :] = x


@pl.jit
def warns(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    directed(x, out, out)
    directed(x, out, out)


def test_directions_on_inline_parameters_warn() -> None:
    found = pl.elaborate(warns).warnings
    assert len(found) == 2
    assert all("has no effect" in w and w.startswith(__file__) for w in found)
    assert ["'out'" in w for w in found] == [True, False]


OFFSET = 2.0


@pl.jit.inline
def reads_a_constant(t: pl.Tensor):
    return pl.add(t, OFFSET)


@pl.jit
def overridden(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        out[:, :] = reads_a_constant(x)


def test_constants_reach_inline_kernels() -> None:
    x, out = randn(16, 64), torch.empty(16, 64)
    run(overridden, {"OFFSET": 5.0}, x=x, out=out)
    assert torch.equal(out, x + 5)


def test_an_unknown_constant() -> None:
    error = error_of(overridden, OFFSETS=5.0)
    assert error.code == "unused-constant" and "'OFFSETS'" in error.message
    assert error.fix == "known constants: OFFSET"


def test_a_constant_of_a_branch_not_taken_is_known() -> None:
    @pl.jit
    def kernel(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
        with pl.at(level=CORE):
            if ROUTE == 1:
                out[:, :] = reads_a_constant(x)
            else:
                out[:, :] = x

    x, out = randn(16, 64), torch.empty(16, 64)
    run(kernel, {"OFFSET": 9.0}, x=x, out=out)
    assert torch.equal(out, x)


ROUTE = 0


# ------------------------------------------------------------------------------------------ mistakes
KERNELS = """
@pl.jit.inline
def f(t: pl.Tensor, s: pl.Scalar[pl.INT32], u: pl.Tensor[[16, 64], pl.FP32]):
    return pl.add(t, s * 1.0)

@pl.jit.inline
def g(t: pl.Tensor[[16, 32], pl.FP32]):
    return t

@pl.jit.inline
def h(t: pl.Tensor[[16, 64], pl.BF16]):
    return t

@pl.jit.inline
def recurse(t: pl.Tensor):
    return other(t)

@pl.jit.inline
def other(t: pl.Tensor):
    return recurse(t)

@pl.jit.inline
def ids(task: pl.Scalar[pl.TASK_ID], many: pl.Array[4, pl.TASK_ID]):
    pl.system.task_dummy(deps=[task, many])

@pl.jit.inline
def bad_body(t: pl.Tensor):
    u = pl.exp(t)
    return pl.ad(u, 1.0)

@pl.jit.inline
def early(t: pl.Tensor):
    if SIZE == 16:
        return t
    return pl.exp(t)

@pl.jit.inline
def starred(*t):
    return t

@pl.jit
def entry(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        out[:, :] = x
"""
CASES = [
    ("f(x)", "bad-call", "f(x)", "missing s, u", "f(t, s, u)"),
    ("f(x, 1, x, x)", "bad-call", "f(x, 1, x, x)", "4 positional arguments", "f(t, s, u)"),
    ("f(x, 1, x, v=3)", "unknown-keyword", "v=3", "f has no parameter 'v'", "f takes: t, s, u"),
    ("f(x, 1, t=x)", "bad-call", "t=x", "'t' is given twice", "f(t, s, u)"),
    ("f(x, 1.5, x)", "annotation", "1.5", "got 1.5, annotated as INT32", "pl.cast(x, pl.INT32)"),
    ("f(x, x, x)", "annotation", "x", "got the tensor x [16, 64] FP32 for INT32", "agree"),
    ("f(1, 1, x)", "annotation", "1", "got 1 for a tensor", "agree"),
    ("g(x)", "annotation", "x", "its shape is [16, 64], annotated as [16, 32]", "pl.Tensor"),
    ("h(x)", "annotation", "x", "it is FP32, annotated as BF16", "pl.cast(x, pl.BF16)"),
    ("recurse(x)", "recursion", "recurse(t)", "recurse calls itself", "a loop"),
    ("ids(n, n)", "annotation", "n", "got a INT32 scalar for TASK_ID", "agree"),
    ("bad_body(x)", "unknown-op", "pl.ad", "unknown operation 'pl.ad'", "did you mean pl.add?"),
    ("early(x)", "syntax", "return t", "a return before the end", "at the end"),
    ("starred(x)", "syntax", "starred(x)", "* or ** parameters", "name the parameters"),
    ("entry(x, out)", "misplaced", "entry(x, out)", "the entry entry cannot be called", "@pl.jit.inline"),
    ("python_function(x)", "not-a-kernel", "python_function", "'python_function' is not a kernel",
     "@pl.jit.inline"),
    ("f(*[x, 1, x])", "syntax", "f(*[x, 1, x])", "* and ** in a call", "write the arguments out"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "code", "place", "message", "fix"), CASES, ids=[c[0] for c in CASES])
def test_mistakes(call: str, code: str, place: str, message: str, fix: str) -> None:
    error = error_of_text(source(f"with pl.at(level=CORE):\n    out[:, :] = {call}", KERNELS))
    assert (error.code, marked(error)) == (code, place)
    assert message in error.message and fix in error.fix


def test_an_error_inside_says_from_where_it_was_called() -> None:
    text = source("with pl.at(level=CORE):\n    out[:, :] = bad_body(x)", KERNELS)
    error = error_of_text(text)
    line = text.splitlines().index("        out[:, :] = bad_body(x)") + 1
    assert error.notes == [f"in the inline kernel bad_body, called at {error.span.file}:{line}:21"]


def test_an_argument_error_names_the_parameter() -> None:
    text = source("with pl.at(level=CORE):\n    out[:, :] = g(x)", KERNELS)
    error = error_of_text(text)
    line = text.splitlines().index("def g(t: pl.Tensor[[16, 32], pl.FP32]):") + 1
    assert error.notes[0] == f"the parameter is declared at {error.span.file}:{line}:7"


def test_an_inline_kernel_does_not_run_by_itself() -> None:
    with pytest.raises(ValueError, match="the inline kernel scaled cannot run by itself"):
        scaled(1, 2)
