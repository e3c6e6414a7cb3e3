"""A streamed product as a kernel: the skeleton is device/stream.py, the region gives rows and epilogue."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from pypto_models.ir.expr import Const, Var, index
from pypto_models.ir.nodes import Block, Let
from pypto_models.ir.types import TileType

from ..gpu.matching import Product
from ..gpu.row_statistic import RowStatistic
from ..gpu.tensors import View, view_dtype
from .addresses import element_at, start_of
from .handlers import HANDLERS
from .kernel import Kernel
from .scalars import DSL_TYPES, literal
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
    name: str,
    product: Product,
    views: dict[Var, View],
    prelude: Block,
    before: Norm | None = None,
    behind: Norm | None = None,
) -> Streamed:
    """The emitted parts of the streamed product ``name``, with the norms of its rows and of its result."""
    kernel = Kernel(views, HANDLERS)
    kernel.text.taken |= {"total", "held", "column", "row", "live", "c", "n", "a"}
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

    # --- what the epilogue of an element reads, asked for ahead, and the epilogue
    ahead = gathered(product, kernel)
    text = inner()
    if ahead:
        at_column(text)
        found = [read_element(kernel, s) for s in ahead]
        text.line(f"return ({', '.join(found)},)")
    gather = used(text.lines)
    text = inner()
    at_column(text)
    for i, result in enumerate(product.results):
        kernel.tiles[result] = fragment(i, result, kernel, rows)
    for s in product.epilogue:
        assert isinstance(s, Let)
        if s.op.name == "store":
            store(kernel, s, behind)
        elif s in ahead:
            HANDLERS["load"](kernel, s)
            given(kernel, s.result, f"held[{ahead.index(s)}]")
        elif s.op.name == "load":  # of what is stored here: now, and not where it is asked for
            given(kernel, s.result, read_element(kernel, s))
        else:
            HANDLERS[s.op.name](kernel, s)
    functions = [
        ("weight_row", ("env", "a", "column"), weight_row),
        ("finish", ("env", "row", "column", "live", "total", "held", "sums"), used(text.lines)),
    ]
    fields: list[str] = []
    if ahead:
        functions.append(("gather", ("env", "row", "column", "live"), gather))
        kinds = (DSL_TYPES[kernel.tile(s.result).dtype.name] for s in ahead)
        fields += [f"gather={name}_gather", f"gathered=({', '.join(kinds)},)"]
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
    """Accumulator ``i`` of the element at hand."""
    assert isinstance(var.type, TileType)
    valid = kernel.static_valid(var.type, (rows, str(var.type.shape[1])))
    return Tile(var.type.shape, var.type.dtype, valid, lambda text, c: f"total[{i}]")


def gathered(product: Product, kernel: Kernel) -> list[Let]:
    """The loads of the epilogue that may come ahead of the product: of what it does not store itself."""
    lets = [s for s in product.epilogue if isinstance(s, Let)]
    stored = {kernel.view_of(s.arg("target")).base for s in lets if s.op.name == "store"}
    return [s for s in lets if s.op.name == "load" and kernel.view_of(s.arg("t")).base not in stored]


def read_element(kernel: Kernel, s: Let) -> str:
    """The element of a load that the element at hand needs, zero where there is none."""
    text = kernel.text
    HANDLERS["load"](kernel, s)
    tile = kernel.tile(s.result)
    place = own_place(tile)
    found = text.let("found", literal(0.0 if tile.dtype.is_float else 0, tile.dtype))
    with text.nested(f"if {' & '.join(x for x in ('live', inside(tile, place)) if x)}:"):
        text.line(f"{found} = {tile.at(text, place)}")
    return found


def used(lines: list[str]) -> list[str]:
    """The lines without names that no other line reads."""
    out = list(lines)
    for i in reversed(range(len(out))):
        name, is_let, _ = out[i].partition(" = ")
        name = name.strip()
        if is_let and name.isidentifier() and not any(re.search(rf"\b{name}\b", x) for x in out[i + 1 :]):
            del out[i]
    return out


def own_place(tile: Tile) -> Coordinates:
    """Where a tile is asked for element (row, c) of the result, along which it may be spread."""
    return tuple("0" if d == 1 else x for d, x in zip(tile.shape, ("row", "c"), strict=True))


def given(kernel: Kernel, var: Var, value: str) -> None:
    """A tile whose element is at hand, with the valid extents that it has."""
    kernel.tiles[var] = replace(kernel.tile(var), at=lambda t, c: value, reads=frozenset(), plain=None)


def store(kernel: Kernel, s: Let, behind: Norm | None) -> None:
    """The element of the thread, stored; its share of the norm's sum is added."""
    text, tile = kernel.text, kernel.tile(s.arg("source"))
    view = kernel.view_of(s.arg("target"))
    kernel.written.add(view.base)
    at = tuple(index(x) for x in s.arg("offset"))  # type: ignore[union-attr, arg-type]
    box = view.moved(view.shape, at)
    place = ("row", "c")
    test = " & ".join(x for x in ("live", inside(tile, place)) if x)
    # Threads that store nothing compute all the same: no branch is in the way of the next element
    value = as_type(tile.value(text, place), tile.dtype, view_dtype(view))
    pointer = kernel.pointer(view.base)
    where = element_at(box, kernel.write, start_of(box, kernel.write), place)
    with text.nested(f"if {test}:"):
        if s.arg("atomic") == "add":
            text.line(f"cute.arch.atomic_add({pointer} + ({where}), {value}, sem='relaxed', scope='gpu')")
        else:
            text.line(f"block.element({pointer}, {where})[0] = {value}")
        if behind is not None and s.arg("target") is behind.of.source:
            shown(kernel, behind.of.row.result, text.let("stored", value))
            term = lazily(kernel, behind.of.term, behind.of.total.args[0])  # type: ignore[arg-type]
            text.line(f"sums[0] = sums[0] + {term}")
