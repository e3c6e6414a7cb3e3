"""What is known of the elements of a value before anything is computed: bounds, errors, exactness."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

MANTISSA = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}


@dataclass(frozen=True)
class Facts:
    """``|x| <= bound``; ``|simulated - expected| <= tol``, 0 for bit-exact values; with ``grain``, every
    element is a multiple of ``2 ** -grain``, so that sums that stay below the mantissa are exact too."""

    bound: float
    tol: float = 0.0
    grain: int | None = None

    @property
    def exact(self) -> bool:
        return self.tol == 0

    def join(self, other: Facts) -> Facts:
        """Of a value that is one or the other."""
        grain = None if self.grain is None or other.grain is None else max(self.grain, other.grain)
        return Facts(max(self.bound, other.bound), max(self.tol, other.tol), grain)

    def plus(self, other: Facts) -> Facts:
        return replace(self.join(other), bound=self.bound + other.bound, tol=self.tol + other.tol)

    def times(self, other: Facts) -> Facts:
        grain = None if self.grain is None or other.grain is None else self.grain + other.grain
        tol = self.tol * other.bound + other.tol * self.bound + self.tol * other.tol
        return Facts(self.bound * other.bound, tol, grain)

    def summed(self, n: int) -> Facts:
        """A sum of ``n`` in fp32, in any order."""
        bound = self.bound * n
        if self.exact and self.grain is not None and bound * 2.0**self.grain <= 2**24:
            return Facts(bound, 0.0, self.grain)
        return Facts(bound, self.tol * n + bound * 2.0**-22)

    def approximate(self) -> Facts:
        """Of a function that two implementations may round differently in the last place."""
        return Facts(self.bound, self.tol + self.bound * 2.0**-22)

    def rounded(self, dtype: torch.dtype) -> Facts:
        """After rounding to ``dtype``: an inexact value may fall on either side of a boundary."""
        if dtype not in MANTISSA:
            info = torch.iinfo(dtype)
            return Facts(min(self.bound, max(-info.min, info.max)), 0.0, 0)
        tol = self.tol + self.bound * 2.0 ** -(MANTISSA[dtype] - 1) if self.tol else 0.0
        return Facts(self.bound, tol, self.grain)
