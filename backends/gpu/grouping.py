"""Regions that do not depend on each other, put into one launch.

A launch takes some microseconds however little it does.  So a region joins an earlier launch, though others
stand between, if it depends on nothing there: it reads nothing that they write, and writes nothing that they
read or write.  Dependence is taken on whole tensors with all that they may name (language/effects.py); the
tensors behind the scalars that a kernel works out at its start count as read by it.

Of the launches that it may join, a region takes the one with the fewest blocks, where most cores idle, and of
those the nearest.  Only regions that run block by block share a launch, and only one of them may be large:
one with products, or with loads that run ahead of a loop, for which shared memory is planned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from pypto_models.ir.expr import Binary, Const, Expr, Unary, Var, binary, free_vars, index
from pypto_models.ir.nodes import Bind, Block, For, Function, Let, LoopKind, Region, Scope, Stmt
from pypto_models.ir.rewrite import children, defs, inner_defs, uses, walk, with_children
from pypto_models.ir.types import TensorType, TileType
from pypto_models.language.effects import roots
from pypto_models.ops.registry import Effect, OpDef

from .matching import Product, match

MOST = 4  # regions of a launch
NOMINAL = 16  # what every run-time extent counts when launches are compared
PRODUCTS = ("matmul", "matmul_acc")
VIEWS = ("view", "view_reshape")


@dataclass(frozen=True)
class Group(Scope):
    """Regions that share a launch: none depends on another, and none is a streamed product."""

    @property
    def regions(self) -> tuple[Region, ...]:
        return tuple(s for s in self.body if isinstance(s, Region))


@dataclass(frozen=True)
class Touched:
    """Tensors by identity: parameters and what is created."""

    reads: frozenset[Var] = frozenset()
    writes: frozenset[Var] = frozenset()

    def conflicts(self, other: Touched) -> bool:
        """Whether the order of the two matters."""
        return not (
            self.writes.isdisjoint(other.reads | other.writes) and other.writes.isdisjoint(self.reads)
        )

    def __or__(self, other: Touched) -> Touched:
        return Touched(self.reads | other.reads, self.writes | other.writes)


def grouped(function: Function, apart: frozenset[int] = frozenset()) -> Function:
    """The function with its groups; what a region reads and writes, and in which order, stays.

    ``apart``: regions, by identity, that share no launch, since they may need none (row_statistic.py).
    """
    return replace(function, body=_Grouping(function, apart).block(function.body))


@dataclass(frozen=True)
class Facts:
    """What a statement needs, defines and touches; ``blocks``: of its launch, where it can be shared."""

    stmt: Stmt
    needs: frozenset[Var]
    defines: frozenset[Var]
    touched: Touched
    parts: tuple[Region, ...] = ()  # the regions of a launch that others may join
    blocks: int = 0
    large: int = 0  # regions with products, or with loads that run ahead

    @property
    def pure(self) -> bool:
        """Whether it may stand anywhere behind its operands: a name, a view, or room for a tensor."""
        s = self.stmt
        if isinstance(s, Let):
            return s.op.name in VIEWS or (s.op.name == "create" and s.arg("init_value") is None)
        return isinstance(s, Bind)

    def takes(self, other: Facts) -> bool:
        """Whether a region, of which the two are independent, may join this launch."""
        parts = (*self.parts, *other.parts)
        both = bool(self.parts) and bool(other.parts)
        return both and len(parts) <= MOST and self.large + other.large <= 1


class _Grouping:
    def __init__(self, function: Function, apart: frozenset[int]) -> None:
        self.roots = roots(function)
        self.apart = apart
        self.origin: dict[Var, Stmt] = {}  # of what the orchestration works out, by variable
        self.note(function.body)

    def note(self, body: Block) -> None:
        for s in body:
            self.origin |= dict.fromkeys(defs(s), s)
            if not isinstance(s, Region):
                for inner in children(s):
                    self.note(inner)

    # ---------------------------------------------------------------------------------------- order
    def block(self, body: Block) -> Block:
        out: list[Facts] = []
        for s in body:
            if isinstance(s, Region):
                self.place(self.facts(s), out)
            else:
                inner = children(s)
                out.append(self.facts(with_children(s, tuple(map(self.block, inner))) if inner else s))
        return tuple(f.stmt for f in out)

    def place(self, s: Facts, out: list[Facts]) -> None:
        """The region behind what comes before it, or in a launch there."""
        found: list[tuple[int, int, tuple[Facts, ...]]] = []  # blocks, place, and what goes ahead of it
        needed = s.needs
        moved: tuple[Facts, ...] = ()
        for i in reversed(range(len(out))):
            x = out[i]
            if not needed.isdisjoint(x.defines):
                if not x.pure:
                    break
                moved = (x, *moved)
                needed |= x.needs
            elif x.touched.conflicts(s.touched):
                break
            elif x.takes(s):
                found.append((x.blocks, i, moved))
        if not found:
            out.append(s)
            return
        _, at, ahead = min(found, key=lambda f: (f[0], -f[1]))
        rest = [x for x in out[at + 1 :] if not any(x is y for y in ahead)]
        out[at:] = [*ahead, self.facts(Group(False, (*out[at].parts, *s.parts), out[at].stmt.span)), *rest]

    # ---------------------------------------------------------------------------------------- facts
    def facts(self, s: Stmt) -> Facts:
        inside = tuple(walk((s,)))
        defines = frozenset(v for x in inside for v in (*defs(x), *inner_defs(x)))
        needs = frozenset(uses((s,))) | frozenset(w for v in defines for w in in_type(v))
        found = touched(inside, self.roots)
        regions = tuple(x for x in inside if isinstance(x, Region))
        if regions:  # a kernel works out again the scalars that it needs
            found |= Touched(self.behind(needs))
        alone = any(id(r) in self.apart or isinstance(match(r), Product) for r in regions)
        if alone or not isinstance(s, Region | Group):
            return Facts(s, needs, defines, found)
        return Facts(
            s, needs, defines, found, regions, sum(map(self.blocks, regions)), sum(map(large, regions))
        )

    def behind(self, needs: frozenset[Var]) -> frozenset[Var]:
        """The tensors that scalars of the orchestration come from."""
        out: set[Var] = set()
        seen: set[int] = set()
        todo = list(needs)
        while todo:
            at = self.origin.get(todo.pop())
            if at is not None and not isinstance(at, Region) and id(at) not in seen:
                seen.add(id(at))
                out |= touched(walk((at,)), self.roots).reads
                todo += uses((at,))
        return frozenset(out)

    def blocks(self, s: Region) -> int:
        """Blocks of a grid, all that is not constant taken as NOMINAL."""
        return 1 if s.count is None else nominal(s.count, self.origin)


def nominal(x: Expr, origin: Mapping[Var, Stmt] = MappingProxyType({})) -> int:
    """A count, all that is not constant taken as NOMINAL; ``origin`` has the statements of variables."""
    if isinstance(x, Var) and isinstance(bound := origin.get(x), Bind):
        return nominal(bound.value, origin)
    if isinstance(x, Unary) and x.op == "cast":
        return nominal(x.operand, origin)
    if isinstance(x, Binary):
        a, b = nominal(x.lhs, origin), nominal(x.rhs, origin)
        x = binary(x.op, index(a), index(b)) if b or x.op in ("+", "-", "*", "min", "max") else x
    return int(x.value) if isinstance(x, Const) else NOMINAL


def touched(statements: Iterable[Stmt], roots: Mapping[Var, frozenset[Var]]) -> Touched:
    """What statements read and write; ``roots`` has what a tensor variable may name."""
    reads: set[Var] = set()
    writes: set[Var] = set()
    for x in statements:
        if not isinstance(x, Let) or x.op.name in VIEWS:
            continue
        for v in x.args:  # an operand that is a tensor counts as read, one that is written too
            if isinstance(v, Var) and isinstance(v.type, TensorType):
                reads |= roots.get(v, frozenset((v,)))
        for a in x.op.access(x) if isinstance(x.op, OpDef) else ():
            if a.effect is not Effect.READ:
                writes |= roots.get(a.tensor, frozenset((a.tensor,)))
    return Touched(frozenset(reads), frozenset(writes))


def in_type(v: Var) -> Iterator[Var]:
    """Variables that the extents of a tile or tensor depend on."""
    dims = v.type.valid if isinstance(v.type, TileType) else getattr(v.type, "shape", ())
    for d in dims:
        if d is not None and not isinstance(d, int):
            yield from free_vars(d)


def large(s: Region) -> bool:
    """Whether it has products, or loads that run ahead of a loop."""
    return any(
        (isinstance(x, Let) and x.op.name in PRODUCTS) or (isinstance(x, For) and x.kind is LoopKind.PIPELINE)
        for x in walk(s.body)
    )
