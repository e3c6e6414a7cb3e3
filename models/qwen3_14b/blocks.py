"""Every block of the decoder layer as a kernel of its own, each with its comparison.

    pypto-models power models/qwen3_14b/blocks.py --config tiny
    pypto-models check models/qwen3_14b/blocks.py

Alone, a block is given inputs that its neighbours would never make, and nothing behind it hides what it does.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pypto_models.language as pl
from golden import Comparator, TensorSpec, allclose, on_rows, ratio_allclose, rounding_bound
from golden.power import Case, Check
from golden.verdict import CompareFn
from models.common.attention import attention
from models.common.norm import apply_final_norm, apply_post_norm
from models.common.projection import project_down, project_gate_up, project_logits, project_out, project_qkv
from models.common.rope import rope_kv_write
from models.common.rows import enter
from models.common.sizes import DTYPE, HEAD_DIM, KV_HEADS, Q_HEADS
from models.qwen3_14b import harness, reference
from models.qwen3_14b.config import VOCAB_GRANULE, Config
from models.qwen3_14b.constants import constants
from models.qwen3_14b.inputs import head_weights, layer_weights, normal
from models.qwen3_14b.power import QUIET, REASONS, STEPS, step_of
from models.qwen3_14b.reference import Precision
from pypto_models.language import Kernel
from pypto_models.language.parameters import constant_names

HIDDEN = 256
INTERMEDIATE = 512
VOCAB_ROWS = 512

TOKENS = pl.dynamic("TOKENS")
QUERIES = pl.dynamic("QUERIES")  # TOKENS * Q_HEADS
BATCH = pl.dynamic("BATCH")
BATCH_ENDS = pl.dynamic("BATCH_ENDS")
SEQ_PAGES = pl.dynamic("SEQ_PAGES")
CACHE_ROWS = pl.dynamic("CACHE_ROWS")
ROPE_ROWS = pl.dynamic("ROPE_ROWS")

HALF_DIM = HEAD_DIM // 2
Q_WIDTH = Q_HEADS * HEAD_DIM
QKV_WIDTH = (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM
GATE_UP_WIDTH = 2 * INTERMEDIATE


# ------------------------------------------------------------------------------------------------ kernels
@pl.jit
def input_norm_block(
    hidden: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    input_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    slot_mapping: pl.Tensor[[TOKENS], pl.INT32],
    cu_q: pl.Tensor[[BATCH_ENDS], pl.INT32],
    ctx: pl.Tensor[[BATCH], pl.INT32],
    residual: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
    out: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    residual, out = enter(hidden, input_norm, slot_mapping, cu_q, ctx, residual, out)


@pl.jit
def norms_block(
    x: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    post_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    final_norm: pl.Tensor[[1, HIDDEN], pl.FP32],
    mlp_in: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
    out: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    mlp_in = apply_post_norm(x, post_norm, mlp_in)
    out = apply_final_norm(x, final_norm, out)


@pl.jit
def qkv_block(
    x: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    w_qkv: pl.Tensor[[QKV_WIDTH, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, QKV_WIDTH], pl.FP32]],
):
    out = project_qkv(x, w_qkv, out)


@pl.jit
def rope_block(
    qkv: pl.Tensor[[TOKENS, QKV_WIDTH], pl.FP32],
    q_norm: pl.Tensor[[1, HEAD_DIM], pl.FP32],
    k_norm: pl.Tensor[[1, HEAD_DIM], pl.FP32],
    positions: pl.Tensor[[TOKENS], pl.INT32],
    slot_mapping: pl.Tensor[[TOKENS], pl.INT32],
    cu_q: pl.Tensor[[BATCH_ENDS], pl.INT32],
    ctx: pl.Tensor[[BATCH], pl.INT32],
    rope_cos: pl.Tensor[[ROPE_ROWS, HALF_DIM], pl.FP32],
    rope_sin: pl.Tensor[[ROPE_ROWS, HALF_DIM], pl.FP32],
    k_cache: pl.InOut[pl.Tensor[[CACHE_ROWS, HEAD_DIM], DTYPE]],
    v_cache: pl.InOut[pl.Tensor[[CACHE_ROWS, HEAD_DIM], DTYPE]],
    q: pl.InOut[pl.Tensor[[QUERIES, HEAD_DIM], DTYPE]],
):
    q = rope_kv_write(
        qkv, q_norm, k_norm, positions, slot_mapping, cu_q, ctx, rope_cos, rope_sin, k_cache, v_cache, q
    )


@pl.jit
def attention_block(
    q: pl.Tensor[[QUERIES, HEAD_DIM], DTYPE],
    k_cache: pl.Tensor[[CACHE_ROWS, HEAD_DIM], DTYPE],
    v_cache: pl.Tensor[[CACHE_ROWS, HEAD_DIM], DTYPE],
    block_table: pl.Tensor[[BATCH, SEQ_PAGES], pl.INT32],
    slot_mapping: pl.Tensor[[TOKENS], pl.INT32],
    cu_q: pl.Tensor[[BATCH_ENDS], pl.INT32],
    ctx: pl.Tensor[[BATCH], pl.INT32],
    out: pl.Out[pl.Tensor[[TOKENS, Q_WIDTH], DTYPE]],
):
    out = attention(q, k_cache, v_cache, block_table, slot_mapping, cu_q, ctx, out)


@pl.jit
def out_block(
    x: pl.Tensor[[TOKENS, Q_WIDTH], DTYPE],
    w_o: pl.Tensor[[HIDDEN, Q_WIDTH], DTYPE],
    residual: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    out = project_out(x, w_o, residual, out)


@pl.jit
def gate_up_block(
    x: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    w_gate_up: pl.Tensor[[GATE_UP_WIDTH, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, INTERMEDIATE], DTYPE]],
):
    out = project_gate_up(x, w_gate_up, out)


@pl.jit
def down_block(
    x: pl.Tensor[[TOKENS, INTERMEDIATE], DTYPE],
    w_down: pl.Tensor[[HIDDEN, INTERMEDIATE], DTYPE],
    residual: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, HIDDEN], DTYPE]],
):
    out = project_down(x, w_down, residual, out)


@pl.jit
def head_block(
    x: pl.Tensor[[TOKENS, HIDDEN], DTYPE],
    w_lm_head: pl.Tensor[[VOCAB_ROWS, HIDDEN], DTYPE],
    out: pl.Out[pl.Tensor[[TOKENS, VOCAB_ROWS], DTYPE]],
):
    out = project_logits(x, w_lm_head, out)


# ------------------------------------------------------------------------------------------------ goldens
Values = dict[str, Any]
Golden = Callable[..., None]


def _input_norm(v: Values, c: Config, p: Precision) -> None:
    live = _live(v, c)
    v["residual"].zero_()[live] = v["hidden"][live].to(v["residual"].dtype)
    v["out"].zero_()[live] = _norm(v["hidden"][live], v["input_norm"], c, p).to(v["out"].dtype)


def _norm(x: Tensor, weight: Tensor, c: Config, p: Precision) -> Tensor:
    return reference.rms_norm(p.up(x), weight, c.eps, p)


def _norms(v: Values, c: Config, p: Precision) -> None:
    v["mlp_in"].copy_(_norm(v["x"], v["post_norm"], c, p))
    v["out"].copy_(_norm(v["x"], v["final_norm"], c, p))


def _qkv(v: Values, c: Config, p: Precision) -> None:
    v["out"].copy_(p.up(v["x"]) @ p.up(v["w_qkv"]).T)  # fp32: rounded by the block behind it


def _rope(v: Values, c: Config, p: Precision) -> None:
    live = _live(v, c)
    heads = p.rnd(p.up(v["qkv"][live])).view(len(live), -1, c.head_dim)
    q, k, new_v = heads.split([c.q_heads, c.kv_heads, c.kv_heads], dim=1)
    at, slots = v["positions"][live].long(), v["slot_mapping"][live].long()
    cos, sin = v["rope_cos"][at], v["rope_sin"][at]
    q = reference.norm_rope(q, v["q_norm"], cos, sin, c.eps, p)
    v["q"].view(-1, c.q_heads, c.head_dim)[live] = q.to(v["q"].dtype)
    reference.write_kv(v["k_cache"], reference.norm_rope(k, v["k_norm"], cos, sin, c.eps, p), slots, c)
    reference.write_kv(v["v_cache"], new_v, slots, c)


def _attention(v: Values, c: Config, p: Precision) -> None:
    rows = reference.live_rows(v, c)
    live = [row.row for row in rows]
    q = p.up(v["q"].view(-1, c.q_heads, c.head_dim)[live])
    v["out"].zero_()[live] = reference.attend(q, rows, v, c, p).flatten(1).to(v["out"].dtype)


def _residual(weight: str, v: Values, c: Config, p: Precision) -> None:
    v["out"].copy_(p.up(v["residual"]) + reference.linear(p.up(v["x"]), v[weight], p))


def _gate_up(v: Values, c: Config, p: Precision) -> None:
    gate, up = reference.linear(p.up(v["x"]), v["w_gate_up"], p).chunk(2, dim=-1)
    v["out"].copy_(p.rnd(reference.silu(gate)) * up)


def _head(v: Values, c: Config, p: Precision) -> None:
    v["out"].copy_(reference.lm_head(v["x"], v["w_lm_head"], p))


def _live(v: Values, c: Config) -> list[int]:
    """Rows that take part."""
    ctx, cu_q, slots = (v[n].tolist() for n in ("ctx", "cu_q", "slot_mapping"))
    owner = {row: s for s in range(len(ctx)) for row in range(cu_q[s], cu_q[s + 1])}
    return [row for row, s in sorted(owner.items()) if ctx[s] > 0 and slots[row] >= 0]


# ------------------------------------------------------------------------------------------------- inputs
_DENSE_STEPS = 2  # sets of inputs of a block that knows no sequences


def _dense(c: Config, seed: int) -> dict[str, Tensor]:
    """Weights, and activations for any number of rows; some rows as small as the epsilon of a norm."""
    rows = (5, 16)[seed] if seed < _DENSE_STEPS else 1 + seed * 7 % c.max_batch
    weights = layer_weights(c, seed) | head_weights(c, seed, "single")
    return weights | {"rows": torch.linspace(1.0, QUIET, rows)[:, None]}


def _activation(
    c: Config, seed: int, name: str, rows: int, width: int, scale: Tensor | float = 1.0
) -> Tensor:
    return (normal((rows, width), torch.float32, seed=seed, name=name) * scale).to(c.torch_dtype)


def _check(kernel: Kernel, golden: Golden, widths: Mapping[str, int], c: Config, seed: int) -> Check:
    """The comparison of a block that works on rows alone; ``widths`` are those of its activations."""
    tensors = _dense(c, seed)
    scale = tensors.pop("rows")
    for name, width in widths.items():
        tensors[name] = _activation(c, seed, name, len(scale), width, scale if "norm" in kernel.name else 1.0)
    if kernel is qkv_block:
        tensors["out"] = tensors["out"].float()
    return _compared(kernel, golden, tensors, c, _alike(c))


def _check_paged(kernel: Kernel, golden: Golden, c: Config, seed: int) -> Check:
    """The comparison of a block that knows sequences, pages and dead rows."""
    step, tensors = step_of(c, seed)
    rows = tensors["hidden"].shape[0]
    near = _alike(c)
    if kernel is input_norm_block:
        tensors |= {name: _activation(c, seed, name, rows, c.hidden) for name in ("residual", "out")}
        return _compared(kernel, golden, tensors, c, near)
    tensors["q"] = _activation(c, seed, "q", rows * c.q_heads, c.head_dim)
    if kernel is rope_block:
        scale = torch.linspace(1.0, QUIET, rows)[:, None]
        tensors["qkv"] = normal((rows, c.qkv_width), torch.float32, seed=seed, name="qkv") * scale
        caches = dict.fromkeys(harness.CACHES, on_rows(harness.written_rows(c, tensors), near))
        return _compared(kernel, golden, tensors, c, {"q": near, **caches})
    tensors["out"] = _activation(c, seed, "out", rows, c.q_width)
    live = torch.tensor(_live(tensors, c))
    for name in harness.CACHES:
        new = _activation(c, seed, f"new_{name}", len(live), c.kv_width).view(-1, c.kv_heads, c.head_dim)
        reference.write_kv(tensors[name], new, tensors["slot_mapping"][live].long(), c)
    if c.dtype == "bf16" and step.differing is not None:
        rounded = partial(_attention, c=c, p=Precision(torch.float32, torch.bfloat16, round_weights=True))
        return replace(_compared(kernel, golden, tensors, c, near), golden_fn=rounded)
    exact = {**tensors, "out": tensors["out"].double()}
    _attention(exact, c, Precision(torch.float64))
    return _compared(kernel, golden, tensors, c, near if c.dtype == "fp32" else rounding_bound(exact["out"]))


def _alike(c: Config) -> Comparator:
    """Rounded at the same places: equal, but for a few elements whose sums are taken in another order."""
    return allclose if c.dtype == "fp32" else ratio_allclose(0.0, 0.0, 0.01, max_outlier=2.0**-6)


def _compared(
    kernel: Kernel, golden: Golden, tensors: Mapping[str, Tensor], c: Config, near: CompareFn
) -> Check:
    outputs = written(kernel)
    specs = [
        TensorSpec(n, tuple(t.shape), t.dtype, None if n in outputs else t, n in outputs)
        for n, t in ((p.arg, tensors[p.arg]) for p in kernel.node.args.args)
    ]
    rounded = torch.bfloat16 if c.dtype == "bf16" else None
    evaluate = partial(golden, c=c, p=Precision(torch.float32, rounded))
    if kernel is qkv_block:
        near = allclose  # fp32 in both: the block behind it rounds
    return Check(specs, evaluate, near, rtol=0.0, atol=harness.FP32_TOLERANCE)


def written(kernel: Kernel) -> set[str]:
    """The pure outputs: ``pl.Out`` parameters."""
    types = {p.arg: ast.unparse(p.annotation) for p in kernel.node.args.args if p.annotation is not None}
    return {name for name, text in types.items() if text.startswith("pl.Out[")}


# -------------------------------------------------------------------------------------------------- cases
def _blocks(c: Config) -> list[tuple[Kernel, Callable[[int], Check], int]]:
    """Each kernel with its comparison and the number of its sets of inputs."""
    rows: dict[str, int] = {"residual": c.hidden, "out": c.hidden}
    dense: list[tuple[Kernel, Golden, dict[str, int]]] = [
        (norms_block, _norms, {"x": c.hidden, "mlp_in": c.hidden, "out": c.hidden}),
        (qkv_block, _qkv, {"x": c.hidden, "out": c.qkv_width}),
        (out_block, partial(_residual, "w_o"), {"x": c.q_width, **rows}),
        (gate_up_block, _gate_up, {"x": c.hidden, "out": c.intermediate}),
        (down_block, partial(_residual, "w_down"), {"x": c.intermediate, **rows}),
        (head_block, _head, {"x": c.hidden, "out": VOCAB_GRANULE}),
    ]
    paged = [(input_norm_block, _input_norm), (rope_block, _rope), (attention_block, _attention)]
    return [
        *((k, partial(_check_paged, k, golden, c), len(STEPS)) for k, golden in paged),
        *((k, partial(_check, k, golden, widths, c), _DENSE_STEPS) for k, golden, widths in dense),
    ]


def power_cases(config: str) -> list[Case]:
    """Every block in fp32 and in bf16."""
    cases = []
    for dtype in ("fp32", "bf16"):
        c = replace(harness.CONFIGS[config], dtype=dtype)
        values = constants(c, "a2a3", head_rows=VOCAB_GRANULE)
        for kernel, check, runs in _blocks(c):
            read = constant_names(kernel)
            options = {"constants": {name: v for name, v in values.items() if name in read}}
            cases.append(Case(dtype, kernel, check, options, runs, REASONS))
    return cases
