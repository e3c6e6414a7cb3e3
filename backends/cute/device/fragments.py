"""What one warp does with tiles of its own, in the fragments of ``mma.m16n8k16``, and how they are joined.

A tile [rows, columns] is held by rows of 16 x 8 pieces, 4 values of each piece in a thread.  A block's tile
deals the pieces of a row to its warps in turn; so a piece lies in the same lanes of whichever warp has it.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32

from .block import WARPS, element, larger, load_matrix_4, load_matrix_4_trans, load_run, store_run


@cute.jit
def operand(a: cute.Pointer, pitch: cutlass.Constexpr, m: cutlass.Constexpr, k: cutlass.Constexpr):
    """The bf16 tile [m, k] in shared memory as the left operand of products: 8 values for each 16 x 16."""
    held = cute.make_rmem_tensor(cute.make_layout(m * k // 32), BFloat16)
    for kk in cutlass.range_constexpr(k // 16):
        for row in cutlass.range_constexpr(m // 16):
            load_operand(a + (row * 16 * pitch + kk * 16), pitch, held, row * (k // 16) + kk)
    return held


@cute.jit
def load_operand(a: cute.Pointer, pitch: cutlass.Constexpr, held: cute.Tensor, n: cutlass.Constexpr):
    """The 16 x 16 elements at ``a`` as the ``n``-th of an operand."""
    lane = cute.arch.lane_idx()
    held32 = cute.recast_tensor(held, Int32)
    parts = load_matrix_4(a + (lane % 16 * pitch + lane // 16 * 8))
    held32[4 * n], held32[4 * n + 1], held32[4 * n + 2], held32[4 * n + 3] = parts


@cute.jit
def multiply(
    a: cute.Tensor,
    b: cute.Pointer, b_pitch: cutlass.Constexpr, b_trans: cutlass.Constexpr, sums: cute.Tensor,
    m: cutlass.Constexpr, n: cutlass.Constexpr, k: cutlass.Constexpr,
):  # fmt: skip
    """sums += a [m, k] @ b: ``a`` as :func:`operand` gives it, ``b`` bf16 in shared memory, [n, k] if
    ``b_trans``, else [k, n].  A warp alone; n is a multiple of 16.
    """
    for kk in cutlass.range_constexpr(k // 16):
        step(a, k // 16, kk, b, b_pitch, b_trans, sums, m, n, kk)


@cute.jit
def multiply_shared(
    a: cute.Pointer, a_pitch: cutlass.Constexpr,
    b: cute.Pointer, b_pitch: cutlass.Constexpr, b_trans: cutlass.Constexpr, sums: cute.Tensor,
    m: cutlass.Constexpr, n: cutlass.Constexpr, k: cutlass.Constexpr,
):  # fmt: skip
    """As :func:`multiply`, with ``a`` in shared memory, row-major."""
    held = cute.make_rmem_tensor(cute.make_layout(m // 16 * 8), BFloat16)
    for kk in cutlass.range_constexpr(k // 16):
        for row in cutlass.range_constexpr(m // 16):
            load_operand(a + (row * 16 * a_pitch + kk * 16), a_pitch, held, row)
        step(held, 1, 0, b, b_pitch, b_trans, sums, m, n, kk)


@cute.jit
def step(
    a: cute.Tensor, depth: cutlass.Constexpr, at: cutlass.Constexpr,
    b: cute.Pointer, b_pitch: cutlass.Constexpr, b_trans: cutlass.Constexpr, sums: cute.Tensor,
    m: cutlass.Constexpr, n: cutlass.Constexpr, kk: cutlass.Constexpr,
):  # fmt: skip
    """16 of a product's depth: piece ``at`` of ``depth`` in each row of pieces of ``a``, rows 16 kk of b."""
    lane = cute.arch.lane_idx()
    mma = cute.make_mma_atom(cute.nvgpu.warp.MmaF16BF16Op(BFloat16, Float32, (16, 8, 16)))
    fb = cute.make_rmem_tensor(cute.make_layout(8), BFloat16)
    fb32 = cute.recast_tensor(fb, Int32)
    for pair in cutlass.range_constexpr(n // 16):
        if cutlass.const_expr(b_trans):
            where = (pair * 16 + lane // 16 * 8 + lane % 8) * b_pitch + kk * 16 + lane // 8 % 2 * 8
            fb32[0], fb32[1], fb32[2], fb32[3] = load_matrix_4(b + where)
        else:
            where = (kk * 16 + lane % 16) * b_pitch + pair * 16 + lane // 16 * 8
            fb32[0], fb32[1], fb32[2], fb32[3] = load_matrix_4_trans(b + where)
        for row in cutlass.range_constexpr(m // 16):
            frag_a = cute.make_tensor(
                a.iterator + (row * depth + at) * 8, cute.make_layout(((2, 2, 2), 1), stride=((1, 2, 4), 0))
            )
            for half in cutlass.range_constexpr(2):
                frag_b = cute.make_tensor(
                    fb.iterator + half * 4, cute.make_layout(((2, 2), 1), stride=((1, 2), 0))
                )
                part = cute.make_tensor(
                    sums.iterator + (row * (n // 8) + pair * 2 + half) * 4, cute.make_layout(((2, 2), 1, 1))
                )
                cute.gemm(mma, part, frag_a, frag_b, part)


# ----------------------------------------------------------------------------------------------- joining
@cute.jit
def leave(parts: cute.Pointer, held: cute.Tensor, count: cutlass.Constexpr, vector: cutlass.Constexpr):
    """Put ``count`` registers of this warp's threads to parts[warp, n, lane, vector], ``vector`` at once."""
    tid, _, _ = cute.arch.thread_idx()
    first = (tid // 32 * (count // vector) * 32 + tid % 32) * vector
    for n in cutlass.range_constexpr(count // vector):
        store_run(parts + (first + n * 32 * vector), held, n * vector, vector)


@cute.jit
def scales(parts: cute.Pointer, top: cute.Tensor, warps: cutlass.Constexpr, rows: cutlass.Constexpr):
    """``top`` becomes the maximum of itself and what ``warps`` warps left, for the ``rows`` rows of a thread.

    Gives exp(maximum - top) for ``top`` as it was and then of each warp: [1 + warps, rows].
    """
    lane = cute.arch.lane_idx()
    out = cute.make_rmem_tensor(cute.make_layout((1 + warps) * rows), Float32)
    for r in cutlass.range_constexpr(rows):
        out[r] = top[r]
        for w in cutlass.range_constexpr(warps):
            out[(1 + w) * rows + r] = element(parts, (w * (rows // 2) + r // 2) * 64 + lane * 2 + r % 2)[0]
            top[r] = larger(top[r], out[(1 + w) * rows + r])
        for w in cutlass.range_constexpr(1 + warps):
            out[w * rows + r] = cute.math.exp(out[w * rows + r] - top[r], fastmath=True)
    return out


@cute.jit
def join_columns(
    parts: cute.Pointer, sums: cute.Tensor, scale: cute.Tensor,
    warps: cutlass.Constexpr, rows: cutlass.Constexpr,
):  # fmt: skip
    """Columns relative to a maximum, each times its scale, added in the order of the warps."""
    lane = cute.arch.lane_idx()
    for r in cutlass.range_constexpr(rows):
        sums[r] = sums[r] * scale[r]
        for w in cutlass.range_constexpr(warps):
            part = element(parts, (w * (rows // 2) + r // 2) * 64 + lane * 2 + r % 2)[0]
            sums[r] = sums[r] + part * scale[(1 + w) * rows + r]


@cute.jit
def join_fragments(
    parts: cute.Pointer, sums: cute.Tensor, scale: cute.Tensor,
    warps: cutlass.Constexpr, rows: cutlass.Constexpr, columns: cutlass.Constexpr,
):  # fmt: skip
    """As :func:`join_columns`, for a block's tile [8 rows, columns] and the warps' tiles of that shape."""
    tid, _, _ = cute.arch.thread_idx()
    lane = tid % 32
    warp = cute.arch.make_warp_uniform(tid // 32)
    pieces = columns // 8
    own = -(-pieces // WARPS)
    part = cute.make_rmem_tensor(cute.make_layout(4), Float32)
    for row in cutlass.range_constexpr(rows // 2):
        for n in cutlass.range_constexpr(own):
            piece = warp + n * WARPS
            if piece < pieces:
                at = (row * own + n) * 4
                for i in cutlass.range_constexpr(4):
                    sums[at + i] = sums[at + i] * scale[2 * row + i // 2]
                for w in cutlass.range_constexpr(warps):
                    load_run(parts + (((w * (rows // 2) + row) * pieces + piece) * 32 + lane) * 4, part, 0, 4)
                    for i in cutlass.range_constexpr(4):
                        sums[at + i] = sums[at + i] + part[i] * scale[(1 + w) * rows + 2 * row + i // 2]
