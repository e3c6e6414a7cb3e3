"""A streamed product as a kernel: the skeleton is device/stream.py, the region gives rows and epilogue.

The schedule comes from the planner; ``accepts`` says which of its schedules the skeleton runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from pypto_models.errors import InternalError
from pypto_models.ir.expr import Const, Var, index
from pypto_models.ir.nodes import Block, Let
from pypto_models.ir.types import TileType
from pypto_models.schedule import Override, RegionDomain, Schedule, plan
from pypto_models.schedule.record import Ring, Stream
from pypto_models.target import Target

from .handlers import HANDLERS
from .kernel import Kernel
from .matching import UNIT, Product
from .tensors import View, view_dtype
from .text import Text
from .tiles import Coordinates, Tile, as_type, inside


def accepts(schedule: Schedule) -> str | None:
    """Why device/stream.py does not run a schedule, or None."""
    s = schedule.stream
    if s is None or schedule.ring is None:
        return "it is no stream"
    if s.slices > 1:
        return "K is cut across CTAs"
    if (s.owner, s.x_place) != ("cta", "ring"):
        return "its ring is not one of the CTA for weights and rows of the batch"
    if (s.batch, s.unit, s.major) != ("m", "m16n8", "k"):
        return "the batch is not on the m side of an MMA over rows of weights"
    if s.units != s.walkers:
        return "a CTA makes several units"
    if s.k % s.step or s.step % (s.line * s.warps_k):
        return f"steps of {s.step} elements do not divide K, {s.k}, or the lines of {s.warps_k} warps"
    return None


def schedule_of(domain: RegionDomain, target: Target, given: Override) -> Schedule | str:
    """The schedule of a region that is a product, or why it has none that the skeleton runs.

    Raises UserError for an override that leaves none.
    """
    found = plan(domain, target, given, accepts)
    if found.stream is not None:
        return found
    forbids = found.fixed_by
    return f"line {forbids[0].line}: {forbids[0].why}" if forbids else "the planner has no stream for it"


def parts_of(schedule: Schedule) -> tuple[Stream, Ring]:
    if schedule.stream is None or schedule.ring is None:
        raise InternalError(f"{schedule.region} is no stream")
    return schedule.stream, schedule.ring


def arguments(product: Product, schedule: Schedule, x_pitch: str, w_pitch: str, name: str) -> str:
    """The constructor of the skeleton: its units are the granules of the record, its chunks the steps."""
    s, ring = parts_of(schedule)
    if (s.k, s.rows, s.accumulators) != (product.depth, product.rows, len(product.results)):
        raise InternalError(f"{schedule.region}: the schedule is of another product")
    return (
        f"k={s.k}, x_pitch={x_pitch}, w_pitch={w_pitch}, units={s.all_granules}, "
        f"accumulators={s.accumulators}, ctas={schedule.ctas}, warps_n={s.warps_n}, warps_k={s.warps_k}, "
        f"chunk={s.step}, stages={ring.slots}, m_tiles={s.rows // 16}, "
        f"unit_row={name}_unit_row, finish={name}_finish"
    )


def in_words(schedule: Schedule) -> list[str]:
    """The schedule for those who read the emitted file."""
    s, ring = parts_of(schedule)
    widths = sorted({b - a for a, b in map(s.unit_columns, range(s.units))})
    columns = str(widths[0]) if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
    of = "" if s.accumulators == 1 else f" for each of {s.accumulators} accumulators"
    weights = ", ".join(dict.fromkeys(w.tensor for w in s.weights))
    return [
        f"{schedule.ctas} CTAs of {schedule.threads} threads; each makes {columns} of {s.n} columns{of}.",
        f"K, {s.k} elements, in steps of {s.step}; {s.warps_n} warps along columns x {s.warps_k} along K.",
        f"{s.rows} rows of {s.x} share a ring with {weights}: {ring.slots} slots of {ring.slot_bytes} bytes.",
    ]


@dataclass(frozen=True)
class Streamed:
    """The two functions of the skeleton and the call."""

    functions: tuple[tuple[str, tuple[str, ...], list[str]], ...]
    env: tuple[str, ...]  # what the functions read from the kernel
    x: str
    w: str
    rows: str
    kernel: Kernel


def emit(product: Product, views: dict[Var, View], prelude: Block) -> Streamed:
    """The emitted parts of a streamed product."""
    kernel = Kernel(views, HANDLERS)
    kernel.text.taken |= {
        "v",
        "c",
        "valid",
        "unit",
        "rows",
        "g",
        "t",
        "total",
        "a",
        "n",
        "column",
        "row",
        "x_rows",
    }
    # The tensors that a unit touches are known before its function is written
    x_view = kernel.view_of(product.x.args[0])
    w_view = kernel.view_of(product.weights[0].args[0])
    outer = kernel.text
    for s in prelude:
        kernel.stmt(s)
    limits = product.x.arg("valid_shape")
    x_type = product.x.result.type
    assert isinstance(x_type, TileType)
    rows = kernel.write(limits[0]) if isinstance(limits, tuple) else str(x_type.shape[0])
    x = f"{kernel.pointer(x_view.base)} + {x_view.start(kernel.write)}"
    w = f"{kernel.pointer(w_view.base)} + {w_view.start(kernel.write)}"
    names = dict(kernel.names)
    prepared = tuple(names.values())

    def inner() -> Text:
        kernel.text = Text(taken=outer.taken)
        kernel.names = {**names, product.block: "n"}
        kernel.text.line(f"n = unit * {UNIT} // {product.width}")
        kernel.text.line(f"column = unit * {UNIT} - n * {product.width}")
        return kernel.text

    # --- the first weight row of a unit
    text = inner()
    for s in product.before:
        if isinstance(s, Let) and s.op.name == "create_tile":
            continue
        kernel.stmt(s)
    text.line("row = Int32(0)")
    text.line(f"valid = Int32({UNIT})")
    for i, weight in enumerate(product.weights):
        at = weight.arg("offset")
        with text.nested(f"if cutlass.const_expr(a == {i}):"):
            text.line(f"row = Int32({kernel.write(at[0])}) + column")  # type: ignore[index, arg-type]
            limit = weight.arg("valid_shape")
            if isinstance(limit, tuple) and not isinstance(limit[0], Const):
                text.line(f"valid = min(Int32({kernel.write(limit[0])}) - column, Int32({UNIT}))")
    text.line("return row, valid")
    unit_row = text.lines

    # --- the epilogue, at the coordinates of the accumulators' fragments
    text = inner()
    for s in product.before:
        if isinstance(s, Let) and s.op.name == "create_tile":
            continue
        kernel.stmt(s)
    for i, result in enumerate(product.results):
        kernel.tiles[result] = fragment(i, result, kernel, rows)
    stores: list[Let] = []
    for s in product.epilogue:
        assert isinstance(s, Let)
        if s.op.name == "store":
            stores.append(s)
        else:
            HANDLERS[s.op.name](kernel, s)
    with text.nested("for v in cutlass.range_constexpr(4):"):
        text.line("row = 16 * m + g + 8 * (v // 2)")
        text.line("c = column + 2 * t + v % 2")
        for s in stores:
            store(kernel, s)
    functions = (
        ("unit_row", ("env", "a", "unit"), unit_row),
        ("finish", ("env", "unit", "x_rows", "m", "g", "t", "total"), text.lines),
    )
    kernel.text, kernel.names = outer, names
    env = (*kernel.pointers.values(), *kernel.extents.values(), *kernel.captured.values(), *prepared)
    return Streamed(functions, tuple(dict.fromkeys(env)), x, w, rows, kernel)


def fragment(i: int, var: Var, kernel: Kernel, rows: str) -> Tile:
    """Accumulator ``i`` of a unit: its elements are asked for only where the thread holds them."""
    assert isinstance(var.type, TileType)
    valid = kernel.static_valid(var.type, (rows, str(var.type.shape[1])))

    def at(text: Text, c: Coordinates) -> str:
        return f"total[v, {i}]"

    return Tile(var.type.shape, var.type.dtype, valid, at)


def store(kernel: Kernel, s: Let) -> None:
    """The element of a fragment that this thread holds, stored."""
    text, tile = kernel.text, kernel.tile(s.arg("source"))
    view = kernel.view_of(s.arg("target"))
    at = tuple(index(x) for x in s.arg("offset"))  # type: ignore[union-attr, arg-type]
    box = view.moved(view.shape, at)
    place = ("row", "c")
    tests = [inside(tile, place) or "", "(row < x_rows)" if tile.valid[0] == str(tile.shape[0]) else ""]
    with text.nested(f"if {' & '.join(x for x in tests if x)}:"):
        value = as_type(tile.value(text, place), tile.dtype, view_dtype(view))
        text.line(
            f"block.element({kernel.pointer(view.base)}, "
            f"{box.at(kernel.write, box.start(kernel.write), place)})[0] = {value}"
        )
