"""No host-side state in a step: replays with other live rows, and what is caught if there is some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import pypto_models.language as pl
from models.qwen3_5_27b.config import TINY
from models.qwen3_5_27b.constants import constants
from models.qwen3_5_27b.full_layer import full_decode_layer
from models.qwen3_5_27b.gdn_layer import gdn_decode_layer
from models.qwen3_5_27b.inputs import make_inputs
from models.qwen3_14b.config import TINY as DENSE
from models.qwen3_14b.constants import constants as dense_constants
from models.qwen3_14b.decode_layer import decode_layer
from models.qwen3_14b.inputs import make_inputs as dense_inputs
from pypto_models import compile
from pypto_models.compile import Program
from tests.safety.replay import Arguments, first_difference

N = pl.dynamic("N")

# Batch, tokens of each sequence, and the sequences that are dead in one of the ways in which one can be
STEPS: list[tuple[int, str | int, dict[int, str]]] = [
    (7, "ragged", {}),
    (7, "ragged", {1: "slot", 4: "ctx", 6: "cu_q"}),
    (3, 4, {}),
    (7, 1, dict.fromkeys(range(7), "slot")),
    (7, "ragged", {}),
]
SPAN = 4

LAYERS: dict[str, tuple[pl.Kernel, dict[str, Any], Callable[..., Arguments]]] = {
    "dense": (
        decode_layer,
        dense_constants(DENSE, "a2a3", rows=7 * SPAN, span=SPAN),
        partial(dense_inputs, DENSE),
    ),
    "full": (
        full_decode_layer,
        constants(TINY, "a2a3", layer="full", rows=7 * SPAN, span=SPAN),
        partial(make_inputs, TINY, layer="full"),
    ),
    "gdn": (
        gdn_decode_layer,
        constants(TINY, "a2a3", layer="gdn", rows=7 * SPAN, span=SPAN),
        partial(make_inputs, TINY, layer="gdn"),
    ),
}


RANDOM = pytest.param({"schedule": "random", "seed": 5}, marks=pytest.mark.slow)


@pytest.mark.parametrize("options", [{}, RANDOM], ids=["program", "random"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_replay_with_other_live_rows_gives_what_a_fresh_program_gives(
    layer: str, options: dict[str, Any]
) -> None:
    kernel, values, inputs = LAYERS[layer]
    launches = [
        partial(inputs, batch, tokens=tokens, span=SPAN, seed=n, dead_rows=dead)
        for n, (batch, tokens, dead) in enumerate(STEPS)
    ]
    make = partial(compile, kernel, constants=values, backend_options=options)
    assert first_difference(make, launches) is None


# ------------------------------------------------------------------------------------------ planted
@pl.jit
def running_total(
    x: pl.Tensor[[N, 64], pl.FP32], live: pl.Tensor[[1], pl.INT32], y: pl.Out[pl.Tensor[[N, 64], pl.FP32]]
):
    total = pl.create_tensor([1, 64], pl.FP32, init_value=0.0)
    for i in pl.range(pl.tensor.dim(x, 0)):
        with pl.at(level=pl.Level.CORE_GROUP):
            row = pl.full([1, 64], pl.FP32, 0.0)
            if i < pl.cast(pl.read(live, [0]), pl.INDEX):
                row = pl.add(pl.slice(total, [1, 64], [0, 0]), pl.slice(x, [1, 64], [i, 0]))
                pl.assemble(total, row, [0, 0])
            pl.assemble(y, row, [i, 0])


def rows(live: int) -> Callable[[], Arguments]:
    def make() -> Arguments:
        x = torch.randn(6, 64, generator=torch.Generator().manual_seed(live))
        return {"x": x, "live": torch.tensor([live], dtype=torch.int32), "y": torch.empty(6, 64)}

    return make


LAUNCHES = [rows(n) for n in (6, 2, 0, 4)]


class FrozenBranch:
    """Reads on the host how many rows are live, at its first launch, as a captured Python branch would."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.live: Tensor | None = None

    def __call__(self, args: Mapping[str, Any], progress: Any = None) -> Any:
        if self.live is None:
            self.live = args["live"].clone()
        return self.inner({**args, "live": self.live}, progress)


class KeptWorkspace:
    """Zeroes its workspace when it is made, as host code outside of the graph would."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.total = torch.zeros(1, 64)

    def __call__(self, args: Mapping[str, Any], progress: Any = None) -> Any:
        returned = self.inner(args, progress)
        args["y"].add_(self.total)
        self.total.copy_(args["y"][:1])
        return returned


class UntouchedRows:
    """Leaves the rows that are not live to whoever wrote the buffer before."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.before = torch.zeros(6, 64)

    def __call__(self, args: Mapping[str, Any], progress: Any = None) -> Any:
        returned = self.inner(args, progress)
        dead = slice(int(args["live"]), None)
        args["y"][dead] = self.before[dead]
        self.before.copy_(args["y"])
        return returned


def test_a_kernel_that_resets_its_own_counter_can_be_replayed() -> None:
    assert first_difference(lambda: compile(running_total), LAUNCHES) is None


@pytest.mark.parametrize("wrapper", [FrozenBranch, KeptWorkspace, UntouchedRows])
def test_an_executable_with_host_state_is_caught(wrapper: Callable[[Any], Any]) -> None:
    def planted() -> Program:
        program = compile(running_total)
        return replace(program, executable=wrapper(program.executable))

    found = first_difference(planted, LAUNCHES)
    assert found == "launch 1: y is not what a fresh program gives"
