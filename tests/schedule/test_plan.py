"""The planner on small kernels: random shapes, legality rules, reasons and overrides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pypto_models.language as pl
from pypto_models.compile import lower_for
from pypto_models.errors import UserError
from pypto_models.ir.types import Mem
from pypto_models.schedule import RegionDomain, Schedule, plan, problems, stream_traffic
from pypto_models.schedule.check import gpu_of, thread_registers
from pypto_models.schedule.overrides import Override, load, overrides
from pypto_models.schedule.plan import plan_all
from pypto_models.schedule.record import Part, Ring, Workspace
from pypto_models.target import load_target
from tests.schedule.coverage import bytes_by_cta, faults

H200 = load_target("h200")
T = pl.dynamic("T")
M, N, K, TILE_N, TILE_K = 16, 256, 512, 64, 128
DTYPE = pl.BF16


@pl.jit
def rows_of_weights(
    x: pl.Tensor[[T, K], DTYPE], w: pl.Tensor[[N, K], DTYPE], y: pl.Out[pl.Tensor[[T, N], pl.FP32]]
):
    rows = pl.tensor.dim(x, 0)
    for n in pl.spmd(N // TILE_N, name_hint="product"):
        acc = pl.create_tensor([M, TILE_N], pl.FP32)
        for k in pl.pipeline(K // TILE_K, stage=2):
            xk = pl.slice(x, [M, TILE_K], [0, k * TILE_K], valid_shape=[rows, TILE_K])
            wk = pl.slice(w, [TILE_N, TILE_K], [n * TILE_N, k * TILE_K])
            if k == 0:
                acc = pl.matmul(xk, wk, out_dtype=pl.FP32, b_trans=True)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        pl.assemble(y, pl.mul(acc, 2.0), [0, n * TILE_N])


@pl.jit
def columns_of_weights(
    x: pl.Tensor[[T, K], DTYPE], w: pl.Tensor[[K, N], DTYPE], y: pl.Out[pl.Tensor[[T, N], pl.FP32]]
):
    rows = pl.tensor.dim(x, 0)
    for n in pl.spmd(N // TILE_N, name_hint="product"):
        acc = pl.create_tensor([M, TILE_N], pl.FP32)
        for k in pl.range(K // TILE_K):
            xk = pl.slice(x, [M, TILE_K], [0, k * TILE_K], valid_shape=[rows, TILE_K])
            wk = pl.slice(w, [TILE_K, TILE_N], [k * TILE_K, n * TILE_N])
            if k == 0:
                acc = pl.matmul(xk, wk, out_dtype=pl.FP32)
            else:
                acc = pl.matmul_acc(acc, xk, wk)
        pl.assemble(y, acc, [0, n * TILE_N])


def domain(kernel: Any, target: str = "h200", **constants: Any) -> RegionDomain:
    (found,) = lower_for(kernel, (), load_target(target), constants).domains
    return found


def schedule(kernel: Any = rows_of_weights, **keys: Any) -> Schedule:
    return plan(domain(kernel), H200, overrides({"product": keys})["product"])


# ------------------------------------------------------------------------------------------ random shapes
@st.composite
def shapes(draw: Callable[..., Any]) -> dict[str, Any]:
    tile_n, tile_k = draw(st.sampled_from([16, 32, 64, 128])), draw(st.sampled_from([16, 32, 64, 128]))
    return {
        "M": draw(st.sampled_from([16, 32, 64])),
        "TILE_N": tile_n,
        "TILE_K": tile_k,
        "N": tile_n * draw(st.integers(1, 60)),
        "K": tile_k * draw(st.integers(1, 40)),
        "DTYPE": draw(st.sampled_from([pl.BF16, pl.BF16, pl.FP32])),
    }


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shapes(), st.sampled_from([rows_of_weights, columns_of_weights]), st.sampled_from(["h200", "gb10"]),
    st.sampled_from([None, "warp", "cta"]),
)  # fmt: skip
def test_any_shape_has_a_legal_schedule_that_reads_each_byte_once(
    sizes: dict[str, Any], kernel: Any, name: str, owner: str | None
) -> None:
    target = load_target(name)
    keys = {"product": {"owner": owner} if owner and kernel is rows_of_weights else {}}
    s = plan(domain(kernel, name, **sizes), target, overrides(keys)["product"])  # type: ignore[arg-type]
    assert problems(s, target) == ()
    if s.stream is None:  # a granule of 64 columns of many rows
        assert kernel is columns_of_weights and sizes["M"] > 16, s.describe()
        assert "as a stream it takes" in s.fixed_by[0].why
        return
    size = sizes["DTYPE"].bytes
    n, k = sizes["N"], sizes["K"]
    shape = (n, k * size) if kernel is rows_of_weights else (k, n * size)
    traffic = stream_traffic(s, target.cores)
    assert faults(s, {"w": shape}, torn=True) == []
    assert traffic.by_cta == bytes_by_cta(s)
    assert traffic.total == n * k * size
    assert traffic.whole_lines == (faults(s, {"w": shape}) == []), "whole lines are claimed only where true"
    if shape[1] % 128 == 0 and kernel is rows_of_weights:
        assert traffic.whole_lines
    assert s.shared_bytes <= target.spaces[Mem.Mat].bytes
    assert s.ctas <= target.cores or s.stream.owner == "cta", "waves"
    assert bool(s.notes) == (not traffic.whole_lines)


# ------------------------------------------------------------------------------------------ legality
def changed(s: Schedule, **stream: Any) -> Schedule:
    assert s.stream is not None
    return replace(s, stream=replace(s.stream, **stream))


RULES: list[tuple[Callable[[Schedule], Schedule], str]] = [
    (lambda s: replace(s, shared=(Part("ring", 300000, 0),)), "it takes 300000 bytes of shared memory"),
    (lambda s: replace(s, warps=40), "it has 1280 threads"),
    (lambda s: replace(s, registers=replace(s.registers, x=300)), "registers, and a thread has"),
    (lambda s: replace(s, ctas=0), "it has no CTA"),
    (lambda s: replace(s, shared=(*s.shared, Part("x", 128, 64))), "begins at 64, which is no multiple"),
    (lambda s: replace(s, shared=(*s.shared, Part("x", 512, 128))), "overlap in shared memory"),
    (lambda s: replace(s, ring=replace(s.ring, slots=1)), "a ring needs two slots"),  # type: ignore[arg-type]
    (lambda s: replace(s, ring=Ring("warp", s.warps, 2, 1000, ())), "no multiple of 16"),
    (lambda s: replace(s, ring=replace(s.ring, slots=99)), "the ring takes"),  # type: ignore[arg-type]
    (lambda s: replace(s, ring=replace(s.ring, owners=7)), "7 owners of the ring"),  # type: ignore[arg-type]
    (lambda s: changed(s, warps_n=3), "warps are not"),
    (lambda s: changed(s, walkers=3), "slices are not"),
    (lambda s: changed(s, columns=12), "are not whole granules"),
    (lambda s: changed(s, walkers=1000), "1000 walkers have"),
    (lambda s: changed(s, cuts=(0, 512, 512)), "do not cut 0 to 512"),
    (lambda s: changed(s, cuts=(0, 100, 512)), "are not cut at multiples of 64"),
    (lambda s: changed(s, step=24), "are not cut at multiples of 64"),
    (lambda s: changed(s, accumulators=2), "1 weights for 2 accumulators"),
    (lambda s: changed(s, slot_cells=99), "do not hold 99 cells"),
    (lambda s: replace(s, workspace=Workspace((2, 1, 16, 256), False)), "in a workspace of shape"),
    (lambda s: changed(s, across="red"), "partial sums of 1 slices, red"),
    (lambda s: changed(s, finish="phase"), "cannot be finished phase"),
    (lambda s: changed(s, owner="cta"), "the ring belongs to the warp, and the mapping says cta"),
]


@pytest.mark.parametrize(("break_it", "message"), RULES, ids=[m for _, m in RULES])
def test_each_rule_finds_its_planted_fault(break_it: Callable[[Schedule], Schedule], message: str) -> None:
    s = schedule(owner="warp")
    assert problems(s, H200) == ()
    assert any(message in x for x in problems(break_it(s), H200)), problems(break_it(s), H200)


def test_a_warp_of_amd_has_64_threads() -> None:
    for target, most in ((H200, 32), (load_target("mi300x"), 16)):  # one of them copies the rows
        allowed, refused = (problems(replace(schedule(), warps=w), target) for w in (most - 1, most))
        size = 1024 // most
        assert not [x for x in allowed if "threads, and a block" in x]
        assert f"it has {(most + 1) * size} threads, and a block {size} to 1024" in refused


@pytest.mark.parametrize(("warps", "registers"), [(1, 255), (8, 255), (9, 168), (12, 168), (18, 96)])
def test_each_quarter_of_an_sm_has_registers_for_whole_warps(warps: int, registers: int) -> None:
    """Of nine warps one quarter has three: ptxas gives a thread 168 registers, and not 65,536 / 288."""
    assert thread_registers(32 * warps, gpu_of(H200)) == registers


@pytest.mark.parametrize("change", [{"step": 32}, {"slot_cells": 1}, {"x_place": "shared"}])
def test_a_ring_of_the_cta_holds_whole_steps(change: dict[str, Any]) -> None:
    s = schedule(owner="cta")
    assert problems(s, H200) == () and s.ring is not None and s.ring.owners == 1
    found = problems(changed(s, **change), H200)
    assert "a ring of the CTA holds a whole K step of lines in each slot, and x" in found


def test_x_shares_no_ring_with_columns_of_weights() -> None:
    s = changed(schedule(columns_of_weights), x_place="ring")
    assert "x cannot share a ring with weights stored [K, N]" in problems(s, H200)


def test_a_target_without_gpu_has_no_schedules() -> None:
    with pytest.raises(ValueError, match="a2a3 is no GPU"):
        plan(domain(rows_of_weights), load_target("a2a3"))


# ------------------------------------------------------------------------------------------ reasons
@pl.jit
def softmax(x: pl.Tensor[[64, 128], pl.FP32], y: pl.Out[pl.Tensor[[64, 128], pl.FP32]]):
    for b in pl.spmd(4, name_hint="softmax"):
        rows = pl.slice(x, [16, 128], [b * 16, 0])
        e = pl.exp(pl.row_expand_sub(rows, pl.row_max(rows)))
        pl.assemble(y, pl.row_expand_div(e, pl.row_sum(e)), [b * 16, 0])


@pl.jit
def normed_product(
    x: pl.Tensor[[16, 512], pl.BF16],
    w: pl.Tensor[[256, 512], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 256], pl.FP32]],
):
    for n in pl.spmd(4, name_hint="normed"):
        acc = pl.create_tensor([16, 64], pl.FP32)
        for k in pl.range(4):
            xk, wk = x[:, k * 128 : k * 128 + 128], w[n * 64 : n * 64 + 64, k * 128 : k * 128 + 128]
            if k == 0:
                acc = pl.matmul(xk, wk, out_dtype=pl.FP32, b_trans=True)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        y[:, n * 64 : n * 64 + 64] = pl.row_expand_sub(acc, pl.row_max(acc))


@pl.jit
def scaled_by_block(
    x: pl.Tensor[[16, 512], pl.BF16],
    w: pl.Tensor[[256, 512], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 256], pl.FP32]],
):
    for n in pl.spmd(4, name_hint="scaled"):
        acc = pl.create_tensor([16, 64], pl.FP32)
        for k in pl.range(4):
            xk, wk = x[:, k * 128 : k * 128 + 128], w[n * 64 : n * 64 + 64, k * 128 : k * 128 + 128]
            if k == 0:
                acc = pl.matmul(xk, wk, out_dtype=pl.FP32, b_trans=True)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        y[:, n * 64 : n * 64 + 64] = pl.mul(acc, pl.cast(n, pl.FP32))


@pl.jit
def cast_product(
    x: pl.Tensor[[16, 512], pl.BF16],
    w: pl.Tensor[[256, 512], pl.FP32],
    y: pl.Out[pl.Tensor[[16, 256], pl.FP32]],
):
    for n in pl.spmd(4, name_hint="cast"):
        acc = pl.create_tensor([16, 64], pl.FP32)
        for k in pl.range(4):
            xk = x[:, k * 128 : k * 128 + 128]
            wk = pl.cast(w[n * 64 : n * 64 + 64, k * 128 : k * 128 + 128], pl.BF16, mode="rint")
            if k == 0:
                acc = pl.matmul(xk, wk, out_dtype=pl.FP32, b_trans=True)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        y[:, n * 64 : n * 64 + 64] = acc


@pl.jit
def same_bias_for_all(
    x: pl.Tensor[[16, 512], pl.BF16],
    w: pl.Tensor[[256, 512], pl.BF16],
    bias: pl.Tensor[[16, 64], pl.FP32],
    y: pl.Out[pl.Tensor[[16, 256], pl.FP32]],
):
    for n in pl.spmd(4, name_hint="biased"):
        acc = pl.create_tensor([16, 64], pl.FP32)
        for k in pl.range(4):
            xk, wk = x[:, k * 128 : k * 128 + 128], w[n * 64 : n * 64 + 64, k * 128 : k * 128 + 128]
            if k == 0:
                acc = pl.matmul(xk, wk, out_dtype=pl.FP32, b_trans=True)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        y[:, n * 64 : n * 64 + 64] = pl.add(acc, pl.slice(bias, [16, 64], [0, 0]))


@pytest.mark.parametrize(
    ("kernel", "op", "why"),
    [
        (softmax, "region", "it has no matrix product"),
        (normed_product, "row_max", "it reduces along the split axis"),
        (scaled_by_block, "mul", "it computes with the number of the block"),
        (cast_product, "cast", "it works on tiles inside of the contraction loop"),
        (same_bias_for_all, "load", "bias does not move by whole tiles with each block"),
    ],
)
def test_what_forbids_to_re_block_is_data(kernel: Any, op: str, why: str) -> None:
    s = plan(domain(kernel), H200)
    assert s.form != "stream" and problems(s, H200) == ()
    step = next(x for x in s.fixed_by if x.op == op)
    assert why in step.why
    assert step.span.file == __file__ and step.line > 0
    assert str(step) in s.describe() and step.to_json() in s.to_json()["fixed_by"]


@pl.jit
def cut_off(
    x: pl.Tensor[[16, 512], pl.BF16],
    w: pl.Tensor[[200, 512], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 200], pl.FP32]],
):
    for n in pl.spmd(4, name_hint="cut"):
        acc = pl.create_tensor([16, 64], pl.FP32)
        live = pl.min(200 - n * 64, 64)
        for k in pl.range(4):
            xk = x[:, k * 128 : k * 128 + 128]
            wk = pl.slice(w, [64, 128], [n * 64, k * 128], valid_shape=[live, 128])
            if k == 0:
                acc = pl.matmul(xk, wk, out_dtype=pl.FP32, b_trans=True)
            else:
                acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
        pl.assemble(y, acc, [0, n * 64])


def test_the_last_block_may_be_cut_off() -> None:
    s = plan(domain(cut_off), H200)
    assert s.stream is not None, s.describe()
    assert s.stream.n == 200 and faults(s, {"w": (200, 1024)}) == []


def test_the_line_is_that_of_the_op() -> None:
    (step,) = (x for x in plan(domain(normed_product), H200).fixed_by if x.op == "row_max")
    assert "pl.row_max(acc)" in Path(__file__).read_text().splitlines()[step.line - 1]


# ------------------------------------------------------------------------------------------ overrides
def test_overrides_are_kept() -> None:
    s = schedule(slices=2, warps_n=2, warps_k=2, x="shared", columns=32, step=64, slot_cells=1, slots=4)
    q, ring = s.stream, s.ring
    assert q is not None and ring is not None and s.workspace is not None
    assert (q.slices, q.warps_n, q.warps_k, q.x_place, q.columns) == (2, 2, 2, "shared", 32)
    assert (q.step, q.slot_cells, ring.slots) == (64, 1, 4)
    assert (q.across, q.finish, s.workspace.shape) == ("workspace", "phase", (2, 1, 16, 256))
    assert problems(s, H200) == () and faults(s, {"w": (256, 1024)}) == []
    assert s.part("x").bytes == 16 * 256 * 2


def test_a_backend_takes_the_best_that_it_can_emit() -> None:
    asked: list[Schedule] = []

    def accepts(s: Schedule) -> str | None:
        asked.append(s)
        return None if s.stream is not None and s.stream.x_place == "shared" else "x lies elsewhere"

    s = plan(domain(rows_of_weights), H200, accepts=accepts)
    assert s.stream is not None and s.stream.x_place == "shared" and len(asked) > 10
    s = plan(domain(rows_of_weights), H200, accepts=lambda s: "no streams here")
    assert s.form == "items" and s.fixed_by[0].why == "as a stream no streams here"


def test_red_is_opt_in() -> None:
    s = schedule(slices=2, across="red", finish="consumer")
    assert s.stream is not None and s.stream.across == "red"
    assert s.workspace == Workspace((1, 16, 256), zeroed=True)


def test_the_batch_on_the_other_side() -> None:
    s = schedule(batch="n")
    assert s.stream is not None and (s.stream.batch, s.stream.granule) == ("n", 16)
    assert faults(s, {"w": (256, 1024)}) == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"slots": 1}, "product has no legal schedule: a ring needs two slots"),
        ({"slots": 4000}, "bytes of shared memory, and a block has 232448"),
        ({"columns": 12, "owner": "warp"}, "are not whole granules of 8"),
        ({"warps_k": 64}, "it has 2048 threads"),
        ({"slices": 99}, "no walk of units over CTAs fits it"),
        ({"warps": 4}, "product has the form stream, which has no key 'warps'"),
        ({"depth": 4}, "a schedule has no key 'depth'"),
        ({"slots": 0}, "slots is 0"),
        ({"slots": True}, "slots is True"),
        ({"x": "L2"}, "x is 'L2'"),
    ],
)
def test_an_override_that_cannot_be(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedule(**keys)


def test_an_unknown_region() -> None:
    with pytest.raises(UserError, match=r"no region is called 'produkt'(.|\n)*known: product"):
        plan_all([domain(rows_of_weights)], H200, overrides({"produkt": {"slices": 2}}))


FILE = """source:
  TILE_N: 64
schedule:
  product:
    slices: 2
    x: registers
  other: {warps: 4}
"""


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "h200.yaml"
    path.write_text(FILE)
    found = load(path)
    assert found == {
        "product": Override("product", (("slices", 2), ("x", "registers")), str(path), 5),
        "other": Override("other", (("warps", 4),), str(path), 7),
    }
    assert load(tmp_path / "none.yaml") == {}
    path.write_text("source:\n  A: 1\n")
    assert load(path) == {}


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("slices: 2", "slice: 2", 5, "a schedule has no key 'slice'"),
        ("slices: 2", "slices: two", 5, "slices is 'two'"),
        ("x: registers", "x: 3", 6, "x is 3"),
        ("{warps: 4}", "[4]", 7, "other holds no mapping"),
        ("other:", "product:", 7, "'product' stands twice"),
        ("slices: 2", "slices: [", 7, "not YAML"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    path = tmp_path / "h200.yaml"
    path.write_text(FILE.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert (caught.value.span.file, caught.value.span.line) == (str(path), line)


def test_an_unknown_region_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "h200.yaml"
    path.write_text(FILE)
    with pytest.raises(UserError, match="no region is called 'other'") as caught:
        plan_all([domain(rows_of_weights)], H200, load(path))
    assert (caught.value.span.file, caught.value.span.line) == (str(path), 7)
