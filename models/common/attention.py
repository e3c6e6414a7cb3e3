"""Decode attention over a paged KV cache, split along the context (Flash-Decoding).

The context of every sequence is cut into runs of `run_pages` pages.  A work item is one run of one KV head;
the items of all sequences form one flat grid, and `run_pages` is chosen at run time so that they fill the
cores at batch 1 as at batch 16.  A run keeps an online softmax (Milakov and Gimelshein, arXiv:1805.02867).  A
sequence with one run writes its result; with more, each run leaves a partial (maximum, sum, accumulator) to
merge.
"""

from __future__ import annotations

import pypto_models.language as pl
from models.common.rows import context_of, sequence_of
from models.common.sizes import (
    DTYPE,
    GROUP,
    GROUP_ROWS,
    HEAD_DIM,
    KV_HEADS,
    MAX_BATCH,
    PAGE,
    Q_HEADS,
    SCALE,
    TARGET_RUNS,
)

LOWEST = -3.0e38  # start of a running maximum: finite, so that exp(LOWEST - m) is 0 and not NaN


@pl.jit.inline
def pages_of(s: pl.Scalar[pl.INDEX], slot_mapping: pl.Tensor, cu_q: pl.Tensor, ctx: pl.Tensor):
    """KV pages that sequence `s` attends to; 0 if it is dead."""
    return (context_of(s, slot_mapping, cu_q, ctx) + PAGE - 1) // PAGE


@pl.jit.inline
def pages_per_run(slot_mapping: pl.Tensor, cu_q: pl.Tensor, ctx: pl.Tensor):
    """Length of a run such that the live sequences give about TARGET_RUNS runs together."""
    pages = 0
    for s in pl.range(pl.tensor.dim(ctx, 0)):
        pages = pages + pages_of(s, slot_mapping, cu_q, ctx)
    return pl.max((pages + TARGET_RUNS - 1) // TARGET_RUNS, 1)


@pl.jit.inline
def runs_of(
    s: pl.Scalar[pl.INDEX],
    run_pages: pl.Scalar[pl.INDEX],
    slot_mapping: pl.Tensor,
    cu_q: pl.Tensor,
    ctx: pl.Tensor,
):
    """Runs of sequence `s`."""
    return (pages_of(s, slot_mapping, cu_q, ctx) + run_pages - 1) // run_pages


@pl.jit.inline
def attend_run(
    q: pl.Tensor,
    k_cache: pl.Tensor,
    v_cache: pl.Tensor,
    block_table: pl.Tensor,
    s: pl.Scalar[pl.INDEX],
    q_row: pl.Scalar[pl.INDEX],
    head: pl.Scalar[pl.INDEX],
    begin: pl.Scalar[pl.INDEX],
    end: pl.Scalar[pl.INDEX],
    tokens: pl.Scalar[pl.INDEX],
):
    """Online softmax of one query group over pages [begin, end) of sequence `s`, which holds `tokens` tokens.

    Returns the running maximum and sum [GROUP_ROWS, 1] and the accumulator [GROUP_ROWS, D], all fp32.
    """
    group = pl.slice(q, [GROUP_ROWS, HEAD_DIM], [q_row, 0], valid_shape=[GROUP, HEAD_DIM])
    query = pl.fillpad(group, pad_value=pl.PadValue.zero)
    m = pl.full([GROUP_ROWS, 1], pl.FP32, LOWEST)
    total = pl.full([GROUP_ROWS, 1], pl.FP32, 0.0)
    acc = pl.full([GROUP_ROWS, HEAD_DIM], pl.FP32, 0.0)
    for p in pl.pipeline(begin, end, stage=2):
        page = pl.cast(pl.read(block_table, [s, p]), pl.INDEX)
        row = (page * KV_HEADS + head) * PAGE
        live = pl.min(tokens - p * PAGE, PAGE)
        keys = pl.slice(k_cache, [PAGE, HEAD_DIM], [row, 0], valid_shape=[live, HEAD_DIM])
        values = pl.slice(v_cache, [PAGE, HEAD_DIM], [row, 0], valid_shape=[live, HEAD_DIM])
        scores = pl.mul(pl.matmul(query, keys, out_dtype=pl.FP32, b_trans=True), SCALE)
        new_m = pl.maximum(m, pl.row_max(scores))
        decay = pl.exp(pl.sub(m, new_m))
        weights = pl.exp(pl.row_expand_sub(scores, new_m))
        total = pl.add(pl.mul(total, decay), pl.row_sum(weights))
        part = pl.matmul(pl.cast(weights, DTYPE, mode="rint"), values, out_dtype=pl.FP32)
        acc = pl.add(pl.row_expand_mul(acc, decay), part)
        m = new_m
    return m, total, acc


@pl.jit.inline
def attention(
    q: pl.Tensor,
    k_cache: pl.Tensor,
    v_cache: pl.Tensor,
    block_table: pl.Tensor,
    slot_mapping: pl.Tensor,
    cu_q: pl.Tensor,
    ctx: pl.Tensor,
    out: pl.Tensor,
):
    """`out` [T, Q D] = attention of `q` [T Q, D] over the cache; dead rows become zeros.

    One query row per sequence: row cu_q[s] attends to the ctx[s] tokens of sequence s.
    """
    rows = pl.tensor.dim(out, 0)
    batch = pl.tensor.dim(ctx, 0)
    heads_out = pl.reshape(out, [rows * Q_HEADS, HEAD_DIM])
    slots = (MAX_BATCH + TARGET_RUNS) * KV_HEADS  # a partial per run and KV head, at most
    part_m = pl.create_tensor([slots * GROUP_ROWS, 1], pl.FP32)
    part_sum = pl.create_tensor([slots * GROUP_ROWS, 1], pl.FP32)
    part_acc = pl.create_tensor([slots * GROUP_ROWS, HEAD_DIM], pl.FP32)
    run_pages = pages_per_run(slot_mapping, cu_q, ctx)

    for item in pl.spmd((batch + TARGET_RUNS) * KV_HEADS, name_hint="attention"):
        run = item // KV_HEADS
        head = item % KV_HEADS
        seq = -1
        first = 0  # run number at which the sequence begins
        runs = 0  # runs of all sequences so far
        for s in pl.range(batch):
            after = runs + runs_of(s, run_pages, slot_mapping, cu_q, ctx)
            if runs <= run and run < after:
                seq = s
                first = runs
            runs = after
        if seq >= 0:
            tokens = context_of(seq, slot_mapping, cu_q, ctx)
            pages = (tokens + PAGE - 1) // PAGE
            begin = (run - first) * run_pages
            end = pl.min(begin + run_pages, pages)
            q_row = pl.cast(pl.read(cu_q, [seq]), pl.INDEX) * Q_HEADS + head * GROUP
            m, total, acc = attend_run(q, k_cache, v_cache, block_table, seq, q_row, head, begin, end, tokens)
            if pages <= run_pages:
                done = pl.cast(pl.row_expand_div(acc, total), DTYPE, mode="rint")
                pl.assemble(heads_out, pl.set_validshape(done, GROUP, HEAD_DIM), [q_row, 0])
            else:
                place = item * GROUP_ROWS
                pl.assemble(part_m, m, [place, 0])
                pl.assemble(part_sum, total, [place, 0])
                pl.assemble(part_acc, acc, [place, 0])

    for task in pl.spmd(rows * KV_HEADS, name_hint="attention_merge"):
        t = task // KV_HEADS
        head = task % KV_HEADS
        q_row = t * Q_HEADS + head * GROUP
        seq = sequence_of(t, slot_mapping, cu_q, ctx)
        if seq < 0:
            zeros = pl.full([GROUP_ROWS, HEAD_DIM], DTYPE, 0.0)
            pl.assemble(heads_out, pl.set_validshape(zeros, GROUP, HEAD_DIM), [q_row, 0])
        else:
            runs = runs_of(seq, run_pages, slot_mapping, cu_q, ctx)
            if runs > 1:
                first = 0
                for s in pl.range(seq):
                    first = first + runs_of(s, run_pages, slot_mapping, cu_q, ctx)
                m = pl.full([GROUP_ROWS, 1], pl.FP32, LOWEST)
                total = pl.full([GROUP_ROWS, 1], pl.FP32, 0.0)
                acc = pl.full([GROUP_ROWS, HEAD_DIM], pl.FP32, 0.0)
                for r in pl.range(first, first + runs):
                    place = (r * KV_HEADS + head) * GROUP_ROWS
                    run_m = pl.slice(part_m, [GROUP_ROWS, 1], [place, 0])
                    run_sum = pl.slice(part_sum, [GROUP_ROWS, 1], [place, 0])
                    run_acc = pl.slice(part_acc, [GROUP_ROWS, HEAD_DIM], [place, 0])
                    new_m = pl.maximum(m, run_m)
                    old = pl.exp(pl.sub(m, new_m))
                    new = pl.exp(pl.sub(run_m, new_m))
                    total = pl.add(pl.mul(total, old), pl.mul(run_sum, new))
                    acc = pl.add(pl.row_expand_mul(acc, old), pl.row_expand_mul(run_acc, new))
                    m = new_m
                done = pl.cast(pl.row_expand_div(acc, total), DTYPE, mode="rint")
                pl.assemble(heads_out, pl.set_validshape(done, GROUP, HEAD_DIM), [q_row, 0])
    return out
