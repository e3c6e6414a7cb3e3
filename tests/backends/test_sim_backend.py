"""The table of backends and the simulator's place in it."""

from __future__ import annotations

import torch

from backends import BACKENDS
from pypto_models.compile import lower_function
from pypto_models.ir.nodes import Direction
from pypto_models.ir.types import FP32, TensorType
from pypto_models.target import load_target

from .build import Builder


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
    compiled = lower_function(b.function(), load_target("h200"))
    sim.build(compiled)(args, progress=lambda *report: seen.append(report))
    assert torch.equal(args["out"], -torch.ones(8, 16))
    assert seen[-1] == (1, 1, "negate")
