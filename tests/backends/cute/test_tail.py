"""Regions that run as the tail of the launch before them: which, their kernels, and who does what when."""

from __future__ import annotations

import random
import re
import textwrap
from collections.abc import Callable
from dataclasses import replace

import pytest

from backends.cute.compiler import CuteToolchain
from backends.cute.layouts import THREADS
from backends.cute.lower import lower
from backends.cute.tail import clearing, resident
from backends.gpu.module import KernelSource, Launch, count
from backends.gpu.toolchain import Refusal, Unit
from models.qwen3_14b.config import FULL, TINY, Config
from models.qwen3_14b.constants import constants
from models.qwen3_14b.decode_layer import decode_layer
from pypto_models.compile import lower_for
from pypto_models.schedule.overrides import overrides
from pypto_models.target import load_target

from .arrivals import Run
from .support import module_of, needs_cutlass
from .tail_kernels import halves_where_asked, sums_and_halves
from .tail_sources import H200, functions, parsed, row, rows


# ------------------------------------------------------------------------------------------------ one kernel
def test_the_tail_has_no_launch_and_an_earlier_kernel_clears_the_counter() -> None:
    module = module_of(sums_and_halves)
    assert [k.name for k in module.kernels] == ["doubled_2", "sums_then_halves"]
    first, second = (x for x in module.launches if isinstance(x, Launch))
    assert (first.grid, second.grid) == ("ROWS", "ROWS") and ("scalar", "2 * ROWS") in second.arguments
    counter = module.workspaces[-1]
    assert (counter.dtype, counter.shape) == ("int32", ("1",))
    assert all(("pointer", counter.name) in x.arguments for x in (first, second))
    assert all((counter.name, "pointer:INT32") in k.parameters for k in module.kernels)
    parts = functions(module)
    assert [name for name, text in parts.items() if "arrival.clear" in text] == ["doubled_2"]
    assert parts["doubled_2"].index("griddepcontrol_wait") < parts["doubled_2"].index("arrival.clear")
    kernel = module.kernels[1]
    assert kernel.region == "sums then halves" and "; its tail halves: " in kernel.how
    assert kernel.shared_bytes == 128 and kernel.resident == 2


def test_a_schedule_may_ask_for_a_launch_of_its_own() -> None:
    found = lower_for(sums_and_halves, (), H200, schedules=overrides({"halves": {"launch": "own"}}))
    module = lower(found.function, H200, given=found.overrides)
    assert [k.name for k in module.kernels] == ["doubled_2", "sums_2", "halves"]
    assert not any(w.name.startswith("arrivals") for w in module.workspaces)


def test_the_tail_neither_waits_nor_triggers() -> None:
    parts = functions(module_of(sums_and_halves))
    assert "griddepcontrol_wait" in parts["sums_2"] and "griddepcontrol" not in parts["halves"]
    assert parts["sums_then_halves"].count("griddepcontrol_launch_dependents") == 1


@pytest.mark.parametrize("target", ["h200", "gb10"])
def test_the_emitted_source(target: str, golden_text: Callable[[str, str], None]) -> None:
    golden_text(module_of(sums_and_halves, target).source, f"sums_and_halves_{target}")


def test_the_emitted_source_of_a_tail_with_little_to_do(golden_text: Callable[[str, str], None]) -> None:
    golden_text(module_of(halves_where_asked).source, "halves_where_asked_h200")


def test_a_timing_build_notes_the_end_of_the_tail() -> None:
    module = lower(lower_for(sums_and_halves, (), H200, {}).function, H200, timing=True)
    parts = functions(module)
    assert "block.stamp" not in parts["halves"]
    assert "block.stamp(stamps + 32768, cta, 0)" in parts["sums_2"]
    body = parts["sums_then_halves"]
    assert body.index("halves(") < body.index("block.stamp(stamps + 32768, cute.arch.block_idx()[0], 3)")
    assert module.kernels[1].parameters.count(("stamps", "pointer:INT64")) == 1


@needs_cutlass
@pytest.mark.slow
@pytest.mark.parametrize("target", ["h200", "gb10"])
def test_it_compiles(target: str) -> None:
    """No spills, no load that may see what was there before, and barriers around the arrival."""
    loaded = load_target(target)
    given = constants(replace(FULL, max_seq=512), target)
    layer = lower(lower_for(decode_layer, (), loaded, given).function, loaded)
    modules = [layer, *(module_of(x, target) for x in (sums_and_halves, halves_where_asked))]
    units = [Unit(m.source, [k for k in m.kernels if "arrival." in k.text]) for m in modules]
    assert [len(x.kernels) for x in units] == [2, 2, 2]
    asking = []
    for code in CuteToolchain().compile_units(units, str(loaded.arch)):
        assert not isinstance(code, Refusal), code
        for name, kernel in code.items():
            used = kernel.resources
            assert ".local" not in kernel.text and used.local_bytes == 0, name
            assert "ld.global.nc" not in kernel.text, name
            if "_then_" in name:
                asking.append("vote.sync.any" in kernel.text)
                add = kernel.text.index("atom.global.acq_rel.add")
                acquire = kernel.text.index("ld.acquire.gpu.global")
                around = [m.start() for m in re.finditer(r"bar\.sync", kernel.text)]
                assert any(x < add for x in around) and any(x > acquire for x in around), name
                here = int(re.search(r"\.minnctapersm (\d+)", kernel.text)[1])  # type: ignore[index]
                assert here == (1 if "attention" in name else 2), name
                assert 8 <= used.registers <= 65536 // (THREADS * here), name
    assert asking == [True, False, True]


# ------------------------------------------------------------------------------------------- which regions
def summed(name: str, source: str, to: str, blocks: str = "8") -> str:
    """As `rows`, with the sum of the row, which takes shared memory."""
    return rows(name, f"pl.row_expand_mul({row(source)}, pl.row_sum({row(source)}))", to, blocks)


def inside(head: str, *regions: str) -> str:
    return f"{head}:\n" + textwrap.indent("".join(regions), "    ")


E, A, B = rows("e", row("x"), "w"), rows("a", row("w"), "y"), rows("b", row("y"), "z")


def product(name: str, source: str, to: str) -> str:
    return f"""with pl.at(name_hint='{name}'):
    m = pl.cast(pl.slice({source}, [16, 32], [0, 0]), pl.BF16)
    k = pl.cast(pl.slice(x, [16, 32], [0, 0]), pl.BF16)
    pl.assemble({to}, pl.matmul(m, k, b_trans=True, out_dtype=pl.FP32), [0, 0])
"""


POSITIVE = "if pl.read(n, [0]) > 0"
LOOP = "for t in pl.range(pl.tensor.dim(v, 0))"
EMPTY = "pl.tensor.dim(v, 0) - 1"
BOTH = f"pl.add({row('y')}, {row('z')})"
CASES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "a tail": ((E, A, B), ["e", "a_then_b"]),
    "five blocks one after the other": (
        (E, rows("a", row("w"), "y", "2"), rows("b", row("y"), "z", "10")), ["e", "a_then_b"]
    ),
    "two waves of a head": ((E, rows("a", row("w"), "y", "528"), B), ["e", "a_then_b"]),
    "more waves": ((E, rows("a", row("w"), "y", "529"), B), ["e", "a", "b"]),
    "more": ((E, rows("a", row("w"), "y", "2"), rows("b", row("y"), "z", "11")), ["e", "a", "b"]),
    "both take shared memory": ((E, summed("a", "w", "y"), summed("b", "y", "z")), ["e", "a_then_b"]),
    "more shared memory than the head": ((E, A, summed("b", "y", "z")), ["e", "a", "b"]),
    "no earlier kernel": ((rows("a", row("x"), "y"), B), ["a", "b"]),
    "the head under a condition": ((E, inside(POSITIVE, A), B), ["e", "a", "b"]),
    "the tail under a condition": ((E, A, inside(POSITIVE, B)), ["e", "a", "b"]),
    "both in a loop": ((E, inside(LOOP, A, B)), ["e", "a", "b"]),
    "the head in a loop": ((E, inside(LOOP, A), B), ["e", "a", "b"]),
    "the tail in a loop": ((E, A, inside(LOOP, B)), ["e", "a", "b"]),
    "the earlier kernel in a loop": ((inside(LOOP, E), A, B), ["e", "a", "b"]),
    "a product as the head": ((E, product("a", "w", "y"), summed("b", "y", "z", "2")), ["e", "a_then_b"]),
    "a product as the tail": ((E, product("a", "w", "y"), product("b", "y", "z")), ["e", "a", "b"]),
    "it reads nothing of the head": ((E, A, rows("b", row("x"), "y")), ["e", "a", "b"]),
    "a head that may have no blocks": ((E, rows("a", row("w"), "y", EMPTY), B), ["e", "a", "b"]),
    "a tail that may have no blocks": ((E, A, rows("b", row("y"), "z", EMPTY)), ["e", "a_then_b"]),
    "a tail has no tail": ((E, A, B, rows("c", BOTH, "o")), ["e", "a_then_b", "c"]),
    "two tails": (
        (E, A, B, rows("c", row("z"), "o"), rows("d", row("o"), "w")), ["e", "a_then_b", "c_then_d"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_which_regions_are_tails(case: str) -> None:
    body, expected = CASES[case]
    module = lower(parsed(*body), H200)
    assert [k.name for k in module.kernels] == expected
    tails = sum("_then_" in name for name in expected)
    assert module.source.count("arrival.arrive(") == module.source.count("arrival.clear(") == tails
    assert [w.name for w in module.workspaces] == ["arrivals", "arrivals_2"][:tails]


def test_each_tail_has_a_counter_that_the_nearest_kernel_clears() -> None:
    module = lower(parsed(*CASES["two tails"][0]), H200)
    assert ["arrival.clear(arrivals)" in k.text for k in module.kernels] == [True, False, False]
    assert ["arrival.clear(arrivals_2)" in k.text for k in module.kernels] == [False, True, False]
    assert ["arrival.arrive(arrivals_2," in k.text for k in module.kernels] == [False, False, True]


def test_a_kernel_that_surely_runs_clears() -> None:
    def kernel(name: str, how: str = "its loop is none") -> KernelSource:
        return KernelSource(name, name, 1, "", 256, 0, how, ())

    kernels = [kernel("a"), kernel("b"), kernel("c", "stream"), kernel("head")]
    assert clearing(kernels, set()) == 1
    assert clearing(kernels, {"b"}) == 0
    assert clearing(kernels, {"a", "b"}) is None
    assert clearing(kernels[-1:], set()) is None


def test_a_later_kernel_waits_for_what_the_tail_writes() -> None:
    """It may read ahead of its wait what neither the head nor the tail writes."""
    after = "for i in pl.spmd(8, name_hint='c'):\n" + textwrap.indent(
        f"a = {row('w')}\nb = {row('z')}\npl.assemble(o, pl.add(a, b), [i, 0])\n", "    "
    )
    parts = functions(lower(parsed(E, A, B, after), H200))
    wait, read = (parts["c"].index(x) for x in ("griddepcontrol_wait", "block.element(z"))
    assert parts["c"].index("block.element(w") < wait < read


@pytest.mark.parametrize(("shared", "blocks"), [(0, 2), (114688, 2), (114689, 1), (200000, 1)])
def test_how_many_blocks_a_core_holds(shared: int, blocks: int) -> None:
    """Of the 228 KiB of an SM, the system takes 1 KiB a block and the alignment another."""
    assert resident(shared, H200) == blocks


@pytest.mark.parametrize("config", [FULL, TINY], ids=["full", "tiny"])
@pytest.mark.parametrize("merge_runs", [1, 8])
def test_the_dense_layer_merges_its_attention_in_the_same_launch(config: Config, merge_runs: int) -> None:
    """With as many shares as the published model has: one block a core."""
    given = constants(config, "h200") | {"TARGET_RUNS": 16, "MERGE_TILES": 1, "MERGE_RUNS": merge_runs}
    module = lower(lower_for(decode_layer, (), H200, given).function, H200)
    assert count(module.launches) == 7  # with that of the final norm
    (kernel,) = (k for k in module.kernels if "arrival.arrive(" in k.text)
    assert (kernel.name, kernel.resident) == ("attention_then_attention_merge", 1)
    assert "arrival.clear(" in module.kernels[0].text
    (launch,) = (x for x in module.launches if isinstance(x, Launch) and x.kernel == kernel.name)
    assert launch.grid == str(16 * config.kv_heads)
    blocks = config.kv_heads if merge_runs == 1 else config.q_heads
    assert ("scalar", f"TOKENS * {blocks}") in launch.arguments


# ------------------------------------------------------------------------------------ who does what, and when
@pytest.mark.parametrize("seed", range(40))
def test_every_task_is_done_once_when_all_have_arrived(seed: int) -> None:
    """The device code itself, on threads that take turns at random."""
    rng = random.Random(seed)
    ctas, tasks, most = rng.randint(1, 12), rng.randint(0, 20), rng.randint(1, 8)
    run = Run(seed, ctas, tasks, most, room=max(most, rng.randint(1, 12)), polls=10**6)
    run.go()
    assert sorted(t for _, t in run.done) == list(range(tasks))
    assert run.arrived_at_first in (None, ctas)
    ranks = min(ctas, most, tasks)
    shares = {frozenset(t for c, t in run.done if c == own) for own in {c for c, _ in run.done}}
    assert shares == {frozenset(range(r, tasks, ranks)) for r in range(ranks)}


@pytest.mark.parametrize("seed", range(40))
def test_a_wait_without_room_is_called_off(seed: int) -> None:
    """Fewer blocks than those that wait have room: the last one does all, or the others came in time."""
    rng = random.Random(seed)
    ctas, tasks = rng.randint(6, 12), rng.randint(6, 20)
    run = Run(seed, ctas, tasks, most=6, room=rng.randint(1, 5), polls=rng.randint(1, 30))
    run.go()
    assert sorted(t for _, t in run.done) == list(range(tasks))
    assert run.arrived_at_first == ctas
    assert len({c for c, _ in run.done}) == 1  # no six of them ever ran together


@pytest.mark.parametrize("seed", range(40))
def test_a_wait_may_be_called_off_at_any_time(seed: int) -> None:
    rng = random.Random(seed)
    run = Run(seed, ctas=8, tasks=11, most=4, room=8, polls=rng.randint(1, 12))
    run.go()
    assert sorted(t for _, t in run.done) == list(range(11))
    assert run.arrived_at_first == 8
    assert len({c for c, _ in run.done}) in (1, 4)


def some(rng: random.Random, tasks: int) -> frozenset[int]:
    """None of them, few, or many."""
    return frozenset(rng.sample(range(tasks), min(tasks, rng.choice([0, 1, 2, tasks // 2, tasks]))))


@pytest.mark.parametrize("seed", range(80))
def test_only_blocks_that_have_something_to_do_wait(seed: int) -> None:
    """All of them have room; the last seeds are of more tasks than the lanes of a warp ask for."""
    rng = random.Random(seed)
    ctas = rng.randint(1, 3) if seed >= 60 else rng.randint(1, 12)
    tasks = rng.randint(1, 32 * ctas + 20) if seed >= 60 else rng.randint(1, 30)
    wanted = some(rng, tasks)
    run = Run(seed, ctas, tasks, most=rng.randint(ctas, 14), room=ctas, polls=10**6, wanted=wanted)
    run.go()
    assert sorted(t for _, t in run.done) == sorted(wanted)
    assert run.arrived_at_first == (ctas if wanted else None)
    ranks = min(ctas, tasks)
    assert all(c == t % ranks for c, t in run.done)
    if tasks <= 32 * ranks:
        assert run.looked == {t % ranks for t in wanted}
    else:
        assert run.looked == set(range(ctas))


@pytest.mark.parametrize("seed", range(40))
def test_of_more_blocks_than_may_wait_the_last_ones_do(seed: int) -> None:
    """They may not all have room at a time: whatever they have to do, most leave."""
    rng = random.Random(seed)
    tasks, most = rng.randint(1, 20), rng.randint(1, 6)
    ctas, wanted = rng.randint(most + 1, 12), some(rng, tasks)
    run = Run(seed, ctas, tasks, most, room=most, polls=10**6, wanted=wanted)
    run.go()
    assert sorted(t for _, t in run.done) == sorted(wanted)
    assert run.arrived_at_first == (ctas if wanted else None)
    assert len(run.looked) == min(most, tasks)


@pytest.mark.parametrize("seed", range(120))
def test_a_wait_of_those_with_something_to_do_may_be_called_off(seed: int) -> None:
    """At any time, with room for all or for few: either each has done its own, or the last to arrive all."""
    rng = random.Random(seed)
    ctas, tasks = rng.randint(2, 10), rng.randint(1, 20)
    wanted, room = some(rng, tasks), ctas if seed % 2 else rng.randint(1, ctas)
    run = Run(seed, ctas, tasks, most=10, room=room, polls=rng.randint(1, 12), wanted=wanted)
    run.go()
    assert sorted(t for _, t in run.done) == sorted(wanted)
    assert run.arrived_at_first == (ctas if wanted else None)
    ranks = min(ctas, tasks)
    assert run.looked <= {t % ranks for t in wanted}
    by_number = all(c == t % ranks for c, t in run.done)
    assert by_number or len({c for c, _ in run.done}) == 1


def test_of_more_tasks_than_lanes_the_last_ones_are_done() -> None:
    """A block that has 35 waits for all, though none of its first 32 is wanted."""
    run = Run(0, ctas=2, tasks=70, most=2, room=2, polls=10**6, wanted=frozenset({69}))
    run.go()
    assert run.done == [(1, 69)] and run.looked == {0, 1}


def test_the_last_to_arrive_does_all_though_it_has_no_task_of_its_own() -> None:
    """Of three blocks, one at a time: the first waits for too long, and then nobody else is wanted."""
    run = Run(0, ctas=3, tasks=3, most=3, room=1, polls=5, wanted=frozenset({0}))
    run.go()
    assert run.done == [(2, 0)] and run.looked == {0}
