"""Estimates at round rates: an fp32 tile of [16, 16] moves, or is added to, in one second."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pypto_models.compile import lower_for
from pypto_models.cost import Estimate, Rates, estimate
from pypto_models.language import Kernel
from pypto_models.target import load_target

TILE = 1024  # bytes

UNIT = Rates(
    cores=2, memory=2.0 * TILE, l2=2.0 * TILE, l2_bytes=1 << 30, core=1.0 * TILE, cube=2.0 * 16**3,
    fp32_passes=2, vector=256.0, latency=0.0, launch=0.0,
)  # fmt: skip


def timed(kernel: Kernel, given: dict[str, Any] | None = None, **changes: Any) -> Estimate:
    """The estimate of a kernel at UNIT with some rates changed; ``constants`` and ``persistent`` apart."""
    constants, persistent = changes.pop("constants", None), changes.pop("persistent", False)
    target = load_target("a2a3")
    compiled = lower_for(kernel, (), target, constants)
    return estimate(compiled.graph, target, given, persistent=persistent, at=replace(UNIT, **changes))
