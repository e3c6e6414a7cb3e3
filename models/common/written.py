"""Which rows of its caches and states a decode step writes; every other row must stay as it was.

Read off the step's own tensors, apart from references and kernels, so that neither decides what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.common.config import DecoderConfig


class StateSizes(Protocol):
    """Geometry of the states of a gated delta-net layer."""

    @property
    def v_heads(self) -> int: ...
    @property
    def k_dim(self) -> int: ...
    @property
    def taps(self) -> int: ...


@dataclass(frozen=True)
class LiveRow:
    """Row `row` of the step is the live row number `nth` of sequence `seq`."""

    row: int
    seq: int
    nth: int


def live_rows(tensors: Mapping[str, Tensor]) -> list[LiveRow]:
    """The rows that take part, in order: of a sequence with ctx > 0 those before its first negative slot."""
    slots, cu_q, ctx = (tensors[name].tolist() for name in ("slot_mapping", "cu_q", "ctx"))
    found = []
    for seq, length in enumerate(ctx):
        for nth, row in enumerate(range(cu_q[seq], cu_q[seq + 1])):
            if length <= 0 or slots[row] < 0:
                break
            found.append(LiveRow(row, seq, nth))
    return found


def most_rows(tensors: Mapping[str, Tensor]) -> int:
    """The most rows that a sequence may have in this step: as its states are laid out, else as it has."""
    if "state_slots" in tensors:
        return int(tensors["state_slots"].shape[1])
    return max(1, int(tensors["cu_q"].diff().max()))


def cache_rows(tensors: Mapping[str, Tensor], sizes: DecoderConfig) -> Tensor:
    """Rows of both KV caches: one per live row and KV head."""
    slots = tensors["slot_mapping"][[live.row for live in live_rows(tensors)]].long()[:, None]
    heads = torch.arange(sizes.kv_heads)
    return ((slots // sizes.page * sizes.kv_heads + heads) * sizes.page + slots % sizes.page).flatten()


def state_rows(tensors: Mapping[str, Tensor], sizes: StateSizes) -> Tensor:
    """Rows of the delta-rule state: a slot of `v_heads * k_dim` rows per live row."""
    height = sizes.v_heads * sizes.k_dim
    slots = [int(tensors["state_slots"][live.seq, live.nth]) for live in live_rows(tensors)]
    return (torch.tensor(slots, dtype=torch.int64)[:, None] * height + torch.arange(height)).flatten()


def conv_rows(tensors: Mapping[str, Tensor], sizes: StateSizes) -> Tensor:
    """Rows of the convolution buffer that hold this step's inputs, behind `taps - 2` columns of history.

    The history is moved there and not computed: it belongs to the rows that are compared bit for bit.
    """
    width, slots = sizes.taps - 2 + most_rows(tensors), tensors["conv_slots"].tolist()
    rows = [slots[live.seq] * width + sizes.taps - 2 + live.nth for live in live_rows(tensors)]
    return torch.tensor(rows, dtype=torch.int64)
