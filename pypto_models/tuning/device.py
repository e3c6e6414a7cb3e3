"""Where variants are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from .. import gpu
from ..backend import Reopens
from ..gpu import Call


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


class Gpu(gpu.Gpu):
    """torch's current GPU, with the programs of a backend."""

    torch_name = "cuda"

    def __init__(self, backend: Reopens) -> None:
        self.backend = backend
        self.name = torch.cuda.get_device_name()

    def load(self, folder: Path) -> Callable[[Mapping[str, Any]], object]:
        return self.backend.open(folder)

    def alive(self) -> bool:
        """False if a kernel has left the process without a working device."""
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device=self.torch_name).item()
        except RuntimeError:
            return False
        return True
