"""Memory plans: tables worked out by hand, regions that fit the chips, budgets and extents that do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pypto_models.language as pl
from pypto_models.errors import UserError
from pypto_models.ir.nodes import Function, Region
from pypto_models.ir.rewrite import walk
from pypto_models.ir.types import Mem
from pypto_models.passes import infer_memory, plan_memory, split
from pypto_models.passes.plan_memory import MemoryPlan, RegionPlan
from pypto_models.target import load_target

from . import wide_kernels as wide
from .kernels import LAYER, fa_fused, gate_up_silu, out_proj
from .machine import Clobbered, check_plan
from .random_regions import Maker

KIB = 1024


def lowered(kernel: pl.Kernel, target: str = "a2a3") -> Function:
    t = load_target(target)
    return split.run(infer_memory.run(pl.lower(kernel), t), t)


def planned(kernel: pl.Kernel, target: str = "a2a3") -> MemoryPlan:
    return plan_memory.plan(lowered(kernel, target), load_target(target))


def region_plan(kernel: pl.Kernel, target: str = "a2a3") -> RegionPlan:
    (region,) = planned(kernel, target).regions
    return region


def table(kernel: pl.Kernel, space: Mem) -> list[tuple[str, int, int, int]]:
    """``(name, offset, bytes, count)`` of the buffers of one space, by first use."""
    return [(b.name, b.offset, b.bytes, b.count) for b in region_plan(kernel).spaces[space].buffers]


def peak(kernel: pl.Kernel, space: Mem = Mem.Vec) -> int:
    return region_plan(kernel).spaces[space].peak


# -------------------------------------------------------------------------------------- worked out by hand
@pl.jit
def chain(x: pl.Tensor[[16, 256], pl.FP32], y: pl.Out[pl.Tensor[[16, 256], pl.BF16]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="chain"):
        a = pl.slice(x, [16, 256], [0, 0])
        y = pl.assemble(y, pl.cast(pl.exp(pl.mul(a, 2.0)), pl.BF16), [0, 0])
    return y


def test_elementwise_ops_run_in_place() -> None:
    (buffer,) = region_plan(chain).spaces[Mem.Vec].buffers
    assert (buffer.name, buffer.offset, buffer.bytes, buffer.count) == ("a", 0, 16 * 256 * 4, 1)
    assert buffer.shared_with == ("mul", "exp", "cast")
    assert (buffer.first, buffer.last) == (0, 4)  # load, mul, exp, cast, store
    assert buffer.shape == (16, 256) and buffer.span.file == __file__


@pl.jit
def widened(x: pl.Tensor[[16, 256], pl.BF16], y: pl.Out[pl.Tensor[[256, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        a = pl.slice(x, [16, 256], [0, 0])
        b = pl.cast(a, pl.FP32)
        c = pl.transpose(b, 0, 1)
        y = pl.assemble(y, c, [0, 0])
    return y


def test_a_wider_result_and_a_transpose_need_their_own_buffers() -> None:
    # a: 8 KiB until b exists; b and c: 16 KiB each, together.  a's place is free again for c.
    assert sorted(table(widened, Mem.Vec)) == [
        ("a", 16 * KIB, 8 * KIB, 1), ("b", 0, 16 * KIB, 1), ("c", 16 * KIB, 16 * KIB, 1),
    ]  # fmt: skip
    assert peak(widened) == 32 * KIB


@pl.jit
def two_sums(x: pl.Tensor[[32, 256], pl.FP32], y: pl.Out[pl.Tensor[[16, 1], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        a = pl.slice(x, [16, 256], [0, 0])
        s = pl.row_sum(a)
        b = pl.slice(x, [16, 256], [16, 0])
        t = pl.row_sum(b)
        y = pl.assemble(y, pl.add(s, t), [0, 0])
    return y


def test_the_space_of_dead_tiles_is_reused() -> None:
    # b takes the place of a, which died in the first row_sum; s (64 bytes) and t stay; s + t is s.
    assert table(two_sums, Mem.Vec) == [
        ("a", 0, 16 * KIB, 1), ("s", 16 * KIB, 64, 1), ("b", 0, 16 * KIB, 1), ("t", 16 * KIB + 64, 64, 1),
    ]  # fmt: skip


@pl.jit
def kept(x: pl.Tensor[[16, 256], pl.FP32], y: pl.Out[pl.Tensor[[16, 256], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        a = pl.slice(x, [16, 256], [0, 0])
        b = pl.exp(a)
        y = pl.assemble(y, pl.sub(b, a), [0, 0])
    return y


def test_an_operand_that_is_read_again_is_not_overwritten() -> None:
    assert table(kept, Mem.Vec) == [("a", 0, 16 * KIB, 1), ("b", 16 * KIB, 16 * KIB, 1)]


@pl.jit
def summed(x: pl.Tensor[[16, 1024], pl.FP32], y: pl.Out[pl.Tensor[[16, 256], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        scale = pl.slice(x, [16, 256], [0, 0])
        acc = pl.full([16, 256], dtype=pl.FP32, value=0.0)
        for k in pl.range(4):
            part = pl.slice(x, [16, 256], [0, k * 256])
            acc = pl.add(acc, pl.mul(part, scale))
        y = pl.assemble(y, acc, [0, 0])
    return y


def test_a_carried_value_is_updated_in_place() -> None:
    # scale is live in the whole loop; part and its product share; acc is one buffer throughout.
    assert table(summed, Mem.Vec) == [
        ("scale", 0, 16 * KIB, 1), ("acc", 16 * KIB, 16 * KIB, 1), ("part", 32 * KIB, 16 * KIB, 1),
    ]  # fmt: skip


@pl.jit
def copied(x: pl.Tensor[[16, 1024], pl.FP32], y: pl.Out[pl.Tensor[[64, 256], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        acc = pl.full([16, 256], dtype=pl.FP32, value=0.0)
        for k in pl.range(4):
            new = pl.exp(acc)
            y = pl.assemble(y, pl.sub(acc, new), [k * 16, 0])
            acc = new
    return y


def test_a_next_value_computed_beside_the_current_one_has_its_own_buffer() -> None:
    # new is made while acc is still read; acc - new then takes over acc, to which new is copied at the end.
    rows = region_plan(copied).spaces[Mem.Vec].buffers
    assert [(b.name, b.offset, b.bytes) for b in rows] == [("acc", 0, 16 * KIB), ("new", 16 * KIB, 16 * KIB)]
    assert "sub" in rows[0].shared_with


@pl.jit
def exchanged(x: pl.Tensor[[16, 512], pl.FP32], y: pl.Out[pl.Tensor[[16, 256], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        a = pl.slice(x, [16, 256], [0, 0])
        b = pl.slice(x, [16, 256], [0, 256])
        for k in pl.range(4):
            old = a
            a = b
            b = old
        y = pl.assemble(y, pl.sub(a, b), [0, 0])
    return y


def test_an_exchange_needs_a_third_buffer() -> None:
    assert peak(exchanged) == 3 * 16 * KIB


@pl.jit
def branches(
    x: pl.Tensor[[16, 512], pl.FP32], n: pl.Scalar[pl.INT32], y: pl.Out[pl.Tensor[[16, 256], pl.FP32]]
):
    with pl.at(level=pl.Level.CORE_GROUP):
        both = pl.slice(x, [16, 256], [0, 0])
        if n > 0:
            value = pl.transpose(pl.transpose(both, 0, 1), 0, 1)
        else:
            value = pl.slice(x, [16, 256], [0, 256])
        y = pl.assemble(y, pl.add(both, value), [0, 0])
    return y


def test_branches_share_their_space() -> None:
    # then: both, one transposed, the second transposed into value; else: both and value.
    assert peak(branches) == 3 * 16 * KIB
    values = [b for b in region_plan(branches).spaces[Mem.Vec].buffers if "value" in (b.name, *b.shared_with)]
    assert len(values) == 1


@pl.jit
def k_loop(
    x: pl.Tensor[[16, 1024], pl.BF16],
    w: pl.Tensor[[1024, 256], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 256], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        acc = pl.create_tensor([16, 256], dtype=pl.FP32)
        for k in pl.range(4):
            xk = pl.slice(x, [16, 256], [0, k * 256])
            wk = pl.slice(w, [256, 256], [k * 256, 0])
            acc = pl.matmul_acc(acc, xk, wk, init_cond=k == 0)
        y = pl.assemble(y, acc, [0, 0])
    return y


def test_k_loop() -> None:
    assert sorted(table(k_loop, Mem.Mat)) == [("wk", 0, 128 * KIB, 1), ("xk", 128 * KIB, 8 * KIB, 1)]
    assert table(k_loop, Mem.Acc) == [("acc", 0, 16 * KIB, 1)]
    # x fits Left beside the next step; w (128 KiB) is cut along K to half of Right
    assert table(k_loop, Mem.Left) == [("xk staged for pl.matmul_acc", 0, 8 * KIB, 1)]
    assert table(k_loop, Mem.Right) == [("wk staged for pl.matmul_acc", 0, 32 * KIB, 1)]


@pl.jit
def pipelined_k_loop(
    x: pl.Tensor[[16, 1024], pl.BF16],
    w: pl.Tensor[[1024, 256], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 256], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        acc = pl.create_tensor([16, 256], dtype=pl.FP32)
        for k in pl.pipeline(4, stage=STAGES):
            xk = pl.slice(x, [16, 256], [0, k * 256])
            wk = pl.slice(w, [256, 256], [k * 256, 0])
            acc = pl.matmul_acc(acc, xk, wk, init_cond=k == 0)
        y = pl.assemble(y, acc, [0, 0])
    return y


STAGES = 2


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_pipeline_stages_multiply_what_is_loaded(stages: int) -> None:
    target = load_target("a2a3")
    fn = infer_memory.run(pl.lower(pipelined_k_loop, constants={"STAGES": stages}), target)
    (region,) = plan_memory.plan(fn, target).regions
    mat = {b.name: (b.offset, b.bytes, b.count) for b in region.spaces[Mem.Mat].buffers}
    assert mat == {"wk": (0, 128 * KIB, stages), "xk": (stages * 128 * KIB, 8 * KIB, stages)}
    assert region.spaces[Mem.Mat].peak == stages * 136 * KIB
    assert region.spaces[Mem.Acc].peak == 16 * KIB  # carried, so not multiplied


@pl.jit
def pipelined_chain(x: pl.Tensor[[64, 256], pl.FP32], y: pl.Out[pl.Tensor[[64, 256], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        for k in pl.pipeline(4, stage=3):
            a = pl.slice(x, [16, 256], [k * 16, 0])
            c = pl.exp(pl.transpose(pl.transpose(pl.exp(a), 0, 1), 0, 1))
            y = pl.assemble(y, c, [k * 16, 0])
    return y


def test_a_result_in_place_of_a_pipelined_load_is_in_its_slot() -> None:
    # three loads ahead; exp(a) in the slot; two transposes beside them, the last exp in place.
    rows = region_plan(pipelined_chain).spaces[Mem.Vec].buffers
    assert sorted((b.bytes, b.count) for b in rows) == [(16 * KIB, 1), (16 * KIB, 1), (16 * KIB, 3)]
    assert peak(pipelined_chain) == 5 * 16 * KIB


@pl.jit
def late_load(
    x: pl.Tensor[[64, 512], pl.FP32], n: pl.Scalar[pl.INT32], y: pl.Out[pl.Tensor[[64, 256], pl.FP32]]
):
    with pl.at(level=pl.Level.CORE_GROUP):
        for k in pl.pipeline(4, stage=2):
            value = pl.full([16, 256], dtype=pl.FP32, value=1.0)
            if n > k:
                value = pl.slice(x, [16, 256], [k * 16, 0])
            y = pl.assemble(y, value, [k * 16, 0])
    return y


def test_a_load_ahead_takes_its_slot_from_the_start_of_the_trip() -> None:
    # the constant is made while the slot already holds the value loaded for this trip
    rows = region_plan(late_load).spaces[Mem.Vec].buffers
    assert sorted(b.count for b in rows) == [1, 2]
    assert peak(late_load) == 3 * 16 * KIB


@pl.jit
def short_pipeline(x: pl.Tensor[[32, 256], pl.FP32], y: pl.Out[pl.Tensor[[32, 256], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        for k in pl.pipeline(2, stage=4):
            y = pl.assemble(y, pl.slice(x, [16, 256], [k * 16, 0]), [k * 16, 0])
    return y


def test_no_more_buffers_than_trips() -> None:
    assert peak(short_pipeline) == 2 * 16 * KIB


def test_mixed_region_by_hand() -> None:
    """out_proj: each lane holds [8, 256] FP32 (8 KiB) tiles."""
    spaces = region_plan(out_proj).spaces
    assert {m.name: s.peak for m, s in spaces.items()} == {
        "Mat": (16 * 256 + 256 * 256) * 2,
        "Left": 16 * 256 * 2,
        "Right": 32 * KIB,  # half of it: the operand is larger
        "Acc": 16 * 256 * 4,
        "Vec": 2 * 8 * KIB + 4 * KIB + 8 * KIB,  # ring of two slots, the residual in bf16 and in fp32
    }
    ring = spaces[Mem.Vec].buffers[0]
    assert (ring.name, ring.shape, ring.bytes, ring.count) == ("ring of acc_vec", (8, 256), 8 * KIB, 2)


# ------------------------------------------------------------------------------------------------- rings
@pytest.mark.parametrize(
    ("kernel", "slots"), [(wide.one_product, 2), (wide.four_slots, 4), (wide.three_products, 3)]
)
def test_slots_of_the_ring(kernel: pl.Kernel, slots: int) -> None:
    (ring,) = (b for b in region_plan(kernel).spaces[Mem.Vec].buffers if b.name.startswith("ring"))
    assert (ring.bytes, ring.count) == (16 * 32 * 4, slots)


def test_the_ring_to_the_cube_unit_lies_in_mat() -> None:
    (ring,) = (b for b in region_plan(fa_fused).spaces[Mem.Mat].buffers if b.name.startswith("ring"))
    assert (ring.name, ring.bytes, ring.count) == ("ring of p_mat", 16 * 128 * 2, 2)


def test_explicit_staging_counts_in_full_and_leaves_less_to_the_rest() -> None:
    right = region_plan(wide.moved_right).spaces[Mem.Right]
    assert [(b.name, b.bytes) for b in right.buffers] == [
        ("kept", 48 * KIB), ("wide staged for pl.matmul", 16 * KIB),
    ]  # fmt: skip
    assert right.peak == 64 * KIB == right.limit


# ------------------------------------------------------------------------------------------- what must fit
@pytest.mark.parametrize("target", ["a2a3", "a5"])
@pytest.mark.parametrize("kernel", LAYER, ids=lambda k: k.__name__)
def test_the_published_layer_fits(kernel: pl.Kernel, target: str) -> None:
    plan, found = plan_memory.examine(lowered(kernel, target), load_target(target))
    assert [str(e) for e in found] == []
    assert plan.checked and all(s.fits and s.peak > 0 for r in plan.regions for s in r.spaces.values())


def test_attention_pipeline() -> None:
    spaces = region_plan(fa_fused).spaces
    rows = {b.name: b for b in spaces[Mem.Mat].buffers}
    assert (rows["rows"].bytes, rows["rows"].count) == (4 * KIB, 2)  # loaded by the pipelined loop
    assert rows["k_page"].count == rows["v_page"].count == 1  # loaded by the plain loop in it
    assert rows["k_page"].offset == rows["v_page"].offset  # never live together


def test_gpu_plans_are_not_checked() -> None:
    for name in ("gb10", "h200"):
        plan = planned(wide.wide_rows, name)
        assert (plan.target, plan.checked, plan.regions, plan.table()) == (name, False, (), [])
        assert plan.note == "the memory plan of a GPU target comes with its schedule; nothing is checked here"


def test_table() -> None:
    rows = planned(chain).table()
    assert rows == [("chain", "vec", "NONE", "Vec", 16 * KIB, 184 * KIB, 16 / 184)]


# --------------------------------------------------------------------------------------- what must not fit
def budget(kernel: pl.Kernel, target: str = "a2a3") -> UserError:
    with pytest.raises(UserError, match="needs [0-9]+ bytes of") as e:
        planned(kernel, target)
    assert e.value.code == "budget"
    return e.value


def test_only_up_down_makes_it_fit() -> None:
    """Two [32, 512] FP32 accumulators, 64 KiB each: a ring of two slots and one temporary."""
    error = budget(wide.wide_gate_up)
    assert error.message == (
        f"region 'wide' needs {3 * 64 * KIB} bytes of Vec "
        f"('ring of gate_vec, up_vec' [32, 512] FP32 x 2: {2 * 64 * KIB} bytes), a2a3 has {184 * KIB}"
    )
    assert error.fix == (
        "use optimizations=[pl.split(pl.SplitMode.UP_DOWN)]: each vector lane then needs "
        f"{3 * 32 * KIB} bytes of Vec"
    )
    assert peak(wide.wide_gate_up_split) == 3 * 32 * KIB
    assert region_plan(wide.wide_gate_up, "a5").spaces[Mem.Vec].peak == 3 * 64 * KIB  # 240 KiB there


def test_a_split_that_an_op_forbids_is_not_proposed() -> None:
    error = budget(wide.wide_column_sum)
    assert "pl.SplitMode.LEFT_RIGHT" in error.fix and "UP_DOWN" not in error.fix


def test_acc_overflow() -> None:
    error = budget(wide.wide_acc)
    assert error.message == (
        f"region 'wide_acc' needs {256 * KIB} bytes of Acc ('product' [128, 512] FP32: {256 * KIB} bytes), "
        f"a2a3 has {128 * KIB}"
    )
    assert error.fix.startswith(
        f"make tiles of the region smaller, first 'product' [128, 512] FP32: {128 * KIB}"
    )
    assert "product = pl.matmul(" in str(error)
    assert region_plan(wide.wide_acc, "a5").spaces[Mem.Acc].peak == 256 * KIB  # exactly what a5 has


def test_accumulators_are_four_bytes_wide_whatever_the_result() -> None:
    assert region_plan(wide.half_result).spaces[Mem.Acc].peak == 16 * 32 * 4


def test_mat_overflow_by_stages() -> None:
    target = load_target("a2a3")
    fn = infer_memory.run(pl.lower(pipelined_k_loop, constants={"STAGES": 4}), target)
    with pytest.raises(
        UserError,
        match=rf"(?s)needs {4 * 136 * KIB} bytes of Mat \('wk' \[256, 256\] BF16 x 4: {512 * KIB} bytes\), "
        rf"a2a3 has {512 * KIB}.*fix: use stage=3 in pl.pipeline: the region then needs "
        rf"{3 * 136 * KIB} bytes of Mat",
    ):
        plan_memory.plan(fn, target)


def test_vec_overflow_lists_what_is_live() -> None:
    error = budget(wide.wide_rows)
    assert error.message == (
        f"region 'wide_rows' needs {256 * KIB} bytes of Vec ('a' [64, 512] FP32: {128 * KIB} bytes), "
        f"a2a3 has {184 * KIB}"
    )
    assert error.fix.endswith(f"{72 * KIB} bytes of Vec are missing")
    assert error.notes[0] == "live in Vec at the peak:"
    assert [n.split(": ")[0] for n in error.notes[1:]] == ["'a' [64, 512] FP32", "'b' [64, 512] FP32"]
    assert all(f"{128 * KIB} bytes, from {wide.__file__}:" in n for n in error.notes[1:])


def test_examine_finds_everything() -> None:
    fn = lowered(wide.several_mistakes)
    plan, found = plan_memory.examine(fn, load_target("a2a3"))
    assert [e.code for e in found] == ["alignment", "budget", "budget"]
    assert [r.name for r in plan.regions] == ["first", "second"]


# ------------------------------------------------------------------------------------------------ extents
def aligned(kernel: pl.Kernel, rows: int, cols: int, target: str = "a2a3") -> list[str]:
    """Findings of a kernel whose tile extents are the constants M and N."""
    t = load_target(target)
    fn = infer_memory.run(pl.lower(kernel, constants={"M": rows, "N": cols}), t)
    _, found = plan_memory.examine(split.run(fn, t), t)
    return [f"{e.message}; {e.fix}" for e in found]


@pytest.mark.parametrize(
    ("rows", "cols"),
    [(16, 256), (80, 128), (16, 128), (80, 1), (16, 1), (1, 16), (1, 64), (5, 64), (1, 1), (8, 1), (3, 8)],
)
def test_legal_vec_tiles(rows: int, cols: int) -> None:
    assert aligned(wide.extents, rows, cols) == []


@pytest.mark.parametrize(
    ("rows", "cols", "why", "fix"),
    [
        (5, 1, "column of 20 bytes", "use 8 rows and pl.set_validshape(a, 5, 1)"),
        (2, 1, "column of 8 bytes", "use 8 rows and pl.set_validshape(a, 2, 1)"),
        (16, 20, "row of 80 bytes", "use 24 columns and pl.set_validshape(a, 16, 20)"),
        (1, 5, "row of 20 bytes", "use 8 columns and pl.set_validshape(a, 1, 5)"),
    ],
)
def test_illegal_vec_tiles(rows: int, cols: int, why: str, fix: str) -> None:
    first, *_ = aligned(wide.extents, rows, cols)
    assert first == f"tile 'a' [{rows}, {cols}] FP32 on a2a3: its {why} is not a multiple of 32; {fix}"
    assert aligned(wide.extents, rows, cols, "h200") == []


def test_the_tile_of_a_lane_is_what_has_to_be_aligned() -> None:
    assert aligned(wide.lane_column, 16, 32) == []  # [8, 1] of 32 bytes
    (finding,) = aligned(wide.lane_column, 8, 32)[-1:]
    assert (
        "'s' [8, 1] FP32, [4, 1] in each lane, on a2a3: its column of 16 bytes is not a multiple of 32"
        in finding
    )
    assert finding.endswith("; use 16 rows and pl.set_validshape(s, 8, 1), or another pl.SplitMode")


def fractal(m: int, k: int, n: int, dtype: pl.DType) -> list[str]:
    target, result = load_target("a2a3"), pl.FP32 if dtype.is_float else pl.INT32
    fn = pl.lower(wide.product, constants={"M": m, "K": k, "N": n, "T": dtype, "R": result})
    _, found = plan_memory.examine(infer_memory.run(fn, target), target)
    return [e.message for e in found]


def test_fractals() -> None:
    assert fractal(16, 16, 16, pl.BF16) == fractal(32, 8, 48, pl.FP32) == fractal(16, 32, 16, pl.INT8) == []
    assert fractal(1, 16, 16, pl.BF16) == [
        "operand 'a' [1, 16] BF16 of pl.matmul on a2a3: M = 1 is not a multiple of 16"
    ]
    assert fractal(16, 16, 16, pl.INT8) == [
        "operand 'a' [16, 16] INT8 of pl.matmul on a2a3: K = 16 is not a multiple of 32",
        "operand 'b' [16, 16] INT8 of pl.matmul on a2a3: K = 16 is not a multiple of 32",
    ]
    assert fractal(16, 12, 24, pl.FP32) == [
        "operand 'a' [16, 12] FP32 of pl.matmul on a2a3: K = 12 is not a multiple of 8",
        "operand 'b' [12, 24] FP32 of pl.matmul on a2a3: N = 24 is not a multiple of 16",
        "operand 'b' [12, 24] FP32 of pl.matmul on a2a3: K = 12 is not a multiple of 8",
    ]


# --------------------------------------------------------------------------- plans run on a tagged memory
EVERY = (
    *LAYER, chain, widened, two_sums, kept, summed, copied, exchanged, branches, k_loop, pipelined_k_loop,
    pipelined_chain, late_load, short_pipeline, wide.three_products, wide.wide_gate_up_split,
    wide.moved_right,
)  # fmt: skip


@pytest.mark.parametrize("kernel", EVERY, ids=lambda k: k.__name__)
def test_no_value_is_lost(kernel: pl.Kernel) -> None:
    fn = lowered(kernel)
    for s in walk(fn.body):
        if isinstance(s, Region):
            check_plan(s, plan_memory.plan_region(s, load_target("a2a3")))


def test_no_value_is_lost_in_random_regions() -> None:
    target = load_target("a2a3")
    for seed in (*range(300), 2270, 2739):  # the last two: a load ahead of a value of the same trip
        (region,) = infer_memory.run(Maker(seed).function(), target).body
        assert isinstance(region, Region)
        check_plan(region, plan_memory.plan_region(region, target))


def test_the_tagged_memory_sees_a_bad_plan() -> None:
    """Every buffer of the plan matters: moved onto another that is live, something is lost."""
    fn = lowered(gate_up_silu)
    (region,) = (s for s in fn.body if isinstance(s, Region))
    plan = plan_memory.plan_region(region, load_target("a2a3"))
    mat = plan.spaces[Mem.Mat]
    buffers = tuple(replace(b, offset=0) for b in mat.buffers)
    bad = replace(plan, spaces={**plan.spaces, Mem.Mat: replace(mat, buffers=buffers)})
    with pytest.raises(Clobbered, match="was overwritten before matmul"):
        check_plan(region, bad)
