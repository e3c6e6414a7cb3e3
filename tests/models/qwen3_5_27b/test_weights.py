"""Qwen3.5 and Qwen3-Next checkpoints give transformers' logits through our layouts; FP8 blocks; sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from models.common import fp8
from models.common.checkpoint import Checkpoint, Entry
from models.common.relayout import check_recipes
from models.common.weights import head_recipes
from models.qwen3_5_27b.config import FULL, REAL_HEADS, TINY, Config
from models.qwen3_5_27b.weights import config_of, head_weights, layer_recipes, layer_weights, open_weights
from pypto_models.errors import UserError
from tests.models import checkpoints
from tests.models.prompt import assert_logits, prompt_logits

CONFIG = replace(TINY, dtype="fp32", vocab=1000)
LIMITS = {"page": CONFIG.page, "max_seq": CONFIG.max_seq}


def loaded(directory: Path, config: Config) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    checkpoint = open_weights(directory, config)
    layers = [layer_weights(checkpoint, config, i) for i in range(config.layers)]
    return layers, head_weights(checkpoint, config)


def agrees(model: PreTrainedModel, directory: Path, config: Config) -> None:
    """Logits of a prompt from the files = those of transformers."""
    tokens = torch.randint(config.vocab, (19,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = model(input_ids=tokens[None]).logits[0]
    assert_logits(prompt_logits(tokens, *loaded(directory, config), config), want, config.vocab)


# ------------------------------------------------------------------------------------------- whole models
@pytest.mark.parametrize("tied", [False, True])
def test_text_model(tmp_path: Path, tied: bool) -> None:
    model = checkpoints.qwen3_5(CONFIG, tie_word_embeddings=tied)
    directory = checkpoints.saved(model, tmp_path, "3MB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    assert config_of(directory, **LIMITS) == CONFIG
    agrees(model, directory, CONFIG)


def test_published_form_with_vision_and_draft_head(tmp_path: Path) -> None:
    """Names under model.language_model., sizes under text_config; what else is there is named, not read."""
    model = checkpoints.qwen3_5_with_vision(CONFIG)
    directory = checkpoints.saved(model, tmp_path)
    file = directory / "model.safetensors"
    checkpoints.edit_file(file, **{"mtp.fc.weight": torch.zeros(4, 8), "mtp.norm.weight": torch.zeros(4)})
    assert config_of(directory, **LIMITS) == CONFIG
    lines: list[str] = []
    checkpoint = open_weights(directory, CONFIG, lines.append)
    visual = sum(name.startswith("model.visual.") for name in checkpoint.entries)
    assert visual > 10
    assert lines == [
        f"ignored model.visual.* ({visual} tensors): the vision tower is no part of the text model",
        "ignored mtp.* (2 tensors): the draft head is no part of a decode step",
    ]
    agrees(model, directory, CONFIG)
    checkpoints.edit_file(file, **{"visual.x": torch.zeros(1)})
    with pytest.raises(UserError, match=r"tensor visual\.x is not part of the model"):
        open_weights(directory, CONFIG)


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_dense_qwen3_next(tmp_path: Path, ratio: int) -> None:
    config = replace(CONFIG, v_heads=ratio * CONFIG.k_heads, layers=2, full_interval=2)
    model = checkpoints.qwen3_next(config, seed=ratio)
    directory = checkpoints.saved(model, tmp_path)
    assert config_of(directory, **LIMITS) == config
    agrees(model, directory, config)


def test_published_tensors_are_all_known_by_name_and_shape() -> None:
    """transformers' full-size text model, on the meta device, against the recipes: 851 tensors."""
    sizes = checkpoints.hybrid_sizes(replace(FULL, max_seq=262144))
    with torch.device("meta"):
        model = Qwen3_5ForCausalLM._from_config(Qwen3_5TextConfig(**sizes), dtype=torch.bfloat16)
    entries = {
        name: Entry(Path("model.safetensors"), value.dtype, tuple(value.shape))
        for name, value in model.state_dict().items()
    }
    assert len(entries) == 851
    checkpoint = Checkpoint(Path(), Path("model.safetensors"), entries, {})
    tables = [layer_recipes(checkpoint, FULL, i) for i in range(FULL.layers)]
    tables.append(head_recipes(FULL, "model.", False))
    check_recipes(checkpoint, tables, FULL.torch_dtype, {})
    wrong = replace(FULL, v_heads=32)  # transformers' default, which is another model's
    tables = [layer_recipes(checkpoint, wrong, i) for i in range(FULL.layers)]
    message = r"linear_attn\.in_proj_qkv\.weight is \[10240, 5120\], but config\.json makes it \[8192, 5120\]"
    with pytest.raises(UserError, match=message):
        check_recipes(checkpoint, tables, FULL.torch_dtype, {})


# ------------------------------------------------------------------------------------------------ values
def test_rows_of_a_full_layer_are_gate_q_k_v(tmp_path: Path) -> None:
    config = replace(CONFIG, dtype="bf16")
    model = checkpoints.qwen3_5(config)
    layers, _ = loaded(checkpoints.saved(model, tmp_path), config)
    attention = model.model.layers[3].self_attn
    heads = attention.q_proj.weight.view(config.q_heads, 2, config.head_dim, config.hidden)
    gate, q = heads[:, 1].flatten(0, 1), heads[:, 0].flatten(0, 1)
    assert torch.equal(
        layers[3]["w_qkv"], torch.cat([gate, q, attention.k_proj.weight, attention.v_proj.weight])
    )
    assert all(tensor.is_contiguous() for tensor in layers[3].values())


def test_decay_and_output_norm_stay_fp32(tmp_path: Path) -> None:
    """Published files hold A_log and the output norm in fp32 in a bf16 model; bf16 would move exp(A_log)."""
    config = replace(CONFIG, dtype="bf16")
    directory = checkpoints.saved(checkpoints.qwen3_5(config), tmp_path)
    at, generator = "model.layers.1.linear_attn.", torch.Generator().manual_seed(2)
    a_log, norm = (torch.randn(n, generator=generator) for n in (config.v_heads, config.v_dim))
    file = directory / "model.safetensors"
    checkpoints.edit_file(file, **{f"{at}A_log": a_log, f"{at}norm.weight": norm})
    layers, _ = loaded(directory, config)
    assert torch.equal(layers[1]["a_log"], a_log[None])
    assert torch.equal(layers[1]["gdn_norm"], norm[None])
    assert not torch.equal(a_log.bfloat16().float(), a_log)
    fp32 = ("a_log", "dt_bias", "gdn_norm", "input_norm", "post_norm")
    assert all(layers[1][name].dtype == torch.float32 for name in fp32)
    assert layers[1]["conv_weight"].dtype == layers[1]["w_in"].dtype == torch.bfloat16


# --------------------------------------------------------------------------------------------------- fp8
QUANTISED = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "in_proj_qkv.",
    "in_proj_qkvz.",
    "in_proj_z.",
    "out_proj",
    "mlp",
)


def quantise(directory: Path, scale_dtype: torch.dtype) -> dict[str, Tensor]:
    """Turn a checkpoint into FP8 blocks, as published ones are; returns what it then stands for, in fp32."""
    state = checkpoints.stored_state(directory)
    meaning = {name: value.float() for name, value in state.items()}
    for name in [name for name in state if any(part in name for part in QUANTISED)]:
        weight = state.pop(name).float()
        n, k = (-(-extent // 128) for extent in weight.shape)
        padded = torch.zeros(n * 128, k * 128)
        padded[: weight.shape[0], : weight.shape[1]] = weight
        tiles = padded.view(n, 128, k, 128)
        # every second block eight times larger, so that no scale can stand in for its neighbour
        scale = (tiles.abs().amax((1, 3)) / 448 * (1 + 7 * (torch.arange(n)[:, None] % 2))).to(scale_dtype)
        small = (tiles / scale.float()[:, None, :, None]).to(torch.float8_e4m3fn)
        wide = (small.float() * scale.float()[:, None, :, None]).reshape(padded.shape)
        meaning[name] = wide[: weight.shape[0], : weight.shape[1]]
        state[name] = small.view(padded.shape)[: weight.shape[0], : weight.shape[1]].contiguous()
        state[f"{name}_scale_inv"] = scale
    save_file(state, directory / "model.safetensors")
    checkpoints.edit_json(
        directory / "config.json",
        "quantization_config",
        value={"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    )
    return meaning


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", [checkpoints.qwen3_5, checkpoints.qwen3_next])
def test_fp8_blocks_of_real_heads(tmp_path: Path, build: object, scale_dtype: torch.dtype) -> None:
    """The same model in FP8 and in plain weights of the same meaning gives the same tensors, bit for bit."""
    config = replace(REAL_HEADS, layers=2, full_interval=2, vocab=512)
    limits = {"page": config.page, "max_seq": config.max_seq}
    directory = checkpoints.saved(build(config), tmp_path / "fp8")  # type: ignore[operator]
    text = (directory / "config.json").read_text()
    meaning = quantise(directory, scale_dtype)
    assert config_of(directory, **limits) == config
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text(text)
    save_file({name: value.bfloat16() for name, value in meaning.items()}, plain / "model.safetensors")
    got, want = loaded(directory, config), loaded(plain, config)
    for mine, theirs in zip([*got[0], got[1]], [*want[0], want[1]], strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), name


def test_fp8_needs_its_scales(tmp_path: Path) -> None:
    config = replace(REAL_HEADS, layers=1, vocab=512)
    directory = checkpoints.saved(checkpoints.qwen3_5(config), tmp_path)
    quantise(directory, torch.float32)
    file = directory / "model.safetensors"
    name = "model.layers.0.linear_attn.in_proj_z.weight"
    scale = f"{name}_scale_inv"
    shape = fp8.scale_shape((config.v_width, config.hidden))
    checkpoints.edit_file(file, **{scale: torch.ones(shape[::-1])})
    message = rf"tensor {scale} is \[4, 12\], but config\.json makes it \[12, 4\]"
    with pytest.raises(UserError, match=message):
        open_weights(directory, config)
    checkpoints.edit_file(file, remove=scale)
    with pytest.raises(UserError, match=rf"model\.safetensors: tensor {scale} is missing"):
        open_weights(directory, config)
    # a scale without an FP8 weight belongs to nothing
    plain = torch.zeros(config.v_width, config.hidden, dtype=torch.bfloat16)
    checkpoints.edit_file(file, **{name: plain, scale: torch.ones(shape)})
    with pytest.raises(UserError, match=rf"tensor {scale} is not part of the model"):
        open_weights(directory, config)


@pytest.mark.parametrize(
    ("build", "layers", "tensor"),
    [
        (checkpoints.qwen3_5, 2, r"layers\.1\.self_attn\.q_proj\.weight: rows 64:128 of 1536"),
        (checkpoints.qwen3_next, 1, r"layers\.0\.linear_attn\.in_proj_qkvz\.weight: rows 0:32 of 896"),
    ],
)
def test_fp8_heads_that_share_a_scale(tmp_path: Path, build: object, layers: int, tensor: str) -> None:
    """Heads of 64 rows: their order cannot change without taking a block apart."""
    config = replace(TINY, layers=layers, full_interval=2)
    directory = checkpoints.saved(build(config), tmp_path)  # type: ignore[operator]
    quantise(directory, torch.float32)
    message = (
        rf"model\.safetensors: tensor model\.{tensor} are not whole blocks of 128 rows[\s\S]*fix: use the"
    )
    with pytest.raises(UserError, match=message):
        open_weights(directory, config)


# ------------------------------------------------------------------------------------------------- sizes
TEXT = ("text_config",)


def settings(directory: Path) -> Path:
    """config.json of the published shape."""
    text = checkpoints.qwen3_5(replace(CONFIG, layers=1)).config.to_dict()
    text |= {
        "num_hidden_layers": 4,
        "dtype": "float32",
        "layer_types": [*["linear_attention"] * 3, "full_attention"],
    }
    file = directory / "config.json"
    file.write_text(json.dumps({"model_type": "qwen3_5", "text_config": text, "tie_word_embeddings": False}))
    return file


def test_interval_from_either_field(tmp_path: Path) -> None:
    file = settings(tmp_path)
    assert config_of(tmp_path, **LIMITS) == CONFIG
    checkpoints.edit_json(file, "text_config", "full_attention_interval", value=4)
    assert config_of(tmp_path, **LIMITS) == CONFIG
    checkpoints.edit_json(file, "text_config", "layer_types", value=None)
    assert config_of(tmp_path, **LIMITS) == CONFIG
    checkpoints.edit_json(file, "text_config", "full_attention_interval", value=2)
    assert config_of(tmp_path, **LIMITS) == replace(CONFIG, full_interval=2)
    checkpoints.edit_json(file, "text_config", "full_attention_interval", value=None)
    with pytest.raises(UserError, match="full_attention_interval is missing"):
        config_of(tmp_path, **LIMITS)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("text_config",), None, "text_config is missing"),
        (("text_config",), [], "text_config is \\[\\].*\n.*it must be an object"),
        ((*TEXT, "linear_num_value_heads"), None, "linear_num_value_heads is missing"),
        ((*TEXT, "linear_num_value_heads"), 5, "v_heads = 5 must be a multiple of k_heads = 2"),
        ((*TEXT, "layer_types"), ["full_attention", "linear_attention"] * 2, "layer_types is not one full_"),
        ((*TEXT, "layer_types"), "full", "layer_types is 'full'.*\n.*it must be a list"),
        ((*TEXT, "full_attention_interval"), 3, "layer_types is not one full_attention layer after every 2"),
        ((*TEXT, "attn_output_gate"), False, "attn_output_gate is False"),
        ((*TEXT, "num_experts"), 8, "num_experts is 8.*\n.*give a model whose MLPs are all dense"),
        ((*TEXT, "rope_parameters", "partial_rotary_factor"), None, "partial_rotary_factor is missing"),
        ((*TEXT, "rope_parameters", "rope_type"), "linear", "asks for 'linear' frequencies"),
        ((*TEXT, "dtype"), "float16", "dtype is 'float16'"),
        (("quantization_config",), {"quant_method": "awq"}, "quantization_config is 'awq'"),
        ((*TEXT, "quantization_config"), {"quant_method": "awq"}, "quantization_config is 'awq'"),
        (("model_type",), "qwen3_5_moe", "model_type is 'qwen3_5_moe'.*\n.*qwen3_5_text or qwen3_next"),
    ],
)  # fmt: skip
def test_settings_that_the_layers_do_not_have(
    tmp_path: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    checkpoints.edit_json(settings(tmp_path), *path, value=value)
    with pytest.raises(UserError, match=rf"config\.json: .*{message}"):
        config_of(tmp_path, **LIMITS)
