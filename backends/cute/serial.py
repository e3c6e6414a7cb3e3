"""What kernels do for orchestration that runs in them: tensors and arrays made inside, addresses kept."""

from __future__ import annotations

from pypto_models.ir.expr import Const, Expr, dim_expr, index
from pypto_models.ir.nodes import Let

from ..gpu.scan import indices
from ..gpu.serial import CHUNK, FILL, KEEP, KEPT
from ..gpu.tensors import View, view_dtype
from .choices import address, name_tensor
from .handlers import handles
from .kernel import Kernel
from .rules import unsupported
from .scalars import DSL_TYPES, dsl_type, literal


def elements(k: Kernel, view: View) -> str:
    """How many elements a tensor has, as Int64."""
    return " * ".join(f"Int64({k.write(dim_expr(d))})" for d in view.shape) or "Int64(1)"


@handles("create")
def _create(k: Kernel, s: Let) -> None:
    """A tensor made inside of a loop takes the first of its places that no carried name holds."""
    whole = k.view_of(s.result)
    pointer, count = k.pointer(whole.base), elements(k, whole)
    if k.carried:
        size = view_dtype(whole).bytes
        bytes_ = k.text.let("bytes", f"({count} + 127) // 128 * {128 * size}")
        where = k.text.let(f"{s.result.name}_at", f"{pointer}.toint()")
        for _ in k.carried:
            tests = [f"({c} >= {where}) & ({c} < {where} + {bytes_})" for c in k.carried]
            with k.text.nested(f"if {' | '.join(f'({x})' for x in tests)}:"):
                k.text.line(f"{where} = {where} + {bytes_}")
        own = View(s.result, whole.shape, whole.strides)
        name_tensor(k, s.result, where, own)
        pointer = k.pointer(s.result)
    init = s.arg("init_value")
    if init is not None:
        view = k.view_of(s.result)
        k.before_write(view.base)
        fill(k, view, index(init), "Int64(0)", count)  # type: ignore[arg-type]
        k.text.line("cute.arch.sync_threads()")


@handles(FILL.name)
def _fill(k: Kernel, s: Let) -> None:
    """A block's share of the elements."""
    view = k.view_of(s.arg("t"))
    k.before_write(view.base)
    first = k.text.let("first_element", f"Int64({k.write(index(s.arg('block')))}) * {CHUNK}")  # type: ignore[arg-type]
    last = k.text.let("last_element", f"min({first} + {CHUNK}, {elements(k, view)})")
    fill(k, view, index(s.arg("value")), first, last)  # type: ignore[arg-type]


def fill(k: Kernel, view: View, value: Expr, first: str, last: str) -> None:
    dtype = view_dtype(view)
    kind = DSL_TYPES[dtype.name]
    if isinstance(value, Const):
        text = literal(float(value.value) if dtype.is_float else int(value.value), dtype)
    else:
        text = f"{kind}({k.write(value)})"
    k.text.line(f"block.fill({k.pointer(view.base)}, {first}, {last}, {text})")


@handles(KEEP.name)
def _keep(k: Kernel, s: Let) -> None:
    """The address of a tensor, for the kernels to come."""
    cell = k.view_of(s.arg("cell"))
    k.before_write(cell.base, alone=True)
    with k.text.nested("if tid == 0:"):
        k.text.line(f"block.element({k.pointer(cell.base)}, 0)[0] = {address(k, k.view_of(s.arg('t')))}")


@handles(KEPT.name)
def _kept(k: Kernel, s: Let) -> None:
    """A tensor whose address an earlier kernel kept."""
    cell = k.pointer(k.view_of(s.arg("cell")).base)
    where = k.text.let(f"{s.result.name}_at", f"Int64(block.element({cell}, 0)[0])")
    name_tensor(k, s.result, where, k.view_of(s.result))


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
    text = k.text.let(s.result.name, f"{dsl_type(value.dtype)}({k.write(value)})")
    k.arrays[s.result] = k.arrays[s.arg("array")] | {place_in(s): text}  # type: ignore[index]


@handles("array_get")
def _array_get(k: Kernel, s: Let) -> None:
    k.names[s.result] = k.arrays[s.arg("array")][place_in(s)]  # type: ignore[index]
