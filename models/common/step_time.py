"""The time of a decode step on a GPU, and the share of its floor: what memory alone would take.

Steps are replayed as one CUDA graph in which copies of all their tensors take turns, so that no step finds
its weights in the L2 cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from models.common.step_bytes import StepBytes
from pypto_models import gpu
from pypto_models.gpu import Call

COPIES = 6
"""Sets of tensors that take turns."""

STEPS = 24  # of one graph, at least
REPLAYS = 30
MEMORY_SHARE = 0.9  # of the free memory
READ_BYTES = 2**31  # of the read that `read_rate` times


class Device(Protocol):
    """Where steps are timed: a GPU, or its stand-in in a test."""

    @property
    def free_bytes(self) -> int: ...
    @property
    def l2_bytes(self) -> int: ...
    def moved(self, tensor: Tensor) -> Tensor: ...
    def seconds(self, calls: Sequence[Call], replays: int) -> list[float]: ...


class Gpu(gpu.Gpu):
    """torch's current GPU."""

    def moved(self, tensor: Tensor) -> Tensor:
        """A copy on the GPU."""
        return tensor.cuda()


@dataclass(frozen=True)
class StepTime:
    """Of one step: seconds (the median over replays, the least and the most) and what they are held against.

    `read_rate` is the bandwidth of a plain read by torch in this run, `ceiling` the one that the floor is
    computed with, both in bytes per second; `source` says where it comes from.
    """

    median: float
    least: float
    most: float
    replays: int
    copies: int
    cached: bool
    moved: StepBytes
    read_rate: float
    ceiling: float
    source: str

    @property
    def floor(self) -> float:
        """Seconds that the bytes take at the ceiling."""
        return self.moved.total / self.ceiling

    @property
    def share(self) -> float:
        """Part of the step's time that the floor takes."""
        return self.floor / self.median

    def lines(self) -> Iterator[str]:
        """What the command prints."""
        us, mb, tb = 1e6, 1e-6, 1e-12
        yield (
            f"time {self.median * us:.1f} us a step: median of {self.replays} graph replays "
            f"({self.least * us:.1f} to {self.most * us:.1f}), {self.copies} copies of all tensors in turn"
        )
        parts = {"weights": self.moved.weights, "KV": self.moved.kv, "states": self.moved.states}
        sizes = ", ".join(f"{name} {n * mb:.1f} MB" for name, n in parts.items() if n)
        yield (
            f"floor {self.floor * us:.1f} us: {sizes} at {self.ceiling * tb:.3g} TB/s, {self.source}; "
            f"a torch.sum reads {self.read_rate * tb:.3g} TB/s here"
        )
        yield f"share of the floor {self.share:.1%}"
        if self.copies < COPIES:
            yield f"note: {COPIES} copies do not fit into memory, so that caches may serve some reads"
        if self.cached:
            yield "note: the copies are hardly larger than the L2 cache: the share says nothing about memory"

    def report(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "step_us": self.median * 1e6,
            "least_us": self.least * 1e6,
            "most_us": self.most * 1e6,
            "replays": self.replays,
            "copies": self.copies,
            "l2_resident": self.cached,
            "bytes": {"weights": self.moved.weights, "kv": self.moved.kv, "states": self.moved.states},
            "ceiling_bytes_per_s": self.ceiling,
            "ceiling_source": self.source,
            "torch_sum_bytes_per_s": self.read_rate,
            "floor_us": self.floor * 1e6,
            "share_of_floor": self.share,
        }


def time_step(
    program: Callable[..., object],
    tensors: Mapping[str, Tensor],
    moved: StepBytes,
    published: float | None,
    device: Device,
) -> StepTime:
    """Time a program on `tensors`, its arguments in order, which stay as they are.

    `published` is the read ceiling of the target in bytes per second; without one, that of a torch.sum holds.

    Raises:
        ValueError: not even one copy of the tensors fits into the device's memory.
    """
    rate = read_rate(device)
    each = sum(t.nbytes for t in tensors.values())
    copies = min(COPIES, int(device.free_bytes * MEMORY_SHARE) // each)
    if copies < 1:
        raise ValueError(f"one copy of the tensors takes {each / 2**30:.1f} GiB; the device has less free")
    sets = [[device.moved(t) for t in tensors.values()] for _ in range(copies)]
    calls = [lambda own=own: program(*own) for own in sets] * -(-STEPS // copies)
    times = [t / len(calls) for t in device.seconds(calls, REPLAYS)]
    source = "the best read measured on this kind of device" if published else "that of the torch.sum"
    return StepTime(
        statistics.median(times), min(times), max(times), len(times), copies,
        cached=copies * moved.total < 2 * device.l2_bytes, moved=moved, read_rate=rate,
        ceiling=published or rate, source=source,
    )  # fmt: skip


def read_rate(device: Device) -> float:
    """Bytes per second of a torch.sum over memory far larger than the caches; on a small device over less."""
    size = min(READ_BYTES, device.free_bytes // 4)
    data = device.moved(torch.zeros(1)).new_zeros(size // 4)
    return data.nbytes / statistics.median(device.seconds([data.sum], 10))
