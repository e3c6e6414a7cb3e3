"""Which loops keep an online softmax, and that parts of their trips join to what all of them leave."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pypto_models.language as pl
from backends.gpu.softmax import online_softmax
from pypto_models.compile import lower_function
from pypto_models.ir.expr import Var
from pypto_models.ir.nodes import For, Let
from pypto_models.ir.rewrite import walk
from pypto_models.target import load_target

H200 = load_target("h200")
LOWEST = -torch.finfo(torch.float32).max  # finite: exp of the difference of two is 1, and not NaN
HEAD = """import pypto_models.language as pl

@pl.jit
def kernel(
    q: pl.Tensor[[16, 16], pl.BF16],
    keys: pl.Tensor[[128, 16], pl.BF16],
    values: pl.Tensor[[128, 16], pl.BF16],
    n: pl.Tensor[[1], pl.INT32],
    top: pl.InOut[pl.Tensor[[16, 1], pl.FP32]],
    y: pl.InOut[pl.Tensor[[16, 16], pl.FP32]],
):
    with pl.at(name_hint='attend'):
"""
BEFORE = """query = pl.slice(q, [16, 16], [0, 0])
m = pl.full([16, 1], pl.FP32, -3.0e38)
total = pl.full([16, 1], pl.FP32, 0.0)
acc = pl.full([16, 16], pl.FP32, 0.0)
trips = pl.cast(pl.read(n, [0]), pl.INDEX)
"""
LOOP = """for p in pl.pipeline(0, trips, stage=2):
    k = pl.slice(keys, [16, 16], [p * 16, 0])
    v = pl.slice(values, [16, 16], [p * 16, 0])
    scores = pl.matmul(query, k, out_dtype=pl.FP32, b_trans=True)
    new = pl.maximum(m, pl.row_max(scores))
    decay = pl.exp(pl.sub(m, new))
    weights = pl.exp(pl.row_expand_sub(scores, new))
    total = pl.add(pl.mul(total, decay), pl.row_sum(weights))
    half = pl.cast(weights, pl.BF16, mode='rint')
    acc = pl.add(pl.row_expand_mul(acc, decay), pl.matmul(half, v, out_dtype=pl.FP32))
    m = new
"""
AFTER = """pl.assemble(top, pl.add(m, total), [0, 0])
pl.assemble(y, acc, [0, 0])
"""
Change = tuple[str, str]


def loop_of(*changes: Change) -> For:
    """The loop, with parts of its text replaced."""
    text = BEFORE + LOOP + AFTER
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    parsed = pl.parse(HEAD + textwrap.indent(text, " " * 8), "kernel")
    (loop,) = (s for s in walk(lower_function(parsed, H200).function.body) if isinstance(s, For))
    return loop


def after(line: str, *more: str) -> Change:
    """Lines behind one of the loop's."""
    return line, "\n    ".join((line, *more))


DECAY = "decay = pl.exp(pl.sub(m, new))"
WEIGHTS = "weights = pl.exp(pl.row_expand_sub(scores, new))"
NEW = "new = pl.maximum(m, pl.row_max(scores))"
LAST = "    m = new\n"
MORE = "total = pl.full([16, 1], pl.FP32, 0.0)\n"

KEPT: dict[str, tuple[Change, ...]] = {
    "attention": (),
    "operands the other way round": (
        (NEW, "new = pl.maximum(pl.row_max(scores), m)"),
        ("pl.mul(total, decay), pl.row_sum(weights)", "pl.row_sum(weights), pl.mul(decay, total)"),
    ),
    "the weights themselves summed": (("pl.matmul(half, v, out_dtype=pl.FP32)", "weights"),),
    "two products of the weights": (
        (MORE, MORE + "other = pl.full([16, 16], pl.FP32, 0.0)\n"),
        after("acc = pl.add(pl.row_expand_mul(acc, decay), pl.matmul(half, v, out_dtype=pl.FP32))",
              "other = pl.add(pl.matmul(half, k, out_dtype=pl.FP32), pl.row_expand_mul(other, decay))"),
        ("pl.assemble(y, acc,", "pl.assemble(y, pl.add(acc, other),"),
    ),
    "a loop of another kind": (("pl.pipeline(0, trips, stage=2)", "pl.range(trips)"),),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_it_is_recognised(case: str) -> None:
    loop = loop_of(*KEPT[case])
    found = online_softmax(loop)
    assert found is not None
    sums = {"total", "acc"} | ({"other"} if case == "two products of the weights" else set())
    assert found.maximum.param.name == "m" and {c.param.name for c in found.sums} == sums
    assert list(found.sums) == [c for c in loop.carried if c is not found.maximum]  # in the loop's order


NONE: dict[str, tuple[Change, ...]] = {
    "a sum without the decay": (("pl.mul(total, decay)", "total"),),
    "a product summed without the decay": (("pl.row_expand_mul(acc, decay)", "acc"),),
    "the decay twice": (("pl.mul(total, decay)", "pl.mul(pl.mul(total, decay), decay)"),),
    "the decay upside down": ((DECAY, "decay = pl.exp(pl.sub(new, m))"),),
    "the gap in place of the decay": ((DECAY, "decay = pl.sub(m, new)"),),
    "the decay of the term": (("pl.row_sum(weights))", "pl.mul(pl.row_sum(weights), decay))"),),
    "weights not shifted": ((WEIGHTS, "weights = pl.exp(scores)"),),
    "weights shifted by the old maximum": ((WEIGHTS, "weights = pl.exp(pl.row_expand_sub(scores, m))"),),
    "weights shifted by the trip's maximum": (
        (WEIGHTS, "weights = pl.exp(pl.row_expand_sub(scores, pl.row_max(scores)))"),
    ),
    "scores added to the maximum": ((WEIGHTS, "weights = pl.exp(pl.row_expand_add(scores, new))"),),
    "weights not exponential": ((WEIGHTS, "weights = pl.row_expand_sub(scores, new)"),),
    "an exponential of the weights": (("pl.row_sum(weights)", "pl.row_sum(pl.exp(weights))"),),
    "a square of the weights": (("pl.row_sum(weights)", "pl.row_sum(pl.mul(weights, weights))"),),
    "a maximum of the weights": (("pl.row_sum(weights)", "pl.row_max(weights)"),),
    "a constant added": (("pl.row_sum(weights)", "pl.add(pl.row_sum(weights), 1.0)"),),
    "a sum added to itself": (("pl.row_sum(weights))", "total)"),),
    "weights as integers": (
        ("half = pl.cast(weights, pl.BF16, mode='rint')",
         "half = pl.cast(pl.cast(weights, pl.INT32, mode='trunc'), pl.BF16, mode='rint')"),
    ),
    "the weights transposed": (("pl.matmul(half, v, ", "pl.matmul(half, v, a_trans=True, "),),
    "the weights on the right": (("pl.matmul(half, v, ", "pl.matmul(v, half, "),),
    "the maximum used elsewhere": (after(LAST.strip(), "pl.assemble(top, pl.neg(new), [0, 0])"),),
    "the old maximum in the scores": (
        (NEW, "new = pl.maximum(m, pl.row_max(pl.row_expand_add(scores, m)))"),
    ),
    "a sum in the scores": (
        (NEW, "new = pl.maximum(m, pl.row_max(pl.row_expand_add(scores, total)))"),
    ),
    "a sum used elsewhere": ((WEIGHTS, "weights = pl.exp(pl.sub(pl.row_expand_sub(scores, new), acc))"),),
    "a scalar carried as well": (
        (MORE, MORE + "count = 0\n"), (LAST, LAST + "    count = count + p\n"),
        ("pl.add(m, total)", "pl.add(m, pl.mul(total, pl.cast(count, pl.FP32)))"),
    ),
    "a tile carried as well": (
        (MORE, MORE + "other = pl.full([16, 1], pl.FP32, 1.0)\n"),
        (LAST, LAST + "    other = pl.mul(other, pl.row_max(scores))\n"),
        ("pl.add(m, total)", "pl.mul(other, pl.add(m, total))"),
    ),
    "a store": ((LAST, LAST + "    pl.assemble(y, scores, [0, 0])\n"),),
    "a branch": ((LAST, LAST + "    if p == 3:\n        total = pl.mul(total, 2.0)\n"),),
    "no maximum": (
        (NEW, "new = pl.row_max(scores)"), (DECAY, "decay = pl.exp(new)"), (LAST, ""),
    ),
    "two maxima": (
        (MORE, MORE + "other = pl.full([16, 1], pl.FP32, 0.0)\n"),
        (LAST, LAST + "    other = pl.maximum(other, pl.row_max(scores))\n"),
        ("pl.add(m, total)", "pl.add(other, pl.add(m, total))"),
    ),
    "a minimum": ((NEW, "new = pl.minimum(m, pl.row_max(scores))"),),
    "the maximum scaled": ((NEW, "new = pl.mul(pl.maximum(m, pl.row_max(scores)), 2.0)"),),
    "the sums exchanged": (
        (MORE, MORE + "other = pl.full([16, 1], pl.FP32, 0.0)\n"),
        ("total = pl.add(pl.mul(total, decay), pl.row_sum(weights))",
         "next = pl.add(pl.mul(total, decay), pl.row_sum(weights))\n"
         "    total = pl.add(pl.mul(other, decay), pl.row_sum(weights))\n"
         "    other = next"),
        ("pl.add(m, total)", "pl.add(other, pl.add(m, total))"),
    ),
    "sums of half precision": (
        (MORE, "total = pl.full([16, 1], pl.BF16, 0.0)\n"),
        ("total = pl.add(pl.mul(total, decay), pl.row_sum(weights))",
         "next = pl.add(pl.mul(pl.cast(total, pl.FP32), decay), pl.row_sum(weights))\n"
         "    total = pl.cast(next, pl.BF16, mode='rint')"),
        ("pl.add(m, total)", "pl.add(m, pl.cast(total, pl.FP32))"),
    ),
}  # fmt: skip


ANOTHER: dict[str, tuple[Change, ...]] = {
    "the decay to another maximum": (
        after(NEW, "wide = pl.maximum(m, pl.mul(pl.row_max(scores), 2.0))"),
        (DECAY, "decay = pl.exp(pl.sub(m, wide))"),
    ),
    "weights shifted by another maximum": (
        after(NEW, "wide = pl.maximum(m, pl.mul(pl.row_max(scores), 2.0))"),
        (WEIGHTS, "weights = pl.exp(pl.row_expand_sub(scores, wide))"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NONE)
def test_it_is_not(case: str) -> None:
    assert online_softmax(loop_of(*NONE[case])) is None


@pytest.mark.parametrize("case", ANOTHER)
def test_it_is_not_with_another_maximum(case: str) -> None:
    assert online_softmax(loop_of(*ANOTHER[case])) is None


# ------------------------------------------------------------------------------------------- joining
def product(x: Let, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.T if x.arg("a_trans") else a) @ (b.T if x.arg("b_trans") else b)


MEANS: dict[str, Callable[..., torch.Tensor]] = {
    "maximum": torch.maximum, "add": torch.add, "sub": torch.sub, "mul": torch.mul, "exp": torch.exp,
    "row_expand_sub": torch.sub, "row_expand_mul": torch.mul, "cast": lambda x: x, "move": lambda x: x,
    "row_sum": lambda x: x.sum(1, keepdim=True), "row_max": lambda x: x.amax(1, keepdim=True),
}  # fmt: skip
Tiles = dict[Any, torch.Tensor]


def run(loop: For, state: Tiles, trips: Sequence[dict[str, torch.Tensor]], outside: torch.Tensor) -> Tiles:
    """What the loop carries after some trips, by parameter, in fp64 without casts: ``trips`` are the tiles
    that they load, by tensor, and ``outside`` is what is defined before the loop.
    """
    for tiles in trips:
        now = dict(state)
        for x in loop.body:
            if not isinstance(x, Let):
                continue
            if x.op.name == "load":
                now[x.result] = tiles[x.args[0].name]  # type: ignore[union-attr]
                continue
            taken = [now.get(a, outside) for a in x.args if isinstance(a, Var)]
            now[x.result] = product(x, *taken) if x.op.name == "matmul" else MEANS[x.op.name](*taken)
        state = {c.param: now[c.next] for c in loop.carried}
    return state


def joined(parts: Sequence[Tiles], maximum: Any) -> Tiles:
    """M = the maximum of m, X = the sum of x exp(m - M)."""
    top = torch.stack([p[maximum] for p in parts]).amax(0)
    scales = [torch.exp(p[maximum] - top) for p in parts]
    sums = {n: sum(p[n] * s for p, s in zip(parts, scales, strict=True)) for n in parts[0]}
    return {**sums, maximum: top}  # type: ignore[dict-item]


def difference(a: Tiles, b: Tiles) -> float:
    """The largest of all elements, relative to the largest of their tile."""
    return max(((a[n] - b[n]).abs().max() / a[n].abs().max()).item() for n in a)


def apart_and_in_turn(loop: For, seed: int, takers: Sequence[int], steep: float) -> tuple[Tiles, Tiles]:
    """What the loop leaves, and what it leaves when trip i belongs to part ``takers[i]`` of four.

    It does not begin with nothing; the parts do.
    """
    g = torch.Generator().manual_seed(seed)

    def tile(width: int = 16) -> torch.Tensor:
        return torch.randn(16, width, generator=g, dtype=torch.float64)

    trips = [{"keys": steep * tile(), "values": tile()} for _ in takers]
    began = {c.param: tile(1 if c.param.name in ("m", "total") else 16) for c in loop.carried}
    found = online_softmax(loop)
    maximum = next(c.param for c in loop.carried if c.param.name == "m")
    assert found is None or found.maximum.param is maximum
    nothing = {p: torch.full_like(x, LOWEST if p is maximum else 0.0) for p, x in began.items()}
    query = tile()
    parts = [
        run(loop, nothing, [t for t, own in zip(trips, takers, strict=True) if own == n], query)
        for n in range(4)
    ]
    return run(loop, began, trips, query), joined([began, *parts], maximum)


LOOPS = {case: loop_of(*changes) for case, changes in KEPT.items()}


@given(
    case=st.sampled_from(list(KEPT)),
    seed=st.integers(0, 1 << 20),
    takers=st.lists(st.integers(0, 3), max_size=6),
    steep=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_parts_of_its_trips_join_to_all_of_them(
    case: str, seed: int, takers: list[int], steep: float
) -> None:
    serial, apart = apart_and_in_turn(LOOPS[case], seed, takers, steep)
    assert difference(serial, apart) < 1e-12


@pytest.mark.parametrize(
    "case", ["a sum without the decay", "the decay twice", "weights not shifted", "a square of the weights"]
)
def test_what_is_not_recognised_does_not_join(case: str) -> None:
    serial, apart = apart_and_in_turn(loop_of(*NONE[case]), 0, [0, 1, 2, 0, 1], 1.0)
    assert difference(serial, apart) > 1e-3
