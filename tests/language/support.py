"""What the language tests share: running a kernel, walking its IR, reading an error's place."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pypto_models.language as pl
from backends.sim import simulate
from pypto_models.errors import UserError
from pypto_models.ir.nodes import Block, For, Function, If, Let, Region
from pypto_models.ir.printer import format_function
from pypto_models.ir.rewrite import walk
from pypto_models.ir.verify import verify

OUT_ROWS = pl.dynamic("OUT")  # read by kernels as support.OUT_ROWS
FACTOR = 4


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def lowered(kernel: Any, *args: Any, **constants: Any) -> Function:
    """The kernel's IR, verified, and equal to what its own text reads back as."""
    fn = pl.lower(kernel, *args, constants=constants)
    verify(fn)
    text = format_function(fn)
    assert format_function(pl.parse(text)) == text
    return fn


def run(kernel: Any, constants: dict[str, Any] | None = None, **args: Any) -> Any:
    """Simulate a kernel on tensors and numbers by name; gives what it returns."""
    return simulate(lowered(kernel, *args.values(), **(constants or {})), args)


def lets(where: Function | Block | Region, name: str) -> list[Let]:
    """The calls of one op, in program order."""
    return [s for s in statements(where) if isinstance(s, Let) and s.op.name == name]


def op_names(where: Function | Block | Region) -> list[str]:
    return [s.op.name for s in statements(where) if isinstance(s, Let)]


def regions(fn: Function) -> list[Region]:
    return [s for s in statements(fn) if isinstance(s, Region)]


def loops(where: Function | Block | Region) -> list[For]:
    return [s for s in statements(where) if isinstance(s, For)]


def ifs(where: Function | Block | Region) -> list[If]:
    return [s for s in statements(where) if isinstance(s, If)]


def statements(where: Function | Block | Region) -> Iterator[Any]:
    yield from walk(where.body if isinstance(where, Function | Region) else where)


def error_of(kernel: Any, *args: Any, **constants: Any) -> UserError:
    """The error that lowering the kernel raises."""
    with pytest.raises(UserError, match=r"error\[") as caught:
        pl.lower(kernel, *args, constants=constants)
    return caught.value


def marked(error: UserError) -> str:
    """The source text under the caret."""
    line = linecache.getline(error.span.file, error.span.line)
    end = error.span.end_col if error.span.end_line == error.span.line else len(line)
    return line[error.span.col : end].strip()


def line_of(kernel: Any, text: str) -> int:
    """The first line of the kernel that holds ``text``."""
    lines = linecache.getlines(kernel.file)
    return next(i for i in range(kernel.span.line, len(lines)) if text in lines[i - 1])


def fails(body: str, kernels: str = "") -> UserError:
    """The error of a kernel with this body, a statement per line."""
    return error_of_text(source(body, kernels))


def error_of_text(text: str) -> UserError:
    with pytest.raises(UserError, match=r"error\[") as caught:
        pl.parse(text, "k")
    return caught.value


def source(body: str, kernels: str = "") -> str:
    """A module whose kernel ``k`` has the tensors x, y [16, 64], w [64, 32], b [16, 64] bf16, a scalar n."""
    indented = "\n".join(f"    {line}" for line in body.strip("\n").split("\n"))
    return HEAD + kernels + KERNEL + indented + "\n"


HEAD = """\
import pypto_models.language as pl

D = pl.dynamic("D")
CORE = pl.Level.CORE_GROUP
SIZE = 16
TABLE = {}

def python_function(a):
    return a

"""
KERNEL = """
@pl.jit
def k(
    x: pl.Tensor[[16, 64], pl.FP32], y: pl.Tensor[[16, 64], pl.FP32], w: pl.Tensor[[64, 32], pl.FP32],
    b: pl.Tensor[[16, 64], pl.BF16], r: pl.Tensor[[D, 64], pl.FP32], n: pl.Scalar[pl.INT32],
    out: pl.Out[pl.Tensor[[16, 64], pl.FP32]],
):
"""
