"""The programs of these tests by the folders of their bundles: the layers, every block, small kernels.

layers/<model>/<layer>/<size>/<dtype>/step     one row a sequence, with a chunk of the LM head
layers/<model>/<layer>/<size>/<dtype>/span     several rows of a sequence
gb10/<model>/<layer>/<size>/<dtype>/step       the step with CuTe's schedule for gb10, for this GPU
blocks/<model>/<size>/<dtype>/<kernel>
small/<kernel>
sliced/product/<across>                        a small product whose K is cut across CTAs
sliced/<model>/<layer>/<size>/<dtype>/<across> the step, K of all its products cut
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import lcm
from typing import Any

import pypto_models.language as pl
from backends.gpu.backend import GpuBackend
from models.common.blocks import DENSE_RUNS, Block
from models.common.config import DecoderConfig
from models.common.harness import LayerKind
from models.common.layer_blocks import attention_blocks, shared_blocks
from models.common.power import STEPS, Power, Step
from models.qwen3_5_27b.config import Config as Config27
from models.qwen3_5_27b.gdn_blocks import gdn_blocks
from models.qwen3_5_27b.power import FULL_POWER, GDN_POWER
from models.qwen3_14b.config import TINY
from models.qwen3_14b.power import POWER
from pypto_models.compile import platform_name, resolve_platform, tiling_name
from pypto_models.language.parameters import constant_names
from pypto_models.schedule.overrides import Override, overrides
from pypto_models.target import Target, load_target

from ..cute.epilogue_kernels import added, epilogues
from ..cute.function_kernels import functions
from ..cute.norm_kernels import norm_between
from ..cute.sharing_kernels import around_a_stream, three_apart
from ..cute.slice_kernels import gated_product
from ..cute.support import project, shifted, twice, two_regions
from ..cute.tail_kernels import halves_where_asked, sums_and_halves

SMALL = (
    twice, two_regions, project, shifted, around_a_stream, three_apart, norm_between, sums_and_halves,
    halves_where_asked, epilogues, added, functions,
)  # fmt: skip
GB10 = "gb10"
ROWS = 16  # of a step of one row a sequence
ACROSS = ("workspace", "red")  # how sums of K slices meet
SLICED = ("qkv_proj", "out_proj", "gate_up_silu", "down_proj")

REAL_HEADS_14B = replace(TINY, hidden=512, head_dim=128, intermediate=1024, page=128, max_seq=1024)
"""The head size and group of the published model, in a narrow one."""

# More runs of attention than sequences, by model, with the merge of the published size, here in a tail
MANY_RUNS = {
    "qwen3_14b": {"TARGET_RUNS": 33, "MERGE_RUNS": 1},
    "qwen3_5_27b": {"TARGET_RUNS": 33, "MERGE_RUNS": 8, "MERGE_TILES": 1},
}

# Contexts of 1, 3 and 16 sequences, in 128ths of the longest
BATCHES = (
    (113,),
    (128, 1, 50),
    (1, 128, 16, 17, 5, 33, 64, 100, 127, 2, 90, 48, 15, 77, 31, 112),
)


@dataclass(frozen=True)
class Ragged(Power):
    """The steps on which the power of a comparison is measured and, behind them, those of `BATCHES`."""

    stretch: int = 1

    @property
    def steps(self) -> tuple[Step, ...]:
        batches = (Step(tuple(max(1, n * self.stretch) for n in lengths)) for lengths in BATCHES)
        return (*super().steps, *batches)


@dataclass(frozen=True)
class Layer:
    """A layer kind at one of its sizes."""

    power: Ragged
    size: str
    config: DecoderConfig

    @property
    def kind(self) -> LayerKind:
        return self.power.kind

    @property
    def name(self) -> str:
        return f"{self.kind.model}/{self.kind.name}/{self.size}/{self.config.dtype}"


@dataclass(frozen=True)
class OneBlock:
    """A block of a layer, and the seeds of its inputs."""

    layer: Layer
    block: Block

    @property
    def name(self) -> str:
        return f"{self.layer.kind.model}/{self.layer.size}/{self.layer.config.dtype}/{self.block.kernel.name}"

    @property
    def seeds(self) -> tuple[int, ...]:
        """All steps of the layer, for a block of sequences; 5, 16, 3 and 1 rows for one that knows none."""
        if self.block.runs == len(STEPS):
            return tuple(range(len(self.layer.power.steps)))
        if self.block.runs != DENSE_RUNS:
            return tuple(range(self.block.runs))
        return (0, 1, 14) if self.block.kernel.name == "gates_block" else (0, 1, 14, 16)  # it takes two rows


@dataclass(frozen=True)
class Platform:
    """What programs are built for, and by which backend."""

    target: Target
    backend: GpuBackend

    @property
    def name(self) -> str:
        return platform_name(self.target, self.backend)

    @property
    def tiling(self) -> str:
        return tiling_name(self.target, self.backend)


def platform(name: str) -> Platform:
    """``h200:triton``.  Raises UserError as of `resolve_platform`, ValueError for one that is no GPU's."""
    target, backend = resolve_platform(name)
    if not isinstance(backend, GpuBackend):
        raise ValueError(f"{name} is no GPU")
    return Platform(target, backend)


@dataclass(frozen=True)
class Entry:
    """A program, lowered for a platform with these constants."""

    kernel: pl.Kernel
    platform: Platform
    constants: Mapping[str, Any]
    schedules: Mapping[str, Override] | None = None  # in the place of those of its tiling file


def _powers(size: str) -> tuple[Ragged, ...]:
    """Those of the three layer kinds; the narrow model with published heads is added where it is missing."""
    found = []
    for power in (POWER, FULL_POWER, GDN_POWER):
        kind = power.kind
        if kind.model == POWER.kind.model:
            kind = replace(kind, configs={**kind.configs, "real_heads": REAL_HEADS_14B})
        config = kind.configs[size]
        constants = dict(power.constants)
        if "CONV_TILE" in constants:  # whole heads
            constants["CONV_TILE"] = lcm(constants["CONV_TILE"], config.k_dim)
        stretch = max(1, config.max_seq // 128)
        found.append(Ragged(kind, power.reasons, constants, power.span, power.variant, stretch))
    return tuple(found)


@cache
def layers() -> dict[str, Layer]:
    """Three kinds at two small sizes; the smallest in fp32, too."""
    found = {}
    for size, dtype in (("tiny", "bf16"), ("tiny", "fp32"), ("real_heads", "bf16")):
        for power in _powers(size):
            layer = Layer(power, size, replace(power.kind.configs[size], dtype=dtype))
            found[layer.name] = layer
    return found


@cache
def full_layers() -> dict[str, Layer]:
    """The published sizes, with contexts short enough for a golden on the CPU."""
    found = {}
    for power in _powers("full"):
        layer = Layer(power, "full", replace(power.kind.configs["full"], max_seq=512))
        found[layer.name] = layer
    return found


@cache
def blocks() -> dict[str, OneBlock]:
    """Every block of the three layer kinds, once for each model."""
    found = {}
    for layer in layers().values():
        c = layer.config
        if isinstance(c, Config27) and layer.kind.name == "gdn":
            own = gdn_blocks(c)
        else:
            own = [*shared_blocks(c), *attention_blocks(c)]
        for block in own:
            one = OneBlock(layer, block)
            found[one.name] = one
    return found


def step_entry(layer: Layer, on: Platform) -> Entry:
    """One row a sequence; at the published size without the LM head."""
    head = "skip" if layer.size == "full" else "single"
    given = layer.kind.compile_options(layer.config, on.name, head, rows=ROWS)["constants"]
    kernel = layer.kind.kernel_for(head)
    if layer.size == "real_heads":
        read = constant_names(kernel)
        given = {**given, **{n: v for n, v in MANY_RUNS[layer.kind.model].items() if n in read}}
    return Entry(kernel, on, given)


def span_entry(layer: Layer, on: Platform) -> Entry:
    """Up to `power.span` rows a sequence, without the LM head."""
    options = layer.kind.compile_options(layer.config, on.name, "skip", span=layer.power.span)
    return Entry(layer.kind.kernel, on, {**options["constants"], **layer.power.constants})


def block_entry(one: OneBlock, on: Platform) -> Entry:
    """A block, with the tiles on which its power is measured."""
    power, kind = one.layer.power, one.layer.kind
    values = kind.constants(one.layer.config, on.tiling, span=power.span, head_rows=kind.head_chunk)
    given = {**values, **power.constants, **one.block.constants}
    read = constant_names(one.block.kernel)
    return Entry(one.block.kernel, on, {n: v for n, v in given.items() if n in read})


def not_as_gb10(on: Platform) -> str | None:
    """Why no program runs with the schedule of gb10, or None."""
    if on.backend.name == "cute":
        return None
    return f"the limits that a schedule must keep on {GB10} are CuTe's to plan with, not {on.backend.name}'s"


def as_gb10(on: Platform) -> Platform:
    """The limits and the schedules of gb10, in machine code for another GPU."""
    return replace(on, target=replace(load_target(GB10), arch=on.target.arch))


def not_sliced(on: Platform) -> str | None:
    """Why K is cut across the CTAs of no product, or None."""
    return None if on.backend.name == "cute" else f"products of {on.backend.name} take whole K"


def sliced_product(on: Platform, across: str) -> Entry:
    """A product with two accumulators, in four slices."""
    return Entry(gated_product, on, {}, overrides({"product": {"slices": 4, "across": across}}))


def sliced_step(layer: Layer, on: Platform, across: str) -> Entry:
    """A step whose products are all cut in two."""
    cut = {region: {"slices": 2, "across": across} for region in SLICED}
    return replace(step_entry(layer, on), schedules=overrides(cut))


def sliced_layers() -> dict[str, Layer]:
    """Those in bf16: products in fp32 are not streamed."""
    return {name: layer for name, layer in layers().items() if layer.config.dtype == "bf16"}


def entries(on: Platform) -> Iterator[tuple[str, Entry]]:
    """Every program, by the folder of its bundle."""
    for kernel in SMALL:
        yield f"small/{kernel.name}", Entry(kernel, on, {})
    for name, layer in layers().items():
        yield f"layers/{name}/span", span_entry(layer, on)
        if layer.config.dtype == "bf16":
            yield f"layers/{name}/step", step_entry(layer, on)
    for name, one in blocks().items():
        yield f"blocks/{name}", block_entry(one, on)
    if not_as_gb10(on) is None:
        for name, layer in (layers() | full_layers()).items():
            if layer.config.dtype == "bf16":
                yield f"gb10/{name}/step", step_entry(layer, as_gb10(on))
    if not_sliced(on) is None:
        for across in ACROSS:
            yield f"sliced/product/{across}", sliced_product(on, across)
            for name, layer in sliced_layers().items():
                yield f"sliced/{name}/{across}", sliced_step(layer, on, across)
