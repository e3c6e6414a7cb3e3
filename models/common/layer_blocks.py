"""The blocks of a decoder with full attention: goldens, inputs, and what they must agree on."""

from __future__ import annotations

from functools import partial

import torch

from models.common import block_kernels as kernels
from models.common import equations as eq
from models.common.blocks import DENSE_RUNS, Block, Tensors, dense, random
from models.common.config import VOCAB_GRANULE, DecoderConfig
from models.common.equations import Precision
from models.common.power import QUIET, STEPS, Power
from models.common.written import cache_rows

VOCAB = 500
"""Tokens of the vocabulary in `greedy`: a part of its last chunk, and padding behind it."""

GREEDY_N = 128

NEW = ("k_new", "v_new")
"""What a step adds to `k_cache` and `v_cache`."""


# ------------------------------------------------------------------------------------------------ goldens
def _live(v: Tensors, c: DecoderConfig) -> list[int]:
    return [live.row for live in eq.live_rows(v, c)]


def _norm(v: Tensors, weight: str, c: DecoderConfig, p: Precision, x: str = "x") -> torch.Tensor:
    return eq.rms_norm(p.up(v[x]), v[weight], c.eps, p, gemma=c.gemma_norm)


def enter(v: Tensors, c: DecoderConfig, p: Precision) -> None:
    """Zeros on dead rows, and the input norm."""
    live = _live(v, c)
    v["residual"].zero_()[live] = v["hidden"][live]
    v["out"].zero_()[live] = _norm(v, "input_norm", c, p, "hidden")[live].to(v["out"].dtype)


def norms(v: Tensors, c: DecoderConfig, p: Precision) -> None:
    """The norms before the MLP and before the LM head."""
    v["mlp_in"].copy_(_norm(v, "post_norm", c, p))
    v["out"].copy_(_norm(v, "final_norm", c, p))


def project(weight: str, v: Tensors, c: DecoderConfig, p: Precision) -> None:
    """The first projection of a layer, which is fp32: rounded by the blocks behind it."""
    v["projected"].copy_(p.up(v["x"]) @ p.up(v[weight]).T)


def by_head(q: torch.Tensor, c: DecoderConfig) -> torch.Tensor:
    """Query heads `[KV, T GROUP, D]` as a view `[T, KV, GROUP, D]`."""
    return q.view(c.kv_heads, -1, c.group, c.head_dim).transpose(0, 1)


def rope(v: Tensors, c: DecoderConfig, p: Precision) -> None:
    """Per-head norms and RoPE of every row; a position beyond the table is that of its end."""
    rows = len(v["qkv"])
    heads = p.rnd(v["qkv"].to(p.compute)).view(rows, -1, c.head_dim)
    _, q, k, new_v = heads.split([c.gate_heads, c.q_heads, c.kv_heads, c.kv_heads], dim=1)
    at = v["positions"].long().clamp(0, len(v["rope_cos"]) - 1)
    cos, sin = v["rope_cos"][at], v["rope_sin"][at]
    q = eq.norm_rope(q, v["q_norm"], cos, sin, c.eps, p, gemma=c.gemma_norm)
    by_head(v["q"], c).copy_(q.view(rows, c.kv_heads, c.group, c.head_dim))
    k = eq.norm_rope(k, v["k_norm"], cos, sin, c.eps, p, gemma=c.gemma_norm)
    for name, new in zip(NEW, (k, new_v), strict=True):
        v[name].transpose(0, 1).copy_(new)


def attention(v: Tensors, c: DecoderConfig, p: Precision) -> None:
    """The KV write, attention over the caches with it, and the sigmoid gate on its output if there is one."""
    rows = eq.live_rows(v, c)
    live = [row.row for row in rows]
    for cache, new in zip(eq.CACHES, NEW, strict=True):
        eq.write_kv(v[cache], v[new].transpose(0, 1)[live], v["slot_mapping"][live].long(), c)
    q = p.up(by_head(v["q"], c)[live].reshape(len(live), c.q_heads, c.head_dim))
    attended = eq.attend(q, rows, v, c, p).flatten(1)
    if c.gate_heads:
        attended = eq.output_gate(attended, p.rnd(v["qkv"][live, : c.gate_width].to(p.compute)), p)
    v["out"].zero_()[live] = attended.to(v["out"].dtype)


def residual(weight: str, v: Tensors, c: DecoderConfig, p: Precision) -> None:
    """A projection added to the residual stream."""
    v["out"].copy_(p.up(v["residual"]) + eq.linear(p.up(v["x"]), v[weight], p))


def gate_up(v: Tensors, c: DecoderConfig, p: Precision) -> None:
    """SwiGLU."""
    gate, up = eq.linear(p.up(v["x"]), v["w_gate_up"], p).chunk(2, dim=-1)
    v["out"].copy_(eq.gated_up(gate, up, p))


def head(v: Tensors, c: DecoderConfig, p: Precision) -> None:
    """The logits of one chunk of the vocabulary."""
    v["out"].copy_(eq.lm_head(v["x"], v["w_lm_head"], p))


def embed(v: Tensors, c: DecoderConfig, p: Precision) -> None:
    """The embeddings of the live rows' tokens."""
    live = _live(v, c)
    v["out"].zero_()[live] = v["table"][v["tokens"][live].long()]


def greedy(v: Tensors, c: DecoderConfig, p: Precision) -> None:
    """The first column of the largest logit."""
    logits = v["logits"][:, :VOCAB]
    columns = torch.arange(VOCAB).expand_as(logits)
    largest = logits == logits.amax(dim=1, keepdim=True)
    v["token"].copy_(columns.where(largest, VOCAB).amin(dim=1))


# ------------------------------------------------------------------------------------------------- inputs
def step_with(power: Power, c: DecoderConfig, seed: int, **widths: int) -> Tensors:
    """A step with further random tensors `[T, width]`."""
    _, tensors = power.step_of(c, seed)
    rows = tensors["hidden"].shape[0]
    for i, (name, width) in enumerate(widths.items()):
        tensors[name] = random((rows, width), c.torch_dtype, 1000 * seed + i)
    return tensors


def enter_inputs(power: Power, c: DecoderConfig, seed: int) -> Tensors:
    """A step, and where it enters."""
    return step_with(power, c, seed, residual=c.hidden, out=c.hidden)


def rope_inputs(power: Power, c: DecoderConfig, seed: int) -> Tensors:
    """A step with projected rows, some of them as small as the epsilon of a norm."""
    tensors = step_with(power, c, seed, q=c.q_width, **dict.fromkeys(NEW, c.kv_width))
    for name in ("q", *NEW):
        tensors[name] = tensors[name].view(c.kv_heads, -1, c.head_dim)
    rows = tensors["hidden"].shape[0]
    scale = torch.linspace(1.0, QUIET, rows)[:, None]
    tensors["qkv"] = random((rows, c.qkv_width), torch.float32, 1000 * seed + 9, scale)
    return tensors


def attention_inputs(power: Power, c: DecoderConfig, seed: int) -> Tensors:
    """A step whose own tokens are not in the caches, where NaN lies in their place; dead rows are NaN, and of
    what was projected all but the gate.
    """
    tensors = step_with(power, c, seed, q=c.q_width, **dict.fromkeys(NEW, c.kv_width), out=c.q_width)
    dead = torch.ones(len(tensors["hidden"]), dtype=torch.bool)
    dead[_live(tensors, c)] = False
    for name in ("q", *NEW):
        by_row = tensors[name].view(c.kv_heads, len(dead), -1, c.head_dim)
        by_row[:, dead] = torch.nan
        tensors[name] = by_row.flatten(1, 2)
    tensors["qkv"] = random((len(dead), c.qkv_width), torch.float32, 1000 * seed + 9)
    tensors["qkv"][dead] = torch.nan
    tensors["qkv"][:, c.gate_width :] = torch.nan
    return tensors


def embed_inputs(power: Power, c: DecoderConfig, seed: int) -> Tensors:
    """A step of tokens; those of dead rows do not exist."""
    tensors = step_with(power, c, seed, out=c.hidden)
    tensors["table"] = random((VOCAB_GRANULE, c.hidden), c.torch_dtype, 1000 * seed + 9)
    tokens = torch.full((len(tensors["hidden"]),), 1 << 30, dtype=torch.int32)
    live, generator = _live(tensors, c), torch.Generator().manual_seed(1000 * seed + 8)
    tokens[live] = torch.randint(VOCAB_GRANULE, (len(live),), generator=generator, dtype=torch.int32)
    return tensors | {"tokens": tokens}


def greedy_inputs(power: Power, c: DecoderConfig, seed: int) -> Tensors:
    """Logits whose largest value stands anywhere, at times twice, and larger ones in the padding."""
    rows, generator = (5, 16, 17)[seed // 2 % 3], torch.Generator().manual_seed(1000 * seed + 8)
    logits = random((rows, VOCAB_GRANULE), c.torch_dtype, 1000 * seed)
    places = torch.randint(VOCAB, (3, rows), generator=generator)
    for i, place in enumerate(places[: 1 + seed % 3]):  # all equal in bf16, only two of them in fp32
        logits[torch.arange(rows), place] = 6.0 - i % 2 * 2.0**-12
    logits[::5] -= 12.0  # all of them negative
    logits[:, VOCAB:] = 9.0
    return {"logits": logits, "token": torch.zeros(rows, dtype=torch.int32)}


def several_pages(power: Power, seed: int) -> bool:
    """Whether the kernel rounds softmax weights relative to other maxima than the golden."""
    return seed >= len(power.steps) or power.steps[seed].differing is None


# ------------------------------------------------------------------------------------------------- blocks
def shared_blocks(c: DecoderConfig) -> list[Block]:
    """Norms, MLP, head, embedding and greedy choice: those that every decoder has."""
    rows = {"residual": c.hidden, "out": c.hidden}
    x = {"x": c.hidden}
    vocabulary = {"VOCAB": VOCAB, "GREEDY_N": GREEDY_N, "ROWS": 32}
    down = {"x": c.intermediate, **rows}
    norm_rows = {"mlp_in": c.hidden, "out": c.hidden}
    return [
        Block(kernels.input_norm_block, enter, enter_inputs, len(STEPS)),
        Block(kernels.norms_block, norms, dense({**x, **norm_rows}, small_rows=True), DENSE_RUNS),
        Block(kernels.gate_up_block, gate_up, dense({**x, "out": c.intermediate}), DENSE_RUNS),
        Block(kernels.down_block, partial(residual, "w_down"), dense(down), DENSE_RUNS),
        Block(kernels.head_block, head, dense({**x, "out": VOCAB_GRANULE}), DENSE_RUNS),
        Block(kernels.embed_block, embed, embed_inputs, len(STEPS)),
        Block(kernels.greedy_block, greedy, greedy_inputs, 6, constants=vocabulary),
    ]


def attention_blocks(c: DecoderConfig) -> list[Block]:
    """Projection, RoPE, attention with KV write and gate, output projection."""
    rows = {"residual": c.hidden, "out": c.hidden}
    qkv = dense({"x": c.hidden, "projected": c.qkv_width}, fp32=["projected"])
    caches = dict.fromkeys(eq.CACHES, cache_rows)
    given = dense({"x": c.q_width, **rows}, scale=0.5)  # averages of values, and gated
    return [
        Block(kernels.qkv_block, partial(project, "w_qkv"), qkv, DENSE_RUNS),
        Block(kernels.rope_block, rope, rope_inputs, len(STEPS)),
        Block(
            kernels.attention_block,
            attention,
            attention_inputs,
            len(STEPS),
            rows=caches,
            in_pieces=several_pages,
        ),
        Block(kernels.out_block, partial(residual, "w_o"), given, DENSE_RUNS),
    ]
