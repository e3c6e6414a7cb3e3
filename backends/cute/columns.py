"""Column sums and extremes of dealt tiles."""

from __future__ import annotations

from dataclasses import replace

from pypto_models.ir.nodes import Let
from pypto_models.ir.types import FP32, DType

from .handlers import result_type
from .kernel import Kernel
from .layouts import THREADS, WARPS, Columns, Dealt
from .scalars import DSL_TYPES, literal
from .text import BARRIER
from .tiles import Tile, as_type


def column_statistic(k: Kernel, s: Let, x: Tile, layout: Dealt, how: str) -> Tile:
    """Over a thread's rows, then the lanes of its warp, then the warps in order: one barrier.

    All threads take the last step, each for its own columns, and so know what they need beside the tile.
    """
    t, out = k.text, result_type(s)
    name, beside = s.result.name, Columns(layout)
    own = k.registers(f"{name}_own", FP32, (1, layout.columns), beside, start_of(how, FP32)).registers
    with k.fragments(layout) as (i, at), k.when(_live(x, at)):
        value = f"{DSL_TYPES[FP32.name]}({x.value(t, at)})"
        spot = f"{own}[{i} % {layout.run}]"
        t.line(f"{spot} = {combine(how, spot, value)}")
    groups = WARPS if layout.period < 32 else THREADS // layout.period
    size = f"{layout.columns}, {layout.run}"
    if groups > 1:
        parts = t.unique(f"{name}_parts")
        k.buffers.add(parts, FP32, groups * layout.columns)
        t.part()
        t.line(f"across.put({own}, {parts}, {size}, '{how}')")
        t.line(BARRIER)
        own = t.let(f"{name}_all", f"across.take({parts}, {size}, '{how}')")
    total = k.registers(name, out.dtype, out.shape, beside)
    with k.fragments(beside) as (i, _):
        t.line(f"{total.registers}[{i}] = {as_type(f'{own}[{i}]', FP32, out.dtype)}")
    return replace(total, valid=k.static_valid(out, ("1", x.valid[1])))


def _live(x: Tile, at: tuple[str, ...]) -> str | None:
    return None if x.valid[0] == str(x.shape[0]) else f"{at[0]} < {x.valid[0]}"


def start_of(how: str, dtype: DType) -> str:
    if how == "sum":
        return literal(0.0 if dtype.is_float else 0, dtype)
    if dtype.is_float:
        return f"Float32({'-' if how in ('max', 'argmax') else ''}float('inf'))"
    high = 2 ** (dtype.bits - 1) - 1
    return literal(-high - 1 if how in ("max", "argmax") else high, dtype)


def combine(how: str, a: str, b: str) -> str:
    return f"{a} + {b}" if how == "sum" else f"block.{'larger' if how == 'max' else 'smaller'}({a}, {b})"
