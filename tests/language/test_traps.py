"""What surprises people, and what happens here."""

from __future__ import annotations

import torch

import pypto_models.language as pl
from pypto_models.ir.nodes import Direction
from pypto_models.language.entry import written_params

from .support import error_of, fails, lets, line_of, lowered, marked, randn, run

CORE = pl.Level.CORE_GROUP


# ---- 1: the default rounding of pl.cast is ties away
@pl.jit
def roundings(
    x: pl.Tensor[[1, 64], pl.FP32],
    away: pl.Out[pl.Tensor[[1, 64], pl.BF16]], even: pl.Out[pl.Tensor[[1, 64], pl.BF16]],
    numbered: pl.Out[pl.Tensor[[1, 64], pl.BF16]], down: pl.Out[pl.Tensor[[1, 64], pl.BF16]],
):  # fmt: skip
    with pl.at(level=CORE):
        away[:, :] = pl.cast(x, pl.BF16)
        even[:, :] = pl.cast(x, pl.BF16, mode="rint")
        numbered[:, :] = pl.cast(x, target_type=pl.BF16, mode=1)
        down[:, :] = pl.cast(x, pl.BF16, "floor")


def test_cast_rounds_ties_away_unless_told_otherwise() -> None:
    step = 2.0**-7  # of bf16 at 1
    x = 1 + step * (torch.arange(64) / 2).reshape(1, 64)  # every other value is a tie
    x[0, 32:] = -x[0, 32:]
    out = [torch.empty(1, 64, dtype=torch.bfloat16) for _ in range(4)]
    run(roundings, x=x, away=out[0], even=out[1], numbered=out[2], down=out[3])
    steps = (x.double().abs() - 1) / step
    away = torch.sign(x.double()) * (1 + step * torch.floor(steps + 0.5))
    assert torch.equal(out[0].double(), away)
    assert torch.equal(out[1], x.bfloat16()) and torch.equal(out[2], x.bfloat16())
    assert not torch.equal(out[0], out[1])
    assert torch.equal(out[3].double(), torch.floor(x.double() / step) * step)


# ---- 2: an assignment rebinds the name, it does not write the tensor
@pl.jit
def rebinds(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        out = pl.add(x, 1.0)
    return out


def test_assigning_to_an_out_parameter_writes_nothing() -> None:
    error = error_of(rebinds)
    assert (error.code, marked(error)) == ("out-not-written", "out = pl.add(x, 1.0)")
    assert error.span.line == line_of(rebinds, "out = ")
    assert "pl.assemble(out, value, offset) or out[...] = value" in error.fix


def test_an_out_parameter_that_nothing_mentions() -> None:
    error = fails("with pl.at(level=CORE):\n    t = pl.exp(x)")
    assert (error.code, marked(error)) == ("out-not-written", "out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]")


@pl.jit
def idiom(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        out = pl.assemble(out, pl.add(x[0:8, :], 1.0), [0, 0])
        out[8:16] = pl.add(x[8:16, :], 2.0)
    return out


def test_assembling_and_rebinding_is_the_idiom() -> None:
    fn = lowered(idiom)
    assert {s.arg("target") for s in lets(fn, "store")} == {fn.params[1].var}
    x, out = randn(16, 64), torch.empty(16, 64)
    run(idiom, x=x, out=out)
    assert torch.equal(out, x + torch.tensor([1.0, 2.0]).repeat_interleave(8)[:, None])


@pl.jit.inline
def writes(target: pl.Tensor, x: pl.Tensor):
    view = pl.slice(target, [8, 64], [8, 0])
    for i in pl.range(2):
        with pl.at(level=CORE):
            view[i * 4 : i * 4 + 4, :] = x[i * 4 : i * 4 + 4, :]


@pl.jit
def through_views(
    x: pl.Tensor[[16, 64], pl.FP32], n: pl.Scalar[pl.INDEX],
    a: pl.Out[pl.Tensor[[16, 64], pl.FP32]], b: pl.Out[pl.Tensor[[16, 64], pl.FP32]],
):  # fmt: skip
    target = a
    if n > 0:
        target = b
    for _ in pl.range(2):
        writes(target, x)
        target = a


def test_a_write_through_names_views_and_branches_counts() -> None:
    assert {v.name for v in written_params(lowered(through_views))} == {"a", "b"}


# ---- bare parameters are In: the kernel may write them, the caller does not see it
@pl.jit
def writes_in(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE):
        x[:, :] = pl.neg(x)
    with pl.at(level=CORE):
        out[:, :] = x


def test_writes_to_a_bare_parameter_stay_private() -> None:
    lowered_ = pl.elaborate(writes_in)
    assert lowered_.function.params[0].direction is Direction.IN
    (warning,) = lowered_.warnings
    assert "'x', which is not declared pl.Out or pl.InOut" in warning and warning.startswith(__file__)
    x, out = randn(16, 64), torch.empty(16, 64)
    before = x.clone()
    run(writes_in, x=x, out=out)
    assert torch.equal(x, before) and torch.equal(out, -x)


# ---- 3: one kind of write per tensor and region
def test_bulk_stores_and_scalar_writes_do_not_mix() -> None:
    body = (
        "s = pl.create_tensor([16, 64], pl.FP32)\n"
        "with pl.at(level=CORE):\n    {0}[:, :] = x\n    {1}[0, 0] = 1.0\n"
    )
    for name in ("out", "s"):
        error = fails(body.format(name, name) + "    out[:, :] = y")
        assert (error.code, marked(error)) == ("misplaced", f"{name}[0, 0] = 1.0")
        assert f"pl.write to {name!r} mixes with pl.assemble on line" in error.message
    view = "with pl.at(level=CORE):\n    v = pl.reshape(out, [64, 16])\n    out[:, :] = x\n    v[0, 0] = 1.0"
    assert fails(view).code == "misplaced"  # a view is the same tensor


def test_in_two_regions_they_do() -> None:
    @pl.jit
    def kernel(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
        with pl.at(level=CORE):
            out[:, :] = x
        with pl.at(level=CORE):
            out[0, 0] = 7.0

    x, out = randn(16, 64), torch.empty(16, 64)
    run(kernel, x=x, out=out)
    assert out[0, 0] == 7 and torch.equal(out[1:], x[1:])


# ---- 4: a slice after an assemble sees the new value
@pl.jit
def reads_what_it_wrote(x: pl.Tensor[[16, 64], pl.FP32], k: pl.InOut[pl.Tensor[[16, 64], pl.FP32]],
                        out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):  # fmt: skip
    with pl.at(level=CORE):
        old = pl.slice(k, [8, 64], [0, 0])
        k = pl.assemble(k, x[0:8, :], [0, 0])
        new = pl.slice(k, [8, 64], [0, 0])
        out[0:8, :] = old
        out[8:16, :] = new


def test_a_load_sees_the_stores_before_it() -> None:
    x, k, out = randn(16, 64), randn(16, 64, seed=1), torch.empty(16, 64)
    want = torch.cat([k[:8], x[:8]])
    run(reads_what_it_wrote, x=x, k=k, out=out)
    assert torch.equal(out, want) and torch.equal(k[:8], x[:8])


# ---- 6: the valid rectangle is the first operand's; reductions take it; fillpad makes it whole
@pl.jit
def valid_regions(x: pl.Tensor[[16, 64], pl.FP32], out: pl.InOut[pl.Tensor[[16, 64], pl.FP32]],
                  sums: pl.Out[pl.Tensor[[16, 4], pl.FP32]]):  # fmt: skip
    with pl.at(level=CORE):
        part = pl.set_validshape(x, 5, 9)
        out = pl.assemble(out, pl.add(part, x), [0, 0])
        zero = pl.fillpad(part, pad_value=0)
        low = pl.fillpad(part, pl.PadValue.min)
        infinite = pl.fillpad(part, pad_value=float("-inf"))
        high = pl.fillpad(value=part, pad_value=pl.PadValue.max)
        sums[:, 0:1] = pl.row_sum(zero)
        sums[:, 1:2] = pl.row_max(low)
        sums[:, 2:3] = pl.row_max(infinite)
        sums[:, 3:4] = pl.row_min(high)


def test_valid_regions() -> None:
    fn = lowered(valid_regions)
    (add,) = lets(fn, "add")
    assert add.result.type.valid == (5, 9)  # type: ignore[union-attr]
    x, out, sums = randn(16, 64), torch.zeros(16, 64), torch.empty(16, 4)
    run(valid_regions, x=x, out=out, sums=sums)
    assert torch.equal(out[:5, :9], 2 * x[:5, :9])
    assert not out[5:].any() and not out[:, 9:].any()
    torch.testing.assert_close(sums[:5, 0], x[:5, :9].sum(1))
    assert torch.equal(sums[:5, 1], x[:5, :9].amax(1)) and torch.equal(sums[:5, 2], sums[:5, 1])
    assert torch.equal(sums[:5, 3], x[:5, :9].amin(1))
    finite = torch.finfo(torch.float32)
    assert bool((sums[5:, 0] == 0).all()) and bool((sums[5:, 1] == finite.min).all())
    assert bool((sums[5:, 2] == -torch.inf).all()) and bool((sums[5:, 3] == finite.max).all())


@pl.jit
def half_height(x: pl.Tensor[[16, 64], pl.FP32], out: pl.InOut[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=CORE, optimizations=[pl.split(pl.SplitMode.UP_DOWN)]):
        t = pl.tensor.set_validshape(pl.exp(x), 16 // 2, 64)
        out = pl.assemble(out, pl.tile.set_validshape(t, 8, 60), [0, 0])


def test_a_row_operand_written_as_post_split_height_is_read_literally() -> None:
    x, out = randn(16, 64), torch.zeros(16, 64)
    run(half_height, x=x, out=out)
    torch.testing.assert_close(out[:8, :60], x[:8, :60].exp())
    assert not out[8:].any() and not out[:, 60:].any()


# ---- 7: pl.min and pl.max are scalar
def test_min_is_scalar_and_minimum_is_elementwise() -> None:
    error = fails("with pl.at(level=CORE):\n    out[:, :] = pl.min(x, y)")
    assert (error.code, marked(error), error.fix) == (
        "bad-argument",
        "pl.min(x, y)",
        "the elementwise op is pl.minimum",
    )
