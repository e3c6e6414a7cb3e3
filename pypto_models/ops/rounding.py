"""Conversions between element types in every rounding mode of ``pl.cast``.

Modes (pypto's numbers): none 0, rint 1 (nearest, ties to even), round 2 (nearest, ties away from zero, the
default), floor 3, ceil 4, trunc 5, odd 6 (inexact results get an odd last bit).  Values out of range saturate
for integers and follow IEEE 754 for floats.
"""

from __future__ import annotations

import torch

from ..errors import InternalError

MODES = ("none", "rint", "round", "floor", "ceil", "trunc", "odd")

_MANTISSA = {torch.bfloat16: 7, torch.float16: 10, torch.float8_e4m3fn: 3, torch.float8_e5m2: 2}


def convert(x: torch.Tensor, to: torch.dtype, mode: str = "round") -> torch.Tensor:
    """``x`` as ``to``, rounded as ``mode`` says; widening conversions are exact in every mode."""
    if x.dtype == to:
        return x
    if not to.is_floating_point:
        return _to_integer(x, to, mode) if x.dtype.is_floating_point else x.to(to)
    if not x.dtype.is_floating_point:
        return x.to(to)
    if to in (torch.float32, torch.float64) or mode in ("none", "rint"):
        return x.to(to)
    if to not in _MANTISSA:
        raise InternalError(f"no rounding rule for {to}")
    return _narrow(x.float(), to, mode)


def _to_integer(x: torch.Tensor, to: torch.dtype, mode: str) -> torch.Tensor:
    wide = x.double()
    if mode in ("none", "rint"):
        y = torch.round(wide)
    elif mode == "round":
        whole = torch.trunc(wide)
        y = whole + torch.where((wide - whole).abs() >= 0.5, torch.sign(wide), torch.zeros_like(wide))
    elif mode == "odd":
        whole = torch.trunc(wide)
        y = torch.where((whole != wide) & (whole % 2 == 0), whole + torch.sign(wide), whole)
    else:
        y = {"floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc}[mode](wide)
    if to == torch.bool:
        return y != 0
    info = torch.iinfo(to)
    inside = y.clamp(float(info.min), float(info.max)).nan_to_num(0.0)
    if to == torch.int64:  # 2**63 - 1 is not a double: clamp the top in integers
        return torch.where(y >= 2.0**63, torch.full_like(y, 0).to(to) + info.max, inside.clamp(max=2.0**62 * 1.99).to(to))
    return inside.to(to)


def _narrow(x: torch.Tensor, to: torch.dtype, mode: str) -> torch.Tensor:
    """fp32 to a narrower float: step down to the representable value towards zero, then up if the mode says so."""
    near = x.to(to)
    back = near.float()
    finite = torch.isfinite(x)
    # `low` is the representable neighbour towards zero, `high` the next one away from zero
    bits = near.view(torch.int16 if to.itemsize == 2 else torch.int8)
    over = back.abs() > x.abs()
    low_bits = torch.where(over, bits - 1, bits)
    low = low_bits.view(to).float()
    exact = low == x
    high_bits = low_bits + 1
    high = high_bits.view(to).float()
    if mode == "trunc":
        up = torch.zeros_like(over)
    elif mode == "floor":
        up = x < 0
    elif mode == "ceil":
        up = x > 0
    elif mode == "odd":
        up = (low_bits & 1) == 0
    elif mode == "round":
        # A value at or past the midpoint goes away from zero; past the largest finite value the next step
        # has the same width, so that the IEEE overflow threshold holds
        step = torch.where(torch.isfinite(high), high - low, low - (low_bits - 1).view(to).float())
        up = (x - low).abs() * 2 >= step.abs()
    else:
        raise InternalError(f"unknown rounding mode {mode}")
    bits_out = torch.where(up & ~exact, high_bits, low_bits).view(to)
    # zero needs its sign, infinities and NaN need the plain conversion
    return torch.where(finite & (x != 0), bits_out.float(), back).to(to)
