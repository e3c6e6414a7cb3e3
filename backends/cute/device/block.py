"""What one CTA does with tiles in shared memory: reductions, products, copies.  All threads call together.

Tiles lie row-major with a pitch in elements.  Functions end without a barrier; the emitted code sets them.
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int16, Int32, Int64
from cutlass._mlir.dialects import llvm

THREADS = 256
STAMPED = 8192  # CTAs of a launch whose times are kept
EVENTS = 4  # start, after the wait, first data there, end
WARPS = THREADS // 32


def element(pointer: cute.Pointer, at: Any) -> cute.Tensor:
    """A tensor of the one element at ``at``: read it with [0], write it with [0] = value."""
    return cute.make_tensor(pointer + at, cute.make_layout(1))


@cute.jit
def stamp(stamps: cute.Pointer, cta: Int32, event: cutlass.Constexpr, thread: cutlass.Constexpr = 0):
    """Note the time, in ns of the GPU's clock, at which a thread of a CTA meets an event, in
    stamps[cta, event].
    """
    tid, _, _ = cute.arch.thread_idx()
    if (tid == thread) & (cta < STAMPED):
        now = llvm.inline_asm(Int64.mlir_type, [], "mov.u64 $0, %globaltimer;", "=l", has_side_effects=True)
        element(stamps, cta * EVENTS + event)[0] = Int64(now)


def load_run(pointer: cute.Pointer, registers: cute.Tensor, at: int, count: int) -> None:
    """``count`` neighbours of global memory, at a multiple of their size, into registers from ``at`` on."""
    _move_run(pointer, registers, at, count, True)


def store_run(pointer: cute.Pointer, registers: cute.Tensor, at: int, count: int) -> None:
    """As :func:`load_run`, the other way."""
    _move_run(pointer, registers, at, count, False)


def _move_run(pointer: cute.Pointer, registers: cute.Tensor, at: int, count: int, load: bool) -> None:
    size = pointer.dtype.width // 8
    step = min(count, 16 // size)  # of one instruction
    atom = cute.make_copy_atom(cute.nvgpu.CopyUniversalOp(), pointer.dtype, num_bits_per_copy=8 * size * step)
    for n in range(0, count, step):
        there = cute.make_tensor(aligned(pointer + n, size * step), cute.make_layout(step))
        here = cute.make_tensor(registers.iterator + at + n, cute.make_layout(step))
        cute.copy(atom, *((there, here) if load else (here, there)))


def aligned(pointer: cute.Pointer, size: int) -> cute.Pointer:
    """The same address, known to be a multiple of ``size`` bytes; ``Pointer.align`` would round it up."""
    return cute.make_ptr(pointer.dtype, pointer.toint(), pointer.memspace, assumed_align=size)


def warp_sum(value: Any) -> Any:
    for distance in (16, 8, 4, 2, 1):
        value = value + cute.arch.shuffle_sync_bfly(value, distance)
    return value


def warp_max(value: Any) -> Any:
    for distance in (16, 8, 4, 2, 1):
        value = larger(value, cute.arch.shuffle_sync_bfly(value, distance))
    return value


def warp_min(value: Any) -> Any:
    for distance in (16, 8, 4, 2, 1):
        value = smaller(value, cute.arch.shuffle_sync_bfly(value, distance))
    return value


@cute.jit
def larger(a: Any, b: Any) -> Any:
    out = a
    if b > a:
        out = b
    return out


@cute.jit
def reciprocal(x: Any) -> Any:
    """1 / x, rounded once where both are normal numbers: a step of Newton's from the GPU's approximation, and
    that itself where the step is none (zero and infinity).
    """
    near = cute.arch.rcp_approx(x)
    error = cute.math.fma(-x, near, Float32(1.0))
    out = near
    if (error < Float32(1.0)) & (error > Float32(-1.0)):
        out = cute.math.fma(near, error, near)
    return out


@cute.jit
def smaller(a: Any, b: Any) -> Any:
    out = a
    if b < a:
        out = b
    return out


@cute.jit
def mma_fragments(
    a: cute.Pointer, a_pitch: cutlass.Constexpr, b: cute.Pointer, b_pitch: cutlass.Constexpr,
    b_trans: cutlass.Constexpr, sums: cute.Tensor,
    m: cutlass.Constexpr, n: cutlass.Constexpr, k: cutlass.Constexpr,
):  # fmt: skip
    """sums += a [m, k] @ b, bf16 in shared memory; b is [n, k] if ``b_trans``, else [k, n].

    ``sums`` are the thread's fragments: 4 values for each 16 x 8 piece, rows of pieces outermost; the warps
    take the pieces of a row in turn.  Rows are padded by 16 bytes, so that ldmatrix meets no bank conflict.
    """
    tid, _, _ = cute.arch.thread_idx()
    lane = cute.arch.lane_idx()
    warp = cute.arch.make_warp_uniform(tid // 32)
    mma = cute.make_mma_atom(cute.nvgpu.warp.MmaF16BF16Op(BFloat16, Float32, (16, 8, 16)))
    fa = cute.make_rmem_tensor(cute.make_layout(8), BFloat16)
    fb = cute.make_rmem_tensor(cute.make_layout(4), BFloat16)
    fa32 = cute.recast_tensor(fa, Int32)
    fb32 = cute.recast_tensor(fb, Int32)
    frag_a = cute.make_tensor(fa.iterator, cute.make_layout(((2, 2, 2), 1), stride=((1, 2, 4), 0)))
    frag_b = cute.make_tensor(fb.iterator, cute.make_layout(((2, 2), 1), stride=((1, 2), 0)))
    pieces = -(-(n // 8) // WARPS)
    for kk in cutlass.range_constexpr(k // 16):
        for row in cutlass.range_constexpr(m // 16):
            at = (row * 16 + lane % 16) * a_pitch + kk * 16 + lane // 16 * 8
            fa32[0], fa32[1], fa32[2], fa32[3] = load_matrix_4(a + at)
            for piece in cutlass.range_constexpr(pieces):
                column = warp + piece * WARPS
                if column < n // 8:
                    if cutlass.const_expr(b_trans):
                        where = (column * 8 + lane % 8) * b_pitch + kk * 16 + lane // 8 % 2 * 8
                        fb32[0], fb32[1] = load_matrix_2(b + where)
                    else:
                        where = (kk * 16 + lane % 16) * b_pitch + column * 8
                        fb32[0], fb32[1] = load_matrix_2_trans(b + where)
                    part = cute.make_tensor(
                        sums.iterator + (row * pieces + piece) * 4, cute.make_layout(((2, 2), 1, 1))
                    )
                    cute.gemm(mma, part, frag_a, frag_b, part)


def load_matrix_4(pointer: cute.Pointer) -> Any:
    """Four 8 x 8 matrices of 16-bit elements from shared memory; lane i gives row i % 8 of matrix i // 8."""
    return cute.arch.inline_ptx(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{$w0}, {$w1}, {$w2}, {$w3}}, [{$r0}];",
        write_only_types=[Int32] * 4,
        read_only_args=[Int32(pointer.toint())],
    )


def load_matrix_4_trans(pointer: cute.Pointer) -> Any:
    return cute.arch.inline_ptx(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{$w0}, {$w1}, {$w2}, {$w3}}, [{$r0}];",
        write_only_types=[Int32] * 4,
        read_only_args=[Int32(pointer.toint())],
    )


def load_matrix_2(pointer: cute.Pointer) -> Any:
    return cute.arch.inline_ptx(
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{$w0}, {$w1}}, [{$r0}];",
        write_only_types=[Int32] * 2,
        read_only_args=[Int32(pointer.toint())],
    )


def load_matrix_2_trans(pointer: cute.Pointer) -> Any:
    return cute.arch.inline_ptx(
        "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {{$w0}, {$w1}}, [{$r0}];",
        write_only_types=[Int32] * 2,
        read_only_args=[Int32(pointer.toint())],
    )


def quad_sum(value: Any) -> Any:
    """Over the four threads that hold a row of a fragment."""
    for distance in (1, 2):
        value = value + cute.arch.shuffle_sync_bfly(value, distance)
    return value


def quad_max(value: Any) -> Any:
    for distance in (1, 2):
        value = larger(value, cute.arch.shuffle_sync_bfly(value, distance))
    return value


def quad_min(value: Any) -> Any:
    for distance in (1, 2):
        value = smaller(value, cute.arch.shuffle_sync_bfly(value, distance))
    return value


@cute.jit
def scalar_product(
    a: cute.Pointer, a_pitch: cutlass.Constexpr, b: cute.Pointer, b_pitch: cutlass.Constexpr,
    b_trans: cutlass.Constexpr, c: cute.Pointer, c_pitch: cutlass.Constexpr,
    m: cutlass.Constexpr, n: cutlass.Constexpr, k: cutlass.Constexpr, accumulate: cutlass.Constexpr,
    wide: cutlass.Constexpr,
):  # fmt: skip
    """As a product of fragments, for what no tensor core takes exactly: fp32 as fp32, integers as int32."""
    tid, _, _ = cute.arch.thread_idx()
    for at in cutlass.range(tid, m * n, THREADS, unroll=1):
        row = at // n
        col = at % n
        total = wide(0)
        if cutlass.const_expr(accumulate):
            total = element(c, row * c_pitch + col)[0]
        for kk in cutlass.range(k, unroll=4):
            where = kk * b_pitch + col
            if cutlass.const_expr(b_trans):
                where = col * b_pitch + kk
            total = total + wide(element(a, row * a_pitch + kk)[0]) * wide(element(b, where)[0])
        element(c, row * c_pitch + col)[0] = total


@cute.jit
def copy_rows(
    source: cute.Pointer, source_pitch: Any, to: cute.Pointer, to_pitch: cutlass.Constexpr,
    rows: Any, tile_rows: cutlass.Constexpr, columns: cutlass.Constexpr, vector: cutlass.Constexpr,
    warps: cutlass.Constexpr = WARPS,
):  # fmt: skip
    """Begin to copy ``rows`` rows of global memory into a tile in 16-byte pieces; the others become zero.

    The ``warps`` of the block do it together, or one warp alone.  The caller commits the group and waits for
    it.
    """
    tid, _, _ = cute.arch.thread_idx()
    if cutlass.const_expr(warps == 1):
        tid = cute.arch.lane_idx()
    threads = 32 * warps
    pieces = columns // vector
    if cutlass.const_expr(threads % pieces == 0):  # a thread copies the same piece of every ``per``-th row
        per = threads // pieces
        own = tid // pieces
        at = tid % pieces * vector
        here = source + (Int64(own) * source_pitch + at)
        there = to + (own * to_pitch + at)
        for n in cutlass.range_constexpr(-(-tile_rows // per)):
            live = Int32(0)
            if own + n * per < rows:
                live = Int32(16)
            # A constant condition is none at all: the DSL would emit the second one as a branch.
            if cutlass.const_expr((n + 1) * per <= tile_rows):  # noqa: SIM114
                copy_16(here + n * per * source_pitch, there + n * per * to_pitch, live)
            elif own + n * per < tile_rows:
                copy_16(here + n * per * source_pitch, there + n * per * to_pitch, live)
    else:
        for n in cutlass.range_constexpr(-(-tile_rows * pieces // threads)):
            piece = tid + n * threads
            if piece < tile_rows * pieces:
                row = piece // pieces
                at = piece % pieces * vector
                live = Int32(0)
                if row < rows:
                    live = Int32(16)
                copy_16(source + (Int64(row) * source_pitch + at), to + (row * to_pitch + at), live)


@cute.jit
def copy_rows_now(
    source: cute.Pointer, source_pitch: Any, to: cute.Pointer, to_pitch: cutlass.Constexpr,
    rows: Any, tile_rows: cutlass.Constexpr, columns: cutlass.Constexpr, vector: cutlass.Constexpr,
):  # fmt: skip
    """As :func:`copy_rows`, through registers: it leaves asynchronous copies alone that are under way."""
    held = load_rows(source, source_pitch, rows, tile_rows, columns, vector)
    put_rows(held, to, to_pitch, tile_rows, columns, vector)


@cute.jit
def load_rows(
    source: cute.Pointer, source_pitch: Any, rows: Any, tile_rows: cutlass.Constexpr,
    columns: cutlass.Constexpr, vector: cutlass.Constexpr,
):  # fmt: skip
    """The pieces of a tile that this thread copies, in registers."""
    tid, _, _ = cute.arch.thread_idx()
    pieces = columns // vector
    count = -(-tile_rows * pieces // THREADS)
    held = cute.make_rmem_tensor(cute.make_layout(count * vector), source.dtype)
    held.fill(source.dtype(0))
    for n in cutlass.range_constexpr(count):
        piece = tid + n * THREADS
        if piece // pieces < min(rows, Int32(tile_rows)):
            load_run(
                source + (Int64(piece // pieces) * source_pitch + piece % pieces * vector),
                held, n * vector, vector,
            )  # fmt: skip
    return held


@cute.jit
def put_rows(
    held: cute.Tensor, to: cute.Pointer, to_pitch: cutlass.Constexpr, tile_rows: cutlass.Constexpr,
    columns: cutlass.Constexpr, vector: cutlass.Constexpr,
):  # fmt: skip
    """Write the pieces of :func:`load_rows` to shared memory."""
    tid, _, _ = cute.arch.thread_idx()
    pieces = columns // vector
    for n in cutlass.range_constexpr(-(-tile_rows * pieces // THREADS)):
        piece = tid + n * THREADS
        if piece < tile_rows * pieces:
            there = to + (piece // pieces * to_pitch + piece % pieces * vector)
            store_run(there, held, n * vector, vector)


def copy_16(source: cute.Pointer, to: cute.Pointer, live: Int32) -> None:
    """Begin to copy ``live`` bytes, 16 or none, from global to shared memory; the rest of 16 becomes zero."""
    cute.arch.inline_ptx(
        "cp.async.cg.shared.global [{$r0}], [{$r1}], 16, {$r2};",
        write_only_types=[],
        read_only_args=[Int32(to.toint()), Int64(source.toint()), live],
    )


@cute.jit
def better(a: Any, at: Any, b: Any, where: Any) -> Any:
    """The larger of two values with its place; of equal ones the first place."""
    if b > a:
        a = b
        at = where
    elif (b == a) & (where < at):
        at = where
    return a, at


def warp_argmax(value: Any, at: Any) -> Any:
    for distance in (16, 8, 4, 2, 1):
        other = cute.arch.shuffle_sync_bfly(value, distance)
        place = cute.arch.shuffle_sync_bfly(at, distance)
        value, at = better(value, at, other, place)
    return value, at


@cute.jit
def quotient(a: Any, b: Any) -> Any:
    """a / b of integers, towards zero; // goes down."""
    out = a // b
    if (out * b != a) & ((a < 0) != (b < 0)):
        out = out + 1
    return out


@cute.jit
def narrowed(value: Float32, to: cutlass.Constexpr, mode: cutlass.Constexpr):
    """``value`` as a 16-bit float, rounded as ``mode`` says: round (ties away from zero), floor, ceil, trunc,
    odd.  Zeros, infinities and NaN are what the plain conversion makes of them.

    The bits of a float are sign and magnitude: one more is the next value away from zero.
    """
    near = to(value)  # one of the two neighbours
    back = Float32(near)
    low = Int32(Int16(llvm.bitcast(Int16.mlir_type, near.ir_value())))
    size = larger(value, -value)
    inexact = (back != value) & (value == value)
    if larger(back, -back) > size:
        low = low - 1
    bits = low
    if cutlass.const_expr(mode == "floor"):
        if value < Float32(0.0):
            bits = low + 1
    elif cutlass.const_expr(mode == "ceil"):
        if value > Float32(0.0):
            bits = low + 1
    elif cutlass.const_expr(mode == "odd"):
        bits = low | 1
    elif cutlass.const_expr(mode == "round"):
        below, above = from_bits(low, to), from_bits(low + 1, to)
        bits = Int32(Int16(llvm.bitcast(Int16.mlir_type, near.ir_value())))
        if size - larger(below, -below) == larger(above, -above) - size:
            bits = low + 1
    out = near
    if inexact:
        out = to(llvm.bitcast(to.mlir_type, Int16(bits).ir_value()))
    return out


def from_bits(bits: Any, to: Any) -> Any:
    """The fp32 value of the 16-bit float with these bits."""
    return Float32(to(llvm.bitcast(to.mlir_type, Int16(bits).ir_value())))


@cute.jit
def fill(pointer: cute.Pointer, first: Int64, last: Int64, value: Any):
    """Elements ``first`` to ``last`` of global memory, the end exclusive."""
    tid, _, _ = cute.arch.thread_idx()
    for i in cutlass.range(first + tid, last, Int64(THREADS), unroll=1):
        element(pointer, i)[0] = value
