"""The decode layer in the kernel language: against transformers, against torch, and against itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

import pypto_models.language as pl
from models.common import tiling
from models.common.written import cache_rows
from models.qwen3_14b import reference
from models.qwen3_14b.config import FULL, TINY, Config
from models.qwen3_14b.constants import TILING, constants
from models.qwen3_14b.harness import LAYER
from models.qwen3_14b.inputs import Dead, make_inputs
from pypto_models.compile import Program, compile, compile_function, platforms
from pypto_models.ir.equal import difference
from pypto_models.ir.nodes import Function, Region
from pypto_models.ir.printer import format_function
from pypto_models.ir.rewrite import rewrite_regions, walk
from pypto_models.ir.types import SplitMode
from tests.models.qwen3_14b.oracle import OracleRun, oracle
from tests.models.qwen3_14b.step import (
    REAL_HEADS,
    TINY_FP32,
    bits,
    execute,
    golden,
    max_error,
    same_bits,
    step,
)

LAYERS, STEPS = range(TINY.layers), range(3)
TOLERANCE = 1e-5
CACHES = ("k_cache", "v_cache")
PLATFORMS = ("a2a3sim", "a5sim", "gb10sim", "h200sim")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fp32() -> Program:
    """The one program of every fp32 test at tiny size: batch and contexts are run-time data."""
    return step(TINY_FP32)


@pytest.fixture(scope="module")
def bf16() -> Program:
    return step(TINY)


# --------------------------------------------------------------------------------------------------
# Equations, against transformers


@pytest.mark.parametrize("step_", STEPS)
@pytest.mark.parametrize("layer", LAYERS)
def test_fp32_layer_matches_transformers(layer: int, step_: int, fp32: Program) -> None:
    run = oracle("fp32")
    actual = execute(fp32, run.tensors(step_, layer))
    for name, expected in run.expected(step_, layer).items():
        assert max_error(actual[name], expected) <= TOLERANCE, name


CHAINS = {
    "page_borders": (1, (1, 15, 16, 90), 4),
    "one_sequence": (2, (30,), 5),
    "seven_sequences": (3, (31, 32, 33, 5, 60, 111, 7), 3),
}


def chain(run: OracleRun, program: Program, own_hidden: bool) -> dict[str, float]:
    """Largest error of every tensor when each step runs on the caches that the program itself wrote.

    With `own_hidden` each layer also runs on what the program made of the layer before.
    """
    caches = [{n: t.clone() for n, t in c.items()} for c in run.caches[0]]
    worst: dict[str, float] = {}
    for s in range(run.steps):
        x = run.hidden[s][0]
        for layer in range(run.config.layers):
            hidden = x if own_hidden else run.hidden[s][layer]
            after = execute(program, {**run.tensors(s, layer), **caches[layer], "hidden": hidden})
            caches[layer] = {name: after[name] for name in CACHES}
            x = after["next_hidden"]
            for name, expected in run.expected(s, layer).items():
                worst[name] = max(worst.get(name, 0.0), max_error(after[name], expected))
    return worst


def assert_whole_model(run: OracleRun, program: Program) -> None:
    """All layers and steps chained: 1e-5 for all but the residual stream, which grows from layer to layer.

    It reaches 12, and after four layers torch's own fp32 evaluation is off by 1.2e-5: of that one 1e-5 of its
    largest value is asked.  The final norm of it meets 1e-5 as it is.
    """
    errors = chain(run, program, own_hidden=True)
    largest = max(float(h.abs().max()) for hidden in run.hidden for h in hidden)
    assert errors.pop("next_hidden") <= TOLERANCE * largest
    assert set(errors) == {"normed", "logits", *CACHES}
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize(("seed", "lens", "steps"), CHAINS.values(), ids=CHAINS)
def test_fp32_chained_steps_match_transformers(
    seed: int, lens: tuple[int, ...], steps: int, fp32: Program
) -> None:
    run = oracle("fp32", seed=seed, lens=lens, steps=steps)
    errors = chain(run, fp32, own_hidden=False)
    assert max(errors.values()) <= TOLERANCE, errors
    assert_whole_model(run, fp32)


def test_fp32_real_head_size_matches_transformers() -> None:
    config = replace(REAL_HEADS, layers=2, max_seq=512, dtype="fp32")
    assert_whole_model(oracle("fp32", lens=(3, 127, 300), steps=2, config=config), step(config))


# --------------------------------------------------------------------------------------------------
# bf16: no further from fp64 than bf16 itself


def assert_within_bf16(program: Program, tensors: dict[str, Tensor], config: Config) -> None:
    """Per tensor max|y - y64| is at most 2 and its RMS 1.25 times that of torch's bf16 evaluation.

    Of the caches only the rows that the step writes are measured: all others are equal bit by bit.
    """
    y64 = reference.exact(tensors, config)
    rows = cache_rows(tensors, config)
    actual, torch_bf16 = execute(program, tensors), golden(tensors, config)
    for name, exact in y64.items():
        y, ref = actual[name], torch_bf16[name]
        if name in CACHES:
            assert_untouched(y, tensors[name], rows)
            y, ref, exact = y[rows], ref[rows], exact[rows]
        error, allowed = y.double() - exact, ref.double() - exact
        assert allowed.abs().max() > 0, name
        assert error.abs().max() <= 2 * allowed.abs().max(), name
        assert error.square().mean().sqrt() <= 1.25 * allowed.square().mean().sqrt(), name


def assert_untouched(after: Tensor, before: Tensor, written: Tensor) -> None:
    """No bit changed outside of the rows `written`."""
    same = (bits(after) == bits(before)).all(dim=1)
    same[written] = True
    assert same.all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("batch", "context"),
    [(16, "ragged"), (16, 128), (1, 1), (1, 128), (5, "ragged"), (8, 17)],
    ids=lambda value: str(value),
)
def test_bf16_is_as_close_to_fp64_as_torch(batch: int, context: int | str, seed: int, bf16: Program) -> None:
    assert_within_bf16(bf16, make_inputs(TINY, batch, context, seed=seed, lm_head="full"), TINY)


# --------------------------------------------------------------------------------------------------
# One program for every batch, context and page


def assert_matches_torch(program: Program, tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """fp32: the outputs within 1e-5 of torch's, and the caches too; NaN stays where it was."""
    actual, expected = execute(program, tensors), golden(tensors, config)
    for name in expected:
        assert max_error(actual[name], expected[name]) <= TOLERANCE, name
    for name in CACHES:
        assert_untouched(actual[name], tensors[name], cache_rows(tensors, config))
    return actual


def runs_of(lengths: Sequence[int], config: Config, target_runs: int) -> list[int]:
    """Runs of each sequence, by the rule that the layer's documentation gives: one in each share of it."""
    owners = [s for s, n in enumerate(lengths) for _ in range(math.ceil(n / config.page))]
    share = max(1, math.ceil(len(owners) / target_runs))
    found = {(s, page // share) for page, s in enumerate(owners)}
    return [sum(s == owner for owner, _ in found) for s in range(len(lengths))]


@pytest.mark.parametrize("batch", range(1, 17))
def test_any_batch_and_context_with_one_program(batch: int, fp32: Program) -> None:
    for context in ("ragged", 1, TINY.max_seq):
        tensors = make_inputs(TINY_FP32, batch, context, seed=batch, lm_head="full")
        assert_matches_torch(fp32, tensors, TINY_FP32)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 112, 113, 127, 128])
def test_contexts_at_page_borders(length: int, fp32: Program) -> None:
    for others in ([], [16, 17, 1]):
        lengths = [length, *others]
        tensors = make_inputs(TINY_FP32, len(lengths), lengths, seed=length, lm_head="full")
        assert_matches_torch(fp32, tensors, TINY_FP32)


def test_what_a_step_must_not_read_is_nan() -> None:
    """The inputs of these tests: shuffled pages, NaN in every slot that holds no token of a sequence."""
    tensors = make_inputs(TINY_FP32, 5, [17, 1, 128, 16, 40], seed=1)
    table, ctx = tensors["block_table"], tensors["ctx"].tolist()
    owned = torch.zeros(tensors["k_cache"].shape[0] // TINY.kv_heads, dtype=torch.bool)
    for row, n in zip(table.tolist(), ctx, strict=True):
        for token in range(n - 1):
            owned[row[token // TINY.page] * TINY.page + token % TINY.page] = True
    assert torch.unique(table[table >= 0]).tolist() != table[table >= 0].tolist()
    for name in CACHES:
        finite = ~tensors[name].view(-1, TINY.kv_heads, TINY.page, TINY.head_dim).isnan()
        assert torch.equal(finite.all(-1).transpose(1, 2).reshape(-1, TINY.kv_heads).all(1), owned), name
        assert torch.equal(finite.any(-1).transpose(1, 2).reshape(-1, TINY.kv_heads).any(1), owned), name


@pytest.mark.parametrize("target_runs", [1, 3, 16, 64, 1000])
@pytest.mark.parametrize(
    "lengths",
    [(128,), (1,), (128, 1, 17, 16, 33, 90), (128,) * 16, (1,) * 16],
    ids=lambda v: f"{len(v)}x{v[0]}",
)
def test_runs_do_not_change_the_result(target_runs: int, lengths: tuple[int, ...]) -> None:
    """From one share of all pages to one share per page."""
    program = step(TINY_FP32, TARGET_RUNS=target_runs)
    tensors = make_inputs(TINY_FP32, len(lengths), lengths, seed=2, lm_head="full")
    assert_matches_torch(program, tensors, TINY_FP32)


def test_the_cases_above_have_one_and_several_runs() -> None:
    """And a sequence of one run sits next to one of several; there is always room for the partials of all."""
    mixed = (128, 1, 17, 16, 33, 90)
    assert runs_of(mixed, TINY, 1) == [1] * 6
    assert runs_of(mixed, TINY, 3) == [2, 1, 1, 1, 2, 1]
    assert runs_of(mixed, TINY, 16) == [4, 1, 2, 1, 2, 4]
    assert runs_of(mixed, TINY, 1000) == [8, 1, 2, 1, 3, 6]
    assert runs_of((128,), TINY, 4) == [4]
    assert runs_of((128,) * 16, TINY, 4) == [1] * 16
    for target_runs in (1, 3, 16, 64, 1000):
        for lengths in (mixed, (128,), (128,) * 16, (1,) * 16):
            assert sum(runs_of(lengths, TINY, target_runs)) < len(lengths) + target_runs


@pytest.mark.parametrize("seed", range(3))
def test_any_legal_order_of_tasks_and_blocks_gives_the_same_bits(seed: int, bf16: Program) -> None:
    """Nothing but the dependencies of the task graph holds regions apart, and nothing at all blocks."""
    shuffled = compile_function(stages()["front_end"], backend_options={"schedule": "random", "seed": seed})
    tensors = make_inputs(TINY, 7, seed=3, lm_head="full")
    assert same_bits(execute(shuffled, tensors), execute(bf16, tensors))


# --------------------------------------------------------------------------------------------------
# Dead rows


DEAD: dict[str, dict[int, Dead]] = {
    "slot": {1: "slot"},
    "ctx": {0: "ctx"},
    "cu_q": {4: "cu_q", 5: "cu_q"},
    "all": {2: "all", 3: "all"},
    "mixed": {0: "slot", 2: "ctx", 3: "all", 5: "cu_q"},
    "every_slot": dict.fromkeys(range(6), "slot"),
    "every_ctx": dict.fromkeys(range(6), "ctx"),
    "every_cu_q": dict.fromkeys(range(6), "cu_q"),
    "every": dict.fromkeys(range(6), "all"),
}


@pytest.mark.parametrize("config", [TINY_FP32, TINY], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dead", DEAD.values(), ids=DEAD)
def test_dead_rows_give_zeros_and_touch_nothing(dead: dict[int, Dead], config: Config) -> None:
    context = [128, 1, 17, 16, 33, 90]
    tensors = make_inputs(config, 6, context, seed=4, lm_head="full", dead_rows=dead)
    rows = list(dead)
    # What a dead row alone would read: no token there, no page, and no hidden row (NaN already)
    tensors["positions"][rows] = 1 << 20
    tensors["block_table"][rows] = 1 << 20
    actual = execute(step(config), tensors)
    for name in reference.OUTPUTS:
        assert torch.all(actual[name][rows] == 0), name
    written = cache_rows(tensors, config)
    assert len(written) == (6 - len(rows)) * config.kv_heads
    for name in CACHES:
        assert_untouched(actual[name], tensors[name], written)
    if len(rows) < 6 and config.dtype == "fp32":
        assert_matches_torch(step(config), tensors, config)


def test_rows_that_no_sequence_owns_are_dead(fp32: Program) -> None:
    """T and B are extents of a captured graph: fewer sequences than rows, and sequences without a row."""
    few = make_inputs(TINY_FP32, 6, [128, 1, 17, 16, 33, 90], seed=5, lm_head="full")
    few |= {name: few[name][:4] for name in ("ctx", "block_table")} | {"cu_q": few["cu_q"][:5]}
    actual = assert_matches_torch(fp32, few, TINY_FP32)
    assert torch.all(actual["next_hidden"][4:] == 0)

    # Sequences 0, 2 and 5 have no row, so that rows and sequences are numbered differently
    rows = make_inputs(TINY_FP32, 6, [40, 128, 64, 17, 33, 90], seed=6, lm_head="full")
    keep = [1, 3, 4]
    rows["cu_q"] = torch.tensor([0, 0, 1, 1, 2, 3, 3], dtype=torch.int32)
    for name in ("hidden", "positions", "slot_mapping", *reference.OUTPUTS):
        rows[name] = rows[name][keep].contiguous()
    actual = assert_matches_torch(fp32, rows, TINY_FP32)
    assert torch.all(actual["next_hidden"].abs().amax(1) > 1)


# --------------------------------------------------------------------------------------------------
# Real head sizes


def tiles(platform: str) -> dict[str, int]:
    """The tile sizes of the published model."""
    return tiling.load_source(TILING, platform.removesuffix("sim"))


@pytest.mark.parametrize("tiled", [False, True], ids=["default_tiles", "published_tiles"])
def test_real_heads_in_bf16(tiled: bool) -> None:
    program = step(REAL_HEADS, **tiles("a2a3sim") if tiled else {})
    for batch, context in ((1, 4096), (3, [129, 4096, 640])):
        assert_within_bf16(program, make_inputs(REAL_HEADS, batch, context, lm_head="full"), REAL_HEADS)


def test_real_heads_in_fp32() -> None:
    config = replace(REAL_HEADS, dtype="fp32")
    lengths = [128, 1, 4096, 129, 1000]
    tensors = make_inputs(config, 5, lengths, seed=1, lm_head="full", dead_rows={1: "slot"})
    tensors["block_table"][1] = -1
    assert_matches_torch(step(config), tensors, config)


# --------------------------------------------------------------------------------------------------
# Platforms


@cache
def program_on(platform: str) -> Program:
    return step(TINY, platform=platform)


def test_every_platform_gives_the_same_bits() -> None:
    assert set(PLATFORMS) <= set(platforms())
    for batch in (3, 16):
        tensors = make_inputs(TINY, batch, seed=9, lm_head="full")
        expected = execute(program_on(PLATFORMS[0]), tensors)
        for platform in PLATFORMS[1:]:
            assert same_bits(execute(program_on(platform), tensors), expected), platform


@pytest.mark.parametrize("config", [TINY, FULL], ids=["tiny", "full"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_full_size_compiles_without_warnings(platform: str, config: Config) -> None:
    """It fits the scratchpad targets, has no hazards, and the GPU targets say that nothing was checked."""
    for lm_head in ("skip", "full"):
        options = LAYER.compile_options(config, platform, lm_head)
        program = compile(LAYER.kernel_for(lm_head), platform=platform, check=True, **options)
        if platform in ("a2a3sim", "a5sim"):
            assert program.warnings == ()
            assert program.compiled.plan.checked
        else:
            (warning,) = program.warnings
            assert "nothing is checked" in warning
            assert not program.compiled.plan.checked


@pytest.mark.parametrize(
    "lengths", [(4096,), (4096,) * 16, (4096, *(1,) * 15)], ids=lambda v: f"{len(v)}x{v[-1]}"
)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_attention_fills_the_cores(platform: str, lengths: tuple[int, ...]) -> None:
    """At full size a core gets at least two work items, as far as there are pages for them.

    On a GPU a block has an SM of its own: all waves together take no longer than equal parts of the pages
    would, but for a page for each block.
    """
    target = program_on(platform).compiled.target
    pages = sum(math.ceil(n / FULL.page) for n in lengths)
    share = math.ceil(pages / constants(FULL, target.name)["TARGET_RUNS"])
    items = math.ceil(pages / share) * FULL.kv_heads
    if target.is_scratchpad:
        assert items >= min(2 * target.cores, pages * FULL.kv_heads)
    else:
        waves = math.ceil(items / target.cores)
        assert waves * share <= pages * FULL.kv_heads / target.cores + waves


# --------------------------------------------------------------------------------------------------
# Passes, splits, printed text


@cache
def inputs() -> dict[str, Tensor]:
    """Odd batch, one sequence with several runs, a dead row."""
    return make_inputs(TINY, 3, [128, 20, 1], seed=10, lm_head="full", dead_rows={2: "slot"})


@cache
def outcome() -> dict[str, Tensor]:
    return execute(step(TINY), inputs())


def stages() -> dict[str, Function]:
    return dict(step(TINY).compiled.stages)


STAGES = ("front_end", "spill", "infer_memory", "split")


def test_the_stages_are_those_tested_here() -> None:
    assert tuple(stages()) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_every_pass_keeps_every_bit(stage: str) -> None:
    assert same_bits(execute(stages()[stage], inputs()), outcome())


@pytest.mark.parametrize("stage", STAGES)
def test_printed_text_reads_back_as_the_same_program(stage: str) -> None:
    function = stages()[stage]
    again = pl.parse(format_function(function))
    assert difference(function, again) is None
    assert same_bits(execute(again, inputs()), outcome())


def regions(function: Function) -> list[Region]:
    return [s for s in walk(function.body) if isinstance(s, Region)]


SPLIT = ("attention", "out_proj", "gate_up_silu", "down_proj", "lm_head")


def test_mixed_regions_are_split_up_down() -> None:
    assert tuple(r.name for r in regions(stages()["split"]) if r.options.split is SplitMode.UP_DOWN) == SPLIT


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("batch", [1, 7, 8, 9, 16])
def test_a_split_region_computes_what_the_whole_does(name: str, batch: int) -> None:
    """Batches below and above the half of a tile's 16 rows: the second lane has none, some or all."""
    function = stages()["front_end"]

    def whole(region: Region) -> Region:
        if region.name != name:
            return region
        return replace(region, options=replace(region.options, split=SplitMode.NONE))

    unsplit = compile_function(replace(function, body=rewrite_regions(function.body, whole)))
    (changed,) = (r for r in regions(unsplit.compiled.function) if r.name == name)
    assert changed.options.split is SplitMode.NONE
    tensors = make_inputs(TINY, batch, seed=batch, lm_head="full")
    assert same_bits(execute(unsplit, tensors), execute(step(TINY), tensors))
