"""The programs of the bench by name, and which of them a bundle holds.

qwen3_14b/full, qwen3_5_27b/full, qwen3_5_27b/gdn     a layer, from `hidden` to `next_hidden`
qwen3_14b/full/without, qwen3_5_27b/full/without      the same without its attention
qwen3_14b/qkv, qwen3_14b/o, .../gate_up, .../down     one projection
qwen3_14b/down/slices, qwen3_14b/down/red             down with K cut across CTAs, see `CUT`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.common.config import DecoderConfig
from models.common.harness import LayerKind, names_of
from models.common.programs import DecoderModel
from models.qwen3_5_27b import harness as harness_27b
from models.qwen3_5_27b import step as step_27b
from models.qwen3_14b import harness as harness_14b
from models.qwen3_14b import step as step_14b
from pypto_models.language import Kernel
from pypto_models.language.parameters import constant_names
from pypto_models.schedule.overrides import Override, overrides
from tools.gpu_bench import kernels

ROWS = 16
"""Rows of a step, at most."""

CUT = {"rows": ROWS, "n": 5120, "k": 17408, "slices": 2}
"""How K of down is cut across CTAs, to be measured beside the default, which is whole."""

STAMPS = "stamps"
"""The further output of a timing build."""


class BenchError(ValueError):
    """Something that was asked for cannot be measured; the message says what to give instead."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A program of the bench.

    Args:
        name: as at the top of this module.
        kernel: its kernel.
        kind: the layer kind whose data it runs on.
        model: whose constants it is compiled with.
        schedules: what it fixes of them in the place of its tiling file, which only CuTe DSL takes.
    """

    name: str
    kernel: Kernel
    kind: LayerKind
    model: DecoderModel
    schedules: dict[str, Override] = field(default_factory=dict)

    @property
    def projection(self) -> str:
        """Which one it is, for one of a model's projections."""
        return self.name.split("/")[1]

    @property
    def is_layer(self) -> bool:
        """Whether it maps `hidden` to `next_hidden`, with or without attention."""
        return "hidden" in self.parameters

    @property
    def step(self) -> Kernel:
        """The whole layer, beside whose file the schedules lie."""
        return self.model.layers[self.kind.name]

    @property
    def parameters(self) -> list[str]:
        return names_of(self.kernel)

    def constants(self, config: DecoderConfig, target: str) -> dict[str, Any]:
        """Those that the kernel reads, for steps of up to `ROWS` rows."""
        values = self.model.constants(config, target, rows=ROWS, span=1)
        return {n: v for n, v in values.items() if n in constant_names(self.kernel)}


def _cut(across: str) -> dict[str, Override]:
    return overrides({"down_proj": {**CUT, "across": across}})


def _entries() -> dict[str, Entry]:
    a, b = step_14b.MODEL, step_27b.MODEL
    dense, full, gdn = harness_14b.LAYER, harness_27b.FULL_LAYER, harness_27b.GDN_LAYER
    without = kernels.bench_layer_without_attention
    made = [
        Entry("qwen3_14b/full", step_14b.layer_step, dense, a),
        Entry("qwen3_5_27b/full", step_27b.full_step, full, b),
        Entry("qwen3_5_27b/gdn", step_27b.gdn_step, gdn, b),
        Entry("qwen3_14b/full/without", without, dense, a),
        Entry("qwen3_5_27b/full/without", without, full, b),
        Entry("qwen3_14b/qkv", kernels.bench_qkv, dense, a),
        Entry("qwen3_14b/o", kernels.bench_o, dense, a),
        Entry("qwen3_14b/gate_up", kernels.bench_gate_up, dense, a),
        Entry("qwen3_14b/down", kernels.bench_down, dense, a),
        Entry("qwen3_14b/down/slices", kernels.bench_down_slices, dense, a, _cut("workspace")),
        Entry("qwen3_14b/down/red", kernels.bench_down_red, dense, a, _cut("red")),
    ]
    return {e.name: e for e in made}


ENTRIES: Mapping[str, Entry] = _entries()
"""All programs of the bench."""

LAYERS = ("qwen3_14b/full", "qwen3_5_27b/full", "qwen3_5_27b/gdn")
PROJECTIONS = ("qwen3_14b/qkv", "qwen3_14b/o", "qwen3_14b/gate_up", "qwen3_14b/down")
SLICED = ("qwen3_14b/down/slices", "qwen3_14b/down/red")


def without(layer: str) -> str:
    """The name of a layer's program without attention."""
    return f"{layer}/without"


@dataclass(frozen=True)
class Found:
    """What a bundle holds: a program, at one of its model's sizes, perhaps as a timing build."""

    entry: Entry
    size: str
    timing: bool

    @property
    def config(self) -> DecoderConfig:
        config: DecoderConfig = self.entry.kind.configs[self.size]
        return config


def identify(name: str, shapes: Mapping[str, tuple[str, ...]]) -> Found:
    """The entry of the program `name` whose tensors have these shapes, as a manifest writes them.

    Raises:
        BenchError: it is no program of the bench, or at none of its model's sizes.
    """
    known = [e for e in ENTRIES.values() if e.kernel.name == name]
    if not known:
        raise BenchError(f"{name} is no program of the bench; python -m tools.gpu_bench.prepare makes them")
    for entry in known:
        for size, config in entry.kind.configs.items():
            wanted = _weights(entry, config)
            if all(shapes.get(n) == tuple(map(str, s)) for n, s in wanted.items()):
                return Found(entry, size, STAMPS in shapes)
    weights = {n: shapes[n] for n in _weights(known[0], known[0].kind.configs["full"]) if n in shapes}
    raise BenchError(f"{name} has weights {weights}, which no size of its model has")


def _weights(entry: Entry, c: DecoderConfig) -> dict[str, tuple[int, int]]:
    """The shapes that tell sizes and models apart."""
    all_shapes = {
        "qkv": (c.qkv_width, c.hidden),
        "o": (c.hidden, c.q_width),
        "gate_up": (2 * c.intermediate, c.hidden),
        "down": (c.hidden, c.intermediate),
    }
    if not entry.is_layer:
        return {"weight": all_shapes[entry.projection]}
    named = {f"w_{n}": s for n, s in all_shapes.items()}
    return {n: s for n, s in named.items() if n in entry.parameters}
