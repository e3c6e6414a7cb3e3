"""Kernels written part by part, and what is emitted for them."""

from __future__ import annotations

import re
import textwrap

import pypto_models.language as pl
from backends.gpu.module import Module
from pypto_models.compile import lower_function
from pypto_models.ir.nodes import Function
from pypto_models.target import load_target

H200 = load_target("h200")
HEAD = """import pypto_models.language as pl

R = pl.dynamic("R")

@pl.jit
def kernel(
    x: pl.Tensor[[16, 32], pl.FP32],
    v: pl.Tensor[[R, 32], pl.FP32],
    n: pl.Tensor[[4], pl.INT32],
    k: pl.InOut[pl.Tensor[[8], pl.INT32]],
    w: pl.InOut[pl.Tensor[[16, 32], pl.FP32]],
    y: pl.InOut[pl.Tensor[[16, 32], pl.FP32]],
    z: pl.InOut[pl.Tensor[[16, 32], pl.FP32]],
    o: pl.InOut[pl.Tensor[[16, 32], pl.FP32]],
):
"""


def rows(name: str, value: str, to: str, blocks: str = "8") -> str:
    """A region whose blocks write a row each, the negative of ``value``."""
    head = f"for i in pl.spmd({blocks}, name_hint='{name}'):\n"
    return head + f"    pl.assemble({to}, pl.neg({value}), [i % 16, 0])\n"


def row(tensor: str) -> str:
    return f"pl.slice({tensor}, [1, 32], [i % 16, 0])"


def parsed(*parts: str) -> Function:
    text = HEAD + textwrap.indent("".join(parts), "    ")
    return lower_function(pl.parse(text, "kernel"), H200).function


def functions(module: Module) -> dict[str, str]:
    """The functions of the emitted source by name."""
    parts = re.split(r"^def (\w+)\(", module.source, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))
