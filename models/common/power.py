"""Inputs on which the comparison of a decode step is to notice every fault in it.

    pypto-models power models/qwen3_14b/decode_layer.py --config tiny

One set of inputs cannot do: which sequence has several runs, which row is dead and which norm sees values as
small as its epsilon exclude each other.  Each step below is there for faults that the others let pass.  The
models share them; a step that asks for nothing of a layer's own holds for every kind of layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden import Comparator, on_rows, ratio_allclose
from golden.power import Case, Check
from models.common.config import DecoderConfig
from models.common.harness import LayerKind
from models.common.step_inputs import Dead
from pypto_models.compile import DEFAULT_PLATFORM

QUIET = 1e-3
"""Scale at which the mean square of a row is about the epsilon of its norm."""

SPAN = 4
"""Most rows of a sequence in these steps."""

Change = Callable[[dict[str, Tensor], Any], None]


@dataclass(frozen=True)
class Step:
    """Inputs of one step: context and rows of each sequence, dead ones, rows of nobody, and changes.

    Where every context is one page the golden rounds the softmax weights as the kernel does.  The two then
    round at the same places and must agree bit for bit, but for a few elements whose sums are taken in
    another order, and what follows from these.  ``differing`` is the part that may differ; None asks for no
    such agreement.
    """

    lengths: tuple[int, ...]
    tokens: tuple[int, ...] | int = 1
    dead: Mapping[int, Dead] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    padding: int = 0
    differing: float | None = None


# ------------------------------------------------------------------------------------------------ changes
_SOURCES = ("hidden", "w_qkv", "w_in", "w_down", "conv_state")


def quiet(tensors: dict[str, Tensor], config: Any) -> None:
    """Residual and branches so small that every epsilon counts, where a sequence holds few tokens only."""
    for name in _SOURCES:
        if name in tensors:
            tensors[name] *= QUIET


def first_slot(tensors: dict[str, Tensor], config: Any) -> None:
    """Number the pages so that a live row writes slot 0: the least that is no mark of a dead row."""
    if "block_table" not in tensors:
        return
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


def hole(tensors: dict[str, Tensor], config: Any) -> None:
    """The second row of the last sequence of three or more loses its slot; those behind it are dead too."""
    cu_q = tensors["cu_q"].tolist()
    seq = [s for s in range(len(cu_q) - 1) if cu_q[s + 1] - cu_q[s] > 2][-1]
    first, end = cu_q[seq], cu_q[seq + 1]
    tensors["slot_mapping"][first + 1] = -1
    tensors["hidden"][first + 1 : end] = torch.nan
    tensors["ctx"][seq] -= end - first - 1


STEPS = (
    # dead sequences with pages lie before one of two runs: to count them moves its runs
    Step((17, 16, 20, 128, 1, 33, 90), (2, 1, 2, 4, 1, 3, 1), {2: "slot", 3: "ctx", 4: "ctx"}, (first_slot,)),
    # several runs, their pages full or just begun, by cached tokens alone or by all, and others before them
    Step((82,)),
    Step((49, 96)),
    Step((48, 97), (1, 3)),
    # sequences without a row between those with one, and at the end
    Step((40, 128, 64, 17, 33, 90), (0, 1, 0, 2, 4, 0)),
    Step((100, 30, 64, 2), dead={0: "all", 3: "cu_q"}),
    # rows without a slot behind live ones, rows with a slot behind such a row, and rows that nobody owns
    Step((100, 50, 64, 18), (4, 3, 2, 4), {0: "tail"}, (hole,), padding=2),
    # one page each: all roundings at the same places
    Step((9, 16, 5, 12, 3, 14), (1, 4, 2, 1, 3, 1), differing=0.1),
    # nothing but the rows of this step, and nothing but one: no context to hide behind
    Step((4, 2, 3), (4, 2, 3), differing=0.05),
    Step((1,) * 5, differing=0.005),
    Step((1, 1, 1), changes=(quiet,)),
    Step((2, 7, 20), (2, 3, 1), changes=(quiet,)),
)


def single(step: Step) -> Step:
    """The step with at most one row per sequence."""
    tokens = step.tokens if isinstance(step.tokens, int) else tuple(min(1, n) for n in step.tokens)
    return replace(
        step,
        tokens=1 if isinstance(tokens, int) else tokens,
        dead={seq: mark for seq, mark in step.dead.items() if mark != "tail"},
        changes=tuple(change for change in step.changes if change is not hole),
    )


# ------------------------------------------------------------------------------------------------- checks
@dataclass(frozen=True)
class Power:
    """A layer kind, compiled for up to ``span`` rows of a sequence, with the steps that it is measured on.

    ``reasons``: why a fault on a source line can leave every result as it is; asked for only where no bit
    changes.  ``constants``: tiles small enough for several of them at this size.
    """

    kind: LayerKind
    reasons: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    span: int = SPAN
    variant: str = ""

    @property
    def steps(self) -> tuple[Step, ...]:
        """One for each set of inputs."""
        return STEPS if self.span > 1 else tuple(map(single, STEPS))

    def step_of(self, config: DecoderConfig, seed: int) -> tuple[Step, dict[str, Tensor]]:
        """The inputs of one seed: those above, then random ones."""
        step = self.steps[seed] if seed < len(self.steps) else _random_step(config, seed, self.span)
        tensors = self.kind.make_inputs(
            config,
            len(step.lengths),
            step.lengths,
            tokens=step.tokens if isinstance(step.tokens, int) else list(step.tokens),
            span=self.span,
            seed=seed,
            lm_head="skip",
            dead_rows=step.dead,
            padding=step.padding,
        )
        for change in step.changes:
            change(tensors, config)
        return step, tensors

    def check(self, config: DecoderConfig, seed: int) -> Check:
        """The comparison of one seed."""
        step, tensors = self.step_of(config, seed)
        how: dict[str, Any] = self.kind.comparison(config, tensors)
        if step.differing is not None and config.dtype == "bf16":
            how["golden_fn"] = partial(self.kind.golden, config=config, round_weights=True)
            how["compare_fn"] = self._agreeing(how["compare_fn"], config, tensors, step.differing)
        return Check(**how)

    def _agreeing(
        self, names: Iterable[str], config: DecoderConfig, tensors: Mapping[str, Tensor], differing: float
    ) -> dict[str, Comparator]:
        """All but a part ``differing`` of the elements equal; of caches and states, of the rows computed."""
        equal = ratio_allclose(0.0, 0.0, differing, max_outlier=2.0**-6)
        near = ratio_allclose(1e-5, 2.0**-8, differing, max_outlier=2.0**-6)  # fp32 sums of rounded values
        found: dict[str, Comparator] = {}
        for name in names:
            rule = near if tensors[name].dtype is torch.float32 else equal
            rows_of = self.kind.written.get(name)
            found[name] = rule if rows_of is None else on_rows(rows_of(tensors, config), rule)
        return found

    def options(self, config: DecoderConfig) -> dict[str, Any]:
        """What the step is compiled with: all steps above, and the random ones, fit."""
        options = self.kind.compile_options(config, DEFAULT_PLATFORM, "skip", span=self.span)
        return {"constants": options["constants"] | self.constants}

    def cases(self, config: str) -> list[Case]:
        """The step without LM head in fp32 and in bf16."""
        sizes = [replace(self.kind.configs[config], dtype=dtype) for dtype in ("fp32", "bf16")]
        return [
            Case(
                name=sized.dtype,
                kernel=self.kind.kernel,
                check=partial(self.check, sized),
                options=self.options(sized),
                runs=len(self.steps),
                reasons=self.reasons,
                variant=self.variant,
            )
            for sized in sizes
        ]


def _random_step(config: DecoderConfig, seed: int, span: int) -> Step:
    """Up to 8 sequences and 16 rows; one context in four has no past, and one sequence in four is dead."""
    rng = np.random.default_rng(seed)
    batch = int(rng.integers(1, 9))
    tokens = [int(n) for n in rng.integers(0, 1 + min(span, 16 // batch), batch)]
    tokens[0] = max(1, tokens[0])
    lengths = [int(rng.integers(max(1, n), config.max_seq + 1)) for n in tokens]
    lengths = [max(1, n) if rng.random() < 0.25 else m for n, m in zip(tokens, lengths, strict=True)]
    marks: tuple[Dead, ...] = ("slot", "ctx", "all")
    dead = {s: marks[int(rng.integers(3))] for s in range(1, batch) if rng.random() < 0.25}
    return Step(tuple(lengths), tuple(tokens), dead)


# ------------------------------------------------------------------------------------------------ reasons
_FIRST = "the first page, or run, multiplies it by exp(LOWEST - m), which is 0"
_SHARING = "the length of a share decides only how the work is shared"
_ALIVE = "where the sequence was found alive before, this test cannot come out differently"
_SPARE = "a row beyond the heads is computed on its own and never stored"
_UNREAD = "q, K and V that RoPE leaves on a dead row are read by nobody"
_BEYOND = "only a dead row's position lies beyond the table, or at its end"
_NEXT = "what begins with a share is the run behind the last of the one before"
_SPAN = "a sequence has at most SPAN rows, and where SPAN exceeds 1 every run is merged"

ROW_REASONS = {
    "if first <= t and t < end:": "the rows of the sequence are asked for next",
}
"""Why a fault on a source line that decides which rows are live can leave every result as it is."""

ATTENTION_REASONS = {
    **ROW_REASONS,
    "tiles = (rows + GREEDY_ROWS - 1) // GREEDY_ROWS": "a tile beyond the rows stores nothing",
    "if pl.read(ctx, [s]) > 0:": _ALIVE,
    "if first < end and slot >= 0:": _ALIVE,
    "slot = pl.read(slot_mapping, [pl.min(first, pl.tensor.dim(slot_mapping, 0) - 1)])": _ALIVE,
    "share_pages = pages_per_share(slot_mapping, cu_q, ctx)": _SHARING,
    "pages = pages + pages_of(s, slot_mapping, cu_q, ctx)": _SHARING,
    "count = pl.min(rows_of(s, slot_mapping, cu_q, ctx), SPAN)": _SPAN,
    "live = live + 1": _UNREAD,
    "if pl.read(slot_mapping, [t]) >= 0 and first + live == t:": _UNREAD,
    "if t < pl.cast(pl.read(cu_q, [owner]), pl.INDEX) + rows_of(owner, slot_mapping, cu_q, ctx):": _UNREAD,
    "if page <= i * share_pages:": _NEXT,
    "if page <= (i + 1) * share_pages:": _NEXT,
    "known = pl.min(pl.cast(pl.read(positions, [t]), pl.INDEX), pl.tensor.dim(rope_cos, 0) - 1)": _BEYOND,
    "position = pl.max(known, 0)": _BEYOND,
    "if j < count:": "a sequence with a run has a row",
    "return pl.mul(pl.row_expand_sub(columns, limit), -STEEP)": "any slope far above the scores hides",
    "elif j < SPAN and (SPAN > 1 or runs > 1 or MERGE_FROM == 1):": _SPAN,
    "step = pl.minimum(pl.fillpad(earlier, pad_value=pl.PadValue.max), 1.0)": (
        "behind the last of SPAN rows there is no token to be hidden from it"
    ),
    "total = pl.full([GROUP_ROWS, 1], pl.FP32, 0.0)": _FIRST,
    "acc = pl.full([GROUP_ROWS, HEAD_DIM], pl.FP32, 0.0)": _FIRST,
    "total = pl.full([height, 1], pl.FP32, 0.0)": _FIRST,
    "acc = pl.full([height, columns], pl.FP32, 0.0)": _FIRST,
    "acc = pl.full([height, HEAD_DIM], pl.FP32, 0.0)": _FIRST,
    "q_heads = pl.slice(heads, [height, HEAD_DIM], [q_first, 0], valid_shape=[GROUP, HEAD_DIM])": _SPARE,
    "k_head = pl.slice(heads, [8, HEAD_DIM], [first + Q_HEADS + h, 0], valid_shape=[1, HEAD_DIM])": _SPARE,
    "end = pl.min((run_share + 1) * share_pages - run_page, (tokens + PAGE - 1) // PAGE)": (
        "the number of tokens bounds the last page as well"
    ),
    "row = (page * KV_HEADS + head) * PAGE + p % per_page * KV_TILE": "at this size a page is one tile",
}
"""Why a fault on a source line of a full-attention layer can leave every result as it is."""

_ONLY = "the only token of a step has the weight 1 among its own"

ONE_TOKEN_REASONS = ATTENTION_REASONS | dict.fromkeys(
    (
        "for t in pl.range(first, end):",
        "live = live + 1",
        "pl.write(run_table, [place, 5], pl.cast(count, pl.INT32))",
        "first = pl.cast(pl.read(cu_q, [s]), pl.INDEX)",
        "if pl.read(slot_mapping, [t]) >= 0 and first + live == t:",
        "if t < pl.cast(pl.read(cu_q, [owner]), pl.INDEX) + rows_of(owner, slot_mapping, cu_q, ctx):",
        "for s in pl.range(batch):",
        "j = i - first",
        "pl.write(row_table, [i, 2], pl.cast(j, pl.INT32))",
        "row = head // GROUP * GROUP_ROWS + j * GROUP + head % GROUP",
        "row = ((before + n) * KV_HEADS + head) * GROUP_ROWS + j * GROUP",
    ),
    "a sequence has one row at most",
)
ONE_TOKEN_REASONS |= {
    "found_m = pl.slice(part_m, [height, 1], [row, 0], valid_shape=[live, 1])": _SPARE,
    "found_sum = pl.slice(part_sum, [height, 1], [row, 0], valid_shape=[live, 1])": _SPARE,
    "found_acc = pl.slice(part_acc, [height, HEAD_DIM], [row, 0], valid_shape=[live, HEAD_DIM])": _SPARE,
    "weights = pl.exp(pl.row_expand_sub(scores, new_m))": _ONLY,
    'part = pl.matmul(pl.cast(weights, DTYPE, mode="rint"), values, out_dtype=pl.FP32)': _ONLY,
}
"""The same where SPAN is 1."""
