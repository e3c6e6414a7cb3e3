"""How far a tensor is from its reference: one chunked pass in fp64, and the words to say it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from golden.memory import chunks

MAX_SHOWN = 20

Within = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``within(actual, expected, error) -> bool mask`` on flat fp64 chunks, ``error = |actual - expected|``."""


@dataclass(frozen=True)
class Element:
    """One element: its index and the two values. ``error`` is ``inf`` where NaN or Inf leaves none."""

    index: tuple[int, ...]
    actual: bool | int | float
    expected: bool | int | float
    error: float

    def __str__(self) -> str:
        values = f"actual {self.actual!r}, expected {self.expected!r}"
        return f"{list(self.index)}: {values}, error {self.error:.6g}"


@dataclass(frozen=True)
class Diff:
    """The difference of two tensors of one shape.

    ``max_error`` and ``rms_error`` are over the elements whose error is finite; the others are mismatches and
    rank first in ``worst``. Counts of NaN and Inf are ``(actual, expected)``.
    """

    numel: int
    mismatches: int
    max_error: float
    rms_error: float
    max_expected: float
    nan: tuple[int, int]
    inf: tuple[int, int]
    worst: Element | None
    first: tuple[Element, ...]

    @property
    def ratio(self) -> float:
        """Fraction of elements that mismatch."""
        return self.mismatches / self.numel if self.numel else 0.0

    def nonfinite(self) -> str:
        """``'NaN: 3 in actual, 0 in expected; ...'``, or empty if every element is finite."""
        counts = (("NaN", self.nan), ("Inf", self.inf))
        return "; ".join(f"{name}: {a} in actual, {e} in expected" for name, (a, e) in counts if a or e)

    def describe(self, rule: str) -> str:
        """The whole story over several lines; ``rule`` names what the mismatching elements break."""
        lines = [f"{self.mismatches} of {self.numel} elements ({self.ratio:.3%}) differ beyond {rule}"]
        if self.nonfinite():
            lines.append(self.nonfinite())
        lines.append(f"max abs error {self.max_error:.6g}, rms error {self.rms_error:.6g}")
        if self.worst is not None:
            lines.append(f"worst {self.worst}")
        if self.first:
            lines.append(f"first {len(self.first)} mismatches:")
            lines += [f"  {element}" for element in self.first]
        return "\n".join(lines)


def type_mismatch(actual: Tensor, expected: Tensor) -> str:
    """Why the two cannot be compared element by element, or empty."""
    if actual.shape != expected.shape:
        return f"shape mismatch: actual {list(actual.shape)}, expected {list(expected.shape)}"
    if actual.dtype != expected.dtype:
        return f"dtype mismatch: actual {actual.dtype}, expected {expected.dtype}"
    return ""


def measure(actual: Tensor, expected: Tensor, within: Within | None = None) -> Diff:
    """Compare two tensors of one shape and dtype element by element.

    An element matches if it is equal (equal infinities are), or if its error is finite and ``within`` accepts
    it. Without ``within`` the comparison is exact; on integers it is then done on the integers themselves.
    NaN never matches.
    """
    a_flat, e_flat = actual.contiguous().reshape(-1), expected.contiguous().reshape(-1)
    floating = actual.dtype.is_floating_point
    mismatches = 0
    max_error = sum_squares = max_expected = 0.0
    nan, inf = [0, 0], [0, 0]
    worst: tuple[float, int] | None = None
    shown: list[tuple[int, float]] = []
    for start, (a_chunk, e_chunk) in chunks(a_flat, e_flat):
        a, e = a_chunk.double(), e_chunk.double()
        if floating:
            for side, values in enumerate((a, e)):
                # a sum is finite only if every term is: one cheap pass in the usual case
                if not math.isfinite(float(values.sum())):
                    nan[side] += int(values.isnan().sum())
                    inf[side] += int(values.isinf().sum())
        max_expected = max(max_expected, float(e.abs().nan_to_num_(0.0, 0.0, 0.0).max()))
        equal = a_chunk == e_chunk if not floating else a == e
        if bool(equal.all()):
            worst = worst or (0.0, start)
            continue
        error = (a - e).abs_().masked_fill_(equal, 0.0)
        finite = error.isfinite()
        matches = equal if within is None else equal | (finite & within(a, e, error))
        rank = torch.where(finite, error, math.inf)
        # an integer difference below fp64 resolution must still outrank a match
        rank = rank.masked_fill_(~equal & (error == 0), math.ulp(0.0))
        at = int(rank.argmax())
        if worst is None or float(rank[at]) > worst[0]:
            worst = float(rank[at]), start + at
        summed = error.masked_fill(~finite, 0.0)
        max_error = max(max_error, float(summed.max()))
        sum_squares += float(torch.dot(summed, summed))
        bad = (~matches).nonzero().reshape(-1)
        mismatches += bad.numel()
        for i in bad[: MAX_SHOWN - len(shown)].tolist():
            shown.append((start + i, float(rank[i])))
    numel = a_flat.numel()

    def element(at: int, error: float) -> Element:
        return Element(unravel(at, actual.shape), a_flat[at].item(), e_flat[at].item(), error)

    return Diff(
        numel=numel,
        mismatches=mismatches,
        max_error=max_error,
        rms_error=math.sqrt(sum_squares / numel) if numel else 0.0,
        max_expected=max_expected,
        nan=(nan[0], nan[1]),
        inf=(inf[0], inf[1]),
        worst=None if worst is None else element(worst[1], worst[0]),
        first=tuple(element(at, error) for at, error in shown),
    )


def unravel(flat: int, shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
    """Row-major multi-index of a flat position."""
    index: list[int] = []
    for extent in reversed(shape):
        flat, i = divmod(flat, extent)
        index.append(i)
    return tuple(reversed(index))
