"""Kernels for the pass tests: the regions of a published decode layer for a2a3, at its tile sizes.

They fit that chip, so every scratchpad target's plan must accept them.
"""

from __future__ import annotations

import pypto_models.language as pl

BATCH, HIDDEN, INTER, HEADS, HEAD_DIM, PAGE = 16, 5120, 17408, 8, 128, 128
CHUNK = 256


@pl.jit
def rmsnorm(
    x: pl.Tensor[[BATCH, HIDDEN], pl.BF16],
    gamma: pl.Tensor[[1, HIDDEN], pl.FP32],
    out: pl.Out[pl.Tensor[[BATCH, HIDDEN], pl.BF16]],
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="rmsnorm"):
        total = pl.full([1, BATCH], dtype=pl.FP32, value=0.0)
        for k in pl.range(HIDDEN // CHUNK):
            part = pl.cast(pl.slice(x, [BATCH, CHUNK], [0, k * CHUNK]), pl.FP32)
            total = pl.add(total, pl.reshape(pl.row_sum(pl.mul(part, part)), [1, BATCH]))
        inv = pl.reshape(pl.recip(pl.sqrt(pl.add(pl.mul(total, 1.0 / HIDDEN), 1e-6))), [BATCH, 1])
        for k in pl.range(HIDDEN // CHUNK):
            part = pl.cast(pl.slice(x, [BATCH, CHUNK], [0, k * CHUNK]), pl.FP32)
            scaled = pl.col_expand_mul(
                pl.row_expand_mul(part, inv), pl.slice(gamma, [1, CHUNK], [0, k * CHUNK])
            )
            out = pl.assemble(out, pl.cast(scaled, pl.BF16, mode="rint"), [0, k * CHUNK])
    return out


@pl.jit
def qk_norm(
    q: pl.Tensor[[BATCH, HIDDEN], pl.FP32],
    k: pl.Tensor[[BATCH, HEADS * HEAD_DIM], pl.FP32],
    weight: pl.Tensor[[1, HEAD_DIM], pl.FP32],
    q_out: pl.Out[pl.Tensor[[BATCH, HIDDEN], pl.FP32]],
    k_out: pl.Out[pl.Tensor[[BATCH, HEADS * HEAD_DIM], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="qk_norm"):
        w = pl.slice(weight, [1, HEAD_DIM], [0, 0])
        for h in pl.range(HEADS):
            rows = pl.reshape(pl.slice(q, [BATCH, 640], [0, h * 640]), [BATCH * 5, HEAD_DIM])
            norm = pl.rsqrt(pl.add(pl.mul(pl.row_sum(pl.mul(rows, rows)), 1.0 / HEAD_DIM), 1e-6))
            q_new = pl.col_expand_mul(pl.row_expand_mul(rows, norm), w)
            q_out = pl.assemble(q_out, pl.reshape(q_new, [BATCH, 640]), [0, h * 640])
            keys = pl.slice(k, [BATCH, HEAD_DIM], [0, h * HEAD_DIM])
            norm_k = pl.rsqrt(pl.add(pl.mul(pl.row_sum(pl.mul(keys, keys)), 1.0 / HEAD_DIM), 1e-6))
            k_new = pl.col_expand_mul(pl.row_expand_mul(keys, norm_k), w)
            k_out = pl.assemble(k_out, k_new, [0, h * HEAD_DIM])
    return q_out


@pl.jit
def rope(
    q: pl.Tensor[[BATCH * 40, HEAD_DIM], pl.FP32],
    cos: pl.Tensor[[4096, HEAD_DIM], pl.FP32],
    sin: pl.Tensor[[4096, HEAD_DIM], pl.FP32],
    out: pl.Out[pl.Tensor[[BATCH * 40, HEAD_DIM], pl.BF16]],
):
    for b in pl.parallel(BATCH):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="rope"):
            c = pl.slice(cos, [1, 64], [b, 0])
            s = pl.slice(sin, [1, 64], [b, 0])
            for h in pl.range(HEADS):
                row = b * 40 + h * 5
                lo = pl.slice(q, [5, 64], [row, 0])
                hi = pl.slice(q, [5, 64], [row, 64])
                left = pl.sub(pl.col_expand_mul(lo, c), pl.col_expand_mul(hi, s))
                right = pl.add(pl.col_expand_mul(hi, c), pl.col_expand_mul(lo, s))
                out = pl.assemble(out, pl.cast(left, pl.BF16), [row, 0])
                out = pl.assemble(out, pl.cast(right, pl.BF16), [row, 64])
    return out


@pl.jit
def fa_fused(
    q: pl.Tensor[[BATCH * HEADS * 16, HEAD_DIM], pl.BF16],
    keys: pl.Tensor[[BATCH * 4096 * HEADS, HEAD_DIM], pl.BF16],
    values: pl.Tensor[[BATCH * 4096 * HEADS, HEAD_DIM], pl.BF16],
    lens: pl.Tensor[[BATCH], pl.INT32],
    oi_out: pl.Out[pl.Tensor[[BATCH * HEADS * 32 * 16, HEAD_DIM], pl.FP32]],
    mi_out: pl.Out[pl.Tensor[[BATCH * HEADS * 32 * 16, 1], pl.FP32]],
    li_out: pl.Out[pl.Tensor[[BATCH * HEADS * 32 * 16, 1], pl.FP32]],
):
    for item in pl.spmd(BATCH * 4, name_hint="fa_fused"):
        b = item // 4
        length = pl.cast(pl.tensor.read(lens, [b]), pl.INDEX)
        for i in pl.pipeline(2, stage=2):
            head = (item % 4) * 2 + i
            rows = pl.slice(q, [16, HEAD_DIM], [(b * HEADS + head) * 16, 0])
            for j in pl.range((length + PAGE - 1) // PAGE):
                at = (b * 4096 + j * PAGE) * HEADS + head * PAGE
                valid = pl.min(PAGE, length - j * PAGE)
                k_page = pl.slice(keys, [PAGE, HEAD_DIM], [at, 0])
                scores = pl.matmul(rows, k_page, out_dtype=pl.FP32, b_trans=True)
                scaled = pl.set_validshape(pl.mul(scores, 0.088), 8, valid)
                filled = pl.fillpad(scaled, pad_value=pl.PadValue.min)
                mi = pl.row_max(filled)
                p = pl.cast(pl.exp(pl.row_expand_sub(filled, mi)), pl.BF16)
                li = pl.row_sum(pl.cast(p, pl.FP32))
                v_page = pl.slice(values, [PAGE, HEAD_DIM], [at, 0])
                oi = pl.matmul(p, v_page, out_dtype=pl.FP32)
                slot = ((b * HEADS + head) * 32 + j) * 16
                oi_out = pl.assemble(oi_out, oi, [slot, 0])
                mi_out = pl.assemble(mi_out, mi, [slot, 0])
                li_out = pl.assemble(li_out, li, [slot, 0])
    return oi_out


@pl.jit
def out_proj(
    x: pl.Tensor[[BATCH, HIDDEN], pl.BF16],
    w: pl.Tensor[[HIDDEN, HIDDEN], pl.BF16],
    residual: pl.Tensor[[BATCH, HIDDEN], pl.BF16],
    out: pl.Out[pl.Tensor[[BATCH, HIDDEN], pl.FP32]],
):
    for n in pl.spmd(20, name_hint="out_proj", optimizations=[pl.split(pl.SplitMode.UP_DOWN)]):
        acc = pl.create_tensor([BATCH, CHUNK], dtype=pl.FP32)
        for k in pl.range(HIDDEN // CHUNK):
            xk = pl.slice(x, [BATCH, CHUNK], [0, k * CHUNK])
            wk = pl.slice(w, [CHUNK, CHUNK], [k * CHUNK, n * CHUNK])
            if k == 0:
                acc = pl.matmul(xk, wk, out_dtype=pl.FP32)
            else:
                acc = pl.matmul_acc(acc, xk, wk)
        res = pl.cast(pl.slice(residual, [BATCH, CHUNK], [0, n * CHUNK]), pl.FP32)
        out = pl.assemble(out, pl.add(acc, res), [0, n * CHUNK])
    return out


@pl.jit
def gate_up_silu(
    x: pl.Tensor[[BATCH, HIDDEN], pl.BF16],
    w_gate: pl.Tensor[[HIDDEN, INTER], pl.BF16],
    w_up: pl.Tensor[[HIDDEN, INTER], pl.BF16],
    out: pl.Out[pl.Tensor[[BATCH, INTER], pl.BF16]],
):
    for n in pl.spmd(68, name_hint="gate_up_silu", optimizations=[pl.split(pl.SplitMode.UP_DOWN)]):
        gate = pl.create_tensor([BATCH, CHUNK], dtype=pl.FP32)
        up = pl.create_tensor([BATCH, CHUNK], dtype=pl.FP32)
        for k in pl.range(HIDDEN // CHUNK):
            xk = pl.slice(x, [BATCH, CHUNK], [0, k * CHUNK])
            g = pl.slice(w_gate, [CHUNK, CHUNK], [k * CHUNK, n * CHUNK])
            u = pl.slice(w_up, [CHUNK, CHUNK], [k * CHUNK, n * CHUNK])
            if k == 0:
                gate = pl.matmul(xk, g, out_dtype=pl.FP32)
                up = pl.matmul(xk, u, out_dtype=pl.FP32)
            else:
                gate = pl.matmul_acc(gate, xk, g)
                up = pl.matmul_acc(up, xk, u)
        sigmoid = pl.recip(pl.add(pl.exp(pl.neg(gate)), 1.0))
        y = pl.mul(pl.mul(gate, sigmoid), up)
        out = pl.assemble(out, pl.cast(y, pl.BF16, mode="rint"), [0, n * CHUNK])
    return out


@pl.jit
def down_proj(
    x: pl.Tensor[[BATCH, INTER], pl.BF16],
    w: pl.Tensor[[INTER, HIDDEN], pl.BF16],
    residual: pl.Tensor[[BATCH, HIDDEN], pl.FP32],
    out: pl.Out[pl.Tensor[[BATCH, HIDDEN], pl.BF16]],
):
    for n in pl.spmd(20, name_hint="down_proj", optimizations=[pl.split(pl.SplitMode.UP_DOWN)]):
        acc = pl.create_tensor([BATCH, CHUNK], dtype=pl.FP32)
        for k in pl.range(INTER // CHUNK):
            xk = pl.slice(x, [BATCH, CHUNK], [0, k * CHUNK])
            wk = pl.slice(w, [CHUNK, CHUNK], [k * CHUNK, n * CHUNK])
            acc = pl.matmul_acc(acc, xk, wk, init_cond=k == 0)
        total = pl.add(acc, pl.slice(residual, [BATCH, CHUNK], [0, n * CHUNK]))
        out = pl.assemble(out, pl.cast(total, pl.BF16, mode="rint"), [0, n * CHUNK])
    return out


@pl.jit
def lm_head(
    x: pl.Tensor[[BATCH, HIDDEN], pl.BF16],
    w: pl.Tensor[[4096, HIDDEN], pl.BF16],
    out: pl.Out[pl.Tensor[[BATCH, 4096], pl.FP32]],
):
    for n in pl.parallel(64):
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="lm_head"):
            acc = pl.create_tensor([BATCH, 64], dtype=pl.FP32)
            for k in pl.range(HIDDEN // 128):
                xk = pl.slice(x, [BATCH, 128], [0, k * 128])
                wk = pl.slice(w, [64, 128], [n * 64, k * 128])
                if k == 0:
                    acc = pl.matmul(xk, wk, out_dtype=pl.FP32, b_trans=True)
                else:
                    acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
            out = pl.assemble(out, acc, [0, n * 64])
    return out


LAYER = (rmsnorm, qk_norm, rope, fa_fused, out_proj, gate_up_silu, down_proj, lm_head)
