"""What the checks of the simulator cost, and that they are what refuses a wrong program."""

from __future__ import annotations

import time

import pytest
import torch

import pypto_models.language as pl
from models.qwen3_14b import reference
from models.qwen3_14b.config import FULL, TINY, Config
from models.qwen3_14b.constants import constants
from models.qwen3_14b.decode_layer import decode_layer
from models.qwen3_14b.harness import main
from models.qwen3_14b.inputs import make_inputs
from pypto_models import UserError, compile
from pypto_models.compile import Program
from tests.safety.replay import bits

RUNS = 5
AT_MOST = 2.0


def layer(config: Config, checks: bool) -> Program:
    return compile(decode_layer, constants=constants(config, "a2a3"), backend_options={"checks": checks})


def seconds(program: Program, tensors: dict[str, torch.Tensor]) -> float:
    started = time.perf_counter()
    program(*(tensors[p.name] for p in program.params))
    return time.perf_counter() - started


@pytest.mark.slow
@pytest.mark.parametrize("context", ["ragged", FULL.max_seq], ids=["ragged", "max-seq"])
def test_checks_take_at_most_as_long_as_the_rest(context: str | int) -> None:
    """The full-size layer; the fastest of a few runs of each, since the machine may do other things."""
    tensors = make_inputs(FULL, FULL.max_batch, context, seed=0, lm_head="skip")  # type: ignore[arg-type]
    checked, unchecked = layer(FULL, True), layer(FULL, False)
    times = [(seconds(checked, tensors), seconds(unchecked, tensors)) for _ in range(RUNS)]
    with_checks, without = (min(t) for t in zip(*times, strict=True))
    print(f"checked {with_checks:.3f} s, unchecked {without:.3f} s, ratio {with_checks / without:.2f}")
    assert with_checks <= AT_MOST * without


def test_without_checks_the_results_are_the_same() -> None:
    results = []
    for checks in (True, False):
        tensors = make_inputs(TINY, 7, "ragged", seed=2, lm_head="skip", dead_rows={3: "slot"})
        seconds(layer(TINY, checks), tensors)
        results.append({n: bits(tensors[n]) for n in (*reference.MUTATED,) if n in tensors})
    assert results[0].keys() >= {"next_hidden", "k_cache"}
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


def test_the_command_line_can_leave_them_out(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "tiny", "--lm-head", "skip", "--batch", "3", "--no-checks"]) == 0
    assert "PASS" in capfd.readouterr().out


@pl.jit
def hole(x: pl.Tensor[[32, 64], pl.FP32], y: pl.Out[pl.Tensor[[32, 64], pl.FP32]]):
    scratch = pl.create_tensor([32, 64], pl.FP32)
    for b in pl.spmd(1):
        pl.assemble(scratch, pl.slice(x, [16, 64], [b * 16, 0]), [b * 16, 0])
    for b in pl.spmd(2):
        pl.assemble(y, pl.slice(scratch, [16, 64], [b * 16, 0]), [b * 16, 0])


@pl.jit
def race(x: pl.Tensor[[32, 64], pl.FP32], y: pl.Out[pl.Tensor[[24, 64], pl.FP32]]):
    for b in pl.spmd(2):
        pl.assemble(y, pl.slice(x, [16, 64], [b * 16, 0]), [b * 8, 0])


@pytest.mark.parametrize(
    ("kernel", "rows", "message"),
    [(hole, 32, r"reads scratch\[16, 0\], which was never written"), (race, 24, r"block 0 .* and block 1")],
    ids=["hole", "race"],
)
def test_without_checks_a_mistake_passes(kernel: pl.Kernel, rows: int, message: str) -> None:
    arguments = (torch.ones(32, 64), torch.empty(rows, 64))
    with pytest.raises(UserError, match=message):
        compile(kernel)(*arguments)
    compile(kernel, backend_options={"checks": False})(*arguments)
    assert torch.equal(arguments[1][:16], torch.ones(16, 64))
