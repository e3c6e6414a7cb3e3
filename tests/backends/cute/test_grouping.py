"""Which regions share a launch, that the order of dependent ones stays, and the kernels that result."""

from __future__ import annotations

import random
import re
import textwrap
from dataclasses import replace

import pytest

import pypto_models.language as pl
from backends.cute.compiler import CuteToolchain
from backends.cute.lower import lower
from backends.gpu.extents import evaluate
from backends.gpu.grouping import Group, grouped
from backends.gpu.module import Module, count
from backends.gpu.toolchain import Refusal, Unit
from backends.gpu.unroll import unrolled
from backends.sim.machine import Machine
from pypto_models.compile import lower_for, lower_function
from pypto_models.errors import UserError
from pypto_models.ir.nodes import Block, Function, Region, Stmt
from pypto_models.ir.rewrite import Rewriter, walk
from pypto_models.passes.task_graph import build
from pypto_models.target import load_target
from tests.random.check import difference_of
from tests.random.strategy import write

from ..on_gpu.catalogue import full_layers
from .sharing_kernels import around_a_stream, three_apart
from .support import module_of, needs_cutlass

H200 = load_target("h200")


def groups(function: Function) -> list[tuple[str, ...]]:
    return [tuple(r.name for r in s.regions) for s in walk(function.body) if isinstance(s, Group)]


# ---------------------------------------------------------------------------------------------- the layers
LAYERS = {  # regions that share a launch, those in the tail of another, launches with that of the final norm
    ("qwen3_14b/full", "h200"): ((("input_norm", "attention_runs"),), ["attention_merge"], 7),
    ("qwen3_14b/full", "gb10"): ((("input_norm", "attention_runs"),), ["attention_merge"], 7),
    ("qwen3_5_27b/full", "h200"): ((("input_norm", "attention_runs"),), [], 8),
    ("qwen3_5_27b/full", "gb10"): ((("input_norm", "attention_runs"),), [], 8),
    ("qwen3_5_27b/gdn", "h200"): ((("input_norm", "delta_starts"), ("gdn_gates", "gdn_conv")), [], 9),
    ("qwen3_5_27b/gdn", "gb10"): ((("input_norm", "delta_starts"), ("gdn_gates", "gdn_conv")), [], 9),
}


@pytest.mark.parametrize(("kind", "target"), LAYERS)
def test_the_layers(kind: str, target: str) -> None:
    shared, tails, launches = LAYERS[kind, target]
    layer = full_layers()[f"{kind}/full/bf16"]
    loaded = load_target(target)
    given = layer.kind.compile_options(layer.config, target, "skip", rows=16)["constants"]
    lowered = lower_for(layer.kind.kernel_for("skip"), (), loaded, given)
    assert groups(grouped(unrolled(lowered.function))) == [*shared]
    module = lower(lowered.function, loaded, given=lowered.overrides)
    found = [k for k in module.kernels if " and " in k.region]
    assert [k.region for k in found] == [" and ".join(regions) for regions in shared]
    assert [k.name for k in found] == ["_and_".join(regions) for regions in shared]
    assert [k.region.split(" then ")[1] for k in module.kernels if " then " in k.region] == tails
    assert count(module.launches) == len(module.kernels) == launches


# -------------------------------------------------------------------------------------- planted dependences
HEAD = """import pypto_models.language as pl

@pl.jit
def kernel(
    x: pl.Tensor[[16, 32], pl.FP32],
    w: pl.InOut[pl.Tensor[[16, 32], pl.FP32]],
    n: pl.InOut[pl.Tensor[[4], pl.INT32]],
    y: pl.InOut[pl.Tensor[[16, 32], pl.FP32]],
    z: pl.InOut[pl.Tensor[[16, 32], pl.FP32]],
):
"""


def neg(name: str, source: str, to: str, shape: str = "[16, 32]", head: str = "with pl.at(") -> str:
    """A region that reads one tensor and writes another."""
    tile = f"pl.neg(pl.slice({source}, {shape}, [0, 0]))"
    return f"{head}name_hint='{name}'):\n    pl.assemble({to}, {tile}, [0, 0])\n"


def inside(head: str, *regions: str) -> str:
    return f"{head}:\n" + textwrap.indent("".join(regions), "    ")


def room(name: str, init: str = "None") -> str:
    return f"{name} = pl.create_tensor([16, 32], pl.FP32, init_value={init})\n"


def parsed(*parts: str) -> Function:
    text = HEAD + textwrap.indent("".join(parts), "    ")
    return unrolled(lower_function(pl.parse(text, "kernel"), H200).function)


A = neg("a", "x", "y")
ADD = neg("add", "x", "y").replace("])\n", "], atomic='add')\n")
COUNT = "with pl.at(name_hint='count'):\n    pl.write(n, [0], pl.cast(3, pl.INT32))\n"
ROW = "row = pl.cast(pl.read(n, [0]), pl.INDEX)\n"
BY_ROW = neg("by_row", "x", "y", "[1, 32]").replace("[0, 0]))", "[row, 0]))")
POSITIVE = "if pl.read(n, [0]) > 0"
WAITS = """with pl.at(name_hint='a') as t:
    pl.assemble(y, pl.slice(x, [16, 32], [0, 0]), [0, 0])
with pl.at(name_hint='b', deps=[t]):
    pl.assemble(z, pl.slice(x, [16, 32], [0, 0]), [0, 0])
"""
CASES: dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]] = {
    "nothing in common": ((A, neg("b", "w", "z")), [("a", "b")]),
    "one reads the same": ((A, neg("b", "x", "z")), [("a", "b")]),
    "read after write": ((A, neg("b", "y", "z")), []),
    "write after read": ((neg("a", "w", "y"), neg("b", "x", "w")), []),
    "write after write": ((A, neg("b", "w", "y")), []),
    "atomic adds": ((ADD, ADD.replace("add", "again", 1)), []),
    "in place": ((neg("a", "w", "w"), neg("b", "w", "z")), []),
    "both in place": ((neg("a", "w", "w"), neg("b", "y", "y")), [("a", "b")]),
    "a view of it": (("v = pl.reshape(y, [32, 16])\n", A, neg("b", "v", "v", "[32, 16]")), []),
    "another view": (("v = pl.reshape(w, [32, 16])\n", A, neg("b", "v", "v", "[32, 16]")), [("a", "b")]),
    "it or another": (
        (inside("if pl.read(n, [1]) > 0", "v = y\n"), inside("else", "v = z\n"), A, neg("b", "w", "v")), []
    ),
    "a first value in between": ((A, room("t", "0.0"), neg("b", "t", "z")), []),
    "room in between": ((A, room("t"), neg("b", "x", "t"), neg("c", "t", "z")), [("a", "b")]),
    "a scalar that it writes": ((COUNT, ROW, BY_ROW), []),
    "a scalar that it overwrites": ((ROW, BY_ROW, COUNT), []),
    "a scalar read in between": ((neg("a", "x", "z"), ROW, BY_ROW), []),
    "a scalar read before": ((ROW, neg("a", "x", "z"), BY_ROW), [("a", "by_row")]),
    "over a third": ((A, neg("b", "y", "z", head="for i in pl.spmd(8, "), neg("c", "x", "w")), [("a", "c")]),
    "not over what writes what it reads": ((A, neg("b", "y", "w"), neg("c", "w", "z")), []),
    "not over what reads what it writes": ((A, neg("b", "w", "y"), neg("c", "x", "w")), []),
    "not over a read of a scalar": ((A, neg("b", "y", "z"), ROW, COUNT), []),
    "not over a loop": (
        (A, inside("for i in pl.range(pl.cast(pl.read(n, [0]), pl.INDEX))", neg("b", "y", "w")),
         neg("c", "w", "z")), [],
    ),
    "under one condition": ((inside(POSITIVE, A, neg("b", "x", "z")), neg("c", "x", "w")), [("a", "b")]),
    "under two conditions": ((inside(POSITIVE, A), inside(POSITIVE, neg("b", "x", "z"))), []),
    "one waits for the other": ((inside("with pl.manual_scope()", WAITS),), []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_only_independent_regions_share_a_launch(case: str) -> None:
    body, expected = CASES[case]
    assert groups(grouped(parsed(*body))) == expected


def test_four_regions_share_a_launch_at_most() -> None:
    body = [room(f"t{i}") + neg(f"r{i}", "x", f"t{i}") for i in range(6)]
    assert groups(grouped(parsed(*body))) == [("r0", "r1", "r2", "r3"), ("r4", "r5")]


@pytest.mark.parametrize(("first", "second", "joined"), [(8, 2, "b"), (2, 8, "a"), (2, 2, "b")])
def test_it_takes_the_launch_with_fewer_blocks_or_the_nearer(first: int, second: int, joined: str) -> None:
    a, b = (f"for i in pl.spmd({n}, " for n in (first, second))
    body = neg("a", "x", "y", head=a), neg("b", "y", "z", head=b), neg("c", "x", "w")
    assert groups(grouped(parsed(*body))) == [(joined, "c")]


def test_what_is_to_be_apart_shares_with_nobody() -> None:
    """It may need no launch at all."""
    function = parsed(A, neg("b", "x", "z"), neg("c", "x", "w"))
    first, second, _ = (s for s in function.body if isinstance(s, Region))
    assert groups(grouped(function, frozenset({id(first)}))) == [("b", "c")]
    assert groups(grouped(function, frozenset({id(second)}))) == [("a", "c")]


# -------------------------------------------------------------------------------------------- all programs
class Reversed(Rewriter):
    """The regions of every group, the other way round."""

    def stmt(self, s: Stmt) -> Stmt | Block:
        return replace(s, body=s.body[::-1]) if isinstance(s, Group) else self.descend(s)


def test_random_programs_compute_the_same_whichever_of_a_group_is_first() -> None:
    """And no two tasks of a group may touch one element, says the task graph."""
    found = 0
    for seed in range(30):
        program = write(random.Random(seed).randrange)
        try:
            function = lower_function(pl.parse(program.source, "kernel"), H200).function
        except UserError:
            continue  # not for this target
        plan = grouped(unrolled(function))
        if not groups(plan):
            continue
        found += 1
        other = replace(plan, body=Reversed().block(plan.body))
        given = program.arguments(0)
        Machine(other).run(given)
        expected = program.expected(0, program.arguments(0))
        for p in program.parameters:
            if p.out is not None:
                assert difference_of(given[p.name], expected, p.name, p.out.facts.tol) is None, f"seed {seed}"
        graph = build(plan, H200)
        place = {id(r): i for i, s in enumerate(walk(plan.body)) if isinstance(s, Group) for r in s.regions}
        together = [
            c for c in graph.conflicts
            if c.carried_by is None
            and (at := place.get(id(graph.tasks[c.first].region))) is not None
            and at == place.get(id(graph.tasks[c.second].region))
        ]  # fmt: skip
        assert not together, f"seed {seed}: {together[0].describe()}"
    assert found >= 10


# ---------------------------------------------------------------------------------------------- the kernels
def test_a_launch_has_the_blocks_of_all_its_regions() -> None:
    module = module_of(three_apart)
    first = module.launches[0]
    assert first.kernel == "whole_groups_and_product_and_row_sums"  # type: ignore[union-attr]
    for rows, whole in ((5, 0), (40, 2)):
        extents = {"ROWS": rows}
        assert evaluate(first.grid, extents) == whole + 2 + rows  # type: ignore[union-attr]
        starts = [evaluate(text, extents) for kind, text in first.arguments if kind == "scalar"]  # type: ignore[union-attr]
        assert starts == [whole, whole + 2]


def test_tiles_of_the_regions_share_their_place() -> None:
    module = module_of(three_apart)
    kernel = module.kernels[0]
    tiles = {f: re.findall(r"recast_ptr\(shared \+ (\d+)", body) for f, body in functions(module).items()}
    assert tiles["product_2"][0] == tiles["row_sums"][0] == "0" and not tiles["whole_groups"]
    assert f"cute.make_layout({kernel.shared_bytes})" in kernel.text
    assert kernel.shared_bytes > max(int(x) for at in tiles.values() for x in at)


def functions(module: Module) -> dict[str, str]:
    """The functions of the emitted source by name."""
    parts = re.split(r"^def (\w+)\(", module.source, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_a_later_kernel_waits_for_all_that_a_launch_writes() -> None:
    """It would read ahead of its wait what the launch before it does not write."""
    after = functions(module_of(three_apart))["after_2"]
    wait = after.index("griddepcontrol_wait")
    assert wait < after.index("block.element(product") and wait < after.index("block.element(sums")
    assert wait > after.index("block.load_run((x")


def test_every_branch_waits_and_triggers() -> None:
    parts = functions(module_of(three_apart))
    for name in ("whole_groups", "product_2", "row_sums"):
        assert "griddepcontrol_launch_dependents" in parts[name].split("griddepcontrol_wait")[-1], name
    assert "griddepcontrol" not in parts["whole_groups_and_product_and_row_sums"]
    early = functions(module_of(around_a_stream))  # a streamed product follows
    assert "griddepcontrol_launch_dependents" in early["norm_and_sums"]
    assert "griddepcontrol_launch_dependents" not in early["norm"] + early["sums"]


def test_small_regions_do_not_take_much_shared_memory_along() -> None:
    """A kernel of each, where the tiles of one would leave room for fewer than four blocks on a core."""
    wide = """for i in pl.spmd(2, name_hint="wide"):
    t = pl.slice(x, [16, 32], [0, 0])
    for j in pl.range(2):
        t = pl.assemble(t, pl.slice(t, [8, 32], [8, 0]), [0, 0])
    pl.assemble(y, t, [0, 0])
"""
    function = parsed(wide, neg("b", "x", "z"))
    assert [k.name for k in lower(function, H200).kernels] == ["wide_and_b"]
    used = lower(function, H200).kernels[0].shared_bytes
    assert used > 0
    spaces = {n: replace(s, bytes=3 * used + 2048) for n, s in H200.spaces.items()}
    narrow = lower(function, replace(H200, spaces=spaces))
    assert [k.name for k in narrow.kernels] == ["wide", "b"]


def test_a_timing_build_notes_every_block_of_a_launch() -> None:
    loaded = load_target("h200")
    module = lower(lower_for(three_apart, (), loaded, {}).function, loaded, timing=True)
    parts = functions(module)
    for name in ("whole_groups", "product_2", "row_sums"):
        assert {*re.findall(r"block\.stamp\((.*?), cta, ", parts[name])} == {"stamps + 0"}
        assert "cta, _, _ = cute.arch.block_idx()" in parts[name]
    assert "block.stamp(stamps + 32768, cta, 0)" in parts["after_2"]
    for kernel in module.kernels:
        assert ("stamps", "pointer:INT64") in kernel.parameters


@needs_cutlass
@pytest.mark.slow
def test_they_compile_without_spills() -> None:
    modules = [module_of(k) for k in (around_a_stream, three_apart)]
    units = [Unit(m.source, [k for k in m.kernels if "_and_" in k.name]) for m in modules]
    for code in CuteToolchain().compile_units(units, "sm_90a"):
        assert not isinstance(code, Refusal), code
        (kernel,) = code.values()
        used = kernel.resources
        assert ".local" not in kernel.text and used.local_bytes == 0 and 8 <= used.registers <= 128
        assert kernel.text.count("griddepcontrol.wait") >= 2
