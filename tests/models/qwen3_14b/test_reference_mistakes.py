"""Every mistake that is planted into the reference is a hundred times what the comparison lets pass."""

from __future__ import annotations

import pytest
import torch

from models.common import equations as eq
from models.qwen3_14b import reference
from tests.models.checks import errors, evaluate
from tests.models.mistakes import ATTENTION, BLOCK, Mistake, given, replacing
from tests.models.qwen3_14b.oracle import oracle

TOLERANCE = 1e-5
COUNTS = [3, 0, 1, 2]

MISTAKES: dict[str, Mistake] = {
    **ATTENTION,
    **BLOCK,
    "1 added to the norms' weights": replacing(
        eq, "rms_norm", lambda f: lambda x, weight, eps, p, *, gemma: f(x, weight, eps, p, gemma=True)
    ),
    "only half of the dims rotated": given(
        lambda t, c: {n: t[n][:, : c.head_dim // 4].contiguous() for n in ("rope_cos", "rope_sin")}
    ),
    "k and v swapped": given(
        lambda t, c: {"w_qkv": torch.cat([t["w_qkv"][: c.q_width], *t["w_qkv"][c.q_width :].chunk(2)[::-1]])}
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_a_hundred_tolerances(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest error of any tensor against transformers, with several rows per sequence, in fp32."""
    run = oracle("fp32", deltas=(40, -1, 25, -40))
    expected, tensors = run.expected(0, 0, COUNTS), run.tensors(0, 0, COUNTS)
    assert max(errors(evaluate(reference, tensors, run.config, "full"), expected).values()) <= TOLERANCE
    mistaken = MISTAKES[name](tensors, run.config, monkeypatch)
    worst = errors(evaluate(reference, mistaken, run.config, "full"), expected)
    assert max(worst.values()) >= 100 * TOLERANCE
