"""The arguments of a part, made alike on every machine and device.

Floats are uniform in [-scale, scale) and follow from a counter by integer arithmetic alone, so that the CPU
that computes what is expected and the device that is measured see the same bits.  They repeat after PERIOD
elements, which is no multiple of a row, so that no two rows are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..errors import Diag, user_error
from ..ir.expr import Binary, Const, DimVar, Expr, apply
from ..ir.nodes import Direction, Function
from ..ir.types import ScalarType, TensorType
from ..language.entry import written_params

PERIOD = (1 << 22) - 3
MASK = (1 << 64) - 1
ROW = 128  # elements: a matrix with rows at least as long is scaled like weights


@dataclass(frozen=True)
class Argument:
    """A tensor of ``shape``, or a number.

    ``values``: a number for every element, or nested lists; None for random floats below ``scale``.
    """

    name: str
    kind: str
    direction: str
    dtype: str
    shape: tuple[int, ...] = ()
    values: Any = None
    scale: float = 1.0
    seed: int = 0

    @property
    def bytes(self) -> int:
        size = getattr(torch, self.dtype).itemsize if self.kind == "tensor" else 0
        for d in self.shape:
            size *= d
        return size

    @staticmethod
    def from_json(data: dict[str, Any]) -> Argument:
        return Argument(**data | {"shape": tuple(data["shape"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def arguments(function: Function, given: Mapping[str, Any]) -> tuple[Argument, ...]:
    """The arguments of a part; ``given`` has extents, scalar arguments and contents of index tensors.

    Raises:
        UserError: an extent, a scalar or the contents of an index tensor is missing.
    """
    written = written_params(function)
    found = []
    for seed, p in enumerate(function.params):
        t = p.var.type
        if isinstance(t, ScalarType):
            value = _given(p.name, given, "a scalar argument")
            found.append(Argument(p.name, "scalar", "in", str(t.dtype.torch_name), values=value))
            continue
        assert isinstance(t, TensorType)
        shape = tuple(_extent(d, given) for d in t.shape)
        values = None
        if p.direction is not Direction.OUT and not t.dtype.is_float:
            values = _given(p.name, given, "the contents of an index tensor")
        weights = len(shape) == 2 and min(shape[0] - 1, shape[1]) >= ROW and p.var not in written
        scale = (3 / shape[1]) ** 0.5 if weights else 1.0  # products of about the size of their rows
        found.append(
            Argument(
                p.name, "tensor", p.direction.value, str(t.dtype.torch_name), shape, values, scale, seed
            )
        )  # fmt: skip
    return tuple(found)


def _given(name: str, given: Mapping[str, Any], what: str) -> Any:
    if name not in given:
        raise user_error(
            Diag.ARGUMENT, None, name=name, why=f"{what} has no value",
            fix=f"give --extent {name}=VALUE, or define cli_arguments in the kernel's file",
        )  # fmt: skip
    return given[name]


def _extent(d: int | Expr, given: Mapping[str, Any]) -> int:
    if isinstance(d, int):
        return d
    if isinstance(d, Const):
        return int(d.value)
    if isinstance(d, DimVar):
        return int(_given(d.name, given, "a run-time extent"))
    assert isinstance(d, Binary)
    return int(apply(d.op, _extent(d.lhs, given), _extent(d.rhs, given)))


def make(a: Argument, device: torch.device | str = "cpu") -> Any:
    """The argument: a number, or a tensor; NaN (or -1) in what is only written."""
    if a.kind != "tensor":
        return a.values
    dtype = getattr(torch, a.dtype)
    if a.direction == "out":
        poison = float("nan") if dtype.is_floating_point else -1
        return torch.full(a.shape, poison, dtype=dtype, device=device)
    if a.values is not None:
        values = torch.tensor(a.values, dtype=dtype)
        return values.expand(a.shape).contiguous().to(device)
    out = torch.empty(a.shape, dtype=dtype, device=device)
    flat, n = out.view(-1), out.numel()
    once = (_uniform(torch.arange(min(PERIOD, n), device=device), a.seed) * a.scale).to(dtype)
    for start in range(0, n, PERIOD):
        flat[start : start + PERIOD] = once[: n - start]
    return out


def _uniform(at: torch.Tensor, seed: int) -> torch.Tensor:
    """fp32 in [-1, 1): the upper bits of a mixed counter (Steele, Lea and Flood's SplitMix64)."""
    x = at.add_(seed << 40).mul_(_signed(0x9E3779B97F4A7C15))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & (MASK >> shift))).mul_(_signed(factor))
    return ((x >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-23 - 1.0


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


# ------------------------------------------------------------------------------------------- comparison
SAMPLED = 1 << 18  # elements of a tensor that are compared, about
TOLERANCE = {"bfloat16": 2.0**-6, "float16": 2.0**-8, "float32": 2.0**-12}
"""Of a value and of the tensor's RMS: a few roundings.  What is wrong is off by about the RMS."""


def sample(t: torch.Tensor) -> torch.Tensor:
    """What is compared of a tensor: all of it, or of a large one every n-th element, n odd.

    Rows have even lengths, so that every column is met in some rows.
    """
    step = t.numel() // SAMPLED | 1 if t.numel() > SAMPLED else 1
    return t.detach().flatten()[::step].cpu().clone()


def differences(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """What is wrong, one line for each tensor; nothing if all are as expected.

    ``expected`` holds samples (:func:`sample`), ``found`` whole tensors.
    """
    for name, want in expected.items():
        got = sample(found[name])
        if not want.dtype.is_floating_point:
            wrong = int((got != want).sum())
            if wrong:
                yield f"{name}: {wrong} of {want.numel()} elements differ"
            continue
        w, g = want.to(torch.float64), got.to(torch.float64)
        live = ~w.isnan()  # what the program leaves alone is NaN in both
        rms = float(w[live].square().mean().sqrt())
        bound = TOLERANCE[str(want.dtype).removeprefix("torch.")] * (w.abs() + rms)
        bad = ~((g - w).abs() <= bound) & live | (~live & ~g.isnan())
        if bool(bad.any()):
            worst = float((g - w)[live].abs().nan_to_num(torch.inf).max())
            count = int(bad.sum())
            off = f"off by up to {worst:.3g}, where the RMS is {rms:.3g}"
            yield f"{name}: {count} of {w.numel()} elements are {off}"


def empty(expected: Mapping[str, torch.Tensor]) -> str | None:
    """Why a comparison with these could not fail, or None."""
    for name, want in expected.items():
        if want.dtype.is_floating_point and not bool((want.nan_to_num(0.0) != 0).any()):
            return f"{name} is zero or NaN everywhere"
    return None if expected else "it writes no tensor"
