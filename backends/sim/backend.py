"""The simulator as a backend: builds an executable from a compiled program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pypto_models.backend import Compiled, Progress

from .machine import Machine


class Simulation:
    """A program on the simulator: ``executable(args)`` runs it, mutating Out and InOut tensors."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def __call__(self, args: Mapping[str, Any], progress: Progress | None = None) -> tuple[Any, ...]:
        return self.machine.run(args, progress)


class SimBackend:
    """Runs any program on CPU tensors; needs nothing that torch does not bring."""

    name = "sim"

    def unusable(self) -> str | None:
        """Why the backend cannot run on this machine; None, since it always can."""
        return None

    def build(self, compiled: Compiled, schedule: str = "program", seed: int = 0) -> Simulation:
        """``schedule="random"`` runs blocks and independent regions in an order drawn from ``seed``."""
        return Simulation(Machine(compiled.function, compiled.graph, schedule, seed))
