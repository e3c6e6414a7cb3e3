"""Scalar expressions in statements: where they stand, and the statement with another in their place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..errors import InternalError, UserError
from ..ir.expr import Binary, Const, Expr, Unary, Var, binary, convert, logical_not, negate
from ..ir.nodes import Arg, Bind, If, Let, Stmt
from ..ir.printer import format_expr
from ..ir.types import TileType
from ..ops.registry import Kind, OpDef
from .fault import accepted, with_arg

Path = tuple[str | int, ...]


def scalars(s: Stmt) -> Iterator[tuple[Path, Expr]]:
    """Every scalar expression that decides a value: of bindings, conditions and scalar arguments.

    Indices of accesses are left to ``places``, bounds of loops to ``structure``.
    """
    if isinstance(s, Bind):
        yield from _nodes(("value",), s.value)
    elif isinstance(s, If):
        yield from _nodes(("cond",), s.cond)
    elif isinstance(s, Let) and isinstance(s.op, OpDef):
        for p, a in zip(s.op.params, s.args, strict=True):
            if p.kind in (Kind.SCALAR, Kind.TILE_OR_SCALAR) and isinstance(a, Expr):
                if not (isinstance(a, Var) and isinstance(a.type, TileType)):
                    yield from _nodes((p.name,), a)
            elif p.name == "valid_shape" and isinstance(a, tuple):
                for i, x in enumerate(a):
                    if isinstance(x, Const):
                        yield (p.name, i), x


def _nodes(path: Path, x: Expr) -> Iterator[tuple[Path, Expr]]:
    yield path, x
    if isinstance(x, Binary):
        yield from _nodes((*path, "lhs"), x.lhs)
        yield from _nodes((*path, "rhs"), x.rhs)
    elif isinstance(x, Unary):
        yield from _nodes((*path, "operand"), x.operand)


def _rebuilt(x: Expr, path: Path, new: Expr) -> Expr:
    if not path:
        return new
    if isinstance(x, Binary):
        lhs = _rebuilt(x.lhs, path[1:], new) if path[0] == "lhs" else x.lhs
        rhs = _rebuilt(x.rhs, path[1:], new) if path[0] == "rhs" else x.rhs
        return binary(x.op, lhs, rhs)
    if isinstance(x, Unary):
        inner = _rebuilt(x.operand, path[1:], new)
        if x.op == "cast" and x.to is not None:
            return convert(inner, x.to)
        return negate(inner) if x.op == "-" else logical_not(inner)
    raise InternalError(f"{x!r} has no part {path[0]!r}")


def with_scalar(s: Stmt, path: Path, new: Expr) -> Stmt | None:
    """The statement with one part of an expression replaced; None if that changes nothing or is refused."""
    try:
        if isinstance(s, Bind):
            return replace(s, value=_rebuilt(s.value, path[1:], new))
        if isinstance(s, If):
            return replace(s, cond=_rebuilt(s.cond, path[1:], new))
    except UserError:  # a constant divisor became 0
        return None
    if not isinstance(s, Let):
        raise InternalError(f"{s!r} has no scalar")
    name, old = str(path[0]), s.arg(str(path[0]))
    if isinstance(old, tuple):
        value: Arg = tuple(new if i == path[1] else x for i, x in enumerate(old))
    elif isinstance(old, Expr):
        value = _rebuilt(old, path[1:], new)
    else:
        raise InternalError(f"{s!r} has no scalar {name!r}")
    let = with_arg(s, name, value)
    return let if accepted(let) else None


def place_of(s: Stmt, path: Path) -> str:
    """Where a constant stands, for the reader: ``pages in (tokens + 15) // 16``."""
    if isinstance(s, Bind):
        return f"in {s.var.name} = {format_expr(s.value)}{_step(path)}"
    if isinstance(s, If):
        return f"in if {format_expr(s.cond)}{_step(path)}"
    return f"in {s.op.name if isinstance(s, Let) else s}({path[0]}){_step(path)}"


def _step(path: Path) -> str:
    steps = ".".join(str(p) for p in path[1:])
    return f" at {steps}" if steps else ""
