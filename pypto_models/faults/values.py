"""Faults of values: operands, constants, broadcasts, accumulations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..errors import InternalError
from ..ir.expr import Binary, Const, Expr, Var
from ..ir.nodes import Arg, Let
from ..ir.printer import format_expr
from ..ir.types import BOOL, TileType
from ..ops import REGISTRY
from ..ops.registry import Kind, OpDef
from .fault import Fault, FaultClass, Maker, Outline, accepted, with_arg
from .places import index_of
from .scalars import place_of, scalars, with_scalar

_TILES = (Kind.TILE, Kind.TILE_OR_SCALAR)
_ORDERED = ("-", "//", "%", "/", "**", "<", "<=", ">", ">=")
_SYMMETRIC_COMPARISONS = (0, 1)  # eq, ne
_HUGE = 1e30  # a constant this large stands for infinity


# ---------------------------------------------------------------------------------------------- operands
def swap_operands(o: Outline) -> Iterator[Fault]:
    """``b op a`` for ``a op b`` where that is something else, on tiles and on index scalars."""
    kind = FaultClass.SWAP_OPERANDS
    for let, op in o.lets():
        names = [p.name for p in op.params if p.kind in _TILES and isinstance(let.arg(p.name), Var)]
        names = [n for n in names if n != "acc"]
        if len(names) != 2 or _commutes(let, op):
            continue
        a, b = names
        swapped = with_arg(with_arg(let, a, let.arg(b)), b, let.arg(a))
        what = f"{op.name} takes {b} for {a}"
        if accepted(swapped):
            yield o.fault(kind, let, what, (swapped,))
        elif (fix := _INVERSE.get(op.name.rpartition("_")[2])) is not None:
            # v - t and v / t with a broadcast v: the other order, by an op on the result
            inner = Var(let.result.name, let.result.type, let.span)
            outer = Let(let.results, REGISTRY[fix], _filled(REGISTRY[fix], inner), let.span)
            if accepted(outer):
                yield o.fault(kind, let, what, (replace(let, results=(inner,)), outer))
    yield from _turned(o)
    for s in o.stmts:
        for path, x in scalars(s):
            if isinstance(x, Binary) and x.op in _ORDERED and x.lhs != x.rhs:
                new = with_scalar(s, path, Binary(x.op, x.rhs, x.lhs))
                if new is not None:
                    yield o.fault(kind, s, f"{format_expr(x)} with its operands swapped", (new,))


def _turned(o: Outline) -> Iterator[Fault]:
    """A matrix operand taken as its transpose where that is square, a ramp that runs the other way, and
    exchanged row and column indices."""
    for let, op in o.lets():
        for p in op.params:
            flag = p.name.endswith("_trans") or p.name == "descending"
            if flag and isinstance(old := let.arg(p.name), bool):
                new = with_arg(let, p.name, not old)
                if accepted(new):
                    yield o.fault(FaultClass.SWAP_OPERANDS, let, f"{op.name} with {p.name}={not old}", (new,))
        found = index_of(let, op)
        if found is not None and len(found[1]) == 2 and found[1][0] != found[1][1]:
            new = with_arg(let, found[0], found[1][::-1])
            if accepted(new):
                what = f"{op.name} with its row and column {found[0]} exchanged"
                yield o.fault(FaultClass.SWAP_OPERANDS, let, what, (new,))


_COMMUTATIVE = ("add", "mul")
_INVERSE = {"sub": "neg", "div": "recip"}


def _filled(op: OpDef, first: Arg) -> tuple[Arg, ...]:
    return (first, *(p.default for p in op.params[1:]))


def _commutes(let: Let, op: OpDef) -> bool:
    if "cmp_type" in op.param_names:
        return let.arg("cmp_type") in _SYMMETRIC_COMPARISONS
    if "acc" in op.param_names:
        return False
    return op.combine is not None or op.name.rpartition("_")[2] in _COMMUTATIVE


# ---------------------------------------------------------------------------------------------- constants
def change_constants(o: Outline) -> Iterator[Fault]:
    """Another number: an integer one larger (or smaller), a fraction doubled, 1 for 0.0."""
    for s in o.stmts:
        for path, x in scalars(s):
            if not isinstance(x, Const) or x.dtype == BOOL:
                continue
            for value in _others(x):
                new = with_scalar(s, path, Const(value, x.type))
                if new is not None:
                    what = f"{place_of(s, path)}: {_show(value)} for {_show(x.value)}"
                    yield o.fault(FaultClass.CONSTANT, s, what, (new,))
                    break


def _others(x: Const) -> tuple[int | float, ...]:
    if isinstance(x.value, float):
        return (1.0,) if x.value == 0 else (-x.value,) if abs(x.value) > _HUGE else (2 * x.value,)
    return (x.value + 1, x.value - 1)


def _show(value: int | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------- broadcasts
def misplace_broadcasts(o: Outline) -> Iterator[Fault]:
    """A broadcast that takes the element of the next row or column, or runs along the other axis."""
    kind = FaultClass.BROADCAST
    for let, op in o.lets():
        along, expand, _ = op.name.partition("_expand")
        if not expand:
            continue
        v = let.arg("rhs")
        if not isinstance(v, Var) or not isinstance(v.type, TileType):
            continue
        axis = 0 if along == "row" else 1
        extent = v.type.shape[axis]
        if extent > 1:
            made = Maker(let.span)
            shifted = _rolled(made, v, axis, extent)
            what = f"{op.name} takes {v.name} of the next {along if axis == 0 else 'column'}"
            yield o.fault(kind, let, what, (*made.block, with_arg(let, "rhs", shifted)))
        lhs = let.arg("lhs")
        square = isinstance(lhs, Var) and isinstance(lhs.type, TileType) and len(set(lhs.type.shape)) == 1
        if square and extent > 1:
            other = REGISTRY[f"{'col' if axis == 0 else 'row'}{op.name.removeprefix(along)}"]
            made = Maker(let.span)
            turned = made.let(REGISTRY["transpose"], v, Const(0), Const(1), name=f"{v.name}_t")
            new = Let(let.results, other, (lhs, turned), let.span)
            if accepted(new):
                yield o.fault(kind, let, f"{other.name} for {op.name}", (*made.block, new))


def _rolled(made: Maker, v: Var, axis: int, extent: int) -> Var:
    """``v`` with element ``i + 1`` at place ``i`` and the first at the end."""
    t = v.type
    if not isinstance(t, TileType):
        raise InternalError(f"{v!r} is no tile")

    def place(at: int) -> tuple[Expr, ...]:
        return tuple(Const(at if i == axis else 0) for i in range(t.rank))

    def box(n: int) -> tuple[Expr, ...]:
        return tuple(Const(n if i == axis else d) for i, d in enumerate(t.shape))

    extract, insert = REGISTRY["extract"], REGISTRY["insert"]
    zeros = Const(0.0 if t.dtype.is_float else 0, t.dtype)
    out = made.let(REGISTRY["full"], box(extent), t.dtype, zeros, name=v.name)
    rest = made.let(extract, v, box(extent - 1), place(1), name=v.name)
    first = made.let(extract, v, box(1), place(0), name=v.name)
    out = made.let(insert, out, rest, place(0), name=v.name)
    return made.let(insert, out, first, place(extent - 1), name=v.name)


# ---------------------------------------------------------------------------------------------- additions
def omit_adds(o: Outline) -> Iterator[Fault]:
    """An atomic add that stores instead, and an accumulation that starts over."""
    kind = FaultClass.OMIT_ADD
    for let, op in o.lets():
        if "atomic" in op.param_names and let.arg("atomic") == "add":
            yield o.fault(kind, let, "the atomic add is a plain store", (with_arg(let, "atomic", "none"),))
        if "init_cond" in op.param_names:
            new = with_arg(let, "init_cond", Const(True, BOOL))
            if accepted(new):
                yield o.fault(kind, let, f"{op.name} forgets what it has accumulated", (new,))
