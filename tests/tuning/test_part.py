"""Parts of a program: alone they compute what they compute in the whole; their arguments; the comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pypto_models.language as pl
from pypto_models.compile import compile_function, lower_for
from pypto_models.errors import UserError
from pypto_models.ir.nodes import Function
from pypto_models.ir.verify import verify
from pypto_models.kernel_file import KernelFile
from pypto_models.target import load_target
from pypto_models.tuning.data import PERIOD, Argument, arguments, differences, empty, make, sample
from pypto_models.tuning.part import part_of

CHAIN = KernelFile.load(Path(__file__).with_name("kernels.py")).entry(None)
GIVEN = {"ROWS": 5, "at": [4, 3, 0, 1, 2]}


def whole() -> Function:
    return lower_for(CHAIN, (), load_target("h200")).stages[0][1]


def test_parts_in_a_row_are_the_whole() -> None:
    torch.manual_seed(0)
    tensors = {
        "x": torch.randn(5, 512).bfloat16(), "first": torch.randn(256, 512).bfloat16(),
        "second": torch.randn(512, 256).bfloat16(), "at": torch.tensor(GIVEN["at"], dtype=torch.int32),
        "y": torch.zeros(5, 512), "z": torch.zeros(5, 512), "middle": torch.zeros(5, 256).bfloat16(),
    }  # fmt: skip
    for name, regions in (("up", ["up"]), ("down", ["down"]), ("gather", ["look_up", "gather"])):
        part = part_of(whole(), regions, name)
        verify(part)
        program = compile_function(part, "h200sim")
        program(*(tensors[p.name] for p in program.params))
    want = {n: torch.zeros(5, 512) for n in ("y", "z")}
    program = compile_function(whole(), "h200sim")
    program(*(({**tensors, **want})[p.name] for p in program.params))
    assert torch.equal(tensors["y"], want["y"]) and torch.equal(tensors["z"], want["z"])
    assert torch.equal(want["z"], want["y"][tensors["at"].long()]) and bool(want["y"].any())


def test_the_arguments_of_a_part() -> None:
    part = part_of(whole(), ["look_up", "gather"], "gather")
    found = {a.name: a for a in arguments(part, GIVEN)}
    assert set(found) == {"at", "y", "z"}, "what only the part uses stays inside"
    assert found["at"].values == GIVEN["at"] and found["at"].dtype == "int32"
    assert [found[n].direction for n in ("at", "y", "z")] == ["in", "in", "out"]
    scales = {a.name: a.scale for a in arguments(part_of(whole(), ["up"], "up"), GIVEN)}
    assert scales["first"] == pytest.approx((3 / 512) ** 0.5) and scales["x"] == 1.0
    assert all(Argument.from_json(a.to_json()) == a for a in found.values())


A, B = pl.dynamic("A"), pl.dynamic("B")


@pl.jit
def extents_elsewhere(
    x: pl.Tensor[[A, 16], pl.FP32],
    pages: pl.Tensor[[B, 4], pl.INT32],
    y: pl.Out[pl.Tensor[[16, 16], pl.FP32]],
):
    for b in pl.spmd(pl.tensor.dim(pages, 0), name_hint="rows"):
        pl.assemble(y, pl.slice(x, [1, 16], [b, 0]), [b, 0])


def test_a_tensor_whose_shape_alone_is_used_is_a_parameter() -> None:
    function = lower_for(extents_elsewhere, (), load_target("h200")).stages[0][1]
    part = part_of(function, ["rows"], "rows")
    assert [p.name for p in part.params] == ["x", "y", "pages"]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (["gather"], "'part': it takes order, indices that another region computes"),
        (["again"], "'again': it runs in a loop or under a condition"),
        (["side"], "'side': the program has no such region(.|\n)*tune one of up, down, look_up, gather"),
    ],
)
def test_what_is_no_part(regions: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        part_of(whole(), regions, "part")


@pytest.mark.parametrize(
    ("left_out", "message"), [("ROWS", "'ROWS': a run-time extent"), ("at", "'at': the contents")]
)
def test_an_argument_without_a_value(left_out: str, message: str) -> None:
    given = {k: v for k, v in GIVEN.items() if k != left_out}
    with pytest.raises(UserError, match=message):
        arguments(part_of(whole(), ["look_up", "gather"], "part"), given)


# ------------------------------------------------------------------------------------------ data
def splitmix(i: int, seed: int) -> float:
    """The same by Python's integers, after Steele, Lea and Flood (2014)."""
    m = (1 << 64) - 1
    x = (i + (seed << 40)) * 0x9E3779B97F4A7C15 & m
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & m
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & m
    return (x >> 40) / 2**23 - 1


def test_the_data_are_the_same_everywhere() -> None:
    a = Argument("x", "tensor", "in", "float32", (3, 1000), seed=7)
    found = make(a)
    flat = found.flatten()
    assert all(float(flat[i]) == splitmix(i, 7) for i in (0, 1, 17, 999, 2999))
    assert abs(float(found.mean())) < 0.05 and 0.55 < float(found.std()) < 0.61
    assert torch.equal(make(Argument("x", "tensor", "in", "bfloat16", (3, 1000), seed=7)), found.bfloat16())
    assert not torch.equal(make(Argument("x", "tensor", "in", "float32", (3, 1000), seed=8)), found)


def test_long_data_repeat_without_equal_rows() -> None:
    found = make(Argument("w", "tensor", "in", "bfloat16", (1100, 5120)))
    assert found.numel() > PERIOD and torch.equal(found.flatten()[PERIOD : PERIOD + 9], found.flatten()[:9])
    assert len(torch.unique(found[:, :8].float(), dim=0)) == 1100


def test_given_contents_and_poison() -> None:
    assert make(Argument("at", "tensor", "in", "int32", (2, 3), 4)).tolist() == [[4] * 3] * 2
    assert make(Argument("at", "tensor", "in", "int32", (2,), [1, 2])).tolist() == [1, 2]
    assert make(Argument("y", "tensor", "out", "float32", (2,))).isnan().all()
    assert make(Argument("n", "scalar", "in", "int32", values=3)) == 3


# ------------------------------------------------------------------------------------------ comparison
WANT = torch.linspace(-2, 2, 4000).view(40, 100)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t[7].zero_(), "y: 100 of 4000 elements are off by up to 1.3, where the RMS is 1.15"),
        (lambda t: t[3, 4].fill_(float("nan")), "y: 1 of 4000 elements are off by up to inf"),
        (lambda t: t.mul_(1.03), "elements are off by up to 0.06"),
        (lambda t: t[1, 5:7].copy_(t[1, 5:7].flip(0) + 0.1), "y: 2 of 4000"),
    ],
)
def test_the_comparison_finds_planted_faults(
    spoil: Callable[[torch.Tensor], object], message: str
) -> None:
    want = WANT.bfloat16()
    got = want.clone()
    assert list(differences({"y": got}, {"y": sample(want)})) == []
    spoil(got)
    (found,) = differences({"y": got}, {"y": sample(want)})
    assert message in found


def test_of_a_large_tensor_every_column_is_compared() -> None:
    columns = torch.arange(2048, dtype=torch.int32).expand(1024, 2048)
    found = sample(columns)
    assert found.numel() < columns.numel() / 8 and len(torch.unique(found)) == 2048
    assert torch.equal(sample(columns[:16]), columns[:16].flatten())


def test_the_comparison_allows_other_roundings() -> None:
    want = WANT.bfloat16()
    up = torch.nextafter(want, torch.full_like(want, 4.0))
    assert list(differences({"y": up}, {"y": sample(want)})) == []
    wrong = differences({"n": torch.tensor([1, 2])}, {"n": torch.tensor([1, 3])})
    assert list(wrong) == ["n: 1 of 2 elements differ"]


def test_what_a_part_leaves_alone_must_stay() -> None:
    want = WANT.clone()
    want[5:] = float("nan")  # never written
    assert list(differences({"y": want.clone()}, {"y": sample(want)})) == []
    wrote = want.clone()
    wrote[6, 0] = 0.0
    assert len(list(differences({"y": wrote}, {"y": sample(want)}))) == 1


def test_a_comparison_that_cannot_fail_is_named() -> None:
    assert empty({"y": torch.zeros(3)}) == "y is zero or NaN everywhere"
    assert empty({"y": torch.full((3,), float("nan"))}) == "y is zero or NaN everywhere"
    assert empty({}) == "it writes no tensor" and empty({"y": WANT}) is None
