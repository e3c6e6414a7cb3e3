"""Small checkpoints that transformers itself writes, with random weights in every tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from models.common.config import DecoderConfig
from models.qwen3_5_27b.config import Config as HybridConfig

INDEX = "model.safetensors.index.json"


def hf_sizes(config: DecoderConfig, **more: Any) -> dict[str, Any]:
    c = config
    return {
        "vocab_size": c.vocab,
        "hidden_size": c.hidden,
        "intermediate_size": c.intermediate,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.q_heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.eps,
        "max_position_embeddings": c.max_seq,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        **more,
    }


def hybrid_sizes(config: HybridConfig, **more: Any) -> dict[str, Any]:
    c = config
    sizes = hf_sizes(
        c,
        linear_num_key_heads=c.k_heads,
        linear_num_value_heads=c.v_heads,
        linear_key_head_dim=c.k_dim,
        linear_value_head_dim=c.v_dim,
        linear_conv_kernel_dim=c.taps,
        layer_types=["full_attention" if kind == "full" else "linear_attention" for kind in c.kinds],
        **more,
    )
    sizes["rope_parameters"]["partial_rotary_factor"] = c.rotary_dim / c.head_dim
    return sizes


def randomise(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Random values of a plausible size in every parameter: no two rows, heads or layers are alike."""
    generator = torch.Generator().manual_seed(seed)
    tied = model.config.tie_word_embeddings  # then the table is a projection too
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                value = 1 + 0.2 * value if name.endswith("linear_attn.norm.weight") else 0.2 * value
                value += 1.0 if model.config.model_type == "qwen3" else 0.0
            elif name.endswith("A_log"):
                value = torch.log(0.1 + 4 * torch.rand(parameter.shape, generator=generator))
            elif name.endswith("conv1d.weight"):
                value *= 0.5
            elif parameter.ndim > 1 and (tied or "embed_tokens" not in name):
                value *= parameter.shape[1] ** -0.5
            parameter.copy_(value)
    return model.eval()


def qwen3(config: DecoderConfig, seed: int = 0, **more: Any) -> PreTrainedModel:
    hf = Qwen3Config(**hf_sizes(config, **more))
    return randomise(Qwen3ForCausalLM._from_config(hf, dtype=config.torch_dtype, **_EAGER), seed)


def qwen3_5(config: HybridConfig, seed: int = 0, **more: Any) -> PreTrainedModel:
    """The text model by itself."""
    hf = Qwen3_5TextConfig(**hybrid_sizes(config, **more))
    return randomise(Qwen3_5ForCausalLM._from_config(hf, dtype=config.torch_dtype, **_EAGER), seed)


def qwen3_5_with_vision(config: HybridConfig, seed: int = 0) -> PreTrainedModel:
    """The text model next to a small vision tower, as published."""
    vision = {
        "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": config.hidden, "num_position_embeddings": 16,
    }  # fmt: skip
    hf = Qwen3_5Config(text_config=hybrid_sizes(config), vision_config=vision)
    dtype = config.torch_dtype
    return randomise(Qwen3_5ForConditionalGeneration._from_config(hf, dtype=dtype, **_EAGER), seed)


def qwen3_next(config: HybridConfig, seed: int = 0, **more: Any) -> PreTrainedModel:
    """Qwen3-Next with dense MLPs."""
    hf = Qwen3NextConfig(**hybrid_sizes(config, num_experts=0, **more))
    return randomise(Qwen3NextForCausalLM._from_config(hf, dtype=config.torch_dtype, **_EAGER), seed)


_EAGER = {"attn_implementation": "eager"}


def saved(model: PreTrainedModel, directory: Path, shard: str = "50GB") -> Path:
    model.save_pretrained(directory, max_shard_size=shard)
    return directory


def stored_state(directory: Path) -> dict[str, Tensor]:
    """All tensors of a directory, as the safetensors package reads them."""
    state: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        state |= load_file(file)
    return state


def file_of(directory: Path, name: str) -> Path:
    """The file that holds a tensor."""
    index = directory / INDEX
    if not index.exists():
        return directory / "model.safetensors"
    return directory / json.loads(index.read_text())["weight_map"][name]


def edit_file(file: Path, remove: str | None = None, **put: Tensor) -> None:
    """Rewrite a safetensors file without the tensor `remove` and with the tensors `put`."""
    state = {name: tensor.clone() for name, tensor in load_file(file).items() if name != remove}
    save_file({**state, **put}, file, {"format": "pt"})


def edit_json(file: Path, *path: str, value: Any) -> None:
    """Set an entry of a JSON file, or remove it with the value None."""
    whole = json.loads(file.read_text())
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    file.write_text(json.dumps(whole))
