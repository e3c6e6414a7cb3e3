"""Mistakes of real systems, planted in the models' own code: invisible to a weak test, caught by ours."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pypto_models.language as pl
from models.common import delta_net
from models.common import equations as eq
from models.qwen3_5_27b import reference
from models.qwen3_5_27b.config import TINY, Config
from models.qwen3_5_27b.constants import constants
from models.qwen3_5_27b.gdn_layer import gdn_decode_layer_with_head
from models.qwen3_14b import constants as dense
from models.qwen3_14b.config import TINY as DENSE
from models.qwen3_14b.decode_layer import decode_layer
from models.qwen3_14b.inputs import make_inputs
from pypto_models import UserError, compile
from pypto_models.compile import Program
from pypto_models.ir.nodes import Function, Let
from pypto_models.ir.rewrite import walk
from pypto_models.ops.registry import Effect, OpDef
from pypto_models.passes.affine import definitions
from tests.models.checks import errors, evaluate
from tests.models.common.gdn_step import Layout, gates, make, recur, units
from tests.models.mutate import drop_store, mutated
from tests.models.qwen3_5_27b.oracle import oracle
from tests.safety.planting import planted

HEADER = """
T, B, B1, S = (pl.dynamic(n) for n in ("T", "B", "B1", "S"))
from models.common.sizes import SPAN
V_WIDTH = V_HEADS * V_DIM
UNIT_WIDTH = 2 * K_HEADS * K_DIM
CONV_DIM = UNIT_WIDTH + V_WIDTH
IN_WIDTH = CONV_DIM + V_WIDTH + 2 * V_HEADS
"""


def widths(c: Config) -> dict[str, Any]:
    """What the entries below are compiled with."""
    heads = {"K_HEADS": c.k_heads, "V_HEADS": c.v_heads, "K_DIM": c.k_dim, "V_DIM": c.v_dim}
    return heads | {"V_WIDTH": c.v_width, "CONV_DIM": c.conv_dim, "IN_WIDTH": c.in_width, "DTYPE": pl.FP32}


# ------------------------------------------------------------------------------------------ aliases, effects
def dense_step() -> tuple[Program, dict[str, Tensor]]:
    program = compile(decode_layer, constants=dense.constants(DENSE, "a2a3"))
    return program, make_inputs(DENSE, 4, 40, seed=0, lm_head="skip")


def test_an_output_on_top_of_an_input_is_refused() -> None:
    """Written in place, the residual would be added to what it has become: 2 * branch + hidden."""
    program, tensors = dense_step()
    tensors["next_hidden"] = tensors["hidden"]
    with pytest.raises(UserError, match=r"'next_hidden': the kernel writes it, .* memory with 'hidden'"):
        program(*(tensors[p.name] for p in program.params))


def test_no_pass_drops_a_write() -> None:
    """What the user wrote as effects is what runs, though nothing in the step reads some of it again."""
    program, _ = dense_step()
    written = [writes(function) for _, function in program.compiled.stages]
    assert {"k_cache", "v_cache", "next_hidden", "normed"} <= {n for n, _ in written[0]}
    for after in written[1:]:  # spills add writes
        assert all(after[key] >= n for key, n in written[0].items())
    front_end = program.compiled.stages[0][1]
    lost = writes(mutated(front_end, [drop_store("attention", "k_cache")]))
    assert {n for n, _ in written[0] - lost} == {"k_cache"}  # a dropped one would show


def writes(function: Function) -> Counter[tuple[str, int]]:
    """How often each line stores into each parameter."""
    names, roots = {p.name for p in function.params}, definitions(function).roots
    found: Counter[tuple[str, int]] = Counter()
    for s in walk(function.body):
        if isinstance(s, Let) and isinstance(s.op, OpDef):
            found.update(
                (root.name, s.span.line)
                for a in s.op.access(s)
                for root in roots(a.tensor)
                if a.effect is not Effect.READ and root.name in names
            )
    return found


@pl.jit
def forgets_its_output(x: pl.Tensor[[16, 64], pl.FP32], y: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        y = pl.add(x, 1.0)  # noqa: F841 - which is the mistake


def test_an_output_that_nothing_writes_is_an_error() -> None:
    with pytest.raises(UserError, match=r"nothing writes the Out parameter 'y'[\s\S]*fix: .*pl\.assemble"):
        compile(forgets_its_output)


# ------------------------------------------------------------------------------------------ (1 + w) as w
def gemma_norm_without_its_one(
    x: Tensor, weight: Tensor, eps: float, p: eq.Precision, *, gemma: bool = False
) -> Tensor:
    assert gemma
    return p.rnd(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * p.up(weight))


@pytest.mark.slow  # transformers takes its time
def test_a_norm_that_kernel_and_reference_have_wrong_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """They agree with each other; transformers, which shares nothing with them, disagrees with both."""
    run = oracle("fp32")
    layer = run.config.kinds.index("gdn")
    given = run.tensors(1, layer)
    expected = run.expected(1, layer)
    right = evaluate(reference, given, run.config, "gdn")
    assert max(errors(right, expected).values()) <= 1e-5

    monkeypatch.setattr(eq, "rms_norm", gemma_norm_without_its_one)
    values = constants(run.config, "a2a3", layer="gdn", head_rows=run.config.vocab_padded)
    program = compile(gdn_decode_layer_with_head, constants=values | {"GEMMA_NORM": False})
    kernel = {n: t.clone() if n in program.written else t for n, t in given.items()}
    program(*(kernel[p.name] for p in program.params))
    wrong = evaluate(reference, given, run.config, "gdn")
    assert max(errors({n: kernel[n] for n in wrong}, wrong).values()) <= 1e-5
    assert errors(wrong, expected)["next_hidden"] > 0.1


# ------------------------------------------------------------------------------------------ transposed state
RULE = f"""{HEADER}
@pl.jit
def rule(
    unit: pl.Tensor[[T, UNIT_WIDTH], pl.FP32],
    values: pl.Tensor[[T, V_WIDTH], DTYPE],
    decay: pl.Tensor[[T, V_HEADS], pl.FP32],
    beta: pl.Tensor[[T, V_HEADS], pl.FP32],
    slot_mapping: pl.Tensor[[T], pl.INT32],
    cu_q: pl.Tensor[[B1], pl.INT32],
    ctx: pl.Tensor[[B], pl.INT32],
    kept: pl.Tensor[[B], pl.INT32],
    state_slots: pl.Tensor[[B, SPAN], pl.INT32],
    state: pl.InOut[pl.Tensor[[S, V_DIM], pl.FP32]],
    out: pl.InOut[pl.Tensor[[T, V_WIDTH], DTYPE]],
):
    out = delta_rule(unit, values, decay, beta, slot_mapping, cu_q, ctx, kept, state_slots, state, out)
"""

TRANSPOSED = (
    (
        "memory = pl.slice(state, [K_DIM, V_TILE], [(slot * V_HEADS + head) * K_DIM, value])",
        "memory = pl.transpose(pl.slice(state, [V_TILE, K_DIM], "
        "[(slot * V_HEADS + head) * K_DIM, value]), 0, 1)",
    ),
    (
        "pl.assemble(state, memory, [(next_slot * V_HEADS + head) * K_DIM, value])",
        "pl.assemble(state, pl.transpose(memory, 0, 1), [(next_slot * V_HEADS + head) * K_DIM, value])",
    ),
)


def rule_program(folder: Path, config: Config, *changes: tuple[str, str]) -> Program:
    kernel = planted(delta_net, folder, *changes, entry=RULE).rule
    sizes = widths(config) | {"UNIT_WIDTH": 2 * config.k_width, "V_TILE": config.v_dim}
    del sizes["CONV_DIM"], sizes["IN_WIDTH"]
    return compile(kernel, constants=sizes)


def worst_output(program: Program, config: Config) -> float:
    """Three steps of one token from an empty state, against the recurrence in fp64; outputs alone."""
    layout = Layout((1,) * 3, (1,) * 3, span=1)
    tensors = make(layout, config)
    tensors["state"].zero_()
    state = torch.zeros(3, config.v_heads, config.k_dim, config.v_dim, dtype=torch.float64)
    worst = 0.0
    for step in range(3):
        g = torch.Generator().manual_seed(step)
        heads = torch.randn(2, 3, config.k_heads, config.k_dim, generator=g)
        tensors["unit"] = torch.cat(units(*heads), 1).flatten(1)
        tensors["values"] = torch.randn(3, config.v_width, generator=g)
        tensors["decay"] = 1 - 0.2 * torch.rand(3, config.v_heads, generator=g)
        tensors["beta"] = torch.rand(3, config.v_heads, generator=g)
        tensors["out"] = torch.full((3, config.v_width), torch.nan)
        program(*(tensors[p.name] for p in program.params))
        for t in range(3):
            q, k = tensors["unit"][t].double().view(2, config.k_heads, -1)
            v = tensors["values"][t].double().view(config.v_heads, -1)
            decay, beta = tensors["decay"][t].double(), tensors["beta"][t].double()
            state[t], out = recur(state[t], q, k, v, decay, beta)
            worst = max(worst, float((tensors["out"][t] - out.flatten()).abs().nan_to_num(torch.inf).max()))
    return worst


def test_a_transposed_state_is_invisible_to_outputs_where_heads_are_square(tmp_path: Path) -> None:
    square = replace(TINY, v_dim=TINY.k_dim)
    assert worst_output(rule_program(tmp_path, square), square) <= 2e-6
    assert worst_output(rule_program(tmp_path, square, *TRANSPOSED), square) <= 2e-6


def test_a_transposed_state_is_caught_where_they_are_not(tmp_path: Path) -> None:
    assert TINY.k_dim != TINY.v_dim
    assert worst_output(rule_program(tmp_path, TINY), TINY) <= 2e-6
    program = rule_program(tmp_path, TINY, *TRANSPOSED)
    with pytest.raises(UserError, match=r"\[bounds\]: pl\.slice reads state\[1120:1184, 0:32\] outside"):
        worst_output(program, TINY)


# ------------------------------------------------------------------------------------------ exp(a) exp(-b)
GATES = f"""{HEADER}
@pl.jit
def gates(
    projected: pl.Tensor[[T, IN_WIDTH], pl.FP32],
    a_log: pl.Tensor[[1, V_HEADS], pl.FP32],
    dt_bias: pl.Tensor[[1, V_HEADS], pl.FP32],
    decay: pl.Out[pl.Tensor[[T, V_HEADS], pl.FP32]],
    beta: pl.Out[pl.Tensor[[T, V_HEADS], pl.FP32]],
):
    decay, beta = gdn_gates(projected, a_log, dt_bias, decay, beta)
"""

# The decay of a chunk's 16th token as a ratio of products: exp(16 g) exp(-15 g) is exp(g), or 0 times inf
RATIO = (
    "pl.assemble(decay, pl.exp(pl.col_expand_mul(step, rate)), [t, 0])",
    "g = pl.col_expand_mul(step, rate)\n"
    "        pl.assemble(decay, pl.mul(pl.exp(pl.mul(g, 16.0)), pl.exp(pl.mul(g, -15.0))), [t, 0])",
)


def decay_error(program: Program, a_log: Tensor, dt_bias: Tensor, spread: float) -> float:
    projected = spread * torch.randn(64, TINY.in_width, generator=torch.Generator().manual_seed(0))
    decay, beta = torch.full((2, 64, TINY.v_heads), torch.nan).unbind(0)
    program(projected, a_log, dt_bias, decay, beta)
    b, a = projected[:, -2 * TINY.v_heads :].double().chunk(2, -1)
    exact, _ = gates(b, a, a_log.double(), dt_bias.double())
    return float((decay.double() - exact).abs().nan_to_num(torch.inf).max())


def test_a_ratio_of_exponentials_is_caught_by_real_decays(tmp_path: Path) -> None:
    """Slow decays, as random tests draw them, hide it; rates up to 16 and inputs of a few units do not."""
    sizes = {n: v for n, v in widths(TINY).items() if n not in ("V_WIDTH", "CONV_DIM")}
    right = compile(planted(delta_net, tmp_path, entry=GATES).gates, constants=sizes)
    wrong = compile(planted(delta_net, tmp_path, RATIO, entry=GATES).gates, constants=sizes)
    slow = torch.full((1, TINY.v_heads), -4.0), torch.full((1, TINY.v_heads), -4.0)
    assert decay_error(right, *slow, spread=0.1) <= 3e-7
    assert decay_error(wrong, *slow, spread=0.1) <= 1e-5
    real = make(Layout((1,), (1,)))
    assert decay_error(right, real["a_log"], real["dt_bias"], spread=3.0) <= 3e-7
    assert decay_error(wrong, real["a_log"], real["dt_bias"], spread=3.0) == float("inf")
