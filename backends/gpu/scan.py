"""What a block of statements does, before anything of it is written."""

from __future__ import annotations

from collections.abc import Iterator

from pypto_models.ir.expr import Expr, Var, index
from pypto_models.ir.nodes import Bind, Block, For, If, Let

READS = ("load", "read_tensor")
VIEWS = ("view", "view_reshape")


def sources(x: Let) -> tuple[Var, ...]:
    """The tensor or view that a statement reads elements of."""
    return (x.args[0],) if x.op.name in READS and isinstance(x.args[0], Var) else ()


def indices(s: Let, name: str) -> tuple[Expr, ...]:
    """An argument that is a list of indices; () if it is not given."""
    value = s.arg(name)
    return tuple(index(x) for x in value) if isinstance(value, tuple) else ()


def lets(body: Block) -> Iterator[Let]:
    for s in body:
        if isinstance(s, Let):
            yield s
        elif isinstance(s, If):
            yield from lets(s.then)
            yield from lets(s.orelse)
        elif isinstance(s, For):
            yield from lets(s.body)


def stores_in(body: Block) -> Iterator[Var]:
    """The tensors and views that a block writes to."""
    for st in body:
        if isinstance(st, If):
            yield from stores_in(st.then)
            yield from stores_in(st.orelse)
        elif isinstance(st, For):
            yield from stores_in(st.body)
        elif isinstance(st, Let) and st.op.name in ("store", "write_tensor") and isinstance(st.args[0], Var):
            yield st.args[0]


def reads_only(body: Block) -> bool:
    """True if a loop body makes scalars and nothing else."""
    for s in body:
        if isinstance(s, If):
            if not (reads_only(s.then) and reads_only(s.orelse)):
                return False
        elif isinstance(s, Let):
            if s.op.name != "read_tensor":
                return False
        elif not isinstance(s, Bind):
            return False
    return True


def sources_of(body: Block) -> Iterator[Var]:
    """The tensors and views that a block reads elements of."""
    for s in body:
        if isinstance(s, If):
            yield from sources_of(s.then)
            yield from sources_of(s.orelse)
        elif isinstance(s, For):
            yield from sources_of(s.body)
        elif isinstance(s, Let) and s.op.name in ("load", "read_tensor") and isinstance(s.args[0], Var):
            yield s.args[0]


def operands_of(body: Block) -> Iterator[Var]:
    """The operands of the products in a block."""
    for s in body:
        if isinstance(s, If):
            yield from operands_of(s.then)
            yield from operands_of(s.orelse)
        elif isinstance(s, For):
            yield from operands_of(s.body)
        elif isinstance(s, Let) and s.op.name in ("matmul", "matmul_acc"):
            yield from (x for x in (s.arg("lhs"), s.arg("rhs")) if isinstance(x, Var))
