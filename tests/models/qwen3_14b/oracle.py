"""Decode steps of Hugging Face's Qwen3ForCausalLM, in this project's tensors.

Every sequence is prefilled and decoded on its own, with its own cache and eager attention, so contexts are
ragged and nothing about batching or paging is shared with what is tested. The results are then laid out as
the reference lists them: rows stacked, projections stacked, K and V in shuffled pages, unused slots NaN.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from models.qwen3_14b.config import TINY, Config
from models.qwen3_14b.inputs import head_weights, layer_weights, rope_tables

SPARE_PAGES = 3


@dataclass(frozen=True)
class OracleRun:
    """What transformers computed. Runs are cached: treat every tensor as read-only, or take `tensors`.

    Attributes:
        config: sizes and element type.
        lens: prompt tokens per sequence; `steps` decode steps follow them, one token per sequence each.
        weights: per layer, the projections and norms in our layout.
        shared: final norm, LM head, RoPE tables and block table.
        indices: per step, positions, slot_mapping, cu_q and ctx.
        hidden: `hidden[step][layer]` `[B, H]` enters the layer, `hidden[step][layer + 1]` leaves it.
        normed: `normed[step][layer]` `[B, H]`, the final norm of what leaves the layer.
        logits: `logits[step][layer]` `[B, V]`, the LM head of that; for the last layer, the model's logits.
        caches: `caches[step][layer]`, k_cache and v_cache before the step; `caches[steps]` is after the last.
    """

    config: Config
    lens: tuple[int, ...]
    steps: int
    weights: list[dict[str, Tensor]]
    shared: dict[str, Tensor]
    indices: list[dict[str, Tensor]]
    hidden: list[list[Tensor]]
    normed: list[list[Tensor]]
    logits: list[list[Tensor]]
    caches: list[list[dict[str, Tensor]]]

    def tensors(self, step: int, layer: int) -> dict[str, Tensor]:
        """Inputs of one layer at one step, caches as transformers left them before it; outputs are NaN."""
        hidden = self.hidden[step][layer]
        outputs = {
            "next_hidden": torch.full_like(hidden, torch.nan),
            "normed": torch.full_like(hidden, torch.nan),
            "logits": torch.full_like(self.logits[step][layer], torch.nan),
        }
        caches = {name: pool.clone() for name, pool in self.caches[step][layer].items()}
        given = {"hidden": hidden.clone(), **self.indices[step], **self.shared, **self.weights[layer]}
        return {**given, **caches, **outputs}

    def expected(self, step: int, layer: int) -> dict[str, Tensor]:
        """Every tensor that the layer mutates, after it; slots that hold no token are NaN."""
        return {
            "next_hidden": self.hidden[step][layer + 1],
            "normed": self.normed[step][layer],
            "logits": self.logits[step][layer],
            **self.caches[step + 1][layer],
        }


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


def _paged(tokens: Iterable[Tensor], block_table: Tensor, config: Config) -> Tensor:
    """Cache rows `[rows, D]` that hold each sequence's tokens `[n, kv heads, D]`, and NaN elsewhere."""
    shape = (block_table.numel() + SPARE_PAGES, config.kv_heads, config.page, config.head_dim)
    pool = torch.full(shape, torch.nan, dtype=config.torch_dtype)
    for table, kv in zip(block_table, tokens, strict=True):
        for n, value in enumerate(kv):
            pool[int(table[n // config.page]), :, n % config.page] = value
    return pool.view(-1, config.head_dim)


@cache
def oracle(
    dtype: str = "fp32",
    seed: int = 0,
    lens: tuple[int, ...] = (2, 17, 48, 65),
    steps: int = 3,
    config: Config = TINY,
) -> OracleRun:
    """Prefill sequences of `lens` random tokens, then decode `steps` more random tokens each.

    Raises:
        ValueError: if a sequence would outgrow `config.max_seq`.
    """
    if max(lens) + steps > config.max_seq:
        raise ValueError(f"lens {lens} and {steps} steps do not fit in max_seq = {config.max_seq}")
    c = replace(config, dtype=dtype)
    batch, pages = len(lens), c.pages_per_seq
    generator = torch.Generator().manual_seed(seed)
    weights = [layer_weights(c, seed * c.layers + i) for i in range(c.layers)]
    for w in weights:
        # Halve the scores (exact in any type): from layer to layer, a softmax as sharp as in `make_inputs`
        # amplifies what the order of sums does to the last bit, and tight tolerances would test that.
        w["k_norm"] /= 2
    cos, sin = rope_tables(c)
    order = torch.randperm(batch * pages + SPARE_PAGES, generator=generator)
    table = order[: batch * pages].view(batch, pages).int()
    shared = {**head_weights(c, seed, "full"), "rope_cos": cos, "rope_sin": sin, "block_table": table}
    model = build_model(c, weights, shared, seed)

    tokens = [torch.randint(c.vocab, (n + steps,), generator=generator) for n in lens]
    hf_caches = [DynamicCache(config=model.config) for _ in lens]
    seen: list[Tensor] = []  # what enters layer 0, then what leaves each layer
    model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0][0].clone()))
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, __, out: seen.append(out[0].clone()))

    def snapshot() -> list[dict[str, Tensor]]:
        """k_cache and v_cache of every layer, from all sequences' own caches."""
        return [
            {
                "k_cache": _paged((kv.layers[i].keys[0].transpose(0, 1) for kv in hf_caches), table, c),
                "v_cache": _paged((kv.layers[i].values[0].transpose(0, 1) for kv in hf_caches), table, c),
            }
            for i in range(c.layers)
        ]

    run = OracleRun(c, lens, steps, weights, shared, [], [], [], [], [])
    with torch.no_grad():
        for ids, kv, n in zip(tokens, hf_caches, lens, strict=True):
            model(input_ids=ids[None, :n], past_key_values=kv, use_cache=True)
        run.caches.append(snapshot())
        for step in range(steps):
            per_seq, logits = [], []
            for ids, kv, n in zip(tokens, hf_caches, lens, strict=True):
                seen.clear()
                out = model(input_ids=ids[None, n + step : n + step + 1], past_key_values=kv, use_cache=True)
                per_seq.append(list(seen))
                logits.append(out.logits[0])
            pos = torch.tensor([n + step for n in lens])
            page = table[torch.arange(batch), pos // c.page]
            run.indices.append(
                {
                    "positions": pos.int(),
                    "slot_mapping": (page * c.page + pos % c.page).int(),
                    "cu_q": torch.arange(batch + 1, dtype=torch.int32),
                    "ctx": pos.int() + 1,
                }
            )
            run.hidden.append([torch.cat(rows) for rows in zip(*per_seq, strict=True)])
            norms = [[model.model.norm(row[None]) for row in h] for h in run.hidden[step][1:]]
            run.normed.append([torch.cat(rows) for rows in norms])
            run.logits.append([torch.cat([model.lm_head(row) for row in rows]) for rows in norms[:-1]])
            run.logits[step].append(torch.cat(logits))
            run.caches.append(snapshot())
    return run
