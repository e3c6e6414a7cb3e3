"""Conversions between element types in every rounding mode of ``pl.cast``.

Modes (pypto's numbers): none 0, rint 1 (nearest, ties to even; none means the same), round 2 (nearest, ties
away from zero, the default), floor 3, ceil 4, trunc 5, odd 6 (inexact results get an odd last bit).

Out of range, integers saturate and NaN becomes 0; floats follow IEEE 754, and the two types without an
infinity saturate too.  To BOOL, whatever is not 0 is true.  FP8E8M0 holds powers of two: a tie goes up, what
is too small (0 too) becomes 2**-127, and negative numbers become NaN.
"""

from __future__ import annotations

import torch

from ..errors import InternalError

MODES = ("none", "rint", "round", "floor", "ceil", "trunc", "odd")

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
_SCALE = torch.float8_e8m0fnu


def convert(x: torch.Tensor, to: torch.dtype, mode: str = "round") -> torch.Tensor:
    """``x`` as ``to``, rounded as ``mode`` says; widening conversions are exact in every mode."""
    if mode not in MODES:
        raise InternalError(f"unknown rounding mode {mode}")
    if x.dtype == to:
        return x
    if to == torch.bool:
        return x != 0
    if not to.is_floating_point:
        return _float_to_integer(x, to, mode) if x.dtype.is_floating_point else _saturate(x, to)
    if not x.dtype.is_floating_point:
        x = _exact(x)
    if to == _SCALE:
        return _to_power_of_two(x, mode)
    # torch rounds fp32 once, ties to even; it takes fp64 to a half type in two steps, which is once too many.
    if x.dtype.itemsize <= 4 and (to == torch.float32 or mode in ("none", "rint")):
        return x.to(to)
    return _narrow(x if x.dtype == torch.float64 else x.float(), to, mode)


def _round_to_whole(x: torch.Tensor, mode: str) -> torch.Tensor:
    """Doubles without a fraction."""
    wide = x.double()
    if mode in ("none", "rint"):
        return torch.round(wide)
    whole = torch.trunc(wide)
    if mode == "round":
        return torch.where((wide - whole).abs() >= 0.5, whole + torch.sign(wide), whole)
    if mode == "odd":
        return torch.where((whole != wide) & (whole % 2 == 0), whole + torch.sign(wide), whole)
    return {"floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc}[mode](wide)


def _float_to_integer(x: torch.Tensor, to: torch.dtype, mode: str) -> torch.Tensor:
    y, info = _round_to_whole(x, mode), torch.iinfo(to)
    low, above = float(info.min), float(info.max + 1)  # powers of two or 0, so exact; info.max may not be
    inside = torch.where((y >= low) & (y < above), y, 0.0)  # False for NaN
    if to == torch.uint64:  # its upper half wraps through int64
        inside = torch.where(inside >= 2.0**63, inside - 2.0**64, inside)
    n = inside.to(torch.int64)
    n = torch.where(y >= above, info.max if to != torch.uint64 else -1, n)
    return torch.where(y < low, info.min, n).to(to)


def _saturate(x: torch.Tensor, to: torch.dtype) -> torch.Tensor:
    if x.dtype == torch.bool:
        return x.to(to)
    info = torch.iinfo(to)
    low, high = max(info.min, -(2**63)), min(info.max, 2**63 - 1)
    n = x.to(torch.int64)
    if x.dtype == torch.uint64:  # its upper half is negative as int64
        return torch.where(n < 0, high, n.clamp(low, high)).to(to)
    return n.clamp(low, high).to(to)


def _exact(x: torch.Tensor) -> torch.Tensor:
    """Integers as floats that round, in every mode, as the integers do: exact ones up to 2**53."""
    if x.dtype == torch.bool or x.dtype.itemsize <= 2:
        return x.float()
    if x.dtype == torch.int32:
        return x.double()
    n = x.to(torch.int64)  # the upper half of uint64 wraps to negative numbers
    # Above 2**53 no target tells the numbers between two multiples of 2**12 apart: one stands for all.
    wide = (n >> 12 << 12) | torch.where((n & 0xFFF) != 0, 0x800, 0)
    exact = n if x.dtype != torch.uint64 else torch.where(n < 0, 2**62, n)
    return torch.where((exact >= -(2**53)) & (exact <= 2**53), n.double(), _unwrapped(wide, x.dtype))


def _unwrapped(n: torch.Tensor, source: torch.dtype) -> torch.Tensor:
    return n.double() if source != torch.uint64 else torch.where(n < 0, n.double() + 2.0**64, n.double())


def _to_power_of_two(x: torch.Tensor, mode: str) -> torch.Tensor:
    x = x.double()
    mantissa, exponent = torch.frexp(x)
    code, part = exponent + 126, mantissa * 2  # x = part * 2**(code - 127), part in [1, 2)
    if mode in ("floor", "trunc"):
        up = torch.zeros_like(part, dtype=torch.bool)
    elif mode == "ceil":
        up = part > 1
    elif mode == "odd":
        up = (part > 1) & (code % 2 == 0)
    else:
        up = part >= 1.5
    code = torch.where(torch.isinf(x), 254, torch.where(x == 0, 0, code + up).clamp(0, 254))
    return torch.where((x < 0) | x.isnan(), 255, code).to(torch.uint8).view(_SCALE)


def _narrow(x: torch.Tensor, to: torch.dtype, mode: str) -> torch.Tensor:
    """Of the representable neighbours of ``x``, below and above in magnitude, the one of ``mode``."""
    near = x.to(to)  # one of the two, however it was rounded
    back = near.to(x.dtype)
    bits = near.view(_BITS[to.itemsize])
    # The bits of a float are sign and magnitude: one more is the next value away from zero.
    low_bits = torch.where(back.abs() > x.abs(), bits - 1, bits)
    high_bits = low_bits + 1
    low, high = (b.view(to).to(x.dtype) for b in (low_bits, high_bits))
    odd = (low_bits & 1) == 1
    if mode == "trunc":
        up = torch.zeros_like(odd)
    elif mode == "floor":
        up = x < 0
    elif mode == "ceil":
        up = x > 0
    elif mode == "odd":
        up = ~odd
    else:
        # Past the largest finite value the next step has the same width: IEEE 754's threshold of overflow.
        step = torch.where(torch.isfinite(high), high - low, low - (low_bits - 1).view(to).to(x.dtype)).abs()
        twice = (x - low).abs() * 2
        up = twice >= step if mode == "round" else (twice > step) | ((twice == step) & odd)
    up &= (low != x) & ~high.isnan()  # no infinity: stay at the largest value
    chosen = torch.where(up, high_bits, low_bits)
    # Zeros keep their sign; infinities and NaN are what the plain conversion makes of them.
    return torch.where(torch.isfinite(x) & (x != 0), chosen, bits).view(to)
