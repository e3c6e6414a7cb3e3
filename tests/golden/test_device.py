"""A program of a device gets its tensors there, and everything comes back.

``cpu:0`` is a device of its own to torch, so that moving there copies: no GPU is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from golden.program import launch
from golden.runner import run
from golden.spec import TensorSpec


@dataclass
class Parameter:
    name: str
    direction: str
    kind: str = "tensor"


@dataclass
class OnADevice:
    """Calls ``body`` with copies of the tensors on another device."""

    body: Callable[..., None]
    params: tuple[Parameter, ...] = (Parameter("x", "in"), Parameter("y", "out"))
    written: frozenset[str] = frozenset({"y"})
    warnings: tuple[str, ...] = ()
    device: str = "cpu:0"
    seen: list[Any] = field(default_factory=list)

    def __call__(self, *args: Any) -> None:
        self.seen.extend(args)
        self.body(*args)


def double(x: torch.Tensor, y: torch.Tensor) -> None:
    y.copy_(x * 2)


def quiet(done: int, total: int, label: str) -> None:
    """No progress is shown."""


def test_tensors_go_there_and_come_back() -> None:
    program = OnADevice(double)
    x, y = torch.arange(4.0), torch.full((4,), float("nan"))
    launch(program, [x, y], quiet)
    assert torch.equal(y, x * 2)
    assert program.seen[0] is not x and program.seen[0].data_ptr() != x.data_ptr()


def test_one_tensor_passed_twice_is_one_there() -> None:
    program = OnADevice(lambda x, y, n: y.add_(x * n))
    x = torch.ones(4)
    launch(program, [x, x, 3], quiet)
    assert program.seen[0] is program.seen[1] and program.seen[2] == 3
    assert torch.equal(x, torch.full((4,), 4.0))


def test_a_program_of_the_cpu_gets_the_tensors_themselves() -> None:
    program = OnADevice(double, device="cpu")
    x, y = torch.ones(4), torch.zeros(4)
    launch(program, [x, y], quiet)
    assert program.seen[0] is x and program.seen[1] is y


SPECS = [
    TensorSpec("x", (8,), torch.float32, torch.randn),
    TensorSpec("y", (8,), torch.float32, is_output=True),
]


def golden(tensors: dict[str, Any]) -> None:
    tensors["y"][:] = tensors["x"] * 2


@pytest.mark.parametrize(
    ("body", "passed", "why"),
    [
        (double, True, ""),
        (lambda x, y: y.copy_(x * 3), False, "'y' FAIL"),
        (lambda x, y: None, False, "'y' FAIL"),  # what it never writes comes back as it was: poisoned
        (lambda x, y: (y.copy_(x * 2), x.zero_()), False, "'x' FAIL"),  # an input that changes there is seen
    ],
    ids=["right", "wrong", "unwritten", "changes an input"],
)
def test_the_harness_compares_what_comes_back(body: Callable[..., None], passed: bool, why: str) -> None:
    result = run(OnADevice(body), SPECS, golden_fn=golden)
    assert result.passed is passed
    assert why in (result.error or "")
