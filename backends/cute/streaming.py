"""A streamed product as a kernel: the skeleton is device/stream.py, the region gives rows and epilogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pypto_models.ir.expr import Const, Var, index
from pypto_models.ir.nodes import Block, Let
from pypto_models.ir.types import TileType

from ..gpu.matching import Product
from ..gpu.row_statistic import RowStatistic
from ..gpu.tensors import View, view_dtype
from .addresses import element_at, start_of
from .handlers import HANDLERS
from .kernel import Kernel
from .text import Text
from .tiles import Coordinates, Tile, as_type, inside


@dataclass(frozen=True)
class Norm:
    """A norm that a streamed product takes part in; ``sums`` `[rows, parts]` in workspace are partial."""

    of: RowStatistic
    sums: Var
    parts: int  # CTAs of the producer


@dataclass(frozen=True)
class Streamed:
    """The functions of the skeleton and the call."""

    functions: tuple[tuple[str, tuple[str, ...], list[str]], ...]
    env: tuple[str, ...]  # what the functions read from the kernel
    x: str
    w: str
    rows: str
    fields: tuple[str, ...]  # of the skeleton, and
    arguments: tuple[str, ...]  # of its call, for norms
    kernel: Kernel


def emit(
    product: Product,
    views: dict[Var, View],
    prelude: Block,
    before: Norm | None = None,
    behind: Norm | None = None,
) -> Streamed:
    """The emitted parts of a streamed product, with the norms of its rows and of its result that it does."""
    kernel = Kernel(views, HANDLERS)
    kernel.text.taken |= {"x_rows", "first", "count", "total", "column", "row", "live", *"acgmntv"}
    kernel.text.taken |= {"sums", "scales", "x_element", "x_column"}
    # The tensors that a unit touches are known before its function is written
    x_view = kernel.view_of(product.x.args[0] if before is None else before.of.source)
    w_view = kernel.view_of(product.weights[0].args[0])
    outer = kernel.text
    for s in prelude:
        kernel.stmt(s)
    limits = product.x.arg("valid_shape")
    x_type = product.x.result.type
    assert isinstance(x_type, TileType)
    rows = kernel.write(limits[0]) if isinstance(limits, tuple) else str(x_type.shape[0])
    x = f"{kernel.pointer(x_view.base)} + {start_of(x_view, kernel.write)}"
    w = f"{kernel.pointer(w_view.base)} + {start_of(w_view, kernel.write)}"
    names = dict(kernel.names)
    prepared = tuple(x for x in names.values() if x.isidentifier())  # not what is constant

    def inner() -> Text:
        kernel.text = Text(taken=outer.taken)
        kernel.names = {**names, product.block: "n"}
        return kernel.text

    def at_column(text: Text) -> None:
        """What the region knows at ``column`` of the result, which is column ``c`` of its block ``n``."""
        text.line(f"n = column // {product.width}")
        text.line(f"c = column - n * {product.width}")
        for s in product.before:
            if not (isinstance(s, Let) and s.op.name == "create_tile"):
                kernel.stmt(s)

    # --- the weight row of a column
    text = inner()
    at_column(text)
    text.line("row = Int32(0)")
    text.line("live = Int32(1)")
    for i, weight in enumerate(product.weights):
        at = weight.arg("offset")
        with text.nested(f"if cutlass.const_expr(a == {i}):"):
            text.line(f"row = Int32({kernel.write(at[0])}) + c")  # type: ignore[index, arg-type]
            limit = weight.arg("valid_shape")
            if isinstance(limit, tuple) and not isinstance(limit[0], Const):
                with text.nested(f"if c >= Int32({kernel.write(limit[0])}):"):
                    text.line("live = Int32(0)")
    text.line("return row, live")
    weight_row = text.lines

    # --- the epilogue, at the coordinates of the accumulators' fragments
    text = inner()
    with (
        text.nested("for v in cutlass.range_constexpr(4):"),
        text.nested("if 2 * t + v % 2 < count:"),
    ):
        text.line("row = 16 * m + g + 8 * (v // 2)")
        text.line("column = first + 2 * t + v % 2")
        at_column(text)
        for i, result in enumerate(product.results):
            kernel.tiles[result] = fragment(i, result, kernel, rows)
        for s in product.epilogue:
            assert isinstance(s, Let)
            if s.op.name == "store":
                store(kernel, s, behind)
            else:
                HANDLERS[s.op.name](kernel, s)
    functions = [
        ("weight_row", ("env", "a", "column"), weight_row),
        ("finish", ("env", "first", "count", "x_rows", "m", "g", "t", "total", "sums"), text.lines),
    ]
    fields: list[str] = []
    arguments: list[str] = []
    if behind is not None:
        arguments.append(f"sums_to={kernel.pointer(behind.sums)}")
    if before is not None:
        functions += norm_functions(kernel, before.of, inner)
        fields += [f"parts={before.parts}", f"scales={len(before.of.scales)}"]
        arguments.append(f"sums_from={kernel.pointer(before.sums)}")
        if before.of.columns is not None:
            base = kernel.view_of(before.of.columns.args[0])
            arguments.append(f"x_columns={kernel.pointer(base.base)} + {start_of(base, kernel.write)}")
    kernel.text, kernel.names = outer, names
    env = (*kernel.pointers.values(), *kernel.extents.values(), *kernel.captured.values(), *prepared)
    env = tuple(dict.fromkeys(env))
    return Streamed(tuple(functions), env, x, w, rows, tuple(fields), tuple(arguments), kernel)


def norm_functions(
    kernel: Kernel, norm: RowStatistic, inner: Callable[[], Text]
) -> list[tuple[str, tuple[str, ...], list[str]]]:
    """``scale``: from the sum of a row to its scales; ``operand``: from an element of the row, the one of its
    column and the row's scales to the element that the product takes.
    """
    text = inner()
    shown(kernel, norm.total.result, "total")
    values = [lazily(kernel, norm.scale, v) for v in norm.scales]
    text.line(f"return ({', '.join(values)},)")
    scale = text.lines
    text = inner()
    shown(kernel, norm.row.result, "x_element")
    if norm.columns is not None:
        shown(kernel, norm.columns.result, "x_column")
    for i, v in enumerate(norm.scales):
        shown(kernel, v, f"scales[{i}]")
    text.line(f"return {lazily(kernel, norm.apply, norm.result)}")
    arguments = ("env", "x_element", "x_column", "scales")
    return [("scale", ("env", "total"), scale), ("operand", arguments, text.lines)]


def shown(kernel: Kernel, var: Var, value: str) -> None:
    """A tile whose element is at hand."""
    kind = var.type
    assert isinstance(kind, TileType)
    kernel.tiles[var] = Tile(kind.shape, kind.dtype, tuple(map(str, kind.shape)), lambda t, c: value)


def lazily(kernel: Kernel, body: tuple[Let, ...], result: Var) -> str:
    """One element of what elementwise statements make."""
    for s in body:
        HANDLERS[s.op.name](kernel, s)
    return kernel.tile(result).value(kernel.text, ("0", "0"))


def fragment(i: int, var: Var, kernel: Kernel, rows: str) -> Tile:
    """Accumulator ``i`` of a unit: its elements are asked for only where the thread holds them."""
    assert isinstance(var.type, TileType)
    valid = kernel.static_valid(var.type, (rows, str(var.type.shape[1])))

    def at(text: Text, c: Coordinates) -> str:
        return f"total[v, {i}]"

    return Tile(var.type.shape, var.type.dtype, valid, at)


def store(kernel: Kernel, s: Let, behind: Norm | None) -> None:
    """The element of a fragment that this thread holds, stored; its share of the norm's sum is added."""
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
            f"{element_at(box, kernel.write, start_of(box, kernel.write), place)})[0] = {value}"
        )
        if behind is not None and s.arg("target") is behind.of.source:
            shown(kernel, behind.of.row.result, text.let("stored", value))
            term = lazily(kernel, behind.of.term, behind.of.total.args[0])  # type: ignore[arg-type]
            text.line(f"sums[2 * m + v // 2] = sums[2 * m + v // 2] + {term}")
