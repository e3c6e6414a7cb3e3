"""Inputs on which the comparison of a decode step is to notice every fault in it.

    pypto-models power models/qwen3_14b/decode_layer.py --config tiny

One set of inputs cannot do: which sequence has several runs, which row is dead and which norm sees values as
small as its epsilon exclude each other.  Each set below is there for faults that the others let pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden import Comparator, on_rows, ratio_allclose
from golden.power import Case, Check
from models.qwen3_14b import harness, reference
from models.qwen3_14b.config import Config
from models.qwen3_14b.inputs import Dead, make_inputs
from pypto_models.compile import DEFAULT_PLATFORM

QUIET = 1e-3
"""Scale at which the mean square of a row is about the epsilon of its norm."""

Change = Callable[[dict[str, Tensor], Config], None]


@dataclass(frozen=True)
class Step:
    """Inputs of one step: tokens of each sequence, dead rows, and what else is done to the tensors.

    Where every context is one page the golden can round the softmax weights as the kernel does.  The two then
    round at the same places and must agree bit for bit, but for a few elements whose sums are taken in
    another order, and what follows from these.  ``differing`` is the part that may differ; None asks for no
    such agreement.
    """

    lengths: tuple[int, ...]
    dead: dict[int, Dead] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    differing: float | None = None


def quiet(tensors: dict[str, Tensor], config: Config) -> None:
    """Residual and branches so small that every epsilon counts, where a sequence holds one token only."""
    for name in ("hidden", "w_qkv", "w_down"):
        tensors[name] *= QUIET


def first_slot(tensors: dict[str, Tensor], config: Config) -> None:
    """Number the pages so that a live row writes slot 0: the least that is no mark of a dead row."""
    slots, table = tensors["slot_mapping"], tensors["block_table"]
    row = int(((slots >= 0) & (slots % config.page == 0)).nonzero()[0])
    page = int(slots[row]) // config.page
    for cache in ("k_cache", "v_cache"):
        pages = tensors[cache].view(-1, config.kv_heads * config.page * config.head_dim)
        pages[[0, page]] = pages[[page, 0]]
    zero, other = table == 0, table == page
    table[zero], table[other] = page, 0
    at = slots // config.page
    slots[(slots >= 0) & (at == 0)] += page * config.page
    slots[at == page] -= page * config.page


def rowless(tensors: dict[str, Tensor], config: Config) -> None:
    """Only sequences 1, 3 and 4 of six have a row, so that rows and sequences are numbered differently."""
    keep = [1, 3, 4]
    tensors["cu_q"] = torch.tensor([0, 0, 1, 1, 2, 3, 3], dtype=torch.int32)
    for name in ("hidden", "positions", "slot_mapping", *reference.OUTPUTS):
        if name in tensors:
            tensors[name] = tensors[name][keep].contiguous()


STEPS = (
    # dead sequences with pages lie before one of two runs: to count them moves its runs
    Step((17, 16, 20, 128, 1, 33, 90), {1: "slot", 2: "ctx"}, (first_slot,)),
    # one sequence of several runs, its pages full or just begun
    Step((96,)),
    Step((97,)),
    # sequences without a row between those with one, and at the end
    Step((40, 128, 64, 17, 33, 90), {}, (rowless,)),
    Step((100, 30, 64, 2), {0: "all", 3: "cu_q"}),
    # one page each: all roundings at the same places
    Step((9, 16, 5, 12, 3, 14), differing=0.1),
    # one token each: no attention to hide behind
    Step((1,) * 5, differing=0.005),
    Step((1, 1, 1), {}, (quiet,)),
    Step((2, 7, 20), {}, (quiet,)),
)

_FIRST_PAGE = "the first page multiplies it by exp(LOWEST - m), which is 0"
_SHARING = "the length of a run decides only how the work is shared"
_ALIVE = "where the sequence was found alive before, this test cannot come out differently"

REASONS = {
    "total = pl.full([GROUP_ROWS, 1], pl.FP32, 0.0)": _FIRST_PAGE,
    "acc = pl.full([GROUP_ROWS, HEAD_DIM], pl.FP32, 0.0)": _FIRST_PAGE,
    "run_pages = pages_per_run(slot_mapping, cu_q, ctx)": _SHARING,
    "pages = pages + pages_of(s, slot_mapping, cu_q, ctx)": _SHARING,
    "if pl.read(slot_mapping, [first]) < 0:": _ALIVE,
    "if first >= end:": _ALIVE,
    "k_heads = pl.slice(heads, [KV_ROWS, HEAD_DIM], [first, 0], valid_shape=[KV_HEADS, HEAD_DIM])": (
        "a row beyond the heads is computed on its own and never stored"
    ),
}
"""Why a fault on a source line can leave every result as it is; asked for only where no bit changes."""


def step_of(config: Config, seed: int) -> tuple[Step, dict[str, Tensor]]:
    """The inputs of one seed: those above, then random ones."""
    if seed < len(STEPS):
        step = STEPS[seed]
    else:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, config.max_seq + 1, rng.integers(1, 9)).tolist()
        step = Step(tuple(lengths), {0: "slot"} if len(lengths) > 2 and seed % 2 else {})
    tensors = make_inputs(config, len(step.lengths), step.lengths, seed=seed, dead_rows=step.dead)
    for change in step.changes:
        change(tensors, config)
    return step, tensors


def check(config: Config, seed: int) -> Check:
    """The comparison of one seed."""
    step, tensors = step_of(config, seed)
    how: dict[str, Any] = harness.comparison(config, tensors)
    if step.differing is not None and config.dtype == "bf16":
        how["golden_fn"] = partial(reference.golden, config=config, round_weights=True)
        rows = harness.written_rows(config, tensors)
        how["compare_fn"] = _agreeing(how["compare_fn"], rows, step.differing)
    return Check(**how)


def _agreeing(names: Iterable[str], rows: Tensor, differing: float) -> dict[str, Comparator]:
    """All but a part ``differing`` of the elements equal; of the caches, of the ``rows`` that are written."""
    equal = ratio_allclose(0.0, 0.0, differing, max_outlier=2.0**-6)
    return {name: on_rows(rows, equal) if name in harness.CACHES else equal for name in names}


def power_cases(config: str) -> list[Case]:
    """The step without LM head in fp32 and in bf16."""
    return [
        Case(
            name=dtype,
            kernel=harness.kernel_for("skip"),
            check=partial(check, sized),
            options=harness.compile_options(sized, DEFAULT_PLATFORM, "skip"),
            runs=len(STEPS),
            reasons=REASONS,
        )
        for dtype in ("fp32", "bf16")
        for sized in (replace(harness.CONFIGS[config], dtype=dtype),)
    ]
