"""Conversions in every mode of pl.cast against exact rational arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pypto_models.errors import InternalError
from pypto_models.ops.rounding import MODES, convert

from .exact import FORMATS, INTEGERS, Format, exponent, to_float, to_integer

HALVES = [f for f in FORMATS if f != torch.float32]


def check(xs: torch.Tensor, to: torch.dtype, mode: str) -> None:
    got, values = convert(xs, to, mode), xs.tolist()
    assert got.dtype == to
    if not to.is_floating_point:
        want = [to_integer(x, to, mode) for x in values]
        assert got.tolist() == want, wrong(values, got.tolist(), want)
        return
    floats = got.double().tolist()
    want_floats = [to_float(x, FORMATS[to], mode) for x in values]
    same = [
        (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
        for a, b in zip(floats, want_floats, strict=True)
    ]
    assert all(same), wrong(values, floats, want_floats)


def wrong(values: Sequence[float], got: Sequence[float], want: Sequence[float]) -> str:
    return "; ".join(f"{x!r}: {g!r}, not {w!r}" for x, g, w in zip(values, got, want, strict=True) if g != w)


def edges(f: Format) -> torch.Tensor:
    """Around values of the format: they, their midpoints, and the fp32 numbers next to those."""
    scale = [f.least - f.mantissa + k for k in range(4)]  # the smallest numbers, which lose bits one by one
    scale += [f.least - 1, f.least, f.least + 1, -1, 0, 1, 5, exponent(f.largest) - 1, exponent(f.largest)]
    grid = [
        Fraction(2) ** max(e, f.least - f.mantissa) * (1 + Fraction(k, 2 ** (f.mantissa + 1)))
        for e in scale
        for k in (0, 1, 2, 3, 2**f.mantissa - 1, 2**f.mantissa, 2 ** (f.mantissa + 1) - 1)
    ]
    ulp = Fraction(2) ** (exponent(f.largest) - f.mantissa)
    grid += [f.largest, f.largest + ulp / 2, f.largest + ulp, 2 * f.largest, Fraction(0)]
    at = torch.tensor([float(min(x, FORMATS[torch.float32].largest)) for x in grid], dtype=torch.float32)
    inf = torch.tensor(math.inf)
    near = torch.cat([at, at.nextafter(inf), at.nextafter(-inf).clamp(min=0.0), inf[None]])
    return torch.cat([near, -near, torch.tensor([math.nan])])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("to", HALVES, ids=str)
def test_every_kind_of_value_to_a_narrow_float(to: torch.dtype, mode: str) -> None:
    check(edges(FORMATS[to]), to, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("to", INTEGERS, ids=str)
def test_floats_to_integers(to: torch.dtype, mode: str) -> None:
    info = torch.iinfo(to)
    around = [0.0, -0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 3.5, 1e-30, 8388607.5, 2.0**24, 1e30, math.inf]
    around += [float(info.max), float(info.max) / 2, float(info.min), info.max - 0.5, info.max + 0.5]
    x = torch.tensor(around, dtype=torch.float32)
    x = torch.cat([x, x.nextafter(torch.tensor(math.inf)), x.nextafter(torch.tensor(0.0))])
    check(torch.cat([x, -x, torch.tensor([math.nan])]), to, mode)


def bounds(*dtypes: torch.dtype) -> list[int]:
    """Both limits of the types and powers of two, with their neighbours."""
    limits = [v for d in dtypes for v in (torch.iinfo(d).min, torch.iinfo(d).max)]
    near = [2**k + d for k in (0, 8, 11, 24, 25, 53, 54, 62) for d in (-1, 0, 1, 2**k // 256)]
    powers = [s * p for p in near for s in (1, -1)]
    info = torch.iinfo(dtypes[0])
    wanted = [v + d for v in limits for d in (-1, 0, 1)] + powers
    return sorted({v for v in wanted if info.min <= v <= info.max})


@pytest.mark.parametrize("to", INTEGERS, ids=str)
@pytest.mark.parametrize("source", INTEGERS, ids=str)
def test_integers_to_integers_saturate(source: torch.dtype, to: torch.dtype) -> None:
    check(torch.tensor(bounds(source, to), dtype=source), to, "round")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("to", FORMATS, ids=str)
def test_integers_to_floats_round_once(to: torch.dtype, mode: str) -> None:
    for source in INTEGERS:
        check(torch.tensor(bounds(source), dtype=source), to, mode)


def test_rounding_an_integer_twice_would_be_noticed() -> None:
    x = 2**24 + 2**16 + 1  # fp32 drops the 1, which leaves a tie in bf16
    twice = torch.tensor([x]).float().bfloat16()
    assert convert(torch.tensor([x]), torch.bfloat16, "rint").item() == 2**24 + 2**17 != twice.item()


@settings(max_examples=60)
@given(st.lists(st.floats(width=32), min_size=32, max_size=32), st.sampled_from(MODES))
def test_random_floats(values: list[float], mode: str) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    for to in (*HALVES, torch.int8, torch.int32, torch.int64, torch.uint8):
        check(x, to, mode)


@settings(max_examples=40)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=16, max_size=16), st.sampled_from(MODES))
def test_random_integers(values: list[int], mode: str) -> None:
    for to in FORMATS:
        check(torch.tensor(values), to, mode)


@pytest.mark.parametrize("mode", MODES)
def test_half_types_to_half_types(mode: str) -> None:
    bits = torch.arange(-(2**15), 2**15, 97).to(torch.int16)
    for source in (torch.bfloat16, torch.float16):
        x = bits.view(source)
        for to in HALVES:
            if to != source:
                check(x, to, mode)


@pytest.mark.parametrize("mode", MODES)
def test_widening_is_exact(mode: str) -> None:
    codes = torch.arange(256).to(torch.uint8)
    for source in (torch.float8_e4m3fn, torch.float8_e5m2):
        f = FORMATS[source]
        bias, top = 1 - f.least, 2 ** (7 - f.mantissa) - 1
        for code, got in enumerate(convert(codes.view(source), torch.float32, mode).tolist()):
            fraction, power = code % 2**f.mantissa, code // 2**f.mantissa % (top + 1)
            whole = fraction + (2**f.mantissa if power else 0)
            want = math.ldexp(whole, max(power, 1) - bias - f.mantissa)
            if power == top and f.infinity:
                want = math.inf if fraction == 0 else math.nan
            elif power == top and fraction == 2**f.mantissa - 1:
                want = math.nan
            assert got == math.copysign(want, 128 - code - 1) or (math.isnan(got) and math.isnan(want)), code


@pytest.mark.parametrize(
    ("mode", "want"),
    [
        ("rint", [1.0, 1.0, 2.0, 4.0, 4.0]),
        ("round", [1.0, 1.0, 2.0, 4.0, 4.0]),
        ("floor", [1.0, 1.0, 1.0, 2.0, 2.0]),
        ("trunc", [1.0, 1.0, 1.0, 2.0, 2.0]),
        ("ceil", [1.0, 2.0, 2.0, 4.0, 4.0]),
        ("odd", [1.0, 1.0, 1.0, 4.0, 4.0]),  # the exponent codes of 1, 2, 4 are 127, 128, 129
    ],
)
def test_powers_of_two(mode: str, want: list[float]) -> None:
    x = torch.tensor([1.0, 1.25, 1.5, 3.0, 3.5])
    assert convert(x, torch.float8_e8m0fnu, mode).float().tolist() == want
    ends = torch.tensor([0.0, 1e-45, 3.4e38, math.inf, -1.0, math.nan])
    got = convert(ends, torch.float8_e8m0fnu, mode).float()
    assert got[:4].tolist() == [2.0**-127, 2.0**-127, 2.0**127, 2.0**127]
    assert got[4:].isnan().all()
    every = torch.arange(255).to(torch.uint8).view(torch.float8_e8m0fnu)
    assert every.float().tolist() == [2.0 ** (k - 127) for k in range(255)]
    back = convert(every.float(), torch.float8_e8m0fnu, mode)
    assert torch.equal(back.view(torch.uint8), every.view(torch.uint8))


@pytest.mark.parametrize("mode", MODES)
def test_everything_but_zero_is_true(mode: str) -> None:
    x = torch.tensor([0.0, -0.0, 0.25, -3.0, math.inf, math.nan])
    assert convert(x, torch.bool, mode).tolist() == [False, False, True, True, True, True]
    assert convert(torch.tensor([True, False]), torch.bfloat16, mode).tolist() == [1.0, 0.0]
    assert convert(torch.tensor([True, False]), torch.uint64, mode).tolist() == [1, 0]


def test_the_modes_differ() -> None:
    """So the tests above tell them apart; only none and rint are the same."""
    even, odd, step = 1.0, 1 + 2.0**-7, 2.0**-7
    x = torch.tensor([even + step / 2, odd + step / 4, odd + 3 * step / 4, -odd - step / 4])
    got = {m: tuple(convert(x, torch.bfloat16, m).tolist()) for m in MODES}
    assert got["none"] == got["rint"]
    assert len(set(got.values())) == len(MODES) - 1


def test_an_unknown_mode() -> None:
    with pytest.raises(InternalError, match="unknown rounding mode nearest"):
        convert(torch.zeros(1), torch.bfloat16, "nearest")
