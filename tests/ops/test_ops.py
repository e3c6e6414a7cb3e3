"""Every op on every backend: its samples run as kernels, against numpy in fp64 and integers.

The table below says what each op means, in terms of the valid parts of its operands, and shares nothing with
the OpDefs' own references.  Ops that no sample can show (they touch global memory or task ids) have kernels
in :mod:`.by_hand`.  An op without an entry fails a test.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pypto_models.language as pl
from pypto_models.ir.types import DType
from pypto_models.ops import REGISTRY, Registry
from pypto_models.ops.registry import OpDef, Sample, T, op

from .by_hand import CASES, Case
from .exact import convert
from .samples import (
    PLATFORMS,
    Expectation,
    assert_close,
    exact,
    inputs,
    kernel_of,
    run,
    source,
    torch_type,
    torch_types,
    unusable,
    valid_part,
)

Array = np.ndarray


def on(a: Array, b: Any) -> Any:
    """The part of a tile operand ``b`` that meets ``a``; scalars as they are."""
    return b[tuple(slice(0, d) for d in a.shape)] if isinstance(b, np.ndarray) else b


def quotient(a: Array, b: Any) -> Array:
    if a.dtype.kind == "f":
        return a / b
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def product(a: Array, b: Array, *_: Any, a_trans: bool = False, b_trans: bool = False, **__: Any) -> Array:
    return (a.T if a_trans else a) @ (b.T if b_trans else b)


def accumulated(acc: Array, a: Array, b: Array, **keywords: Any) -> Array:
    total = product(a, b, **keywords)
    return on(total, acc) + total


def box(a: Array, shape: tuple[int, ...], offset: tuple[int, ...]) -> Array:
    return a[tuple(slice(o, o + d) for o, d in zip(offset, shape, strict=True))]


def inserted(a: Array, b: Array, offset: tuple[int, ...]) -> Array:
    y = a.copy()
    y[tuple(slice(o, o + d) for o, d in zip(offset, b.shape, strict=True))] = b
    return y


def compared(a: Array, b: Any, cmp_type: int = 0) -> Array:
    relation = (np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal)[cmp_type]
    return relation(a, on(a, b)).astype(a.dtype)


EXPECT: dict[str, Expectation] = {
    "add": lambda a, b: a + on(a, b),
    "sub": lambda a, b: a - on(a, b),
    "mul": lambda a, b: a * on(a, b),
    "div": lambda a, b: quotient(a, on(a, b)),
    "maximum": lambda a, b: np.where(a > on(a, b), a, on(a, b)),
    "minimum": lambda a, b: np.where(a < on(a, b), a, on(a, b)),
    "neg": lambda a: 0 - a,
    "abs": lambda a: np.where(a < 0, 0 - a, a),
    "exp": np.exp,
    "log": np.log,
    "sqrt": lambda a: a**0.5,
    "rsqrt": lambda a: a**-0.5,
    "recip": lambda a: 1 / a,
    "row_expand_add": lambda a, b: a + b[: len(a)],
    "row_expand_sub": lambda a, b: a - b[: len(a)],
    "row_expand_mul": lambda a, b: a * b[: len(a)],
    "row_expand_div": lambda a, b: quotient(a, b[: len(a)]),
    "col_expand_add": lambda a, b: a + b[:, : a.shape[1]],
    "col_expand_sub": lambda a, b: a - b[:, : a.shape[1]],
    "col_expand_mul": lambda a, b: a * b[:, : a.shape[1]],
    "col_expand_div": lambda a, b: quotient(a, b[:, : a.shape[1]]),
    "cast": lambda a, to, mode="round": np.array(
        [[convert(x, torch_type(to), mode) for x in row] for row in a.tolist()]
    ),
    "cmp": compared,
    "row_sum": lambda a: a.sum(1)[:, None],
    "row_max": lambda a: np.sort(a, 1)[:, -1:],
    "row_min": lambda a: np.sort(a, 1)[:, :1],
    "col_sum": lambda a: a.sum(0)[None, :],
    "col_max": lambda a: np.sort(a, 0)[-1:],
    "col_min": lambda a: np.sort(a, 0)[:1],
    "matmul": product,
    "matmul_acc": accumulated,
    "extract": box,
    "insert": inserted,
    "full": lambda shape, dtype, value: np.full(shape, value),
    "reshape": lambda a, shape: a.reshape(shape),
    "set_validshape": lambda a, rows, cols: a[:rows, :cols],
    "transpose": lambda a, *_: a.T,
    "move": lambda a, _: a,
}
SUMS = ("row_sum", "col_sum", "matmul", "matmul_acc")  # their error is relative to the sum of absolute values


def padded(sample: Sample, a: Array) -> Array:
    """pl.fillpad: the one op that needs the extents outside of the valid rectangle."""
    t, pad = sample.args[0], sample.args[1] if len(sample.args) > 1 else "zero"
    limit = torch.finfo(torch_type(t.dtype)) if t.dtype.is_float else torch.iinfo(torch_type(t.dtype))
    y = np.full(t.shape, {"zero": 0, "min": limit.min, "max": limit.max}[pad], dtype=a.dtype)
    y[tuple(slice(0, d) for d in a.shape)] = a
    return y


def expected(name: str, sample: Sample, xs: list[torch.Tensor]) -> tuple[Array, Array | None]:
    """What the op gives on the valid parts, and, for sums, the magnitude of their terms."""
    tiles = iter(xs)
    args = [valid_part(a, next(tiles)) if isinstance(a, T) else a for a in sample.args]
    if name == "fillpad":
        return padded(sample, args[0]), None
    keywords = {k: v for k, v in sample.keywords if k != "out_dtype"}
    want = EXPECT[name](*args, **keywords)
    if want.dtype.kind == "i":  # integers wrap at the width of their type
        want = exact(torch.tensor(want).to(result_type(name, sample)))
    if name not in SUMS:
        return want, None
    return want, EXPECT[name](*(np.abs(a) if isinstance(a, np.ndarray) else a for a in args), **keywords)


def result_type(name: str, sample: Sample) -> torch.dtype:
    """The element type of the result, by torch's rules where more than one operand has a say."""
    named = [a for a in (*sample.args, *(v for _, v in sample.keywords)) if isinstance(a, DType)]
    tiles = [torch_type(a.dtype) for a in sample.args if isinstance(a, T)]
    if named:
        return torch_type(named[0])
    if name in ("matmul", "matmul_acc"):
        return torch.int32 if not tiles[-1].is_floating_point else torch.promote_types(tiles[0], tiles[1])
    if name in ("cmp", "insert", "fillpad"):
        return tiles[0]
    return tiles[0] if len(tiles) == 1 else torch.promote_types(*tiles)


SAMPLES = [pytest.param(o, s, id=f"{o.name}-{i}") for o in REGISTRY for i, s in enumerate(o.samples)]


@pytest.fixture(params=PLATFORMS)
def platform(request: pytest.FixtureRequest) -> str:
    reason = unusable(request.param)
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


@pytest.mark.parametrize(("op_def", "sample"), SAMPLES)
def test_samples(op_def: OpDef, sample: Sample, platform: str) -> None:
    xs = inputs(sample)
    want, magnitude = expected(op_def.name, sample, xs)
    out = torch.empty(want.shape, dtype=result_type(op_def.name, sample))
    run(kernel_of(source(op_def, sample, out)), platform, [*xs, out])
    if op_def.name == "cast":
        assert np.array_equal(exact(out), want)
    else:
        assert_close(out, want, magnitude)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.kernel.name)
def test_kernels_by_hand(case: Case, platform: str) -> None:
    args, want = case.make()
    kept = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    run(case.kernel, platform, args)
    params = [p.arg for p in case.kernel.node.args.args]
    assert want.keys() <= set(params)
    for name, before, after in zip(params, kept, args, strict=True):
        if name in want:
            assert_close(after, want[name])
        elif isinstance(after, torch.Tensor):
            assert torch.equal(before, after), f"{name} was changed"


# ------------------------------------------------------------------------------------------ completeness
def uncovered(registry: Registry) -> list[str]:
    """Ops that no test above runs, and entries of the tables that name no op."""
    by_hand = {name for case in CASES for name in case.ops}
    table = {*EXPECT, "fillpad"}
    missing = [o.name for o in registry if o.name not in by_hand and not (o.samples and o.name in table)]
    sampled = [o.name for o in registry if o.samples and o.name not in table]
    stale = [n for n in sorted(table | by_hand) if n not in registry.by_name]
    return sorted({*missing, *sampled}) + stale


def test_every_op_is_covered() -> None:
    assert uncovered(REGISTRY) == []


def test_an_op_without_an_entry_is_noticed() -> None:
    bare = op("square", doc="x * x.", infer=lambda: None)
    sampled = op("cube", doc="x * x * x.", infer=lambda: None, samples=(Sample(),))
    assert uncovered(Registry((*REGISTRY, bare, sampled))) == ["cube", "square"]
    assert uncovered(Registry(o for o in REGISTRY if o.name not in ("exp", "store"))) == ["exp", "store"]


def test_each_kernel_by_hand_uses_the_ops_it_stands_for() -> None:
    for case in CASES:
        text = str(pl.lower(case.kernel))
        assert case.used() >= set(case.ops), (case.kernel.name, text)


@pytest.mark.parametrize("name", [n for n in EXPECT if n not in ("cast", "full")])
def test_a_wrong_result_is_noticed(name: str) -> None:
    """The comparison is as tight as the types: half a percent, or one integer, is enough."""
    sample = REGISTRY[name].samples[0]
    xs = inputs(sample)
    want, magnitude = expected(name, sample, xs)
    wrong = want + np.maximum(np.abs(want) * 0.02, 1e-2) if want.dtype.kind == "f" else want + 1
    with pytest.raises(AssertionError, match="512 of 512 differ|differ; "):
        assert_close(torch.tensor(wrong).to(result_type(name, sample)), want, magnitude)


# ------------------------------------------------------------------------------------------ element types
def text_of(body: list[str], x: torch.Tensor | None, source_type: DType, out_type: DType) -> str:
    return "\n".join([
        "import pypto_models.language as pl", "", "@pl.jit",
        f"def kernel(x: pl.Tensor[[16, 32], pl.{source_type}], out: pl.Out[pl.Tensor[[16, 32], pl.{out_type}]]):",
        "    with pl.at(level=pl.Level.CORE_GROUP):", *(f"        {line}" for line in body), "    return out\n",
    ])  # fmt: skip
