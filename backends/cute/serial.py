"""Loops that no launch list can hold, as one kernel of one block of threads: regions run in turn.

The trip count is device data, or the loop hands a tensor from trip to trip.  A grid whose extent is device
data needs less: its launch has a fixed number of blocks, which take the grid's blocks in turn.
"""

from __future__ import annotations

from dataclasses import replace

from pypto_models.ir.expr import Const, Expr, Var, dim_expr, index
from pypto_models.ir.nodes import (
    Block,
    For,
    If,
    Let,
    LoopKind,
    Operation,
    Region,
    RegionKind,
    RegionOptions,
    Scope,
    Stmt,
)  # fmt: skip
from pypto_models.ir.types import INDEX, ArrayType, ScalarType, TaskType

from .choices import address, name_tensor
from .handlers import handles, indices
from .kernel import Kernel
from .rules import refused, unsupported
from .scalars import DSL_TYPES, dsl_type, literal
from .tensors import View, view_dtype

CHUNK = 4096  # elements that a block fills
FILL = Operation("fill_tensor", "create_tensor", ("t", "value", "block"))
KEEP = Operation("keep_address", "create_tensor", ("cell", "t"))
KEPT = Operation("kept_tensor", "create_tensor", ("cell", "like"))


def is_task(x: Expr) -> bool:
    """A task id or an array of them: kernels run in order, so nobody asks."""
    t = x.type if isinstance(x, Var) else None
    return isinstance(t, TaskType) or (isinstance(t, ArrayType) and not dsl_type(t.elem))


def in_turn(body: Block) -> Block:
    """Statements of the orchestration as those of one kernel: a grid is a loop over its blocks."""
    out: list[Stmt] = []
    for s in body:
        if isinstance(s, Scope):
            out += in_turn(s.body)
        elif isinstance(s, Region):
            out += in_turn(s.body) if s.block is None else (blocks(s, index(0), index(1)),)
        elif isinstance(s, For):
            kept = tuple(c for c in s.carried if not is_task(c.param))
            if any(isinstance(c.param.type, ArrayType) for c in kept):
                raise refused(
                    s.span, "the loop", "its trip count is not constant and it hands on an array",
                    "keep the array's values in a tensor",
                )  # fmt: skip
            out.append(replace(s, carried=kept, body=in_turn(s.body), kind=plain(s.kind)))
        elif isinstance(s, If):
            merged = tuple(m for m in s.merged if not is_task(m.result))
            out.append(replace(s, merged=merged, then=in_turn(s.then), orelse=in_turn(s.orelse)))
        elif not (isinstance(s, Let) and (s.op.name == "task_dummy" or any(map(is_task, s.results)))):
            out.append(s)
    return tuple(out)


def plain(kind: LoopKind) -> LoopKind:
    return LoopKind.RANGE if kind is LoopKind.PARALLEL else kind


def blocks(s: Region, first: Expr, step: Expr) -> For:
    """The blocks of a grid from ``first`` on, each ``step``-th."""
    assert s.block is not None
    count = index(1) if s.count is None else s.count
    return For(LoopKind.RANGE, s.block, first, count, step, (), in_turn(s.body), 1, s.span)


def strided(s: Region, width: int) -> Region:
    """A grid whose extent the host does not know, as ``width`` blocks that take its blocks in turn."""
    first = Var("first", ScalarType(INDEX))
    return replace(s, block=first, count=Const(width), body=(blocks(s, first, Const(width)),))


def one_block(s: Stmt, body: Block) -> Region:
    return Region(RegionKind.AT, None, None, body, RegionOptions(f"loop_line{s.span.line}"), span=s.span)


# ---------------------------------------------------------------------------------------------- handlers
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
        fill(k, k.view_of(s.result), index(init), "Int64(0)", count)  # type: ignore[arg-type]
        k.text.line("cute.arch.sync_threads()")


@handles(FILL.name)
def _fill(k: Kernel, s: Let) -> None:
    """A block's share of the elements."""
    view = k.view_of(s.arg("t"))
    k.written.add(view.base)
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
    k.written.add(cell.base)
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
