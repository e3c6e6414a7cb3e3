"""The step of whole models: states after every step, roll-back, pages, programs, and the bytes it moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.common.config import VOCAB_GRANULE
from models.common.decoder import Decoder
from models.common.paging import PageTable
from models.common.programs import DecoderModel
from models.common.tiling import HEIGHTS
from models.qwen3_5_27b.config import FULL as FULL_27B
from models.qwen3_5_27b.constants import cli_arguments as arguments_27b
from models.qwen3_5_27b.step import MODEL as QWEN3_5
from models.qwen3_14b.config import FULL as FULL_14B
from models.qwen3_14b.constants import cli_arguments as arguments_14b
from models.qwen3_14b.step import MODEL as QWEN3
from pypto_models.check import check_file
from pypto_models.compile import compile
from pypto_models.cost import estimate
from pypto_models.cost.inputs import known_names
from pypto_models.errors import UserError
from pypto_models.language.parameters import constant_names
from pypto_models.target import load_target
from tests.models.whole import Whole, one_by_one, relative_error, saved

FP32 = 1e-5  # of the largest value of a tensor
BOTH = pytest.mark.parametrize("name", ["qwen3", "qwen3_5"])
PUBLISHED = {"qwen3": (QWEN3, FULL_14B, arguments_14b), "qwen3_5": (QWEN3_5, FULL_27B, arguments_27b)}
EVERY_KERNEL = pytest.mark.parametrize(
    ("name", "kernel"),
    [(name, kernel) for name, (model, _, _) in PUBLISHED.items() for kernel in model.kernels],
)

Load = Callable[[str], Whole]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return cache(lambda name: saved(name, "fp32", tmp_path_factory.mktemp(name)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiles are small: threads cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def text(seed: int, length: int) -> list[int]:
    return torch.randint(1000, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_holds(decoder: Decoder, s: int, expected: Sequence[dict[str, Tensor]]) -> None:
    """What sequence `s` holds in every layer, K and V of all its tokens included."""
    for layer, want in enumerate(expected):
        found = decoder.held(layer, s)
        assert found.keys() == want.keys()
        for part, values in want.items():
            assert found[part].shape == values.shape, part
            assert relative_error(found[part], values) <= FP32, (layer, s, part)


# ---------------------------------------------------------------------------------------------------- steps
COUNTS = ((3, 0, 8, 1), (1, 8, 1, 0), (1, 1, 1, 1), (0, 0, 5, 0), (8, 2, 0, 7), (1, 1, 1, 1), (4, 8, 8, 3))
"""Rows of four sequences in seven steps; some wait while others go on, one starts late."""


@BOTH
def test_logits_and_states_after_every_step_are_transformers(load: Load, name: str) -> None:
    whole = load(name)
    texts = [text(s, sum(step[s] for step in COUNTS)) for s in range(4)]
    runs = [one_by_one(whole, own) for own in texts]
    decoder = whole.decoder()
    done = [0] * 4
    for counts in COUNTS:
        step = decoder.decode_step([texts[s][done[s] : done[s] + n] for s, n in enumerate(counts)])
        for s, n in enumerate(counts):
            logits, held = runs[s]
            wanted = logits[done[s] : done[s] + n]
            assert step.logits[s].shape == wanted.shape
            if n:
                assert relative_error(step.logits[s], wanted) <= FP32
            assert step.next_tokens[s] == wanted.argmax(1).tolist()
            done[s] += n
            if done[s]:
                assert_holds(decoder, s, held[done[s]])
    assert decoder.lengths == tuple(map(len, texts))


@BOTH
def test_a_rejected_draft_leaves_no_trace(load: Load, name: str) -> None:
    """Verify steps with right and wrong drafts give what the right tokens alone give."""
    whole = load(name)
    right, wrong = [text(s, 30) for s in range(2)], [text(s + 50, 8) for s in range(2)]
    # per step: (rows that are right, rows in all) of both sequences
    steps = [
        ((8, 8), (3, 3)),
        ((1, 4), (2, 8)),
        ((3, 8), (0, 0)),
        ((1, 1), (1, 1)),
        ((2, 3), (5, 6)),
        ((1, 1), (8, 8)),
    ]
    decoder = whole.decoder(2)
    runs = [one_by_one(whole, own) for own in right]
    done = [0, 0]
    for step in steps:
        fed = [
            right[s][done[s] : done[s] + good] + wrong[s][: rows - good]
            for s, (good, rows) in enumerate(step)
        ]
        result = decoder.decode_step(fed)
        before = [decoder.held(layer, 0) for layer in range(whole.config.layers)]
        decoder.accept([good for good, _ in step])
        for s, (good, rows) in enumerate(step):
            if good:
                expected = runs[s][0][done[s] : done[s] + good]
                assert relative_error(result.logits[s][:good], expected) <= FP32
            done[s] += good
            assert decoder.lengths[s] == done[s]
            assert_holds(decoder, s, runs[s][1][done[s]])
            if s == 0 and good < rows:  # without the roll-back this would be seen
                kept = [decoder.held(layer, 0) for layer in range(whole.config.layers)]
                assert all(
                    a[part].shape != b[part].shape or relative_error(a[part], b[part]) > 1e-3
                    for a, b in zip(before, kept, strict=True)
                    for part in a
                )
    assert done == [16, 19]


def test_accept_can_be_called_again_with_fewer(load: Load) -> None:
    whole = load("qwen3_5")
    decoder = whole.decoder(1)
    tokens = text(1, 6)
    _, held = one_by_one(whole, tokens)
    decoder.decode_step([tokens])
    for count in (6, 4, 2):
        decoder.accept([count])
        assert_holds(decoder, 0, held[count])
    with pytest.raises(UserError, match=r"sequence 0 keeps 3 of 2 rows\n  fix: keep 1 to 2 of them"):
        decoder.accept([3])


@BOTH
def test_a_reset_sequence_is_as_new(load: Load, name: str) -> None:
    whole = load(name)
    decoder, fresh = whole.decoder(2), whole.decoder(2)
    for first in range(0, 40, 8):
        decoder.decode_step([text(3, 40)[first : first + 8], text(4, 40)[first : first + 8]])
    decoder.accept([3, 8])
    decoder.reset(0)
    assert decoder.lengths == (0, 40)
    again = decoder.decode_step([text(5, 7), []])
    new = fresh.decode_step([text(5, 7), []])
    assert torch.equal(again.logits[0], new.logits[0])
    for layer in range(whole.config.layers):
        mine, want = decoder.held(layer, 0), fresh.held(layer, 0)
        assert all(torch.equal(mine[part], want[part]) for part in want)
    _, held = one_by_one(whole, text(4, 40))
    assert_holds(decoder, 1, held[40])  # the other one kept all


def test_a_model_is_one_program_per_kind(load: Load) -> None:
    """Not one per layer; taller tiles are compiled when a step needs them, the wide span where there are
    several rows of a sequence."""
    decoder = load("qwen3_5").decoder(16)
    assert len(decoder.layers) == 4
    decoder.decode_step([[1]] * 16)
    ends = {("embed", 16, 1), ("head", 16, 1)}
    assert set(decoder.programs.made) == ends | {("gdn", 16, 8), ("full", 16, 1)}
    decoder.decode_step([[1, 2], *[[3]] * 14, []])
    assert set(decoder.programs.made) == ends | {("gdn", 16, 8), ("full", 16, 1), ("full", 16, 8)}
    decoder.decode_step([[1] * 8] * 16)
    assert {made for made in decoder.programs.made if made[1] != 16} == {
        ("embed", 128, 1), ("head", 128, 1), ("gdn", 128, 8), ("full", 128, 8),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- pages
def test_pages_are_dealt_out_as_sequences_grow() -> None:
    pages = PageTable(batch=3, pages_per_seq=4, page=16, pages=5)
    pages.reserve([1, 0, 33])
    table = pages.table.tolist()
    held = [page for row in table for page in row if page >= 0]
    assert [sum(page >= 0 for page in row) for row in table] == [1, 0, 3]
    assert len(set(held)) == 4 and pages.free == 1
    assert pages.slots(2, 30, 34) == [table[2][1] * 16 + 14, table[2][1] * 16 + 15, *pages.slots(2, 32, 34)]
    with pytest.raises(UserError, match=r"needs 2 more KV pages of 16 tokens; 1 of 5 are free"):
        pages.reserve([16, 17, 48])
    assert pages.table.tolist() == table and pages.free == 1
    pages.release(2)
    assert pages.free == 4 and pages.table[2].tolist() == [-1] * 4
    pages.reserve([0, 0, 40])
    assert pages.free == 1 and min(pages.table[2].tolist()[:3]) >= 0
    pages.release(2)
    pages.reserve([16, 64, 0])
    assert pages.free == 0
    assert sorted(chain(*(row[row >= 0].tolist() for row in pages.table))) == list(range(5))


def test_out_of_pages_changes_nothing(load: Load) -> None:
    decoder = load("qwen3").decoder(2, pages=2)
    decoder.decode_step([[1] * 8, [2] * 8])
    decoder.decode_step([[1] * 8, [2] * 8])
    with pytest.raises(
        UserError, match=r"needs 1 more KV pages .* free\n  fix: end a sequence, or make more"
    ):
        decoder.decode_step([[1], []])
    assert decoder.lengths == (16, 16)
    decoder.reset(1)
    decoder.decode_step([[1], []])
    assert decoder.lengths == (17, 0)


# --------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1]], r"'tokens': they are of 1 sequences\n  fix: give 2 lists, empty ones too"),
        ([[], []], r"'tokens': there are 0\n  fix: give 1 to 128"),
        ([[1] * 9, []], r"sequence 0 has 9\n  fix: give up to 8 at a time"),
        ([[1], [5, 1000]], r"sequence 1 has token 1000\n  fix: give tokens in 0\.\.999"),
        ([[-1], []], r"sequence 0 has token -1"),
    ],
)
def test_a_step_that_cannot_be_is_refused(load: Load, tokens: list[list[int]], message: str) -> None:
    decoder = load("qwen3").decoder(2)
    with pytest.raises(UserError, match=message):
        decoder.decode_step(tokens)
    assert decoder.lengths == (0, 0) and decoder.pages.free == decoder.pages.pages


def test_a_sequence_ends_at_max_seq(load: Load) -> None:
    whole = load("qwen3_5")
    decoder, tokens = whole.decoder(1), text(7, 128)
    for first in range(0, 128, 8):
        step = decoder.decode_step([tokens[first : first + 8]])
    with torch.no_grad():
        wanted = whole.hf(input_ids=torch.tensor([tokens])).logits[0, -8:]
    assert relative_error(step.logits[0], wanted) <= FP32
    with pytest.raises(UserError, match=r"sequence 0 holds 128, and 1 more exceed max_seq = 128"):
        decoder.decode_step([[1]])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1], r"'counts': 1 are given\n  fix: give one for each of 2 sequences"),
        ([0, 0], r"sequence 0 keeps 0 of 3 rows\n  fix: keep 1 to 3 of them"),
        ([4, 0], r"sequence 0 keeps 4 of 3 rows"),
        ([1, 1], r"sequence 1 keeps 1 of 0 rows\n  fix: keep 0 of them"),
    ],
)
def test_accept_refuses_rows_that_were_not_there(load: Load, counts: list[int], message: str) -> None:
    decoder = load("qwen3").decoder(2)
    decoder.decode_step([[1, 2, 3], []])
    with pytest.raises(UserError, match=message):
        decoder.accept(counts)
    assert decoder.lengths == (3, 0)


def test_a_decoder_that_cannot_be_is_refused(load: Load) -> None:
    whole = load("qwen3")
    for options, message in (
        ({"span": 9}, r"'span': it is 9\n  fix: use 1 to 8"),
        ({"pages": 0}, r"'pages': 0 pages hold nothing"),
        ({"batch": 129}, r"max_batch is 129\n  fix: a step has up to 128 rows"),
        ({"platform": "abacus"}, r"unknown platform 'abacus'"),
    ):
        with pytest.raises(UserError, match=message):
            whole.decoder(**options)
    with pytest.raises(UserError, match=r"'layers': 0 are given\n  fix: give the weights of 4"):
        Decoder(whole.model, whole.config, [], {})


# ------------------------------------------------------------------------------------------ published sizes
def compiled(model: DecoderModel, config: Any, kernel: str, target: str, rows: int, span: int) -> Any:
    constants = model.kernel_constants(kernel, config, target, rows, span)
    return compile(model.kernels[kernel], platform=f"{target}sim", constants=constants).compiled


@EVERY_KERNEL
@pytest.mark.parametrize("target", ["a2a3", "a5", "h200"])
def test_published_sizes_fit_in_every_height(name: str, kernel: str, target: str) -> None:
    model, config, _ = PUBLISHED[name]
    for rows in HEIGHTS:
        program = compiled(model, config, kernel, target, rows, 8)
        assert program.plan.checked == (target != "h200")
        assert all(space.fits for region in program.plan.regions for space in region.spaces.values())
        assert program.graph.hazards == ()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_constant_is_read_by_some_kernel(name: str) -> None:
    """A kernel is handed the names that it reads, so a misspelt one must show here."""
    model, config, _ = PUBLISHED[name]
    for target in ("a2a3", "a5", "gb10", "h200"):
        values = model.constants(config, target, rows=16, span=8, head_rows=config.vocab_padded)
        read = set().union(*(constant_names(kernel) for kernel in model.kernels.values()))
        assert values.keys() | {"VOCAB"} <= read


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        pytest.param(name, kernel, marks=pytest.mark.slow if kernel in ("full", "gdn") else ())
        for name, (model, _, _) in PUBLISHED.items()
        for kernel in model.kernels
    ],
)
def test_weights_are_read_once_however_many_rows_there_are(name: str, kernel: str) -> None:
    """By the cost model's count of every load: 1, 16 and 128 rows read the same bytes of weights."""
    model, published, arguments = PUBLISHED[name]
    config = replace(published, vocab=8 * VOCAB_GRANULE)
    found = []
    for batch, span in ((1, 1), (16, 1), (16, 8)):
        rows = batch * span
        program = compiled(model, config, kernel, "a2a3", rows, span)
        given = arguments("a2a3", {"BATCH": batch, "ctx": 1024}) | {
            "TOKENS": rows,
            "tokens": list(range(rows)),
            "cu_q": [s * span for s in range(batch + 1)],
            "slot_mapping": list(range(rows)),
            "state_slots": [[s * span + j for j in range(span)] for s in range(batch)],
            "STATE_ROWS": rows * FULL_27B.v_heads * FULL_27B.k_dim,
            "CONV_ROWS": batch * (span + 2),
        }
        known = known_names(program.function)
        given = {key: value for key, value in given.items() if key in known}
        loaded: dict[str, int] = {}
        for launch in estimate(program.graph, load_target("a2a3"), given).timeline.runs:
            for operation in (op for block in launch.blocks for op in block):
                if operation.tensor is not None and operation.tensor.name.startswith(("w_", "table")):
                    weight = operation.tensor.name
                    loaded[weight] = loaded.get(weight, 0) + operation.bytes
        found.append((rows, loaded))
    if kernel == "embed":  # a row of the table for each row of the step
        assert [(rows, loaded["table"]) for rows, loaded in found] == [
            (rows, 2 * rows * config.hidden) for rows in (1, 16, 128)
        ]
        return
    sizes = {
        parameter.name: 2 * parameter.var.type.shape[0] * parameter.var.type.shape[1]
        for parameter in program.function.params
        if parameter.name.startswith("w_")
    }
    assert sizes and all(loaded == sizes for _, loaded in found)


@BOTH
def test_the_check_command_finds_nothing(name: str) -> None:
    folder = {"qwen3": "qwen3_14b", "qwen3_5": "qwen3_5_27b"}[name]
    for path in (Path("models") / folder / "step.py", Path("models/common/step.py")):
        report = check_file(Path(__file__).parents[2] / path, load_target("a2a3"), {})
        assert report.findings == []
        assert len(report.kernels) == {"qwen3_14b": 1, "qwen3_5_27b": 2, "common": 2}[path.parent.name]
