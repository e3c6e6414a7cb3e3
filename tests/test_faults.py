"""Faults: what each class does to the text of a kernel, and that all of them are valid programs."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

import pypto_models.language as pl
from backends.sim import simulate
from pypto_models.errors import Diag, UserError
from pypto_models.faults import SCORED, Fault, FaultClass, faults_in, sample
from pypto_models.ir.nodes import Function
from pypto_models.ir.printer import format_function
from pypto_models.ir.verify import verify

ROWS, COLS, DEPTH, STEP = 32, 16, 48, 16
HALF = ROWS // 2


@pl.jit
def everything(
    x: pl.Tensor[[ROWS, DEPTH], pl.BF16],
    other: pl.Tensor[[ROWS, DEPTH], pl.BF16],
    w: pl.Tensor[[COLS, DEPTH], pl.BF16],
    scale: pl.Tensor[[1, COLS], pl.FP32],
    product: pl.Out[pl.Tensor[[ROWS, COLS], pl.FP32]],
    sums: pl.InOut[pl.Tensor[[HALF, COLS], pl.FP32]],
):
    for n in pl.spmd(2, name_hint="product"):
        acc = pl.create_tensor([HALF, COLS], pl.FP32)
        for k in pl.pipeline(DEPTH // STEP, stage=2):
            xk = pl.slice(x, [HALF, STEP], [n * HALF, k * STEP])
            wk = pl.slice(w, [COLS, STEP], [0, k * STEP])
            if k == 0:
                acc = pl.matmul(xk, wk, out_dtype=pl.FP32, b_trans=True)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        pl.assemble(product, acc, [n * HALF, 0])
    for h in pl.spmd(6, name_hint="sums"):
        third = h % 3
        t = pl.slice(product, [HALF, COLS], [h // 3 * HALF, 0])
        largest = pl.row_max(t)
        weights = pl.exp(pl.row_expand_sub(t, largest))
        rounded = pl.cast(pl.cast(pl.mul(weights, 0.5), pl.BF16, mode="rint"), pl.FP32)
        scaled = pl.col_expand_mul(rounded, pl.slice(scale, [1, COLS], [0, 0]))
        part = pl.sub(scaled, weights)
        if third > 0:
            pl.assemble(sums, part, [0, 0], atomic=pl.AtomicType.Add)


@cache
def function() -> Function:
    return pl.lower(everything)


@cache
def faults() -> list[Fault]:
    return faults_in(function())


def one(kind: FaultClass, words: str) -> Fault:
    """The only fault of a class whose description has these words."""
    (found,) = [f for f in faults() if f.kind is kind and words in f.what]
    return found


def arguments() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return {
        "x": torch.randn(ROWS, DEPTH, generator=g).bfloat16(),
        "other": torch.randn(ROWS, DEPTH, generator=g).bfloat16(),
        "w": torch.randn(COLS, DEPTH, generator=g).bfloat16(),
        "scale": torch.randn(1, COLS, generator=g),
        "product": torch.empty(ROWS, COLS),
        "sums": torch.zeros(HALF, COLS),
    }


def run(fn: Function) -> dict[str, torch.Tensor]:
    args = arguments()
    simulate(fn, args)
    return args


# ------------------------------------------------------------------------------------------ as programs
def test_every_class_has_a_place_here() -> None:
    assert {f.kind for f in faults()} == set(FaultClass)
    assert len(faults()) == len({f.key for f in faults()}) > 60


def test_every_fault_is_another_valid_program() -> None:
    """It verifies, its text differs from the original's, and can be read back."""
    original = format_function(function())
    silent = []
    for fault in faults():
        wrong = fault.apply()
        verify(wrong)
        text = format_function(wrong)
        assert text != original, str(fault)
        try:
            verify(pl.parse(text))
        except UserError as error:
            assert error.diag is Diag.OUT_NOT_WRITTEN, str(fault)
            silent.append(fault.what)
    assert silent == ["product stores nothing", "the store to product never happens"]


def test_the_original_stays_as_it_is() -> None:
    before = format_function(function())
    for fault in faults():
        fault.apply()
    assert format_function(function()) == before


def test_enumeration_is_the_same_every_time() -> None:
    assert [f.key for f in faults_in(function())] == [f.key for f in faults()]
    again = faults_in(pl.lower(everything))
    assert [f.key for f in again] == [f.key for f in faults()]


def test_a_fault_names_its_source_line() -> None:
    fault = one(FaultClass.OMIT_ADD, "atomic")
    line = Path(__file__).read_text().splitlines()[fault.span.line - 1]
    assert "atomic=pl.AtomicType.Add" in line
    assert str(fault).startswith(f"{__file__}:{fault.span.line}: omit an atomic")


def test_what_the_front_end_refuses_is_no_fault() -> None:
    """Row 16 of `w` [16, 48] does not exist: the type rule knows, so no comparison is asked."""
    places = [f.what for f in faults() if f.kind is FaultClass.OFF_BY_ONE and "load of w" in f.what]
    assert "load of w at +1 on axis 1" in places
    assert "load of w at +1 on axis 0" not in places


# ------------------------------------------------------------------------------------------ as text
CHOSEN = {
    "drop_region": (FaultClass.DROP_REGION, "sums stores nothing"),
    "drop_store": (FaultClass.DROP_REGION, "the store to product"),
    "first_trip": (FaultClass.DROP_ITERATION, "first trip"),
    "last_trip": (FaultClass.DROP_ITERATION, "last trip"),
    "skip_head": (FaultClass.SKIP_BLOCK, "third = 1"),
    "swap_tiles": (FaultClass.SWAP_OPERANDS, "sub takes rhs for lhs"),
    "constant": (FaultClass.CONSTANT, "1 for 0.5"),
    "load_off_by_one": (FaultClass.OFF_BY_ONE, "load of x at +1 on axis 1"),
    "next_row": (FaultClass.BROADCAST, "takes largest of the next row"),
    "other_axis": (FaultClass.BROADCAST, "col_expand_sub for row_expand_sub"),
    "no_atomic": (FaultClass.OMIT_ADD, "the atomic add"),
    "no_accumulation": (FaultClass.OMIT_ADD, "forgets"),
    "wrong_slot": (FaultClass.WRONG_SLOT, "store to product at +16 on axis 0"),
    "other_buffer": (FaultClass.STALE, "reads other for x"),
    "too_early": (FaultClass.STALE, "sums runs before product"),
    "old_value": (FaultClass.STALE, "acc keeps its value"),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_text(name: str, golden_text: Callable[[str, str], None]) -> None:
    """The change as a diff of the printed text."""
    before, after = (format_function(f).splitlines() for f in (function(), some(name).apply()))
    golden_text("\n".join(difflib.unified_diff(before, after, "kernel", "fault", lineterm="", n=1)), name)


def some(name: str) -> Fault:
    kind, words = CHOSEN[name]
    matching = [f for f in faults() if f.kind is kind and words in f.what]
    assert matching, f"no fault of {kind} says {words!r}"
    return matching[0]


# ------------------------------------------------------------------------------------------ as values
def sums_of(product: torch.Tensor, parts: tuple[int, ...] = (1, 2, 4, 5)) -> torch.Tensor:
    """What `sums` becomes, for the blocks that add to it; written without the kernel."""
    total = torch.zeros(HALF, COLS)
    for block in parts:
        t = product[block // 3 * HALF :][:HALF]
        weights = torch.exp(t - t.amax(1, keepdim=True))
        total += (weights * 0.5).bfloat16().float() * arguments()["scale"] - weights
    return total


def test_the_kernel_without_a_fault() -> None:
    got, args = run(function()), arguments()
    torch.testing.assert_close(got["product"], args["x"].float() @ args["w"].float().T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got["sums"], sums_of(got["product"]))


def test_omitted_atomic_keeps_the_last_block_only() -> None:
    got = run(one(FaultClass.OMIT_ADD, "atomic").apply())
    torch.testing.assert_close(got["sums"], sums_of(got["product"], (5,)))


def test_omitted_accumulation_keeps_the_last_step_only() -> None:
    got, args = run(one(FaultClass.OMIT_ADD, "forgets").apply()), arguments()
    last = args["x"][:, -STEP:].float() @ args["w"][:, -STEP:].float().T
    torch.testing.assert_close(got["product"], last)


def test_skipped_head_leaves_out_its_blocks() -> None:
    got = run(one(FaultClass.SKIP_BLOCK, "third = 1").apply())
    torch.testing.assert_close(got["sums"], sums_of(got["product"], (2, 5)))


def test_swapped_sub_is_its_negative() -> None:
    swapped = next(f for f in faults() if f.what == "sub takes rhs for lhs")
    got = run(swapped.apply())
    torch.testing.assert_close(got["sums"], -sums_of(got["product"]))


def test_swapped_broadcast_sub_is_its_negative() -> None:
    """[M, N] - [M, 1] has no other order of its own: exp(largest - t) in place of exp(t - largest)."""
    got = run(one(FaultClass.SWAP_OPERANDS, "row_expand_sub takes rhs for lhs").apply())
    total = torch.zeros(HALF, COLS)
    for block in (1, 2, 4, 5):
        t = got["product"][block // 3 * HALF :][:HALF]
        weights = torch.exp(t.amax(1, keepdim=True) - t)
        total += (weights * 0.5).bfloat16().float() * arguments()["scale"] - weights
    torch.testing.assert_close(got["sums"], total)


def test_broadcast_of_the_next_row() -> None:
    got = run(one(FaultClass.BROADCAST, "takes largest of the next row").apply())
    t = got["product"]
    shifted = torch.cat([h.amax(1, keepdim=True).roll(-1, 0) for h in (t[:HALF], t[HALF:])])
    total = torch.zeros(HALF, COLS)
    for block in (1, 2, 4, 5):
        at = slice(block // 3 * HALF, block // 3 * HALF + HALF)
        weights = torch.exp(t[at] - shifted[at])
        total += (weights * 0.5).bfloat16().float() * arguments()["scale"] - weights
    torch.testing.assert_close(got["sums"], total)


@pl.jit
def broadcasts(
    x: pl.Tensor[[ROWS, ROWS], pl.FP32],
    column: pl.Out[pl.Tensor[[ROWS, ROWS], pl.FP32]],
    ramp: pl.Out[pl.Tensor[[ROWS, ROWS], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.slice(x, [ROWS, ROWS], [0, 0])
        column = pl.assemble(column, pl.row_expand(t, pl.row_max(t)), [0, 0])
        counted = pl.cast(pl.arange(3, [1, ROWS], pl.INT32), pl.FP32)
        ramp = pl.assemble(ramp, pl.col_expand(t, counted), [0, 0])


@pytest.mark.parametrize(
    ("words", "column", "ramp"),
    [
        ("row_expand takes row_max of the next row", lambda top: top.roll(-1)[:, None], None),
        ("col_expand for row_expand", lambda top: top[None, :], None),
        ("col_expand takes counted of the next column", None, lambda up: up.roll(-1)[None, :]),
        ("row_expand for col_expand", None, lambda up: up[:, None]),
        ("arange with descending=True", None, lambda up: 6 - up[None, :]),
        ("in arange(start): 4 for 3", None, lambda up: up[None, :] + 1),
    ],
)
def test_plain_broadcasts_and_ramps(
    words: str, column: Callable[..., torch.Tensor] | None, ramp: Callable[..., torch.Tensor] | None
) -> None:
    (fault,) = [f for f in faults_in(pl.lower(broadcasts)) if words in f.what]
    x = torch.randn(ROWS, ROWS, generator=torch.Generator().manual_seed(4))
    got = {"x": x, "column": torch.empty(ROWS, ROWS), "ramp": torch.empty(ROWS, ROWS)}
    simulate(fault.apply(), got)
    top, up = x.amax(1), torch.arange(3.0, 3.0 + ROWS)
    ones = torch.ones(ROWS, ROWS)
    assert torch.equal(got["column"], ones * (column(top) if column else top[:, None]))
    assert torch.equal(got["ramp"], ones * (ramp(up) if ramp else up[None, :]))


def test_stale_buffer_is_read() -> None:
    got, args = run(one(FaultClass.STALE, "reads other for x").apply()), arguments()
    want = args["other"].float() @ args["w"].float().T
    torch.testing.assert_close(got["product"], want, rtol=1e-5, atol=1e-5)


def test_dropped_rounding_computes_without_it() -> None:
    drop = [f for f in faults() if f.kind is FaultClass.ROUNDING and "left out" in f.what]
    assert len(drop) == 1  # the cast back to fp32 widens only: col_expand_mul would do it too
    got = run(drop[0].apply())
    total = torch.zeros(HALF, COLS)
    for block in (1, 2, 4, 5):
        t = got["product"][block // 3 * HALF :][:HALF]
        weights = torch.exp(t - t.amax(1, keepdim=True))
        total += weights * 0.5 * arguments()["scale"] - weights
    torch.testing.assert_close(got["sums"], total)
    assert (got["sums"] - run(function())["sums"]).abs().max() > 1e-4


def test_too_early_reads_what_is_not_there() -> None:
    with pytest.raises(UserError, match="never written") as caught:
        run(one(FaultClass.STALE, "sums runs before product").apply())
    assert caught.value.diag is Diag.UNINITIALISED


# ------------------------------------------------------------------------------------------ the sampler
def test_a_sample_spreads_over_classes_and_lines() -> None:
    few = sample(faults(), 2 * len(FaultClass))
    counts = Counter(f.kind for f in few)
    assert set(counts) == set(FaultClass)
    available = Counter(f.kind for f in faults())
    assert all(counts[k] >= min(2, available[k]) for k in FaultClass)
    by_one = [f for f in sample(faults(), 60) if f.kind is FaultClass.OFF_BY_ONE]
    lines = {f.span.line for f in faults() if f.kind is FaultClass.OFF_BY_ONE}
    assert len({f.span.line for f in by_one}) == min(len(by_one), len(lines))


def test_a_sample_depends_on_its_seed_only() -> None:
    def keys(seed: int) -> list[tuple[str, int, str]]:
        return [f.key for f in sample(faults(), 40, seed)]

    assert keys(1) == keys(1) != keys(2)
    assert len(set(keys(1))) == 40
    assert sample(faults(), 10**6) == faults()


def test_rounding_modes_are_not_scored() -> None:
    assert set(FaultClass) - set(SCORED) == {FaultClass.ROUNDING_MODE}
