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
from backends import BACKENDS
from pypto_models.compile import lower_for
from pypto_models.errors import UserError
from pypto_models.ir.types import DType
from pypto_models.ops import REGISTRY, Registry
from pypto_models.ops.registry import OpDef, Sample, T, op
from pypto_models.target import load_target

from .by_hand import CASES, Case
from .exact import convert
from .samples import (
    PLATFORMS,
    SIMULATED_ONLY,
    SIMULATORS,
    Expectation,
    assert_close,
    exact,
    inputs,
    kernel_of,
    needs,
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
    "row_expand": lambda a, b: b[: len(a)] + np.zeros((1, a.shape[1])),
    "col_expand": lambda a, b: np.zeros((len(a), 1)) + b[:, : a.shape[1]],
    "cast": lambda a, to, mode="round": np.array(
        [[convert(x, torch_type(to), mode) for x in row] for row in a.tolist()]
    ),
    "cmp": compared,
    "row_sum": lambda a: a.sum(1)[:, None],
    "row_max": lambda a: np.sort(a, 1)[:, -1:],
    "row_min": lambda a: np.sort(a, 1)[:, :1],
    "row_argmax": lambda a: np.array([[row.index(max(row))] for row in a.tolist()]),
    "col_sum": lambda a: a.sum(0)[None, :],
    "col_max": lambda a: np.sort(a, 0)[-1:],
    "col_min": lambda a: np.sort(a, 0)[:1],
    "matmul": product,
    "matmul_acc": accumulated,
    "extract": box,
    "insert": inserted,
    "full": lambda shape, dtype, value: np.full(shape, value),
    "arange": lambda start, shape, dtype, descending=False: np.array(
        [[start - k if descending else start + k for k in range(shape[1])]]
    ),
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
    if want.dtype.kind == "i" and name != "arange":  # integers wrap at the width of their type
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
    if name == "row_argmax":
        return torch.int32
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


# What a target cannot do, by op and target: the error says so.
REFUSED = {("matmul_acc", "a2a3"): "a2a3 cannot move data from Vec to Acc"}


@pytest.mark.parametrize(("op_def", "sample"), SAMPLES)
def test_samples(op_def: OpDef, sample: Sample, platform: str) -> None:
    xs = inputs(sample)
    want, magnitude = expected(op_def.name, sample, xs)
    out = torch.empty(want.shape, dtype=result_type(op_def.name, sample))
    kernel = kernel_of(source(op_def, sample, out))
    for (name, target), why in REFUSED.items():
        if name == op_def.name and platform.startswith(target):
            with pytest.raises(UserError, match=why):
                run(kernel, platform, [*xs, out])
            return
    run(kernel, platform, [*xs, out])
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
        assert case.used() >= set(case.ops), case.kernel.name


@pytest.mark.parametrize("name", [n for n in EXPECT if n not in ("cast", "full", "arange")])
def test_a_wrong_result_is_noticed(name: str) -> None:
    """The comparison is as tight as the types: two percent of one BF16 result, or one integer, is enough."""
    sample = REGISTRY[name].samples[0]
    xs = inputs(sample)
    want, magnitude = expected(name, sample, xs)
    wrong = want + np.maximum(np.abs(want) * 0.02, 1e-2) if want.dtype.kind == "f" else want + 1
    with pytest.raises(AssertionError, match="512 of 512 differ|differ; "):
        assert_close(torch.tensor(wrong).to(result_type(name, sample)), want, magnitude)


# ------------------------------------------------------------------------------------------ element types
TYPES = list(torch_types())
INTEGERS = [d for d in TYPES if d.kind in ("int", "uint") and d != pl.UINT64]
TIES = [2.5, -2.5, 3.5, 1 + 2.0**-8, 1 + 3 * 2.0**-8]
VALUES = [0.0, 1.0, -1.0, *TIES, 0.1, -0.7, 200.7, -300.0, 7e4, -1e6, 3e9]
POWERS = [2.0**k for k in range(7)]


def apply(body: str, x: torch.Tensor, x_type: DType, out_type: DType, platform: str) -> torch.Tensor:
    """``y = body`` on a tile ``t`` with the values of ``x``, repeated to [16, 32]."""
    tile = x.repeat(-(-512 // len(x)))[:512].reshape(16, 32)
    out = torch.empty(16, 32, dtype=torch_type(out_type))
    run(kernel_of(text_of(body, x_type, out_type)), platform, [tile, out])
    return out.flatten()[: len(x)]


def text_of(body: str, x_type: DType, out_type: DType) -> str:
    """The kernel of :func:`apply`."""
    return f"""
import pypto_models.language as pl

@pl.jit
def kernel(x: pl.Tensor[[16, 32], pl.{x_type}], out: pl.Out[pl.Tensor[[16, 32], pl.{out_type}]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.slice(x, [16, 32], [0, 0])
        out = pl.assemble(out, {body}, [0, 0])
"""


def values_of(d: DType) -> torch.Tensor:
    """Values that the type can hold, its limits among them."""
    dtype = torch_type(d)
    if d == pl.FP8E8M0:
        return torch.tensor(POWERS).to(dtype)
    if d == pl.BOOL:
        return torch.tensor([True, False])
    if d.is_float:
        top = torch.finfo(dtype).max
        return torch.tensor([*(v for v in VALUES if abs(v) < top), top, -top, 0.0]).to(dtype)
    info = torch.iinfo(dtype)
    inside = [int(v) for v in VALUES if info.min <= v <= info.max]
    return torch.tensor([*inside, info.min, info.max, info.max // 2 + 1], dtype=dtype)


@pytest.mark.parametrize("d", TYPES, ids=str)
def test_every_type_is_loaded_and_stored_bit_by_bit(d: DType, platform: str) -> None:
    needs(d, platform)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[torch_type(d).itemsize]
    x = values_of(d)
    got = apply("t", x, d, d, platform)
    assert torch.equal(got.view(bits), x.view(bits))


@pytest.mark.parametrize("source_type", TYPES, ids=str)
def test_casts_between_all_types(source_type: DType, platform: str) -> None:
    needs(source_type, platform)
    for to in TYPES if platform in SIMULATORS else [d for d in TYPES if d not in SIMULATED_ONLY]:
        x = torch.tensor(POWERS).to(torch_type(source_type)) if to == pl.FP8E8M0 else values_of(source_type)
        got = apply(f"pl.cast(t, pl.{to})", x, source_type, to, platform)
        numbers = x.double().tolist() if source_type.is_float else [int(v) for v in x.tolist()]
        if to == pl.BOOL:
            want: list[Any] = [v != 0 for v in numbers]
        elif to == pl.FP8E8M0:
            want = [float(v) for v in numbers]
        else:
            want = [convert(v, torch_type(to), "round") for v in numbers]
        assert (got.double() if to.is_float else got).tolist() == want, to


@pytest.mark.parametrize("name", ["cute", "triton"])
@pytest.mark.parametrize("d", SIMULATED_ONLY, ids=str)
def test_what_no_kernel_holds_is_refused_by_name(d: DType, name: str) -> None:
    for x, out in ((d, pl.FP32), (pl.FP32, d)):
        compiled = lower_for(kernel_of(text_of(f"pl.cast(t, pl.{out})", x, out)), (), load_target("h200"))
        with pytest.raises(UserError, match=f"on the backend {name}: no kernel holds elements of {d}"):
            BACKENDS[name].emit(compiled)  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", range(7))
def test_cast_modes_by_name_and_by_number(number: int, platform: str) -> None:
    mode = ("none", "rint", "round", "floor", "ceil", "trunc", "odd")[number]
    x = torch.tensor(VALUES)
    for to in (pl.BF16, pl.INT32):
        want = [convert(v, torch_type(to), mode) for v in x.tolist()]
        for spelled in (repr(mode), str(number)):
            assert apply(f"pl.cast(t, pl.{to}, mode={spelled})", x, pl.FP32, to, platform).tolist() == want
    default = apply("pl.cast(t, pl.BF16)", x, pl.FP32, pl.BF16, platform)
    assert default.tolist() == [convert(v, torch.bfloat16, "round") for v in x.tolist()]


@pytest.mark.parametrize("d", INTEGERS, ids=str)
def test_integers_wrap_at_their_width(d: DType, platform: str) -> None:
    x = values_of(d)
    a = x.numpy()
    with np.errstate(over="ignore"):
        square = a * a - a.dtype.type(3)
    assert np.array_equal(apply("pl.sub(pl.mul(t, t), 3)", x, d, d, platform).numpy(), square)
    assert apply("pl.maximum(t, 5)", x, d, d, platform).tolist() == [max(v, 5) for v in x.tolist()]
    assert apply("pl.cmp(t, 5, 4)", x, d, d, platform).tolist() == [int(v > 5) for v in x.tolist()]
    thirds = [abs(v) // 3 * (1 if v > 0 else -1) for v in x.tolist()]
    assert apply("pl.div(t, 3)", x, d, d, platform).tolist() == thirds


@pytest.mark.parametrize("d", [pl.BF16, pl.FP16, pl.FP8E4M3FN, pl.FP8E5M2], ids=str)
def test_narrow_floats_compute_in_fp32_and_round_once(d: DType, platform: str) -> None:
    needs(d, platform)
    x = torch.tensor([0.0, 0.875, 1.125, -1.75, 3.5, 0.3125, 10.0]).to(torch_type(d))
    numbers = x.double().tolist()
    for body, want in (
        ("pl.mul(t, t)", [v * v for v in numbers]),
        ("pl.add(pl.mul(t, 0.0), 0.3125)", [0.3125] * len(x)),
        ("pl.sub(t, 0.0625)", [v - 0.0625 for v in numbers]),
    ):
        rounded = [convert(v, torch_type(d), "rint") for v in want]
        assert apply(body, x, d, d, platform).double().tolist() == rounded


@pytest.mark.parametrize(
    ("a", "b", "common"),
    [
        (pl.BF16, pl.FP32, pl.FP32),
        (pl.INT32, pl.BF16, pl.BF16),
        (pl.INT32, pl.UINT8, pl.INT32),
        (pl.UINT32, pl.INT32, pl.INT32),
    ],
    ids=str,
)
def test_two_types_compute_in_the_common_one(a: DType, b: DType, common: DType, platform: str) -> None:
    """A float beats an integer, then the wider wins, then the signed."""
    x = torch.tensor([1, 3, 100, 7]).to(torch_type(a))
    got = apply(f"pl.add(t, pl.cast(t, pl.{b}))", x, a, common, platform)
    assert got.tolist() == [2, 6, 200, 14]
    swapped = apply(f"pl.add(pl.cast(t, pl.{b}), t)", x, a, common, platform)
    assert torch.equal(got, swapped)


# ------------------------------------------------------------------------------------------ run-time mistakes
def failing(lines: list[str], match: str, n: int, platform: str) -> None:
    """A kernel with the run-time scalar ``n`` fails with this message, at the line of its first statement."""
    text = "\n".join([
        "import pypto_models.language as pl", "", "@pl.jit",
        "def kernel(x: pl.Tensor[[16, 32], pl.FP32], n: pl.Scalar[pl.INT32],",
        "           out: pl.Out[pl.Tensor[[16, 32], pl.FP32]]):",
        "    with pl.at(level=pl.Level.CORE_GROUP):", *(f"        {line}" for line in lines),
        "        out = pl.assemble(out, pl.cast(y, pl.FP32), [0, 0])\n",
    ])  # fmt: skip
    with pytest.raises(UserError, match=rf"(?s):7:.*{match}"):
        run(kernel_of(text), platform, [torch.randn(16, 32), n, torch.empty(16, 32)])


@pytest.mark.parametrize(
    ("lines", "match", "n"),
    [
        (["y = pl.full([16, 32], pl.INT8, n)"], r"pl\.full: 300 is not within -128\.\.127", 300),
        (
            ["y = pl.arange(pl.cast(n, pl.INT16), [1, 32], pl.INT16)"],
            r"pl\.arange: 32768 is not within -32768\.\.32767", 2**15 - 31,
        ),
        (
            ["y = pl.arange(n - 31, [1, 32], pl.INT32, descending=True)"],
            r"pl\.arange: -2147483649 is not within", 31 + 30 - 2**31,
        ),
        (
            ["y = pl.arange(pl.cast(n * 2**40, pl.INT32), [1, 32], pl.INT32)"],
            r"pl\.arange: 4398046511104 is not within", 4,
        ),
        (["y = pl.row_argmax(pl.set_validshape(x, 16, n))"], "no valid element to reduce", 0),
        (
            ["row = pl.slice(x, [1, 32], [n, 0], drop_dims=[0], clamp=True)", "y = pl.reshape(row, [1, 32])"],
            "drop_dims removes has no valid element", 16,
        ),
        (["y = pl.set_validshape(pl.slice(x, [16, 32], [0, 0]), n, 32)"], r"valid shape is \[17, 32\]", 17),
        (["y = pl.slice(x, [8, 32], [n, 0])"], r"reads x\[9:17, 0:32\] outside of its extents", 9),
        (["y = pl.div(pl.cast(x, pl.INT32), n)"], "divisor is 0|division by zero", 0),
    ],
    ids=[
        "full", "arange", "arange-descending", "arange-64", "argmax", "drop_dims", "set_validshape", "slice",
        "div",
    ],
)  # fmt: skip
@pytest.mark.parametrize("platform", SIMULATORS)
def test_what_only_the_run_can_know(lines: list[str], match: str, n: int, platform: str) -> None:
    failing(lines, match, n, platform)


# ------------------------------------------------------------------------------------------ ramps, places
@pytest.mark.parametrize("d", [pl.INT16, pl.INT32, pl.UINT16, pl.UINT32], ids=str)
def test_ramps_reach_the_limits_of_their_type(d: DType, platform: str) -> None:
    info = torch.iinfo(torch_type(d))
    for start, rest, step in ((info.max - 31, "", 1), (info.min + 31, ", descending=True", -1)):
        text = f"""
import pypto_models.language as pl

@pl.jit
def kernel(n: pl.Scalar[pl.{d}], out: pl.Out[pl.Tensor[[2, 32], pl.{d}]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out = pl.assemble(out, pl.arange({start}, [1, 32], pl.{d}{rest}), [0, 0])
        out = pl.assemble(out, pl.arange(n, [1, 32], dtype=pl.{d}{rest}), [1, 0])
"""
        out = torch.empty(2, 32, dtype=torch_type(d))
        if platform not in SIMULATORS and start >= 2**31:
            with pytest.raises(ValueError, match=f"n is {start}; 0 to 2147483647 are possible"):
                run(kernel_of(text), platform, [start, out])
            continue
        run(kernel_of(text), platform, [start, out])
        assert out.tolist() == [[start + step * k for k in range(32)]] * 2


def test_the_first_of_equal_maxima(platform: str) -> None:
    text = """
import pypto_models.language as pl

@pl.jit
def kernel(x: pl.Tensor[[8, 32], pl.FP32], n: pl.Scalar[pl.INT32], out: pl.Out[pl.Tensor[[8, 1], pl.INT32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out = pl.assemble(out, pl.row_argmax(pl.slice(x, [8, 32], [0, 0], valid_shape=[8, n])), [0, 0])
"""
    x = torch.zeros(8, 32)
    x[0, [4, 9]], x[1, [0, 31]], x[2] = 2.0, 1.0, -1.0
    x[3], x[4] = -torch.inf, torch.finfo(torch.float32).min
    x[5, 20:] = 5.0  # not valid in the second run
    x[6, 18], x[7, 3] = -0.0, -1.0
    for n, want in ((32, [4, 0, 0, 0, 0, 20, 0, 0]), (20, [4, 0, 0, 0, 0, 0, 0, 0])):
        out = torch.full((8, 1), -1, dtype=torch.int32)
        run(kernel_of(text), platform, [x, n, out])
        assert out.flatten().tolist() == want


def test_a_broadcast_takes_only_the_extents_of_its_target(platform: str) -> None:
    """Of a target without a value, and in place of one whose values go."""
    text = """
import pypto_models.language as pl

@pl.jit
def kernel(
    x: pl.Tensor[[16, 32], pl.FP32], out: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
    part: pl.InOut[pl.Tensor[[16, 32], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.slice(x, [16, 32], [0, 0])
        rows = pl.col_expand(pl.create_tensor([16, 32], dtype=pl.FP32), t[3:4, :])
        out = pl.assemble(out, pl.add(pl.row_expand(t, pl.row_max(t)), rows), [0, 0])
        some = pl.set_validshape(t, 5, 17)
        part = pl.assemble(part, pl.row_expand(some, pl.row_max(t)), [0, 0])
"""
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(3))
    out, part = torch.empty(16, 32), torch.zeros(16, 32)
    x[8] = torch.nan
    run(kernel_of(text), platform, [x, out, part])
    top = x.numpy().max(1, keepdims=True)
    assert np.array_equal(out.numpy(), top + x.numpy()[3:4], equal_nan=True)
    assert np.array_equal(part.numpy()[:5, :17], np.repeat(top[:5], 17, 1))
    assert not part[5:].any() and not part[:, 17:].any()


# ------------------------------------------------------------------------------------------ precision
@pl.jit
def fp32_product(
    a: pl.Tensor[[16, 64], pl.FP32],
    b: pl.Tensor[[64, 32], pl.FP32],
    out: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        out = pl.assemble(out, pl.matmul(a, b), [0, 0])


def test_fp32_operands_multiply_in_fp32(platform: str) -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = torch.rand(16, 64, generator=generator), torch.rand(64, 32, generator=generator)
    out = torch.empty(16, 32)
    run(fp32_product, platform, [a, b, out])
    exactly = exact(a) @ exact(b)

    def error(y: Array) -> float:
        return float(np.max(np.abs(y - exactly) / exactly))

    assert error(exact(out)) < 1e-6
    assert error(tf32(a) @ tf32(b)) > 1e-5  # so a backend that rounds the operands is found out


def tf32(x: torch.Tensor) -> Array:
    """To 10 bits of mantissa, ties away, as tensor cores take fp32 operands."""
    return exact(((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32))
