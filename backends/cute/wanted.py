"""Which blocks of a region have any effect, told from scalars that are there before they run.

A region may do nothing in most of its blocks, as a merge where few rows were split.  Where the conditions of
its branches need no more than index arithmetic and single elements of settled tensors, a function tells
whether a block stores anything: each branch gives what its arms give, and what makes no scalar for that is
left away.  A store that no such condition guards, a loop with stores, and whatever else is not understood
count as an effect.

A block of the launch before evaluates it for blocks that are not its own, and whatever the branches said
before: so a tensor is settled if nothing of the launch writes there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from pypto_models.ir.expr import Const, Expr, Var, binary, free_vars, logical_not
from pypto_models.ir.nodes import Bind, Block, For, If, Let, Merged, Stmt
from pypto_models.ir.rewrite import defs, uses, walk
from pypto_models.ir.types import BOOL, ScalarType
from pypto_models.ops.registry import Effect, OpDef

from ..gpu.host import slice_of, with_places
from ..gpu.scan import VIEWS, lets
from ..gpu.tensors import View, viewed
from .kernel import Kernel
from .module import typed
from .order import EFFECTS
from .sharing import Share

YES, NO = Const(True, BOOL), Const(False, BOOL)


@dataclass(frozen=True)
class Wanted(Share):
    """The function that tells it of a block: ``value`` is the text of what it gives.  An ``early`` one reads
    only what a kernel may read before it waits.
    """

    value: str
    early: bool

    def text(self, *more: str) -> str:
        names = [*(typed(a.name, a.kind) for a in self.arguments), *(f"{x}: Int32" for x in more)]
        lines = [
            "@cute.jit",
            f"def {self.function}({', '.join(names)}):",
            f'    """Line {self.region.span.line}: whether a block has any effect."""',
            *self.kernel.text.lines,
            f"    return {self.value}",
        ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Work:
    """Whether a block has an effect: ``value``, behind ``statements`` that make scalars for it."""

    statements: Block
    value: Expr

    def write(self, kernel: Kernel) -> tuple[str, bool]:
        """The statements, in a kernel of their own; the text of the value, and whether it can be early."""
        kernel.block(self.statements)
        read = {x: kernel.view_of(x.args[0]).base for x in lets(self.statements) if x.op.name not in VIEWS}
        early = all(kernel.ahead.allows(x, base) for x, base in read.items())
        if early:
            kernel.early |= set(read.values())
        value = kernel.write(self.value)
        return value if value.startswith("Boolean(") else f"Boolean({value})", early


def work(body: Block, views: Mapping[Var, View], settled: Callable[[Var], bool]) -> Work | None:
    """What tells of a block of a region whether it has an effect; None if always, as far as can be seen.

    ``settled`` says of a base tensor whether all of its elements are there, and stay.
    """
    seen = _Seen(views, settled)
    statements, value = seen.block(body)
    if isinstance(value, Const):
        return None
    return Work(slice_of(list(statements), free_vars(value), seen.views), value)


def unwritten(names: Collection[Var], *kernels: Kernel) -> Callable[[Var], bool]:
    """Whether a base tensor is one of ``names``, and no region among those of a launch writes there."""

    def settled(base: Var) -> bool:
        return base in names and not any(k.chosen or any(k.same(base, w) for w in k.written) for k in kernels)

    return settled


class _Seen:
    """What is known of the scalars of a region, statement by statement."""

    def __init__(self, views: Mapping[Var, View], settled: Callable[[Var], bool]) -> None:
        self.views = dict(views)
        self.settled = settled
        self.unknown: set[Expr] = set()

    def block(self, body: Block) -> tuple[Block, Expr]:
        """The statements that make known scalars, and whether any has an effect; no statements if surely."""
        out: list[Stmt] = []
        value: Expr = NO
        for s in body:
            if isinstance(s, If) and self.known(free_vars(s.cond)):
                made, effect = self.branch(s)
                out += made
                value = binary("or", value, effect)
            elif has_effect(s):
                value = YES
            elif self.understands(s):
                out.append(s)
            else:
                self.unknown |= set(defs(s))
            if value == YES:
                return (), YES
        return tuple(out), value

    def known(self, needed: Iterable[Expr]) -> bool:
        return self.unknown.isdisjoint(with_places(needed, self.views))

    def understands(self, s: Stmt) -> bool:
        """Whether a statement makes a scalar of known ones, or names a tensor."""
        if not isinstance(s, Let) or not self.known(uses((s,))):
            return isinstance(s, Bind) and self.known(uses((s,)))
        source = s.args[0] if s.args else None
        if s.op.name not in (*VIEWS, "read_tensor") or source not in self.views:
            return False
        assert isinstance(source, Var)
        if s.op.name in VIEWS:
            self.views[s.result] = viewed(s, self.views)
            return True
        return self.settled(self.views[source].base)

    def branch(self, s: If) -> tuple[list[Stmt], Expr]:
        """One under a known condition: what makes known scalars of it, and whether it has an effect."""
        (then, a), (orelse, b) = self.block(s.then), self.block(s.orelse)
        merged = tuple(m for m in s.merged if YES not in (a, b) and self.holds(m))
        self.unknown |= {m.result for m in s.merged} - {m.result for m in merged}
        out: list[Stmt] = []
        if merged:
            out.append(self.pruned(s, then, orelse, merged))
        apart = Merged(Var("wanted", ScalarType(BOOL)), a, b)
        alone = self.pruned(s, then, orelse, (apart,))
        if alone.then or alone.orelse:
            return [*out, alone], apart.result
        return out, either(s.cond, a, b)

    def holds(self, m: Merged) -> bool:
        """Whether a scalar is known in both arms."""
        values = (*free_vars(m.then), *free_vars(m.orelse))
        return isinstance(m.result.type, ScalarType) and self.known(values)

    def pruned(self, s: If, then: Block, orelse: Block, merged: tuple[Merged, ...]) -> If:
        """A branch that only makes what is merged."""
        needed = [[m.then for m in merged], [m.orelse for m in merged]]
        arms = [
            slice_of(list(arm), [v for x in values for v in free_vars(x)], self.views)
            for arm, values in zip((then, orelse), needed, strict=True)
        ]
        return If(s.cond, arms[0], arms[1], merged, s.span)


def either(cond: Expr, a: Expr, b: Expr) -> Expr:
    """``a`` if the condition holds, else ``b``; all are Boolean."""
    if a == YES:
        return binary("or", cond, b)
    return binary("or", binary("and", cond, a), binary("and", logical_not(cond), b))


def has_effect(s: Stmt) -> bool:
    return any(_writes(x) if isinstance(x, Let) else not isinstance(x, Bind | For | If) for x in walk((s,)))


def _writes(x: Let) -> bool:
    if x.op.name in EFFECTS or not isinstance(x.op, OpDef):
        return True
    return any(access.effect is not Effect.READ for access in x.op.access(x))
