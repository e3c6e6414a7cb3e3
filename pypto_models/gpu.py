"""torch's current GPU, as far as measuring needs it: its memory, its cache, and the time of calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]
WARM_UPS = 3  # replays that are not timed


class Gpu:
    """Sizes in bytes, times in seconds."""

    @property
    def free_bytes(self) -> int:
        """What may still be allocated."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    @property
    def l2_bytes(self) -> int:
        """Size of the L2 cache."""
        return int(torch.cuda.get_device_properties().L2_cache_size)

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
