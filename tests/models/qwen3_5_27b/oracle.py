"""Decode steps of Hugging Face's Qwen3_5ForCausalLM, in this project's tensors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from models.qwen3_5_27b.config import TINY, Config
from models.qwen3_5_27b.inputs import head_weights, layer_weights, rope_tables
from tests.models.oracle import OracleRun, decode

__all__ = ["OracleRun", "build_model", "hf_config", "oracle"]

FP32_KEPT = ("A_log", "norm.weight")
"""Parameters of a gdn layer that a checkpoint holds in fp32 whatever the model's element type."""


def hf_config(config: Config) -> Qwen3_5TextConfig:
    """transformers' configuration of these sizes; the defaults of its class describe another model."""
    c = config
    half = c.rotary_dim // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    return Qwen3_5TextConfig(
        vocab_size=c.vocab_padded,
        hidden_size=c.hidden,
        intermediate_size=c.intermediate,
        num_hidden_layers=c.layers,
        num_attention_heads=c.q_heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
        linear_num_key_heads=c.k_heads,
        linear_num_value_heads=c.v_heads,
        linear_key_head_dim=c.k_dim,
        linear_value_head_dim=c.v_dim,
        linear_conv_kernel_dim=c.taps,
        full_attention_interval=c.full_interval,
        max_position_embeddings=262144,
        rms_norm_eps=c.eps,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": c.rope_theta,
            "partial_rotary_factor": c.rotary_dim / c.head_dim,
            "mrope_section": sections,
            "mrope_interleaved": True,
        },
        tie_word_embeddings=False,
    )


def _full_state(at: str, w: dict[str, Tensor], c: Config) -> dict[str, Tensor]:
    gate, q, k, v = w["w_qkv"].split([c.gate_width, c.q_width, c.kv_width, c.kv_width])
    heads = (c.q_heads, c.head_dim, c.hidden)
    return {
        at + "q_proj.weight": torch.cat([q.view(heads), gate.view(heads)], dim=1).flatten(0, 1),
        at + "k_proj.weight": k,
        at + "v_proj.weight": v,
        at + "o_proj.weight": w["w_o"],
        at + "q_norm.weight": w["q_norm"][0],
        at + "k_norm.weight": w["k_norm"][0],
    }


def _gdn_state(at: str, w: dict[str, Tensor], c: Config) -> dict[str, Tensor]:
    qkv, z, b, a = w["w_in"].split([c.conv_dim, c.v_width, c.v_heads, c.v_heads])
    return {
        at + "in_proj_qkv.weight": qkv,
        at + "in_proj_z.weight": z,
        at + "in_proj_b.weight": b,
        at + "in_proj_a.weight": a,
        at + "conv1d.weight": w["conv_weight"].T[:, None].contiguous(),
        at + "A_log": w["a_log"][0],
        at + "dt_bias": w["dt_bias"][0],
        at + "norm.weight": w["gdn_norm"][0],
        at + "out_proj.weight": w["w_out"],
    }


def build_model(
    config: Config, weights: list[dict[str, Tensor]], shared: dict[str, Tensor], seed: int
) -> Qwen3_5ForCausalLM:
    """transformers' model of these sizes, holding our weights under its names, and random embeddings."""
    c = config
    # _from_config, not .to(dtype): the latter would round the rotary frequencies as well.
    model = Qwen3_5ForCausalLM._from_config(
        hf_config(c), attn_implementation="eager", dtype=c.torch_dtype
    ).eval()
    state = {
        "model.embed_tokens.weight": torch.randn(
            c.vocab_padded, c.hidden, generator=torch.Generator().manual_seed(seed)
        ),
        "model.norm.weight": shared["final_norm"][0],
        "lm_head.weight": shared["w_lm_head"],
    }
    for i, (w, kind) in enumerate(zip(weights, c.kinds, strict=True)):
        at = f"model.layers.{i}."
        gate, up = w["w_gate_up"].chunk(2)
        state |= {
            at + "mlp.gate_proj.weight": gate,
            at + "mlp.up_proj.weight": up,
            at + "mlp.down_proj.weight": w["w_down"],
            at + "input_layernorm.weight": w["input_norm"][0],
            at + "post_attention_layernorm.weight": w["post_norm"][0],
        }
        if kind == "full":
            state |= _full_state(at + "self_attn.", w, c)
        else:
            state |= _gdn_state(at + "linear_attn.", w, c)
            mixer = model.model.layers[i].linear_attn
            for name in FP32_KEPT:  # wide enough for the values to arrive unrounded
                owner, _, leaf = name.rpartition(".")
                module = mixer.get_submodule(owner)
                setattr(module, leaf, torch.nn.Parameter(getattr(module, leaf).float()))
    model.load_state_dict(state)
    return model


@cache
def oracle(
    dtype: str = "fp32",
    seed: int = 0,
    lens: tuple[int, ...] = (2, 17, 48, 65),
    steps: int = 4,
    config: Config = TINY,
    deltas: tuple[int, ...] | None = (40, -1, 25, -60),
) -> OracleRun:
    """Prefill sequences of `lens` random tokens, then decode `steps` more random tokens each.

    By default every sequence goes on at a position other than its index in the cache, as behind an image.

    Raises:
        ValueError: if a sequence would outgrow `config.max_seq`.
    """
    c = replace(config, dtype=dtype)
    weights = [layer_weights(c, seed * c.layers + i, kind) for i, kind in enumerate(c.kinds)]
    for w in weights:
        if "k_norm" in w:
            # Halve the scores: from layer to layer, a softmax as sharp as in `make_inputs` amplifies what
            # the order of sums does to the last bit, and tight tolerances would test that.
            w["k_norm"] = ((1 + w["k_norm"]) / 2 - 1).to(c.torch_dtype).float()
    cos, sin = rope_tables(c)
    shared = {**head_weights(c, seed, "full"), "rope_cos": cos, "rope_sin": sin}
    model = build_model(c, weights, shared, seed)
    return decode(model, c, weights, shared, lens=lens, steps=steps, seed=seed, deltas=deltas)
