"""Loops whose trips the warps of a block take in turn: which, with which rings, and what they leave."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pypto_models.language as pl
from backends.cute.lower import lower
from backends.cute.turns import accumulated
from backends.gpu.module import Module
from models.qwen3_5_27b import constants as gated
from models.qwen3_5_27b.full_layer import full_decode_layer
from models.qwen3_14b import constants as dense
from models.qwen3_14b.decode_layer import decode_layer
from pypto_models.compile import lower_for, lower_function
from pypto_models.ir.nodes import For, Function, Let
from pypto_models.ir.rewrite import uses, walk
from pypto_models.target import load_target

from . import lockstep, turn_kernels
from .support import module_of
from .turn_kernels import attend

BARRIER = "cute.arch.sync_threads()"
H200 = load_target("h200")
WAIT = "cute.arch.griddepcontrol_wait()"
COPY = "block.copy_rows("


def kernel_of(module: Module) -> str:
    """The kernel with the loop, without its launcher."""
    return module.kernels[-1].text.split("\n\n\n@cute.jit\ndef launch_")[0]


def text_of(target: str = "h200", **constants: object) -> str:
    return kernel_of(module_of(attend, target, **constants))


def changed(*changes: tuple[str, str]) -> Function:
    """The kernel with parts of its text replaced."""
    text = Path(turn_kernels.__file__).read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return lower_function(pl.parse(text, "attend"), H200).function


def loop_of(text: str) -> str:
    """The lines of the loop over the table."""
    behind = text[text.index("    for p in ") :].split("\n")
    end = next((i for i, line in enumerate(behind[1:], 1) if not line.startswith(" " * 8)), len(behind))
    return "\n".join(behind[:end])


def in_turns(text: str) -> bool:
    loop = loop_of(text)
    found = "own_step" in loop
    assert ("fragments.multiply" in loop) == found and (BARRIER not in loop) == found
    return found


# ---------------------------------------------------------------------------------------- which, and how many
# Takers and slots of each.  A trip's tiles take 2 tiles x TILE rows x (DIM + 8) elements x 2 bytes: as many
# warps, 8 or half as often as needed, as have room for two slots; then slots up to 128 KB, or four.
RINGS: dict[tuple[str, int, int], tuple[int, int] | None] = {
    ("h200", 64, 32): (8, 2),  # 9 KB: 8 x 2 are 144 KB
    ("h200", 64, 16): (8, 3),  # 4.5 KB: four slots reach 128 KB, but two blocks share a core
    ("h200", 16, 16): (8, 4),  # 1.5 KB: no more than four
    ("h200", 64, 64): (4, 2),  # 18 KB: eight would take 288 KB of 227
    ("h200", 128, 32): (4, 2),
    ("h200", 128, 64): (2, 2),  # 34 KB: four would take 272 KB
    ("h200", 128, 128): None,  # 68 KB
    ("h200", 256, 16): None,  # the sums of [16, 256] alone are 128 registers of a thread
    ("h200", 256, 32): None,
    ("gb10", 16, 16): (8, 3),  # in half of 99 KB
    ("gb10", 64, 16): (8, 2),
    ("gb10", 64, 32): (4, 2),
    ("gb10", 128, 32): (2, 2),
    ("gb10", 128, 64): None,
    ("gb10", 64, 128): None,
    ("gb10", 256, 16): None,
}


@pytest.mark.parametrize(("target", "dim", "tile"), RINGS)
def test_as_many_warps_take_turns_as_have_room(target: str, dim: int, tile: int) -> None:
    text, expected = text_of(target, DIM=dim, TILE=tile), RINGS[target, dim, tile]
    assert in_turns(text) == (expected is not None)
    if expected is None:
        return
    takers, slots = expected
    assert f"own_step = {takers} * Int32(1)\n" in text and f"        if slot == {slots}:\n" in loop_of(text)
    assert f"cp_async_wait_group({slots - 1})" in loop_of(text)
    others = f"    if warp >= {takers}:\n        own_first = Int32(ENTRIES)\n"
    assert (others in text) == (takers < 8) == ("    if (warp < " in text)
    assert f"fragments.scales(m_parts, m_regs_2, {takers}, 2)" in text
    # Two tiles for each slot of each taker, behind each other
    starts = sorted(int(x) for x in re.findall(r"[kv]_tile = cute.recast_ptr\(shared \+ (\d+)", text))
    assert starts == [0, takers * slots * tile * (dim + 8) * 2]


def test_operands_of_fp32_are_shared_by_the_block() -> None:
    wide = (("DTYPE = pl.BF16", "DTYPE = pl.FP32"), (HALF, "weights"))
    assert not in_turns(kernel_of(lower(changed(*wide), H200)))
    assert in_turns(text_of())


def test_what_has_no_room_for_turns_is_lowered_without() -> None:
    assert not in_turns(text_of(DIM=64, TILE=256))


def test_two_loops_of_a_region_take_turns_as_far_as_there_is_room() -> None:
    """The second one, with the same text, behind the first: a ring that both wait for takes what there is."""
    text = Path(turn_kernels.__file__).read_text()
    body = text[text.index("        acc = ") : text.index("        pl.assemble(")]
    end = text[text.index("        pl.assemble(") :]
    twice = text.replace(end, end + body + end)
    for name, limit, joins in (("h200", 231424, 3), ("gb10", 100352, 3)):
        target = load_target(name)
        module = lower(lower_function(pl.parse(twice, "attend"), target).function, target)
        (kernel,) = (k for k in module.kernels if k.name == "attend")
        assert kernel.shared_bytes <= limit
        assert kernel.text.count("fragments.leave") == joins  # of the maximum and two sums


# ---------------------------------------------------------------------------------------- when things begin
@pytest.mark.parametrize(("tile", "slots"), [(32, 2), (16, 3)])
def test_the_first_loads_begin_before_the_wait_behind_all_look_ups(tile: int, slots: int) -> None:
    before, behind = text_of(TILE=tile).split(WAIT)
    assert before.count(COPY + "(keys") == before.count(COPY + "(values") == slots
    first = before.index(COPY)
    assert before[:first].count("block.element(table") == slots + 1  # and that of the trip behind them
    assert "block.element(table" not in before[first:]
    assert COPY not in behind[: behind.index("for p in ")]
    assert behind.count("copy_rows_now((q") == 1  # what the kernel before has made


def test_a_trip_s_slot_is_asked_for_again_when_the_trip_is_over() -> None:
    loop = loop_of(text_of())
    assert loop.count("sync_warp()") == 2
    order = ("wait_group(", "sync_warp()", "k_now, ", "v_now, ", "sync_warp()", COPY, "commit_group()")
    at = 0
    for word in order:
        at = loop.index(word, at) + 1
    assert COPY not in loop[: loop.index("v_now, ")]


# ---------------------------------------------------------------------------------------- sums of products
def test_a_product_that_is_only_added_is_summed_onto_the_rest() -> None:
    loop = loop_of(text_of())
    assert re.findall(r"fragments\.\w+\((\w+), (\w+), 72, (\w+), (\w+), ", loop) == [
        ("query_held", "k_now", "True", "scores_regs"),
        ("cast_mat_held", "v_now", "False", "acc_regs_2"),
    ]
    assert "acc_regs_2.fill" not in loop and "scores_regs.fill(Float32(0.0))" in loop


PART = "acc = pl.add(pl.row_expand_mul(acc, decay), part)"
SCORES = "pl.matmul(query, k, out_dtype=pl.FP32, b_trans=True)"
HALF = 'pl.cast(weights, DTYPE, mode="rint")'
ADDED: dict[str, tuple[str, str, list[str]]] = {
    "to something": (PART, PART, ["matmul", "matmul_acc"]),
    "and something to it": (
        PART, "acc = pl.add(part, pl.row_expand_mul(acc, decay))", ["matmul", "matmul_acc"]
    ),
    "to another product": (
        SCORES, f"pl.add({SCORES}, {SCORES})", ["matmul", "matmul_acc", "matmul_acc"]
    ),
    "and read by another": (
        PART, PART.replace("part", "pl.mul(part, part)"), ["matmul", "matmul"]
    ),
    "twice": (PART, PART.replace("part", "pl.add(part, part)"), ["matmul", "matmul"]),
    "and subtracted": (PART, PART.replace("pl.add", "pl.sub"), ["matmul", "matmul"]),
    "to a constant": (SCORES, f"pl.add({SCORES}, 1.0)", ["matmul", "matmul_acc"]),
}  # fmt: skip


@pytest.mark.parametrize("case", ADDED)
def test_which_products_are_summed_onto_something(case: str) -> None:
    old, new, expected = ADDED[case]
    function = changed((old, new))
    (loop,) = (s for s in walk(function.body) if isinstance(s, For))
    body = accumulated(loop.body, Counter(uses(function.body)))
    assert [s.op.name for s in body if isinstance(s, Let) and "matmul" in s.op.name] == expected
    sums = expected.count("matmul_acc")  # each in place of an add, a product and maybe the move between them
    kept = {r for s in body if isinstance(s, Let) for r in s.results}
    gone = {r for s in loop.body if isinstance(s, Let) for r in s.results} - kept
    assert len(loop.body) - len(body) == len(gone) and (len(gone) >= sums)
    needed = {x for s in body for x in uses((s,))}
    assert not gone & needed


def test_a_product_is_not_summed_onto_a_scalar() -> None:
    bias = "bias = pl.cast(pl.read(table, [b, 0]), pl.FP32)\n            scores = "
    change = (f"scores = {SCORES}", f"{bias}pl.add({SCORES}, bias)")
    assert in_turns(kernel_of(lower(changed(change), H200)))


# ---------------------------------------------------------------------------------------- the values
def check_values(
    module: Module, dim: int, tile: int, entries: int, sink: float, again: bool = False
) -> None:
    """The emitted kernel on CPU threads against attention in fp64.  ``sink`` is a weight beside exp(score);
    with ``again`` the first tile counts twice.
    """
    rng = np.random.default_rng(entries)

    def bf16(*shape: int) -> np.ndarray:
        rounded = [lockstep.bfloat16(v) for v in rng.standard_normal(np.prod(shape))]
        return np.array(rounded, np.float32).reshape(shape)

    tiles = entries + 2
    q, keys, values = bf16(32, dim), bf16(tiles * tile, dim), bf16(tiles * tile, dim)
    table = np.stack([rng.permutation(tiles)[:entries] for _ in range(2)]).astype(np.int32)
    y = np.full((2, 16, dim), np.nan, np.float32)
    arrays = {"q": q, "keys": keys, "values": values, "table": table, "y": y}
    given = {"ENTRIES": entries, **{name: x.reshape(-1) for name, x in arrays.items()}}
    kernel = module.kernels[-1]
    lockstep.run(kernel_of(module), kernel.name, 2, *(given[n] for n, _ in kernel.parameters))
    for b in range(2):
        tiles_read = [*table[b], *table[b, : int(again)]]
        rows = np.concatenate([np.arange(n * tile, (n + 1) * tile) for n in tiles_read])
        weights = np.exp(q[16 * b : 16 * b + 16].astype(np.float64) @ keys[rows].T)
        weights /= sink + weights.sum(1, keepdims=True)
        # Weights are rounded to the nearest number of 8 bits: at most 1 / 256 of each
        bound = 2**-8 * weights @ np.abs(values[rows]) + 1e-5
        assert (np.abs(y[b] - weights @ values[rows]) <= bound).all()


@pytest.mark.parametrize(
    ("target", "dim", "tile", "entries"),
    [*(("h200", 16, 16, n) for n in (1, 2, 7, 8, 9)), ("gb10", 16, 16, 25), ("gb10", 32, 128, 3)],
)
def test_what_the_warps_leave_joins_to_attention(target: str, dim: int, tile: int, entries: int) -> None:
    """Also with fewer trips than warps, and where a warp has more of them than slots."""
    check_values(module_of(attend, target, DIM=dim, TILE=tile), dim, tile, entries, 0.0)


def test_what_the_loop_began_with_is_joined_once() -> None:
    small = (("DIM = 64", "DIM = 16"), ("TILE = 32", "TILE = 16"))
    total = "total = pl.full([16, 1], pl.FP32, "
    sink = (("pl.FP32, LOWEST)", "pl.FP32, 0.0)"), (f"{total}0.0)", f"{total}5.0)"))
    check_values(lower(changed(*small, *sink), H200), 16, 16, 3, 5.0)


# ----------------------------------------------------------------------------------- a step before the loop
LOOP = "        for p in pl.pipeline(0, "
FIRST = """
        if pl.tensor.dim(table, 1) % 2 == 1:
            first = pl.cast(pl.read(table, [b, 0]), pl.INDEX) * TILE
            k0 = pl.slice(keys, [TILE, DIM], [first, 0])
            v0 = pl.slice(values, [TILE, DIM], [first, 0])
            scores0 = pl.matmul(query, k0, out_dtype=pl.FP32, b_trans=True)
            m0 = pl.maximum(m, pl.row_max(scores0))
            decay0 = pl.exp(pl.sub(m, m0))
            weights0 = pl.exp(pl.row_expand_sub(scores0, m0))
            total = pl.add(pl.mul(total, decay0), pl.row_sum(weights0))
            part0 = pl.matmul(pl.cast(weights0, DTYPE, mode="rint"), v0, out_dtype=pl.FP32)
            acc = pl.add(pl.row_expand_mul(acc, decay0), part0)
            m = m0
"""[1:]
TAKES = "        if warp == 7:\n"


def with_first(first: str = FIRST, between: str = "", dim: int = 16) -> Module:
    """The kernel with a step before its loop, which it makes of an odd number of tiles."""
    small = (("DIM = 64", f"DIM = {dim}"), ("TILE = 32", "TILE = 16"))
    return lower(changed(*small, (LOOP, first + between + LOOP)), H200)


@pytest.mark.parametrize("entries", [1, 2, 9])
def test_a_step_before_the_loop_is_one_warp_s(entries: int) -> None:
    module = with_first()
    text = kernel_of(module)
    assert in_turns(text) and TAKES in text and "block.mma_fragments" not in text
    behind = text[text.index(TAKES) : text.index("    for p in ")]
    assert BARRIER not in behind and behind.count("fragments.multiply(") == 2
    check_values(module, 16, 16, entries, 0.0, again=entries % 2 == 1)


def test_what_a_step_before_the_loop_begins_with_is_joined_once() -> None:
    total = "total = pl.full([16, 1], pl.FP32, "
    sink = (("pl.FP32, LOWEST)", "pl.FP32, 0.0)"), (f"{total}0.0)", f"{total}5.0)"))
    small = (("DIM = 64", "DIM = 16"), ("TILE = 32", "TILE = 16"))
    module = lower(changed(*small, *sink, (LOOP, FIRST + LOOP)), H200)
    assert TAKES in kernel_of(module)
    check_values(module, 16, 16, 3, 5.0, again=True)


STEPS: dict[str, tuple[str, str]] = {
    "that decides more": (FIRST + "        else:\n            m = pl.add(m, 1.0)\n", ""),
    "with another maximum": (FIRST.replace("pl.maximum(m, ", "pl.minimum(m, "), ""),
    "whose sum is not scaled": (FIRST.replace("pl.mul(total, decay0)", "total"), ""),
    "that does not add to all": (FIRST.replace("            total = ", "            other = "), ""),
    "that is changed again": (FIRST, "        acc = pl.mul(acc, 0.5)\n"),
    "that is read again": (FIRST, "        pl.assemble(y, acc, [b * 16, 0])\n"),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_branch_that_is_no_such_step_is_the_block_s(case: str) -> None:
    text = kernel_of(with_first(*STEPS[case]))
    assert in_turns(text) and TAKES not in text and "block.mma_fragments" in text


# ---------------------------------------------------------------------------------------- golden text
def test_the_text(golden_text: Callable[[str, str], None]) -> None:
    golden_text(text_of(), "attend_h200")


def attention_of(layer: pl.Kernel, given: dict[str, object]) -> str:
    """The text of a layer's attention on h200."""
    module = lower(lower_for(layer, (), H200, given).function, H200)
    (text,) = (k.text for k in module.kernels if "def attention(" in k.text)
    return text[text.index("def attention(") :]


def test_rings_of_single_warps_begin_behind_the_tiles_that_are_asked_for_first() -> None:
    """q, k and v of a step would come behind all its slots; a ring of the block has one in flight."""
    text = attention_of(decode_layer, dense.constants(dense.FULL, "h200"))
    assert "own_step" in text
    before, behind = text.split(WAIT)[:2]
    assert COPY not in before and ".load_rows((rope_cos" in before and ".put_rows(" not in before
    words = ("q_heads_held = ", "v_head_held = ", COPY, "put_rows(half_cos")
    order = [behind.index(x) for x in words]
    assert order == sorted(order)
    given = gated.constants(gated.FULL, "h200", layer="full")
    before, behind = attention_of(full_decode_layer, given).split(WAIT)[:2]
    assert COPY in before and behind.index("q_heads_held = ") < behind.index("put_rows(half_cos")
