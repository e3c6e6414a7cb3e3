"""A program that is a python function: enough of a compiled kernel for the harness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from golden import TensorSpec


@dataclass(frozen=True)
class FakeParam:
    name: str
    kind: str
    direction: str


class FakeProgram:
    """``FakeProgram(body, x="in", y="out", n="scalar")``; ``written`` defaults to what is declared."""

    def __init__(self, body: Callable[..., None], written: set[str] | None = None, **params: str) -> None:
        self.body = body
        self.params = tuple(
            FakeParam(name, "scalar" if how == "scalar" else "tensor", "in" if how == "scalar" else how)
            for name, how in params.items()
        )
        declared = {p.name for p in self.params if p.direction != "in"}
        self.written = frozenset(declared if written is None else written)
        self.warnings: tuple[str, ...] = ()

    def __call__(self, *args: Any) -> None:
        self.body(*args)


def double(x: torch.Tensor, y: torch.Tensor) -> None:
    y[:] = 2 * x


def golden_double(tensors: dict[str, Any]) -> None:
    tensors["y"][:] = tensors["x"] * 2


def specs(shape: tuple[int, ...] = (8, 16), dtype: torch.dtype = torch.float32) -> list[TensorSpec]:
    """One random input ``x`` and one output ``y``."""
    return [
        TensorSpec("x", shape, dtype, init_value=torch.randn),
        TensorSpec("y", shape, dtype, is_output=True),
    ]
