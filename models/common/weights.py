"""What the checkpoints of all decoders here have in common: attention, MLP, norms, embedding and head.

Recipes (see `models.common.relayout`) say how stored tensors become those of a kernel; cuts (see
`models.common.sharding`) say how these are dealt out to ranks. `at` is the prefix of a layer's names.
"""

from __future__ import annotations

from typing import Any

from models.common.config import DecoderConfig
from models.common.relayout import Matrix, Recipes, Rows, Vector, gated_rows
from models.common.settings import Settings
from models.common.sharding import Cut, Cuts, Section

EMBEDDING = "embed_tokens.weight"
LM_HEAD = "lm_head.weight"

_OTHER_MODEL = "give a model without it"


# ------------------------------------------------------------------------------------------------- sizes
def decoder_sizes(s: Settings, page: int, max_batch: int, max_seq: int) -> dict[str, Any]:
    """The fields of `DecoderConfig`, from config.json and the caller's KV cache.

    Raises:
        UserError: if one is missing, or the model has what the layers lack: attention biases, a sliding
        window, scaled rotary frequencies, an activation besides SiLU, a quantisation besides FP8 blocks.
    """
    s.check_quantisation()
    s.check_length(max_seq)
    s.only("attention_bias", False, _OTHER_MODEL, default=False)
    s.only("use_sliding_window", False, _OTHER_MODEL, default=False)
    s.only("hidden_act", "silu", "give a model whose MLPs use SiLU")
    return {
        "hidden": s.count("hidden_size"),
        "q_heads": s.count("num_attention_heads"),
        "kv_heads": s.count("num_key_value_heads"),
        "head_dim": s.count("head_dim"),
        "intermediate": s.count("intermediate_size"),
        "vocab": s.count("vocab_size"),
        "layers": s.count("num_hidden_layers"),
        "eps": s.number("rms_norm_eps"),
        "rope_theta": s.rope()["rope_theta"],
        "page": page,
        "max_batch": max_batch,
        "max_seq": max_seq,
        "dtype": s.element_type(),
    }


# ----------------------------------------------------------------------------------------------- recipes
def whole(name: str, rows: int, columns: int) -> Rows:
    """All rows of a stored matrix."""
    return Rows(name, (rows, columns))


def attention_recipes(config: DecoderConfig, at: str) -> Recipes:
    """w_qkv (rows gate | q | k | v), w_o, q_norm and k_norm."""
    c, at = config, f"{at}self_attn."
    q_rows = c.gate_width + c.q_width
    stored = f"{at}q_proj.weight", (q_rows, c.hidden)
    gates, queries = gated_rows(c.q_heads, c.head_dim)
    q = [Rows(*stored, gates), Rows(*stored, queries)] if c.gate_heads else [Rows(*stored)]
    kv = [whole(f"{at}{name}_proj.weight", c.kv_width, c.hidden) for name in ("k", "v")]
    return {
        "w_qkv": Matrix((*q, *kv)),
        "w_o": Matrix((whole(f"{at}o_proj.weight", c.hidden, c.q_width),)),
        "q_norm": Vector(f"{at}q_norm.weight", c.head_dim),
        "k_norm": Vector(f"{at}k_norm.weight", c.head_dim),
    }


def dense_recipes(config: DecoderConfig, at: str) -> Recipes:
    """w_gate_up (rows gate | up), w_down, input_norm and post_norm."""
    c = config
    gate_up = [whole(f"{at}mlp.{name}_proj.weight", c.intermediate, c.hidden) for name in ("gate", "up")]
    return {
        "w_gate_up": Matrix(tuple(gate_up)),
        "w_down": Matrix((whole(f"{at}mlp.down_proj.weight", c.hidden, c.intermediate),)),
        "input_norm": Vector(f"{at}input_layernorm.weight", c.hidden),
        "post_norm": Vector(f"{at}post_attention_layernorm.weight", c.hidden),
    }


def head_recipes(config: DecoderConfig, stack: str, tied: bool) -> Recipes:
    """table `[vocab, H]`, final_norm, and w_lm_head with rows of zeros up to `vocab_padded`.

    With `tied`, the embedding table is also the head.
    """
    c = config
    return {
        "table": Matrix((whole(stack + EMBEDDING, c.vocab, c.hidden),)),
        "final_norm": Vector(f"{stack}norm.weight", c.hidden),
        "w_lm_head": Matrix(
            (whole(stack + EMBEDDING if tied else LM_HEAD, c.vocab, c.hidden),), c.vocab_padded
        ),
    }


# -------------------------------------------------------------------------------------------------- cuts
def attention_cuts(config: DecoderConfig) -> Cuts:
    """Whole heads; a KV head is copied where there are more ranks than KV heads."""
    c = config
    heads = Section("query heads", c.q_heads, c.head_dim)
    gate = (heads,) if c.gate_heads else ()
    kv = Section("KV heads", c.kv_heads, c.head_dim, shared=True)
    return {
        "w_qkv": Cut(0, (*gate, heads, kv, kv)),
        "w_o": Cut(1, (heads,)),
        "q_norm": None,
        "k_norm": None,
    }


def dense_cuts(config: DecoderConfig) -> Cuts:
    """Gate and up cut alike, down along its columns."""
    inner = Section("MLP columns", config.intermediate, 1)
    return {
        "w_gate_up": Cut(0, (inner, inner)),
        "w_down": Cut(1, (inner,)),
        "input_norm": None,
        "post_norm": None,
    }


def head_cuts(config: DecoderConfig) -> Cuts:
    """Rows of the vocabulary; each rank has logits of its own part."""
    return {
        "table": Cut(0, (Section("rows of the vocabulary", config.vocab, 1),)),
        "w_lm_head": Cut(0, (Section("rows of the padded vocabulary", config.vocab_padded, 1),)),
        "final_norm": None,
    }


def sections_of(cuts: Cuts) -> list[Section]:
    """All sections that `cuts` names."""
    return [section for how in cuts.values() if how is not None for section in how.sections]


def rank_sizes(config: DecoderConfig, tp: int) -> dict[str, Any]:
    """The sizes of `DecoderConfig` that differ on each of `tp` ranks."""
    return {
        "q_heads": config.q_heads // tp,
        "kv_heads": max(1, config.kv_heads // tp),
        "intermediate": config.intermediate // tp,
    }
