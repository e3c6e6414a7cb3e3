"""What programs run on: several layers that take turns, each with weights, caches and states of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from models.common.config import DecoderConfig
from models.common.harness import LayerKind
from models.common.step_bytes import StepBytes, step_bytes
from models.common.step_inputs import normal
from models.common.step_time import Device

Tensors = dict[str, Tensor]

STORED = ("k_cache", "v_cache", "conv_state", "state")
SHARED = ("rope_cos", "rope_sin")  # between layers, as in a model
BIG = 1 << 12  # elements: what is smaller is the step's own, or a norm
SHIFT = 640  # rows by which a layer's tensors differ from those of the layer before


@dataclass(frozen=True)
class Case:
    """A step of one token in each of several sequences, whose contexts have these `lengths`."""

    kind: LayerKind
    size: str
    label: str
    lengths: tuple[int, ...]

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def config(self) -> DecoderConfig:
        config: DecoderConfig = self.kind.configs[self.size]
        return config


def spread(longest: int, batch: int) -> tuple[int, ...]:
    """Lengths evenly over 1..longest, in no order."""
    if batch == 1:
        return (longest,)
    lengths = [1 + (longest - 1) * i // (batch - 1) for i in range(batch)]
    step = next(n for n in (7, 5, 3, 2, 1) if batch % n or n == 1)  # coprime: every sequence once
    return tuple(lengths[i * step % batch] for i in range(batch))


def level(lengths: Sequence[int]) -> tuple[int, ...]:
    """As many sequences with as many tokens in all, as equal as can be."""
    share, rest = divmod(sum(lengths), len(lengths))
    return tuple(share + (i < rest) for i in range(len(lengths)))


@dataclass(eq=False)
class Layers:
    """The layers of a case: of each all tensors of a step, by name, on the device.

    `hidden` of a layer is `next_hidden` of the one before it.  Values that nothing may read are 0 instead of
    NaN: peers multiply them by 0.
    """

    case: Case
    tensors: list[Tensors]
    start: Tensors = field(repr=False)

    @property
    def config(self) -> DecoderConfig:
        return self.case.config

    @cached_property
    def host(self) -> Tensors:
        """The indices of the first layer, on the CPU."""
        return {n: t.cpu() for n, t in self.tensors[0].items() if not t.is_floating_point()}

    def reset(self) -> None:
        """Caches and states of the first layer as they were before any step."""
        for name, t in self.start.items():
            self.tensors[0][name].copy_(t)

    def bytes(self, names: Sequence[str]) -> StepBytes:
        """What a step of a program with these parameters must move."""
        first = {**self.tensors[0], **self.host}
        return step_bytes(first, names, self.case.kind.mutated, self.config)


def make_layers(case: Case, count: int, device: Device) -> Layers:
    """`count` different layers: the first has the model's own inputs, the others the same rolled by rows."""
    made = case.kind.make_inputs(case.config, case.batch, list(case.lengths), lm_head="skip")
    first = {name: device.moved(t) for name, t in made.items()}
    for name in STORED:
        if name in first:
            first[name].nan_to_num_()
    layers = [first]
    for i in range(1, count):
        layers.append({n: _other(n, t, i) for n, t in first.items()})
        layers[-1]["hidden"] = layers[-2]["next_hidden"]
    return Layers(case, layers, {n: first[n].clone() for n in STORED if n in first})


def _other(name: str, tensor: Tensor, nth: int) -> Tensor:
    if name in SHARED or not tensor.is_floating_point():
        return tensor
    if tensor.numel() < BIG or name == "next_hidden":
        return tensor.clone()
    return torch.roll(tensor, SHIFT * nth, dims=0)


# ---------------------------------------------------------------------------------------------- projections
DEPTHS = {"qkv": "hidden", "o": "q_width", "gate_up": "hidden", "down": "intermediate"}
WIDTHS = {"qkv": "qkv_width", "o": "hidden", "gate_up": "intermediate", "down": "hidden"}


@dataclass(eq=False)
class Products:
    """The data of a projection: of each layer x `[rows, K]`, its weight, its norm or residual, and `out`."""

    name: str
    config: DecoderConfig
    tensors: list[Tensors]

    @property
    def bytes(self) -> int:
        """What the projection must read: its weight and its norm."""
        return sum(t.nbytes for n, t in self.tensors[0].items() if n in ("weight", "norm"))


def make_products(
    name: str, config: DecoderConfig, rows: int, count: int, out: torch.dtype, device: Device
) -> Products:
    """`count` layers' data of the projection `name`: qkv, o, gate_up or down."""
    depth, width = getattr(config, DEPTHS[name]), getattr(config, WIDTHS[name])
    dtype, stacked = config.torch_dtype, 2 * width if name == "gate_up" else width
    first = {
        "x": normal((rows, depth), dtype, seed=0, name="x"),
        "weight": normal((stacked, depth), dtype, std=depth**-0.5, seed=0, name=name),
        "out": torch.full((rows, width), torch.nan, dtype=out),
    }
    if name in ("qkv", "gate_up"):
        norm = 1.0 + normal((1, depth), torch.float32, std=0.2, seed=0, name="norm")
        first["norm"] = norm.to(dtype).float()
    else:
        first["residual"] = normal((rows, width), dtype, seed=0, name="residual")
    moved = {n: device.moved(t) for n, t in first.items()}
    layers = [moved] + [
        {n: torch.roll(t, SHIFT * i, 0) if n == "weight" else t.clone() for n, t in moved.items()}
        for i in range(1, count)
    ]
    return Products(name, config, layers)
