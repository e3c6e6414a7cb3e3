"""Region domains of small kernels, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

import pypto_models.language as pl
from pypto_models.ir.graph import dim_text
from pypto_models.passes import spill
from pypto_models.passes.task_graph import build
from pypto_models.schedule import RegionDomain, describe, region_domains
from pypto_models.schedule.domain import Operand

CORE = pl.Level.CORE_GROUP
T = pl.dynamic("T")
B = pl.dynamic("B")
PAGES = pl.dynamic("PAGES")
UP_DOWN = pl.SplitMode.UP_DOWN


@dataclass(frozen=True)
class RunTime:
    """As much of a target as the task graph reads."""

    name: str = "scratchpad"
    orders: frozenset[str] = frozenset({"RAW", "WAW"})


def domains(kernel: Any) -> dict[str, RegionDomain]:
    fn = spill.run(pl.lower(kernel), RunTime())  # type: ignore[arg-type]
    return {d.name: d for d in region_domains(build(fn, RunTime()))}  # type: ignore[arg-type]


def operands(d: RegionDomain, name: str, effect: str = "read") -> list[Operand]:
    return [o for o in d.operands if o.tensor.name == name and o.effect == effect]


def operand(d: RegionDomain, name: str, effect: str = "read") -> Operand:
    (found,) = operands(d, name, effect)
    return found


def line(d: RegionDomain, text: str) -> int:
    """The line of this file, inside the region, that holds ``text``."""
    with open(__file__) as source:
        lines = source.read().splitlines()
    return next(i for i, s in enumerate(lines, 1) if i >= d.task.span.line and text in s)


@pl.jit
def gemm(
    x: pl.Tensor[[16, 512], pl.BF16],
    w: pl.Tensor[[1024, 512], pl.BF16],
    out: pl.Out[pl.Tensor[[16, 1024], pl.FP32]],
):
    for nb in pl.spmd(4, name_hint="gemm"):
        n0 = nb * 256
        acc = pl.create_tensor([16, 256], dtype=pl.FP32)
        for kb in pl.range(4):
            k0 = kb * 128
            if kb == 0:
                wide = w[n0 : n0 + 256, k0 : k0 + 128]
                acc = pl.matmul(x[:, k0 : k0 + 128], wide, out_dtype=pl.FP32, b_trans=True)
            else:
                acc = pl.matmul_acc(acc, x[:, k0 : k0 + 128], w[n0 : n0 + 256, k0 : k0 + 128], b_trans=True)
        out[:, n0 : n0 + 256] = acc


def test_gemm() -> None:
    d = domains(gemm)["gemm"]
    assert [(a.kind, a.granule, a.extent, a.moved_by) for a in d.axes] == [
        ("block", 1, 4, ()), ("row", 16, 16, ()), ("column", 256, 1024, ("nb",))
    ]  # fmt: skip
    assert all(a.static for a in d.axes)
    (loop,) = d.loops
    assert (loop.kind, loop.loop.trips) == ("contraction", 4)
    assert [(c.name, c.op) for c in loop.carried] == [("acc", "matmul_acc")]
    w = operand(d, "w")  # both branches load the same box: one operand
    assert (w.role, w.map, w.streams, w.moves_with) == ("weight", "affine", True, ("kb",))
    assert w.index == "[256 * nb : +256, 128 * kb : +128]"
    assert (w.contiguous_axis, w.row_bytes, w.block_bytes) == (1, 128 * 2, 256 * 512 * 2)
    assert operand(d, "x").block_bytes == 16 * 512 * 2
    out = operand(d, "out", "write")
    assert (out.role, out.streams, out.row_bytes, out.block_bytes) == ("out", False, 1024, 16 * 256 * 4)
    (acc,) = d.accumulators
    assert (acc.shape, acc.dtype, acc.loop) == ((16, 256), "FP32", "kb")
    assert d.epilogue == ()
    assert d.reblockable and not d.row_blockers and not d.column_blockers
    assert d.read_bytes == (256 + 16) * 512 * 2


@pl.jit
def mlp(
    x: pl.Tensor[[T, 512], pl.FP32],
    w_gate: pl.Tensor[[1024, 512], pl.BF16],
    w_up: pl.Tensor[[1024, 512], pl.BF16],
    out: pl.Out[pl.Tensor[[T, 1024], pl.BF16]],
):
    rows = pl.tensor.dim(x, 0)
    normed = pl.create_tensor([16, 512], dtype=pl.BF16)
    with pl.at(level=CORE, name_hint="norm"):
        live = pl.slice(x, [16, 512], [0, 0], valid_shape=[rows, 512])
        normed = pl.assemble(normed, pl.cast(live, pl.BF16, mode="rint"), [0, 0])
    for nb in pl.spmd(4, name_hint="gate_up", optimizations=[pl.split(UP_DOWN)]):
        n0 = nb * 256
        gate = pl.create_tensor([16, 256], dtype=pl.FP32)
        up = pl.create_tensor([16, 256], dtype=pl.FP32)
        for kb in pl.pipeline(4, stage=2):
            k0 = kb * 128
            part = pl.slice(normed, [16, 128], [0, k0], valid_shape=[rows, 128])
            wg, wu = w_gate[n0 : n0 + 256, k0 : k0 + 128], w_up[n0 : n0 + 256, k0 : k0 + 128]
            gate = pl.matmul_acc(gate, part, wg, b_trans=True, init_cond=(kb == 0))
            up = pl.matmul_acc(up, part, wu, b_trans=True, init_cond=(kb == 0))
        sigmoid = pl.recip(pl.add(pl.exp(pl.neg(gate)), 1.0))
        silu = pl.mul(gate, sigmoid)
        out = pl.assemble(out, pl.cast(pl.mul(silu, up), pl.BF16, mode="rint"), [0, n0])


def test_two_accumulators_share_one_contraction_and_one_epilogue() -> None:
    d = domains(mlp)["gate_up"]
    (loop,) = d.loops
    assert loop.kind == "contraction" and loop.loop.stage == 2
    assert [(a.name, a.loop) for a in d.accumulators] == [("gate", "kb"), ("up", "kb")]
    assert [s.op for s in d.epilogue] == ["neg", "exp", "add", "recip", "mul", "mul", "cast"]
    assert d.epilogue[0].line == line(d, "sigmoid = ")
    assert d.epilogue[-1].line == line(d, "pl.mul(silu, up)")
    normed = operand(d, "normed")
    assert (normed.role, normed.producers, normed.streams) == ("produced", ("norm",), True)
    assert operand(d, "w_up").role == "weight"
    row = next(a for a in domains(mlp)["norm"].axes if a.kind == "row")
    assert (row.granule, dim_text(row.extent), row.static) == (16, "T", False)
    row = next(a for a in d.axes if a.kind == "row")
    assert (row.granule, dim_text(row.extent), row.static) == (16, "T", False)
    assert operand(domains(mlp)["norm"], "normed", "write").role == "scratch"


@pl.jit
def attention(
    q: pl.Tensor[[B, 128], pl.BF16],
    new_k: pl.Tensor[[B, 128], pl.BF16],
    slot: pl.Tensor[[B], pl.INT32],
    k_cache: pl.InOut[pl.Tensor[[PAGES, 128, 128], pl.BF16]],
    v_cache: pl.Tensor[[PAGES, 128, 128], pl.BF16],
    table: pl.Tensor[[B, 32], pl.INT32],
    ctx: pl.Tensor[[B], pl.INT32],
    out: pl.Out[pl.Tensor[[B, 128], pl.FP32]],
):
    batch = pl.tensor.dim(q, 0)
    rows = pl.reshape(k_cache, [pl.tensor.dim(k_cache, 0) * 128, 128])
    v_rows = pl.reshape(v_cache, [pl.tensor.dim(v_cache, 0) * 128, 128])
    for b in pl.spmd(batch, name_hint="write_k"):
        at = pl.cast(pl.read(slot, [b]), pl.INDEX)
        rows = pl.assemble(rows, new_k[b : b + 1, :], [at, 0])
    for b in pl.spmd(batch, name_hint="attend"):
        n = pl.cast(pl.read(ctx, [b]), pl.INDEX)
        best = pl.full([1, 1], dtype=pl.FP32, value=-1e30)
        total = pl.full([1, 1], dtype=pl.FP32, value=0.0)
        o = pl.full([1, 128], dtype=pl.FP32, value=0.0)
        for p in pl.range((n + 127) // 128):
            page = pl.cast(pl.read(table, [b, p]), pl.INDEX)
            k = pl.slice(rows, [128, 128], [page * 128, 0])
            v = pl.slice(v_rows, [128, 128], [page * 128, 0])
            scores = pl.matmul(q[b : b + 1, :], k, out_dtype=pl.FP32, b_trans=True)
            higher = pl.maximum(best, pl.row_max(scores))
            e = pl.exp(pl.row_expand_sub(scores, higher))
            fade = pl.exp(pl.sub(best, higher))
            total = pl.add(pl.mul(total, fade), pl.row_sum(e))
            o = pl.add(pl.row_expand_mul(o, fade), pl.matmul(pl.cast(e, pl.BF16), v, out_dtype=pl.FP32))
            best = higher
        out = pl.assemble(out, pl.row_expand_div(o, total), [b, 0])


def test_paged_attention() -> None:
    found = domains(attention)
    d = found["attend"]
    (loop,) = d.loops
    # best alone is a maximum, but total and o read it: nothing may be reordered
    assert loop.kind == "sequential"
    assert {c.name: c.kind for c in loop.carried} == {k: "sequential" for k in ("best", "total", "o")}
    k, v = operand(d, "k_cache"), operand(d, "v_cache")
    assert (k.role, k.producers, k.map, k.tables) == ("cache", ("write_k",), "paged", ("table",))
    assert (v.role, v.producers, v.map, v.tables) == ("weight", (), "paged", ("table",))
    assert (k.streams, k.moves_with, k.row_bytes) == (False, ("p",), 256)
    assert not isinstance(k.block_bytes, int)
    assert dim_text(k.block_bytes).startswith("32768 * ")
    assert (operand(d, "table").map, operand(d, "table").moves_with) == ("affine", ("p",))
    assert operand(d, "q").moves_with == ()
    written = operand(found["write_k"], "k_cache", "write")
    assert (written.role, written.map, written.tables) == ("cache", "paged", ("slot",))
    assert [(a.name, a.loop) for a in d.accumulators] == [("scores", None), ("matmul", None)]
    block = next(a for a in d.axes if a.kind == "block")
    assert (dim_text(block.extent), block.static) == ("B", False)


@pl.jit
def norm(x: pl.Tensor[[16, 1024], pl.FP32], out: pl.Out[pl.Tensor[[16, 1024], pl.FP32]]):
    with pl.at(level=CORE, name_hint="norm"):
        total = pl.full([16, 1], dtype=pl.FP32, value=0.0)
        for k in pl.range(4):
            part = x[:, k * 256 : k * 256 + 256]
            total = pl.add(total, pl.row_sum(pl.mul(part, part)))
        scale = pl.rsqrt(pl.add(pl.mul(total, 1.0 / 1024), 1e-6))
        for j in pl.range(4):
            out[:, j * 256 : j * 256 + 256] = pl.row_expand_mul(x[:, j * 256 : j * 256 + 256], scale)


def test_a_sum_is_a_reduction_and_separate_stores_are_independent() -> None:
    d = domains(norm)["norm"]
    assert [x.kind for x in d.loops] == ["reduction", "independent"]
    assert [(c.name, c.op) for c in d.loops[0].carried] == [("total", "add")]
    assert [o.streams for o in operands(d, "x")] == [False, False]
    assert d.reblockable and not d.row_blockers
    assert (d.column_blockers[0].op, d.column_blockers[0].line) == ("row_sum", line(d, "pl.row_sum"))
    column = next(a for a in d.axes if a.kind == "column")
    assert (column.granule, column.extent, column.moved_by) == (256, 1024, ("j",))


def test_accumulators_belong_to_the_cube() -> None:
    assert domains(norm)["norm"].accumulators == ()


def one_loop(kernel: Any) -> list[tuple[str, str]]:
    (d,) = domains(kernel).values()
    (loop,) = d.loops
    return [(loop.kind, ""), *((c.kind, c.op) for c in loop.carried)]


@pl.jit
def largest(x: pl.Tensor[[16, 1024], pl.BF16], out: pl.Out[pl.Tensor[[16, 1], pl.BF16]]):
    with pl.at(level=CORE):
        top = pl.full([16, 1], dtype=pl.BF16, value=-1e30)
        for k in pl.range(4):
            top = pl.maximum(pl.row_max(x[:, k * 256 : k * 256 + 256]), top)
        out[:, :] = top


@pl.jit
def half_sum(x: pl.Tensor[[16, 1024], pl.BF16], out: pl.Out[pl.Tensor[[16, 1], pl.BF16]]):
    with pl.at(level=CORE):
        total = pl.full([16, 1], dtype=pl.BF16, value=0.0)
        for k in pl.range(4):
            total = pl.add(total, pl.row_sum(x[:, k * 256 : k * 256 + 256]))
        out[:, :] = total


@pl.jit
def prefix(x: pl.Tensor[[16, 1024], pl.FP32], out: pl.Out[pl.Tensor[[16, 4], pl.FP32]]):
    with pl.at(level=CORE):
        total = pl.full([16, 1], dtype=pl.FP32, value=0.0)
        for k in pl.range(4):
            total = pl.add(total, pl.row_sum(x[:, k * 256 : k * 256 + 256]))
            out[:, k : k + 1] = total


@pl.jit
def mixed_ops(x: pl.Tensor[[16, 1024], pl.FP32], out: pl.Out[pl.Tensor[[16, 1], pl.FP32]]):
    with pl.at(level=CORE):
        total = pl.full([16, 1], dtype=pl.FP32, value=0.0)
        for k in pl.range(4):
            total = pl.maximum(pl.add(total, pl.row_sum(x[:, k * 256 : k * 256 + 256])), 0.0)
        out[:, :] = total


@pl.jit
def recurrence(x: pl.Tensor[[16, 1024], pl.FP32], out: pl.Out[pl.Tensor[[16, 1], pl.FP32]]):
    with pl.at(level=CORE):
        state = pl.full([16, 1], dtype=pl.FP32, value=0.0)
        for k in pl.range(4):
            state = pl.add(pl.mul(state, 0.5), pl.row_sum(x[:, k * 256 : k * 256 + 256]))
        out[:, :] = state


@pl.jit
def reset(
    x: pl.Tensor[[16, 64], pl.BF16],
    w: pl.Tensor[[64, 64], pl.BF16],
    out: pl.Out[pl.Tensor[[16, 64], pl.FP32]],
):
    with pl.at(level=CORE):
        acc = pl.create_tensor([16, 64], dtype=pl.FP32)
        for k in pl.range(4):
            k0 = k * 16
            acc = pl.matmul_acc(acc, x[:, k0 : k0 + 16], w[k0 : k0 + 16, :], init_cond=(k == 2))
        out[:, :] = acc


@pl.jit
def overlapping(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        for k in pl.range(4):
            out[k * 2 : k * 2 + 4, :] = x[k * 4 : k * 4 + 4, :]


@pl.jit
def swapped(x: pl.Tensor[[16, 1024], pl.FP32], out: pl.Out[pl.Tensor[[16, 1], pl.FP32]]):
    with pl.at(level=CORE):
        even = pl.full([16, 1], dtype=pl.FP32, value=0.0)
        odd = pl.full([16, 1], dtype=pl.FP32, value=0.0)
        for k in pl.range(4):
            even, odd = odd, pl.add(even, pl.row_sum(x[:, k * 256 : k * 256 + 256]))
        out[:, :] = even


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (largest, [("reduction", ""), ("reduction", "max")]),
        (half_sum, [("sequential", ""), ("sequential", "")]),  # rounds in every trip
        (prefix, [("sequential", ""), ("sequential", "")]),  # partial sums are stored
        (mixed_ops, [("sequential", ""), ("sequential", "")]),  # max of a sum
        (recurrence, [("sequential", ""), ("sequential", "")]),  # scaled between sums
        (reset, [("sequential", ""), ("sequential", "")]),  # starts anew in the third trip
        (overlapping, [("sequential", "")]),  # trips write the same rows
        (swapped, [("sequential", "")] + [("sequential", "")] * 2),  # the sums take turns
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_what_a_loop_carries(kernel: Any, expected: list[tuple[str, str]]) -> None:
    assert one_loop(kernel) == expected


@pl.jit
def nested(
    x: pl.Tensor[[16, 512], pl.BF16],
    w: pl.Tensor[[512, 64], pl.BF16],
    out: pl.Out[pl.Tensor[[16, 64], pl.FP32]],
):
    with pl.at(level=CORE, name_hint="nested"):
        acc = pl.matmul(x[:, 0:64], w[0:64, :], out_dtype=pl.FP32)
        for i in pl.range(1, 8, 2):
            for j in pl.range(2):
                k = (i + j) % 8 * 64
                acc = pl.matmul_acc(acc, x[:, k : k + 64], w[k : k + 64, :])
        out[:, :] = acc


def test_a_nested_contraction_has_one_accumulator() -> None:
    d = domains(nested)["nested"]
    assert [x.kind for x in d.loops] == ["contraction", "contraction"]
    assert [(a.name, a.loop) for a in d.accumulators] == [("acc", "i")]
    first, rest = operands(d, "w")
    assert (first.streams, rest.streams, rest.map) == (False, True, "quasi-affine")
    assert rest.moves_with == ("i", "j")
    assert rest.block_bytes == 64 * 64 * 2 * 4 * 2


@pl.jit
def twisted(
    x: pl.Tensor[[16, 64], pl.BF16],
    w: pl.Tensor[[64, 16], pl.BF16],
    out: pl.Out[pl.Tensor[[16, 16], pl.FP32]],
):
    with pl.at(level=CORE, name_hint="twisted"):
        y = pl.matmul(x, w, out_dtype=pl.FP32)
        out[:, :] = pl.transpose(y, 0, 1)


def test_an_op_that_forbids_reblocking_is_named_with_its_line() -> None:
    d = domains(twisted)["twisted"]
    assert not d.reblockable
    assert [(b.op, b.line) for b in d.row_blockers] == [("transpose", line(d, "pl.transpose"))]
    assert "moves elements across the split axis" in d.row_blockers[0].why
    assert [s.op for s in d.epilogue] == ["transpose"]


def test_text_and_json() -> None:
    found = domains(gemm)
    text = describe(found.values())
    assert "loop     kb in range(4 trips): contraction, carries acc (matmul_acc)" in text
    assert "read w[256 * nb : +256, 128 * kb : +128]: weight, affine, 256 bytes a row, 262144 a block" in text
    assert "rows     may be re-blocked" in text
    data = json.loads(json.dumps(found["gemm"].to_json()))
    assert data["accumulators"] == [{"name": "acc", "shape": [16, 256], "dtype": "FP32", "loop": "kb"}]
    assert [o["role"] for o in data["operands"]] == ["weight", "weight", "out"]
