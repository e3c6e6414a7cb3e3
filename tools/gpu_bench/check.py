"""Results against fp64, with the error of torch's own evaluation in the model's element type beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.common import equations as eq
from models.common.config import DecoderConfig
from models.common.equations import Precision
from tools.gpu_bench.data import Layers, Products, Tensors

OUR_LIMITS = (2.0, 1.25)
"""A program's errors, maximum and RMS, are at most so many times torch's own."""

PEER_LIMITS = (8.0, 3.0)
"""The same for a peer, which rounds where it likes: this tells a mistake from rounding."""


@dataclass(frozen=True)
class Error:
    """Distance from fp64; NaN if an element is none."""

    most: float
    rms: float

    @staticmethod
    def of(got: Tensor, exact: Tensor) -> Error:
        """Raises ValueError if the shapes differ."""
        if got.shape != exact.shape:
            raise ValueError(f"the result has shape {list(got.shape)} instead of {list(exact.shape)}")
        difference = got.double() - exact
        return Error(float(difference.abs().max()), float(difference.square().mean().sqrt()))

    def worse(self, other: Error) -> Error:
        """The larger of each, NaN if either is."""
        pairs = ((self.most, other.most), (self.rms, other.rms))
        return Error(*(a if math.isnan(a) or a >= b else b for a, b in pairs))


@dataclass(frozen=True)
class Verdict:
    """What a comparison found for one tensor: the error, torch's own, and whether the first is acceptable."""

    name: str
    error: Error
    torch: Error
    passed: bool


@dataclass(frozen=True)
class Wanted:
    """A tensor in fp64, the same as torch computes it, and which of its rows count (None: all)."""

    exact: Tensor
    rounded: Tensor
    rows: Tensor | None = None

    def verdict(self, name: str, got: Tensor, limits: tuple[float, float]) -> Verdict:
        error = Error.of(got if self.rows is None else got[self.rows], self.exact)
        own = Error.of(self.rounded, self.exact)
        # written so that a NaN in any of the four fails
        passed = error.most <= limits[0] * own.most and error.rms <= limits[1] * own.rms
        return Verdict(name, error, own, passed)


References = Mapping[str, Wanted]


def compare(
    references: References, got: Mapping[str, Tensor], limits: tuple[float, float] = OUR_LIMITS
) -> list[Verdict]:
    """Every tensor of the references that was computed, in their order."""
    return [w.verdict(n, got[n], limits) for n, w in references.items() if n in got]


# ---------------------------------------------------------------------------------------------------- layers
def layer_references(layers: Layers, without_attention: bool = False) -> References:
    """What a step of the first layer gives: `next_hidden`, and the rows of caches and states it writes."""
    layers.reset()
    kind, c, first = layers.case.kind, layers.config, layers.tensors[0]
    names = ("next_hidden", "normed", *kind.written)
    golden = {n: first[n].clone() for n in names}
    wide = {n: first[n].double() for n in names}
    if without_attention:
        _without({**first, **wide}, c, Precision(torch.float64))
        _without({**first, **golden}, c, Precision(torch.float32, c.torch_dtype))
    else:
        wide = {n: t for n, t in kind.exact(first, c).items() if n in names}
        kind.golden({**first, **golden}, c)
    found = {"next_hidden": Wanted(wide["next_hidden"], golden["next_hidden"])}
    for name, rows_of in kind.written.items():
        rows = rows_of({**first, **layers.host}, c)
        found[name] = Wanted(wide[name][rows], golden[name][rows], rows)
    return found


def _without(tensors: Tensors, c: DecoderConfig, p: Precision) -> None:
    """The layer of `bench_layer_without_attention`: q itself, by KV head, is what was attended."""

    def mixer(x: Tensor, rows: list[eq.LiveRow], t: Mapping[str, Tensor]) -> Tensor:
        slots, at = t["slot_mapping"].long(), t["positions"].long()
        h = eq.rms_norm(x, t["input_norm"], c.eps, p, gemma=c.gemma_norm)
        parts = [c.gate_width, c.q_width, c.kv_width, c.kv_width]
        gate, q, k, v = eq.linear(h, t["w_qkv"], p).split(parts, dim=-1)
        heads, cos, sin = (len(rows), -1, c.head_dim), t["rope_cos"][at], t["rope_sin"][at]
        q = eq.norm_rope(q.reshape(heads), t["q_norm"], cos, sin, c.eps, p, gemma=c.gemma_norm)
        k = eq.norm_rope(k.reshape(heads), t["k_norm"], cos, sin, c.eps, p, gemma=c.gemma_norm)
        eq.write_kv(t["k_cache"], k, slots, c)
        eq.write_kv(t["v_cache"], v.reshape(heads), slots, c)
        by_head = q.view(len(rows), c.kv_heads, c.group, c.head_dim).transpose(0, 1)
        attended = by_head.reshape(len(rows), c.q_width)
        if c.gate_heads:
            attended = eq.output_gate(attended, gate, p)
        return eq.linear(attended, t["w_o"], p)

    eq.layer_step(tensors, c, p, mixer)


# ----------------------------------------------------------------------------------------------- projections
def product_references(products: Products) -> References:
    """What the first layer's projection gives."""
    exact, rounded = (
        _product(products, p)
        for p in (Precision(torch.float64), Precision(torch.float32, products.config.torch_dtype))
    )
    return {"out": Wanted(exact, rounded)}


def _product(products: Products, p: Precision) -> Tensor:
    t, c = products.tensors[0], products.config
    x = p.up(t["x"])
    if "norm" in t:
        x = eq.rms_norm(x, t["norm"], c.eps, p, gemma=c.gemma_norm)
    y = eq.linear(x, t["weight"], p)
    if products.name == "gate_up":
        gate, up = y.chunk(2, dim=-1)
        return eq.gated_up(gate, up, p)
    return p.rnd(p.up(t["residual"]) + y) if "residual" in t else y
