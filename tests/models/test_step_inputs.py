"""The parts that every model's inputs are made of: rows per sequence, pages, dead rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from models.common import step_inputs
from models.common.equations import live_rows
from models.common.step_inputs import MAX_ROWS, MAX_SPAN, row_counts
from models.qwen3_5_27b import config as hybrid
from models.qwen3_5_27b.inputs import make_inputs as hybrid_inputs
from models.qwen3_14b.config import TINY
from models.qwen3_14b.inputs import make_inputs


def test_ragged_counts_have_a_full_and_an_empty_sequence() -> None:
    for seed in range(20):
        counts, span = row_counts(5, "ragged", None, seed)
        assert len(counts) == 5 and (max(counts), min(counts), span) == (MAX_SPAN, 0, MAX_SPAN)
        counts, span = row_counts(5, "ragged", 3, seed)
        assert (max(counts), min(counts), span) == (3, 0, 3)
    assert row_counts(1, "ragged", None, 0) == ([MAX_SPAN], MAX_SPAN)
    assert row_counts(3, 2, None, 0) == ([2, 2, 2], 2)
    assert row_counts(3, [0, 5, 1], None, 0) == ([0, 5, 1], 5)
    assert row_counts(3, [0, 5, 1], 8, 0) == ([0, 5, 1], 8)


def test_several_rows_are_the_last_tokens_of_their_sequences() -> None:
    counts, lengths = [3, 0, 1, 8], [17, 16, 1, 33]
    tensors = make_inputs(TINY, 4, lengths, tokens=counts, seed=1)
    assert tensors["cu_q"].tolist() == [0, 3, 3, 4, 12]
    assert tensors["ctx"].tolist() == lengths
    assert tensors["positions"].tolist() == [14, 15, 16, 0, *range(25, 33)]
    page, table = TINY.page, tensors["block_table"]
    holds = torch.zeros(int(table.max()) + 1 + step_inputs.SPARE_PAGES, page, dtype=torch.bool)
    slots = []
    for s, (length, n) in enumerate(zip(lengths, counts, strict=True)):
        for i in range(length):
            if i < length - n:
                holds[int(table[s, i // page]), i % page] = True
            else:
                slots.append(int(table[s, i // page]) * page + i % page)
    assert tensors["slot_mapping"].tolist() == slots
    for name in ("k_cache", "v_cache"):
        pool = tensors[name].view(-1, TINY.kv_heads, page, TINY.head_dim)
        assert torch.equal(~pool.isnan(), holds[: len(pool), None, :, None].expand_as(pool)), name


def test_drawn_lengths_leave_room_for_the_rows() -> None:
    for seed in range(20):
        counts, _ = row_counts(12, "ragged", None, seed)
        lengths = step_inputs.context_lengths(TINY, 12, "ragged", seed, counts)
        assert all(rows <= n <= TINY.max_seq for rows, n in zip(counts, lengths, strict=True))


def test_marks_of_dead_rows() -> None:
    """Each mark alone says that rows are dead; the rest stays as in a live sequence."""
    layouts: dict[str, Callable[..., dict[str, torch.Tensor]]] = {
        "full": lambda **how: make_inputs(TINY, 5, 40, tokens=[4, 2, 3, 2, 1], seed=2, **how),
        "gdn": lambda **how: hybrid_inputs(
            hybrid.TINY, 5, 40, layer="gdn", tokens=[4, 2, 3, 2, 1], seed=2, **how
        ),
    }
    for kind, make in layouts.items():
        alive = make()
        dead = make(dead_rows={0: "slot", 1: "ctx", 2: "tail", 3: "all", 4: "cu_q"}, padding=2)
        live = [6]  # the first of three rows of sequence 2
        assert [row.row for row in live_rows(dead, TINY)] == live, kind
        assert dead["cu_q"].tolist() == [0, 4, 6, 9, 11, 11]
        assert dead["ctx"].tolist() == [40, 0, 38, 0, 40]
        slots = alive["slot_mapping"].tolist()
        assert dead["slot_mapping"].tolist()[:12] == [-1] * 4 + slots[4:7] + [-1] * 4 + slots[11:]
        assert dead["hidden"].shape[0] == dead["next_hidden"].shape[0] == 14
        assert dead["hidden"].isnan().all(1).nonzero().flatten().tolist() == [
            row for row in range(14) if row not in live
        ]
        gone = ("block_table",) if kind == "full" else ("state_slots", "conv_slots")
        for name in gone:
            assert torch.all(dead[name][3] == -1), name
            assert torch.equal(dead[name][[0, 1, 2, 4]], alive[name][[0, 1, 2, 4]]), name


def test_slots_of_padding_rows_hold_a_value() -> None:
    tensors = make_inputs(TINY, 3, [1, 20, 30], tokens=[1, 2, 1], padding=3)
    page = TINY.page
    for slot in tensors["slot_mapping"][4:].tolist():
        pool = tensors["k_cache"].view(-1, TINY.kv_heads, page, TINY.head_dim)
        assert not pool[slot // page, :, slot % page].isnan().any()
        assert slot not in tensors["slot_mapping"][:4].tolist()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"tokens": 9}, r"tokens \[9, 9\] must lie in 0\.\.8"),
        ({"tokens": [1, -1]}, r"tokens \[1, -1\] must lie in 0\.\.8"),
        ({"tokens": 3, "span": 2}, r"tokens \[3, 3\] must lie in 0\.\.2, the span"),
        ({"tokens": [1]}, r"tokens lists 1 counts for a batch of 2"),
        ({"tokens": "many"}, r"tokens is 'many'; give 'ragged'"),
        ({"tokens": 0}, r"tokens \[0, 0\] make 0 rows; a step has 1 to 128"),
        ({"span": 9}, r"span is 9; it must lie in 1\.\.8"),
        ({"context": 3, "tokens": 4}, r"lengths \[3, 3\] must include this step's \[4, 4\] tokens"),
        ({"padding": -1}, r"padding is -1; it must be 0 or more"),
        ({"padding": MAX_ROWS}, r"padding is 128; it must be 0 or more and give at most 128 rows"),
        ({"dead_rows": {0: "tail"}}, r"dead_rows\[0\] = 'tail' needs 2 rows or more; there are 1"),
        ({"layer": "gdn"}, r"layer is 'gdn'; every layer of Qwen3-14B is 'full'"),
    ],
)
def test_bad_arguments_are_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_inputs(TINY, 2, **how)
