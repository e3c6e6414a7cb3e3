"""The facts of a contraction that may be re-blocked, or the ops that forbid it.

A region is a contraction if one loop with a constant trip count builds all of its accumulators from tiles
that it loads, column blocks of equal width cover the output along the only axis of the grid, and everything
else in it works column by column.  Then columns and K may be dealt out anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NoReturn

from ..errors import Span
from ..ir.expr import Const, Expr, Var, as_dim, substitute
from ..ir.graph import Access, AxisIndex
from ..ir.nodes import For, If, Let, Unit
from ..ir.rewrite import arg_exprs, walk
from ..ir.types import TensorType, TileType
from ..ops import REGISTRY, OpDef
from .carried import Flow, flow
from .domain import InnerLoop, RegionDomain, Step
from .record import Weight

_PRODUCTS = (REGISTRY["matmul"], REGISTRY["matmul_acc"])


@dataclass(frozen=True)
class Contraction:
    """The operands of a contraction as the program stores them.

    ``rows`` of the x tile, ``n`` columns in all, ``k`` elements; ``read_only`` tensors no task writes.
    """

    weights: tuple[Weight, ...]
    x: str
    x_major: Literal["k", "row"]
    x_produced: bool
    rows: int
    n: int
    k: int
    element_bytes: int
    read_only: tuple[str, ...]


class Fixed(Exception):
    """An op that forbids to re-block."""

    def __init__(self, op: str, span: Span, why: str) -> None:
        super().__init__(why)
        self.step = Step(op, span, why)


def contraction(domain: RegionDomain) -> Contraction | tuple[Step, ...]:
    """The facts, or what forbids it: at least one op with its line and reason."""
    if not domain.accumulators:
        span = domain.task.span
        return (Step("region", span, "it has no matrix product"), *domain.column_blockers[:1])
    if domain.column_blockers:
        return domain.column_blockers
    try:
        return _Reader(domain).read()
    except Fixed as found:
        return (found.step,)


class _Reader:
    def __init__(self, domain: RegionDomain) -> None:
        self.domain, self.task = domain, domain.task
        self.flow: Flow = flow(domain.task.region)
        self.span = domain.task.span
        self.loop = self._loop()
        self.trips = self.loop.loop.trips
        self.block = self._block()
        self.columns: set[int] = set()

    def read(self) -> Contraction:
        self._no_other_work()
        pairs = self._pairs()
        weights, xs = [w for w, _, _ in pairs], {(x, major) for _, x, major in pairs}
        if len(xs) != 1:
            self.fail("products of different operands share no stream of weights")
        ((x, x_major),) = xs
        sizes = {_element_bytes(v) for v in (x.tensor, *(a.tensor for a in self._weight_accesses))}
        if len(sizes) != 1:
            self.fail("its operands have elements of different sizes")
        if len({w.major for w in weights}) != 1:
            self.fail("its weights are stored in different orders")
        shapes = {a.shape for a in self.domain.accumulators}
        if len(shapes) != 1:
            self.fail("its accumulators have different shapes")
        ((rows, columns),) = shapes
        self._column_by_column(columns)
        if len(self.columns) != 1:
            self.fail(f"its operands have different numbers of columns: {sorted(self.columns)}")
        produced = any(o.tensor is x.tensor and o.producers for o in self.domain.operands)
        read_only = {o.tensor.name for o in self.domain.operands if o.role == "weight"}
        return Contraction(
            tuple(weights), x.tensor.name, x_major, produced, rows, self.columns.pop(),
            self._k_tile * int(self.trips), sizes.pop(), tuple(sorted(read_only)),  # type: ignore[arg-type]
        )  # fmt: skip

    def fail(self, why: str, op: str = "region", span: Span | None = None) -> NoReturn:
        raise Fixed(op, span or self.span, why)

    # ---- the shape of the region
    def _loop(self) -> InnerLoop:
        loops = self.domain.loops
        found = [x for x in loops if x.kind == "contraction"]
        if len(found) != 1 or {a.loop for a in self.domain.accumulators} != {found[0].loop.var.name}:
            raise Fixed("region", self.span, "no one loop builds all of its products")
        for x in loops:
            if x is not found[0]:
                raise Fixed(
                    "loop", x.loop.span, f"the loop over {x.loop.var.name} stands beside the contraction"
                )
        loop = found[0].loop
        if not isinstance(loop.trips, int) or loop.step is None or not loop.start.is_constant:
            raise Fixed("loop", loop.span, "its trip count is only known at run time")
        return found[0]

    def _block(self) -> Var | None:
        grid = self.task.grid
        if len(grid) > 1:
            raise Fixed("grid", self.span, f"its grid has {len(grid)} axes")
        if any(not isinstance(g.extent, int) for g in grid):
            raise Fixed("grid", self.span, "the number of its blocks is only known at run time")
        return grid[0].var if grid else None

    def _blocks(self) -> int:
        return int(self.task.grid[0].extent) if self.task.grid else 1  # type: ignore[arg-type]

    def _no_other_work(self) -> None:
        """No branch but that of the first trip, no op on tiles in the loop, no arithmetic with the block."""
        source = self._source()
        inside = {id(s) for s in walk(source.body)}
        for s in walk(self.task.region.body):
            if isinstance(s, If) and (id(s) not in inside or self.flow.first_trip(s.cond, source) is None):
                self.fail("what it does depends on a condition", "if", s.span)
            if not isinstance(s, Let) or not isinstance(s.op, OpDef) or s.op in _PRODUCTS or s.op.access(s):
                continue
            if (
                id(s) in inside
                and s.op.unit is Unit.VEC
                and any(isinstance(v.type, TileType) for v in s.results)
            ):
                self.fail("it works on tiles inside of the contraction loop", s.op.name, s.span)
            scalars = (x for a in s.args for x in arg_exprs(a))
            if self.block is not None and any(self._depends_on_block(x) for x in scalars):
                self.fail("it computes with the number of the block", s.op.name, s.span)

    def _depends_on_block(self, x: Expr) -> bool:
        tile = isinstance(x, Var) and isinstance(x.type, TileType | TensorType)
        return not tile and self.block is not None and self.flow.reaches(x, frozenset({self.block}))

    def _source(self) -> For:
        return self.flow.loops[self.loop.loop.var]

    # ---- the products
    def _pairs(self) -> list[tuple[Weight, Access, Literal["k", "row"]]]:
        """For each accumulator its weight and its x."""
        reads = self._reads_by_let()
        self._weight_accesses: list[Access] = []
        found: dict[int, tuple[Weight, Access, Literal["k", "row"]]] = {}
        for s in walk(self.task.region.body):
            if not isinstance(s, Let) or s.op not in _PRODUCTS:
                continue
            lhs, rhs = (self._load(s, name, reads) for name in ("lhs", "rhs"))
            at = self._accumulator_of(s)
            x_major: Literal["k", "row"] = "row" if s.arg("a_trans") else "k"
            weight = self._weight(rhs, bool(s.arg("b_trans")), at, s)
            self._x(lhs, x_major, s)
            if at in found and (found[at][0] != weight or found[at][1].index != lhs.index):
                self.fail("an accumulator takes more than one product", s.op.name, s.span)
            if at not in found:
                self._weight_accesses.append(rhs)
            found[at] = (weight, lhs, x_major)
        return [found[i] for i in sorted(found)]

    def _accumulator_of(self, s: Let) -> int:
        names = [a.name for a in self.domain.accumulators]
        for c in self._source().carried:
            if c.result.name in names and self._makes(c.next, s):
                return names.index(c.result.name)
        raise Fixed(s.op.name, s.span, "its result is no accumulator of the loop")

    def _makes(self, x: Expr, s: Let) -> bool:
        """True if ``s`` is on the way to the value ``x``, through joins only."""
        if not isinstance(x, Var):
            return False
        d = self.flow.source.get(x)
        if d is s:
            return True
        if isinstance(d, Let):
            acc = d.arg("acc") if d.op is _PRODUCTS[1] else None
            return isinstance(acc, Var) and self._makes(acc, s)
        if isinstance(d, tuple) and isinstance(d[0], If):
            return self._makes(d[1].then, s) or self._makes(d[1].orelse, s)
        return False

    def _reads_by_let(self) -> dict[int, Access]:
        by_place: dict[tuple[str, Span], list[Access]] = {}
        for a in self.task.reads:
            if not a.launch:
                by_place.setdefault((a.op, a.span), []).append(a)
        lets: dict[tuple[str, Span], list[Let]] = {}
        for s in walk(self.task.region.body):
            if isinstance(s, Let) and isinstance(s.op, OpDef) and s.op.name == "load":
                lets.setdefault((s.op.name, s.span), []).append(s)
        out: dict[int, Access] = {}
        for place, group in lets.items():
            records = by_place.get(place, [])
            if len(records) == len(group):
                out |= {id(s): a for s, a in zip(group, records, strict=True)}
        return out

    def _load(self, s: Let, name: str, reads: dict[int, Access]) -> Access:
        x = s.arg(name)
        source = self.flow.source.get(x) if isinstance(x, Var) else None
        while isinstance(source, Let) and source.op.name == "move" and isinstance(source.args[0], Var):
            source = self.flow.source.get(source.args[0])
        if not isinstance(source, Let) or source.op.name != "load":
            op = source.op.name if isinstance(source, Let) else "a branch or loop"
            raise Fixed(s.op.name, s.span, f"{name} is made by {op}, not loaded")
        found = reads.get(id(source))
        if found is None or len(found.index) != 2:
            raise Fixed("load", source.span, "what it loads is not one box of one matrix")
        return found

    def _weight(self, a: Access, b_trans: bool, accumulator: int, s: Let) -> Weight:
        n_axis, k_axis = (0, 1) if b_trans else (1, 0)
        n, k = a.index[n_axis], a.index[k_axis]
        row_start, column_start = self._start(n, self.block, a, "block"), self._start(k, self._k, a, "k")
        pitch = a.tensor.type.shape[1] if isinstance(a.tensor.type, TensorType) else None
        if not isinstance(pitch, int):
            raise Fixed(a.op, a.span, f"the rows of {a.tensor.name} have a run-time length")
        begin = column_start + (k.start.coefficient(self._k) * self.loop.loop.start.const)
        first = (row_start, begin) if b_trans else (begin, row_start)
        return Weight(
            a.tensor.name, "k" if b_trans else "n", first[0], first[1], pitch * a.dtype.bytes,
            accumulator, a.span.line,
        )  # fmt: skip

    def _x(self, a: Access, major: Literal["k", "row"], s: Let) -> None:
        row, k = (a.index[0], a.index[1]) if major == "k" else (a.index[1], a.index[0])
        self._start(k, self._k, a, "k")
        if not row.start.is_constant:
            raise Fixed(a.op, a.span, "the rows of the left operand move with the block")

    def _start(self, x: AxisIndex, mover: Var | None, a: Access, what: str) -> int:
        """The constant part of a start that the mover moves by its own extent, and nothing else."""
        others = [atom for atom, _ in x.start.terms if atom is not mover]
        step = self.loop.loop.step if mover is self._k else (self.task.grid[0].step if self.task.grid else 1)
        moved = mover is None or x.start.coefficient(mover) * (step or 0) == x.limit
        if others or not moved or x.limit is None:
            raise Fixed(a.op, a.span, f"{a.tensor.name} does not move by whole tiles with each {what}")
        if mover is self.block:
            self.columns.add(self._valid(x, x.limit, a))
            if mover is not None and x.hull[0] != x.start.const:
                raise Fixed(a.op, a.span, "the blocks are not numbered from 0")
        elif x.extent != x.limit:
            raise Fixed(a.op, a.span, f"how much of {a.tensor.name} is valid changes with each {what}")
        return x.start.const

    def _valid(self, x: AxisIndex, tile: int, a: Access) -> int:
        """Columns that all blocks together have: whole tiles, the last one cut off at most."""
        if isinstance(x.extent, int) or self.block is None:
            found = [x.extent] * self._blocks()
        else:
            found = [as_dim(substitute(x.extent, {self.block: Const(i)})) for i in range(self._blocks())]
        *full, last = found
        if any(n != tile for n in full) or not isinstance(last, int) or not 0 < last <= tile:
            raise Fixed(a.op, a.span, f"how much of {a.tensor.name} is valid is no constant")
        return tile * len(full) + last

    @property
    def _k(self) -> Var:
        return self.loop.loop.var

    @property
    def _k_tile(self) -> int:
        a = self._weight_accesses[0]
        weight_k = [x.limit for x in a.index if x.start.coefficient(self._k)]
        (limit,) = weight_k or [None]
        if limit is None:
            raise Fixed(a.op, a.span, "its K tile has no constant extent")
        return limit

    # ---- everything else
    def _column_by_column(self, columns: int) -> None:
        """Other operands and all results must move with the columns."""
        for a in (*self.task.reads, *self.task.writes):
            if a.launch or not a.index or self._k in a.loops or all(t == 1 for t in a.tile):
                if not a.index and not a.launch:
                    raise Fixed(a.op, a.span, f"any element of {a.tensor.name} may be meant")
                continue
            last = a.index[-1]
            if a.effect == "read" and last.limit == 1 and self.block not in set(last.start.variables()):
                continue  # one value for a whole row
            if a.effect not in ("read", "write"):
                raise Fixed(a.op, a.span, "it is atomic")
            self._start(last, self.block, a, "block")
            if last.limit != columns:
                raise Fixed(a.op, a.span, f"it takes {last.limit} columns where a block has {columns}")
            if self.block is not None and any(self.block in set(x.start.variables()) for x in a.index[:-1]):
                raise Fixed(a.op, a.span, f"the rows of {a.tensor.name} move with the block")


def _element_bytes(v: Var) -> int:
    return v.type.dtype.bytes if isinstance(v.type, TensorType) else 0
