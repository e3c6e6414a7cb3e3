"""Kernels on the CPU: against torch in fp64, and what the interpreter is made to do as GPUs do it."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch

from backends.gpu.module import KernelSource
from backends.triton.interpreter import Interpreted, OutOfBounds, why_not

from .support import needs_interpreter, needs_triton

SOURCE = '''
import triton
import triton.language as tl


@triton.jit
def product(a, b, o, n, scale):
    m = tl.arange(0, 16)[:, None]
    c = tl.arange(0, 32)[:, None] + tl.program_id(0) * 32
    k = tl.arange(0, 64)[None, :]
    total = tl.zeros((16, 32), tl.float32)
    for i in range(0, n, 64):
        total = tl.dot(tl.load(a + m * n + i + k), tl.trans(tl.load(b + c * n + i + k)), total)
    columns = tl.arange(0, 32)[None, :] + tl.program_id(0) * 32
    tl.store(o + m * 64 + columns, total * scale)


@triton.jit
def converted(x, narrow, whole, small):
    i = tl.arange(0, 16)
    value = tl.load(x + i)
    tl.store(narrow + i, value.to(tl.bfloat16))
    tl.store(whole + i, value.to(tl.int32))
    tl.store(small + i, value.to(tl.int8))


@triton.jit
def numbers(o, n, m, x):
    tl.store(o, n * 4)
    tl.store(o + 1, m * 4)
    tl.store(o + 2, n // 2)
    tl.store(o + 3, (x * 134217728).to(tl.int64))


@triton.jit
def counted(o, log):
    at = tl.atomic_add(o, 1)
    tl.store(log + at, tl.program_id(0))


@triton.jit
def places(x, o, n, limit):
    i = tl.arange(0, 4) + n
    tl.store(o + i, tl.load(x + i, mask=i < limit, other=7.0), mask=i < limit)


@triton.jit
def doubled(x, o):
    tl.store(o, tl.load(x) + tl.load(x))


@triton.jit
def negative(x, o):
    tl.store(o, -tl.load(x))


@triton.jit
def summed(x, o):
    tl.store(o, tl.sum(tl.load(x + tl.arange(0, 4)), 0))


@triton.jit
def steep(x, o):
    i = tl.arange(0, 4)
    value = tl.load(x + i)
    tl.store(o + i, tl.exp(value) / (value - value))


@triton.jit
def greatest(x, o):
    tl.store(o, tl.max(tl.load(x + tl.arange(0, 4)), 0))
'''  # fmt: skip

KINDS = {
    "product": "pointer:BF16 pointer:BF16 pointer:BF16 Int32 Float32",
    "converted": "pointer:FP32 pointer:BF16 pointer:INT32 pointer:INT8",
    "numbers": "pointer:INT64 Int32 Int64 Float32",
    "counted": "pointer:INT32 pointer:INT32",
    "places": "pointer:FP32 pointer:FP32 Int32 Int32",
    **dict.fromkeys(("doubled", "negative", "summed"), "pointer:BF16 pointer:BF16"),
    **dict.fromkeys(("steep", "greatest"), "pointer:FP32 pointer:FP32"),
}


def kernels() -> list[KernelSource]:
    pairs = {n: tuple((f"p{i}", kind) for i, kind in enumerate(k.split())) for n, k in KINDS.items()}
    return [KernelSource(name, name, 1, "", 0, 0, "", p) for name, p in pairs.items()]


@pytest.fixture(scope="module")
def emitted() -> Interpreted:
    return Interpreted(SOURCE, kernels())


# ------------------------------------------------------------------------------------------------- values
@needs_interpreter
def test_a_product_of_two_programs(emitted: Interpreted) -> None:
    make = torch.Generator().manual_seed(5)
    a = torch.randn(16, 192, generator=make).bfloat16()
    b = torch.randn(64, 192, generator=make).bfloat16()
    out = torch.zeros(16, 64, dtype=torch.bfloat16)
    emitted.launch("product", 2, [a, b, out, 192, 0.25])
    exact = a.double() @ b.double().T * 0.25
    assert exact.abs().min() < 0.1 < 3 < exact.abs().max()
    error = (out.double() - exact).abs()
    assert (error <= exact.abs() * 2**-8 + 1e-6).all()  # half a unit in the last of eight places


@needs_interpreter
def test_conversions_round_and_saturate_as_gpus_do(emitted: Interpreted) -> None:
    tie = 1 + 2**-8  # between 1 and the next of bf16
    nan, inf = math.nan, math.inf
    x = torch.tensor(
        [tie, tie + 2**-7, -tie, 1 + 2**-7 + 2**-9, 3e38, 3.4e38, inf, -inf]
        + [nan, 1.9, -1.9, 3e9, -3e9, 300.0, -129.0, 0.5]
    )
    narrow = torch.zeros(16, dtype=torch.bfloat16)
    whole, small = torch.zeros(16, dtype=torch.int32), torch.zeros(16, dtype=torch.int8)
    emitted.launch("converted", 1, [x, narrow, whole, small])
    assert narrow[:4].tolist() == [1, 1 + 2**-6, -1, 1 + 2**-7]
    torch.testing.assert_close(narrow, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    high, low = 2**31 - 1, -(2**31)
    assert whole.tolist() == [1, 1, -1, 1, high, high, high, low, 0, 1, -1, high, low, 300, -129, 0]
    assert small.tolist() == [1, 1, -1, 1, -1, -1, -1, 0, 0, 1, -1, -1, 0, 44, 127, 0]  # the low byte


@needs_interpreter
def test_scalars_have_the_type_of_their_kind(emitted: Interpreted) -> None:
    out = torch.zeros(4, dtype=torch.int64)
    emitted.launch("numbers", 1, [out, -(2**30) - 3, 2**30 + 3, 0.1])
    assert out[:3].tolist() == [-12, 2**32 + 12, -(2**29) - 1]
    assert out[3] == 13421773  # in fp64 it is 13421772.8, cut off
    emitted.launch("numbers", 1, [out, -7, 1, 0.0])
    assert out.tolist() == [-28, 4, -3, 0]


@needs_interpreter
def test_programs_run_in_order_and_share_memory(emitted: Interpreted) -> None:
    count, log = torch.zeros(1, dtype=torch.int32), torch.full((5,), -1, dtype=torch.int32)
    emitted.launch("counted", 5, [count, log])
    assert (count.tolist(), log.tolist()) == ([5], [0, 1, 2, 3, 4])


@needs_interpreter
def test_a_view_of_a_slab_is_taken_for_the_element_type(emitted: Interpreted) -> None:
    slab = torch.zeros(64, dtype=torch.uint8)
    x = torch.arange(4, dtype=torch.float32)
    emitted.launch("places", 1, [x, slab[32:48], 0, 4])
    numbers = slab.view(torch.float32)
    assert numbers.tolist() == [0.0] * 9 + [1.0, 2.0, 3.0] + [0.0] * 4
    emitted.launch("places", 1, [slab, slab[16:24], 8, 12])  # one lies in the other: 8 to 11 go to 12 to 15
    assert numbers.tolist() == [0.0] * 9 + [1.0, 2.0, 3.0] + [0.0, 1.0, 2.0, 3.0]


@needs_interpreter
def test_numbers_that_overflow_are_no_warnings(emitted: Interpreted) -> None:
    out = torch.zeros(4)
    emitted.launch("steep", 1, [torch.tensor([100.0, -100.0, 0.0, math.nan]), out])
    assert out[:3].tolist() == [math.inf] * 3 and out[3].isnan()
    emitted.launch("greatest", 1, [torch.full((4,), math.nan), out])
    assert out[0].isnan()


# -------------------------------------------------------------------------------------------------- errors
@needs_interpreter
@pytest.mark.parametrize("name", ["doubled", "negative", "summed"])
def test_arithmetic_of_bf16_is_refused(emitted: Interpreted, name: str) -> None:
    from triton.runtime.errors import InterpreterError

    x, out = torch.ones(4, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.bfloat16)
    with pytest.raises(InterpreterError, match="arithmetic of bf16: convert to fp32 first") as caught:
        emitted.launch(name, 1, [x, out])
    assert caught.value.__notes__[0].startswith(f"in {name}: tl.store(o, ")


@needs_interpreter
def test_memory_outside_of_the_arguments_is_not_touched(emitted: Interpreted) -> None:
    """Both tensors lie in one that is larger."""
    whole = torch.arange(64, dtype=torch.float32)
    before = whole.clone()
    x, out = whole[24:32], whole[40:48]
    for first, what in ((5, "loads 4 elements, 1"), (-9, "loads 4 elements, 4")):
        with pytest.raises(OutOfBounds, match=f"program 0 {what} outside") as caught:
            emitted.launch("places", 1, [x, out, first, 32])
        assert caught.value.__notes__[0].startswith("in places: tl.store(o + i, tl.load(x + i")
    with pytest.raises(OutOfBounds, match="program 0 stores 4 elements, 2 outside"):
        emitted.launch("places", 1, [x, out[:6], 4, 32])
    with pytest.raises(OutOfBounds, match="program 0 changes 1 elements, 1 outside"):
        emitted.launch("counted", 1, [whole.view(torch.uint8)[:2], out])
    assert torch.equal(whole, before)
    emitted.launch("places", 1, [x, out, 5, 8])  # masked
    assert out[5:].tolist() == x[5:].tolist()


@needs_interpreter
def test_arguments_that_do_not_fit(emitted: Interpreted) -> None:
    x = torch.zeros(4, 4)
    for wrong, why in (
        ([x, x, 0], "4 parameters, not 3"),
        ([x, x, x, 1], "a parameter Int32 and is given a tensor"),
        ([x, 3, 0, 1], "a parameter pointer:FP32: give a contiguous tensor on the CPU"),
        ([x, x.T, 0, 1], "a parameter pointer:FP32: give a contiguous tensor on the CPU"),
    ):
        with pytest.raises(ValueError, match=f"places has {why}"):
            emitted.launch("places", 1, wrong)
    with pytest.raises(OverflowError, match="out of bounds for int32"):
        emitted.launch("places", 1, [x, x, 2**31, 0])


@needs_interpreter
def test_the_interpreter_is_left_as_it_was(emitted: Interpreted) -> None:
    from triton.runtime.interpreter import ReduceScanOpInterface, interpreter_builder

    before = ReduceScanOpInterface.check_tensor
    emitted.launch("places", 1, [torch.zeros(4), torch.zeros(4), 0, 4])
    assert "create_dot" not in vars(interpreter_builder)
    assert ReduceScanOpInterface.check_tensor is before


@needs_interpreter
def test_the_file_lives_as_long_as_the_kernels() -> None:
    made = Interpreted(SOURCE, kernels())
    path = made.module.__file__
    assert path is not None and os.path.exists(path)
    del made
    assert not os.path.exists(path)


# ------------------------------------------------------------------------------------------------ why_not
ASK = "from backends.triton.interpreter import why_not; print(why_not())"


def answer(code: str, variable: str | None) -> str:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if variable is not None:
        env["TRITON_INTERPRET"] = variable
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return run.stdout.strip()


@needs_triton
@pytest.mark.slow
def test_why_not_says_what_to_do() -> None:
    late = f"import os, triton; os.environ['TRITON_INTERPRET'] = '1'; {ASK}"
    assert answer(ASK, "1") == "None"
    assert answer(ASK, None) == answer(ASK, "0")
    assert "set TRITON_INTERPRET=1 in the environment, and start it again" in answer(ASK, None)
    assert "imported before TRITON_INTERPRET=1 was set" in answer(late, None)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'pypto-models[triton]'" in str(why_not())
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        Interpreted(SOURCE, kernels())
