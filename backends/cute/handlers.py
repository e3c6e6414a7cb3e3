"""What each op does to the tiles of a kernel.  One function per family; the table is HANDLERS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pypto_models.ir.expr import Const, Expr, Var, index
from pypto_models.ir.nodes import Let
from pypto_models.ir.types import FP32, INT32, DType, TileType
from pypto_models.ops.elementwise import pad_number
from pypto_models.ops.value import torch_dtype

from ..gpu.scan import VIEWS, indices
from ..gpu.tensors import View, aligned_pitch, view_dtype, viewed
from . import rules
from .addresses import element_at, start_of
from .kernel import Kernel
from .layouts import Columns, Dealt, Fragment, Layout, Rows
from .places import runs, strides_of
from .rules import unsupported
from .runs import leads, store_runs
from .scalars import DSL_TYPES, dsl_type, literal
from .text import Text
from .tiles import Coordinates, Tile, as_type, inside

# ---------------------------------------------------------------------------------------------- handlers
Handler = Callable[[Kernel, Let], None]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    def register(fn: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = fn
        return fn

    return register


def result_type(s: Let) -> TileType:
    t = s.result.type
    assert isinstance(t, TileType)
    if dsl_type(t.dtype) is None:
        raise unsupported(s, f"no kernel holds elements of {t.dtype}")
    return t


@handles(*VIEWS)
def _view(k: Kernel, s: Let) -> None:
    k.view_of(s.arg("t"))
    k.views[s.result] = viewed(s, k.views)


@handles("load")
def _load(k: Kernel, s: Let) -> None:
    out = result_type(s)
    shape = tuple(int(x.value) for x in indices(s, "shape"))  # type: ignore[attr-defined]
    at = indices(s, "offset")
    view = k.view_of(s.arg("t"))
    limits = indices(s, "valid_shape") or tuple(index(d) for d in shape)
    live = []
    for limit, start, extent in zip(limits, at, view.shape, strict=True):
        text = k.write(limit)
        if s.arg("clamp"):
            text = k.text.let(
                "live", f"min(Int32({text}), max(Int32({k.dim(extent)}) - Int32({k.write(start)}), Int32(0)))"
            )
        elif not isinstance(limit, Const):
            text = k.text.let("live", f"Int32({text})")
        live.append(text)
    dropped: tuple[int, ...] = tuple(s.arg("drop_dims") or ())  # type: ignore[arg-type]
    box = view.moved(shape, at, dropped)
    first = k.text.let("first", start_of(box, k.write))
    pointer = k.pointer(view.base)
    kept = [i for i in range(len(shape)) if i not in dropped]
    valid = tuple(live[i] for i in kept)

    def value(text: Text, c: Coordinates) -> str:
        return f"block.element({pointer}, {element_at(box, k.write, first, c)})[0]"

    layout = k.plan.of(s.result)
    tile = Tile(out.shape, out.dtype, valid, value, reads=frozenset({view.base}), layout=layout)
    pad = s.arg("pad_value")
    if (pitch := aligned_pitch(box, k.divisors)) is not None:
        tile = replace(tile, plain=(f"({pointer} + {first})", str(pitch), valid[0]))
    if pad is not None:
        tile = padded(k, tile, pad)
    k.tiles[s.result] = tile


def pad_text(dtype: DType, pad: object) -> str:
    number = pad_number(pad, torch_dtype(dtype))  # type: ignore[arg-type]
    return literal(float(number) if dtype.is_float else int(number), dtype)


def padded(k: Kernel, tile: Tile, pad: object) -> Tile:
    """The tile with its invalid elements set."""
    fill = pad_text(tile.dtype, pad)

    def value(text: Text, c: Coordinates) -> str:
        test = inside(tile, c)
        if test is None:
            return tile.value(text, c)
        out = text.let("v", fill)
        with text.nested(f"if {test}:"):
            text.line(f"{out} = {tile.value(text, c)}")
        return out

    full = tuple(map(str, tile.shape))
    zero = fill in (literal(0.0, tile.dtype), literal(0, tile.dtype))
    plain = tile.plain if zero and tile.valid[1:] == full[1:] else None
    return Tile(tile.shape, tile.dtype, full, value, reads=tile.reads, layout=tile.layout, plain=plain)


@handles("fillpad")
def _fillpad(k: Kernel, s: Let) -> None:
    result_type(s)
    k.tiles[s.result] = padded(k, k.tile(s.args[0]), s.arg("pad_value"))


@handles("full")
def _full(k: Kernel, s: Let) -> None:
    out = result_type(s)
    value = s.arg("value")
    assert isinstance(value, Expr)
    kind = DSL_TYPES[out.dtype.name]
    text = literal(value.value, out.dtype) if isinstance(value, Const) else f"{kind}({k.write(value)})"
    if isinstance(value, Const) and out.dtype.is_float:
        text = literal(float(value.value), out.dtype)
    valid = tuple(map(str, out.shape))
    k.tiles[s.result] = Tile(out.shape, out.dtype, valid, lambda t, c: text, uniform=True)


@handles("create_tile")
def _create_tile(k: Kernel, s: Let) -> None:
    out = result_type(s)
    init = s.arg("init_value")
    text = literal(0.0 if out.dtype.is_float else 0, out.dtype) if init is None else k.write(init)  # type: ignore[arg-type]
    k.tiles[s.result] = Tile(
        out.shape, out.dtype, tuple(map(str, out.shape)), lambda t, c: text, uniform=True
    )


@handles("set_validshape")
def _set_validshape(k: Kernel, s: Let) -> None:
    tile = k.tile(s.args[0])
    valid = tuple(k.write(index(s.arg(n))) for n in ("rows", "cols"))  # type: ignore[arg-type]
    k.tiles[s.result] = replace(tile, valid=valid, plain=None)


@handles("move")
def _move(k: Kernel, s: Let) -> None:
    k.tiles[s.result] = k.tile(s.args[0])


def pointwise(
    layout: Layout, out: TileType, value: Callable[[Text, Coordinates], str], first: Tile, *others: Tile
) -> Tile:
    """A tile whose element needs the operands' elements at the same place."""
    reads = frozenset().union(first.reads, *(o.reads for o in others))
    uniform = layout is None and first.uniform and all(o.uniform for o in others)
    return Tile(out.shape, out.dtype, first.valid, value, reads=reads, layout=layout, uniform=uniform)


def operands(k: Kernel, s: Let) -> tuple[Layout, list[Tile]]:
    """The layout of an elementwise result and its operands, those that live elsewhere in shared memory."""
    layout = k.plan.of(s.result)
    tiles = []
    for n, x in enumerate(s.args[:2]):
        if isinstance(x, Var) and x in k.tiles:
            tile = k.tiles[x]
            column = n == 1 and s.op.name.startswith("row_expand")
            row = n == 1 and s.op.name.startswith("col_expand") and result_type(s).shape[0] > 1
            if row and isinstance(tile.layout, Columns) and tile.layout.of == layout:
                tiles.append(k.held(tile, x.name))  # worked out once, not in every row
                continue
            fits = tile.layout is None or (
                isinstance(tile.layout, Rows) and tile.layout.beside(layout)
                if column and isinstance(layout, Fragment | Dealt)
                else tile.layout == layout and not row
            )
            tiles.append(tile if fits else k.stored(tile, x.name))
    return layout, tiles


def _unary(k: Kernel, s: Let) -> None:
    out = result_type(s)
    layout, (x,) = operands(k, s)
    template = rules.unary(s, out.dtype)
    k.tiles[s.result] = pointwise(
        layout, out, lambda t, c: rules.arithmetic(template, out.dtype, (x.value(t, c), x.dtype)), x
    )


def _binary(k: Kernel, s: Let) -> None:
    out = result_type(s)
    layout, (a, *others) = operands(k, s)
    template, rhs = rules.binary(s.op.name, out.dtype), s.args[1]
    wide = FP32 if out.dtype.is_float else out.dtype
    if others:
        (b,) = others

        def both(t: Text, c: Coordinates) -> str:
            pair = (a.value(t, c), a.dtype), (b.value(t, c), b.dtype)
            return rules.arithmetic(template, out.dtype, *pair)

        k.tiles[s.result] = pointwise(layout, out, both, a, b)
        return
    number = index(rhs)  # type: ignore[arg-type]
    if isinstance(number, Const):
        text = literal(float(number.value) if wide.is_float else int(number.value), wide)
    else:
        text = f"{rules.wide(out.dtype)}({k.write(number)})"

    def with_number(t: Text, c: Coordinates) -> str:
        return rules.arithmetic(template, out.dtype, (a.value(t, c), a.dtype), (text, wide))

    k.tiles[s.result] = pointwise(layout, out, with_number, a)


for _name in rules.UNARY:
    HANDLERS[_name] = _unary
for _name in rules.BINARY:
    HANDLERS[_name] = _binary


def _expand(k: Kernel, s: Let) -> None:
    """``row_expand_*``: the operand is a column, repeated along the row; ``col_expand_*``: a row."""
    out = result_type(s)
    layout, (a, b) = operands(k, s)
    along_rows = s.op.name.startswith("row_")
    template = rules.binary(s.op.name.split("_")[-1], out.dtype)

    def value(t: Text, c: Coordinates) -> str:
        at = (c[0], "0") if along_rows else ("0", c[1])
        return rules.arithmetic(template, out.dtype, (a.value(t, c), a.dtype), (b.value(t, at), b.dtype))

    k.tiles[s.result] = pointwise(layout, out, value, a, b)


for _name in ("add", "sub", "mul", "div"):
    HANDLERS[f"row_expand_{_name}"] = HANDLERS[f"col_expand_{_name}"] = _expand


@handles("row_expand", "col_expand")
def _broadcast(k: Kernel, s: Let) -> None:
    out = result_type(s)
    layout, (a, b) = operands(k, s)
    along_rows = s.op.name == "row_expand"

    def value(t: Text, c: Coordinates) -> str:
        return as_type(b.value(t, (c[0], "0") if along_rows else ("0", c[1])), b.dtype, out.dtype)

    k.tiles[s.result] = pointwise(layout, out, value, a, b)


@handles("arange")
def _arange(k: Kernel, s: Let) -> None:
    out = result_type(s)
    start = k.write(index(s.arg("start")))  # type: ignore[arg-type]
    sign = "-" if s.arg("descending") else "+"
    kind = DSL_TYPES[out.dtype.name]
    k.tiles[s.result] = Tile(
        out.shape,
        out.dtype,
        tuple(map(str, out.shape)),
        lambda t, c: f"({kind}({start}) {sign} {kind}({c[-1]}))",
    )


@handles("cmp")
def _cmp(k: Kernel, s: Let) -> None:
    out, rhs = result_type(s), s.args[1]
    layout, (a, *others) = operands(k, s)
    test = rules.COMPARE[int(s.arg("cmp_type"))]  # type: ignore[arg-type]
    zero, one = (literal(float(x) if out.dtype.is_float else x, out.dtype) for x in (0, 1))

    def value(t: Text, c: Coordinates) -> str:
        left = a.value(t, c)
        right = others[0].value(t, c) if others else k.write(index(rhs))  # type: ignore[arg-type]
        name = t.let("v", zero)
        with t.nested(f"if {rules.wide(a.dtype)}({left}) {test} {rules.wide(a.dtype)}({right}):"):
            t.line(f"{name} = {one}")
        return name

    k.tiles[s.result] = pointwise(layout, out, value, a, *others)


@handles("extract")
def _extract(k: Kernel, s: Let) -> None:
    out, x = result_type(s), k.free(k.tile(s.args[0]))
    shape, at = indices(s, "shape"), indices(s, "offset")
    dropped = tuple(s.arg("drop_dims") or ())  # type: ignore[arg-type]
    starts = [k.write(i) for i in at]
    limits = [k.write(v) for v in (indices(s, "valid_shape") or shape)]
    live = []
    for limit, start, v, whole in zip(limits, starts, x.valid, x.shape, strict=True):
        cut = v != str(whole) or s.arg("clamp")
        live.append(f"min(Int32({limit}), max(Int32({v}) - ({start}), Int32(0)))" if cut else limit)
    kept = [i for i in range(len(shape)) if i not in dropped]

    def value(t: Text, c: Coordinates) -> str:
        place = list(starts)
        for i, coordinate in zip(kept, c, strict=True):
            start = starts[i]
            place[i] = (
                coordinate if start == "0" else start if coordinate == "0" else f"({coordinate} + {start})"
            )
        return x.value(t, tuple(place))

    tile = Tile(out.shape, out.dtype, tuple(live[i] for i in kept), value, reads=x.reads)
    pad = s.arg("pad_value")
    k.tiles[s.result] = tile if pad is None else padded(k, tile, pad)


@handles("insert")
def _insert(k: Kernel, s: Let) -> None:
    """A tile written into another, in place of the part that it covers."""
    out, target, source = result_type(s), k.free(k.tile(s.arg("target"))), k.free(k.tile(s.arg("source")))
    starts = [k.write(i) for i in indices(s, "offset")]

    def value(t: Text, c: Coordinates) -> str:
        place = tuple(x if o == "0" else f"({x} - ({o}))" for x, o in zip(c, starts, strict=True))
        tests = [f"({p} >= 0) & ({p} < {v})" for p, v in zip(place, source.valid, strict=True)]
        name = t.let("v", as_type(target.value(t, c), target.dtype, out.dtype))
        with t.nested(f"if {' & '.join(tests)}:"):
            t.line(f"{name} = {as_type(source.value(t, place), source.dtype, out.dtype)}")
        return name

    valid = k.static_valid(out, target.valid)
    k.tiles[s.result] = Tile(out.shape, out.dtype, valid, value, reads=target.reads | source.reads)


@handles("write_tile")
def _write_tile(k: Kernel, s: Let) -> None:
    """A tile with one element replaced."""
    out, x = result_type(s), k.free(k.tile(s.args[0]))
    at = [k.text.let("at", f"Int32({k.write(i)})") for i in indices(s, s.op.param_names[1])]
    new = k.text.let(s.result.name, f"{DSL_TYPES[out.dtype.name]}({k.write(index(s.arg('value')))})")  # type: ignore[arg-type]

    def value(t: Text, c: Coordinates) -> str:
        name = t.let("v", x.value(t, c))
        with t.nested(f"if {' & '.join(f'({i} == {j})' for i, j in zip(c, at, strict=True))}:"):
            t.line(f"{name} = {new}")
        return name

    k.tiles[s.result] = Tile(out.shape, out.dtype, x.valid, value, reads=x.reads)


@handles("reshape")
def _reshape(k: Kernel, s: Let) -> None:
    out, x = result_type(s), k.free(k.tile(s.args[0]))

    def value(t: Text, c: Coordinates) -> str:
        squeezed_new = [v for v, d in zip(c, out.shape, strict=True) if d != 1]
        if [d for d in x.shape if d != 1] == [d for d in out.shape if d != 1]:
            rest = iter(squeezed_new)
            return x.value(t, tuple("0" if d == 1 else next(rest) for d in x.shape))
        strides = strides_of(out.shape, out.shape[-1])
        flat = (
            " + ".join(v if st == 1 else f"{v} * {st}" for v, st in zip(c, strides, strict=True) if v != "0")
            or "0"
        )
        name = t.once((id(x), "flat", flat), "flat", flat)
        at, step = [], 1
        for n, d in enumerate(reversed(x.shape)):
            q = name if step == 1 else f"{name} // {step}"
            at.append(
                "0"
                if d == 1
                else q
                if n == len(x.shape) - 1
                else f"({q} % {d})"
                if step == 1
                else f"(({q}) % {d})"
            )
            step *= d
        at = [a if a == "0" else t.once((id(x), "at", a), "c", a) for a in at]
        return x.value(t, tuple(reversed(at)))

    valid = k.static_valid(out, tuple(map(str, out.shape)))
    k.tiles[s.result] = Tile(out.shape, out.dtype, valid, value, reads=x.reads)


@handles("transpose")
def _transpose(k: Kernel, s: Let) -> None:
    out, x = result_type(s), k.free(k.tile(s.args[0]))
    i, j = (int(s.arg(n).value) if isinstance(s.arg(n), Const) else int(s.arg(n)) for n in ("axis1", "axis2"))  # type: ignore[union-attr, arg-type]

    def swap(c: tuple[str, ...]) -> tuple[str, ...]:
        new = list(c)
        new[i], new[j] = new[j], new[i]
        return tuple(new)

    k.tiles[s.result] = Tile(
        out.shape, out.dtype, swap(x.valid), lambda t, c: x.value(t, swap(c)), reads=x.reads
    )


# ---------------------------------------------------------------------------------------------- effects
@handles("store")
def _store(k: Kernel, s: Let) -> None:
    t, tile, view = k.text, k.tile(s.arg("source")), k.view_of(s.arg("target"))
    atomic = s.arg("atomic") == "add"
    if atomic and view_dtype(view) not in (FP32, INT32):
        raise unsupported(s, f"atomic addition to {view_dtype(view)}")
    k.before_write(view.base)
    tile = k.tile(s.arg("source"))
    at = indices(s, "offset")
    lead = len(view.shape) - len(tile.shape)
    if lead:
        raise unsupported(s, "a store of a tile of fewer axes than its tensor")
    box = view.moved(view.shape, at)
    start = t.let("first", start_of(box, k.write))
    pointer = k.pointer(view.base)
    layout = tile.layout
    pitch = aligned_pitch(box, k.divisors)
    if (
        isinstance(layout, Dealt | Columns)
        and pitch is not None
        and not atomic
        and tile.dtype == view_dtype(view)
        and runs(tile, layout)
    ):
        store_runs(k, k.held(tile, "out"), layout, f"({pointer} + {start})", pitch)
    elif layout is None:
        with k.elements(tile.shape) as c:
            _put_valid(k, box, pointer, start, c, tile, atomic)
    else:
        with k.fragments(layout) as (i, c), k.when(leads(layout, i, c)):
            _put_valid(k, box, pointer, start, c, tile, atomic)
    k.after_write(s, view.base)


def _put_valid(
    k: Kernel, box: View, pointer: str, start: str, c: Coordinates, tile: Tile, atomic: bool
) -> None:
    test = inside(tile, c)
    if test is None:
        _put(k, box, pointer, start, c, tile, atomic)
        return
    with k.text.nested(f"if {test}:"):
        _put(k, box, pointer, start, c, tile, atomic)


def _put(k: Kernel, box: View, pointer: str, start: str, c: Coordinates, tile: Tile, atomic: bool) -> None:
    value = as_type(tile.value(k.text, c), tile.dtype, view_dtype(box))
    where = element_at(box, k.write, start, c)
    if atomic:
        k.text.line(f"cute.arch.atomic_add({pointer} + ({where}), {value}, sem='relaxed', scope='gpu')")
    else:
        k.text.line(f"block.element({pointer}, {where})[0] = {value}")


@handles("read_tensor")
def _read_tensor(k: Kernel, s: Let) -> None:
    view = k.view_of(s.args[0])
    at = indices(s, s.op.param_names[1])
    start = " + ".join(
        filter(
            None,
            [
                start_of(view, k.write) if view.offsets else "",
                element_at(view, k.write, "Int64(0)", tuple(k.write(i) for i in at)),
            ],
        )
    )
    kind = dsl_type(s.result.type.dtype)  # type: ignore[union-attr]
    k.names[s.result] = k.text.let(
        s.result.name, f"{kind}(block.element({k.pointer(view.base)}, {start})[0])"
    )


@handles("write_tensor")
def _write_tensor(k: Kernel, s: Let) -> None:
    view = k.view_of(s.args[0])
    k.before_write(view.base, alone=True)
    at = indices(s, s.op.param_names[1])
    start = " + ".join(
        filter(
            None,
            [
                start_of(view, k.write) if view.offsets else "",
                element_at(view, k.write, "Int64(0)", tuple(k.write(i) for i in at)),
            ],
        )
    )
    value = f"{DSL_TYPES[view_dtype(view).name]}({k.write(index(s.args[2]))})"  # type: ignore[arg-type]
    with k.text.nested("if tid == 0:"):
        k.text.line(f"block.element({k.pointer(view.base)}, {start})[0] = {value}")
    k.after_write(s, view.base)


@handles("read_tile")
def _read_tile(k: Kernel, s: Let) -> None:
    tile = k.free(k.tile(s.args[0]))
    at = tuple(f"({k.write(i)})" for i in indices(s, s.op.param_names[1]))
    kind = dsl_type(s.result.type.dtype)  # type: ignore[union-attr]
    k.names[s.result] = k.text.let(s.result.name, f"{kind}({tile.value(k.text, at)})")
