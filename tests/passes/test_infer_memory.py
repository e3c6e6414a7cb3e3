"""Memory spaces and moves, told from the tiles' types and the places of the moves."""

from __future__ import annotations

import pytest

import pypto_models.language as pl
from pypto_models.errors import UserError
from pypto_models.ir.nodes import For, Function, If, Let, Region
from pypto_models.ir.rewrite import defs, inner_defs, walk
from pypto_models.ir.types import Mem, TileType
from pypto_models.passes import infer_memory
from pypto_models.target import load_target

from .kernels import LAYER, down_proj, fa_fused, gate_up_silu, lm_head, rmsnorm

A2A3, A5, H200 = (load_target(name) for name in ("a2a3", "a5", "h200"))


def inferred(kernel: pl.Kernel, target: str = "a2a3") -> Function:
    return infer_memory.run(pl.lower(kernel), load_target(target))


def spaces(fn: Function) -> dict[str, str]:
    """``name: space``, of tiles with one name in program order and without repetition."""
    found: dict[str, list[str]] = {}
    for s in walk(fn.body):
        for v in (*inner_defs(s), *defs(s)):
            if isinstance(v.type, TileType):
                assert v.type.space is not None
                found.setdefault(v.name, []).append(v.type.space.name)
    return {name: " ".join(dict.fromkeys(s)) for name, s in found.items()}


def ops(fn: Function) -> list[str]:
    """Ops in program order; moves as ``name: from > to``."""
    out = []
    for s in walk(fn.body):
        if isinstance(s, Let) and s.op.name == "move":
            x = s.args[0]
            assert s.result.type.space is not None  # type: ignore[union-attr]
            out.append(f"{x.name}: {x.type.space.name} > {s.result.type.space.name}")  # type: ignore[union-attr]
        elif isinstance(s, Let):
            out.append(s.op.name)
        elif isinstance(s, For | If | Region):
            out.append(type(s).__name__)
    return out


def moves(fn: Function) -> list[str]:
    return [o for o in ops(fn) if ">" in o]


# ------------------------------------------------------------------------------------------ pure regions
def test_vector_region() -> None:
    assert set(spaces(inferred(rmsnorm)).values()) == {"Vec"}
    assert moves(inferred(rmsnorm)) == []


def test_cube_region() -> None:
    fn = inferred(lm_head)
    assert spaces(fn) == {"acc": "Acc", "xk": "Mat", "wk": "Mat"}
    assert moves(fn) == []  # the cube unit stores from Acc


# ------------------------------------------------------------------------------------------ mixed regions
def test_accumulators_are_moved_after_the_loop_before_their_first_use() -> None:
    fn = inferred(gate_up_silu)
    want = {
        "gate": "Acc",
        "up": "Acc",
        "xk": "Mat",
        "g": "Mat",
        "u": "Mat",
        "gate_vec": "Vec",
        "up_vec": "Vec",
    }
    assert spaces(fn).items() >= want.items()
    text = ops(fn)
    assert moves(fn) == ["gate: Acc > Vec", "up: Acc > Vec"]
    assert text[text.index("gate: Acc > Vec") + 1] == "neg"
    assert text[text.index("up: Acc > Vec") + 1 :] == ["mul", "cast", "store"]


def test_both_crossings() -> None:
    fn = inferred(fa_fused)
    assert moves(fn) == ["scores: Acc > Vec", "p: Vec > Mat"]  # oi is stored from Acc
    want = {"rows": "Mat", "k_page": "Mat", "v_page": "Mat", "scores": "Acc", "p": "Vec", "oi": "Acc"}
    assert spaces(fn).items() >= want.items()


def test_init_cond_needs_no_value() -> None:
    assert moves(inferred(down_proj)) == ["acc: Acc > Vec"]


@pl.jit
def shared_load(
    x: pl.Tensor[[16, 32], pl.BF16],
    w: pl.Tensor[[32, 16], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 16], pl.FP32]],
    z: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        xt = pl.slice(x, [16, 32], [0, 0])
        y = pl.assemble(y, pl.matmul(xt, pl.slice(w, [32, 16], [0, 0]), out_dtype=pl.FP32), [0, 0])
        z = pl.assemble(z, pl.cast(xt, pl.FP32), [0, 0])
    return y


def test_a_load_read_by_both_units_is_issued_for_each() -> None:
    fn = inferred(shared_load)
    assert spaces(fn)["xt"] == "Mat Vec"
    assert moves(fn) == []
    assert ops(fn).count("load") == 3
    (region,) = (s for s in fn.body if isinstance(s, Region))
    loads = [s for s in region.body if isinstance(s, Let) and [v.name for v in s.results] == ["xt"]]
    assert loads[0].args == loads[1].args and loads[0].span == loads[1].span
    (cast,) = (s for s in region.body if isinstance(s, Let) and s.op.name == "cast")
    assert cast.args[0].type.space is Mem.Vec  # type: ignore[union-attr]


@pl.jit
def narrowed(
    x: pl.Tensor[[16, 32], pl.BF16],
    w: pl.Tensor[[32, 16], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 16], pl.FP32]],
    z: pl.Out[pl.Tensor[[16, 16], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        xt = pl.set_validshape(pl.slice(x, [16, 32], [0, 0]), 5, 32)
        product = pl.matmul(xt, pl.slice(w, [32, 16], [0, 0]), out_dtype=pl.FP32)
        few = pl.set_validshape(product, 3, 16)
        y = pl.assemble(y, few, [0, 0])
        z = pl.assemble(z, pl.exp(few), [0, 0])
    return y


def test_a_smaller_valid_shape_stays_in_its_space() -> None:
    fn = inferred(narrowed)
    assert spaces(fn).items() >= {"xt": "Mat", "product": "Acc", "few": "Acc", "few_vec": "Vec"}.items()
    assert moves(fn) == ["few: Acc > Vec"]


@pl.jit
def chained(
    x: pl.Tensor[[16, 16], pl.BF16],
    w: pl.Tensor[[16, 16], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 16], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        wt = pl.slice(w, [16, 16], [0, 0])
        first = pl.matmul(pl.slice(x, [16, 16], [0, 0]), wt)
        y = pl.assemble(y, pl.matmul(first, wt, out_dtype=pl.FP32), [0, 0])
    return y


def test_a_product_that_is_an_operand_stays_on_the_cube_side() -> None:
    assert moves(inferred(chained)) == ["first: Acc > Mat"]


@pl.jit
def running_sum(
    x: pl.Tensor[[16, 64], pl.BF16],
    w: pl.Tensor[[64, 16], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 16], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        total = pl.full([16, 16], dtype=pl.FP32, value=0.0)
        last = pl.full([16, 16], dtype=pl.FP32, value=0.0)
        for k in pl.range(4):
            part = pl.matmul(
                pl.slice(x, [16, 16], [0, k * 16]), pl.slice(w, [16, 16], [k * 16, 0]), out_dtype=pl.FP32
            )
            total = pl.add(pl.mul(total, 0.5), part)
            last = part
        y = pl.assemble(y, pl.add(total, last), [0, 0])
    return y


def test_a_carried_vector_value_takes_products_by_a_move() -> None:
    fn = inferred(running_sum)
    assert spaces(fn).items() >= {"total": "Vec", "last": "Vec", "part": "Acc", "part_vec": "Vec"}.items()
    assert moves(fn) == ["part: Acc > Vec"]  # once, for its use and for the next value of `last`


@pl.jit
def one_branch(
    x: pl.Tensor[[16, 16], pl.BF16],
    w: pl.Tensor[[16, 16], pl.BF16],
    n: pl.Scalar[pl.INT32],
    y: pl.Out[pl.Tensor[[16, 16], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        if n > 0:
            value = pl.matmul(pl.slice(x, [16, 16], [0, 0]), pl.slice(w, [16, 16], [0, 0]), out_dtype=pl.FP32)
        else:
            value = pl.full([16, 16], dtype=pl.FP32, value=0.0)
        y = pl.assemble(y, value, [0, 0])
    return y


def test_a_merged_value_has_one_space() -> None:
    fn = inferred(one_branch)
    (branch,) = (s for s in walk(fn.body) if isinstance(s, If))
    (merged,) = branch.merged
    assert [v.type.space for v in (merged.result, merged.then, merged.orelse)] == [Mem.Vec] * 3  # type: ignore[union-attr]
    assert isinstance(branch.then[-1], Let) and branch.then[-1].result is merged.then
    assert moves(fn) == ["value: Acc > Vec"]


@pl.jit
def staged(
    x: pl.Tensor[[16, 16], pl.BF16],
    w: pl.Tensor[[16, 16], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 16], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        left = pl.move(pl.slice(x, [16, 16], [0, 0]), target_memory=pl.Mem.Left)
        right = pl.move(pl.slice(w, [16, 16], [0, 0]), target_memory=pl.Mem.Right)
        y = pl.assemble(y, pl.matmul(left, right, out_dtype=pl.FP32), [0, 0])
    return y


def test_explicit_moves_are_kept() -> None:
    fn = inferred(staged)
    assert moves(fn) == ["slice: Mat > Left", "slice: Mat > Right"]


# ------------------------------------------------------------------------------------------------ errors
@pl.jit
def zeroed(
    x: pl.Tensor[[16, 64], pl.BF16],
    w: pl.Tensor[[64, 16], pl.BF16],
    y: pl.Out[pl.Tensor[[16, 16], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        acc = pl.full([16, 16], dtype=pl.FP32, value=0.0)
        for k in pl.range(4):
            acc = pl.matmul_acc(acc, pl.slice(x, [16, 16], [0, k * 16]), pl.slice(w, [16, 16], [k * 16, 0]))
        y = pl.assemble(y, acc, [0, 0])
    return y


@pytest.mark.parametrize("target", ["a2a3", "a5"])
def test_a_zeroed_accumulator_has_no_way_into_acc(target: str) -> None:
    with pytest.raises(
        UserError,
        match=rf"(?s)'acc', made by pl.full .*{target} cannot move data from Vec to Acc.*pl.full.*"
        r"fix: .*pl.create_tensor.*if k == 0: acc = pl.matmul.*init_cond=",
    ):
        inferred(zeroed, target)


def test_a_gpu_moves_it() -> None:
    fn = inferred(zeroed, "h200")
    assert moves(fn) == ["acc: Vec > Acc"]
    assert ops(fn).index("acc: Vec > Acc") < ops(fn).index("For")


@pl.jit
def back_from_l1(x: pl.Tensor[[16, 16], pl.FP32], y: pl.Out[pl.Tensor[[16, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        there = pl.move(pl.slice(x, [16, 16], [0, 0]), target_memory=pl.Mem.Mat)
        y = pl.assemble(y, pl.exp(there), [0, 0])
    return y


def test_no_way_back_from_mat() -> None:
    with pytest.raises(
        UserError,
        match=r"(?s)'there', made by pl.move and used by pl.exp: a5 cannot move data from Mat to Vec.*"
        r"fix: use 'there' before it is moved to Mat",
    ):
        inferred(back_from_l1, "a5")


@pl.jit
def into_acc(x: pl.Tensor[[16, 16], pl.FP32], y: pl.Out[pl.Tensor[[16, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        there = pl.move(pl.exp(pl.slice(x, [16, 16], [0, 0])), target_memory=pl.Mem.Acc)
        y = pl.assemble(y, there, [0, 0])
    return y


def test_an_explicit_move_needs_a_path() -> None:
    with pytest.raises(UserError, match="used by pl.move: a2a3 cannot move data from Vec to Acc"):
        inferred(into_acc)


@pl.jit
def rebound(
    x: pl.Tensor[[16, 32], pl.BF16],
    w: pl.Tensor[[32, 32], pl.BF16],
    out: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        acc = pl.create_tensor([16, 32], dtype=pl.FP32)
        for k in pl.range(2):
            acc = pl.matmul_acc(acc, x[:, k * 16 : k * 16 + 16], w[k * 16 : k * 16 + 16, :], init_cond=k == 0)
        for _ in pl.range(3):
            acc = pl.mul(acc, 0.5)
        out[:, :] = acc


def test_an_accumulator_that_a_later_loop_rebinds_moves_before_that_loop() -> None:
    fn = inferred(rebound)
    assert spaces(fn)["acc"] == "Acc Vec"
    assert ops(fn)[-5:] == ["matmul_acc", "acc: Acc > Vec", "For", "mul", "store"]


@pl.jit
def product_or_load(
    x: pl.Tensor[[16, 32], pl.FP32],
    w: pl.Tensor[[32, 32], pl.FP32],
    n: pl.Scalar[pl.INT32],
    out: pl.Out[pl.Tensor[[16, 32], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.matmul(x, w)
        if n > 2:
            t = x[:, :]
        out[:, :] = pl.abs(t)


def test_a_product_merged_with_a_load_is_in_vec() -> None:
    fn = inferred(product_or_load)
    assert moves(fn) == ["t: Acc > Vec"]
    assert spaces(fn)["t"] == "Acc Vec"


# --------------------------------------------------------------------------------------------- properties
@pytest.mark.parametrize("kernel", LAYER, ids=lambda k: k.__name__)
@pytest.mark.parametrize("target", ["a2a3", "a5", "h200"])
def test_every_operand_lies_where_its_op_reads_it(kernel: pl.Kernel, target: str) -> None:
    fn = inferred(kernel, target)
    assert infer_memory.run(fn, load_target(target)) is fn
    for s in walk(fn.body):
        if not isinstance(s, Let):
            continue
        tiles = {n: a.type.space for n, a in zip(s.op.param_names, s.args, strict=True) if _tile(a)}  # type: ignore[union-attr]
        if s.op.name in ("matmul", "matmul_acc"):
            assert tiles.pop("acc", Mem.Acc) is Mem.Acc
            assert set(tiles.values()) == {Mem.Mat}
            assert s.result.type.space is Mem.Acc  # type: ignore[union-attr]
        elif s.op.name == "store":
            assert set(tiles.values()) <= {Mem.Vec, Mem.Acc}
        elif s.op.name != "move":
            assert set(tiles.values()) <= {Mem.Vec}
    before = [(v.name, v.span) for s in walk(pl.lower(kernel).body) for v in defs(s)]
    after = [(v.name, v.span) for s in walk(fn.body) for v in defs(s) if not _moved(s)]
    assert after == before  # no load of these kernels is read by both units


def _tile(x: object) -> bool:
    return isinstance(getattr(x, "type", None), TileType)


def _moved(s: object) -> bool:
    return isinstance(s, Let) and s.op.name == "move"


def test_carried_values_have_one_space() -> None:
    for kernel in (*LAYER, running_sum):
        for s in walk(inferred(kernel).body):
            for c in s.carried if isinstance(s, For) else ():
                if _tile(c.param):
                    assert len({v.type.space for v in (c.param, c.init, c.next, c.result)}) == 1  # type: ignore[union-attr]
