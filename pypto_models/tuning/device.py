"""Where variants are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from ..backend import Reopens

Call = Callable[[], object]
WARM_UPS = 3


class Device(Protocol):
    """A GPU, or its stand-in in a test.  ``torch_name`` is where tensors of a call are."""

    name: str
    torch_name: str

    @property
    def free_bytes(self) -> int: ...
    @property
    def l2_bytes(self) -> int: ...
    def load(self, folder: Path) -> Callable[[Mapping[str, Any]], object]: ...
    def seconds(self, calls: Sequence[Call], replays: int) -> list[float]: ...
    def alive(self) -> bool: ...


class Gpu:
    """torch's current GPU, with the programs of a backend."""

    torch_name = "cuda"

    def __init__(self, backend: Reopens) -> None:
        self.backend = backend
        self.name = torch.cuda.get_device_name()

    @property
    def free_bytes(self) -> int:
        """Bytes that may still be allocated."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    @property
    def l2_bytes(self) -> int:
        return int(torch.cuda.get_device_properties().L2_cache_size)

    def load(self, folder: Path) -> Callable[[Mapping[str, Any]], object]:
        return self.backend.open(folder)

    def seconds(self, calls: Sequence[Call], replays: int) -> list[float]:
        """Of every replay of one CUDA graph that makes the calls in order."""
        for call in calls:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        for _ in range(WARM_UPS):
            graph.replay()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) * 1e-3 for a, b in zip(marks, marks[1:], strict=False)]

    def alive(self) -> bool:
        """False if a kernel has left the process without a working device."""
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device=self.torch_name).item()
        except RuntimeError:
            return False
        return True
