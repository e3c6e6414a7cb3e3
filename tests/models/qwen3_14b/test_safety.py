"""The decode layer under the simulator's safety checks: any legal order, splits, races, hazards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.qwen3_14b import reference
from models.qwen3_14b.config import TINY
from models.qwen3_14b.constants import constants
from models.qwen3_14b.decode_layer import decode_layer_with_head
from models.qwen3_14b.inputs import make_inputs
from pypto_models import compile
from pypto_models.errors import UserError
from pypto_models.passes.grid import suspects

CONSTANTS = constants(TINY, "a2a3", head_rows=TINY.vocab_padded)


def step(**options: Any) -> dict[str, torch.Tensor]:
    """What one step leaves in the tensors that it may change."""
    program = compile(decode_layer_with_head, constants=CONSTANTS, backend_options=options)
    tensors = make_inputs(TINY, 7, "ragged", seed=3, lm_head="full", dead_rows={2: "slot"})
    program(*(tensors[p.name] for p in program.params))
    return {name: tensors[name] for name in reference.MUTATED}


@pytest.fixture(scope="module")
def in_order() -> dict[str, torch.Tensor]:
    return step()


@pytest.mark.parametrize("seed", range(5))
def test_any_legal_order_gives_the_same_bits(seed: int, in_order: dict[str, torch.Tensor]) -> None:
    shuffled = step(schedule="random", seed=seed)
    for name, tensor in in_order.items():
        assert torch.equal(tensor.view(torch.int16), shuffled[name].view(torch.int16)), name


def test_splits_change_no_bit(in_order: dict[str, torch.Tensor]) -> None:
    checked = step(check_splits=True)
    for name, tensor in in_order.items():
        assert torch.equal(tensor.view(torch.int16), checked[name].view(torch.int16)), name


@pytest.mark.parametrize("platform", ["a2a3sim", "a5sim", "gb10sim", "h200sim"])
def test_there_is_no_hazard(platform: str) -> None:
    program = compile(decode_layer_with_head, constants=CONSTANTS, platform=platform)
    assert program.compiled.graph.hazards == ()


def test_only_data_dependent_rows_are_left_to_the_watch() -> None:
    """Every other tensor is proved free of races for all blocks; an item finds its runs in a table."""
    graph = compile(decode_layer_with_head, constants=CONSTANTS).compiled.graph
    names = {t.name for tensors in suspects(graph).values() for t in tensors}
    assert names == {"k_cache", "v_cache", "attended", "run_table", "part_m", "part_sum", "part_acc"}


def test_two_rows_with_one_slot_are_a_race() -> None:
    tensors = make_inputs(TINY, 4, 40, seed=0, lm_head="full")
    tensors["slot_mapping"][3] = tensors["slot_mapping"][1]
    program = compile(decode_layer_with_head, constants=CONSTANTS)
    with pytest.raises(UserError, match=r"of region 'attention' touch k_cache\["):
        program(*(tensors[p.name] for p in program.params))


def test_the_same_in_fp32() -> None:
    config = replace(TINY, dtype="fp32")
    options = {"constants": constants(config, "a2a3", head_rows=config.vocab_padded)}
    results = []
    for schedule in ({}, {"schedule": "random", "seed": 1}):
        program = compile(decode_layer_with_head, backend_options=schedule, **options)
        tensors = make_inputs(config, 5, "ragged", seed=1, lm_head="full")
        program(*(tensors[p.name] for p in program.params))
        results.append(tensors["logits"])
    assert torch.equal(*results)


def test_a_second_row_of_a_sequence_is_refused_and_not_dropped() -> None:
    """A kernel compiled for one row of a sequence: more are an error that names the tensor."""
    tensors = make_inputs(TINY, 4, 40, seed=0, lm_head="full")
    for name in ("cu_q", "ctx", "block_table"):  # rows 1 and 2 become one sequence
        tensors[name] = torch.cat([tensors[name][:2], tensors[name][3:]])
    program = compile(decode_layer_with_head, constants=CONSTANTS)
    with pytest.raises(UserError, match=r"reads attended\[2, 0\], which was never written"):
        program(*(tensors[p.name] for p in program.params))
