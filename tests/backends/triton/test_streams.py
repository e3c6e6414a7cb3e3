"""Streamed products of odd sizes against torch, and what a machine must not do with them."""

from __future__ import annotations

import pytest
import torch

import pypto_models.language as pl
from backends.gpu.toolchain import Refusal, Unit
from backends.triton.compiler import TritonToolchain
from backends.triton.lower import lower
from pypto_models.compile import Program, lower_function
from pypto_models.target import load_target

from .support import interpreted, needs_interpreter, needs_triton

WIDTH, STEP = 32, 64


def source(rows: int, depth: int, blocks: int, advance: int, factor: bool = False) -> str:
    """`o` = `x` @ `w`^T in blocks of WIDTH columns, of which ``advance`` count; times a factor by block."""
    n = blocks * advance
    valid = f", valid_shape=[{advance}, {STEP}]" if advance < WIDTH else ""
    read = "f = pl.read(scale, [b])" if factor else "f = 1.0"
    return f"""import pypto_models.language as pl


@pl.jit
def kernel(
    x: pl.Tensor[[{rows}, {depth}], pl.BF16],
    w: pl.Tensor[[{n}, {depth}], pl.BF16],
    scale: pl.Tensor[[{blocks}], pl.FP32],
    o: pl.Out[pl.Tensor[[{rows}, {n}], pl.FP32]],
):
    for b in pl.spmd({blocks}):
        {read}
        acc = pl.create_tensor([{rows}, {WIDTH}], dtype=pl.FP32)
        for k in pl.pipeline({depth // STEP}, stage=2):
            xk = pl.slice(x, [{rows}, {STEP}], [0, k * {STEP}])
            wk = pl.slice(w, [{WIDTH}, {STEP}], [b * {advance}, k * {STEP}]{valid})
            if k == 0:
                acc = pl.matmul(xk, wk, b_trans=True, out_dtype=pl.FP32)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        pl.assemble(o, pl.mul(acc, f), [0, b * {advance}])
"""


def program(text: str) -> Program:
    return interpreted(lower_function(pl.parse(text, "kernel"), load_target("h200")))


@needs_interpreter
@pytest.mark.parametrize(
    ("rows", "depth", "blocks", "advance", "factor"),
    [
        (16, 64, 17, 32, False),  # less than what is asked for ahead
        (16, 192, 16, 32, False),  # no power of two
        (48, 256, 16, 32, False),  # rows that are no power of two
        (16, 256, 20, 24, False),  # the last block would read beyond the weights
        (16, 256, 17, 32, True),  # the padding of the last run has no block
    ],
)
def test_they_read_nothing_else_and_compute_what_torch_does(
    rows: int, depth: int, blocks: int, advance: int, factor: bool
) -> None:
    made = program(source(rows, depth, blocks, advance, factor))
    generator = torch.Generator().manual_seed(rows + depth)
    n = blocks * advance
    x, w = (torch.randn(m, depth, generator=generator).bfloat16() for m in (rows, n))
    scale = torch.randn(blocks, generator=generator)
    o = torch.empty(rows, n)
    made(x, w, scale, o)  # the interpreter refuses an access outside of the tensors
    wanted = x.double() @ w.double().T
    if factor:
        wanted *= scale.double().repeat_interleave(advance)
    assert (o.double() - wanted).abs().max() <= 1e-5 * depth**0.5 * 4


@needs_triton
@pytest.mark.parametrize("depth", [64, 192, 320])
def test_what_is_asked_for_ahead_compiles_for_any_depth(depth: int) -> None:
    target = load_target("h200")
    module = lower(lower_function(pl.parse(source(16, depth, 16, 32), "kernel"), target).function, target)
    assert [k.how for k in module.kernels] == ["stream"]
    (code,) = TritonToolchain().compile_units([Unit(module.source, module.kernels)], str(target.arch))
    assert not isinstance(code, Refusal), code.message
    (kernel,) = code.values()
    before, wait, _ = kernel.text.partition("griddepcontrol.wait")
    assert wait and "prefetch.global.L2" in before and "ld.global" not in before and "cp.async" not in before
