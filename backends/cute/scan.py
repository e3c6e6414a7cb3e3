"""What a block of statements does, before anything of it is written."""

from __future__ import annotations

from collections.abc import Iterator

from pypto_models.ir.expr import Var
from pypto_models.ir.nodes import Bind, Block, For, If, Let


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
