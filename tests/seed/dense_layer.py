"""A dense decode layer as it is written for a scratchpad chip: the yardstick of language, passes, simulator.

One step of Qwen3-14B at batch 16: RMSNorm, q/k/v projections, per-head norms, RoPE and the paged KV write,
attention, output projection, MLP, final norm and LM head, in sixteen regions with the structure, sizes and
tiles of pypto-lib's decode layer (its pull request 387).  It is plain and padded: 16 rows whatever the batch,
one K loop per projection with its first step peeled, attention that leaves a partial per KV page and a
second region that merges them.  Two things are stricter here: the rows below the batch are zeroed on entry,
so that nothing reads memory that was never written, and the caches are declared InOut.

Weights are [K, N], layers stacked by rows; the LM head is [V, K].  Row of the caches:
(page * KV_HEADS + head) * PAGE + offset, below the pages of earlier layers.  The sizes are constants of the
module, so that a test may compile the layer small.
"""

from __future__ import annotations

import pypto_models.language as pl

# --- model
ELEM = pl.BF16
HIDDEN = 5120
HEADS = 40
KV_HEADS = 8
GROUP = 5  # query heads of a KV head
HEAD_DIM = 128
INTERMEDIATE = 17408
VOCAB = 152064
EPS = 1e-6

# --- step
BATCH = 16  # rows of every tile; the batch of a call is at most this
PAGE = 128  # tokens of a KV page
MAX_PAGES = 32  # of one sequence

# --- tiles
K_TILE = 256
N_TILE = 256
GROUP_PAD = 16  # GROUP as rows of a matmul
FINAL_TILE = 128
HEAD_K = 128
HEAD_N = 64

USER_BATCH = pl.dynamic("USER_BATCH")
TABLE_SIZE = pl.dynamic("TABLE_SIZE")
CACHE_ROWS = pl.dynamic("CACHE_ROWS")
ROPE_ROWS = pl.dynamic("ROPE_ROWS")
LAYERS = pl.dynamic("LAYERS")
LAYER_HIDDEN_ROWS = pl.dynamic("LAYER_HIDDEN_ROWS")
LAYER_Q_ROWS = pl.dynamic("LAYER_Q_ROWS")
LAYER_INTER_ROWS = pl.dynamic("LAYER_INTER_ROWS")


# ---------------------------------------------------------------------------------------------- shared parts
@pl.jit.inline
def rms_rows(
    x: pl.Tensor, weight: pl.Tensor, row: pl.Scalar[pl.INDEX], width: pl.Scalar[pl.INDEX], out: pl.Tensor
):
    """`out` = RMSNorm of the BATCH rows of `x`, times row `row` of `weight`, in two passes over tiles."""
    total = pl.full([1, BATCH], dtype=pl.FP32, value=0.0)
    for kb in pl.range(HIDDEN // width):
        part = pl.cast(pl.slice(x, [BATCH, width], [0, kb * width]), target_type=pl.FP32)
        total = pl.add(total, pl.reshape(pl.row_sum(pl.mul(part, part)), [1, BATCH]))
    scale = pl.recip(pl.sqrt(pl.add(pl.mul(total, 1.0 / HIDDEN), EPS)))
    scale_col = pl.reshape(scale, [BATCH, 1])
    for kb in pl.range(HIDDEN // width):
        k0 = kb * width
        part = pl.cast(pl.slice(x, [BATCH, width], [0, k0]), target_type=pl.FP32)
        gain = pl.slice(weight, [1, width], [row, k0])
        normed = pl.col_expand_mul(pl.row_expand_mul(part, scale_col), gain)
        out = pl.assemble(out, pl.cast(normed, target_type=ELEM), [0, k0])
    return out


@pl.jit.inline
def k_step(
    acc: pl.Tensor,
    x: pl.Tensor,
    w: pl.Tensor,
    row0: pl.Scalar[pl.INDEX],
    k0: pl.Scalar[pl.INDEX],
    n0: pl.Scalar[pl.INDEX],
):
    """`acc` += `x`[:, k0:] @ `w`[row0 + k0:, n0:], one tile; the step at 0 gives `acc` its value."""
    xk = pl.slice(x, [BATCH, K_TILE], [0, k0])
    wk = pl.slice(w, [K_TILE, N_TILE], [row0 + k0, n0])
    if k0 == 0:
        acc = pl.matmul(xk, wk, out_dtype=pl.FP32)
    else:
        acc = pl.matmul_acc(acc, xk, wk)
    return acc


@pl.jit.inline
def normed_heads(x: pl.Tensor, weight: pl.Tensor, row: pl.Scalar[pl.INDEX]):
    """RMSNorm of each row of `x` [M, HEAD_DIM] fp32, times row `row` of `weight`."""
    mean_square = pl.mul(pl.row_sum(pl.mul(x, x)), 1.0 / HEAD_DIM)
    scaled = pl.row_expand_mul(x, pl.rsqrt(pl.add(mean_square, EPS)))
    return pl.col_expand_mul(scaled, pl.slice(weight, [1, HEAD_DIM], [row, 0]))


# ---------------------------------------------------------------------------------------------- the layer
@pl.jit.inline
def decode_layer(
    hidden: pl.Tensor,
    input_rms_weight: pl.Tensor,
    wq: pl.Tensor,
    wk: pl.Tensor,
    wv: pl.Tensor,
    q_norm_weight: pl.Tensor,
    k_norm_weight: pl.Tensor,
    seq_lens: pl.Tensor,
    block_table: pl.Tensor,
    slot_mapping: pl.Tensor,
    rope_cos: pl.Tensor,
    rope_sin: pl.Tensor,
    k_cache: pl.Tensor,
    v_cache: pl.Tensor,
    wo: pl.Tensor,
    post_rms_weight: pl.Tensor,
    w_gate: pl.Tensor,
    w_up: pl.Tensor,
    w_down: pl.Tensor,
    next_hidden: pl.Tensor,
    layer_idx: pl.Scalar[pl.INT32],
):
    """Layer `layer_idx`: writes and returns `next_hidden`, both [BATCH, HIDDEN]."""
    user_batch = pl.tensor.dim(seq_lens, 0)
    hidden_row = layer_idx * HIDDEN
    cache_row = layer_idx * (user_batch * MAX_PAGES * KV_HEADS * PAGE)

    # Scope 1: norm and projections
    normed_tile = pl.create_tensor([BATCH, HIDDEN], dtype=ELEM)
    q_proj = pl.create_tensor([BATCH, HEADS * HEAD_DIM], dtype=pl.FP32)
    k_proj = pl.create_tensor([BATCH, KV_HEADS * HEAD_DIM], dtype=pl.FP32)
    v_proj = pl.create_tensor([BATCH, KV_HEADS * HEAD_DIM], dtype=pl.FP32)

    for _ in pl.parallel(1):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="rmsnorm"):
            normed_tile = rms_rows(hidden, input_rms_weight, layer_idx, K_TILE, normed_tile)

    for nb in pl.parallel(HEADS * HEAD_DIM // N_TILE):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="q_proj"):
            n0 = nb * N_TILE
            q_acc = pl.create_tensor([BATCH, N_TILE], dtype=pl.FP32)
            for kb in pl.range(HIDDEN // K_TILE):
                q_acc = k_step(q_acc, normed_tile, wq, hidden_row, kb * K_TILE, n0)
            q_proj = pl.assemble(q_proj, q_acc, [0, n0])

    for nb in pl.parallel(KV_HEADS * HEAD_DIM // N_TILE):
        n0 = nb * N_TILE
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="k_proj"):
            k_acc = pl.create_tensor([BATCH, N_TILE], dtype=pl.FP32)
            for kb in pl.range(HIDDEN // K_TILE):
                k_acc = k_step(k_acc, normed_tile, wk, hidden_row, kb * K_TILE, n0)
            k_proj = pl.assemble(k_proj, k_acc, [0, n0])
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="v_proj"):
            v_acc = pl.create_tensor([BATCH, N_TILE], dtype=pl.FP32)
            for kb in pl.range(HIDDEN // K_TILE):
                v_acc = k_step(v_acc, normed_tile, wv, hidden_row, kb * K_TILE, n0)
            v_proj = pl.assemble(v_proj, v_acc, [0, n0])

    # Scope 2: per-head norms, RoPE and KV write, attention, output projection
    q_proj_norm = pl.create_tensor([BATCH, HEADS * HEAD_DIM], dtype=pl.FP32)
    k_proj_norm = pl.create_tensor([BATCH, KV_HEADS * HEAD_DIM], dtype=pl.FP32)
    for _ in pl.parallel(1):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="qk_norm"):
            for h in pl.range(KV_HEADS):
                q0 = h * GROUP * HEAD_DIM
                q_rows = pl.slice(q_proj, [BATCH, GROUP * HEAD_DIM], [0, q0])
                q_heads = pl.reshape(q_rows, [BATCH * GROUP, HEAD_DIM])
                q_normed = pl.reshape(
                    normed_heads(q_heads, q_norm_weight, layer_idx), [BATCH, GROUP * HEAD_DIM]
                )
                q_proj_norm = pl.assemble(q_proj_norm, q_normed, [0, q0])
                k0 = h * HEAD_DIM
                k_heads = pl.slice(k_proj, [BATCH, HEAD_DIM], [0, k0])
                k_proj_norm = pl.assemble(
                    k_proj_norm, normed_heads(k_heads, k_norm_weight, layer_idx), [0, k0]
                )

    all_q_padded = pl.create_tensor([BATCH * KV_HEADS * GROUP_PAD, HEAD_DIM], dtype=ELEM)
    half = HEAD_DIM // 2
    for b in pl.parallel(user_batch):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="rope_kv_cache"):
            pos = pl.cast(pl.tensor.read(seq_lens, [b]), pl.INDEX) - 1
            slot = pl.cast(pl.tensor.read(slot_mapping, [b]), pl.INDEX)
            page = slot // PAGE
            offset = slot - page * PAGE
            cos_lo = pl.slice(rope_cos, [1, half], [pos, 0])
            cos_hi = pl.slice(rope_cos, [1, half], [pos, half])
            sin_lo = pl.slice(rope_sin, [1, half], [pos, 0])
            sin_hi = pl.slice(rope_sin, [1, half], [pos, half])
            for h in pl.range(KV_HEADS):
                k0 = h * HEAD_DIM
                row = cache_row + (page * KV_HEADS + h) * PAGE + offset
                k_lo = pl.slice(k_proj_norm, [1, half], [b, k0])
                k_hi = pl.slice(k_proj_norm, [1, half], [b, k0 + half])
                k_lo_rot = pl.sub(pl.mul(k_lo, cos_lo), pl.mul(k_hi, sin_lo))
                k_hi_rot = pl.add(pl.mul(k_hi, cos_hi), pl.mul(k_lo, sin_hi))
                k_cache = pl.assemble(k_cache, pl.cast(k_lo_rot, target_type=ELEM), [row, 0])
                k_cache = pl.assemble(k_cache, pl.cast(k_hi_rot, target_type=ELEM), [row, half])
                v_row = pl.slice(v_proj, [1, HEAD_DIM], [b, k0])
                v_cache = pl.assemble(v_cache, pl.cast(v_row, target_type=ELEM), [row, 0])

                q_row = pl.slice(q_proj_norm, [1, GROUP * HEAD_DIM], [b, h * GROUP * HEAD_DIM])
                q_heads = pl.reshape(q_row, [GROUP, HEAD_DIM])
                q_lo = pl.slice(q_heads, [GROUP, half], [0, 0])
                q_hi = pl.slice(q_heads, [GROUP, half], [0, half])
                q_lo_rot = pl.sub(pl.col_expand_mul(q_lo, cos_lo), pl.col_expand_mul(q_hi, sin_lo))
                q_hi_rot = pl.add(pl.col_expand_mul(q_hi, cos_hi), pl.col_expand_mul(q_lo, sin_hi))
                q0 = (b * KV_HEADS + h) * GROUP_PAD
                all_q_padded = pl.assemble(all_q_padded, pl.cast(q_lo_rot, target_type=ELEM), [q0, 0])
                all_q_padded = pl.assemble(all_q_padded, pl.cast(q_hi_rot, target_type=ELEM), [q0, half])
                zeros = pl.full([GROUP_PAD - GROUP, HEAD_DIM], dtype=pl.FP32, value=0.0)
                all_q_padded = pl.assemble(all_q_padded, pl.cast(zeros, target_type=ELEM), [q0 + GROUP, 0])

    # One partial (values, maximum, sum) per row, KV head and page
    all_oi = pl.create_tensor([BATCH * KV_HEADS * MAX_PAGES * GROUP_PAD, HEAD_DIM], dtype=pl.FP32)
    all_mi = pl.create_tensor([BATCH * KV_HEADS * MAX_PAGES * GROUP_PAD, 1], dtype=pl.FP32)
    all_li = pl.create_tensor([BATCH * KV_HEADS * MAX_PAGES * GROUP_PAD, 1], dtype=pl.FP32)
    for fa_idx in pl.spmd(BATCH * KV_HEADS // 2, name_hint="fa_fused"):
        fa_b = fa_idx // (KV_HEADS // 2)
        fa_pair = fa_idx % (KV_HEADS // 2)
        live_b = pl.min(fa_b, user_batch - 1)  # lanes past the batch repeat its last row
        tokens = pl.cast(pl.tensor.read(seq_lens, [live_b]), pl.INDEX)
        pages = (tokens + PAGE - 1) // PAGE
        for gi in pl.pipeline(2, stage=2):
            h = fa_pair * 2 + gi
            q_pad = pl.slice(all_q_padded, [GROUP_PAD, HEAD_DIM], [(live_b * KV_HEADS + h) * GROUP_PAD, 0])
            for sb in pl.range(pages):
                page = pl.cast(pl.tensor.read(block_table, [live_b * MAX_PAGES + sb]), pl.INDEX)
                row = cache_row + (page * KV_HEADS + h) * PAGE
                valid_len = pl.min(PAGE, tokens - sb * PAGE)
                k_tile = pl.slice(k_cache, [PAGE, HEAD_DIM], [row, 0])
                raw = pl.mul(pl.matmul(q_pad, k_tile, out_dtype=pl.FP32, b_trans=True), HEAD_DIM**-0.5)
                masked = pl.set_validshape(raw, GROUP_PAD // 2, valid_len)
                scores = pl.fillpad(masked, pad_value=pl.PadValue.min)
                mi = pl.row_max(scores)
                weights = pl.cast(pl.exp(pl.row_expand_sub(scores, mi)), target_type=ELEM)
                li = pl.row_sum(pl.cast(weights, target_type=pl.FP32))
                v_tile = pl.slice(v_cache, [PAGE, HEAD_DIM], [row, 0])
                oi = pl.matmul(weights, v_tile, out_dtype=pl.FP32)
                place = ((fa_b * KV_HEADS + h) * MAX_PAGES + sb) * GROUP_PAD
                all_oi = pl.assemble(all_oi, oi, [place, 0])
                all_mi = pl.assemble(all_mi, mi, [place, 0])
                all_li = pl.assemble(all_li, li, [place, 0])

    attn_out = pl.create_tensor([BATCH, HEADS * HEAD_DIM], dtype=ELEM)
    for os_idx in pl.spmd(BATCH * KV_HEADS, name_hint="online_softmax"):
        os_b = os_idx // KV_HEADS
        h = os_idx % KV_HEADS
        tokens = pl.cast(pl.tensor.read(seq_lens, [pl.min(os_b, user_batch - 1)]), pl.INDEX)
        pages = (tokens + PAGE - 1) // PAGE
        first = os_idx * MAX_PAGES * GROUP_PAD
        oi = pl.slice(all_oi, [GROUP_PAD, HEAD_DIM], [first, 0])
        mi = pl.slice(all_mi, [GROUP_PAD, 1], [first, 0])
        li = pl.slice(all_li, [GROUP_PAD, 1], [first, 0])
        for sb in pl.range(1, pages):
            place = first + sb * GROUP_PAD
            oi_new = pl.slice(all_oi, [GROUP_PAD, HEAD_DIM], [place, 0])
            mi_new = pl.slice(all_mi, [GROUP_PAD, 1], [place, 0])
            li_new = pl.slice(all_li, [GROUP_PAD, 1], [place, 0])
            mi_max = pl.maximum(mi, mi_new)
            alpha = pl.exp(pl.sub(mi, mi_max))
            beta = pl.exp(pl.sub(mi_new, mi_max))
            li = pl.add(pl.mul(alpha, li), pl.mul(beta, li_new))
            oi = pl.add(pl.row_expand_mul(oi, alpha), pl.row_expand_mul(oi_new, beta))
            mi = mi_max
        heads = pl.slice(pl.row_expand_div(oi, li), [GROUP, HEAD_DIM], [0, 0])
        flat = pl.cast(pl.reshape(heads, [1, GROUP * HEAD_DIM]), target_type=ELEM)
        attn_out = pl.assemble(attn_out, flat, [os_b, h * GROUP * HEAD_DIM])

    resid1_tile = pl.create_tensor([BATCH, HIDDEN], dtype=pl.FP32)
    for nb in pl.spmd(HIDDEN // N_TILE, name_hint="out_proj", optimizations=[pl.split(pl.SplitMode.UP_DOWN)]):
        n0 = nb * N_TILE
        o_acc = pl.create_tensor([BATCH, N_TILE], dtype=pl.FP32)
        for kb in pl.range(HEADS * HEAD_DIM // K_TILE):
            o_acc = k_step(o_acc, attn_out, wo, layer_idx * (HEADS * HEAD_DIM), kb * K_TILE, n0)
        residual = pl.cast(pl.slice(hidden, [BATCH, N_TILE], [0, n0]), target_type=pl.FP32)
        resid1_tile = pl.assemble(resid1_tile, pl.add(o_acc, residual), [0, n0])

    # Scope 3: MLP
    post_norm_tile = pl.create_tensor([BATCH, HIDDEN], dtype=ELEM)
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="post_rmsnorm"):
        post_norm_tile = rms_rows(resid1_tile, post_rms_weight, layer_idx, K_TILE, post_norm_tile)

    mlp_tile = pl.create_tensor([BATCH, INTERMEDIATE], dtype=ELEM)
    for nb in pl.spmd(
        INTERMEDIATE // N_TILE, name_hint="gate_up_silu", optimizations=[pl.split(pl.SplitMode.UP_DOWN)]
    ):
        n0 = nb * N_TILE
        gate = pl.create_tensor([BATCH, N_TILE], dtype=pl.FP32)
        up = pl.create_tensor([BATCH, N_TILE], dtype=pl.FP32)
        for kb in pl.range(HIDDEN // K_TILE):
            k0 = kb * K_TILE
            xk = pl.slice(post_norm_tile, [BATCH, K_TILE], [0, k0])
            wg = pl.slice(w_gate, [K_TILE, N_TILE], [hidden_row + k0, n0])
            wu = pl.slice(w_up, [K_TILE, N_TILE], [hidden_row + k0, n0])
            if k0 == 0:
                gate = pl.matmul(xk, wg, out_dtype=pl.FP32)
                up = pl.matmul(xk, wu, out_dtype=pl.FP32)
            else:
                gate = pl.matmul_acc(gate, xk, wg)
                up = pl.matmul_acc(up, xk, wu)
        sigmoid = pl.recip(pl.add(pl.exp(pl.neg(gate)), 1.0))
        act = pl.mul(pl.mul(gate, sigmoid), up)
        mlp_tile = pl.assemble(mlp_tile, pl.cast(act, target_type=ELEM), [0, n0])

    for nb in pl.spmd(
        HIDDEN // N_TILE, name_hint="down_proj", optimizations=[pl.split(pl.SplitMode.UP_DOWN)]
    ):
        n0 = nb * N_TILE
        d_acc = pl.create_tensor([BATCH, N_TILE], dtype=pl.FP32)
        for kb in pl.range(INTERMEDIATE // K_TILE):
            d_acc = k_step(d_acc, mlp_tile, w_down, layer_idx * INTERMEDIATE, kb * K_TILE, n0)
        total = pl.add(d_acc, pl.slice(resid1_tile, [BATCH, N_TILE], [0, n0]))
        next_hidden = pl.assemble(next_hidden, pl.cast(total, target_type=ELEM), [0, n0])
    return next_hidden


@pl.jit.inline
def rms_lm_head(
    hidden: pl.Tensor,
    final_norm_weight: pl.Tensor,
    lm_head_weight: pl.Tensor,
    seq_lens: pl.Tensor,
    out: pl.Tensor,
):
    """`out` [USER_BATCH, VOCAB] fp32 = RMSNorm(`hidden`) @ `lm_head_weight`^T."""
    user_batch = pl.tensor.dim(seq_lens, 0)
    final_tile = pl.create_tensor([BATCH, HIDDEN], dtype=ELEM)
    for _ in pl.parallel(1):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="final_rmsnorm"):
            final_tile = rms_rows(hidden, final_norm_weight, 0, FINAL_TILE, final_tile)

    for nb in pl.parallel(VOCAB // HEAD_N):
        v0 = nb * HEAD_N
        lm_acc_gm = pl.create_tensor([BATCH, HEAD_N], dtype=pl.FP32)
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="lm_head"):
            lm_acc = pl.create_tensor([BATCH, HEAD_N], dtype=pl.FP32)
            for kb in pl.range(HIDDEN // HEAD_K):
                k0 = kb * HEAD_K
                xk = pl.slice(final_tile, [BATCH, HEAD_K], [0, k0])
                w = pl.slice(lm_head_weight, [HEAD_N, HEAD_K], [v0, k0])
                if k0 == 0:
                    lm_acc = pl.matmul(xk, w, out_dtype=pl.FP32, b_trans=True)
                else:
                    lm_acc = pl.matmul_acc(lm_acc, xk, w, b_trans=True)
            lm_acc_gm = pl.assemble(lm_acc_gm, lm_acc, [0, 0])
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="lm_head_store"):
            logits = pl.slice(lm_acc_gm, [BATCH, HEAD_N], [0, 0], valid_shape=[user_batch, HEAD_N])
            out = pl.assemble(out, logits, [0, v0])
    return out


@pl.jit.inline
def copy_hidden(hidden_states: pl.Tensor, current_hidden: pl.Tensor):
    """The rows of the batch, and zeros below them: every later region works on BATCH rows."""
    user_batch = pl.tensor.dim(hidden_states, 0)
    for _ in pl.parallel(1):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="copy_hidden"):
            rows = pl.min(BATCH, user_batch)
            for kb in pl.range(HIDDEN // K_TILE):
                k0 = kb * K_TILE
                part = pl.slice(hidden_states, [BATCH, K_TILE], [0, k0], valid_shape=[rows, K_TILE])
                padded = pl.fillpad(part, pad_value=pl.PadValue.zero)
                current_hidden = pl.assemble(current_hidden, padded, [0, k0])
    return current_hidden


# ---------------------------------------------------------------------------------------------- entries
@pl.jit
def dense_layer(
    hidden_states: pl.Tensor[[USER_BATCH, HIDDEN], ELEM],
    input_rms_weight: pl.Tensor[[LAYERS, HIDDEN], pl.FP32],
    wq: pl.Tensor[[LAYER_HIDDEN_ROWS, HEADS * HEAD_DIM], ELEM],
    wk: pl.Tensor[[LAYER_HIDDEN_ROWS, KV_HEADS * HEAD_DIM], ELEM],
    wv: pl.Tensor[[LAYER_HIDDEN_ROWS, KV_HEADS * HEAD_DIM], ELEM],
    q_norm_weight: pl.Tensor[[LAYERS, HEAD_DIM], pl.FP32],
    k_norm_weight: pl.Tensor[[LAYERS, HEAD_DIM], pl.FP32],
    seq_lens: pl.Tensor[[USER_BATCH], pl.INT32],
    block_table: pl.Tensor[[TABLE_SIZE], pl.INT32],
    slot_mapping: pl.Tensor[[USER_BATCH], pl.INT32],
    rope_cos: pl.Tensor[[ROPE_ROWS, HEAD_DIM], pl.FP32],
    rope_sin: pl.Tensor[[ROPE_ROWS, HEAD_DIM], pl.FP32],
    k_cache: pl.InOut[pl.Tensor[[CACHE_ROWS, HEAD_DIM], ELEM]],
    v_cache: pl.InOut[pl.Tensor[[CACHE_ROWS, HEAD_DIM], ELEM]],
    wo: pl.Tensor[[LAYER_Q_ROWS, HIDDEN], ELEM],
    post_rms_weight: pl.Tensor[[LAYERS, HIDDEN], pl.FP32],
    w_gate: pl.Tensor[[LAYER_HIDDEN_ROWS, INTERMEDIATE], ELEM],
    w_up: pl.Tensor[[LAYER_HIDDEN_ROWS, INTERMEDIATE], ELEM],
    w_down: pl.Tensor[[LAYER_INTER_ROWS, HIDDEN], ELEM],
    final_norm_weight: pl.Tensor[[1, HIDDEN], pl.FP32],
    lm_head_weight: pl.Tensor[[VOCAB, HIDDEN], ELEM],
    out: pl.Out[pl.Tensor[[USER_BATCH, VOCAB], pl.FP32]],
):
    """One layer, the final norm and the LM head."""
    current_hidden = pl.create_tensor([BATCH, HIDDEN], dtype=ELEM)
    next_hidden = pl.create_tensor([BATCH, HIDDEN], dtype=ELEM)
    current_hidden = copy_hidden(hidden_states, current_hidden)
    current_hidden = decode_layer(
        current_hidden, input_rms_weight, wq, wk, wv, q_norm_weight, k_norm_weight, seq_lens, block_table,
        slot_mapping, rope_cos, rope_sin, k_cache, v_cache, wo, post_rms_weight, w_gate, w_up, w_down,
        next_hidden, 0,
    )  # fmt: skip
    out = rms_lm_head(current_hidden, final_norm_weight, lm_head_weight, seq_lens, out)
    return out


@pl.jit
def two_dense_layers(
    hidden_states: pl.Tensor[[USER_BATCH, HIDDEN], ELEM],
    input_rms_weight: pl.Tensor[[LAYERS, HIDDEN], pl.FP32],
    wq: pl.Tensor[[LAYER_HIDDEN_ROWS, HEADS * HEAD_DIM], ELEM],
    wk: pl.Tensor[[LAYER_HIDDEN_ROWS, KV_HEADS * HEAD_DIM], ELEM],
    wv: pl.Tensor[[LAYER_HIDDEN_ROWS, KV_HEADS * HEAD_DIM], ELEM],
    q_norm_weight: pl.Tensor[[LAYERS, HEAD_DIM], pl.FP32],
    k_norm_weight: pl.Tensor[[LAYERS, HEAD_DIM], pl.FP32],
    seq_lens: pl.Tensor[[USER_BATCH], pl.INT32],
    block_table: pl.Tensor[[TABLE_SIZE], pl.INT32],
    slot_mapping: pl.Tensor[[USER_BATCH], pl.INT32],
    rope_cos: pl.Tensor[[ROPE_ROWS, HEAD_DIM], pl.FP32],
    rope_sin: pl.Tensor[[ROPE_ROWS, HEAD_DIM], pl.FP32],
    k_cache: pl.InOut[pl.Tensor[[CACHE_ROWS, HEAD_DIM], ELEM]],
    v_cache: pl.InOut[pl.Tensor[[CACHE_ROWS, HEAD_DIM], ELEM]],
    wo: pl.Tensor[[LAYER_Q_ROWS, HIDDEN], ELEM],
    post_rms_weight: pl.Tensor[[LAYERS, HIDDEN], pl.FP32],
    w_gate: pl.Tensor[[LAYER_HIDDEN_ROWS, INTERMEDIATE], ELEM],
    w_up: pl.Tensor[[LAYER_HIDDEN_ROWS, INTERMEDIATE], ELEM],
    w_down: pl.Tensor[[LAYER_INTER_ROWS, HIDDEN], ELEM],
    final_norm_weight: pl.Tensor[[1, HIDDEN], pl.FP32],
    lm_head_weight: pl.Tensor[[VOCAB, HIDDEN], ELEM],
    out: pl.Out[pl.Tensor[[USER_BATCH, VOCAB], pl.FP32]],
):
    """Two layers of stacked weights, the final norm and the LM head."""
    current_hidden = pl.create_tensor([BATCH, HIDDEN], dtype=ELEM)
    middle_hidden = pl.create_tensor([BATCH, HIDDEN], dtype=ELEM)
    next_hidden = pl.create_tensor([BATCH, HIDDEN], dtype=ELEM)
    current_hidden = copy_hidden(hidden_states, current_hidden)
    current_hidden = decode_layer(
        current_hidden, input_rms_weight, wq, wk, wv, q_norm_weight, k_norm_weight, seq_lens, block_table,
        slot_mapping, rope_cos, rope_sin, k_cache, v_cache, wo, post_rms_weight, w_gate, w_up, w_down,
        middle_hidden, 0,
    )  # fmt: skip
    current_hidden = decode_layer(
        current_hidden, input_rms_weight, wq, wk, wv, q_norm_weight, k_norm_weight, seq_lens, block_table,
        slot_mapping, rope_cos, rope_sin, k_cache, v_cache, wo, post_rms_weight, w_gate, w_up, w_down,
        next_hidden, 1,
    )  # fmt: skip
    out = rms_lm_head(current_hidden, final_norm_weight, lm_head_weight, seq_lens, out)
    return out
