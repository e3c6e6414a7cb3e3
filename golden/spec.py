"""What a kernel is called with: one spec per parameter, in parameter order, reproducible from one seed."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

SCALAR_DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32,
)  # fmt: skip

_RANDOM = (torch.randn, torch.rand)
_CONSTANT = (torch.zeros, torch.ones)


def spec_seed(seed: int, name: str) -> int:
    """The seed of one spec: the run's ``seed`` plus a hash of the name, the same in every process.

    It depends on nothing else, so adding or reordering parameters leaves the values of the others alone.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return (seed + int.from_bytes(digest, "little")) % 2**63


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, numpy and ``random``; restore the caller's three states on exit."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        # not torch.manual_seed: that also reseeds every GPU, whose state is not restored here
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@dataclass(frozen=True, eq=False)
class TensorSpec:
    """One tensor parameter.

    Args:
        name: unique among the specs.
        shape: extents, in elements.
        dtype: a torch dtype.
        init_value: ``None`` (zeros), a number (fill), a tensor (converted to ``dtype``), one of
            ``torch.randn/rand/zeros/ones`` (called with shape and dtype), or a callable without arguments
            whose result is converted to ``dtype``. Random values come from the spec's own seed.
        is_output: the kernel writes it. Without ``init_value`` it is a pure output, whose initial content
            no correct kernel can observe; with one it is read and written.
        resident: the tensor stays on the device between launches. The simulator has nothing to keep.
        alias_of: name of an earlier spec of the same shape and dtype whose memory this parameter shares.
            Specs that share memory without saying so are rejected.

    Raises:
        ValueError: a negative extent, or ``alias_of`` together with ``init_value``.
    """

    name: str
    shape: Sequence[int]
    dtype: torch.dtype
    init_value: Tensor | float | Callable[..., Any] | None = None
    is_output: bool = False
    resident: bool = False
    alias_of: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(extent) for extent in self.shape))
        if any(extent < 0 for extent in self.shape):
            raise ValueError(f"TensorSpec {self.name!r}: negative extent in shape {list(self.shape)}")
        if self.alias_of is not None and self.init_value is not None:
            raise ValueError(
                f"TensorSpec {self.name!r}: give the initial value to {self.alias_of!r}, whose memory it is"
            )

    def placeholder(self) -> Tensor:
        """A tensor of this type, never written: all that compiling looks at."""
        return torch.empty(tuple(self.shape), dtype=self.dtype)

    def materialize(self, seed: int = 0) -> Tensor:
        """The initial value: contiguous, ``shape`` and ``dtype`` as declared.

        It may share memory with a tensor given as ``init_value``; nothing is copied that need not be.

        Raises:
            ValueError: ``init_value`` does not give a tensor of the declared shape and dtype.
        """
        value = self._initial(spec_seed(seed, self.name))
        if value.shape != torch.Size(self.shape):
            raise ValueError(
                f"TensorSpec {self.name!r}: init_value has shape {list(value.shape)}, "
                f"expected {list(self.shape)}"
            )
        return value.detach().contiguous()

    def _initial(self, seed: int) -> Tensor:
        shape, init = tuple(self.shape), self.init_value
        if init is None:
            return torch.zeros(shape, dtype=self.dtype)
        if isinstance(init, Tensor):
            return init.to(self.dtype)
        if isinstance(init, bool | int | float):
            return torch.full(shape, init, dtype=self.dtype)
        if not callable(init):
            raise ValueError(
                f"TensorSpec {self.name!r}: init_value is a {type(init).__name__}; "
                "give None, a number, a tensor or a callable"
            )
        if init in _CONSTANT:
            return torch.as_tensor(init(shape, dtype=self.dtype))
        if init in _RANDOM:
            if not self.dtype.is_floating_point:
                raise ValueError(
                    f"TensorSpec {self.name!r}: torch.{init.__name__} has no {self.dtype} values; "
                    "use a callable such as lambda: torch.randint(...)"
                )
            generator = torch.Generator().manual_seed(seed)
            # fp8 has no sampler of its own
            sampled = self.dtype if self.dtype.itemsize > 1 else torch.float32
            return torch.as_tensor(init(shape, dtype=sampled, generator=generator)).to(self.dtype)
        with seeded(seed):
            return torch.as_tensor(init()).to(self.dtype)


@dataclass(frozen=True, eq=False)
class ScalarSpec:
    """One scalar parameter.

    ``value`` is kept as a 0-d tensor of ``dtype``; kernels and goldens get :attr:`number`.

    Raises:
        ValueError: the dtype is not a scalar dtype, or it cannot hold the value.
    """

    name: str
    dtype: torch.dtype
    value: Any

    def __post_init__(self) -> None:
        if self.dtype not in SCALAR_DTYPES:
            raise ValueError(f"ScalarSpec {self.name!r}: {self.dtype} is not one of {list(SCALAR_DTYPES)}")
        value = self.value
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(
                    f"ScalarSpec {self.name!r}: value has shape {list(value.shape)}, expected one element"
                )
            value = value.item()
        if not isinstance(value, bool | int | float):
            raise ValueError(
                f"ScalarSpec {self.name!r}: value is a {type(value).__name__}, expected a number"
            )
        if not _holds(self.dtype, value):
            raise ValueError(f"ScalarSpec {self.name!r}: {self.dtype} cannot hold {value!r}")
        object.__setattr__(self, "value", torch.tensor(value, dtype=self.dtype))

    @property
    def number(self) -> bool | int | float:
        """The value as a python number, after rounding to ``dtype``."""
        return self.value.item()  # type: ignore[no-any-return]


Spec = TensorSpec | ScalarSpec


def _holds(dtype: torch.dtype, value: bool | int | float) -> bool:
    if dtype is torch.bool:
        return value in (0, 1)
    if dtype.is_floating_point:
        return not math.isfinite(value) or abs(value) <= torch.finfo(dtype).max
    if not math.isfinite(value) or value != int(value):
        return False
    limits = torch.iinfo(dtype)
    return limits.min <= value <= limits.max
