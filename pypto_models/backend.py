"""The contract between the compiler and its backends: what a backend is given and what it builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .ir.graph import TaskGraph
from .ir.nodes import Function
from .passes.plan_memory import MemoryPlan
from .schedule.domain import RegionDomain
from .target import Target

Progress = Callable[[int, int, str], None]
"""``progress(done, total, label)``, called now and then while a program runs."""


@dataclass(frozen=True)
class Compiled:
    """Everything the compiler knows of one kernel: what a backend takes."""

    name: str
    function: Function
    graph: TaskGraph
    domains: tuple[RegionDomain, ...]
    plan: MemoryPlan
    target: Target
    warnings: tuple[str, ...]
    stages: tuple[tuple[str, Function], ...]
    seconds: float = field(compare=False, default=0.0)


class Executable(Protocol):
    """What a backend builds.  Mutates the tensors of Out and InOut parameters; gives the returned values."""

    def __call__(self, args: Mapping[str, Any], progress: Progress | None = None) -> Any: ...


class Backend(Protocol):
    """One folder of ``backends/``.  ``unusable`` says why it cannot run on this machine, or None."""

    name: str

    def unusable(self) -> str | None: ...

    def build(self, compiled: Compiled, *args: Any, **options: Any) -> Executable:
        """``options`` are the backend's own; one that it does not know is a TypeError."""
        ...
