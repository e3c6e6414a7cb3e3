"""What kernels do for orchestration that runs in them: tensors and arrays made inside, addresses kept."""

from __future__ import annotations

from pypto_models.ir.expr import Const, Expr, dim_expr, index
from pypto_models.ir.nodes import Let
from pypto_models.ir.types import INT64

from ..gpu.scan import indices
from ..gpu.serial import CHUNK, FILL, KEEP, KEPT
from ..gpu.tensors import View, view_dtype
from .choices import name_tensor, pointer_to
from .handlers import handles
from .kernel import Kernel
from .rules import unsupported
from .types import TYPES, number, wide

PIECE = 1024  # elements that are filled at once


def elements(k: Kernel, view: View) -> str:
    """How many elements a tensor has, in int64."""
    return " * ".join(wide(k.scalars, dim_expr(d)) for d in view.shape) or "1"


@handles("create")
def _create(k: Kernel, s: Let) -> None:
    """A tensor made inside of a loop takes the first of its places that no carried name holds."""
    whole = k.view_of(s.result)
    count = k.text.let("count", f"tl.cast({elements(k, whole)}, tl.int64)")
    if k.carried:
        size = view_dtype(whole).bytes
        step = k.text.let("step", f"({count} + 127) // 128 * 128")
        where = k.text.let(s.result.name, k.pointer(whole.base))
        for _ in k.carried:
            at = f"{where}.to(tl.int64)"
            tests = [
                f"(({c}.to(tl.int64) >= {at}) & ({c}.to(tl.int64) < {at} + {step} * {size}))"
                for c in k.carried
            ]
            with k.text.nested(f"if {' | '.join(tests)}:"):
                k.text.line(f"{where} += {step}")
        name_tensor(k, s.result, where, View(s.result, whole.shape, whole.strides))
    init = s.arg("init_value")
    if init is not None:
        view = k.view_of(s.result)
        k.before_write(view.base)
        fill(k, view, index(init), "0", count)  # type: ignore[arg-type]
        k.text.line(k.text.barrier)


@handles(FILL.name)
def _fill(k: Kernel, s: Let) -> None:
    """A block's share of the elements."""
    view = k.view_of(s.arg("t"))
    k.before_write(view.base)
    block = wide(k.scalars, index(s.arg("block")))  # type: ignore[arg-type]
    first = k.text.let("first_element", f"{block} * {CHUNK}")
    last = k.text.let("last_element", f"tl.minimum({first} + {CHUNK}, {elements(k, view)})")
    fill(k, view, index(s.arg("value")), first, last)  # type: ignore[arg-type]


def fill(k: Kernel, view: View, value: Expr, first: str, last: str) -> None:
    dtype = view_dtype(view)
    text = number(value.value, dtype) if isinstance(value, Const) else k.write(value)
    piece = k.text.let("piece", f"tl.full([{PIECE}], {text}, {TYPES[dtype.name]})")
    n, at = k.text.unique("n"), k.text.unique("at")
    with k.text.nested(f"for {n} in tl.range(0, tl.cdiv({last} - {first}, {PIECE})):"):
        k.text.line(f"{at} = {first} + {n} * {PIECE} + tl.arange(0, {PIECE})")
        k.text.line(f"tl.store({k.pointer(view.base)} + {at}, {piece}, mask={at} < {last})")


@handles(KEEP.name)
def _keep(k: Kernel, s: Let) -> None:
    """The address of a tensor, for the kernels to come."""
    cell, pointer = k.view_of(s.arg("cell")), pointer_to(k, k.view_of(s.arg("t")))
    k.before_write(cell.base, alone=True)
    k.text.line(f"tl.store({k.pointer(cell.base)}, ({pointer}).to({TYPES[INT64.name]}))")


@handles(KEPT.name)
def _kept(k: Kernel, s: Let) -> None:
    """A tensor whose address an earlier kernel kept."""
    view = k.view_of(s.result)
    cell = k.pointer(k.view_of(s.arg("cell")).base)
    element = TYPES[view_dtype(view).name]
    pointer = k.text.let(s.result.name, f"tl.load({cell}).to(tl.pointer_type({element}))")
    name_tensor(k, s.result, pointer, view)


@handles("array_create")
def _array_create(k: Kernel, s: Let) -> None:
    k.arrays[s.result] = {}


def place_in(s: Let) -> int:
    (at,) = indices(s, "index")
    if not isinstance(at, Const):
        raise unsupported(s, "its index is not constant")
    return int(at.value)


@handles("array_set")
def _array_set(k: Kernel, s: Let) -> None:
    value = s.arg("value")
    assert isinstance(value, Expr)
    text = k.text.let(s.result.name, k.value(value))
    k.arrays[s.result] = k.arrays[s.arg("array")] | {place_in(s): text}  # type: ignore[index]


@handles("array_get")
def _array_get(k: Kernel, s: Let) -> None:
    k.names[s.result] = k.arrays[s.arg("array")][place_in(s)]  # type: ignore[index]
