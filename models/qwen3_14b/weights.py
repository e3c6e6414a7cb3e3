"""Qwen3 checkpoints as the tensors of the kernels.

`config_of` reads the sizes, `open_weights` checks every tensor, `layer_weights` and `head_weights` then load
one layer or the head. What is loaded is all that takes memory.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from models.common import weights as common
from models.common.checkpoint import SETTINGS, Checkpoint, Progress, open_checkpoint
from models.common.relayout import Recipes, check_recipes, load_recipes
from models.common.settings import Settings, checked, model_settings
from models.common.sharding import Cuts, check_ranks
from models.qwen3_14b.config import Config

MODEL_TYPES = ("qwen3",)

_STACK = "model."


def config_of(directory: str | Path, *, page: int = 128, max_batch: int = 16, max_seq: int = 4096) -> Config:
    """The model's sizes from config.json, with a KV cache for `max_batch` sequences of `max_seq` tokens.

    Raises:
        UserError: if a size is missing, the sizes do not fit together, or the model has a feature that the
        layers lack (see `models.common.weights.decoder_sizes`).
    """
    s = model_settings(directory, MODEL_TYPES)
    sizes = common.decoder_sizes(s, page, max_batch, max_seq)
    full = ["full_attention"] * sizes["layers"]
    s.only("layer_types", full, "give a model whose layers are all full attention", default=full)
    with checked(s):
        return Config(**sizes)


def open_weights(directory: str | Path, config: Config, progress: Progress | None = None) -> Checkpoint:
    """Open a checkpoint and hold all its tensors against `config`, reading headers only.

    Args:
        directory: a Hugging Face directory.
        config: from `config_of(directory)`.
        progress: told which file is read, and which tensors are left aside and why.

    Raises:
        UserError: one, that names the file and the tensor that is missing, not asked for, mis-shaped,
        mis-typed or cut short.
    """
    checkpoint = open_checkpoint(directory, progress)
    tables = [layer_recipes(config, layer) for layer in range(config.layers)]
    tied = is_tied(checkpoint)
    ignored = {common.LM_HEAD: "the embedding table is the head"} if tied else {}
    tables.append(common.head_recipes(config, _STACK, tied))
    check_recipes(checkpoint, tables, config.torch_dtype, ignored, progress)
    return checkpoint


def layer_weights(checkpoint: Checkpoint, config: Config, layer: int) -> dict[str, Tensor]:
    """The tensors of layer `layer`, named and laid out as the layer's kernels take them.

    In the model's element type: w_qkv `[qkv_width, H]` (rows q | k | v), w_o `[H, q_width]`, w_gate_up
    `[2 I, H]` (rows gate | up) and w_down `[H, I]`.
    In fp32: input_norm, post_norm `[1, H]`, q_norm and k_norm `[1, D]`.

    Raises:
        ValueError: if there is no such layer.
        UserError: if a file changed since `open_weights`.
    """
    return load_recipes(checkpoint, layer_recipes(config, layer), config.torch_dtype)


def head_weights(checkpoint: Checkpoint, config: Config) -> dict[str, Tensor]:
    """table `[vocab, H]` of the embedding, final_norm `[1, H]` fp32 and w_lm_head `[vocab_padded, H]`.

    Rows of w_lm_head beyond the vocabulary are zero.

    Raises:
        UserError: if a file changed since `open_weights`.
    """
    recipes = common.head_recipes(config, _STACK, is_tied(checkpoint))
    return load_recipes(checkpoint, recipes, config.torch_dtype)


def layer_recipes(config: Config, layer: int) -> Recipes:
    """How layer `layer` is made from the stored tensors.

    Raises:
        ValueError: if there is no such layer.
    """
    if not 0 <= layer < config.layers:
        raise ValueError(f"layer is {layer}; it must lie in 0..{config.layers - 1}")
    at = f"{_STACK}layers.{layer}."
    return {**common.attention_recipes(config, at), **common.dense_recipes(config, at)}


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the embedding table is also the LM head."""
    return Settings(checkpoint.directory / SETTINGS, checkpoint.settings).flag("tie_word_embeddings")


# ------------------------------------------------------------------------------------- tensor parallelism
def layer_cuts(config: Config) -> Cuts:
    """How the tensors of a layer are dealt out to ranks (see `models.common.sharding.shard`)."""
    return {**common.attention_cuts(config), **common.dense_cuts(config)}


def rank_config(config: Config, tp: int) -> Config:
    """The sizes of a layer on each of `tp` ranks.

    Raises:
        UserError: if `tp` ranks cannot share the heads.
    """
    check_ranks(common.sections_of(layer_cuts(config)), tp)
    return replace(config, **common.rank_sizes(config, tp))
