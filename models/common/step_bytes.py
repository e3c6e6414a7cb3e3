"""The bytes that a decode step must move: what its time is held against."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.common.written import live_rows

_NO_WEIGHTS = ("hidden", "rope_cos", "rope_sin")  # read-only, but of the step, or a few rows of a table
_CACHES = ("k_cache", "v_cache")


@dataclass(frozen=True)
class StepBytes:
    """Bytes: `weights` and `kv` are read once, `states` are read and written."""

    weights: int
    kv: int = 0
    states: int = 0

    @property
    def total(self) -> int:
        """What the floor of a step is made of."""
        return self.weights + self.kv + self.states


def step_bytes(
    tensors: Mapping[str, Tensor], names: Collection[str], mutated: Collection[str], config: Any
) -> StepBytes:
    """What a step on `tensors` must move, whatever program runs it.

    `names` are its parameters, of which it may change those in `mutated`.  Weights are counted as they are
    stored; KV is that of the contexts of live sequences.  Of a recurrent state every live sequence reads one
    slot and writes one for each of its live rows, and of a convolution buffer it reads the last `taps - 1`
    columns and writes those and its rows but one.
    """
    weights = sum(
        tensors[n].nbytes
        for n in names
        if n not in mutated and n not in _NO_WEIGHTS and tensors[n].is_floating_point()
    )
    live = live_rows(tensors)
    sequences = {row.seq for row in live}
    kv = states = 0
    if "k_cache" in names:
        tokens = sum(int(tensors["ctx"][s]) for s in sequences)
        kv = tokens * sum(config.kv_width * tensors[n].dtype.itemsize for n in _CACHES)
    if "state" in names:
        slot = config.v_heads * config.k_dim * _row_bytes(tensors["state"])
        columns = len(sequences) * (2 * config.taps - 3) + len(live)
        states = (len(sequences) + len(live)) * slot + columns * _row_bytes(tensors["conv_state"])
    return StepBytes(weights, kv, states)


def _row_bytes(tensor: Tensor) -> int:
    return tensor.shape[1] * tensor.dtype.itemsize
