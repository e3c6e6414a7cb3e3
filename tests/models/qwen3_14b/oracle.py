"""Decode steps of Hugging Face's Qwen3ForCausalLM, in this project's tensors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from models.qwen3_14b.config import TINY, Config
from models.qwen3_14b.inputs import head_weights, layer_weights, rope_tables
from tests.models.oracle import OracleRun, decode

__all__ = ["OracleRun", "build_model", "oracle"]


def build_model(
    config: Config, weights: list[dict[str, Tensor]], shared: dict[str, Tensor], seed: int
) -> Qwen3ForCausalLM:
    """transformers' model of these sizes, holding our weights under its names, and random embeddings."""
    c = config
    hf = Qwen3Config(
        vocab_size=c.vocab_padded,
        hidden_size=c.hidden,
        intermediate_size=c.intermediate,
        num_hidden_layers=c.layers,
        num_attention_heads=c.q_heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
        rms_norm_eps=c.eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        tie_word_embeddings=False,
    )
    # _from_config, not .to(dtype): the latter would round the rotary frequencies as well.
    model = Qwen3ForCausalLM._from_config(hf, attn_implementation="eager", dtype=c.torch_dtype).eval()
    state = {
        "model.embed_tokens.weight": torch.randn(
            c.vocab_padded, c.hidden, generator=torch.Generator().manual_seed(seed)
        ),
        "model.norm.weight": shared["final_norm"][0],
        "lm_head.weight": shared["w_lm_head"],
    }
    for i, w in enumerate(weights):
        at = f"model.layers.{i}."
        q, k, v = w["w_qkv"].split([c.q_width, c.kv_width, c.kv_width])
        gate, up = w["w_gate_up"].chunk(2)
        state |= {
            at + "self_attn.q_proj.weight": q,
            at + "self_attn.k_proj.weight": k,
            at + "self_attn.v_proj.weight": v,
            at + "self_attn.o_proj.weight": w["w_o"],
            at + "self_attn.q_norm.weight": w["q_norm"][0],
            at + "self_attn.k_norm.weight": w["k_norm"][0],
            at + "mlp.gate_proj.weight": gate,
            at + "mlp.up_proj.weight": up,
            at + "mlp.down_proj.weight": w["w_down"],
            at + "input_layernorm.weight": w["input_norm"][0],
            at + "post_attention_layernorm.weight": w["post_norm"][0],
        }
    model.load_state_dict(state)
    return model


@cache
def oracle(
    dtype: str = "fp32",
    seed: int = 0,
    lens: tuple[int, ...] = (2, 17, 48, 65),
    steps: int = 3,
    config: Config = TINY,
    deltas: tuple[int, ...] | None = None,
) -> OracleRun:
    """Prefill sequences of `lens` random tokens, then decode `steps` more random tokens each.

    Raises:
        ValueError: if a sequence would outgrow `config.max_seq`.
    """
    c = replace(config, dtype=dtype)
    weights = [layer_weights(c, seed * c.layers + i) for i in range(c.layers)]
    for w in weights:
        # Halve the scores (exact in any type): from layer to layer, a softmax as sharp as in `make_inputs`
        # amplifies what the order of sums does to the last bit, and tight tolerances would test that.
        w["k_norm"] /= 2
    cos, sin = rope_tables(c)
    shared = {**head_weights(c, seed, "full"), "rope_cos": cos, "rope_sin": sin}
    model = build_model(c, weights, shared, seed)
    return decode(model, c, weights, shared, lens=lens, steps=steps, seed=seed, deltas=deltas)
