"""How the references are compared with transformers, whatever the model."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor

from models.common import equations as eq
from models.common.config import DecoderConfig
from models.common.equations import LiveRow, Precision
from tests.models.oracle import OracleRun

Tensors = dict[str, Tensor]

linear, attend = eq.linear, eq.attend


def evaluate(reference: ModuleType, tensors: Tensors, config: DecoderConfig, layer: str) -> Tensors:
    """The mutated tensors after `golden`; `tensors` is left unchanged."""
    names = reference.mutated(layer)
    after = {name: t.clone() if name in names else t for name, t in tensors.items()}
    reference.golden(after, config, layer=layer)
    return {name: after[name] for name in names if name in after}


def max_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference; infinite, if what is NaN (what nothing was stored in) is not in the same places."""
    assert actual.shape == expected.shape
    if not torch.equal(actual.isnan(), expected.isnan()):
        return float("inf")
    return float((actual.double() - expected.double()).nan_to_num(0.0).abs().max())


def errors(actual: Tensors, expected: Tensors) -> dict[str, float]:
    """The largest error of every tensor."""
    assert actual.keys() == expected.keys()
    return {name: max_error(actual[name], value) for name, value in expected.items()}


def rms(x: Tensor, dim: int | None = None) -> Tensor:
    return x.double().square().mean(dim).sqrt()


# ------------------------------------------------------------------------------------------ chains of steps
def chain(run: OracleRun, reference: ModuleType) -> float:
    """Largest error of logits, caches and states when all layers and steps run on our own earlier results."""
    config, worst = run.config, 0.0
    memory = [{name: t.clone() for name, t in held.items()} for held in run.caches[0]]
    for step in range(run.steps):
        x = run.hidden[step][0]
        for layer, kind in enumerate(config.kinds):
            tensors = {**run.tensors(step, layer), **memory[layer], "hidden": x}
            reference.golden(tensors, config, layer=kind)
            x = tensors["next_hidden"]
        worst = max(worst, max_error(tensors["logits"], run.logits[step][-1]))
    for layer, held in enumerate(memory):
        worst = max(worst, *errors(held, run.caches[run.steps][layer]).values())
    return worst


def speculate(
    run: OracleRun, reference: ModuleType, plan: Sequence[Sequence[tuple[int, int]]], span: int
) -> float:
    """Largest error of logits and states when steps try tokens that turn out to be wrong.

    A step of the `plan` says for every sequence how many of the run's next tokens it takes, and how many
    wrong ones behind them. The next step goes on behind the right ones: a shorter ctx, and `kept`. All
    layers and steps run on our own earlier results; what the right tokens give must be what transformers
    gives, which never saw the wrong ones.
    """
    config, batch, worst = run.config, len(run.lens), 0.0
    memory = [run.memory(0, layer, None, span) for layer in range(config.layers)]
    states, convs = run.slots(span)
    done, kept = [0] * batch, [1] * batch
    for number, wanted in enumerate(plan):
        counts = [right + wrong for right, wrong in wanted]
        tokens = [(s, j) for s, n in enumerate(counts) for j in range(n)]
        is_right = torch.tensor([j < wanted[s][0] for s, j in tokens])
        x = torch.randn(len(tokens), config.hidden, generator=torch.Generator().manual_seed(number))
        for row, (s, j) in enumerate(tokens):
            if is_right[row]:
                x[row] = run.hidden[done[s] + j][0][s]
        right = [(s, j) for s, j in tokens if j < wanted[s][0]]
        for layer, kind in enumerate(config.kinds):
            tensors = {
                "hidden": x,
                **run.indices(done, counts),
                **run.shared,
                **run.weights[layer],
                **memory[layer],
                **run.outputs(len(tokens)),
                "state_slots": states,
                "conv_slots": convs,
                "kept": torch.tensor(kept, dtype=torch.int32),
            }
            reference.golden(tensors, config, layer=kind)
            x = tensors["next_hidden"]
        if right:
            expected = torch.stack([run.logits[done[s] + j][-1][s] for s, j in right])
            worst = max(worst, max_error(tensors["logits"][is_right], expected))
        done = [before + right for before, (right, _) in zip(done, wanted, strict=True)]
        kept = [right or before for before, (right, _) in zip(kept, wanted, strict=True)]
    for layer, kind in enumerate(config.kinds):
        if kind == "gdn":
            pool = memory[layer]["state"].view(-1, *run.held[0][layer][0]["state"].shape)
            for s in range(batch):
                held = run.held[done[s]][layer][s]["state"]
                worst = max(worst, max_error(pool[int(states[s, kept[s] - 1])], held))
    return worst


# ---------------------------------------------------------------------------------- transformers' roundings
MAY_MOVE = 0.02
"""Part of the results that may differ from transformers' by a bit, given its order of sums.

None does, if a row times a matrix gives the same bits however the matrix is cut. On a CPU whose bf16
kernels depend on the shape, one flipped bit in an intermediate value moves some of what follows from it.
"""


def moved(actual: Tensor, expected: Tensor) -> float:
    """Part of the elements that differ."""
    return float((actual != expected).double().mean())


def assert_rounded_alike(
    run: OracleRun, reference: ModuleType, layer: int, step: int, patch: pytest.MonkeyPatch
) -> None:
    """In bf16, with transformers' order of sums and its eager attention, results agree bit for bit."""
    patch.setattr(eq, "linear", linear_by_row)
    patch.setattr(eq, "attend", eager_attend)
    before = run.memory(step, layer)
    actual = evaluate(reference, run.tensors(step, layer), run.config, run.config.kinds[layer])
    for name, expected in run.expected(step, layer).items():
        if name == "state":  # fp32: no rounding that a last bit could flip
            assert max_error(actual[name], expected) <= 1e-6, step
            continue
        new = ~expected.isnan()
        if name.endswith("_cache"):
            new &= before[name].isnan()
        assert moved(actual[name][new], expected[new]) <= MAY_MOVE, (name, step)
        assert max_error(actual[name], expected) <= 2**-5, (name, step)


def is_bf16(x: Tensor) -> bool:
    return torch.equal(x, x.bfloat16().to(x.dtype))


def linear_by_row(x: Tensor, weight: Tensor, p: Precision) -> Tensor:
    """One bf16 GEMM per row, as transformers ran one sequence at a time: batching reorders the sums."""
    assert is_bf16(x)
    out = p.up(torch.cat([torch.nn.functional.linear(row, weight) for row in x.bfloat16().split(1)]))
    ours = linear(x, weight, p)
    assert is_bf16(ours)
    assert (ours != out).double().mean() < 0.05
    return out


def eager_attend(
    q: Tensor, rows: list[LiveRow], tensors: Tensors, config: DecoderConfig, p: Precision
) -> Tensor:
    """Attention as eager code has it: bf16 operands and results, so scores and probabilities are rounded."""
    assert is_bf16(q)
    assert is_bf16(attend(q, rows, tensors, config, p))
    out = torch.empty_like(q)
    for i, live in enumerate(rows):
        pages = tensors["block_table"][live.seq]
        keys, values = (
            eq.read_kv(tensors[name], pages, live.length, config).repeat_interleave(config.group, dim=0)
            for name in eq.CACHES
        )
        scores = q[i, :, None].bfloat16() @ keys.transpose(1, 2) * config.scale
        weights = torch.softmax(scores.float(), dim=-1).bfloat16()
        out[i] = p.up(weights @ values)[:, 0]
    return out
