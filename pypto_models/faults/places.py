"""Faults of place: an index off by one, a store into the wrong slot, a read of another buffer."""

from __future__ import annotations

from collections.abc import Iterator

from ..ir.expr import Binary, Const, Expr, Var, binary
from ..ir.nodes import Block, If, Let
from ..ir.printer import format_expr
from ..ir.rewrite import children, defs, inner_defs
from ..ir.types import TensorType, TileType
from ..ops.registry import OpDef
from .fault import Fault, FaultClass, Outline, accepted, with_arg
from .scalars import scalars, with_scalar
from .structure import accesses, roots, writes

INDICES = ("offset", "index")
_NEAR = 2  # buffers of equal type to read instead, at most


def index_of(let: Let, op: OpDef) -> tuple[str, tuple[Expr, ...]] | None:
    """The index parameter of an op that has one."""
    for name in INDICES:
        if name in op.param_names:
            value = let.arg(name)
            if isinstance(value, tuple) and all(isinstance(x, Expr) for x in value):
                return name, value
    return None


def _moved(let: Let, name: str, index: tuple[Expr, ...], axis: int, new: Expr) -> Let | None:
    """The op at another place of one axis; None if its rule knows that to be out of bounds."""
    moved = with_arg(let, name, (*index[:axis], new, *index[axis + 1 :]))
    return moved if accepted(moved) else None


def _base(let: Let) -> str:
    first = let.args[0]
    return first.name if isinstance(first, Var) else let.op.name


def _extents(let: Let, rank: int) -> tuple[int, ...]:
    """Extents of the box that an op moves; 1 for a single element."""
    box = let.arg("source") if "source" in let.op.param_names else let.results[0] if let.results else None
    if isinstance(box, Var) and isinstance(box.type, TileType) and box.type.rank == rank:
        return box.type.shape
    return (1,) * rank


_EDGES = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}


def shift_indices(o: Outline) -> Iterator[Fault]:
    """One element or one box further or nearer along each axis of each access, and ``<`` for ``<=``."""
    kind = FaultClass.OFF_BY_ONE
    for let, op in o.lets():
        found = index_of(let, op)
        if found is None:
            continue
        name, index = found
        box = _extents(let, len(index))
        for axis, x in enumerate(index):
            steps = [1, box[axis]] if not writes(let) and box[axis] > 1 else [1]
            if writes(let) and box[axis] == 1:
                continue  # one element further is another slot
            for step in steps:
                for sign in ("+", "-"):
                    new = _moved(let, name, index, axis, binary(sign, x, Const(step)))
                    if new is not None:
                        what = f"{op.name} of {_base(let)} at {sign}{step} on axis {axis}"
                        yield o.fault(kind, let, what, (new,))
    for s in o.stmts:
        if isinstance(s, If):
            for path, part in scalars(s):
                if isinstance(part, Binary) and part.op in _EDGES:
                    edge = _EDGES[part.op]
                    new_if = with_scalar(s, path, binary(edge, part.lhs, part.rhs))
                    if new_if is not None:
                        yield o.fault(kind, s, f"{edge} in {format_expr(part)}", (new_if,))


def wrong_slots(o: Outline) -> Iterator[Fault]:
    """A store one whole box further, one nearer, or at the start of the axis."""
    for let, op in o.lets():
        found = index_of(let, op)
        if found is None or not writes(let):
            continue
        name, index = found
        box = _extents(let, len(index))
        for axis, x in enumerate(index):
            moves = [(f"+{box[axis]}", binary("+", x, Const(box[axis])))]
            moves.append((f"-{box[axis]}", binary("-", x, Const(box[axis]))))
            if not isinstance(x, Const):
                moves.append(("0", Const(0)))
            for where, to in moves:
                new = _moved(let, name, index, axis, to)
                if new is not None:
                    what = f"{op.name} to {_base(let)} at {where} on axis {axis}"
                    yield o.fault(FaultClass.WRONG_SLOT, let, what, (new,))


def stale_buffers(o: Outline) -> Iterator[Fault]:
    """A read of another tensor of the same type that is in scope: an old copy, a neighbour's buffer."""
    root = roots(o)
    scope = [p.var for p in o.function.params if isinstance(p.var.type, TensorType)]
    yield from _stale(o, o.function.body, scope, root)


def _stale(o: Outline, block: Block, scope: list[Var], root: dict[Var, Var]) -> Iterator[Fault]:
    scope = list(scope)
    for s in block:
        if isinstance(s, Let) and accesses(s) and not writes(s):
            yield from _read_elsewhere(o, s, scope, root)
        inside = [*scope, *(v for v in inner_defs(s) if isinstance(v.type, TensorType))]
        for inner in children(s):
            yield from _stale(o, inner, inside, root)
        scope += [v for v in defs(s) if isinstance(v.type, TensorType)]


def _read_elsewhere(o: Outline, s: Let, scope: list[Var], root: dict[Var, Var]) -> Iterator[Fault]:
    (access,) = accesses(s)
    old = access.tensor
    others = [v for v in scope if v.type == old.type and root.get(v, v) is not root.get(old, old)]
    for new in others[-_NEAR:]:
        let = with_arg(s, s.op.param_names[0], new)
        if accepted(let):
            yield o.fault(FaultClass.STALE, s, f"reads {new.name} for {old.name}", (let,))
