"""Qwen3.5 checkpoints, and dense ones of Qwen3-Next, as the tensors of the kernels.

`config_of` reads the sizes, `open_weights` checks every tensor, `layer_weights` and `head_weights` then load
one layer or the head. What is loaded is all that takes memory.

Qwen3.5 stores a gated-delta-net layer's projections one by one. Qwen3-Next stores them in two tensors, head
by head; the kernels see the same rows in either case.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from models.common import weights as common
from models.common.checkpoint import SETTINGS, Checkpoint, Progress, open_checkpoint
from models.common.relayout import (
    Matrix,
    Recipes,
    Rows,
    Taps,
    Vector,
    check_recipes,
    grouped_ba_rows,
    grouped_qkvz_rows,
    load_recipes,
)
from models.common.settings import Settings, checked, model_settings
from models.common.sharding import Cut, Cuts, Section, check_ranks
from models.qwen3_5_27b.config import Config

MODEL_TYPES = ("qwen3_5", "qwen3_5_text", "qwen3_next")

_TEXT = "text_config"
_NESTED_STACK = "model.language_model."
_STACK = "model."
_IGNORED = {
    "model.visual.*": "the vision tower is no part of the text model",
    "mtp.*": "the draft head is no part of a decode step",
}


def config_of(directory: str | Path, *, page: int = 128, max_batch: int = 16, max_seq: int = 4096) -> Config:
    """The text model's sizes from config.json, with a KV cache for `max_batch` sequences of `max_seq` tokens.

    Raises:
        UserError: if a size is missing, the sizes do not fit together, or the model has a feature that the
        layers lack: experts, an attention without output gate, layers in another order, or see
        `models.common.weights.decoder_sizes`.
    """
    s = model_settings(directory, MODEL_TYPES)
    if s.values["model_type"] == "qwen3_5":
        s = s.nested(_TEXT)
    sizes = common.decoder_sizes(s, page, max_batch, max_seq)
    s.only("attn_output_gate", True, "give a model whose attention has an output gate", default=True)
    _refuse_experts(s, sizes["layers"])
    fraction = s.rope().get("partial_rotary_factor")
    if fraction is None:
        raise s.missing("partial_rotary_factor")
    with checked(s):
        return Config(
            **sizes,
            rotary_dim=int(sizes["head_dim"] * fraction),
            full_interval=_full_interval(s, sizes["layers"]),
            k_heads=s.count("linear_num_key_heads"),
            v_heads=s.count("linear_num_value_heads"),
            k_dim=s.count("linear_key_head_dim"),
            v_dim=s.count("linear_value_head_dim"),
            taps=s.count("linear_conv_kernel_dim"),
        )


def _refuse_experts(s: Settings, layers: int) -> None:
    """Raise unless the MLP of each of `layers` is dense."""
    dense = s.items("mlp_only_layers")
    if s.values.get("num_experts") and any(layer not in dense for layer in range(layers)):
        raise s.error(f"num_experts is {s.values['num_experts']}", "give a model whose MLPs are all dense")


def _full_interval(s: Settings, layers: int) -> int:
    """The distance between full-attention layers, from layer_types, full_attention_interval or both."""
    kinds = s.items("layer_types")
    if not kinds:
        return s.count("full_attention_interval")
    given = s.values.get("full_attention_interval")
    first = kinds.index("full_attention") + 1 if "full_attention" in kinds else layers + 1
    interval = first if given is None else s.count("full_attention_interval")
    regular = ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(layers)]
    if kinds != regular:
        raise s.error(
            f"layer_types is not one full_attention layer after every {interval - 1} linear_attention layers",
            "give a model whose layers alternate so",
        )
    return interval


def open_weights(directory: str | Path, config: Config, progress: Progress | None = None) -> Checkpoint:
    """Open a checkpoint and hold all its tensors against `config`, reading headers only.

    Args:
        directory: a Hugging Face directory.
        config: from `config_of(directory)`.
        progress: told which file is read, and which tensors are left aside and why: the vision tower and the
            draft head of a published checkpoint.

    Raises:
        UserError: one, that names the file and the tensor that is missing, not asked for, mis-shaped,
        mis-typed or cut short.
    """
    checkpoint = open_checkpoint(directory, progress)
    tables = [layer_recipes(checkpoint, config, layer) for layer in range(config.layers)]
    tied = is_tied(checkpoint)
    ignored = _IGNORED | ({common.LM_HEAD: "the embedding table is the head"} if tied else {})
    tables.append(common.head_recipes(config, stack_of(checkpoint), tied))
    check_recipes(checkpoint, tables, config.torch_dtype, ignored, progress)
    return checkpoint


def layer_weights(checkpoint: Checkpoint, config: Config, layer: int) -> dict[str, Tensor]:
    """The tensors of layer `layer`, named and laid out as its kernels take them.

    In the model's element type:
        any layer: w_gate_up `[2 I, H]` (rows gate | up), w_down `[H, I]`
        full: w_qkv `[qkv_width, H]` (rows gate | q | k | v), w_o `[H, q_width]`
        gdn: w_in `[in_width, H]` (rows q | k | v | z | b | a), conv_weight `[taps, conv_dim]`,
            w_out `[H, v_width]`
    In fp32, with the values that are stored:
        any layer: input_norm, post_norm `[1, H]`
        full: q_norm, k_norm `[1, D]`
        gdn: a_log, dt_bias `[1, v_heads]`, gdn_norm `[1, v_dim]`

    Raises:
        ValueError: if there is no such layer.
        UserError: if a file changed since `open_weights`.
    """
    return load_recipes(checkpoint, layer_recipes(checkpoint, config, layer), config.torch_dtype)


def head_weights(checkpoint: Checkpoint, config: Config) -> dict[str, Tensor]:
    """table `[vocab, H]` of the embedding, final_norm `[1, H]` fp32 and w_lm_head `[vocab_padded, H]`.

    Rows of w_lm_head beyond the vocabulary are zero.

    Raises:
        UserError: if a file changed since `open_weights`.
    """
    recipes = common.head_recipes(config, stack_of(checkpoint), is_tied(checkpoint))
    return load_recipes(checkpoint, recipes, config.torch_dtype)


def layer_recipes(checkpoint: Checkpoint, config: Config, layer: int) -> Recipes:
    """How layer `layer` is made from the stored tensors, by the names that `checkpoint` uses.

    Raises:
        ValueError: if there is no such layer.
    """
    if not 0 <= layer < config.layers:
        raise ValueError(f"layer is {layer}; it must lie in 0..{config.layers - 1}")
    at = f"{stack_of(checkpoint)}layers.{layer}."
    grouped = checkpoint.settings.get("model_type") == "qwen3_next"
    full = config.kinds[layer] == "full"
    mixer = common.attention_recipes(config, at) if full else gdn_recipes(config, at, grouped)
    return {**mixer, **common.dense_recipes(config, at)}


def gdn_recipes(config: Config, at: str, grouped: bool) -> Recipes:
    """w_in, conv_weight, a_log, dt_bias, gdn_norm and w_out; `grouped`: stored as in Qwen3-Next."""
    c, at = config, f"{at}linear_attn."
    if grouped:
        qkvz = f"{at}in_proj_qkvz.weight", (c.conv_dim + c.v_width, c.hidden)
        ba = f"{at}in_proj_ba.weight", (2 * c.v_heads, c.hidden)
        rows = [Rows(*qkvz, take) for take in grouped_qkvz_rows(c.k_heads, c.v_heads, c.k_dim, c.v_dim)]
        rows += [Rows(*ba, take) for take in grouped_ba_rows(c.k_heads, c.v_heads)]
    else:
        sizes = {"qkv": c.conv_dim, "z": c.v_width, "b": c.v_heads, "a": c.v_heads}
        rows = [common.whole(f"{at}in_proj_{name}.weight", n, c.hidden) for name, n in sizes.items()]
    return {
        "w_in": Matrix(tuple(rows)),
        "conv_weight": Taps(f"{at}conv1d.weight", c.conv_dim, c.taps),
        "a_log": Vector(f"{at}A_log", c.v_heads),
        "dt_bias": Vector(f"{at}dt_bias", c.v_heads),
        "gdn_norm": Vector(f"{at}norm.weight", c.v_dim),
        "w_out": Matrix((common.whole(f"{at}out_proj.weight", c.hidden, c.v_width),)),
    }


def stack_of(checkpoint: Checkpoint) -> str:
    """The prefix of the text model's names: longer where a vision tower stands next to it."""
    nested = any(name.startswith(_NESTED_STACK) for name in checkpoint.entries)
    return _NESTED_STACK if nested else _STACK


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the embedding table is also the LM head."""
    s = Settings(checkpoint.directory / SETTINGS, checkpoint.settings)
    return (s.nested(_TEXT) if _TEXT in s.values else s).flag("tie_word_embeddings")


# ------------------------------------------------------------------------------------- tensor parallelism
def layer_cuts(config: Config, kind: str) -> Cuts:
    """How the tensors of a layer, "full" or "gdn", are dealt out to ranks (see `models.common.sharding`).

    A rank of a gdn layer has whole query and key heads, each with all its value heads.
    """
    mixer = common.attention_cuts(config) if kind == "full" else gdn_cuts(config)
    return {**mixer, **common.dense_cuts(config)}


def gdn_cuts(config: Config) -> Cuts:
    """The six sections of w_in and the three of conv_weight one by one."""
    c = config
    k = Section("key heads", c.k_heads, c.k_dim)
    # as many pieces as key heads: a value head stays with the key head that it reads
    v = Section("key heads", c.k_heads, c.v_group * c.v_dim)
    each = Section("key heads", c.k_heads, c.v_group)
    return {
        "w_in": Cut(0, (k, k, v, v, each, each)),
        "conv_weight": Cut(1, (k, k, v)),
        "a_log": Cut(1, (each,)),
        "dt_bias": Cut(1, (each,)),
        "gdn_norm": None,
        "w_out": Cut(1, (v,)),
    }


def rank_config(config: Config, tp: int) -> Config:
    """The sizes of a layer on each of `tp` ranks.

    Raises:
        UserError: if `tp` ranks cannot share the heads.
    """
    check_ranks([s for kind in ("full", "gdn") for s in common.sections_of(layer_cuts(config, kind))], tp)
    k_heads, v_heads = config.k_heads // tp, config.v_heads // tp
    return replace(config, k_heads=k_heads, v_heads=v_heads, **common.rank_sizes(config, tp))
