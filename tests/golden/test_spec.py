"""Specs: every initialiser, the range of scalars, and that a seed fixes the values."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from golden import ScalarSpec, TensorSpec

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        (None, torch.zeros(2, 3)),
        (1.5, torch.tensor([[1.5] * 3] * 2)),
        (torch.zeros, torch.zeros(2, 3)),
        (torch.ones, torch.ones(2, 3)),
        (torch.arange(6).reshape(2, 3), torch.tensor([[0.0, 1, 2], [3, 4, 5]])),
        (lambda: [[0, 1, 2], [3, 4, 5]], torch.tensor([[0.0, 1, 2], [3, 4, 5]])),
        (torch.arange(6).reshape(3, 2).T, torch.tensor([[0.0, 2, 4], [1, 3, 5]])),
    ],
)
def test_initial_value(init: object, expected: torch.Tensor) -> None:
    value = TensorSpec("x", [2, 3], torch.float32, init_value=init).materialize()
    assert value.is_contiguous()
    assert value.dtype is torch.float32
    assert torch.equal(value, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_random_values_are_distributed_as_asked(dtype: torch.dtype) -> None:
    normal = TensorSpec("x", [10000], dtype, init_value=torch.randn).materialize().float()
    uniform = TensorSpec("x", [10000], dtype, init_value=torch.rand).materialize().float()
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
    assert abs(uniform.mean() - 0.5) < 0.02 and uniform.min() >= 0 and uniform.max() <= 1


@pytest.mark.parametrize(
    "init", [torch.randn, torch.rand, lambda: torch.randn(32) + torch.from_numpy(np.random.rand(32))]
)
def test_values_depend_on_seed_and_name_only(init: object) -> None:
    def values(name: str, seed: int) -> torch.Tensor:
        return TensorSpec(name, [32], torch.float32, init_value=init).materialize(seed)

    torch.rand(7), np.random.rand(3)  # whatever ran before
    first = values("x", 5)
    assert torch.equal(first, values("x", 5))
    assert not torch.equal(first, values("x", 6))
    assert not torch.equal(first, values("z", 5))


def test_values_are_the_same_in_another_process() -> None:
    code = (
        "import torch; from golden import TensorSpec;"
        "print(TensorSpec('weight', [4], torch.float32, init_value=torch.randn).materialize(3).tolist())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": salt},
            capture_output=True,
            check=True,
        ).stdout.decode()
        for salt in ("1", "2")
    ]
    here = TensorSpec("weight", [4], torch.float32, init_value=torch.randn).materialize(3)
    assert runs == [f"{here.tolist()}\n"] * 2


def test_callers_random_states_are_left_alone() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(11)
    expected = draw()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(11)
    TensorSpec("x", [4], torch.float32, init_value=torch.randn).materialize()
    TensorSpec("y", [3], torch.float32, init_value=draw).materialize()
    assert draw() == expected


@pytest.mark.parametrize(
    ("init", "match"),
    [
        (torch.zeros(3, 2), r"'x': init_value has shape \[3, 2\], expected \[2, 3\]"),
        (lambda: torch.zeros(6), r"'x': init_value has shape \[6\]"),
        ("zeros", "'x': init_value is a str"),
    ],
)
def test_bad_initial_value(init: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TensorSpec("x", [2, 3], torch.float32, init_value=init).materialize()


def test_randn_of_integers_names_the_fix() -> None:
    with pytest.raises(ValueError, match=r"torch.randn has no torch.int32 values; use a callable"):
        TensorSpec("x", [2], torch.int32, init_value=torch.randn).materialize()


def test_bad_tensor_spec() -> None:
    with pytest.raises(ValueError, match=r"negative extent in shape \[2, -1\]"):
        TensorSpec("x", [2, -1], torch.float32)
    with pytest.raises(ValueError, match="give the initial value to 'y'"):
        TensorSpec("x", [2], torch.float32, init_value=1.0, alias_of="y")


@pytest.mark.parametrize(
    ("dtype", "value", "number"),
    [
        (torch.int32, 7, 7),
        (torch.uint8, 255, 255),
        (torch.bool, True, True),
        (torch.float16, 0.1, 0.0999755859375),
        (torch.bfloat16, 1.0, 1.0),
        (torch.float32, float("inf"), float("inf")),
        (torch.int64, torch.tensor(2**40), 2**40),
    ],
)
def test_scalar(dtype: torch.dtype, value: object, number: object) -> None:
    spec = ScalarSpec("n", dtype, value)
    assert spec.number == number and type(spec.number) is type(number)
    assert spec.value.shape == () and spec.value.dtype is dtype


@pytest.mark.parametrize(
    ("dtype", "value", "match"),
    [
        (torch.uint8, 256, "'n': torch.uint8 cannot hold 256"),
        (torch.int8, -129, "cannot hold -129"),
        (torch.int32, 1.5, "cannot hold 1.5"),
        (torch.int32, float("nan"), "cannot hold nan"),
        (torch.float16, 1e6, "cannot hold 1000000.0"),
        (torch.bool, 2, "cannot hold 2"),
        (torch.float64, 1.0, "torch.float64 is not one of"),
        (torch.int32, "7", "value is a str"),
        (torch.int32, torch.zeros(2), r"value has shape \[2\]"),
    ],
)
def test_bad_scalar(dtype: torch.dtype, value: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ScalarSpec("n", dtype, value)
