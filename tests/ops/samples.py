"""From an OpDef's sample to a kernel, its inputs, and a comparison that knows the precision of the types."""

from __future__ import annotations

import itertools
import linecache
import types
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch

import pypto_models.language as pl
from backends.triton.compiler import TritonToolchain
from backends.triton.interpreter import why_not
from pypto_models.compile import compile as compile_kernel
from pypto_models.compile import resolve_platform
from pypto_models.ir.types import DType
from pypto_models.ops.registry import Kind, OpDef, Sample, T

_sources = itertools.count(1)
# Simulators of a target with all limits on extents and of one with none; and kernels that are interpreted
SIMULATORS = ["a2a3sim", "h200sim"]
PLATFORMS = [*SIMULATORS, "h200:triton"]
SIMULATED_ONLY = (pl.FP8E4M3FN, pl.FP8E5M2, pl.FP8E8M0, pl.UINT64)  # no kernel holds elements of these


def unusable(platform: str) -> str | None:
    """Why the programs of a platform cannot run here."""
    if platform.endswith(":triton"):
        return TritonToolchain().missing() or why_not()
    return resolve_platform(platform)[1].unusable()


def run(kernel: pl.Kernel, platform: str, args: list[Any]) -> Any:
    """Compile with the verifier on, and run; Out and InOut tensors among ``args`` are changed in place."""
    options = {"interpret": True} if platform.endswith(":triton") else {}
    program = compile_kernel(kernel, *args, platform=platform, check=True, backend_options=options)
    return program(*args)


def needs(d: DType, platform: str) -> None:
    """Skip a test of an element type that the platform does not have."""
    if d in SIMULATED_ONLY and platform not in SIMULATORS:
        pytest.skip(f"no kernel holds elements of {d}")


def kernel_of(text: str) -> pl.Kernel:
    """The kernel of a piece of source, which errors can quote."""
    file = f"<sample {next(_sources)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    module = types.ModuleType(file)
    exec(compile(text, file, "exec"), module.__dict__)
    return next(v for v in module.__dict__.values() if isinstance(v, pl.Kernel))


# ------------------------------------------------------------------------------------------ source
def source(op: OpDef, sample: Sample, out: torch.Tensor) -> str:
    """A kernel that loads the sample's operands, applies the op in a region and stores what is valid."""
    tiles = [a for a in sample.args if isinstance(a, T)]
    params = [f"x{i}: pl.Tensor[{list(t.shape)}, pl.{t.dtype}]," for i, t in enumerate(tiles)]
    loads = [f"t{i} = {_load(f'x{i}', t)}" for i, t in enumerate(tiles)]
    names = iter(f"t{i}" for i in range(len(tiles)))
    shown = zip(op.params, sample.args, strict=False)
    args = [next(names) if isinstance(a, T) else _show(a, p.kind) for p, a in shown]
    kinds = {p.name: p.kind for p in op.params}
    args += [f"{k}={_show(v, kinds[k])}" for k, v in sample.keywords]
    space = "" if "" in op.namespaces else f"{op.namespaces[0]}."
    lines = [
        "import pypto_models.language as pl", "", "@pl.jit", "def kernel(", *(f"    {p}" for p in params),
        f"    out: pl.Out[pl.Tensor[{list(out.shape)}, pl.{_dtype_of(out)}]],", "):",
        "    with pl.at(level=pl.Level.CORE_GROUP):", *(f"        {line}" for line in loads),
        f"        y = pl.{space}{op.spelling}({', '.join(args)})",
        f"        out = pl.assemble(out, y, {[0] * out.dim()})",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _load(name: str, t: T) -> str:
    valid = f", valid_shape={list(t.valid)}" if t.valid is not None else ""
    return f"pl.slice({name}, {list(t.shape)}, {[0] * len(t.shape)}{valid})"


def _show(value: Any, kind: Kind) -> str:
    if isinstance(value, DType):
        return f"pl.{value}"
    if isinstance(value, Enum):
        return f"pl.{type(value).__name__}.{value.name}"
    if kind is Kind.PAD and isinstance(value, str):
        return f"pl.PadValue.{value}"
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _dtype_of(x: torch.Tensor) -> str:
    return next(str(d) for d in torch_types() if torch_type(d) == x.dtype)


# ------------------------------------------------------------------------------------------ values
def torch_types() -> Iterator[DType]:
    """The language's element types that torch has; INDEX is INT64 under another name."""
    named = (getattr(pl, n) for n in pl.__all__)
    yield from (d for d in named if isinstance(d, DType) and d.kind not in ("task", "index"))


def torch_type(d: DType) -> torch.dtype:
    return getattr(torch, d.torch_name or "")  # type: ignore[no-any-return]


def inputs(sample: Sample, seed: int = 0) -> list[torch.Tensor]:
    """Tensors for the sample's tiles, random outside of the valid rectangle too, where nothing may matter."""
    generator = torch.Generator().manual_seed(seed)
    return [random(t, generator) for t in sample.args if isinstance(t, T)]


def random(t: T, generator: torch.Generator) -> torch.Tensor:
    if t.dtype.is_float:
        x = torch.rand(t.shape, generator=generator, dtype=torch.float64) * (t.high - t.low) + t.low
        return x.float().to(torch_type(t.dtype))
    return torch.randint(int(t.low), int(t.high) + 1, t.shape, generator=generator).to(torch_type(t.dtype))


def exact(x: torch.Tensor) -> np.ndarray:
    """The numbers of a tensor as fp64, or as int64: exactly, but for uint64 above 2**63."""
    return x.double().numpy() if x.dtype.is_floating_point else x.to(torch.int64).numpy()


def valid_part(t: T, x: torch.Tensor) -> np.ndarray:
    """What of an operand the op may use."""
    return exact(x)[tuple(slice(0, d) for d in t.valid or t.shape)]


def assert_close(got: torch.Tensor, want: np.ndarray, magnitude: np.ndarray | None = None) -> None:
    """Integers are equal; floats differ by the rounding of their type and a few roundings of fp32 terms.

    ``magnitude`` is the sum of the absolute values of the terms, by default the result's.
    """
    assert tuple(got.shape) == want.shape
    y, size = exact(got), np.abs(want)
    limit: Any = 0
    if got.dtype.is_floating_point:
        terms = size if magnitude is None else magnitude
        limit = 0.51 * torch.finfo(got.dtype).eps * size + 8 * 2.0**-24 * terms
    with np.errstate(invalid="ignore"):  # infinities, which are equal or not
        bad = np.argwhere(~((y == want) | (np.abs(y - want) <= limit)))
    where = [(place, y[place], want[place]) for place in map(tuple, bad[:3].tolist())]
    assert not where, f"{len(bad)} of {y.size} differ; (index, got, want): {where}"


Expectation = Callable[..., np.ndarray]
