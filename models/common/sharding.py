"""A layer's weights cut for tensor parallelism: sections one by one, in whole heads.

A stacked projection is a row of sections (q, k and v, say), and a rank's part of it is its part of every
section: a contiguous cut of the whole would hand one rank queries and another keys. A projection back to the
hidden width is cut the same way along its columns; its outputs are partial sums, which the ranks add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pypto_models.errors import NOWHERE, Diag, user_error

_SEARCHED = 64  # degrees of parallelism that an error looks through for ones that work


@dataclass(frozen=True)
class Section:
    """`count` pieces of `width` rows (or columns) each, that are dealt out whole.

    With `shared`, more ranks than pieces hold copies: rank r of tp holds piece `r // (tp / count)`. That
    suits KV heads: the query heads of a rank then all read the one it holds.
    """

    what: str
    count: int
    width: int
    shared: bool = False

    @property
    def size(self) -> int:
        """Rows of all pieces."""
        return self.count * self.width

    def allows(self, tp: int) -> bool:
        """Whether `tp` ranks can each have the same number of whole pieces."""
        return self.count % tp == 0 or (self.shared and tp % self.count == 0)

    def part(self, tp: int, rank: int) -> range:
        """The rows of rank `rank`, counted from the start of the section."""
        pieces = max(1, self.count // tp)
        first = rank * self.count // tp
        return range(first * self.width, (first + pieces) * self.width)


@dataclass(frozen=True)
class Cut:
    """A tensor is cut along `axis`, which `sections` fill from end to end."""

    axis: int
    sections: tuple[Section, ...]


Cuts = Mapping[str, Cut | None]
"""Per tensor how it is cut; None: every rank holds all of it."""


def check_ranks(sections: Sequence[Section], tp: int, rank: int = 0) -> None:
    """Refuse `tp` ranks that cannot share `sections`, and a `rank` that is none of them.

    Raises:
        UserError: if a section cannot be dealt out to `tp` ranks, or there is no rank `rank`.
    """
    if tp < 1 or any(not section.allows(tp) for section in sections):
        bad = [f"{section.count} {section.what}" for section in sections if not section.allows(max(tp, 1))]
        fits = [n for n in range(1, _SEARCHED + 1) if all(section.allows(n) for section in sections)]
        raise user_error(
            Diag.ARGUMENT,
            NOWHERE,
            name="tp",
            why=f"{tp} ranks cannot share {bad[0]} evenly" if bad else f"{tp} is not a number of ranks",
            fix=f"use one of {', '.join(map(str, fits))}",
        )
    if not 0 <= rank < tp:
        raise user_error(
            Diag.ARGUMENT, NOWHERE, name="rank", why=f"{rank} of {tp} ranks", fix=f"use 0 to {tp - 1}"
        )


def cut(tensor: Tensor, sections: Sequence[Section], tp: int, rank: int, axis: int = 0) -> Tensor:
    """Rank `rank`'s part of `tensor`: its part of every section along `axis`, in the same order.

    Args:
        tensor: whole. The result is contiguous in memory of its own, so that the whole can be dropped.
        sections: what lies along `axis`, from its start to its end.
        tp: number of ranks.
        rank: 0 .. tp - 1.
        axis: the axis that is cut; the others stay whole.

    Raises:
        UserError: if `tp` ranks cannot share a section, or `rank` is none of them.
        ValueError: if the sections do not fill the axis.
    """
    if (size := sum(section.size for section in sections)) != tensor.shape[axis]:
        raise ValueError(f"sections of {size} in all do not fill axis {axis} of {list(tensor.shape)}")
    check_ranks(sections, tp, rank)
    parts = []
    first = 0
    for section in sections:
        rows = section.part(tp, rank)
        parts.append(tensor.narrow(axis, first + rows.start, len(rows)))
        first += section.size
    return torch.cat(parts, axis)


def shard(weights: Mapping[str, Tensor], cuts: Cuts, tp: int, rank: int) -> dict[str, Tensor]:
    """Rank `rank`'s part of each tensor of `weights`, as `cuts` says; one that is not cut is the same tensor.

    Raises:
        UserError: see `cut`.
        KeyError: if `cuts` does not know a tensor: cut or whole is for the model to say.
    """
    return {
        name: tensor if (how := cuts[name]) is None else cut(tensor, how.sections, tp, rank, how.axis)
        for name, tensor in weights.items()
    }
