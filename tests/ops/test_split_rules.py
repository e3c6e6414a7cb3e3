"""What OpDef.split promises: where it is None, two lanes on halves give, bit for bit, what one lane gives.

Lane 0 holds the first half of the axis, rounded up.  A tile with one element on the axis is held whole by
both.  And where it refuses, halves are impossible or wrong, so that no rule refuses without need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from backends.sim import simulate
from pypto_models.errors import InternalError, UserError
from pypto_models.ir.nodes import Direction, Function, Let, Unit
from pypto_models.ir.rewrite import walk
from pypto_models.ir.types import FP32, SplitMode, TensorType, TileType, tile
from pypto_models.ops import REGISTRY
from pypto_models.ops.registry import OpDef, Sample, T
from tests.backends.build import Builder

from .samples import inputs, torch_type

MODES = (SplitMode.UP_DOWN, SplitMode.LEFT_RIGHT)  # by axis

# Ops that refuse some sample, by axis.  All others run under every split; loads, stores and moves too.
REFUSE = {
    0: {"col_sum", "col_max", "col_min", "extract", "insert", "reshape", "transpose"},
    1: {"arange", "row_sum", "row_max", "row_min", "row_argmax", "extract", "insert", "reshape", "transpose"},
}


# ------------------------------------------------------------------------------------------ samples
def resized(sample: Sample, extents: dict[int, int]) -> Sample:
    """The sample with other extents in its tiles; ``valid`` is cut to fit."""

    def one(a: Any) -> Any:
        if not isinstance(a, T):
            return a
        shape = tuple(extents.get(d, d) for d in a.shape)
        valid = a.valid and tuple(min(v, d) for v, d in zip(a.valid, shape, strict=True))
        return replace(a, shape=shape, valid=valid)

    return replace(sample, args=tuple(one(a) for a in sample.args))


def filled(sample: Sample) -> Sample:
    """The sample with every element valid."""
    args = tuple(replace(a, valid=None) if isinstance(a, T) else a for a in sample.args)
    return replace(sample, args=args)


def variants(o: OpDef) -> list[tuple[str, Sample]]:
    """Each sample, and, if its arguments name no extents, with odd ones, one row, one column."""
    found = []
    for i, s in enumerate(o.samples):
        found.append((f"{o.name}-{i}", s))
        if not any(isinstance(a, tuple) for a in s.args) and o.name != "set_validshape":
            for name, extents in {"odd": {16: 7, 32: 9}, "row": {16: 1}, "column": {32: 1}}.items():
                found.append((f"{o.name}-{i}-{name}", resized(s, extents)))
    return found


CASES = [
    pytest.param(o, s, axis, id=f"{name}-{MODES[axis].name}")
    for o in REGISTRY
    if o.unit is not Unit.CUBE  # the cube works on whole tiles, so nothing asks its rules
    for name, s in variants(o)
    for axis in (0, 1)
]


# ------------------------------------------------------------------------------------------ running
def built(o: OpDef, sample: Sample, split: SplitMode) -> Function:
    b = Builder("kernel", split)
    params = [
        b.param(f"x{i}", TensorType(t.shape, t.dtype))
        for i, t in enumerate(a for a in sample.args if isinstance(a, T))
    ]
    with b.region():
        tensors = iter(params)
        args = [_loaded(b, next(tensors), a) if isinstance(a, T) else a for a in sample.args]
        y = b.vec(o.name, *args, **dict(sample.keywords))
        out = b.param("out", TensorType(y.type.shape, y.type.dtype), Direction.INOUT)
        b("store", out, y, (0,) * y.type.rank)
    return b.function()


def _loaded(b: Builder, x: Any, t: T) -> Any:
    return b.vec("load", x, t.shape, (0,) * len(t.shape), valid_shape=t.valid)


def the_let(o: OpDef, sample: Sample) -> Let:
    lets = (s for s in walk(built(o, sample, SplitMode.NONE).body) if isinstance(s, Let))
    return next(s for s in lets if s.op.name == o.name)


def result(o: OpDef, sample: Sample, split: SplitMode) -> torch.Tensor:
    """What the kernel stores; 7 where it stores nothing."""
    function = built(o, sample, split)
    y = function.params[-1].var.type
    assert isinstance(y, TensorType)
    out = torch.full([int(d) for d in y.shape if isinstance(d, int)], 7).to(torch_type(y.dtype))
    simulate(function, {f"x{i}": eighths(x) for i, x in enumerate(inputs(sample))} | {"out": out})
    return out


def eighths(x: torch.Tensor) -> torch.Tensor:
    """Values whose sums are exact, so that the order of adding does not matter."""
    return x.float().mul(8).round().div(8).to(x.dtype) if x.dtype.is_floating_point else x


@pytest.mark.parametrize(("o", "sample", "axis"), CASES)
def test_halves(o: OpDef, sample: Sample, axis: int) -> None:
    whole = result(o, sample, SplitMode.NONE)
    if o.split(axis, the_let(o, sample)) is None:
        assert torch.equal(result(o, sample, MODES[axis]), whole)
        return
    # What is valid may by luck lie in one lane; a rule speaks for any valid rectangle, so for the full one.
    full = filled(sample)
    try:
        halves = result(o, full, MODES[axis])
    except (InternalError, UserError):  # the lanes' tiles do not have the extents that the op needs
        return
    assert not torch.equal(halves, result(o, full, SplitMode.NONE)), "the rule refuses a split that is right"


def test_the_halves_really_are_halves() -> None:
    """Each lane runs the op, on its own extents."""
    fn = built(REGISTRY["exp"], Sample((T((7, 9), FP32),)), SplitMode.UP_DOWN)
    (y,) = next(s.results for s in walk(fn.body) if isinstance(s, Let) and s.op.name == "exp")
    assert isinstance(y.type, TileType)
    assert (y.type.split, y.type.lane_shape()) == (SplitMode.UP_DOWN, (4, 9))


@pytest.mark.parametrize("axis", [0, 1])
def test_which_ops_refuse(axis: int) -> None:
    lets = [the_let(o, s) for o in REGISTRY if o.unit is not Unit.CUBE for _, s in variants(o)]
    refusing = {let.op.name for let in lets if definition(let).split(axis, let) is not None}
    assert refusing == REFUSE[axis]


def definition(let: Let) -> OpDef:
    assert isinstance(let.op, OpDef)
    return let.op


@pytest.mark.parametrize(
    ("shape", "new", "legal"),
    [
        ((16, 32), (32, 16), (True, False)),
        ((16, 1), (1, 16), (False, False)),
        ((1, 16), (16, 1), (False, False)),
        ((16, 32), (16, 4, 8), (True, True)),  # columns regrouped within each half
        ((16, 6), (16, 3, 2), (True, False)),
        ((6, 8), (12, 4), (True, False)),
        ((6, 8), (3, 16), (False, False)),  # half of three rows is half a row off
        ((1, 64), (64,), (False, False)),
        ((16, 1), (16,), (True, True)),
        ((7, 9), (7, 9), (True, True)),
    ],
    ids=str,
)
def test_reshape(shape: tuple[int, ...], new: tuple[int, ...], legal: tuple[bool, bool]) -> None:
    """Legal where both sides are halved at the same element, or neither is."""
    o, sample = REGISTRY["reshape"], Sample((T(shape, FP32), new))
    for axis in (0, 1):
        assert (o.split(axis, the_let(o, sample)) is None) is legal[axis], axis
        test_halves(o, sample, axis)


@pytest.mark.parametrize(
    ("offset", "size", "legal"),
    [
        ((0, 8), (16, 8), (True, False)),
        ((8, 0), (8, 32), (False, True)),
        ((0, 0), (16, 32), (True, True)),
        ((4, 8), (8, 8), (False, False)),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["extract", "insert"])
def test_boxes(name: str, offset: tuple[int, int], size: tuple[int, int], legal: tuple[bool, bool]) -> None:
    """A box that spans the whole axis is halved with it; a part of the axis may lie in either lane."""
    big = T((16, 32), FP32)
    sample = Sample((big, size, offset) if name == "extract" else (big, T(size, FP32), offset))
    o = REGISTRY[name]
    for axis in (0, 1):
        assert (o.split(axis, the_let(o, sample)) is None) is legal[axis], axis
        test_halves(o, sample, axis)


@pytest.mark.parametrize("name", ["read_tile", "write_tile"])
@pytest.mark.parametrize(
    ("shape", "legal"), [((16, 32), (False, False)), ((1, 32), (True, False)), ((8, 1), (False, True))]
)
def test_one_element_lives_in_one_lane(name: str, shape: tuple[int, int], legal: tuple[bool, bool]) -> None:
    b = Builder()
    x = b.param("x", TensorType(shape, FP32))
    with b.region():
        t = b("load", x, shape, (0, 0))
        b(name, t, (0, 0), *([1.0] if name == "write_tile" else []))
    let = next(s for s in walk(b.function().body) if isinstance(s, Let) and s.op.name == name)
    for axis in (0, 1):
        why = definition(let).split(axis, let)
        assert (why is None) is legal[axis]
        assert why is None or "lives in one lane" in why


def test_a_wrong_rule_is_noticed() -> None:
    """A rule that allowed a sum along the split axis would fail the test above."""
    o = REGISTRY["row_sum"]
    careless: Callable[[int, Let], str | None] = lambda axis, let: None  # noqa: E731
    with pytest.raises((InternalError, AssertionError), match="split|assert"):
        test_halves(replace(o, split=careless), o.samples[0], 1)


def test_lane_extents_round_up() -> None:
    t = tile((7, 9), FP32)
    assert t.with_(split=SplitMode.UP_DOWN).lane_shape() == (4, 9)
    assert t.with_(split=SplitMode.LEFT_RIGHT).lane_shape() == (7, 5)
