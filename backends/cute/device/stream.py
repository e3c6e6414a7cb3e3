"""Weights stream through a ring in shared memory past the rows of the batch, which ride beside them.

A CTA owns a run of columns of the result, for each a weight row per accumulator, and keeps all their sums
in registers while K is the outer loop.  Shares differ by one column at most; eight columns are a unit, and
the last unit of a share may be filled in part.  One stage of the ring holds ``chunk`` elements of each of
the CTA's weight rows and of the batch rows, in whole 128-byte lines; all batch rows meet a weight while it
is there.  Within a stage the warps form a grid: ``warps_n`` divide the units, ``warps_k`` the depth.  They
copy the weights, too.  The batch rows are copied by one warp more, so that the first product waits for its
own rows and not for all weights that were asked for before them.

At the end the parts of the ``warps_k`` warps are added in fixed order, by LANES threads for each row of the
batch, which take its columns in turn: what the epilogue reads and writes are runs of a row, and all threads
have their part of it.  What it reads they ask for ahead of the K loop.  The weights are `[out, in]`, so a
weight row is the n side of ``mma.m16n8k16`` and the batch its m side.

The k order inside an MMA is permuted: lane (g, t) reads 16 contiguous bytes of row g, 8 columns, which feed
two MMAs.  Both operands use the same order, so the sum is that of the plain one.  A 16-byte piece is stored
at its index with bit 2 flipped in odd rows, so that the eight lanes of a phase read eight different banks.

While the ring is filled for the first time, no more than ``burst`` stages of weights are under way, but for
the last one where others have waited.  More than the latency of the memory needs would queue, and behind it
what this kernel waits for: the last stores of the kernel before, which is not complete without them, and then
the batch rows.
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
START, WAITED, ARRIVED, END = range(4)  # as in backends/gpu/timing.py


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
    slices: int  # of K, ``k`` elements each; CTA b has slice b % slices
    slice_pitch: int  # columns from one slice to the next: those of whole blocks
    warps_n: int
    warps_k: int
    chunk: int
    stages: int
    burst: int  # stages of weights under way at most while the ring is filled, but for its last one
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
        return -(-self.columns // (self.ctas // self.slices * UNIT))

    @property
    def last(self) -> int:
        """The last column of the last slice."""
        return (self.slices - 1) * self.slice_pitch + self.columns - 1

    @property
    def tiles(self) -> int:
        return self.units_per_cta * self.accumulators

    @property
    def warps(self) -> int:
        """Those that multiply."""
        return self.warps_n * self.warps_k

    @property
    def threads(self) -> int:
        """Of the warps that multiply; a CTA has 32 more."""
        return 32 * self.warps

    @property
    def paced(self) -> int:
        """The first stage behind ``burst`` that does not wait for earlier ones: the last of the ring, if
        others do.  By then the kernel before is complete as a rule, and to wait delays the first product.
        """
        return max(self.burst + 1, self.stages - 2)

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
        self.stamp(stamps, cta, START)
        if cutlass.const_expr(not self.late):
            cute.arch.griddepcontrol_launch_dependents()
        walkers = self.ctas // self.slices
        walker, part = cta // self.slices, cta % self.slices
        base, extra = self.columns // walkers, self.columns % walkers
        first = walker * base + min(walker, Int32(extra)) + part * self.slice_pitch
        count = Int32(base)
        if walker < extra:
            count = count + 1
        smem = utils.SmemAllocator()
        ring = smem.allocate_tensor(BFloat16, cute.make_layout(self.shared_elements), 128).iterator
        start = cute.assume(Int64(part) * self.k, divby=8)
        x, w = x.align(16) + start, w.align(16) + start
        if cute.arch.make_warp_uniform(tid // 32) == self.warps:
            self.copy_rows(x, w, ring, rows, env, first, stamps)
        else:
            norm = (sums_from, x_columns, sums_to)
            self.multiply(w, ring, smem, rows, env, (first, count), stamps, *norm)

    @cute.jit
    def copy_rows(
        self,
        x: cute.Pointer,
        w: cute.Pointer,
        ring: cute.Pointer,
        rows: Int32,
        env: Any,
        first: Int32,
        stamps: Any,
    ):
        """What the last warp does: it copies the rows of the batch."""
        cta, _, _ = cute.arch.block_idx()
        if cutlass.const_expr(stamps is not None):  # a piece of the weights, to note when they are there
            weight_row, exists = self.weight_row(env, 0, first)
            if exists != 0:
                piece = piece_of(w, Int64(weight_row) * self.w_pitch)
                cute.copy(filling(), piece, piece_of(ring, 0))
            cute.arch.cp_async_commit_group()
        x_ring = ring + self.stages * self.tiles * UNIT * self.chunk
        steps = self.k // self.chunk
        cute.arch.griddepcontrol_wait()
        if cutlass.const_expr(self.late):
            cute.arch.griddepcontrol_launch_dependents()
        self.stamp(stamps, cta, WAITED, self.threads)
        if cutlass.const_expr(stamps is not None):
            cute.arch.cp_async_wait_group(0)
            self.stamp(stamps, cta, ARRIVED, self.threads)
        for d in cutlass.range(self.stages - 1, unroll=1):
            if d < steps:
                self.ask_rows(x, x_ring, rows, d, d)
            cute.arch.cp_async_commit_group()
        into = Int32(self.stages - 1)
        for step in cutlass.range(steps, unroll=1):
            cute.arch.cp_async_wait_group(self.stages - 2)
            cute.arch.sync_threads()
            ahead = step + self.stages - 1
            if ahead < steps:
                self.ask_rows(x, x_ring, rows, ahead, into)
            cute.arch.cp_async_commit_group()
            into = into + 1
            if into == self.stages:
                into = Int32(0)
        cute.arch.cp_async_wait_group(0)

    @cute.jit
    def ask_rows(self, x: cute.Pointer, ring: cute.Pointer, rows: Int32, step: Int32, slot: Int32):
        """Begin to copy the rows of the batch for one step."""
        lane = cute.arch.lane_idx()
        per_row = self.chunk // 8
        for m in cutlass.range(self.m_tiles, unroll=1):
            for i in cutlass.range_constexpr(M * per_row // 32):
                of_tile, piece = divided((lane, i * 32, 32), per_row)
                odd = plain(divided(of_tile, 2)[1])
                row = m * M + plain(of_tile)
                if row < rows:
                    source = Int64(row) * self.x_pitch + step * self.chunk + plain(piece) * 8
                    target = (slot * self.m_tiles * M + row) * self.chunk + (plain(piece) ^ (4 * odd)) * 8
                    cute.copy(filling(), piece_of(x, source), piece_of(ring, target))

    @cute.jit
    def weight_pieces(self, env: Any, first: Int32, count: Int32, tid: Int32):
        """The 16-byte pieces of a stage of weights that a thread copies: where from, where to, and whether
        they exist.  The rows of an accumulator lie together.
        """
        per_row = self.chunk // 8
        pieces = -(-(self.tiles * UNIT * per_row) // self.threads)
        sources = cute.make_rmem_tensor(cute.make_layout(pieces), Int64)
        targets = cute.make_rmem_tensor(cute.make_layout(pieces), Int32)
        exist = cute.make_rmem_tensor(cute.make_layout(pieces), Int32)
        for i in cutlass.range_constexpr(pieces):
            row, piece = divided((tid, i * self.threads, self.threads), per_row)
            accumulator, of_columns = divided(row, self.units_per_cta * UNIT)
            odd = plain(divided(row, 2)[1])
            column = plain(of_columns)
            source = Int64(0)
            live = Int32(0)
            if (column < count) & (plain(accumulator) < self.accumulators):
                for a in cutlass.range_constexpr(self.accumulators):
                    weight_row, exists = self.weight_row(env, a, first + column)
                    if plain(accumulator) == a:
                        source = Int64(weight_row) * self.w_pitch + plain(piece) * 8
                        live = exists
            sources[i] = source
            targets[i] = plain(row) * self.chunk + (plain(piece) ^ (4 * odd)) * 8
            exist[i] = live
        return sources, targets, exist

    @cute.jit
    def ask_weights(
        self, w: cute.Pointer, ring: cute.Pointer, pieces: Any, columns: Any, step: Int32, slot: Int32
    ):
        """Begin to copy the weights of one step, and what the norm has for its columns."""
        sources, targets, exist = pieces
        w_from = w + cute.assume(Int64(step) * self.chunk, divby=8)
        w_to = ring + cute.assume(slot * (self.tiles * UNIT * self.chunk), divby=8)
        for i in cutlass.range_constexpr(cute.size(sources)):
            if exist[i] != 0:
                cute.copy(filling(), piece_of(w_from, sources[i]), piece_of(w_to, targets[i]))
        if cutlass.const_expr(columns is not None):
            tid, _, _ = cute.arch.thread_idx()
            start, c_ring, stage = columns
            for i in cutlass.range_constexpr(-(-stage // (8 * self.threads))):
                at = (tid + i * self.threads) * 8
                if at < stage:
                    source = piece_of(start, at + Int64(step) * stage)
                    cute.copy(filling(), source, piece_of(c_ring, at + slot * stage))

    @cute.jit
    def multiply(
        self,
        w: cute.Pointer,
        ring: cute.Pointer,
        smem: Any,
        rows: Int32,
        env: Any,
        share: Any,
        stamps: Any,
        sums_from: Any,
        x_columns: Any,
        sums_to: Any,
    ):
        """What the other warps do: they copy the weights, multiply and finish."""
        tid, _, _ = cute.arch.thread_idx()
        cta, _, _ = cute.arch.block_idx()
        lane = cute.arch.lane_idx()
        warp = cute.arch.make_warp_uniform(tid // 32)
        first, count = share
        w_stage = self.tiles * UNIT * self.chunk
        x_stage = self.m_tiles * M * self.chunk
        x_ring = ring + self.stages * w_stage
        # What the norm has for a column rides beside the weights; its elements count as `width` of bf16 each
        kind = type_of(x_columns)
        width = width_of(x_columns)
        c_stage = self.chunk * width
        c_ring = ring
        columns = None
        if cutlass.const_expr(width > 0):
            c_ring = smem.allocate_tensor(BFloat16, cute.make_layout(self.stages * c_stage), 128).iterator
            columns = (cute.recast_ptr(x_columns, dtype=BFloat16).align(16), c_ring, c_stage)
        row_scales = cute.recast_ptr(ring, dtype=Float32)
        if cutlass.const_expr(self.operand is not None):
            held = cute.make_layout(self.scales * self.m_tiles * M)
            row_scales = smem.allocate_tensor(Float32, held, 128).iterator
        vector = cute.make_copy_atom(cute.nvgpu.CopyUniversalOp(), BFloat16, num_bits_per_copy=128)
        mma = cute.make_mma_atom(cute.nvgpu.warp.MmaF16BF16Op(BFloat16, Float32, (16, 8, 16)))

        # --- prologue: the weights depend on no kernel before this one
        steps = self.k // self.chunk
        pieces = self.weight_pieces(env, first, count, tid)
        for d in cutlass.range(self.stages - 1, unroll=1):
            if (d >= self.burst) & (d < self.paced):
                cute.arch.cp_async_wait_group(self.burst - 1)
            if d < steps:
                self.ask_weights(w, ring, pieces, columns, d, d)
            cute.arch.cp_async_commit_group()
        cute.arch.griddepcontrol_wait()
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
            self.sync()
        places = cute.make_layout((self.rounds, self.passes))
        held = [cute.make_rmem_tensor(places, element) for element in self.gathered]
        if cutlass.const_expr(self.gather is not None):
            for p in cutlass.range_constexpr(self.passes):
                for i in cutlass.range_constexpr(self.rounds):
                    row, column = self.place(tid, i, p)
                    live = (row < min(rows, Int32(self.m_tiles * M))) & (column < count)
                    found = self.gather(env, row, min(first + column, Int32(self.last)), live)
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
        own_place = [g * self.chunk + (4 * (j ^ (g % 2)) + t) * 8 for j in (0, 1)]  # of a tile of either
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
                self.ask_weights(w, ring, pieces, columns, ahead, into)
            cute.arch.cp_async_commit_group()
            for line in cutlass.range_constexpr(self.chunk // STEP // self.warps_k):
                depth = (warp_k + line * self.warps_k) * STEP
                for m in cutlass.range_constexpr(self.m_tiles):
                    for j in cutlass.range_constexpr(2):
                        for half in cutlass.range_constexpr(2):
                            at = slot * x_stage + (m * M + 8 * half) * self.chunk + depth
                            cute.copy(vector, piece_of(x_ring, at + own_place[j]), x_raw[None, half, j])
                    if cutlass.const_expr(self.operand is not None):
                        here = cute.assume(slot * c_stage + depth * width, divby=8)
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
                            at = slot * w_stage + tile * (UNIT * self.chunk) + depth
                            cute.copy(vector, piece_of(ring, at + own_place[j]), w_raw[None, j])
                        for m in cutlass.range_constexpr(self.m_tiles):
                            for q in cutlass.range_constexpr(4):
                                sums = acc[None, None, None, n, m]
                                cute.gemm(mma, sums, frag_x[None, None, q, m], frag_w[None, None, q], sums)
            slot = slot + 1
            if slot == self.stages:
                slot = Int32(0)

        # --- sum over the warps that divided the columns, in fixed order, and the epilogue
        cute.arch.cp_async_wait_group(0)
        self.sync()
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
                swap = tile % self.units_per_cta % 2 * 2
                for m in cutlass.range_constexpr(self.m_tiles):
                    for v in cutlass.range_constexpr(4):
                        parts[v ^ swap, lane, tile, m, warp_k] = acc[v, 0, 0, n, m]
        self.sync()
        total = cute.make_rmem_tensor(cute.make_layout((self.accumulators, self.rounds)), Float32)
        sums = cute.make_rmem_tensor(cute.make_layout((1, self.passes)), Float32)
        sums.fill(0.0)
        for p in cutlass.range_constexpr(self.passes):
            row, column = self.place(tid, 0, p)
            if row < min(rows, Int32(self.m_tiles * M)):
                for i in cutlass.range_constexpr(self.rounds):
                    _, column = self.place(tid, i, p)
                    unit = min(column // UNIT, Int32(self.units_per_cta - 1))
                    v = (row % M // 8 * 2 + column % 2) ^ (unit % 2 * 2)
                    at = row % 8 * 4 + column % UNIT // 2
                    for a in cutlass.range_constexpr(self.accumulators):
                        value = Float32(0.0)
                        for part in cutlass.range_constexpr(self.warps_k):
                            value = value + parts[v, at, a * self.units_per_cta + unit, row // M, part]
                        total[a, i] = value
                for i in cutlass.range_constexpr(self.rounds):
                    _, column = self.place(tid, i, p)
                    own = [x[i, p] for x in held]
                    # Evaluated where nothing is stored, too: at a column that exists
                    existing = min(first + column, Int32(self.last))
                    self.finish(env, row, existing, column < count, total[None, i], own, sums[None, p])
        if cutlass.const_expr(sums_to is not None):
            self.leave_sums(sums, sums_to, cta)
        self.stamp(stamps, cta, END)

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

    def sync(self) -> None:
        """A barrier of the warps that multiply."""
        cute.arch.barrier(barrier_id=1, number_of_threads=self.threads)

    def stamp(self, stamps: Any, cta: Int32, event: int, thread: int = 0) -> None:
        if stamps is not None:
            block.stamp(stamps, cta, event, thread)


def filling() -> Any:
    """How 16 bytes go from memory to the ring: around the L1 cache, and nobody waits."""
    way = cute.nvgpu.cpasync.CopyG2SOp(cache_mode=cute.nvgpu.LoadCacheMode.GLOBAL)
    return cute.make_copy_atom(way, BFloat16, num_bits_per_copy=128)


def piece_of(pointer: cute.Pointer, at: Any) -> cute.Tensor:
    """The 16 bytes at element ``at``, a multiple of 8."""
    return cute.make_tensor(pointer + cute.assume(at, divby=8), cute.make_layout(8))


def divided(x: Any, by: int) -> tuple[Any, Any]:
    """Quotient and remainder of ``x = (variable, constant, limit of the variable)``, again as such, and with
    the variable and the constant apart where no carry can come from their sum.
    """
    variable, constant, limit = x
    quotient, remainder = constant // by, constant % by
    if remainder == 0:
        return (variable // by, quotient, -(-limit // by)), (variable % by, 0, min(limit, by))
    if remainder + limit <= by:
        return (0, quotient, 1), (variable, remainder, limit)
    both = variable + constant
    return (both // by, 0, -(-(constant + limit) // by)), (both % by, 0, by)


def plain(x: Any) -> Any:
    """The value of such a sum."""
    return x[0] + x[1]


def width_of(pointer: cute.Pointer | None) -> int:
    """How many elements of bf16 an element takes; 0 if there are none."""
    return 0 if pointer is None else pointer.dtype.width // 16


def type_of(pointer: cute.Pointer | None) -> Any:
    return BFloat16 if pointer is None else pointer.dtype
