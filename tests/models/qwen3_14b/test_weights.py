"""A Qwen3 checkpoint that transformers wrote gives transformers' logits through our layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from models.common.checkpoint import Checkpoint, Entry
from models.common.relayout import check_recipes
from models.common.weights import head_recipes
from models.qwen3_14b.config import FULL, TINY
from models.qwen3_14b.weights import (
    config_of,
    head_weights,
    layer_recipes,
    layer_weights,
    open_weights,
)
from pypto_models.errors import UserError
from tests.models import checkpoints
from tests.models.prompt import assert_logits, prompt_logits

CONFIG = replace(TINY, dtype="fp32", vocab=1000)
LIMITS = {"page": CONFIG.page, "max_seq": CONFIG.max_seq}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.saved(checkpoints.qwen3(CONFIG), tmp_path_factory.mktemp("qwen3"), "3MB")


def test_config_is_what_was_saved(directory: Path) -> None:
    assert config_of(directory, **LIMITS) == CONFIG


@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_a_checkpoint_are_those_of_transformers(tmp_path: Path, tied: bool) -> None:
    model = checkpoints.qwen3(CONFIG, tie_word_embeddings=tied)
    directory = checkpoints.saved(model, tmp_path, "3MB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    config = config_of(directory, **LIMITS)
    checkpoint = open_weights(directory, config)
    assert ("lm_head.weight" in checkpoint) != tied
    layers = [layer_weights(checkpoint, config, i) for i in range(config.layers)]
    head = head_weights(checkpoint, config)
    tokens = torch.randint(config.vocab, (21,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = model(input_ids=tokens[None]).logits[0]
    got = prompt_logits(tokens, layers, head, config)
    assert_logits(got, want, config.vocab)


def test_bf16_weights_are_the_stored_bits_and_norms_are_fp32(tmp_path: Path) -> None:
    config = replace(CONFIG, dtype="bf16")
    model = checkpoints.qwen3(config)
    directory = checkpoints.saved(model, tmp_path)
    checkpoint = open_weights(directory, config_of(directory, **LIMITS))
    weights, layer = layer_weights(checkpoint, config, 2), model.model.layers[2]
    attention = layer.self_attn
    stacked = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(weights["w_qkv"], stacked)
    assert torch.equal(weights["w_down"], layer.mlp.down_proj.weight)
    assert torch.equal(weights["k_norm"], attention.k_norm.weight.float()[None])
    assert weights["k_norm"].dtype == torch.float32
    assert all(tensor.is_contiguous() for tensor in weights.values())


def test_published_tensors_are_all_known_by_name_and_shape() -> None:
    """transformers' full-size model, on the meta device, against the recipes: 443 tensors."""
    sizes = checkpoints.hf_sizes(replace(FULL, max_seq=40960), tie_word_embeddings=False)
    with torch.device("meta"):
        model = Qwen3ForCausalLM._from_config(Qwen3Config(**sizes), dtype=torch.bfloat16)
    entries = {
        name: Entry(Path("model.safetensors"), value.dtype, tuple(value.shape))
        for name, value in model.state_dict().items()
    }
    assert len(entries) == 443
    checkpoint = Checkpoint(Path(), Path("model.safetensors"), entries, {})
    tables = [*(layer_recipes(FULL, i) for i in range(FULL.layers)), head_recipes(FULL, "model.", False)]
    check_recipes(checkpoint, tables, FULL.torch_dtype, {})
    del entries["model.layers.39.self_attn.k_norm.weight"]
    with pytest.raises(UserError, match=r"model\.layers\.39\.self_attn\.k_norm\.weight is missing"):
        check_recipes(checkpoint, tables, FULL.torch_dtype, {})


def test_layer_out_of_range(directory: Path) -> None:
    checkpoint = open_weights(directory, CONFIG)
    with pytest.raises(ValueError, match=r"layer is 4; it must lie in 0\.\.3"):
        layer_weights(checkpoint, CONFIG, 4)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model_type",), "llama", r"model_type is 'llama'[\s\S]*fix: give a model of type qwen3"),
        (("hidden_size",), None, r"hidden_size is missing"),
        (("num_hidden_layers",), "4", r"num_hidden_layers is '4'[\s\S]*fix: it must be a positive integer"),
        (("num_key_value_heads",), 3, r"Config\.q_heads = 10 must be a multiple of kv_heads = 3"),
        (("attention_bias",), True, r"attention_bias is True; the layers are written for False"),
        (("use_sliding_window",), True, r"use_sliding_window is True"),
        (("layer_types",), ["sliding_attention"] * 4, r"layer_types is \['sliding_attention'"),
        (("hidden_act",), "gelu", r"hidden_act is 'gelu'; the layers are written for 'silu'"),
        (("rope_parameters", "rope_type"), "yarn", r"rope_parameters asks for 'yarn' frequencies"),
        (("rope_parameters",), 3, r"rope_parameters is 3[\s\S]*fix: it must be an object"),
        (("rope_parameters", "rope_theta"), None, r"rope_theta is missing"),
        (("rms_norm_eps",), -1, r"rms_norm_eps is -1[\s\S]*fix: it must be a positive number"),
        (("tie_word_embeddings",), "no", r"tie_word_embeddings is 'no'"),
        (("dtype",), "float16", r"dtype is 'float16'[\s\S]*fix: use a checkpoint in bfloat16 or float32"),
        (("dtype",), None, r"dtype is missing"),
        (("max_position_embeddings",), 64, r"max_position_embeddings is 64, below max_seq = 128"),
        (("quantization_config",), "fp8", r"quantization_config is 'fp8'[\s\S]*fix: it must be an object"),
        (("quantization_config",), {"quant_method": "gptq"}, r"quantization_config is 'gptq'"),
        (
            ("quantization_config",),
            {"quant_method": "fp8", "weight_block_size": [64, 64]},
            r"quantization_config is 'fp8' in blocks of \[64, 64\]",
        ),
    ],
)
def test_settings_that_the_layers_do_not_have(
    directory: Path, tmp_path: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    text = (directory / "config.json").read_text()
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(text)
    checkpoints.edit_json(tmp_path / "config.json", *path, value=value)
    with pytest.raises(UserError, match=rf"config\.json: {message}"):
        open_weights(tmp_path, config_of(tmp_path, **LIMITS))


def test_settings_in_the_older_form(directory: Path, tmp_path: Path) -> None:
    """torch_dtype, rope_theta at the top and a rope_scaling of null mean the same."""
    file = tmp_path / "config.json"
    file.write_text((directory / "config.json").read_text())
    checkpoints.edit_json(file, "dtype", value=None)
    checkpoints.edit_json(file, "torch_dtype", value="float32")
    checkpoints.edit_json(file, "rope_parameters", value=None)
    checkpoints.edit_json(file, "rope_theta", value=CONFIG.rope_theta)
    checkpoints.edit_json(file, "rope_scaling", value={})
    assert config_of(tmp_path, **LIMITS) == CONFIG
    checkpoints.edit_json(file, "rope_scaling", value={"type": "yarn", "factor": 4.0})
    with pytest.raises(UserError, match="rope_scaling asks for 'yarn' frequencies"):
        config_of(tmp_path, **LIMITS)
