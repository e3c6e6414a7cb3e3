"""A streamed product as a kernel: the skeleton is device/stream.py, the region gives rows and epilogue."""

from __future__ import annotations

from dataclasses import dataclass

from pypto_models.ir.expr import Const, Var, index
from pypto_models.ir.nodes import Block, Let
from pypto_models.ir.types import TileType
from pypto_models.target import Target

from .handlers import HANDLERS
from .kernel import Kernel
from .matching import UNIT, Product
from .tensors import View, view_dtype
from .text import Text
from .tiles import Coordinates, Tile, as_type, inside

ELEMENT = 2  # bytes of a weight
RESERVED = 1024  # bytes of shared memory that the system keeps per block
REGISTERS = 140  # accumulators that a thread holds besides its addresses
LINE = 64


@dataclass(frozen=True)
class Plan:
    """How a product is divided; see device/stream.py."""

    ctas: int
    warps_n: int
    warps_k: int
    chunk: int
    stages: int
    units: int
    accumulators: int
    m_tiles: int  # rows of the batch / 16

    @property
    def tiles(self) -> int:
        return -(-self.units // self.ctas) * self.accumulators

    @property
    def threads(self) -> int:
        return 32 * self.warps_n * self.warps_k

    @property
    def shared_bytes(self) -> int:
        stage = (self.tiles * UNIT + 16 * self.m_tiles) * self.chunk * ELEMENT
        return max(self.stages * stage, self.warps_k * self.m_tiles * self.tiles * 512)


def plan(product: Product, target: Target, limit: int | None = None) -> Plan:
    """The default plan: a CTA per core, the longest K pieces that leave three stages in shared memory.

    Where the accumulators of a CTA's share would not fit its registers, more CTAs take turns.
    """
    assert isinstance(product.blocks, Const)
    units = int(product.blocks.value) * product.width // UNIT
    accumulators = len(product.results)
    m_tiles = product.rows // 16
    most = max(
        1, 8 * (REGISTERS // (4 * m_tiles)) // accumulators
    )  # units of a CTA, eight warps side by side
    waves = -(-units // (target.cores * most))
    ctas = min(units, target.cores * waves)
    room = (limit or max(s.bytes for s in target.spaces.values() if s.align == 16)) - RESERVED
    per_cta = -(-units // ctas)
    best: Plan | None = None
    for warps_k in (8, 4, 2, 1):
        warps_n = 8 // warps_k
        chunk = LINE * warps_k
        if product.depth % chunk or -(-per_cta * accumulators // warps_n) * 4 * m_tiles > REGISTERS:
            continue
        stage = (per_cta * accumulators * UNIT + product.rows) * chunk * ELEMENT
        stages = min(room // stage, 8)
        made = Plan(ctas, warps_n, warps_k, chunk, stages, units, accumulators, m_tiles)
        if made.shared_bytes > room:
            continue
        if stages >= 3:
            return made
        if stages >= 2 and best is None:
            best = made
    if best is None:
        raise ValueError(f"no plan fits {room} bytes of shared memory")
    return best


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
    prepared = tuple(x for x in names.values() if x.isidentifier())  # not what is constant

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
    kernel.written.add(view.base)
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
