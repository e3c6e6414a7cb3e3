"""Arguments of a launch: what does not fit is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backends.sim import Machine
from pypto_models.errors import Diag, UserError
from pypto_models.ir.expr import DimVar, binary, index
from pypto_models.ir.nodes import Direction
from pypto_models.ir.types import BF16, BOOL, FP32, INT8, ScalarType, TensorType
from pypto_models.language.entry import written_params

from .build import Builder

ROWS = DimVar("ROWS")


def machine() -> Machine:
    """out = x * s on rows 0..7; y is [2 * ROWS, 16] and only bound."""
    b = Builder("scale")
    x = b.param("x", TensorType((ROWS, 16), FP32))
    b.param("y", TensorType((binary("*", index(2), ROWS), 16), BF16))
    s = b.param("s", ScalarType(INT8))
    b.param("flag", ScalarType(BOOL))
    out = b.param("out", TensorType((ROWS, 16), FP32), Direction.OUT)
    with b.region():
        t = b("load", x, (8, 16), (0, 0))
        b("store", out, b("mul", t, s), (0, 0))
    return Machine(b.function())


def arguments(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "x": torch.ones(8, 16), "y": torch.ones(16, 16, dtype=torch.bfloat16), "s": 3, "flag": True,
        "out": torch.zeros(8, 16),
    }  # fmt: skip
    return {**good, **changes}


def test_arguments_that_fit() -> None:
    for s in (3, torch.tensor(3), torch.tensor(3, dtype=torch.int8).numpy()):
        args = arguments(s=s)
        machine().run(args)
        assert torch.equal(args["out"], torch.full((8, 16), 3.0))


SHARED = torch.zeros(12, 16)

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"x": [1.0]}, r"'x': expected a tensor \[ROWS, 16\] FP32, got list"),
    "dtype": ({"x": torch.ones(8, 16).half()}, r"'x': expected .* FP32, got \[8, 16\] float16"),
    "rank": ({"x": torch.ones(8)}, r"'x': expected .*, got \[8\] float32"),
    "extent": ({"x": torch.ones(8, 17)}, r"'x': expected .*, got \[8, 17\]: axis 1 must be 16"),
    "run-time extent": ({"out": torch.ones(9, 16)}, r"'out': axis 0 is ROWS = 8 by 'x', got \[9, 16\]"),
    "computed extent": (
        {"y": torch.ones(15, 16).bfloat16()}, r"'y': expected .*, got \[15, 16\]: axis 0 must be 16",
    ),
    "strides": ({"x": torch.ones(16, 8).t()}, r"'x': .* is not contiguous \(strides \[1, 8\]\)"),
    "device": ({"x": torch.ones(8, 16, device="meta")}, r"'x': it is on meta"),
    "number": ({"s": torch.ones(3)}, r"'s': expected a number \(INT8\), got Tensor"),
    "fraction": ({"s": 1.5}, r"'s': expected a number \(INT8\), got 1\.5"),
    "range": ({"s": 128}, r"'s': 128 is not within -128\.\.127 of INT8"),
    "flag": ({"flag": 2}, r"'flag': 2 is not within 0\.\.1 of BOOL"),
    "unknown": ({"z": 1}, r"'z': the kernel has no such parameter(.|\n)*parameters: x, y, s, flag, out"),
    "same tensor": ({"x": SHARED[:8], "out": SHARED[:8]}, r"'out': the kernel writes it, .* memory with 'x'"),
    "overlap": ({"x": SHARED[:8], "out": SHARED[4:]}, r"'out': the kernel writes it, .* memory with 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_argument_that_does_not_fit(case: str) -> None:
    changes, message = CASES[case]
    args = arguments(**changes)
    before = args["out"].clone()
    with pytest.raises(UserError, match=message) as caught:
        machine().run(args)
    assert caught.value.diag is Diag.ARGUMENT
    assert torch.equal(args["out"], before)  # not poisoned: nothing ran


def test_a_missing_argument() -> None:
    args = arguments()
    del args["s"]
    with pytest.raises(UserError, match=r"'s': it is missing(.|\n)*pass a number \(INT8\)"):
        machine().run(args)


def test_neighbours_in_one_storage_and_shared_inputs_are_fine() -> None:
    storage = torch.ones(16, 16)
    args = arguments(x=storage[:8], out=storage[8:])
    machine().run(args)
    assert torch.equal(args["out"], torch.full((8, 16), 3.0))


def test_written_parameters_follow_views_loops_and_swaps() -> None:
    b = Builder()
    names = ("read", "through_view", "ping", "pong")
    t = TensorType((8, 16), FP32)
    read, through_view, ping, pong = (b.param(n, t, Direction.INOUT) for n in names)
    part = b("view", through_view, (1, 16), (2, 0))
    with b.loop(4, init=(ping, pong)) as loop:
        source, target = loop.values
        inner = b("view", target, (8, 16), (0, 0))
        with b.region():
            x = b("load", source, (8, 16), (0, 0))
            b("store", inner, b("add", x, b("load", read, (8, 16), (0, 0))), (0, 0))
            b("write_tensor", part, (0, 0), 1.0)
        loop.next = (target, source)
    assert {v.name for v in written_params(b.function())} == {"through_view", "ping", "pong"}
