"""The entry: a task graph, a target and inputs in, a timeline with its figures and assumptions out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import NOWHERE, Diag, user_error
from ..ir.graph import TaskGraph
from ..target import Target
from .inputs import Inputs
from .machine import Timeline, run
from .rates import Rates, rates
from .summary import Summary, summarise
from .work import work_of

CAVEAT = (
    "an estimate, not a measurement: source blocks run as written, one to a core, and pipes and shared "
    "bandwidth are a model"
)


@dataclass(frozen=True)
class Estimate:
    """``assumptions``: what the inputs left open; ``assumed_figures``: of the target, without a source."""

    kernel: str
    target: str
    timeline: Timeline
    summary: Summary
    assumptions: tuple[str, ...]
    assumed_figures: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel, "target": self.target, "note": CAVEAT, **self.summary.to_json(),
            "assumptions": list(self.assumptions), "assumed_figures": list(self.assumed_figures),
        }  # fmt: skip


def estimate(
    graph: TaskGraph,
    target: Target,
    given: Mapping[str, Any] | None = None,
    *,
    persistent: bool = False,
    at: Rates | None = None,
) -> Estimate:
    """Estimate the time of a program.

    Args:
        given: extents, scalar arguments and contents of index tensors by name, see :mod:`.inputs`; with the
            arguments of a real run the walk takes every loop and branch as that run does.
        persistent: one launch, and grid barriers between dependent tasks.
        at: rates in place of the target's own.

    Raises:
        UserError: a name in ``given`` that the kernel does not have, or a figure that the target lacks.
    """
    speed = at if at is not None else rates(target)
    if persistent and speed.barrier is None:
        raise user_error(Diag.NO_FIGURE, NOWHERE, target=target.name, name="grid_barrier_s")
    inputs = Inputs.of(graph.function, given or {})
    timeline = run(work_of(graph, inputs, speed), speed, persistent)
    return Estimate(
        graph.function.name, target.name, timeline, summarise(timeline), tuple(inputs.notes),
        tuple(sorted(target.assumed)),
    )  # fmt: skip
