"""Weights stream through a ring in shared memory past the rows of the batch, which ride beside them.

A CTA owns a run of columns of the result, for each a weight row per accumulator, and keeps all their sums
in registers while K is the outer loop.  Shares differ by one column at most; eight columns are a unit, and
the last unit of a share may be filled in part.  One stage of the ring holds ``chunk`` elements of each of
the CTA's weight rows and of the batch rows, in whole 128-byte lines; all batch rows meet a weight while it
is there.  Within a stage the warps form a grid: ``warps_n`` divide the units, ``warps_k`` the depth.  At
the end the parts of the ``warps_k`` warps are added in fixed order, by LANES threads for each row of the
batch, which take its columns in turn: what the epilogue reads and writes are runs of a row, and all threads
have their part of it.  What it reads they ask for ahead of the K loop.  The weights are `[out, in]`, so a
weight row is the n side of ``mma.m16n8k16`` and the batch its m side.

The k order inside an MMA is permuted: lane (g, t) reads 16 contiguous bytes of row g, 8 columns, which feed
two MMAs.  Both operands use the same order, so the sum is that of the plain one.  A 16-byte piece is stored
at its index with bit 2 flipped in odd rows, so that the eight lanes of a phase read eight different banks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
import cutlass.utils as utils
from cutlass import BFloat16, Float32, Int32, Int64

from . import block

M = 16  # rows of the batch on the m side of one MMA
UNIT = 8  # weight rows of a unit: the n side of one MMA
STEP = 64  # columns of a 128-byte line
LANES = 16  # threads that finish a row, 32 bytes of bf16 at a time


@dataclass(frozen=True)
class Stream:
    """The schedule of one streamed product, and the functions that the region fills in.

    * ``weight_row(env, a, column) -> (row, live)``: the weight row of accumulator ``a`` for a column of the
      result, and whether it exists.
    * ``finish(env, row, column, live, total, held, sums)``: the epilogue of one element, whose accumulators
      are ``total[a]``; where it is not ``live`` nothing may be stored.
    * ``gather(env, row, column, live)``: what the epilogue of an element reads, of the types ``gathered``; it
      comes back as ``held[i]``.

    A norm of the batch rows (row_statistic.py) may be part of it: ``scale(env, total)`` gives the scales of a
    row from its sum, and ``operand(env, x_element, x_column, scales)`` the element that the product takes.
    In front of a norm, ``finish`` adds to ``sums[0]`` what an element contributes.
    """

    k: int
    x_pitch: int
    w_pitch: int
    columns: int
    accumulators: int
    ctas: int
    warps_n: int
    warps_k: int
    chunk: int
    stages: int
    m_tiles: int  # rows of the batch / 16
    late: bool  # whether the next kernel may start only when this one has waited
    weight_row: Callable[..., Any]
    finish: Callable[..., Any]
    gather: Any = None
    gathered: tuple[Any, ...] = ()
    parts: int = 0  # partial sums of a row, left by the CTAs of the producer
    scales: int = 0
    scale: Any = None
    operand: Any = None

    @property
    def units_per_cta(self) -> int:
        return -(-self.columns // (self.ctas * UNIT))

    @property
    def tiles(self) -> int:
        return self.units_per_cta * self.accumulators

    @property
    def warps(self) -> int:
        return self.warps_n * self.warps_k

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def rounds(self) -> int:
        """Columns that a thread finishes in a row."""
        return -(-self.units_per_cta * UNIT // LANES)

    @property
    def passes(self) -> int:
        """Rows that a thread finishes."""
        return -(-self.m_tiles * M * LANES // self.threads)

    @property
    def shared_elements(self) -> int:
        """bf16 elements of the ring, which the final sum over warps reuses."""
        ring = self.stages * (self.tiles * UNIT + self.m_tiles * M) * self.chunk
        return max(ring, self.warps_k * self.m_tiles * self.tiles * 256)

    @cute.jit
    def run(
        self,
        x: cute.Pointer,
        w: cute.Pointer,
        rows: Int32,
        env: Any,
        stamps: Any = None,
        sums_from: Any = None,
        x_columns: Any = None,
        sums_to: Any = None,
    ):
        """``sums_from`` and ``sums_to`` are partial sums `[rows, CTAs]` of the norms before and behind the
        product, ``x_columns`` what the first has for each column; ``stamps``: where a timing build notes when
        things happen.
        """
        tid, _, _ = cute.arch.thread_idx()
        cta, _, _ = cute.arch.block_idx()
        self.stamp(stamps, cta, 0)
        lane = cute.arch.lane_idx()
        warp = cute.arch.make_warp_uniform(tid // 32)
        base, extra = self.columns // self.ctas, self.columns % self.ctas
        first = cta * base + min(cta, Int32(extra))
        count = Int32(base)
        if cta < extra:
            count = count + 1

        smem = utils.SmemAllocator()
        ring = smem.allocate_tensor(BFloat16, cute.make_layout(self.shared_elements), 128).iterator
        w_stage = self.tiles * UNIT * self.chunk
        x_stage = self.m_tiles * M * self.chunk
        x_ring = ring + self.stages * w_stage
        # What the norm has for a column rides beside the weights; its elements count as `width` of bf16 each
        kind = type_of(x_columns)
        width = width_of(x_columns)
        c_stage = self.chunk * width
        c_from, c_ring = x, ring
        if cutlass.const_expr(width > 0):
            c_from = cute.recast_ptr(x_columns, dtype=BFloat16)
            c_ring = smem.allocate_tensor(BFloat16, cute.make_layout(self.stages * c_stage), 128).iterator
        row_scales = cute.recast_ptr(ring, dtype=Float32)
        if cutlass.const_expr(self.operand is not None):
            held = cute.make_layout(self.scales * self.m_tiles * M)
            row_scales = smem.allocate_tensor(Float32, held, 128).iterator
        vector = cute.make_copy_atom(cute.nvgpu.CopyUniversalOp(), BFloat16, num_bits_per_copy=128)
        fill = cute.make_copy_atom(
            cute.nvgpu.cpasync.CopyG2SOp(cache_mode=cute.nvgpu.LoadCacheMode.GLOBAL),
            BFloat16,
            num_bits_per_copy=128,
        )
        mma = cute.make_mma_atom(cute.nvgpu.warp.MmaF16BF16Op(BFloat16, Float32, (16, 8, 16)))

        # --- which pieces of a stage this thread copies: where from, where to, and whether they exist
        pieces = self.chunk // 8
        w_count = -(-(self.tiles * UNIT * pieces) // self.threads)
        x_count = -(-(self.m_tiles * M * pieces) // self.threads)
        w_from = cute.make_rmem_tensor(cute.make_layout(w_count), Int64)
        w_to = cute.make_rmem_tensor(cute.make_layout(w_count), Int32)
        w_live = cute.make_rmem_tensor(cute.make_layout(w_count), Int32)
        for i in cutlass.range_constexpr(w_count):
            piece = tid + i * self.threads
            row = piece // pieces
            at = piece % pieces
            tile = row // UNIT
            column = tile // self.accumulators * UNIT + row % UNIT
            source = Int64(0)
            live = Int32(0)
            if column < count:
                for a in cutlass.range_constexpr(self.accumulators):
                    weight_row, exists = self.weight_row(env, a, first + column)
                    if tile % self.accumulators == a:
                        source = Int64(weight_row) * self.w_pitch + at * 8
                        live = exists
            w_from[i] = source
            w_live[i] = live
            w_to[i] = row * self.chunk + (at ^ (4 * (row % 2))) * 8
        x_from = cute.make_rmem_tensor(cute.make_layout(x_count), Int64)
        x_to = cute.make_rmem_tensor(cute.make_layout(x_count), Int32)
        x_live = cute.make_rmem_tensor(cute.make_layout(x_count), Int32)
        for i in cutlass.range_constexpr(x_count):
            piece = tid + i * self.threads
            row = piece // pieces
            at = piece % pieces
            live = Int32(0)
            if row < min(rows, Int32(self.m_tiles * M)):
                live = Int32(1)
            x_live[i] = live
            x_from[i] = Int64(row) * self.x_pitch + at * 8
            x_to[i] = row * self.chunk + (at ^ (4 * (row % 2))) * 8

        # --- prologue: the weights depend on no kernel before this one, the rows of the batch do
        steps = self.k // self.chunk
        if cutlass.const_expr(not self.late):
            cute.arch.griddepcontrol_launch_dependents()
        for d in cutlass.range_constexpr(self.stages - 1):
            if cutlass.const_expr(d < steps):
                for i in cutlass.range_constexpr(w_count):
                    if w_live[i] != 0:
                        cute.copy(
                            fill,
                            piece_of(w, w_from[i] + d * self.chunk),
                            piece_of(ring, w_to[i] + d * w_stage),
                        )
                    if cutlass.const_expr(stamps is not None and d == 0 and i == 0):
                        cute.arch.cp_async_commit_group()  # of their own, to note when they are there
                for i in cutlass.range_constexpr(-(-c_stage // (8 * self.threads))):
                    at = (tid + i * self.threads) * 8
                    if at < c_stage:
                        at = at + d * c_stage
                        cute.copy(fill, piece_of(c_from, at), piece_of(c_ring, at))
            cute.arch.cp_async_commit_group()
        cute.arch.griddepcontrol_wait()
        if cutlass.const_expr(self.late):
            cute.arch.griddepcontrol_launch_dependents()
        self.stamp(stamps, cta, 1)
        if cutlass.const_expr(stamps is not None):
            if tid == 0:
                cute.arch.cp_async_wait_group(self.stages - 1)
            self.stamp(stamps, cta, 2)
        per_warp = -(-self.m_tiles * M // self.warps)
        per_lane = max(1, -(-self.parts // 32))
        partial = cute.make_rmem_tensor(cute.make_layout((per_lane, per_warp)), Float32)
        if cutlass.const_expr(self.operand is not None):
            partial.fill(0.0)
            for r in cutlass.range_constexpr(per_warp):
                for p in cutlass.range_constexpr(per_lane):
                    row = warp + r * self.warps
                    from_cta = lane + p * 32
                    if (from_cta < self.parts) & (row < self.m_tiles * M):
                        partial[p, r] = block.element(sums_from, row * self.parts + from_cta)[0]
        for d in cutlass.range_constexpr(self.stages - 1):
            if cutlass.const_expr(d < steps):
                for i in cutlass.range_constexpr(x_count):
                    if x_live[i] != 0:
                        cute.copy(
                            vector,
                            piece_of(x, x_from[i] + d * self.chunk),
                            piece_of(x_ring, x_to[i] + d * x_stage),
                        )
        if cutlass.const_expr(self.operand is not None):
            for r in cutlass.range_constexpr(per_warp):
                sum_of_row = Float32(0.0)
                for p in cutlass.range_constexpr(per_lane):
                    sum_of_row = sum_of_row + partial[p, r]
                scales = self.scale(env, block.warp_sum(sum_of_row))
                row = warp + r * self.warps
                there = cute.make_tensor(row_scales + row * self.scales, cute.make_layout(self.scales))
                if (lane == 0) & (row < self.m_tiles * M):
                    for i in cutlass.range_constexpr(self.scales):
                        there[i] = scales[i]
            cute.arch.sync_threads()
        places = cute.make_layout((self.rounds, self.passes))
        held = [cute.make_rmem_tensor(places, element) for element in self.gathered]
        if cutlass.const_expr(self.gather is not None):
            # Behind a barrier, so that nothing waits for these together with the rows
            cute.arch.sync_threads()
            for p in cutlass.range_constexpr(self.passes):
                for i in cutlass.range_constexpr(self.rounds):
                    row, column = self.place(tid, i, p)
                    live = (row < min(rows, Int32(self.m_tiles * M))) & (column < count)
                    found = self.gather(env, row, min(first + column, Int32(self.columns - 1)), live)
                    for n in cutlass.range_constexpr(len(self.gathered)):
                        held[n][i, p] = found[n]

        # --- K loop
        warp_n = warp % self.warps_n
        warp_k = warp // self.warps_n
        mine = -(-self.tiles // self.warps_n)
        acc = cute.make_rmem_tensor(cute.make_layout(((2, 2), 1, 1, mine, self.m_tiles)), Float32)
        acc.fill(0.0)
        g = lane // 4
        t = lane % 4
        flip = 4 * (g % 2)
        x_raw = cute.make_rmem_tensor(cute.make_layout((8, 2, 2)), BFloat16)  # element, row half, piece
        x_mma = cute.make_rmem_tensor(cute.make_layout((8, 4, self.m_tiles)), BFloat16)
        w_raw = cute.make_rmem_tensor(cute.make_layout((8, 2)), BFloat16)
        x_raw_pairs = cute.recast_tensor(x_raw, Int32)
        x_mma_pairs = cute.recast_tensor(x_mma, Int32)
        frag_x = cute.make_tensor(
            x_mma.iterator, cute.make_layout(((2, 2, 2), 1, 4, self.m_tiles), stride=((1, 2, 4), 0, 8, 32))
        )
        frag_w = cute.make_tensor(w_raw.iterator, cute.make_layout(((2, 2), 1, 4), stride=((1, 2), 0, 4)))
        # The rows of a thread's fragments: element, row half, piece
        columns_raw = cute.make_rmem_tensor(cute.make_layout((8 * max(width, 1), 2)), BFloat16)
        own_scales = cute.make_rmem_tensor(cute.make_layout((max(self.scales, 1), 2, self.m_tiles)), Float32)
        if cutlass.const_expr(self.operand is not None):
            for m in cutlass.range_constexpr(self.m_tiles):
                for half in cutlass.range_constexpr(2):
                    for i in cutlass.range_constexpr(self.scales):
                        row = m * M + g + 8 * half
                        own_scales[i, half, m] = block.element(row_scales, row * self.scales + i)[0]
        slot = Int32(0)
        for step in cutlass.range(steps, unroll=1):
            cute.arch.cp_async_wait_group(self.stages - 2)
            cute.arch.sync_threads()
            ahead = step + self.stages - 1
            into = slot + self.stages - 1
            if into >= self.stages:
                into = into - self.stages
            if ahead < steps:
                skip = Int64(ahead) * self.chunk
                for i in cutlass.range_constexpr(w_count):
                    if w_live[i] != 0:
                        cute.copy(
                            fill, piece_of(w, w_from[i] + skip), piece_of(ring, w_to[i] + into * w_stage)
                        )
                for i in cutlass.range_constexpr(x_count):
                    if x_live[i] != 0:
                        cute.copy(
                            fill, piece_of(x, x_from[i] + skip), piece_of(x_ring, x_to[i] + into * x_stage)
                        )
                for i in cutlass.range_constexpr(-(-c_stage // (8 * self.threads))):
                    at = (tid + i * self.threads) * 8
                    if at < c_stage:
                        columns = piece_of(c_from, at + Int64(ahead) * c_stage)
                        cute.copy(fill, columns, piece_of(c_ring, at + into * c_stage))
            cute.arch.cp_async_commit_group()
            for line in cutlass.range_constexpr(self.chunk // STEP // self.warps_k):
                column = (warp_k + line * self.warps_k) * STEP
                for m in cutlass.range_constexpr(self.m_tiles):
                    for j in cutlass.range_constexpr(2):
                        for half in cutlass.range_constexpr(2):
                            row = m * M + g + 8 * half
                            at = slot * x_stage + row * self.chunk + column + ((4 * j + t) ^ flip) * 8
                            cute.copy(vector, piece_of(x_ring, at), x_raw[None, half, j])
                    if cutlass.const_expr(self.operand is not None):
                        here = slot * c_stage + column * width
                        self.apply(env, x_raw, c_ring + here, width, kind, columns_raw, own_scales, m, t)
                    for j in cutlass.range_constexpr(2):
                        for i in cutlass.range_constexpr(2):
                            for q in cutlass.range_constexpr(2):
                                for half in cutlass.range_constexpr(2):
                                    x_mma_pairs[half + 2 * q, 2 * j + i, m] = x_raw_pairs[2 * i + q, half, j]
                for n in cutlass.range_constexpr(mine):
                    tile = warp_n + n * self.warps_n
                    if tile < self.tiles:
                        for j in cutlass.range_constexpr(2):
                            row = tile * UNIT + g
                            at = slot * w_stage + row * self.chunk + column + ((4 * j + t) ^ flip) * 8
                            cute.copy(vector, piece_of(ring, at), w_raw[None, j])
                        for m in cutlass.range_constexpr(self.m_tiles):
                            for q in cutlass.range_constexpr(4):
                                sums = acc[None, None, None, n, m]
                                cute.gemm(mma, sums, frag_x[None, None, q, m], frag_w[None, None, q], sums)
            slot = slot + 1
            if slot == self.stages:
                slot = Int32(0)

        # --- sum over the warps that divided the columns, in fixed order, and the epilogue
        cute.arch.cp_async_wait_group(0)
        cute.arch.sync_threads()
        per_part = 128 * self.tiles * self.m_tiles
        parts = cute.make_tensor(
            cute.recast_ptr(ring, dtype=Float32),
            cute.make_layout(
                (4, 32, self.tiles, self.m_tiles, self.warps_k),
                stride=(1, 4, 128, 128 * self.tiles, per_part),
            ),
        )
        for n in cutlass.range_constexpr(mine):
            tile = warp_n + n * self.warps_n
            if tile < self.tiles:
                swap = tile // self.accumulators % 2 * 2
                for m in cutlass.range_constexpr(self.m_tiles):
                    for v in cutlass.range_constexpr(4):
                        parts[v ^ swap, lane, tile, m, warp_k] = acc[v, 0, 0, n, m]
        cute.arch.sync_threads()
        total = cute.make_rmem_tensor(cute.make_layout((self.accumulators, self.rounds)), Float32)
        sums = cute.make_rmem_tensor(cute.make_layout((1, self.passes)), Float32)
        sums.fill(0.0)
        for p in cutlass.range_constexpr(self.passes):
            row, _ = self.place(tid, 0, p)
            if row < min(rows, Int32(self.m_tiles * M)):
                for i in cutlass.range_constexpr(self.rounds):
                    _, column = self.place(tid, i, p)
                    unit = min(column // UNIT, Int32(self.units_per_cta - 1))
                    v = (row % M // 8 * 2 + column % 2) ^ (unit % 2 * 2)
                    at = row % 8 * 4 + column % UNIT // 2
                    for a in cutlass.range_constexpr(self.accumulators):
                        value = Float32(0.0)
                        for part in cutlass.range_constexpr(self.warps_k):
                            value = value + parts[v, at, unit * self.accumulators + a, row // M, part]
                        total[a, i] = value
                for i in cutlass.range_constexpr(self.rounds):
                    _, column = self.place(tid, i, p)
                    own = [x[i, p] for x in held]
                    # Evaluated where nothing is stored, too: at a column that exists
                    existing = min(first + column, Int32(self.columns - 1))
                    self.finish(env, row, existing, column < count, total[None, i], own, sums[None, p])
        if cutlass.const_expr(sums_to is not None):
            self.leave_sums(sums, sums_to, cta)
        self.stamp(stamps, cta, 3)

    @cute.jit
    def apply(
        self,
        env: Any,
        x_raw: cute.Tensor,
        columns: cute.Pointer,
        width: cutlass.Constexpr,
        kind: cutlass.Constexpr,
        columns_raw: cute.Tensor,
        scales: cute.Tensor,
        m: cutlass.Constexpr,
        t: Int32,
    ):
        """The norm on one line of a thread's fragments."""
        vector = cute.make_copy_atom(cute.nvgpu.CopyUniversalOp(), BFloat16, num_bits_per_copy=128)
        for j in cutlass.range_constexpr(2):
            for i in cutlass.range_constexpr(width):
                there = cute.make_tensor(columns_raw.iterator + (j * width + i) * 8, cute.make_layout(8))
                cute.copy(vector, piece_of(columns, (4 * j + t) * 8 * width + i * 8), there)
        x_column = cute.recast_tensor(columns_raw, kind)
        for j in cutlass.range_constexpr(2):
            for half in cutlass.range_constexpr(2):
                for e in cutlass.range_constexpr(8):
                    own = scales[None, half, m]
                    x_raw[e, half, j] = self.operand(env, x_raw[e, half, j], x_column[e, j], own)

    @cute.jit
    def leave_sums(self, sums: cute.Tensor, to: cute.Pointer, cta: Int32):
        """The CTA's part of the sum of each row, over the threads that have finished it, in fixed order."""
        tid, _, _ = cute.arch.thread_idx()
        for p in cutlass.range_constexpr(self.passes):
            row, lane = self.place(tid, 0, p)
            value = sums[0, p]
            for distance in cutlass.range_constexpr(4):
                value = value + cute.arch.shuffle_sync_bfly(value, 1 << distance)
            there = block.element(to, row * self.ctas + cta)
            if (lane == 0) & (row < M * self.m_tiles):
                there[0] = value

    def place(self, tid: Int32, i: int, p: int) -> tuple[Int32, Int32]:
        """The row, and the column of the CTA's, that a thread finishes in round ``i`` of pass ``p``."""
        return tid // LANES + p * (self.threads // LANES), tid % LANES + i * LANES

    def stamp(self, stamps: Any, cta: Int32, event: int) -> None:
        if stamps is not None:
            block.stamp(stamps, cta, event)


def piece_of(pointer: cute.Pointer, at: Any) -> cute.Tensor:
    """The 16 bytes at element ``at``."""
    return cute.make_tensor((pointer + at).align(16), cute.make_layout(8))


def width_of(pointer: cute.Pointer | None) -> int:
    """How many elements of bf16 an element takes; 0 if there are none."""
    return 0 if pointer is None else pointer.dtype.width // 16


def type_of(pointer: cute.Pointer | None) -> Any:
    return BFloat16 if pointer is None else pointer.dtype
