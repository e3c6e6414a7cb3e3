"""The simulator as a backend: builds an executable from a compiled program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pypto_models.backend import Compiled, Progress
from pypto_models.ops import REGISTRY
from pypto_models.ops.memory import CREATE
from pypto_models.target import Target

from .machine import Machine
from .splits import check_splits


class Simulation:
    """A program on the simulator: ``executable(args)`` runs it, mutating Out and InOut tensors."""

    def __init__(self, machine: Machine, splits_of: Compiled | None = None) -> None:
        self.machine = machine
        self.splits_of = splits_of

    def __call__(self, args: Mapping[str, Any], progress: Progress | None = None) -> tuple[Any, ...]:
        if self.splits_of is not None:
            check_splits(self.splits_of, args)
        return self.machine.run(args, progress)


class SimBackend:
    """Runs any program on CPU tensors; needs nothing that torch does not bring."""

    name = "sim"
    native = False

    def covers(self, target: Target) -> str | None:
        """None: it takes the limits and the order of any target from its description."""
        return None

    def support(self, op: str) -> str:
        """An op is its OpDef's reference; ``create`` makes a buffer, which is the simulator's own."""
        known = op == CREATE.name or REGISTRY[op].reference is not None
        return "rule" if known else "unsupported: its OpDef has no reference"

    def unusable(self) -> str | None:
        """Why the backend cannot run on this machine; None, since it always can."""
        return None

    def build(
        self,
        compiled: Compiled,
        schedule: str = "program",
        seed: int = 0,
        check_splits: bool = False,
        checks: bool = True,
    ) -> Simulation:
        """``schedule="random"`` runs blocks and independent regions in an order drawn from ``seed``.

        With ``check_splits`` every region with a split also runs without it, and a difference is an error.
        ``checks=False`` leaves out what is asked of every access to global memory: it shows what the checks
        cost, and nothing about the program.
        """
        machine = Machine(compiled.function, compiled.graph, schedule, seed, compiled.target, checks)
        return Simulation(machine, compiled if check_splits else None)
