"""What each op does to the tiles of a kernel.  One function per family; the table is HANDLERS."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from pypto_models.ir.expr import Const, Expr, Var, binary, dim_expr, index
from pypto_models.ir.nodes import Let
from pypto_models.ir.types import BOOL, FP32, INT32, DType, TileType
from pypto_models.ops.elementwise import pad_number
from pypto_models.ops.value import torch_dtype

from ..gpu.scan import VIEWS, indices
from ..gpu.tensors import View, view_dtype, viewed
from . import rules
from .addresses import element_at, start_of, step_along
from .kernel import Handler, Kernel, Tile
from .pads import swapped
from .rules import as_type, unsupported
from .types import TYPES, number, scalar_type, type_name, typed

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
    if type_name(t.dtype) is None:
        raise unsupported(s, f"no kernel holds elements of {t.dtype}")
    return t


# -------------------------------------------------------------------------------------------------- tensors
@handles(*VIEWS)
def _view(k: Kernel, s: Let) -> None:
    k.view_of(s.arg("t"))
    k.views[s.result] = viewed(s, k.views)


def places(k: Kernel, box: View, pads: tuple[int, ...]) -> str:
    """The pointers of the elements of a box that begins where its view does."""
    base = k.pointer(box.base)
    if box.offsets:
        base = f"{base} + ({start_of(box, k.scalars)})"
    steps = [
        step_along(k.along(pads, i), pads[i], k.scalars, stride)
        for i, stride in enumerate(box.strides)
        if pads[i] > 1
    ]
    ones = [f"tl.zeros({list(pads)}, tl.int32)"] if not steps else []
    return " + ".join([base, *(f"({x})" if " " in x else x for x in steps), *ones])


@handles("load")
def _load(k: Kernel, s: Let) -> None:
    out = result_type(s)
    pads = k.pads.of(s.result)
    shape = tuple(int(x.value) for x in indices(s, "shape"))  # type: ignore[attr-defined]
    at = indices(s, "offset")
    view = k.view_of(s.arg("t"))
    limits = indices(s, "valid_shape") or tuple(index(d) for d in shape)
    live = []
    for limit, start, extent in zip(limits, at, view.shape, strict=True):
        live.append(valid_text(k, least(limit, dim_expr(extent), start) if s.arg("clamp") else limit))
    dropped: tuple[int, ...] = tuple(s.arg("drop_dims") or ())  # type: ignore[arg-type]
    box = view.moved(shape, at, dropped)
    valid = tuple(live[i] for i in range(len(shape)) if i not in dropped)
    mask, pad = k.inside(pads, valid), s.arg("pad_value")
    tail = ""
    if mask is not None:
        tail = f", mask={mask}, other={'0' if pad is None else pad_text(out.dtype, pad)}"
    value = f"tl.load({places(k, box, pads)}{tail})"
    if pad is None:
        k.keep(s.result, value, valid, clean=True)
        return
    full = tuple(map(str, out.shape))
    k.keep(s.result, value, full)


def least(limit: Expr, extent: Expr, start: Expr) -> Expr:
    """The smaller of ``limit`` and what is left of ``extent`` from ``start`` on."""
    return binary("min", limit, binary("max", binary("-", extent, start), index(0)))


def valid_text(k: Kernel, x: Expr) -> str:
    """A valid extent."""
    return str(x.value) if isinstance(x, Const) else k.text.let("live", f"tl.cast({k.write(x)}, tl.int32)")


def pad_text(dtype: DType, pad: object) -> str:
    value = pad_number(pad, torch_dtype(dtype))  # type: ignore[arg-type]
    return number(float(value) if dtype.is_float else int(value), dtype)


@handles("store")
def _store(k: Kernel, s: Let) -> None:
    tile, view = k.tile(s.arg("source")), k.view_of(s.arg("target"))
    to = view_dtype(view)
    atomic = s.arg("atomic") == "add"
    if atomic and to not in (FP32, INT32):
        raise unsupported(s, f"atomic addition to {to}")
    if len(view.shape) != len(tile.shape):
        raise unsupported(s, "a store of a tile of fewer axes than its tensor")
    k.before_write(view.base)
    box = view.moved(view.shape, indices(s, "offset"))
    mask = k.inside(tile.pads, tile.valid)
    value = as_type(tile.name, tile.dtype, to)
    if to.is_float and tile.dtype.is_float and tile.dtype.bits < 32 and to.bits < 32 and tile.dtype != to:
        value = as_type(k.widened(tile), FP32, to)
    call = f"{places(k, box, tile.pads)}, {value}"
    if mask is not None:
        call += f", mask={mask}"
    if atomic:
        k.text.line(f'tl.atomic_add({call}, sem="relaxed")')
    else:
        k.text.line(f"tl.store({call})")
    k.order(view.base)


@handles("read_tensor")
def _read_tensor(k: Kernel, s: Let) -> None:
    view = k.view_of(s.args[0])
    at = element_at(view, k.scalars, indices(s, s.op.param_names[1]))
    kind = s.result.type.dtype  # type: ignore[union-attr]
    k.names[s.result] = k.text.let(
        s.result.name, f"tl.load({k.pointer(view.base)} + ({at})).to({scalar_type(kind)})"
    )


@handles("write_tensor")
def _write_tensor(k: Kernel, s: Let) -> None:
    view = k.view_of(s.args[0])
    k.before_write(view.base, alone=True)
    at = element_at(view, k.scalars, indices(s, s.op.param_names[1]))
    value = k.value(index(s.args[2]))  # type: ignore[arg-type]
    to = TYPES[view_dtype(view).name]
    k.text.line(f"tl.store({k.pointer(view.base)} + ({at}), tl.cast({value}, {to}))")
    k.order(view.base)


# ------------------------------------------------------------------------------------------ made and masked
@handles("fillpad")
def _fillpad(k: Kernel, s: Let) -> None:
    out, x = result_type(s), k.tile(s.args[0])
    mask = k.inside(x.pads, x.valid)
    text = x.name if mask is None else f"tl.where({mask}, {x.name}, {pad_text(x.dtype, s.arg('pad_value'))})"
    if mask is not None and x.dtype.bits < 32:
        text += f".to({TYPES[x.dtype.name]})"
    k.keep(s.result, text, tuple(map(str, out.shape)))


@handles("full")
def _full(k: Kernel, s: Let) -> None:
    value = s.arg("value")
    assert isinstance(value, Expr)
    _filled(k, s, value)


@handles("create_tile")
def _create_tile(k: Kernel, s: Let) -> None:
    init = s.arg("init_value")
    _filled(k, s, index(0) if init is None else init)  # type: ignore[arg-type]


def _filled(k: Kernel, s: Let, value: Expr) -> None:
    out = result_type(s)
    text = number(value.value, out.dtype) if isinstance(value, Const) else k.write(value)
    shape = list(k.pads.of(s.result))
    k.keep(s.result, f"tl.full({shape}, {text}, {TYPES[out.dtype.name]})", tuple(map(str, out.shape)))


@handles("arange")
def _arange(k: Kernel, s: Let) -> None:
    out = result_type(s)
    pads = k.pads.of(s.result)
    sign = "-" if s.arg("descending") else "+"
    along = k.along(pads, len(pads) - 1)
    start, to = index(s.arg("start")), TYPES[out.dtype.name]  # type: ignore[arg-type]
    first = typed(start.value, out.dtype) if isinstance(start, Const) else f"tl.cast({k.value(start)}, {to})"
    text = f"{first} {sign} {along}" + ("" if along == "0" else f".to({to})")
    if len(pads) > 1 or along == "0":
        text = f"tl.broadcast_to({text}, {list(pads)})"
    k.keep(s.result, text, tuple(map(str, out.shape)))


@handles("set_validshape")
def _set_validshape(k: Kernel, s: Let) -> None:
    valid = tuple(k.write(index(s.arg(n))) for n in ("rows", "cols"))  # type: ignore[arg-type]
    k.tiles[s.result] = replace(k.tile(s.args[0]), valid=valid, clean=False)


@handles("move")
def _move(k: Kernel, s: Let) -> None:
    k.tiles[s.result] = k.tile(s.args[0])


# ------------------------------------------------------------------------------------------- elementwise
def rounded(text: str, out: DType) -> str:
    """An fp32 result in a narrower type."""
    return f"({text}).to({TYPES[out.name]})" if out.is_float and out != FP32 else text


def _unary(k: Kernel, s: Let) -> None:
    out, x = result_type(s), k.tile(s.args[0])
    k.keep(s.result, rounded(rules.UNARY[s.op.name].format(a=k.widened(x)), out.dtype), x.valid)


def second(k: Kernel, s: Let, like: Tile) -> str:
    """The second operand of an op of two: a tile, or a number."""
    x = s.args[1]
    if isinstance(x, Var) and x in k.tiles:
        return k.widened(k.tile(x))
    value = index(x)  # type: ignore[arg-type]
    if isinstance(value, Const):
        return number(float(value.value) if like.dtype.is_float else int(value.value), like.dtype)
    text = k.value(value)
    if like.dtype.is_float:
        return text if value.dtype == FP32 else f"tl.cast({text}, tl.float32)"
    return f"tl.cast({text}, {TYPES[like.dtype.name]})"


def _binary(k: Kernel, s: Let) -> None:
    out, a = result_type(s), k.tile(s.args[0])
    text = rules.binary(s.op.name, out.dtype).format(a=k.widened(a), b=second(k, s, a))
    if not out.dtype.is_float and out.dtype.bits < 32:
        text = f"({text}).to({TYPES[out.dtype.name]})"
    k.keep(s.result, rounded(text, out.dtype), a.valid)


for _name in rules.UNARY:
    HANDLERS[_name] = _unary
for _name in rules.BINARY:
    HANDLERS[_name] = _binary


def beside(k: Kernel, b: Tile, along_rows: bool) -> str:
    """A column (or a row) in the type of arithmetic, one element wide."""
    axis = 1 if along_rows else 0
    if b.pads[axis] == 1:
        return k.widened(b)
    narrow = (b.pads[0], 1) if along_rows else (1, b.pads[1])  # only its first column or row counts
    at = (k.along(b.pads, 0), "0") if along_rows else ("0", k.along(b.pads, 1))
    return k.widened(replace(b, name=k.text.let("beside", taken(k, b, at, narrow))))


def _expand(k: Kernel, s: Let) -> None:
    """``row_expand_*``: the operand is a column, repeated along the row; ``col_expand_*``: a row."""
    out, a, b = result_type(s), k.tile(s.args[0]), k.tile(s.args[1])
    template = rules.binary(s.op.name.split("_")[-1], out.dtype)
    text = template.format(a=k.widened(a), b=beside(k, b, s.op.name.startswith("row_")))
    k.keep(s.result, rounded(text, out.dtype), a.valid)


for _name in ("add", "sub", "mul", "div"):
    HANDLERS[f"row_expand_{_name}"] = HANDLERS[f"col_expand_{_name}"] = _expand


@handles("row_expand", "col_expand")
def _broadcast(k: Kernel, s: Let) -> None:
    out, a, b = result_type(s), k.tile(s.args[0]), k.tile(s.args[1])
    text = beside(k, b, s.op.name == "row_expand")
    if b.dtype.is_float and out.dtype != FP32 or b.dtype != out.dtype and not b.dtype.is_float:
        text = f"{text}.to({TYPES[out.dtype.name]})"
    k.keep(s.result, f"tl.broadcast_to({text}, {list(a.pads)})", a.valid)


@handles("cmp")
def _cmp(k: Kernel, s: Let) -> None:
    out, a = result_type(s), k.tile(s.args[0])
    test = rules.COMPARE[int(s.arg("cmp_type"))]  # type: ignore[arg-type]
    k.keep(s.result, f"({k.widened(a)} {test} {second(k, s, a)}).to({TYPES[out.dtype.name]})", a.valid)


# ------------------------------------------------------------------------------------- reductions, products
def _reduce(k: Kernel, s: Let) -> None:
    x, out = k.tile(s.args[0]), result_type(s)
    axis, how = rules.REDUCE[s.op.name]
    if len(x.shape) != 2:
        raise unsupported(s, "a reduction of a tile that has not two axes")
    value = k.widened(x)
    along = f"({k.along(x.pads, axis)} < {x.valid[axis]})" if x.valid[axis] != str(x.pads[axis]) else None
    if along is not None:
        value = f"tl.where({along}, {value}, {start_with(how, x.dtype)})"
    pads = k.pads.of(s.result)
    if how == "argmax":
        text = f"tl.argmax({value}, {axis}, keep_dims=True).to(tl.int32)"
    elif how == "sum":
        text = f"tl.sum({value}, {axis}, keep_dims=True)"
    else:
        text = f"tl.reduce({value}, {axis}, tile.{how}imum, keep_dims=True)"
    if out.dtype.is_float:
        text = rounded(text, out.dtype)
    elif how != "argmax":
        text = f"{text}.to({TYPES[out.dtype.name]})"
    if pads[axis] > 1:
        text = f"tl.broadcast_to({text}, {list(pads)})"
    valid = ("1", x.valid[1]) if axis == 0 else (x.valid[0], "1")
    k.keep(s.result, text, k.static_valid(out, valid))


def start_with(how: str, dtype: DType) -> str:
    """What changes no result."""
    if how == "sum":
        return "0.0" if dtype.is_float else "0"
    low = how in ("max", "argmax")
    if dtype.is_float:
        return f'float("{"-" if low else ""}inf")'
    high = 2 ** (dtype.bits - 1) - 1
    return str(-high - 1 if low else high)


handles(*rules.REDUCE)(_reduce)


@handles("matmul", "matmul_acc")
def _matmul(k: Kernel, s: Let) -> None:
    out = result_type(s)
    if not out.dtype.is_float and out.dtype != INT32:
        raise unsupported(s, f"a product of type {out.dtype}")
    k.products = True
    a, b = k.tile(s.arg("lhs")), k.tile(s.arg("rhs"))
    a_trans, b_trans = bool(s.arg("a_trans")), bool(s.arg("b_trans"))
    left, right = k.cleaned(a), k.cleaned(b)
    if a.dtype != b.dtype and a.dtype.is_float:
        left, right = f"{left}.to(tl.float32)", f"{right}.to(tl.float32)"
    left = f"tl.trans({left})" if a_trans else left
    right = f"tl.trans({right})" if b_trans else right
    valid = k.static_valid(out, (a.valid[1 if a_trans else 0], b.valid[0 if b_trans else 1]))
    acc = ""
    if s.op.name == "matmul_acc":
        acc = k.tile(s.arg("acc")).name
        begins = s.arg("init_cond")
        if begins is not None:
            anew = k.value(index(begins)) if isinstance(begins, Const) else k.write(index(begins))  # type: ignore[arg-type]
            acc = k.text.let("acc", f"tl.where({anew}, 0, {acc})")
    wide = FP32 if out.dtype.is_float else INT32
    if a.dtype.is_float:
        exact = ', input_precision="ieee"' if FP32 in (a.dtype, b.dtype) else ""
        text = f"tl.dot({left}, {right}{f', {acc}' if acc else ''}{exact})"
    elif a.dtype == b.dtype and a.dtype.name == "INT8":
        text = f"tl.dot({left}, {right}{f', {acc}' if acc else ''}, out_dtype=tl.int32)"
    else:
        text = f"tile.exact_product({left}, {right})" + (f" + {acc}" if acc else "")
    k.keep(s.result, as_type(text, wide, out.dtype), valid)


# ---------------------------------------------------------------------------------------------- movement
def strides(pads: tuple[int, ...]) -> tuple[int, ...]:
    out, step = [], 1
    for d in reversed(pads):
        out.append(step)
        step *= d
    return tuple(reversed(out))


def taken(
    k: Kernel, x: Tile, coordinates: tuple[str, ...], shape: tuple[int, ...], inside: bool = False
) -> str:
    """The elements of a tile at coordinates, each of them a tile that meets ``shape``.

    With ``inside`` all are known to be there; else the nearest end stands for those that are not.
    """
    parts = []
    for c, step, d in zip(coordinates, strides(x.pads), x.pads, strict=True):
        if d > 1 and c != "0":
            parts.append(c if step == 1 else f"{c} * {step}")
    at = " + ".join(parts) or "0"
    if (
        any(d > 1 and k.along(shape, i) not in re.findall(r"\w+", at) for i, d in enumerate(shape))
        or at == "0"
    ):
        at = f"tl.zeros({list(shape)}, tl.int32) + {at}"
    if not inside:
        at = f"tl.minimum(tl.maximum({at}, 0), {count(x.pads) - 1})"
    at = k.text.let("at", at)
    return f"tile.take({x.name}.to(tl.int8), {at}) != 0" if x.dtype == BOOL else f"tile.take({x.name}, {at})"


def shifted(coordinate: str, start: str, sign: str = "+") -> str:
    if coordinate == "0" and sign == "+":
        return start
    return coordinate if start == "0" else f"({coordinate} {sign} {start})"


@handles("extract")
def _extract(k: Kernel, s: Let) -> None:
    out, x = result_type(s), k.tile(s.args[0])
    shape, pads = indices(s, "shape"), k.pads.of(s.result)
    dropped = tuple(s.arg("drop_dims") or ())  # type: ignore[arg-type]
    starts = [k.write(i) for i in indices(s, "offset")]
    live = []
    for limit, start, text, v, whole in zip(
        indices(s, "valid_shape") or shape, indices(s, "offset"), starts, x.valid, x.shape, strict=True
    ):
        if v == str(whole) and not s.arg("clamp"):
            live.append(k.write(limit))
        elif v.isdigit():
            live.append(valid_text(k, least(limit, index(int(v)), start)))
        else:
            rest = f"tl.maximum({v} - ({text}), 0)"
            live.append(k.text.let("live", f"tl.minimum({rest}, {k.write(limit)})"))
    kept = [i for i in range(len(shape)) if i not in dropped]
    coordinates = list(starts)
    for n, i in enumerate(kept):
        coordinates[i] = shifted(k.along(pads, n), starts[i])
    valid = tuple(live[i] for i in kept)
    pad = s.arg("pad_value")
    if x.pads == pads and all(start == "0" for start in starts):
        text = x.name
    else:
        text = taken(k, x, tuple(coordinates), pads, fits(starts, kept, pads, x.pads))
    tile = k.keep(s.result, text, valid)
    if pad is not None:
        mask = k.inside(pads, valid)
        text = tile.name if mask is None else f"tl.where({mask}, {tile.name}, {pad_text(out.dtype, pad)})"
        if mask is not None and out.dtype.bits < 32:
            text += f".to({TYPES[out.dtype.name]})"
        k.keep(s.result, text, tuple(map(str, out.shape)))


def fits(starts: list[str], kept: list[int], pads: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether a box at known places lies in a tile with all that pads it."""
    extents = dict(zip(kept, pads, strict=True))
    return all(
        start.isdigit() and int(start) + extents.get(i, 1) <= d
        for i, (start, d) in enumerate(zip(starts, whole, strict=True))
    )


@handles("insert")
def _insert(k: Kernel, s: Let) -> None:
    """A tile written into another, in place of the part that it covers."""
    out, target, source = result_type(s), k.tile(s.arg("target")), k.tile(s.arg("source"))
    pads = k.pads.of(s.result)
    starts = [k.write(i) for i in indices(s, "offset")]
    places = tuple(shifted(k.along(pads, i), start, "-") for i, start in enumerate(starts))
    tests = []
    for p, start, v, d in zip(places, starts, source.valid, pads, strict=True):
        tests += [f"({p} >= 0)"] if start != "0" else []
        tests += [f"({p} < {v})"] if start != "0" or v != str(d) else []
    straight = source.pads == pads and all(start == "0" for start in starts)
    text = as_type(source.name if straight else taken(k, source, places, pads), source.dtype, out.dtype)
    if tests:
        old = as_type(target.name, target.dtype, out.dtype)
        text = f"tl.where({' & '.join(tests)}, {text}, {old})"
    k.keep(s.result, text, k.static_valid(out, target.valid))


@handles("write_tile")
def _write_tile(k: Kernel, s: Let) -> None:
    """A tile with one element replaced."""
    out, x = result_type(s), k.tile(s.args[0])
    at = [k.write(i) for i in indices(s, s.op.param_names[1])]
    here = " & ".join(f"({k.along(x.pads, i)} == {c})" for i, c in enumerate(at))
    new = f"tl.cast({k.value(index(s.arg('value')))}, {TYPES[out.dtype.name]})"  # type: ignore[arg-type]
    k.keep(s.result, f"tl.where({here}, {new}, {x.name})", x.valid)


@handles("read_tile")
def _read_tile(k: Kernel, s: Let) -> None:
    x = k.tile(s.args[0])
    parts = [
        f"({k.write(i)}) * {step}"
        for i, step in zip(indices(s, s.op.param_names[1]), strides(x.pads), strict=True)
    ]
    kind = s.result.type.dtype  # type: ignore[union-attr]
    k.names[s.result] = k.text.let(
        s.result.name, f"tile.pick({k.widened(x)}, {' + '.join(parts)}).to({scalar_type(kind)})"
    )


@handles("reshape")
def _reshape(k: Kernel, s: Let) -> None:
    out, x = result_type(s), k.tile(s.args[0])
    pads = k.pads.of(s.result)
    valid = k.static_valid(out, tuple(map(str, out.shape)))
    if pads == out.shape and x.pads == x.shape:
        k.keep(s.result, f"tl.reshape({x.name}, {list(pads)})", valid)
        return
    if [(d, p) for d, p in zip(x.shape, x.pads, strict=True) if p != 1] == [
        (d, p) for d, p in zip(out.shape, pads, strict=True) if p != 1
    ]:
        k.keep(s.result, f"tl.reshape({x.name}, {list(pads)})", valid)
        return
    terms = [
        k.along(pads, i) if step == 1 else f"{k.along(pads, i)} * {step}"
        for i, step in enumerate(strides(out.shape))
        if out.shape[i] > 1
    ]
    flat = k.text.let("flat", " + ".join(terms) or "0")
    coordinates = []
    for step, d in zip(strides(x.shape), x.shape, strict=True):
        q = flat if step == 1 else f"{flat} // {step}"
        coordinates.append(f"({q} % {d})" if step * d < count(x.shape) else f"({q})" if step > 1 else q)
    k.keep(s.result, taken(k, x, tuple(coordinates), pads), valid)


def count(shape: tuple[int, ...]) -> int:
    return strides(shape)[0] * shape[0]


@handles("transpose")
def _transpose(k: Kernel, s: Let) -> None:
    x = k.tile(s.args[0])
    order = list(range(len(x.shape)))
    i, j = swapped(s)
    order[i], order[j] = order[j], order[i]
    k.keep(s.result, f"tl.permute({x.name}, {order})", tuple(x.valid[n] for n in order))
