"""Comparators: each fails just beyond its threshold, passes just within it, and says where it fails."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from golden import allclose, ratio_allclose, ratio_reldiff, rounding_bound, topk_pair_compare
from golden.diff import measure

NAN, INF = float("nan"), float("inf")


def judge(
    comparator: Any, actual: Tensor, expected: Tensor, rtol: float = 0.0, atol: float = 0.0, **others: Any
) -> tuple[bool, str]:
    context = {"actual_outputs": {}, "expected_outputs": {}, "inputs": {}} | others
    return comparator(actual, expected, rtol=rtol, atol=atol, **context)


ALL = [allclose, ratio_allclose(1, 1), ratio_reldiff(), rounding_bound(torch.zeros(2, 3).double())]


@pytest.mark.parametrize("comparator", [*ALL, topk_pair_compare("v")])
def test_another_shape_or_dtype_fails(comparator: Any) -> None:
    passed, why = judge(comparator, torch.zeros(2, 3), torch.zeros(3, 2))
    assert not passed and why == "shape mismatch: actual [2, 3], expected [3, 2]"
    passed, why = judge(comparator, torch.zeros(2, 3), torch.zeros(2, 3).half())
    assert not passed and why == "dtype mismatch: actual torch.float32, expected torch.float16"


@pytest.mark.parametrize("comparator", ALL)
def test_nan_fails_and_is_counted(comparator: Any) -> None:
    actual = torch.zeros(2, 3)
    actual[1, 2] = NAN
    passed, why = judge(comparator, actual, torch.zeros(2, 3), atol=1.0)
    assert not passed
    assert "NaN: 1 in actual, 0 in expected" in why
    assert "worst [1, 2]: actual nan, expected 0.0, error inf" in why


@pytest.mark.parametrize("comparator", [allclose, ratio_allclose(1, 1), ratio_reldiff()])
def test_nan_on_both_sides_fails(comparator: Any) -> None:
    both = torch.tensor([1.0, NAN])
    passed, why = judge(comparator, both, both.clone(), atol=1.0)
    assert not passed and "NaN: 1 in actual, 1 in expected" in why


def test_infinities() -> None:
    expected = torch.tensor([1.0, -INF])
    assert judge(allclose, expected.clone(), expected, rtol=0.1) == (True, "")
    for wrong in (torch.tensor([1.0, INF]), torch.tensor([1.0, -1e30]), torch.tensor([INF, -INF])):
        assert not judge(allclose, wrong, expected, rtol=0.1, atol=1.0)[0]
    passed, why = judge(ratio_allclose(1, 1), expected.clone(), expected)
    assert not passed and "Inf: 1 in actual, 1 in expected" in why


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_allclose_threshold(dtype: torch.dtype) -> None:
    expected = torch.full((5,), 4.0).to(dtype)
    actual = torch.tensor([4.0, 4.0, 5.0, 4.0, 4.0]).to(dtype)
    assert judge(allclose, actual, expected, rtol=0.125, atol=0.5)[0]  # 0.5 + 0.125 * 4 == 1
    assert not judge(allclose, actual, expected, rtol=0.125, atol=0.4999)[0]
    assert not judge(allclose, actual, expected, rtol=0.1249, atol=0.5)[0]


def test_allclose_agrees_with_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    outcomes = set()
    for _ in range(200):
        expected = torch.randn(4, generator=generator)
        actual = expected + 0.02 * torch.randn(4, generator=generator)
        wanted = torch.allclose(actual, expected, rtol=0.01, atol=0.03)
        assert judge(allclose, actual, expected, rtol=0.01, atol=0.03)[0] == wanted
        outcomes.add(wanted)
    assert outcomes == {True, False}


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool])
def test_integers_are_exact(dtype: torch.dtype) -> None:
    expected = torch.tensor([0, 1, 1, 0]).to(dtype)
    assert judge(allclose, expected.clone(), expected, rtol=1.0, atol=100.0) == (True, "")
    actual = expected.clone()
    actual[2] = 0
    passed, why = judge(allclose, actual, expected, rtol=1.0, atol=100.0)
    assert not passed and why.startswith("1 of 4 elements (25.000%) differ beyond equality")


def test_integers_beyond_fp64_are_exact() -> None:
    expected = torch.tensor([5, 2**60, 7])
    passed, why = judge(allclose, expected + torch.tensor([0, 1, 0]), expected)
    assert not passed and f"worst [1]: actual {2**60 + 1}, expected {2**60}" in why


def test_the_message_gives_worst_place_share_and_first_twenty() -> None:
    expected = torch.zeros(10, 300_000)  # several chunks
    actual = expected.clone()
    actual[1, 0:30] = 1.0
    actual[7, 123_456] = -8.0
    passed, why = judge(allclose, actual, expected, atol=0.5)
    assert not passed
    lines = why.splitlines()
    assert lines[0] == "31 of 3000000 elements (0.001%) differ beyond rtol=0 atol=0.5"
    assert lines[1] == f"max abs error 8, rms error {math.sqrt((30 + 64) / 3e6):.6g}"
    assert lines[2] == "worst [7, 123456]: actual -8.0, expected 0.0, error 8"
    assert lines[3] == "first 20 mismatches:"
    assert [line.split(":")[0] for line in lines[4:]] == [f"  [1, {i}]" for i in range(20)]


def test_measure_matches_torch() -> None:
    generator = torch.Generator().manual_seed(2)
    expected, noise = torch.randn(2, 400_000, generator=generator)
    actual = expected + noise * 0.01
    diff, error = measure(actual, expected), (actual.double() - expected.double()).abs()
    assert diff.worst is not None and diff.worst.index == (int(error.argmax()),)
    assert diff.max_error == float(error.max())
    assert diff.rms_error == pytest.approx(float(error.square().mean().sqrt()), rel=1e-12)
    assert diff.max_expected == float(expected.abs().max())


def test_ratio_allclose_threshold() -> None:
    expected = torch.ones(1000)
    five, six = expected.clone(), expected.clone()
    five[:5], six[:6] = 1.5, 1.5
    assert judge(ratio_allclose(1e-3, 1e-3), five, expected) == (True, "5 of 1000 elements outside")
    passed, why = judge(ratio_allclose(1e-3, 1e-3), six, expected)
    assert not passed and "6 of 1000 elements (0.600%)" in why
    assert judge(ratio_allclose(1e-3, 1e-3, max_error_ratio=0.006), six, expected)[0]


def test_ratio_allclose_caps_the_outliers() -> None:
    expected, actual = torch.ones(1000), torch.ones(1000)
    actual[3] = 2.0
    assert judge(ratio_allclose(1e-3, 1e-3), actual, expected)[0]
    actual[3] = 2.001
    passed, why = judge(ratio_allclose(1e-3, 1e-3), actual, expected)
    assert not passed and "none by more than 1)" in why
    assert judge(ratio_allclose(1e-3, 1e-3, max_outlier=math.inf), actual, expected)[0]


def test_ratio_allclose_takes_the_runs_tolerance_by_default() -> None:
    expected, actual = torch.ones(10), torch.full((10,), 1.25)
    assert judge(ratio_allclose(), actual, expected, atol=0.25)[0]
    assert not judge(ratio_allclose(), actual, expected, atol=0.2499)[0]


def test_ratio_reldiff_thresholds() -> None:
    expected = torch.full((100,), 10.0)
    five, six = expected.clone(), expected.clone()
    five[:5], six[:6] = 12.0, 12.0  # relative difference 2 / 12
    assert judge(ratio_reldiff(), five, expected)[0]
    assert not judge(ratio_reldiff(), six, expected)[0]
    assert judge(ratio_reldiff(max_diff_hd=0.167), five, expected)[0]
    assert not judge(ratio_reldiff(max_diff_hd=0.166), five, expected)[0]
    small = torch.full((100,), 0.009)  # an absolute difference below diff_thd counts as itself
    assert judge(ratio_reldiff(), small, torch.zeros(100))[0]


class TestRoundingBound:
    exact = torch.linspace(1, 2, 1000, dtype=torch.float64)
    reference = exact.to(torch.bfloat16)

    def test_the_reference_itself_passes(self) -> None:
        verdict = judge(rounding_bound(self.exact), self.reference.clone(), self.reference)
        assert verdict == (True, "max 1.00x, rms 1.00x the reference's")

    def test_max_threshold(self) -> None:
        largest = float((self.reference.double() - self.exact).abs().max())
        actual = self.reference.clone()
        actual[0] += 0.0078125  # one bf16 step at 1.0, where the reference is exact
        ratio = 0.0078125 / largest
        assert judge(rounding_bound(self.exact, max_ratio=ratio * 1.001), actual, self.reference)[0]
        passed, why = judge(rounding_bound(self.exact, max_ratio=ratio * 0.999), actual, self.reference)
        assert not passed and "worst [0]: actual 1.0078125, expected 1.0" in why

    def test_rms_threshold(self) -> None:
        error = self.reference.double() - self.exact
        exact, reference = torch.zeros(1000, dtype=torch.float64), error.float()
        for factor, wanted in ((1.24, True), (1.26, False)):
            passed, why = judge(rounding_bound(exact), reference * factor, reference)
            assert passed is wanted, why

    def test_the_exact_value_may_come_late(self) -> None:
        later: dict[str, Tensor] = {}
        comparator = rounding_bound(lambda: later["y"])
        later["y"] = self.exact
        assert judge(comparator, self.reference.clone(), self.reference)[0]

    def test_floor(self) -> None:
        exact = torch.ones(4, dtype=torch.float64)
        actual = torch.tensor([1.0, 1.0, 1.0, 1.25])
        assert not judge(rounding_bound(exact), actual, exact.float())[0]
        assert judge(rounding_bound(exact, floor=0.25), actual, exact.float())[0]

    def test_a_broken_reference_fails(self) -> None:
        broken = self.reference.clone()
        broken[5] = NAN
        assert not judge(rounding_bound(self.exact), self.reference, broken)[0]
        assert not judge(rounding_bound(self.exact), broken, broken)[0]

    def test_bad_exact(self) -> None:
        with pytest.raises(
            TypeError, match="exact is torch.float32; evaluate the equations in torch.float64"
        ):
            judge(rounding_bound(self.exact.float()), self.reference, self.reference)
        passed, why = judge(rounding_bound(self.exact[:5]), self.reference, self.reference)
        assert not passed and why == "shape mismatch: actual [1000], exact [5]"


class TestTopK:
    scores = torch.tensor([[9.0, 7.0, 5.0, 5.0]])
    indices = torch.tensor([[4, 2, 8, 6]], dtype=torch.int32)

    def verdict(self, indices: list[int], scores: list[float] | None = None) -> tuple[bool, str]:
        values = self.scores if scores is None else torch.tensor([scores])
        return judge(
            topk_pair_compare("v"),
            torch.tensor([indices], dtype=torch.int32),
            self.indices,
            atol=1e-3,
            actual_outputs={"v": values},
            expected_outputs={"v": self.scores},
        )

    def test_legal_picks(self) -> None:
        assert self.verdict([4, 2, 8, 6]) == (True, "")
        assert self.verdict([4, 2, 6, 8]) == (True, "")  # tied
        assert self.verdict([4, 2, 8, 77]) == (True, "")  # tied with the last
        assert self.verdict([2, 4, 8, 6], [7.0, 9.0, 5.0, 5.0]) == (True, "")  # pairs, not order

    def test_wrong_picks(self) -> None:
        assert self.verdict([2, 4, 8, 6]) == (
            False,
            "row [0]: place 0 picks index 2 with score 9.0, its score in the golden is 7.0",
        )
        passed, why = self.verdict([77, 2, 8, 6])
        assert not passed and "picks index 77 with score 9.0, the golden's lowest picked score is 5.0" in why
        assert self.verdict([4, 2, 8, 8]) == (False, "row [0]: index 8 is picked 2 times")
        passed, why = self.verdict([4, 2, 8, 6], [9.0, 7.0, 5.0, 4.0])
        assert not passed and "worst [0, 3]: actual 4.0, expected 5.0" in why

    def test_missing_scores(self) -> None:
        passed, why = judge(topk_pair_compare("vals"), self.indices, self.indices)
        assert not passed and "no output 'vals'" in why
