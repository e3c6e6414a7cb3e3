"""The table of backends and the simulator's place in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from backends import BACKENDS
from pypto_models.ir.nodes import Direction, Function
from pypto_models.ir.types import FP32, TensorType

from .build import Builder


@dataclass(frozen=True)
class _Compiled:
    function: Function


def test_the_simulator_is_in_the_table_and_builds_an_executable() -> None:
    b = Builder()
    x = b.param("x", TensorType((8, 16), FP32))
    out = b.param("out", TensorType((8, 16), FP32), Direction.OUT)
    with b.region(name="negate"):
        b("store", out, b("neg", b("load", x, (8, 16), (0, 0))), (0, 0))
    sim = BACKENDS["sim"]
    assert sim.name == "sim"
    assert sim.unusable() is None
    seen: list[tuple[int, int, str]] = []
    args = {"x": torch.ones(8, 16), "out": torch.zeros(8, 16)}
    sim.build(_Compiled(b.function()))(args, progress=lambda *report: seen.append(report))
    assert torch.equal(args["out"], -torch.ones(8, 16))
    assert seen[-1] == (1, 1, "negate")
