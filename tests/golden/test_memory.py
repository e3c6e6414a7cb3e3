"""Poison, fingerprints and aliasing."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from golden.memory import bits, fingerprint, never_written, overlap, poisoned

FLOATS = [
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
]  # fmt: skip
INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_poison_is_nan(dtype: torch.dtype) -> None:
    assert poisoned((3, 5), dtype).float().isnan().all()


@pytest.mark.parametrize("dtype", INTEGERS)
def test_no_poisoned_integer_is_right_by_accident(dtype: torch.dtype) -> None:
    every = torch.arange(-300, 300).to(dtype) if dtype is not torch.bool else torch.tensor([True, False])
    plain = poisoned((1,), dtype)
    expected = torch.cat([every, plain])  # holds the sentinel itself
    fill = poisoned(tuple(expected.shape), dtype, expected)
    assert not (fill == expected).any()
    assert never_written(fill, expected).all()


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_written_elements_are_told_from_poison(dtype: torch.dtype) -> None:
    expected = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(dtype)
    actual = poisoned((2, 3), dtype, expected)
    actual[:, 1] = expected[:, 1]
    assert never_written(actual, expected).reshape(2, 3).tolist() == [[True, False, True]] * 2


def test_computed_nan_is_not_poison() -> None:
    actual = poisoned((4,), torch.float32)
    actual[1:3] = torch.tensor([0.0, float("nan")]) / 0.0
    assert never_written(actual, torch.ones(4)).tolist() == [True, False, False, True]


def test_poison_where_the_golden_is_not_finite_is_left_out() -> None:
    expected = torch.tensor([1.0, float("inf"), float("nan")])
    assert never_written(poisoned((3,), torch.float32), expected).tolist() == [True, False, False]


@given(data=st.binary(min_size=1, max_size=80), at=st.integers(0, 79), flip=st.integers(1, 255))
def test_any_changed_byte_changes_the_fingerprint(data: bytes, at: int, flip: int) -> None:
    before = torch.tensor(list(data), dtype=torch.uint8)
    after = before.clone()
    after[at % len(data)] ^= flip
    assert fingerprint(before) != fingerprint(after)
    assert fingerprint(before) == fingerprint(before.clone())


def test_fingerprint_sees_position_length_and_block() -> None:
    words = torch.arange(1 << 19)  # two blocks
    original = fingerprint(words)
    swapped = words.clone()
    swapped[[3, 4]] = words[[4, 3]]
    blocks = torch.cat([words[1 << 18 :], words[: 1 << 18]])
    assert len({original, fingerprint(swapped), fingerprint(blocks), fingerprint(words[:-1])}) == 4
    assert fingerprint(torch.zeros(8)) != fingerprint(torch.zeros(16))


def test_fingerprint_does_not_depend_on_alignment() -> None:
    base = torch.arange(1001, dtype=torch.int16)
    for start in range(5):
        part = base[start : start + 900]
        assert fingerprint(part) == fingerprint(part.clone())


def test_overlap() -> None:
    base = torch.zeros(100)
    apart = {"a": base[:50], "b": base[50:], "empty": base[:0]}
    assert overlap(apart) is None
    assert overlap(apart | {"c": base[49:51]}) in {("a", "c"), ("c", "b")}
    # a long span hides a short one between it and its neighbour
    assert overlap({"long": base, "first": base[1:2], "second": base[80:81]}) == ("long", "first")
    assert bits(base).dtype is torch.int32
