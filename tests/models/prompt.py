"""A whole prompt through the reference equations, layer by layer, on weights as they were loaded."""

from __future__ import annotations

import torch
from torch import Tensor

from models.common import equations as eq
from models.common.config import DecoderConfig
from models.common.step_inputs import rope_tables
from models.qwen3_5_27b import reference


def prompt_logits(
    tokens: Tensor, layers: list[dict[str, Tensor]], head: dict[str, Tensor], config: DecoderConfig
) -> Tensor:
    """fp64 logits `[n, vocab_padded]` of one sequence of `n` tokens that starts from nothing."""
    c, n = config, len(tokens)
    p = eq.Precision(torch.float64)
    cos, sin = rope_tables(c)
    pages = -(-n // c.page)
    indices = {
        "positions": torch.arange(n),
        "slot_mapping": torch.arange(n),
        "cu_q": torch.tensor([0, n]),
        "ctx": torch.tensor([n]),
        "block_table": torch.arange(pages)[None],
        "rope_cos": cos,
        "rope_sin": sin,
        "state_slots": torch.arange(n)[None],
        "conv_slots": torch.tensor([0]),
        "kept": torch.tensor([1]),
    }
    rows = eq.live_rows(indices, c)
    x = head["table"][tokens].double()
    for kind, weights in zip(c.kinds, layers, strict=True):
        tensors = {**indices, **weights}
        if kind == "full":
            for name in eq.CACHES:
                tensors[name] = torch.zeros(pages * c.kv_heads * c.page, c.head_dim, dtype=x.dtype)
            x = x + eq.attention(x, rows, tensors, c, p)
        else:
            tensors["state"] = torch.zeros(n * c.v_heads * c.k_dim, c.v_dim, dtype=x.dtype)
            tensors["conv_state"] = torch.zeros(c.taps - 2 + n, c.conv_dim, dtype=x.dtype)
            x = x + reference.delta_net(x, rows, tensors, c, p)
        x = x + eq.mlp(x, tensors, c, p)
    y = eq.final_norm(x, head["final_norm"], c.eps, p, gemma=c.gemma_norm)
    return eq.lm_head(y, head["w_lm_head"], p)


def assert_logits(got: Tensor, want: Tensor, vocab: int) -> None:
    """`got`, in fp64, is transformers' fp32 `want` `[n, vocab]`, and 0 for padding tokens.

    1e-5 of the largest logit: transformers' own rounding is 3e-6 of it, and the least of wrong layouts 1e-3.
    """
    assert want.abs().max() > 1
    error = (got[:, :vocab] - want).abs().max() / want.abs().max()
    assert error <= 1e-5, f"{float(error):.1e}"
    assert got.shape[1] > vocab
    assert not got[:, vocab:].any()
