"""Tiles in a kernel: values whose extents are powers of two, of which the first elements count.

Moving elements inside of a tile is a gather over its flat positions, whatever the shapes are: Triton has no
slices of values.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


# -------------------------------------------------------------------------------------------------- scalars
@triton.jit
def floordiv(a, b):
    """a // b, rounded down: Triton's own division goes towards zero."""
    q = a // b
    return tl.where((q * b != a) & ((a < 0) != (b < 0)), q - 1, q)


@triton.jit
def floormod(a, b):
    """a % b with the sign of b."""
    return a - floordiv(a, b) * b


# ------------------------------------------------------------------------------------------------- movement
@triton.jit
def take(x, at):
    """The elements of ``x`` at the flat positions ``at``, in the shape of ``at``."""
    if x.numel == 1:
        return tl.broadcast_to(tl.reshape(x, (1,) * len(at.shape)), at.shape)
    return tl.reshape(tl.gather(tl.reshape(x, (x.numel,)), tl.reshape(at, (at.numel,)), 0), at.shape)


@triton.jit
def pick(x, at):
    """The element of ``x`` at the flat position ``at``, as a scalar."""
    return tl.max(take(x, tl.arange(0, 1) + at), 0)


# ------------------------------------------------------------------------------------------------- products
@triton.jit
def exact_product(a, b):
    """a [M, K] @ b [K, N] of integers, in int32, for types that no matrix unit takes."""
    k_of_a = tl.arange(0, a.shape[1])[None, :]
    k_of_b = tl.arange(0, b.shape[0])[:, None]
    total = tl.zeros((a.shape[0], b.shape[1]), tl.int32)
    for k in tl.range(0, a.shape[1]):
        column = tl.sum(tl.where(k_of_a == k, a.to(tl.int32), 0), 1)
        row = tl.sum(tl.where(k_of_b == k, b.to(tl.int32), 0), 0)
        total += column[:, None] * row[None, :]
    return total


# ------------------------------------------------------------------------------------------------- rounding
@triton.jit
def to_even(x):
    """The nearest whole number, ties to even."""
    low = tl.floor(x)
    part = x - low
    odd = low != 2 * tl.floor(low * 0.5)
    return tl.where((part > 0.5) | ((part == 0.5) & odd), low + 1, low)


@triton.jit
def truncated(x):
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def away(x):
    """The nearest whole number, ties away from zero."""
    whole = truncated(x)
    return tl.where(tl.abs(x - whole) >= 0.5, whole + tl.where(x < 0, -1.0, 1.0), whole)


@triton.jit
def to_odd(x):
    """Towards zero, but to an odd number where that is not exact."""
    whole = truncated(x)
    even = whole == 2 * tl.floor(whole * 0.5)
    return tl.where((whole != x) & even, whole + tl.where(x < 0, -1.0, 1.0), whole)


@triton.jit
def saturated(x, low: tl.constexpr, high: tl.constexpr, to: tl.constexpr):
    """Whole fp32 numbers as integers; those beyond an end are at it, and NaN is 0."""
    inside = (x >= low) & (x < high + 1)
    n = tl.where(inside, x, 0.0).to(tl.int64)
    n = tl.where(x >= high + 1, high, n)  # high itself may be none of fp32
    return tl.where(x < low, low, n).to(to)


@triton.jit
def narrowed(x, to: tl.constexpr, mode: tl.constexpr):
    """fp32 as bf16 or fp16 in a rounding mode other than to nearest even.

    The bits of a float are sign and magnitude: one more is the next value away from zero.
    """
    near = x.to(to)
    back = near.to(tl.float32)
    bits = near.to(tl.int16, bitcast=True)
    low = tl.where(tl.abs(back) > tl.abs(x), bits - 1, bits).to(tl.int16)
    high = (low + 1).to(tl.int16)
    chosen = low
    if mode == "floor":
        chosen = tl.where(x < 0, high, low)
    elif mode == "ceil":
        chosen = tl.where(x > 0, high, low)
    elif mode == "odd":
        chosen = (low | 1).to(tl.int16)
    elif mode == "round":  # the plain conversion is right but for ties
        below = tl.abs(low.to(to, bitcast=True).to(tl.float32))
        above = tl.abs(high.to(to, bitcast=True).to(tl.float32))
        chosen = tl.where(tl.abs(x) - below == above - tl.abs(x), high, bits)
    inexact = (back != x) & (x == x)
    return tl.where(inexact, chosen, bits).to(tl.int16).to(to, bitcast=True)


# ----------------------------------------------------------------------------------------------- reductions
@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


# --------------------------------------------------------------------------------------------------- order
@triton.jit
def trigger():
    """Lets the next kernel start, once all blocks of this one have: its own wait is for this one's end."""
    if not INTERPRETED:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait():
    """Waits for the end of the kernels before, and of what they wrote."""
    if not INTERPRETED:
        tl.extra.cuda.gdc_wait()


@triton.jit
def prefetch(rows, exists, count: tl.constexpr):
    """Asks for the first ``count`` elements of rows of two-byte elements, [N, 1] pointers, to be in L2."""
    if not INTERPRETED:
        lines = rows + tl.arange(0, count // 64)[None, :] * 64  # of 128 bytes
        wanted = tl.broadcast_to(exists, lines.shape).to(tl.int32)
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
            "=r,l,r",
            [lines.to(tl.int64), wanted],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


STAMPED = tl.constexpr(8192)  # as in gpu/timing.py
EVENTS = tl.constexpr(4)


@triton.jit
def stamp(stamps, launch: tl.constexpr, event: tl.constexpr):
    """Notes the time of an event of this block, in a timing build (gpu/timing.py)."""
    block = tl.program_id(0)
    tl.debug_barrier()
    if block < STAMPED:
        tl.store(stamps + (launch * STAMPED + block) * EVENTS + event, tl.extra.cuda.globaltimer())
