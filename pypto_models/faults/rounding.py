"""Faults of precision: a cast left out, a narrower type on the way, another rounding mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ..ir.expr import Var
from ..ir.nodes import Function, Let
from ..ir.types import BF16, FP8E4M3FN, FP16, FP32, DType, TileType
from ..ops import REGISTRY
from .fault import Fault, FaultClass, Maker, Mistyped, Outline, Retype, with_arg

_NARROWER: dict[DType, DType] = {FP32: BF16, BF16: FP8E4M3FN, FP16: FP8E4M3FN}
_NEAREST = ("none", "rint", "round")


def wrong_roundings(o: Outline) -> Iterator[Fault]:
    """Casts between float types: left out, through a narrower type, in another mode."""
    for let, op in o.lets():
        if op.name != "cast":
            continue
        x, out = let.arg("x"), let.result
        if not isinstance(x, Var) or not isinstance(x.type, TileType) or not isinstance(out.type, TileType):
            continue
        source, target = x.type.dtype, out.type.dtype
        if not (source.is_float and target.is_float):
            continue
        named = f"the cast to {out.name}"
        if source != target and (wrong := _without(o, let, x)) is not None:
            yield o.made(FaultClass.ROUNDING, let, f"{named} is left out", partial(_itself, wrong))
        narrow = _NARROWER.get(target)
        if narrow is not None and narrow.bits < source.bits:
            made = Maker(let.span)
            less = made.let(REGISTRY["cast"], x, narrow, "rint", name=out.name)
            new = (*made.block, with_arg(let, "x", less))
            yield o.fault(FaultClass.ROUNDING, let, f"{named} passes through a narrower type", new)
        if target.bits < source.bits or source == target:
            mode = "trunc" if let.arg("mode") in _NEAREST else "rint"
            other = with_arg(let, "mode", mode)
            what = f"{named} rounds by {mode}"
            yield o.fault(FaultClass.ROUNDING_MODE, let, what, (other,))


def _without(o: Outline, let: Let, x: Var) -> Function | None:
    """The function with the operand of a cast in place of its result; None if that is no fault.

    It is none where a type does not fit below, and where a cast to a wider type is left out of an operation
    that widens its operands itself.
    """
    rewriter = Retype([(let.result, x)], let)
    try:
        body = rewriter.block(o.function.body)
    except Mistyped:
        return None
    widens = _bits(let.result) > _bits(x)
    return None if widens and not rewriter.computes else replace(o.function, body=body)


def _itself(wrong: Function) -> Function:
    return wrong


def _bits(x: Var) -> int:
    return x.type.dtype.bits if isinstance(x.type, TileType) else 0
