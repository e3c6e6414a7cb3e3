"""Rounding in exact rational arithmetic; it knows a float format by a few numbers only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch

NEAREST = ("none", "rint", "round")


@dataclass(frozen=True)
class Format:
    """Mantissa bits, the least exponent of a normal number, the largest finite value."""

    mantissa: int
    least: int
    largest: Fraction
    infinity: bool = True


FORMATS = {
    torch.bfloat16: Format(7, -126, Fraction(2) ** 127 * Fraction(255, 128)),
    torch.float16: Format(10, -14, Fraction(65504)),
    torch.float32: Format(23, -126, Fraction(2) ** 127 * (2 - Fraction(1, 2**23))),
    torch.float8_e4m3fn: Format(3, -6, Fraction(448), infinity=False),
    torch.float8_e5m2: Format(2, -14, Fraction(57344)),
}
INTEGERS = (
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def rounded(steps: Fraction, mode: str) -> int:
    """A number of steps of the target's grid as a whole number."""
    down = math.floor(abs(steps))
    part = abs(steps) - down
    up = {
        "none": part > Fraction(1, 2) or (part == Fraction(1, 2) and down % 2 == 1),
        "round": part >= Fraction(1, 2),
        "trunc": False,
        "floor": part > 0 and steps < 0,
        "ceil": part > 0 and steps > 0,
        "odd": part > 0 and down % 2 == 0,
    }["none" if mode == "rint" else mode]
    return int(math.copysign(1, steps)) * (down + up)


def exponent(a: Fraction) -> int:
    """floor(log2(a))."""
    e = a.numerator.bit_length() - a.denominator.bit_length()
    return e if Fraction(2) ** e <= a else e - 1


def to_float(x: float | int, f: Format, mode: str) -> float:
    """What ``x`` becomes in the format ``f``."""
    if math.isnan(x):
        return math.nan
    if math.isinf(x):
        return x if f.infinity else math.copysign(float(f.largest), x)
    exact = Fraction(x)
    if exact == 0:
        return float(x)
    step = Fraction(2) ** (max(exponent(abs(exact)), f.least) - f.mantissa)
    y = rounded(exact / step, mode) * step
    if abs(y) > f.largest:
        outward = mode in NEAREST or mode == ("ceil" if exact > 0 else "floor")
        return math.copysign(math.inf if outward and f.infinity else float(f.largest), x)
    return math.copysign(float(y), x)


def to_integer(x: float | int, to: torch.dtype, mode: str) -> int:
    """What ``x`` becomes in an integer type."""
    info = torch.iinfo(to)
    if math.isnan(x):
        return 0
    if math.isinf(x):
        return info.max if x > 0 else info.min
    return max(info.min, min(info.max, rounded(Fraction(x), mode)))


def convert(x: float | int, to: torch.dtype, mode: str) -> float | int:
    """What ``x`` becomes in any type but BOOL and FP8E8M0."""
    return to_float(x, FORMATS[to], mode) if to.is_floating_point else to_integer(x, to, mode)
