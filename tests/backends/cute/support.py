"""What the tests of this folder share: small kernels, and a compiler that only counts."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

import pypto_models.language as pl
from backends.cute.lower import lower
from backends.gpu.module import KernelSource, Module
from backends.gpu.toolchain import MachineCode, Resources, Results, Unit
from pypto_models.backend import Progress
from pypto_models.compile import lower_for
from pypto_models.target import load_target

needs_cutlass = pytest.mark.skipif(
    importlib.util.find_spec("cutlass") is None, reason="CUTLASS is not installed: the extra cute"
)

ROWS = pl.dynamic("ROWS")
WIDTH = 64
STEP = 256
SCALE = 2.0


@pl.jit
def twice(x: pl.Tensor[[ROWS, WIDTH], pl.FP32], y: pl.Out[pl.Tensor[[ROWS, WIDTH], pl.FP32]]):
    """Rows of 64, 16 to a block, times SCALE."""
    rows = pl.tensor.dim(x, 0)
    for b in pl.spmd((rows + 15) // 16, name_hint="twice"):
        live = pl.min(rows - b * 16, 16)
        tile = pl.slice(x, [16, WIDTH], [b * 16, 0], valid_shape=[live, WIDTH])
        pl.assemble(y, pl.mul(tile, SCALE), [b * 16, 0])


@pl.jit
def two_regions(
    x: pl.Tensor[[32, WIDTH], pl.FP32],
    y: pl.Out[pl.Tensor[[32, WIDTH], pl.FP32]],
    z: pl.Out[pl.Tensor[[32, 1], pl.FP32]],
):
    """y = x * SCALE, and the sums of its rows."""
    for b in pl.spmd(2, name_hint="first"):
        pl.assemble(y, pl.mul(pl.slice(x, [16, WIDTH], [b * 16, 0]), SCALE), [b * 16, 0])
    for b in pl.spmd(2, name_hint="second"):
        pl.assemble(z, pl.row_sum(pl.slice(y, [16, WIDTH], [b * 16, 0])), [b * 16, 0])


@pl.jit
def shifted(x: pl.InOut[pl.Tensor[[33, WIDTH], pl.FP32]]):
    """Rows 0 to 31 one row down, in place: threads write what others read."""
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="shifted"):
        tile = pl.slice(x, [32, WIDTH], [0, 0])
        pl.assemble(x, tile, [1, 0])


@pl.jit
def project(
    x: pl.Tensor[[16, 512], pl.BF16],
    weight: pl.Tensor[[256, 512], pl.BF16],
    residual: pl.Tensor[[16, 256], pl.FP32],
    y: pl.Out[pl.Tensor[[16, 256], pl.FP32]],
):
    """y = x @ weight^T + residual: weights stream through shared memory."""
    for n in pl.spmd(4, name_hint="project"):
        acc = pl.create_tensor([16, 64], pl.FP32)
        for k in pl.pipeline(512 // STEP, stage=2):
            xk = pl.slice(x, [16, STEP], [0, k * STEP])
            wk = pl.slice(weight, [64, STEP], [n * 64, k * STEP])
            if k == 0:
                acc = pl.matmul(xk, wk, b_trans=True, out_dtype=pl.FP32)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        pl.assemble(y, pl.add(acc, pl.slice(residual, [16, 64], [0, n * 64])), [0, n * 64])


def module_of(kernel: pl.Kernel, target: str = "h200", **constants: object) -> Module:
    """The lowered kernel."""
    loaded = load_target(target)
    return lower(lower_for(kernel, (), loaded, constants).function, loaded)


def fields(k: KernelSource) -> dict[str, int]:
    """What an emitted kernel of a streamed product passes to its skeleton."""
    (call,) = re.findall(r"stream\.Stream\((.*?)\)\.run", k.text)
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", call)}


@dataclass
class CountingCompiler:
    """In place of a toolchain's ``compile_units``: machine code that says what it was made from."""

    wanted: list[tuple[str, ...]] = field(default_factory=list)  # the kernels of each unit

    def __call__(self, units: Sequence[Unit], arch: str, progress: Progress | None = None) -> Results:
        self.wanted += [tuple(k.name for k in u.kernels) for u in units]
        names = [k.name for u in units for k in u.kernels]
        for done, name in enumerate(names, 1):
            if progress is not None:
                progress(done, len(names), name)
        return [
            {
                k.name: MachineCode(
                    f"{arch} {k.name}".encode(), f"// {k.name}", f"symbol_{k.name}",
                    Resources(k.threads, k.shared_bytes, 32, 0, overlaps=True),
                )
                for k in u.kernels
            }
            for u in units
        ]  # fmt: skip
