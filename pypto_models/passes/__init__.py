"""The passes, in order.  A pass takes a function and a target and gives a function; each states in its module
docstring what it needs and what it gives.  The verifier can run after every one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..ir.nodes import Function
from ..target import Target
from . import infer_memory, spill, split


@dataclass(frozen=True)
class Pass:
    name: str
    run: Callable[[Function, Target], Function]


PIPELINE: tuple[Pass, ...] = (
    Pass("spill", spill.run),  # values that live across regions get a round trip through global memory
    Pass("infer_memory", infer_memory.run),  # every tile gets a space; cube and vector parts meet in moves
    Pass("split", split.run),  # the vector part of a mixed region is divided on two lanes
)

__all__ = ["PIPELINE", "Pass"]
