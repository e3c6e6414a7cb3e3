"""What the threads of a block do to one tensor, in order: no interpreter can see it, so the text is read."""

from __future__ import annotations

import pytest
import torch

import pypto_models.language as pl
from backends.gpu.runtime import joined
from backends.triton.lower import lower
from pypto_models.compile import lower_function
from pypto_models.errors import UserError
from pypto_models.target import load_target

from .support import interpreted, needs_interpreter

BARRIER = "tl.debug_barrier()"
HEAD = """import pypto_models.language as pl


@pl.jit
def kernel(x: pl.Tensor[[64, 64], pl.FP32], o: pl.InOut[pl.Tensor[[64, 64], pl.FP32]]):
    for b in pl.spmd(1):
        t = pl.slice(x, [64, 64], [0, 0])
"""


def steps(body: str) -> list[str]:
    """The stores and barriers of a kernel, in order."""
    text = HEAD + "".join(f"        {line}\n" for line in body.split("\n"))
    function = lower_function(pl.parse(text, "kernel"), load_target("h200")).function
    lines = lower(function, load_target("h200")).source.split("\n")
    words = {"tl.store(": "store", "tl.atomic_add(": "add", BARRIER: "barrier"}
    return [name for line in lines for word, name in words.items() if line.strip().startswith(word)]


def test_stores_to_one_tensor_are_apart() -> None:
    assert steps("pl.assemble(o, t, [0, 0])") == ["store"]
    small = "s = pl.slice(x, [16, 16], [0, 0])\npl.assemble(o, t, [0, 0])\npl.assemble(o, s, [8, 8])"
    assert steps(small) == ["store", "barrier", "store"]
    assert steps("pl.assemble(o, t, [0, 0])\npl.assemble(o, t, [0, 0], atomic=pl.AtomicType.Add)") == [
        "store", "barrier", "add",
    ]  # fmt: skip


def test_single_elements_are_written_by_one_thread() -> None:
    assert steps("pl.tensor.write(o, [0, 0], 1.0)\npl.tensor.write(o, [0, 1], 2.0)") == ["store", "store"]


def test_the_trips_of_a_loop_are_apart() -> None:
    loop = "for i in pl.range(4):\n    pl.assemble(o, pl.slice(x, [16, 64], [i * 16, 0]), [i * 8, 0])"
    assert steps(loop) == ["barrier", "store"]


def test_a_branch_does_not_follow_the_other() -> None:
    branch = (
        "if pl.read(x, [0, 0]) > 0.0:\n    pl.assemble(o, t, [0, 0])\nelse:\n"
        "    pl.assemble(o, pl.mul(t, 2.0), [0, 0])\npl.assemble(o, t, [0, 0])"
    )
    assert steps(branch) == ["store", "store", "barrier", "store"]


def test_what_is_in_flight_stays_short() -> None:
    """Programs that never fence: what they write is remembered once, however often they run."""
    ranges: list[tuple[int, int]] = []
    for i in range(1000):
        ranges = joined([*ranges, (64 * (i % 10), 64 * (i % 10) + 64)])
    assert ranges == [(0, 640)]
    assert joined([(8, 9), (0, 4), (3, 6)]) == [(0, 6), (8, 9)]


# -------------------------------------------------------------------------------------------------- numbers
SCALARS = """import pypto_models.language as pl


@pl.jit
def kernel(
    n: pl.Tensor[[2], pl.INT64],
    small: pl.Tensor[[1], pl.INT8],
    x: pl.Tensor[[16, 16], pl.FP32],
    quotients: pl.Out[pl.Tensor[[4], pl.INT64]],
    products: pl.Out[pl.Tensor[[2], pl.INT32]],
    whole: pl.Out[pl.Tensor[[16, 16], pl.INT32]],
):
    for b in pl.spmd(1):
        for i in pl.unroll(2):
            v = pl.read(n, [i])
            pl.tensor.write(quotients, [2 * i], v // 3)
            pl.tensor.write(quotients, [2 * i + 1], v % 3)
        s = pl.read(small, [0])
        pl.tensor.write(products, [0], pl.cast(s * s, pl.INT32))
        pl.tensor.write(products, [1], pl.cast(s + s, pl.INT32))
        pl.assemble(whole, pl.cast(pl.slice(x, [16, 16], [0, 0]), pl.INT32, mode="trunc"), [0, 0])
"""


@needs_interpreter
def test_integers_neither_wrap_nor_stop_short_of_their_ends() -> None:
    target = load_target("h200")
    made = interpreted(lower_function(pl.parse(SCALARS, "kernel"), target))
    n = torch.tensor([-(2**40) - 1, 2**40 + 1])
    x = torch.zeros(16, 16)
    x[0, :6] = torch.tensor([2.0**31, -(2.0**31), 3e9, -3e9, float("nan"), 2147483520.0])
    quotients, products = torch.empty(4, dtype=torch.int64), torch.empty(2, dtype=torch.int32)
    whole = torch.empty(16, 16, dtype=torch.int32)
    made(n, torch.tensor([100], dtype=torch.int8), x, quotients, products, whole)
    assert quotients.tolist() == [v for k in n.tolist() for v in divmod(k, 3)]
    assert products.tolist() == [10_000, 200]
    assert whole[0, :6].tolist() == [2**31 - 1, -(2**31), 2**31 - 1, -(2**31), 0, 2147483520]


def test_no_clock_of_amd_is_read() -> None:
    target = load_target("mi300x")
    function = lower_function(
        pl.parse(HEAD + "        pl.assemble(o, t, [0, 0])\n", "kernel"), target
    ).function
    with pytest.raises(UserError, match="no clock of mi300x is read"):
        lower(function, target, timing=True)
