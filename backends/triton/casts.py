"""Conversions between element types, in every rounding mode of the language (`pypto_models.ops.rounding`)."""

from __future__ import annotations

from pypto_models.ir.nodes import Let
from pypto_models.ir.types import BOOL, FP32, DType

from .handlers import handles, result_type
from .kernel import Kernel, Tile
from .rules import unsupported
from .types import TYPES

NEAREST = ("rint", "none")  # ties to even
WHOLE = {
    "none": "tile.to_even({x})", "rint": "tile.to_even({x})", "floor": "tl.floor({x})",
    "ceil": "tl.ceil({x})", "trunc": "tile.truncated({x})", "round": "tile.away({x})",
    "odd": "tile.to_odd({x})",
}  # fmt: skip


@handles("cast")
def _cast(k: Kernel, s: Let) -> None:
    out, x = result_type(s), k.tile(s.args[0])
    if out.dtype == x.dtype:
        k.tiles[s.result] = x
        return
    k.keep(s.result, rounded(k, s, x, out.dtype, str(s.arg("mode"))), x.valid)


def rounded(k: Kernel, s: Let, x: Tile, new: DType, mode: str) -> str:
    """The text of a tile in another type; integers saturate."""
    old, to = x.dtype, TYPES[new.name]
    if new == BOOL:
        return f"{k.widened(x)} != 0"
    if new.is_integer and old.is_float:
        low, high = limits(new)
        return f"tile.saturated({WHOLE[mode].format(x=k.widened(x))}, {low}, {high}, {to})"
    if new.is_integer:
        return whole(x, old, new)
    exact = old.is_float or old.bits <= 16  # in fp32
    if exact and new != FP32 and mode not in NEAREST:
        return f'tile.narrowed({x.name}.to(tl.float32), {to}, "{mode}")'
    if not exact and mode not in (*NEAREST, "round"):
        raise unsupported(s, f"rounding mode {mode!r} from {old} to {new}: integers go to the nearest")
    if old == BOOL:
        return f"{x.name}.to(tl.int32).to({to})"
    return f"{x.name}.to({to})" if FP32 in (old, new) else f"{x.name}.to(tl.float32).to({to})"


def whole(x: Tile, old: DType, new: DType) -> str:
    """An integer in another integer type, at its ends where it is beyond them."""
    low, high = limits(new)
    first, last = limits(old)
    value = x.name
    if old == BOOL:
        value = f"{value}.to(tl.int32)"
    elif low > first or high < last:
        value = f"{value}.to(tl.int64)"
    if low > first:
        value = f"tl.maximum({value}, {low})"
    if high < last:
        value = f"tl.minimum({value}, {high})"
    return f"{value}.to({TYPES[new.name]})"


def limits(dtype: DType) -> tuple[int, int]:
    if dtype == BOOL:
        return 0, 1
    if dtype.kind == "uint":
        return 0, 2**dtype.bits - 1
    return -(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1) - 1
