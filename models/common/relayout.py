"""From the rows of a checkpoint to the tensors of a kernel.

A recipe says which rows of which stored tensors make one tensor of a kernel. The check of a checkpoint and
the loader read the same recipes, so neither can know a tensor that the other does not.

Row orders of published checkpoints (all `[out, in]`; ranges of output rows):

* a gated attention's q_proj holds `[q_0 | gate_0 | q_1 | gate_1 | ...]`, head by head: `gated_rows`;
* Qwen3-Next's in_proj_qkvz and in_proj_ba hold, key head by key head, `[q | k | v of its value heads | z of
  them]` and `[b of its value heads | a of them]`: `grouped_qkvz_rows`, `grouped_ba_rows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.common import fp8
from models.common.checkpoint import Checkpoint, Problem, Progress, Wanted, raise_first

Ranges = tuple[range, ...]

SCALE = "_scale_inv"
"""What the name of an FP8 weight's scale adds to the weight's."""


class Recipe(Protocol):
    """How one tensor of a kernel is made from stored ones."""

    def wanted(self, checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Wanted]:
        """What the stored tensors must be, by name, in a model of element type `dtype`."""

    def load(self, checkpoint: Checkpoint, dtype: torch.dtype) -> Tensor:
        """The tensor, contiguous in memory of its own; what is `wanted` must be there."""


Recipes = Mapping[str, Recipe]
"""By the names of a kernel's tensors."""


@dataclass(frozen=True)
class Rows:
    """The row ranges `take` of the stored matrix `name` `[rows, columns]`, in that order; empty: all rows."""

    name: str
    shape: tuple[int, int]
    take: Ranges = ()

    @property
    def ranges(self) -> Ranges:
        """The ranges that are taken, all rows spelled out."""
        return self.take or (range(self.shape[0]),)


@dataclass(frozen=True)
class Matrix:
    """`[rows, columns]` in the model's element type: `parts` stacked, with rows of zeros up to `height`.

    A part may be stored in FP8 with block scales; it is dequantised.
    """

    parts: tuple[Rows, ...]
    height: int = 0

    def wanted(self, checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Wanted]:
        found = {}
        for part in self.parts:
            found[part.name] = Wanted(part.shape, (dtype, torch.float8_e4m3fn))
            if _is_fp8(checkpoint, part.name):
                shape = fp8.scale_shape(part.shape)
                found[part.name + SCALE] = Wanted(shape, (torch.float32, torch.bfloat16))
        return found

    def load(self, checkpoint: Checkpoint, dtype: torch.dtype) -> Tensor:
        rows = sum(len(span) for part in self.parts for span in part.ranges)
        out = torch.empty(max(rows, self.height), self.parts[0].shape[1], dtype=dtype)
        at = 0
        for part in self.parts:
            weight = checkpoint[part.name]
            scale = checkpoint[part.name + SCALE] if _is_fp8(checkpoint, part.name) else None
            at += len(copy_rows(out[at:], weight, part.ranges, scale))
        out[at:] = 0
        return out


@dataclass(frozen=True)
class Vector:
    """`[1, size]` fp32 from the stored vector `name` `[size]`, in fp32 or the model's element type."""

    name: str
    size: int

    def wanted(self, checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Wanted]:
        return {self.name: Wanted((self.size,), tuple(dict.fromkeys((dtype, torch.float32))))}

    def load(self, checkpoint: Checkpoint, dtype: torch.dtype) -> Tensor:
        return checkpoint[self.name].to(torch.float32, copy=True)[None]


@dataclass(frozen=True)
class Taps:
    """`[taps, channels]` from the weight `[channels, 1, taps]` of a depthwise convolution."""

    name: str
    channels: int
    taps: int

    def wanted(self, checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Wanted]:
        return {self.name: Wanted((self.channels, 1, self.taps), (dtype,))}

    def load(self, checkpoint: Checkpoint, dtype: torch.dtype) -> Tensor:
        return checkpoint[self.name][:, 0].T.clone(memory_format=torch.contiguous_format)


def check_recipes(
    checkpoint: Checkpoint,
    recipes: Iterable[Recipes],
    dtype: torch.dtype,
    ignored: Mapping[str, str],
    progress: Progress | None = None,
) -> None:
    """Hold a checkpoint against all `recipes` of a model, before any data is read.

    Args:
        checkpoint: the tensors.
        recipes: those of each layer and of the head.
        dtype: the model's element type.
        ignored: pattern of names -> why such tensors are left aside (see `Checkpoint.check`).
        progress: told what is left aside.

    Raises:
        UserError: if a tensor is missing, not asked for, mis-shaped or mis-typed, or if the blocks of an FP8
        weight cannot be taken apart as the kernels need it.
    """
    wanted: dict[str, Wanted] = {}
    cut_blocks = []
    for recipe in (recipe for table in recipes for recipe in table.values()):
        wanted |= recipe.wanted(checkpoint, dtype)
        for part in recipe.parts if isinstance(recipe, Matrix) else ():
            if _is_fp8(checkpoint, part.name):
                try:
                    fp8.scale_rows(part.ranges, part.shape[0])
                except ValueError as why:
                    file = checkpoint.entries[part.name].file
                    fix = "use the model's bf16 checkpoint: these heads do not fill whole blocks"
                    cut_blocks.append(Problem(file, f"tensor {part.name}: {why}", fix))
    checkpoint.check(wanted, ignored, progress)
    raise_first(cut_blocks)


def load_recipes(checkpoint: Checkpoint, recipes: Recipes, dtype: torch.dtype) -> dict[str, Tensor]:
    """The kernel's tensors, each contiguous in memory of its own; the maps behind them are gone again."""
    return {name: recipe.load(checkpoint, dtype) for name, recipe in recipes.items()}


def copy_rows(out: Tensor, weight: Tensor, take: Ranges, scale: Tensor | None = None) -> Tensor:
    """The leading rows of `out` that now hold the row ranges `take` of `weight` `[N, K]`, in that order.

    With `scale`, `weight` is FP8: the rows of its scale are taken alike, and their product is stored.

    Raises:
        ValueError: if a range of an FP8 weight is not made of whole blocks.
    """
    at = 0
    blocks = fp8.scale_rows(take, weight.shape[0]) if scale is not None else take
    for rows, factors in zip(take, blocks, strict=True):
        dest = out[at : at + len(rows)]
        part = weight[rows.start : rows.stop]
        if scale is None:
            dest.copy_(part)
        else:
            fp8.dequantise(part, scale[factors.start : factors.stop], dest)
        at += len(rows)
    return out[:at]


def gated_rows(heads: int, head_dim: int) -> tuple[Ranges, Ranges]:
    """Rows of the gates, and of the queries, of `[q_0 | gate_0 | q_1 | gate_1 | ...]`."""
    starts = range(0, 2 * heads * head_dim, 2 * head_dim)
    queries = tuple(range(at, at + head_dim) for at in starts)
    gates = tuple(range(at + head_dim, at + 2 * head_dim) for at in starts)
    return gates, queries


def grouped_qkvz_rows(k_heads: int, v_heads: int, k_dim: int, v_dim: int) -> tuple[Ranges, ...]:
    """Rows of q, k, v and z of Qwen3-Next's in_proj_qkvz, each in the order of its heads.

    Key head g owns the value heads gR .. gR + R - 1, R = v_heads / k_heads, and the rows
    `[q_g | k_g | v_gR .. v_{gR+R-1} | z_gR .. z_{gR+R-1}]`.
    """
    values = v_heads // k_heads * v_dim
    return _grouped(k_heads, (k_dim, k_dim, values, values))


def grouped_ba_rows(k_heads: int, v_heads: int) -> tuple[Ranges, ...]:
    """Rows of b and a of Qwen3-Next's in_proj_ba; key head g has `[b_gR .. b_{gR+R-1} | a_gR .. ]`."""
    return _grouped(k_heads, (v_heads // k_heads,) * 2)


def _grouped(groups: int, widths: tuple[int, ...]) -> tuple[Ranges, ...]:
    """Per section, its rows of all groups; a group holds sections of these `widths` one after another."""
    size = sum(widths)
    found = []
    first = 0
    for width in widths:
        starts = range(first, groups * size, size)
        found.append(tuple(range(at, at + width) for at in starts))
        first += width
    return tuple(found)


def _is_fp8(checkpoint: Checkpoint, name: str) -> bool:
    return name in checkpoint and checkpoint.entries[name].dtype == torch.float8_e4m3fn
