"""The one table of backends.  A backend is one folder and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .sim import SimBackend


class Backend(Protocol):
    """Turns a compiled program into something that runs.

    ``unusable()`` says why the backend cannot run on this machine, None where it can.  ``build(compiled)``
    gives ``executable(args, progress=None)``: ``args`` maps parameter names to tensors and numbers, Out and
    InOut tensors are changed in place, and the function's returned values come back.
    """

    @property
    def name(self) -> str: ...

    def unusable(self) -> str | None: ...

    def build(self, compiled: Any) -> Callable[..., tuple[Any, ...]]: ...


BACKENDS: Mapping[str, Backend] = {b.name: b for b in (SimBackend(),)}
