"""Tricks on raw memory: telling that it changed, that it was never written, that two tensors share it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import torch
from torch import Tensor

CHUNK = 1 << 17
"""Elements per step of a pass over a large tensor: its temporaries stay in the last-level cache."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Quiet NaNs with a payload, so that memory nobody wrote is told from a NaN that was computed.
_NAN_BITS = {
    torch.float64: 0x7FF8A5A5A5A5A5A5,
    torch.float32: 0x7FE5A5A5,
    torch.bfloat16: 0x7FE5,
    torch.float16: 0x7EA5,
    torch.float8_e4m3fn: 0x7F,
    torch.float8_e5m2: 0x7F,
    torch.float8_e4m3fnuz: 0x80,
    torch.float8_e5m2fnuz: 0x80,
    torch.float8_e8m0fnu: 0xFF,
}


def bits(tensor: Tensor) -> Tensor:
    """The tensor's memory as integers of the same width, flat. The tensor must be contiguous."""
    return tensor.reshape(-1).view(_BITS[tensor.dtype.itemsize])


def chunks(*tensors: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """``(offset, slices)`` over flat tensors of equal length, :data:`CHUNK` elements at a time."""
    for start in range(0, tensors[0].numel(), CHUNK):
        yield start, tuple(t[start : start + CHUNK] for t in tensors)


# --- poison


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, expected: Tensor | None = None) -> Tensor:
    """Fresh memory for a pure output that cannot pass for a result.

    Floats are a NaN with a payload. Integers hold ``0xA5...`` and booleans ``True``, except where that is
    what ``expected`` holds: there it is the complement, so no element is right by accident.
    """
    out = torch.empty(shape, dtype=dtype)
    if dtype.is_floating_point:
        bits(out).fill_(_NAN_BITS[dtype])
        return out
    pattern, other = _integer_patterns(dtype)
    words = bits(out).fill_(pattern)
    if expected is not None:
        words.masked_fill_(bits(expected.contiguous()) == pattern, other)
    return out


def never_written(actual: Tensor, expected: Tensor | None = None) -> Tensor:
    """Flat bool mask of the elements of a pure output that still hold :func:`poisoned`'s pattern.

    Where ``expected`` is itself not finite, a poisoned float is not told from a result and is left out.
    """
    parts = []
    flat_actual = actual.contiguous().reshape(-1)
    flat_expected = flat_actual if expected is None else expected.contiguous().reshape(-1)
    for _, (a, e) in chunks(flat_actual, flat_expected):
        if actual.dtype.is_floating_point:
            untouched = bits(a) == _NAN_BITS[actual.dtype]
            # float32: several fp8 dtypes have no isfinite
            parts.append(untouched if expected is None else untouched & e.float().isfinite())
        else:
            fill = poisoned((a.numel(),), actual.dtype, None if expected is None else e)
            parts.append(bits(a) == bits(fill))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)


def _integer_patterns(dtype: torch.dtype) -> tuple[int, int]:
    """The fill, and what replaces it where the fill is the expected value; both as :func:`bits` reads
    them."""
    if dtype is torch.bool:
        return 1, 0
    if dtype.itemsize == 1:
        return 0xA5, 0x5A
    fill = int.from_bytes(b"\xa5" * dtype.itemsize, "little") - (1 << 8 * dtype.itemsize)
    return fill, ~fill


# --- fingerprint

_WORDS = 1 << 18
_MASK = 2**64 - 1


@cache
def _weights() -> Tensor:
    generator = torch.Generator().manual_seed(0x5EED)
    return torch.randint(-(2**63), 2**63 - 1, (_WORDS,), generator=generator) | 1


def fingerprint(tensor: Tensor) -> int:
    """A 64-bit checksum of a contiguous tensor's bytes: deterministic, sensitive to position, at memory
    speed.

    The bytes are read as 64-bit words ``w[i]``; each block of 2^18 words gives ``sum(w[i] * odd[i]) mod
    2^64`` with fixed random odd weights, and the blocks are chained by an odd multiplier. Odd factors are
    invertible modulo 2^64, so a change within one word is always seen; of other changes about one in 2^64 is
    missed.
    """
    raw = tensor.reshape(-1).view(torch.uint8)
    aligned = raw.storage_offset() % 8 == 0
    weights, state = _weights(), raw.numel() & _MASK
    whole = raw.numel() // 8 * 8
    for start in range(0, whole, 8 * _WORDS):
        block = raw[start : min(start + 8 * _WORDS, whole)]
        words = (block if aligned else block.clone()).view(torch.int64)
        state = (state * 0x9E3779B97F4A7C15 + int((words * weights[: words.numel()]).sum())) & _MASK
    for byte in raw[whole:].tolist():
        state = (state * 0x9E3779B97F4A7C15 + byte) & _MASK
    return state


# --- aliasing


def overlap(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The names of two contiguous tensors that share memory, or ``None``."""
    spans = sorted(
        (t.data_ptr(), t.data_ptr() + t.numel() * t.dtype.itemsize, name)
        for name, t in tensors.items()
        if t.numel()
    )
    end, owner = 0, ""  # the span that reaches furthest so far
    for start, stop, name in spans:
        if start < end:
            return owner, name
        if stop > end:
            end, owner = stop, name
    return None
