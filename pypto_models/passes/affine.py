"""Where variables come from, affine forms of index expressions, and interval bounds.

Needs: a function in SSA.  Gives: :class:`Definitions`, one table for the whole function.

* ``affine(x)`` writes an integer expression as ``const + sum(c * atom)``.  Named scalars are expanded through
  their definitions, ``//`` and ``%`` by a constant are taken apart where that is exact.
* ``bounds(x)`` gives an inclusive interval; None is "unknown on this side".
* ``tables(x)`` names the tensors whose elements ``x`` depends on: an index with one is data dependent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import InternalError
from ..ir.expr import COMPARISONS, Binary, Const, DimVar, Expr, Unary, Var, as_dim, binary, free_vars, index
from ..ir.graph import Affine, Interval, Loop
from ..ir.nodes import Bind, Block, Carried, For, Function, If, Let, Merged, Region, Scope
from ..ir.rewrite import arg_exprs
from ..ir.types import Dim, ScalarType, TensorType
from ..ops import OpDef

UNKNOWN: Interval = (None, None)


# ------------------------------------------------------------------------------------------- intervals
def _low(*xs: int | None) -> int | None:
    return None if None in xs else min(x for x in xs if x is not None)


def _high(*xs: int | None) -> int | None:
    return None if None in xs else max(x for x in xs if x is not None)


def add(a: Interval, b: Interval) -> Interval:
    return (
        None if a[0] is None or b[0] is None else a[0] + b[0],
        None if a[1] is None or b[1] is None else a[1] + b[1],
    )


def scale(a: Interval, factor: int) -> Interval:
    low, high = a if factor >= 0 else (a[1], a[0])
    return (None if low is None else low * factor, None if high is None else high * factor)


def union(a: Interval, b: Interval) -> Interval:
    return (_low(a[0], b[0]), _high(a[1], b[1]))


def _product(a: Interval, b: Interval) -> Interval:
    if a[0] is None or a[1] is None or b[0] is None or b[1] is None:
        positive = a[0] is not None and a[0] >= 0 and b[0] is not None and b[0] >= 0
        return ((a[0] or 0) * (b[0] or 0), None) if positive else UNKNOWN
    ends = [x * y for x in a for y in b if x is not None and y is not None]
    return (min(ends), max(ends))


def _quotient(a: Interval, b: Interval) -> Interval:
    if b[0] is None or b[0] <= 0:
        return UNKNOWN
    # The largest divisor pulls towards 0, the smallest away from it
    far, near = b[0], b[1]
    low = None if a[0] is None else a[0] // far if a[0] < 0 else 0 if near is None else a[0] // near
    high = None if a[1] is None else a[1] // far if a[1] >= 0 else -1 if near is None else a[1] // near
    return (low, high)


def _remainder(a: Interval, b: Interval) -> Interval:
    if b[0] is None or b[0] <= 0:
        return UNKNOWN
    if a[0] is not None and a[1] is not None and a[0] >= 0 and a[1] < b[0]:
        return a
    high = None if b[1] is None else b[1] - 1
    if a[0] is not None and a[0] >= 0 and a[1] is not None:
        high = a[1] if high is None else min(high, a[1])
    return (0, high)


def _minimum(a: Interval, b: Interval) -> Interval:
    highs = [x for x in (a[1], b[1]) if x is not None]
    return (_low(a[0], b[0]), min(highs) if highs else None)


def _maximum(a: Interval, b: Interval) -> Interval:
    lows = [x for x in (a[0], b[0]) if x is not None]
    return (max(lows) if lows else None, _high(a[1], b[1]))


def bounds(x: Expr | Affine, ranges: Mapping[Var, Interval]) -> Interval:
    """An interval that holds every value of ``x``; ``ranges`` gives those of the variables."""
    if isinstance(x, Affine):
        total: Interval = (x.const, x.const)
        for atom, c in x.terms:
            total = add(total, scale(bounds(atom, ranges), c))
        return total
    if isinstance(x, Const):
        return (int(x.value), int(x.value)) if x.dtype.is_integer else UNKNOWN
    if isinstance(x, DimVar):
        return (1, None)
    if isinstance(x, Var):
        return ranges.get(x, UNKNOWN)
    if isinstance(x, Unary):
        inner = bounds(x.operand, ranges)
        if x.op == "-":
            return scale(inner, -1)
        return (0, 1) if x.op == "not" else inner if _keeps_value(x) else UNKNOWN
    if not isinstance(x, Binary):
        raise InternalError(f"no bounds for {type(x).__name__}")
    if x.op in COMPARISONS or x.op in ("and", "or"):
        return (0, 1)
    a, b = bounds(x.lhs, ranges), bounds(x.rhs, ranges)
    rules = {"*": _product, "//": _quotient, "%": _remainder, "min": _minimum, "max": _maximum, "+": add}
    if x.op == "-":
        return add(a, scale(b, -1))
    return rules[x.op](a, b) if x.op in rules and x.dtype.is_integer else UNKNOWN


def _keeps_value(x: Unary) -> bool:
    """True for a conversion between integers that loses no bits."""
    a, b = x.operand.dtype, x.dtype
    return x.op == "cast" and a.is_integer and b.is_integer and b.bits >= a.bits and b.kind != "uint"


def _fits(x: Unary, value: Interval) -> bool:
    """True for a conversion to a signed type that holds every value of the interval."""
    if x.op != "cast" or x.dtype.kind not in ("int", "index") or value[0] is None or value[1] is None:
        return False
    limit = 1 << (x.dtype.bits - 1)
    return -limit <= value[0] and value[1] < limit


# ----------------------------------------------------------------------------------------- definitions
@dataclass(frozen=True)
class Home:
    """Where a variable is defined: the loops around it, outer first, and the region."""

    loops: tuple[Var, ...] = ()
    region: Region | None = None


@dataclass(frozen=True)
class Definitions:
    """What every variable of a function stands for."""

    function: Function
    lets: dict[Var, Let] = field(default_factory=dict)
    binds: dict[Var, Expr] = field(default_factory=dict)
    loops: dict[Var, For] = field(default_factory=dict)
    carried: dict[Var, tuple[For, Carried]] = field(default_factory=dict)
    merged: dict[Var, tuple[If, Merged]] = field(default_factory=dict)
    homes: dict[Var, Home] = field(default_factory=dict)
    ranges: dict[Var, Interval] = field(default_factory=dict)
    _forms: dict[Var, Affine] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------ affine
    def affine(self, x: Expr | Dim) -> Affine:
        """The affine form of an integer expression, with named scalars expanded."""
        if isinstance(x, int):
            return Affine((), x)
        if isinstance(x, Const):
            if not x.dtype.is_integer:
                raise InternalError(f"{x.value} is not an integer")
            return Affine((), int(x.value))
        if isinstance(x, Var):
            if x not in self._forms:
                value = self.binds.get(x)
                known = value is not None and value.dtype.is_integer
                self._forms[x] = self.affine(value) if known and value is not None else Affine(((x, 1),))
            return self._forms[x]
        if isinstance(x, Unary):
            inner = self.affine(x.operand) if x.operand.dtype.is_integer else Affine(((x.operand, 1),))
            if x.op == "-":
                return inner * -1
            kept = _keeps_value(x) or (x.operand.dtype.is_integer and _fits(x, self.bounds(inner)))
            return inner if kept else Affine(((Unary(x.op, inner.expr(), x.to), 1),))
        if isinstance(x, Binary) and x.dtype.is_integer and x.lhs.dtype.is_integer and x.rhs.dtype.is_integer:
            return self._binary(x.op, self.affine(x.lhs), self.affine(x.rhs))
        return Affine(((x, 1),))

    def _binary(self, op: str, a: Affine, b: Affine) -> Affine:
        if op == "+":
            return a + b
        if op == "-":
            return a - b
        if op == "*" and (a.is_constant or b.is_constant):
            return b * a.const if a.is_constant else a * b.const
        if op in ("//", "%") and b.is_constant and b.const > 0:
            return self._divide(op, a, b.const)
        if op in ("min", "max"):
            low, high = bounds(a - b, self.ranges)
            if high is not None and high <= 0:
                return a if op == "min" else b
            if low is not None and low >= 0:
                return b if op == "min" else a
        x = binary(op, a.expr(), b.expr())
        return Affine((), int(x.value)) if isinstance(x, Const) else Affine(((x, 1),))

    def _divide(self, op: str, a: Affine, d: int) -> Affine:
        """``(d * q + r) // d = q + r // d`` and ``(d * q + r) % d = r % d``, with r as small as possible."""
        q = Affine.of({atom: c // d for atom, c in a.terms if c % d == 0}, a.const // d)
        r = a - q * d
        low, high = bounds(r, self.ranges)
        inside = low is not None and high is not None and low >= 0 and high < d
        if op == "//":
            return q if inside else q + Affine(((binary("//", r.expr(), index(d)), 1),))
        return r if inside else Affine(((binary("%", r.expr(), index(d)), 1),))

    def bounds(self, x: Expr | Affine | Dim) -> Interval:
        return bounds(x if isinstance(x, Affine) else self.affine(x), self.ranges)

    def same(self, atom: Expr, loops: frozenset[Var]) -> bool:
        """True if ``atom`` has one value in two tasks that are in the same trips of ``loops``."""
        return all(
            self.homes.get(v, Home()).region is None and loops.issuperset(self.homes.get(v, Home()).loops)
            for v in free_vars(atom)
        )

    def loop(self, s: For) -> Loop:
        """The loop with its trip count, which is 0 where stop does not lie beyond start."""
        start, step = self.affine(s.start), self.affine(s.step)
        distance = self.affine(s.stop) - start
        if not step.is_constant or step.const == 0:
            trips: Dim = as_dim(binary("//", distance.expr(), step.expr()))
            return Loop(s.var, s.kind, start, None, trips, s.stage, s.span)
        d = step.const
        up = distance if d > 0 else distance * -1
        count = self._divide("//", up + (abs(d) - 1), abs(d))
        low, _ = self.bounds(count)
        if count.is_constant:
            trips = max(0, count.const)
        else:
            trips = count.expr() if low is not None and low >= 0 else binary("max", count.expr(), index(0))
        return Loop(s.var, s.kind, start, d, trips, s.stage, s.span)

    # ------------------------------------------------------------------------------------------ origins
    def roots(self, tensor: Var) -> tuple[Var, ...]:
        """The buffers that a tensor variable may name: parameters and results of ``create``."""
        return tuple(dict.fromkeys(self._sources(tensor, set(), tile=False)))

    def tables(self, x: Expr | Affine) -> tuple[Var, ...]:
        """The tensors whose elements decide the value of ``x``."""
        variables = x.variables() if isinstance(x, Affine) else free_vars(x)
        return tuple(dict.fromkeys(t for v in variables for t in self._sources(v, set(), tile=True)))

    def _sources(self, v: Var, seen: set[Var], tile: bool) -> list[Var]:
        """Buffers behind a variable: of a tensor, those it may name; of a value, those it was loaded from."""
        if v in seen:
            return []
        seen.add(v)
        nexts: list[Expr] = []
        if isinstance(v.type, TensorType) and v not in self.carried and v not in self.merged:
            let = self.lets.get(v)
            alias = let.op.alias if let is not None and isinstance(let.op, OpDef) else None
            if let is None or alias is None:
                return [v]
            nexts = [a for a in (let.arg(alias),) if isinstance(a, Expr)]
        elif v in self.binds:
            nexts = [self.binds[v]]
        elif v in self.carried:
            nexts = [self.carried[v][1].init, self.carried[v][1].next]
        elif v in self.merged:
            nexts = [self.merged[v][1].then, self.merged[v][1].orelse]
        elif v in self.lets and tile:
            let = self.lets[v]
            loaded = [a for a in let.args if isinstance(a, Var) and isinstance(a.type, TensorType)]
            nexts = list(loaded) if loaded else [x for a in let.args for x in arg_exprs(a)]
        return [t for x in nexts for w in free_vars(x) for t in self._sources(w, seen, tile)]


def definitions(fn: Function) -> Definitions:
    """Walk a function once and record where every variable comes from."""
    d = Definitions(fn)
    for p in fn.params:
        _define(d, p.var, Home())
    _walk(d, fn.body, Home())
    return d


def _define(d: Definitions, v: Var, home: Home, interval: Interval | None = None) -> None:
    d.homes[v] = home
    if interval is None and isinstance(v.type, ScalarType):
        interval = {"bool": (0, 1), "uint": (0, None)}.get(v.type.dtype.kind)
    if interval is not None:
        d.ranges[v] = interval


def _walk(d: Definitions, block: Block, home: Home) -> None:
    for s in block:
        if isinstance(s, Let):
            for v in s.results:
                d.lets[v] = s
                _define(d, v, home)
        elif isinstance(s, Bind):
            d.binds[s.var] = s.value
            integer = isinstance(s.var.type, ScalarType) and s.var.type.dtype.is_integer
            _define(d, s.var, home, d.bounds(s.value) if integer else None)
        elif isinstance(s, For):
            inside = Home((*home.loops, s.var), home.region)
            d.loops[s.var] = s
            _define(d, s.var, inside, _loop_range(d, s))
            for c in s.carried:
                d.carried[c.param] = d.carried[c.result] = (s, c)
                _define(d, c.param, inside)
            _walk(d, s.body, inside)
            for c in s.carried:
                _define(d, c.result, home)
        elif isinstance(s, If):
            _walk(d, s.then, home)
            _walk(d, s.orelse, home)
            for m in s.merged:
                d.merged[m.result] = (s, m)
                integer = isinstance(m.result.type, ScalarType) and m.result.type.dtype.is_integer
                _define(d, m.result, home, union(d.bounds(m.then), d.bounds(m.orelse)) if integer else None)
        elif isinstance(s, Region):
            inside = Home(home.loops, s)
            if s.block is not None and s.count is not None:
                _, last = add(d.bounds(s.count), (-1, -1))
                _define(d, s.block, inside, (0, last))
            _walk(d, s.body, inside)
            if s.tid is not None:
                _define(d, s.tid, home)
        elif isinstance(s, Scope):
            _walk(d, s.body, home)


def _loop_range(d: Definitions, s: For) -> Interval:
    """The values of a loop variable in the trips that it makes."""
    start, stop, step = d.affine(s.start), d.affine(s.stop), d.affine(s.step)
    if not step.is_constant:
        low, _ = d.bounds(step)
        rising = low is not None and low > 0
        return (d.bounds(start)[0], add(d.bounds(stop), (-1, -1))[1]) if rising else UNKNOWN
    if start.is_constant and stop.is_constant:
        trips = range(start.const, stop.const, step.const or 1)
        return (min(trips), max(trips)) if len(trips) else (start.const, start.const)
    if step.const > 0:
        return (d.bounds(start)[0], add(d.bounds(stop), (-1, -1))[1])
    return (add(d.bounds(stop), (1, 1))[0], d.bounds(start)[1])


__all__ = ["Affine", "Definitions", "Home", "Interval", "add", "bounds", "definitions", "scale", "union"]
