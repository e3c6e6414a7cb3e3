"""One CUDA graph of a step serves every number of live sequences: what is live is data on the device."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from golden.program import Program
from models.common.step_inputs import Dead

from .catalogue import ROWS, Layer, layers, step_entry
from .programs import Both, Replayed, program_of

MARKS: tuple[Dead, ...] = ("cu_q", "all")


def assert_serves_all(
    layer: Layer, graph: Replayed, eager: Program, lives: Sequence[int], device: str = "cuda"
) -> None:
    """Replays leave the bits of eager launches, the golden's values, and dead rows as they were.

    The step has ROWS sequences; those from ``live`` on are dead, by an empty range of rows as in a padded
    graph, or by every mark there is.  Contexts are the same in all, so that the pool of pages is.
    """
    contexts = layer.power.steps[-1].lengths
    for live in lives:
        for mark in MARKS:
            dead: dict[int, Dead] = dict.fromkeys(range(live, ROWS), mark)
            tensors = layer.kind.make_inputs(
                layer.config, ROWS, contexts, seed=live, lm_head="single", dead_rows=dead
            )
            result = layer.kind.check(layer.config, tensors, Both(graph, eager, device))
            assert result.status == "PASS", f"{live} live sequences, {mark}: {result.error}"
    assert graph.replays == len(lives) * len(MARKS)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n, layer in layers().items() if layer.config.dtype == "bf16"])
def test_a_graph_is_eager_at_every_live_batch(name: str) -> None:
    layer = layers()[name]
    program = program_of(f"layers/{name}/step", lambda on: step_entry(layer, on))
    assert_serves_all(layer, Replayed(program), program, range(1, ROWS + 1))
