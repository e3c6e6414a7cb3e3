"""Decode attention over a paged KV cache, split along the context (Flash-Decoding) into equal shares.

The pages of all live sequences form one list, cut into TARGET_RUNS equal shares wherever a sequence ends.
A work item is one share for one KV head: a fixed grid fills the cores evenly at batch 1 as at batch 16, with
ragged contexts as with equal ones.  The part of a share that one sequence owns is a run, and an item takes
the runs of its share in turn; a small region before it writes them down.  A run keeps an online softmax
(Milakov and Gimelshein, arXiv:1805.02867).  A sequence with one run writes its result; with more, each run
leaves a partial (maximum, sum, accumulator) to merge.  A block of the merge takes one head of one row and
many runs at once, so that a single sequence fills the cores there too; or all heads of a KV head, run by run,
where few blocks are better, as in the tail of a launch.  Where a sequence may have several rows, the merge
also brings them from one tile into token order.

All query rows of a sequence that read one KV head are one tile, so that a page is loaded once per head, not
once per row.  Row j of n live rows sees the KV indices up to ctx - n + j.  The last n of a sequence are the
step's own: its last run takes them from where they were made, so that no page waits for what this step adds
to the caches, which the first run of a sequence does at its end.
"""

from __future__ import annotations

import pypto_models.language as pl
from models.common.gate import gated
from models.common.rows import context_of, rows_of, sequence_of
from models.common.sizes import (
    DTYPE,
    GATE_HEADS,
    GROUP,
    GROUP_ROWS,
    HEAD_DIM,
    KV_HEADS,
    KV_TILE,
    MAX_BATCH,
    PAGE,
    Q_HEADS,
    SCALE,
    SPAN,
    TARGET_RUNS,
)

LOWEST = -3.0e38  # start of a running maximum: finite, so that exp(LOWEST - m) is 0 and not NaN
KV_STAGES = 2  # tiles of K and of V that a run holds at once
OWN_ROWS = (SPAN + 15) // 16 * 16  # SPAN, padded to a legal matmul height
STEEP = 1.0e30  # slope of the causal bound: far above any score

# Tile sizes of the merge; a tiling file sets them per target
MERGE_RUNS = 2  # runs whose partials are one tile; 1: a block takes the heads of a KV head, run by run
MERGE_TILES = 2  # column tiles of a head, each merged by a block of its own; only where MERGE_RUNS > 1
MERGE_FROM = 2  # runs from which on a sequence is merged, 1 or 2; 1: no item takes long to finish one


@pl.jit.inline
def pages_of(s: pl.Scalar[pl.INDEX], slot_mapping: pl.Tensor, cu_q: pl.Tensor, ctx: pl.Tensor):
    """KV pages that sequence `s` attends to; 0 if it is dead."""
    return (context_of(s, slot_mapping, cu_q, ctx) + PAGE - 1) // PAGE


@pl.jit.inline
def pages_per_share(slot_mapping: pl.Tensor, cu_q: pl.Tensor, ctx: pl.Tensor):
    """Length of a share such that TARGET_RUNS shares hold the pages of all live sequences."""
    pages = 0
    for s in pl.range(pl.tensor.dim(ctx, 0)):
        pages = pages + pages_of(s, slot_mapping, cu_q, ctx)
    return pl.max((pages + TARGET_RUNS - 1) // TARGET_RUNS, 1)


@pl.jit.inline
def runs_of(page: pl.Scalar[pl.INDEX], pages: pl.Scalar[pl.INDEX], share_pages: pl.Scalar[pl.INDEX]):
    """Shares that hold pages [page, page + pages) of the list, a run of these in each; 0 without pages."""
    return pl.min(pages, (page % share_pages + pages + share_pages - 1) // share_pages)


@pl.jit.inline
def tokens_before():
    """For each row r of a query tile the number of tokens before its own, r // GROUP: [GROUP_ROWS, 1] fp32.

    Token j adds a step from 0 to 1 at row j GROUP.  Made of padding, since an index would not split by rows.
    """
    count = pl.full([GROUP_ROWS, 1], pl.FP32, 0.0)
    for j in pl.unroll(1, SPAN):
        earlier = pl.set_validshape(pl.full([GROUP_ROWS, 1], pl.FP32, 0.0), j * GROUP, 1)
        step = pl.minimum(pl.fillpad(earlier, pad_value=pl.PadValue.max), 1.0)
        count = pl.add(count, step)
    return count


@pl.jit.inline
def causal_line():
    """A bound on the scores of the step's own tokens, [GROUP_ROWS, OWN_ROWS] fp32: for row r and token c
    (r // GROUP - c + 1/2) STEEP.  It falls through zero behind the last token that a row sees.

    Above zero it is far above any score, below zero it makes exp() vanish.
    """
    limit = pl.add(tokens_before(), 0.5)
    column = pl.cast(pl.arange(0, [1, OWN_ROWS], pl.INT32), pl.FP32)
    columns = pl.col_expand(pl.create_tensor([GROUP_ROWS, OWN_ROWS], pl.FP32), column)
    return pl.mul(pl.row_expand_sub(columns, limit), -STEEP)


@pl.jit.inline
def scores_of(query: pl.Tensor, keys: pl.Tensor):
    """`query` [GROUP_ROWS, D] times `keys` [N, D], scaled: [GROUP_ROWS, N] fp32."""
    return pl.mul(pl.matmul(query, keys, out_dtype=pl.FP32, b_trans=True), SCALE)


@pl.jit.inline
def attend(scores: pl.Tensor, values: pl.Tensor, m: pl.Tensor, total: pl.Tensor, acc: pl.Tensor):
    """A step of the online softmax: maximum and sum [GROUP_ROWS, 1] and accumulator [GROUP_ROWS, D] with the
    tokens of `scores` [GROUP_ROWS, N] and `values` [N, D] added, all fp32.
    """
    new_m = pl.maximum(m, pl.row_max(scores))
    decay = pl.exp(pl.sub(m, new_m))
    weights = pl.exp(pl.row_expand_sub(scores, new_m))
    total = pl.add(pl.mul(total, decay), pl.row_sum(weights))
    part = pl.matmul(pl.cast(weights, DTYPE, mode="rint"), values, out_dtype=pl.FP32)
    acc = pl.add(pl.row_expand_mul(acc, decay), part)
    return new_m, total, acc


@pl.jit.inline
def attend_run(
    q: pl.Tensor,
    k_new: pl.Tensor,
    v_new: pl.Tensor,
    k_cache: pl.Tensor,
    v_cache: pl.Tensor,
    block_table: pl.Tensor,
    s: pl.Scalar[pl.INDEX],
    first: pl.Scalar[pl.INDEX],
    count: pl.Scalar[pl.INDEX],
    head: pl.Scalar[pl.INDEX],
    begin: pl.Scalar[pl.INDEX],
    end: pl.Scalar[pl.INDEX],
    tokens: pl.Scalar[pl.INDEX],
):
    """Online softmax of rows [first, first + count) over pages [begin, end) of sequence `s`, which holds
    `tokens` tokens, the last `count` of them in `k_new` and `v_new`: these belong to the last run.

    Returns the running maximum and sum [GROUP_ROWS, 1] and the accumulator [GROUP_ROWS, D], all fp32.
    """
    group = pl.slice(
        q,
        [1, GROUP_ROWS, HEAD_DIM],
        [head, first * GROUP, 0],
        valid_shape=[1, count * GROUP, HEAD_DIM],
        drop_dims=[0],
    )
    query = pl.fillpad(group, pad_value=pl.PadValue.zero)
    m = pl.full([GROUP_ROWS, 1], pl.FP32, LOWEST)
    total = pl.full([GROUP_ROWS, 1], pl.FP32, 0.0)
    acc = pl.full([GROUP_ROWS, HEAD_DIM], pl.FP32, 0.0)
    if end * PAGE >= tokens:
        own = [1, OWN_ROWS, HEAD_DIM]
        live = [1, count, HEAD_DIM]
        own_keys = pl.slice(k_new, own, [head, first, 0], valid_shape=live, drop_dims=[0])
        own_values = pl.slice(v_new, own, [head, first, 0], valid_shape=live, drop_dims=[0])
        own_scores = scores_of(query, own_keys)
        if SPAN > 1:
            own_scores = pl.minimum(own_scores, causal_line())
        m, total, acc = attend(own_scores, own_values, m, total, acc)
    cached = tokens - count
    per_page = PAGE // KV_TILE
    last = (pl.min(end * PAGE, cached) + KV_TILE - 1) // KV_TILE
    for p in pl.pipeline(begin * per_page, last, stage=KV_STAGES):
        page = pl.cast(pl.read(block_table, [s, p // per_page]), pl.INDEX)
        row = (page * KV_HEADS + head) * PAGE + p % per_page * KV_TILE
        live = pl.min(cached - p * KV_TILE, KV_TILE)
        keys = pl.slice(k_cache, [KV_TILE, HEAD_DIM], [row, 0], valid_shape=[live, HEAD_DIM])
        values = pl.slice(v_cache, [KV_TILE, HEAD_DIM], [row, 0], valid_shape=[live, HEAD_DIM])
        m, total, acc = attend(scores_of(query, keys), values, m, total, acc)
    return m, total, acc


@pl.jit.inline
def write_kv(
    k_new: pl.Tensor,
    v_new: pl.Tensor,
    slot_mapping: pl.Tensor,
    first: pl.Scalar[pl.INDEX],
    count: pl.Scalar[pl.INDEX],
    head: pl.Scalar[pl.INDEX],
    k_cache: pl.Tensor,
    v_cache: pl.Tensor,
):
    """Put K and V of rows [first, first + count) at their slots.

    Caches [pages KV PAGE, D] have row (page KV + head) PAGE + offset, slot = page PAGE + offset.
    """
    for j in pl.unroll(SPAN):
        if j < count:
            slot = pl.cast(pl.read(slot_mapping, [first + j]), pl.INDEX)
            row = (slot // PAGE * KV_HEADS + head) * PAGE + slot % PAGE
            place = [head, first + j, 0]
            pl.assemble(k_cache, pl.slice(k_new, [1, 1, HEAD_DIM], place, drop_dims=[0]), [row, 0])
            pl.assemble(v_cache, pl.slice(v_new, [1, 1, HEAD_DIM], place, drop_dims=[0]), [row, 0])


@pl.jit.inline
def leave_partial(
    m: pl.Tensor,
    total: pl.Tensor,
    acc: pl.Tensor,
    place: pl.Scalar[pl.INDEX],
    part_m: pl.Tensor,
    part_sum: pl.Tensor,
    part_acc: pl.Tensor,
):
    """Store the online softmax of a run for the merge."""
    pl.assemble(part_m, m, [place, 0])
    pl.assemble(part_sum, total, [place, 0])
    pl.assemble(part_acc, acc, [place, 0])


@pl.jit.inline
def joined(
    m: pl.Tensor,
    total: pl.Tensor,
    acc: pl.Tensor,
    found_m: pl.Tensor,
    found_sum: pl.Tensor,
    found_acc: pl.Tensor,
):
    """The online softmax of each row, m and total [M, 1] and acc [M, D], with partials joined to it, of which
    rows that are not valid weigh nothing.
    """
    run_m = pl.fillpad(found_m, pad_value=pl.PadValue.min)
    run_sum = pl.fillpad(found_sum, pad_value=pl.PadValue.zero)
    run_acc = pl.fillpad(found_acc, pad_value=pl.PadValue.zero)
    new_m = pl.maximum(m, run_m)
    old = pl.exp(pl.sub(m, new_m))
    new = pl.exp(pl.sub(run_m, new_m))
    total = pl.add(pl.mul(total, old), pl.mul(run_sum, new))
    acc = pl.add(pl.row_expand_mul(acc, old), pl.row_expand_mul(run_acc, new))
    return new_m, total, acc


@pl.jit.inline
def merged(
    before: pl.Scalar[pl.INDEX],
    runs: pl.Scalar[pl.INDEX],
    tile: pl.Scalar[pl.INDEX],
    j: pl.Scalar[pl.INDEX],
    part_m: pl.Tensor,
    part_sum: pl.Tensor,
    part_acc: pl.Tensor,
):
    """Attention of row j of a sequence over all its runs, of which `before` is the first: column tile `tile`
    of its query heads, [1, HEAD_DIM / MERGE_TILES] fp32.

    The partials of one row and head lie a run's tiles apart, so that those of MERGE_RUNS runs are one tile.
    Each row of it keeps a softmax of every MERGE_RUNS-th run; these are added last.
    """
    columns = HEAD_DIM // MERGE_TILES
    height = (MERGE_RUNS + 7) // 8 * 8  # a column of 8 fp32 is the least that aligns
    per_run = KV_HEADS * GROUP_ROWS
    slots = part_m.shape[0] // per_run
    m_by_run = pl.reshape(part_m, [slots, per_run])
    sum_by_run = pl.reshape(part_sum, [slots, per_run])
    acc_by_run = pl.reshape(part_acc, [slots, per_run * HEAD_DIM])
    head = tile // MERGE_TILES
    row = head // GROUP * GROUP_ROWS + j * GROUP + head % GROUP
    column = row * HEAD_DIM + tile % MERGE_TILES * columns
    m = pl.full([height, 1], pl.FP32, LOWEST)
    total = pl.full([height, 1], pl.FP32, 0.0)
    acc = pl.full([height, columns], pl.FP32, 0.0)
    for n in pl.range((runs + MERGE_RUNS - 1) // MERGE_RUNS):
        r = before + n * MERGE_RUNS
        here = pl.min(runs - n * MERGE_RUNS, MERGE_RUNS)
        found_m = pl.slice(m_by_run, [height, 1], [r, row], valid_shape=[here, 1])
        found_sum = pl.slice(sum_by_run, [height, 1], [r, row], valid_shape=[here, 1])
        found_acc = pl.slice(acc_by_run, [height, columns], [r, column], valid_shape=[here, columns])
        m, total, acc = joined(m, total, acc, found_m, found_sum, found_acc)
    weight = pl.exp(pl.col_expand_sub(m, pl.row_max(pl.reshape(m, [1, height]))))
    whole = pl.row_sum(pl.reshape(pl.mul(total, weight), [1, height]))
    return pl.row_expand_div(pl.col_sum(pl.row_expand_mul(acc, weight)), whole)


@pl.jit.inline
def merged_heads(
    before: pl.Scalar[pl.INDEX],
    runs: pl.Scalar[pl.INDEX],
    head: pl.Scalar[pl.INDEX],
    j: pl.Scalar[pl.INDEX],
    part_m: pl.Tensor,
    part_sum: pl.Tensor,
    part_acc: pl.Tensor,
):
    """Attention of row j of a sequence over all its runs, of which `before` is the first: the query heads of
    KV head `head`, the first GROUP rows of a tile [M, HEAD_DIM] fp32.

    Nothing is summed over rows, so that whatever is in the others stays there.
    """
    height = (GROUP + 7) // 8 * 8
    if SPAN > 1:
        live = GROUP  # the rows behind are those of another token, or lie past the end
    else:
        live = height  # a partial has GROUP_ROWS, which are no fewer
    m = pl.full([height, 1], pl.FP32, LOWEST)
    total = pl.full([height, 1], pl.FP32, 0.0)
    acc = pl.full([height, HEAD_DIM], pl.FP32, 0.0)
    for n in pl.range(runs):
        row = ((before + n) * KV_HEADS + head) * GROUP_ROWS + j * GROUP
        found_m = pl.slice(part_m, [height, 1], [row, 0], valid_shape=[live, 1])
        found_sum = pl.slice(part_sum, [height, 1], [row, 0], valid_shape=[live, 1])
        found_acc = pl.slice(part_acc, [height, HEAD_DIM], [row, 0], valid_shape=[live, HEAD_DIM])
        m, total, acc = joined(m, total, acc, found_m, found_sum, found_acc)
    return pl.row_expand_div(acc, total)


@pl.jit.inline
def put_heads(
    done: pl.Tensor,
    t: pl.Scalar[pl.INDEX],
    head: pl.Scalar[pl.INDEX],
    projected: pl.Tensor,
    heads_out: pl.Tensor,
):
    """Store the query heads of KV head `head` for row `t` in `heads_out` [T Q, D]: the first GROUP rows of a
    tile [M, D] fp32, through the gate if there is one.
    """
    if GATE_HEADS > 0:
        rows = pl.tensor.dim(projected, 0)
        heads = pl.reshape(projected, [rows * projected.shape[1] // HEAD_DIM, HEAD_DIM])
        at = t * (projected.shape[1] // HEAD_DIM) + head * GROUP
        gate = pl.slice(heads, [done.shape[0], HEAD_DIM], [at, 0], valid_shape=[GROUP, HEAD_DIM])
        done = gated(done, pl.fillpad(gate))
    else:
        done = pl.cast(done, DTYPE, mode="rint")
    pl.assemble(heads_out, pl.set_validshape(done, GROUP, HEAD_DIM), [t * Q_HEADS + head * GROUP, 0])


@pl.jit.inline
def query_rows(s: pl.Scalar[pl.INDEX], slot_mapping: pl.Tensor, cu_q: pl.Tensor, ctx: pl.Tensor):
    """Rows of sequence `s` that one query tile takes; a constant where SPAN is 1.

    Rows beyond SPAN are never written, so that whatever reads them is an error and not a wrong number.
    """
    if SPAN > 1:
        count = pl.min(rows_of(s, slot_mapping, cu_q, ctx), SPAN)
    else:
        count = 1
    return count


@pl.jit.inline
def plan_runs(
    slot_mapping: pl.Tensor, cu_q: pl.Tensor, ctx: pl.Tensor, run_table: pl.Tensor, row_table: pl.Tensor
):
    """Who works on what, so that the blocks to come find it in tables.

    `run_table` [B TARGET_RUNS, 8] has run n of a share in row n TARGET_RUNS + share, where it is found by a
    single look-up if it is the first: (sequence, first page, end page, tokens, first row, rows, place of its
    partial), and in the first run's row, be there one or not, how many runs the share has.  `row_table`
    [T, 3] = (first run, runs, row of its sequence) of each row, zeros if it is dead.  Block i writes how many
    runs share i has, run i and row i, which it finds in a walk over the sequences.
    """
    batch = pl.tensor.dim(ctx, 0)
    rows = pl.tensor.dim(slot_mapping, 0)
    for i in pl.spmd(pl.max(batch + TARGET_RUNS, rows), name_hint="attention_runs"):
        share_pages = pages_per_share(slot_mapping, cu_q, ctx)
        row_owner = sequence_of(i, slot_mapping, cu_q, ctx)
        share_first = 0  # the first run of share i
        share_end = 0  # and of the next
        run_owner = 0  # the sequence of run i
        run_share = 0
        run_nth = 0  # runs of this share before it
        run_page = 0  # the owner's first page in the list of all
        row_first = 0
        row_runs = 0
        j = 0
        before = 0
        page = 0
        nth = 0  # runs before this sequence in the share that `page` is in
        for s in pl.range(batch):
            pages = pages_of(s, slot_mapping, cu_q, ctx)
            runs = runs_of(page, pages, share_pages)
            first = pl.cast(pl.read(cu_q, [s]), pl.INDEX)
            share = page // share_pages
            # The last sequence that begins where the share does or before holds its first page, if it has one
            if page <= i * share_pages:
                share_first = before + pl.min(i - share, runs)
            if page <= (i + 1) * share_pages:
                share_end = before + pl.min(i + 1 - share, runs)
            if before <= i:  # the last one: a sequence without runs is followed by the owner, or by no run
                run_owner = s
                run_share = share + i - before
                run_nth = nth * pl.max(before + 1 - i, 0)  # 0 if the sequence began in an earlier share
                run_page = page
            if s == row_owner:
                row_first = before
                row_runs = runs
                j = i - first
            before = before + runs
            page = page + pages
            nth = nth + runs
            if page // share_pages > share:
                nth = pl.min(page % share_pages, 1)
        tokens = context_of(run_owner, slot_mapping, cu_q, ctx)
        begin = pl.max(run_share * share_pages - run_page, 0)
        end = pl.min((run_share + 1) * share_pages - run_page, (tokens + PAGE - 1) // PAGE)
        count = query_rows(run_owner, slot_mapping, cu_q, ctx)
        first_row = pl.read(cu_q, [run_owner])  # ahead of the writes, which wait for the launch before
        if i < TARGET_RUNS:
            pl.write(run_table, [i, 7], pl.cast(share_end - share_first, pl.INT32))
        if i < before:
            place = run_nth * TARGET_RUNS + run_share
            pl.write(run_table, [place, 0], pl.cast(run_owner, pl.INT32))
            pl.write(run_table, [place, 1], pl.cast(begin, pl.INT32))
            pl.write(run_table, [place, 2], pl.cast(end, pl.INT32))
            pl.write(run_table, [place, 3], pl.cast(tokens, pl.INT32))
            pl.write(run_table, [place, 4], first_row)
            pl.write(run_table, [place, 5], pl.cast(count, pl.INT32))
            pl.write(run_table, [place, 6], pl.cast(i, pl.INT32))
        if i < rows:
            pl.write(row_table, [i, 0], pl.cast(row_first, pl.INT32))
            pl.write(row_table, [i, 1], pl.cast(row_runs, pl.INT32))
            pl.write(row_table, [i, 2], pl.cast(j, pl.INT32))
    return run_table, row_table


@pl.jit.inline
def entry(table: pl.Tensor, row: pl.Scalar[pl.INDEX], column: pl.Scalar[pl.INDEX]):
    """An entry of a table, as an index."""
    return pl.cast(pl.read(table, [row, column]), pl.INDEX)


@pl.jit.inline
def attention(
    q: pl.Tensor,
    k_new: pl.Tensor,
    v_new: pl.Tensor,
    k_cache: pl.Tensor,
    v_cache: pl.Tensor,
    block_table: pl.Tensor,
    slot_mapping: pl.Tensor,
    cu_q: pl.Tensor,
    ctx: pl.Tensor,
    projected: pl.Tensor,
    out: pl.Tensor,
):
    """`out` [T, Q D] = causal attention of `q` [KV, T GROUP, D] over the caches and the step's own `k_new`
    and `v_new` [KV, T, D], which are written to the caches; dead rows become zeros and write nothing.

    `q`, `k_new` and `v_new` are as `rope` leaves them; a sequence has up to SPAN live rows.  With GATE_HEADS,
    each element goes through the sigmoid gate that the first columns of `projected` [T, N] fp32 hold for it.
    """
    rows = pl.tensor.dim(out, 0)
    batch = pl.tensor.dim(ctx, 0)
    heads_out = pl.reshape(out, [rows * Q_HEADS, HEAD_DIM])
    slots = (MAX_BATCH + TARGET_RUNS - 1) * KV_HEADS  # a partial per run and KV head, at most
    part_m = pl.create_tensor([slots * GROUP_ROWS, 1], pl.FP32)
    part_sum = pl.create_tensor([slots * GROUP_ROWS, 1], pl.FP32)
    part_acc = pl.create_tensor([slots * GROUP_ROWS, HEAD_DIM], pl.FP32)
    run_table = pl.create_tensor([batch * TARGET_RUNS, 8], pl.INT32)
    row_table = pl.create_tensor([rows, 3], pl.INT32)
    run_table, row_table = plan_runs(slot_mapping, cu_q, ctx, run_table, row_table)

    for item in pl.spmd(
        TARGET_RUNS * KV_HEADS,
        name_hint="attention",
        optimizations=[pl.split(pl.SplitMode.UP_DOWN)],
    ):
        share = item // KV_HEADS
        head = item % KV_HEADS
        for nth in pl.range(entry(run_table, share, 7)):
            run = nth * TARGET_RUNS + share
            seq = entry(run_table, run, 0)
            begin = entry(run_table, run, 1)
            end = entry(run_table, run, 2)
            tokens = entry(run_table, run, 3)
            first = entry(run_table, run, 4)
            if SPAN > 1:
                count = entry(run_table, run, 5)
            else:
                count = 1
            m, total, acc = attend_run(
                q, k_new, v_new, k_cache, v_cache, block_table, seq, first, count, head, begin, end, tokens
            )
            place = (entry(run_table, run, 6) * KV_HEADS + head) * GROUP_ROWS
            if SPAN == 1 and MERGE_FROM > 1:
                if begin == 0 and end * PAGE >= tokens:  # the only run of its sequence
                    put_heads(pl.row_expand_div(acc, total), first, head, projected, heads_out)
                else:
                    leave_partial(m, total, acc, place, part_m, part_sum, part_acc)
            else:
                leave_partial(m, total, acc, place, part_m, part_sum, part_acc)
            if begin == 0:
                write_kv(k_new, v_new, slot_mapping, first, count, head, k_cache, v_cache)

    if MERGE_RUNS > 1:
        columns = HEAD_DIM // MERGE_TILES
    else:
        columns = GROUP * HEAD_DIM
    tiles = Q_HEADS * HEAD_DIM // columns
    for task in pl.spmd(rows * tiles, name_hint="attention_merge"):
        t = task // tiles
        tile = task % tiles
        before = entry(row_table, t, 0)
        runs = entry(row_table, t, 1)
        j = entry(row_table, t, 2)
        if runs == 0:
            pl.assemble(out, pl.full([1, columns], DTYPE, 0.0), [t, tile * columns])
        elif j < SPAN and (SPAN > 1 or runs > 1 or MERGE_FROM == 1):
            if MERGE_RUNS > 1:
                done = merged(before, runs, tile, j, part_m, part_sum, part_acc)
                if GATE_HEADS > 0:
                    done = gated(done, pl.slice(projected, [1, columns], [t, tile * columns]))
                else:
                    done = pl.cast(done, DTYPE, mode="rint")
                pl.assemble(out, done, [t, tile * columns])
            else:
                done = merged_heads(before, runs, tile, j, part_m, part_sum, part_acc)
                put_heads(done, t, tile, projected, heads_out)
    return out
