"""How values flow through a region: what a loop carries, and what becomes of the matmul results.

A carried value is

* a ``contraction`` if each trip adds one ``matmul_acc`` to it and nothing else reads it;
* a ``reduction`` if each trip combines it with a value that depends on nothing carried, by an op whose
  ``OpDef.combine`` is declared.  Sums of half-precision tiles round in every trip and do not count;
* ``sequential`` otherwise, as the coupled values of an online softmax are.

A branch that starts the value anew in the first trip (``if k == 0``, ``init_cond``) belongs to either kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..ir.expr import Binary, Const, Expr, Var, free_vars
from ..ir.nodes import Bind, Carried, For, If, Let, Merged, Region, Stmt, Unit
from ..ir.rewrite import operands, walk
from ..ir.types import TileType
from ..ops import REGISTRY, OpDef

LoopClass: TypeAlias = Literal["contraction", "reduction", "independent", "sequential"]
Source: TypeAlias = "Let | Bind | tuple[For, Carried] | tuple[If, Merged]"

MATMUL, MATMUL_ACC = REGISTRY["matmul"], REGISTRY["matmul_acc"]


@dataclass(frozen=True)
class CarriedValue:
    """One value that a loop carries, its class, and the op that combines it (empty for sequential)."""

    name: str
    kind: LoopClass
    op: str
    line: int


@dataclass(frozen=True)
class Chain:
    """The statements that take a carried value from the start to the end of a trip, and the op they apply."""

    op: str
    links: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Flow:
    """Definitions of a region's variables."""

    region: Region
    source: dict[Var, Source] = field(default_factory=dict)
    loops: dict[Var, For] = field(default_factory=dict)

    def reaches(self, x: Expr, targets: frozenset[Var], seen: set[Var] | None = None) -> bool:
        """True if the value of ``x`` depends on one of the targets."""
        seen = set() if seen is None else seen
        for v in free_vars(x):
            if v in targets:
                return True
            if v in seen:
                continue
            seen.add(v)
            if any(self.reaches(y, targets, seen) for y in self._inputs(v)):
                return True
        return False

    def _inputs(self, v: Var) -> Iterator[Expr]:
        s = self.source.get(v)
        if isinstance(s, Let | Bind):
            yield from operands(s)
        elif s is not None and isinstance(s[1], Carried):
            # The trip decides a carried value, and so does what the loop's bounds depend on
            yield from (s[0].var, s[1].init, s[1].next)
        elif s is not None and isinstance(s[0], If):
            yield from (s[0].cond, s[1].then, s[1].orelse)
        elif v in self.loops:
            yield from (self.loops[v].start, self.loops[v].stop)

    # ------------------------------------------------------------------------------------------- loops
    def carried(self, loop: For) -> tuple[CarriedValue, ...]:
        return tuple(self._classify(loop, c) for c in loop.carried)

    def _classify(self, loop: For, c: Carried) -> CarriedValue:
        params = frozenset(x.param for x in loop.carried)
        chain = self._chain(c.next, c.param, loop, params)
        line = loop.span.line
        if chain is None or not chain.op or self._read_elsewhere(loop, c.param, chain):
            return CarriedValue(c.result.name, "sequential", "", line)
        kind: LoopClass = "contraction" if chain.op == MATMUL_ACC.name else "reduction"
        return CarriedValue(c.result.name, kind, chain.op, line)

    def _read_elsewhere(self, loop: For, param: Var, chain: Chain) -> bool:
        target = frozenset({param})
        return any(
            self.reaches(x, target) for s in walk(loop.body) if id(s) not in chain.links for x in operands(s)
        )

    def _chain(self, x: Expr, param: Var, loop: For, params: frozenset[Var]) -> Chain | None:
        """How ``x`` is built from ``param``; None if not by one associative op."""
        if x is param:
            return Chain("")
        s = self.source.get(x) if isinstance(x, Var) else None
        if isinstance(s, Let):
            return self._chain_op(s, param, loop, params)
        if isinstance(x, Binary) and x.op in ("+", "min", "max") and x.dtype.is_integer:
            return self._chain_pair(x.op, x.lhs, x.rhs, param, loop, params, frozenset())
        if isinstance(s, Bind):
            inner = self._chain(s.value, param, loop, params)
            return inner and Chain(inner.op, inner.links | {id(s)})
        if s is not None and isinstance(s[1], Merged) and isinstance(s[0], If):
            return self._chain_branch(s[0], s[1], param, loop, params)
        # A loop that has ended; another value that a running loop carries is not built from this one
        if s is not None and isinstance(s[1], Carried) and isinstance(s[0], For) and x is s[1].result:
            start = self._chain(s[1].init, param, loop, params)
            inside = self._chain(s[1].next, s[1].param, s[0], params | {s[1].param})
            both = _join(start, inside)
            return both and Chain(both.op, both.links | {id(s[0])})
        return None

    def _chain_op(self, s: Let, param: Var, loop: For, params: frozenset[Var]) -> Chain | None:
        if s.op is MATMUL_ACC:
            acc, again = s.arg("acc"), s.arg("init_cond")
            free = not any(self.reaches(a, params) for a in s.args[1:3] if isinstance(a, Expr))
            fresh = again is None or (isinstance(again, Expr) and self.first_trip(again, loop) is True)
            if not isinstance(acc, Expr) or not free or not fresh:
                return None
            return _join(self._chain(acc, param, loop, params), Chain(s.op.name, frozenset({id(s)})))
        if not isinstance(s.op, OpDef) or s.op.combine is None or len(s.args) != 2:
            return None
        t = s.result.type
        rounds = isinstance(t, TileType) and t.dtype.is_float and t.dtype.bytes < 4
        if rounds and s.op.combine in ("add", "mul"):
            return None
        lhs, rhs = s.args
        if not isinstance(lhs, Expr) or not isinstance(rhs, Expr):
            return None
        return self._chain_pair(s.op.combine, lhs, rhs, param, loop, params, frozenset({id(s)}))

    def _chain_pair(
        self, op: str, lhs: Expr, rhs: Expr, param: Var, loop: For, params: frozenset[Var],
        link: frozenset[int],
    ) -> Chain | None:  # fmt: skip
        for own, other in ((lhs, rhs), (rhs, lhs)):
            if not self.reaches(other, params):
                return _join(self._chain(own, param, loop, params), Chain(op, link))
        return None

    def _chain_branch(self, s: If, m: Merged, param: Var, loop: For, params: frozenset[Var]) -> Chain | None:
        sides = [self._chain(x, param, loop, params) for x in (m.then, m.orelse)]
        links = frozenset({id(s)})
        if sides[0] is not None and sides[1] is not None:
            both = _join(sides[0], sides[1])
            return both and Chain(both.op, both.links | links)
        first = self.first_trip(s.cond, loop)
        if first is None:
            return None
        fresh, rest = (m.then, sides[1]) if first else (m.orelse, sides[0])
        if rest is None or self.reaches(fresh, params):
            return None
        return Chain(rest.op, rest.links | links)

    def first_trip(self, cond: Expr, loop: For) -> bool | None:
        """True if ``cond`` says "this is the first trip", False if "it is a later one", None if neither."""
        s = self.source.get(cond) if isinstance(cond, Var) else None
        if isinstance(s, Bind):
            return self.first_trip(s.value, loop)
        if not isinstance(cond, Binary):
            return None
        sides = {cond.lhs, cond.rhs}
        if sides != {loop.var, loop.start}:
            return None
        rising = isinstance(loop.step, Const) and loop.step.value > 0
        later = rising and (cond.op, cond.lhs) in ((">", loop.var), ("<", loop.start))
        return True if cond.op == "==" else False if cond.op == "!=" or later else None

    # ------------------------------------------------------------------------------------ accumulators
    def accumulators(self) -> tuple[tuple[Var, For | None], ...]:
        """Finished matmul results: of a contraction loop, or of a product outside of any."""
        found: dict[Var, For | None] = {}
        passed_on: set[Expr] = set()
        in_chain: set[int] = set()
        for loop in self.loops.values():
            params = frozenset(c.param for c in loop.carried)
            for c, value in zip(loop.carried, self.carried(loop), strict=True):
                chain = self._chain(c.next, c.param, loop, params)
                if value.kind == "contraction" and chain is not None:
                    found[c.result] = loop
                    passed_on |= {c.init, c.next}
                    in_chain |= chain.links
        for s in walk(self.region.body):
            if isinstance(s, If) and id(s) in in_chain:
                passed_on |= {x for m in s.merged for x in (m.then, m.orelse)}
            if isinstance(s, Let) and s.op in (MATMUL, MATMUL_ACC):
                if s.op is MATMUL_ACC and isinstance(s.arg("acc"), Var):
                    passed_on.add(s.arg("acc"))  # type: ignore[arg-type]
                if id(s) not in in_chain:
                    found.setdefault(s.result, None)
        order = [v for s in walk(self.region.body) for v in _results(s) if v in found and v not in passed_on]
        return tuple((v, found[v]) for v in order)

    def epilogue(self) -> tuple[Let, ...]:
        """Vector ops on accumulator values, in program order, up to the stores and the next matmul."""
        live: set[Expr] = {v for v, _ in self.accumulators()}
        found: list[Let] = []
        for s in walk(self.region.body):
            if isinstance(s, For):
                live |= {c.param for c in s.carried if c.init in live}
            if not isinstance(s, Let) or not isinstance(s.op, OpDef) or s.op.unit is Unit.CUBE:
                continue
            self._pass_joins(live)
            if any(a in live for a in s.args if isinstance(a, Var)):
                live.update(s.results)
                if s.op.unit is Unit.VEC:
                    found.append(s)
        return tuple(found)

    def _pass_joins(self, live: set[Expr]) -> None:
        """A joined value is live if one of its sides is; contraction results are sources of their own."""
        for v, s in self.source.items():
            if isinstance(s, tuple) and v not in live:
                sides = (s[1].init, s[1].next) if isinstance(s[1], Carried) else (s[1].then, s[1].orelse)
                if any(x in live for x in sides):
                    live.add(v)


def _results(s: Stmt) -> tuple[Var, ...]:
    if isinstance(s, For):
        return tuple(c.result for c in s.carried)
    return s.results if isinstance(s, Let) else ()


def _join(a: Chain | None, b: Chain | None) -> Chain | None:
    """Two parts of one chain: the same op, or no op in one of them."""
    if a is None or b is None or (a.op and b.op and a.op != b.op):
        return None
    return Chain(a.op or b.op, a.links | b.links)


def flow(region: Region) -> Flow:
    f = Flow(region)
    for s in walk(region.body):
        if isinstance(s, Let):
            f.source.update(dict.fromkeys(s.results, s))
        elif isinstance(s, Bind):
            f.source[s.var] = s
        elif isinstance(s, For):
            f.loops[s.var] = s
            for c in s.carried:
                f.source[c.param] = f.source[c.result] = (s, c)
        elif isinstance(s, If):
            f.source.update({m.result: (s, m) for m in s.merged})
    return f
