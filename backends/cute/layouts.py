"""Where the elements of a tile live: in a product's fragments, dealt to the threads, or anywhere.

A product leaves its sums in the registers of ``mma.m16n8k16`` (FRAGMENT): thread (g, t) of a warp holds rows
g and g + 8, columns 2 t and 2 t + 1 of each 16 x 8 piece, and the warps take the pieces of a row in turn.  A
tile that a region loads to compute on, or that a loop carries, is dealt to the threads in runs of neighbours
(DEALT).  What is computed elementwise from such a tile stays with it, and a column beside it, such as a row
statistic, becomes one value in every thread that holds elements of the row; a row beside one dealt likewise.
Everything else is FREE: written where it is needed, or kept in shared memory.  The planner finds which it is
for each tile of a region.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from pypto_models.ir.expr import Expr, Var
from pypto_models.ir.nodes import Block, For, If, Let
from pypto_models.ir.types import BF16, TileType

WARPS = 8
THREADS = 32 * WARPS
MOST = 128  # registers of the fragments of one tile
MOST_DEALT = 64  # of a tile that is dealt out


@dataclass(frozen=True)
class Fragment:
    """The tile [rows, columns] in MMA fragments over the warps of a block, or of one warp."""

    rows: int
    columns: int
    warps: int = WARPS

    @property
    def pieces(self) -> int:
        """16 x 8 pieces of a row of pieces that one warp holds."""
        return -(-self.columns // 8 // self.warps)

    @property
    def registers(self) -> int:
        return self.rows // 16 * self.pieces * 4

    @property
    def row_registers(self) -> int:
        """Rows of which a thread holds elements."""
        return self.rows // 8

    @property
    def guard(self) -> str | None:
        """The condition that element ``{c}`` of the last piece exists; None if all do."""
        return None if self.columns // 8 % self.warps == 0 else f"{{c}} < {self.columns}"

    def row_of(self, i: str) -> str:
        """The place of element ``i``'s row among the thread's rows."""
        return f"2 * ({i} // {4 * self.pieces}) + {i} % 4 // 2"

    def coordinates(self, i: str) -> tuple[str, str]:
        per = 4 * self.pieces
        row = f"lane // 4 + 16 * ({i} // {per}) + 8 * ({i} % 4 // 2)"
        piece = f"(warp + {self.warps} * ({i} % {per} // 4))" if self.warps > 1 else f"({i} % {per} // 4)"
        return row, f"8 * {piece} + 2 * (lane % 4) + {i} % 2"

    def row(self, n: str) -> str:
        """The ``n``-th row of the thread."""
        return f"lane // 4 + 8 * {n}"

    @property
    def rows_beside(self) -> Rows:
        """A column beside it: the same beside all fragments of as many rows."""
        return Rows(Fragment(self.rows, 8, self.warps))

    def like(self, shape: tuple[int, ...]) -> Fragment | None:
        """The fragments of a tile of this shape whose rows are held by the same threads."""
        if len(shape) != 2 or shape[0] != self.rows or shape[1] % 8:
            return None
        other = Fragment(*shape, self.warps)
        return other if other.registers <= MOST else None

    @property
    def leads(self) -> str:
        """True in one of the threads that hold the ``n``-th row."""
        return "(warp == 0) & (lane % 4 == 0)" if self.warps > 1 else "lane % 4 == 0"


@dataclass(frozen=True)
class Dealt:
    """The tile [rows, columns] dealt to all threads, ``run`` neighbours of a row at a time."""

    rows: int
    columns: int
    run: int

    @staticmethod
    def of(shape: tuple[int, ...], longest: int = 8) -> Dealt | None:
        """Runs of up to ``longest`` elements, where there are enough; None for too many."""
        if len(shape) != 2 or shape[1] == 1:
            return None
        rows, columns = shape
        run = next(
            n
            for n in (8, 4, 2, 1)
            if n <= longest and columns % n == 0 and (rows * columns >= n * THREADS or n == 1)
        )
        layout = Dealt(rows, columns, run)
        return layout if layout.registers <= MOST_DEALT else None

    @property
    def registers(self) -> int:
        return -(-self.rows * self.columns // (self.run * THREADS)) * self.run

    @property
    def row_registers(self) -> int:
        return self.registers // self.run

    @property
    def guard(self) -> str | None:
        return None if self.rows * self.columns % (self.run * THREADS) == 0 else f"{{r}} < {self.rows}"

    def row_of(self, i: str) -> str:
        return f"{i} // {self.run}"

    def coordinates(self, i: str) -> tuple[str, str]:
        if self.stays:
            column = self.start[1] if self.run == 1 else f"{self.start[1]} + {i} % {self.run}"
            return self.row(f"({i} // {self.run})"), column
        at = self._at(f"{i} // {self.run}")
        row = "Int32(0)" if self.rows == 1 and self.guard is None else f"{at} // {self.columns}"
        column = at if self.rows == 1 else f"{at} % {self.columns}"
        return row, column if self.run == 1 else f"{column} + {i} % {self.run}"

    def row(self, n: str) -> str:
        if self.stays:
            return f"{self.start[0]} + {self.step} * {n}"
        return f"{self._at(n)} // {self.columns}"

    @property
    def stays(self) -> bool:
        """Whether all elements of a thread lie in the same ``run`` columns."""
        return self.rows > 1 and THREADS * self.run % self.columns == 0

    @property
    def start(self) -> tuple[str, str]:
        """Where columns stay: the first element of a thread."""
        own = f"tid * {self.run}"
        return f"{own} // {self.columns}", f"{own} % {self.columns}"

    @property
    def step(self) -> int:
        """Where columns stay: rows from one run of a thread to its next."""
        return THREADS * self.run // self.columns

    @property
    def period(self) -> int:
        """Where columns stay: threads from one to the next that holds the same columns."""
        return self.columns // self.run

    def _at(self, n: str) -> str:
        start = f"(tid + {THREADS} * ({n}))"
        return start if self.run == 1 else f"({start} * {self.run})"

    def like(self, shape: tuple[int, ...]) -> Dealt | None:
        """As :meth:`Fragment.like`."""
        return self if shape == (self.rows, self.columns) else None

    @property
    def leads(self) -> str:
        return f"({self._at('{n}')} % {self.columns} == 0) & ({{r}} < {self.rows})"


@dataclass(frozen=True)
class Rows:
    """A column beside ``of``: each thread holds the values of the rows of which it holds elements."""

    of: Fragment | Dealt

    @property
    def registers(self) -> int:
        return self.of.row_registers

    def beside(self, other: Layout) -> bool:
        """Whether it lies beside a tile: fragments of equally many rows divide them alike."""
        if isinstance(self.of, Fragment) and isinstance(other, Fragment):
            return (self.of.rows, self.of.warps) == (other.rows, other.warps)
        return self.of == other


@dataclass(frozen=True)
class Columns:
    """A row beside ``of``, whose columns stay: each thread holds the values of its own columns."""

    of: Dealt

    @property
    def run(self) -> int:
        return self.of.run

    @property
    def registers(self) -> int:
        return self.run

    def column(self, n: str) -> str:
        """The ``n``-th column of the thread."""
        return f"{self.of.start[1]} + {n}"

    @property
    def leads(self) -> str:
        """True in one of the threads that hold a column."""
        return f"tid < {self.of.period}"


Spread: TypeAlias = "Fragment | Dealt"
Beside: TypeAlias = "Rows | Columns"
Layout: TypeAlias = "Fragment | Dealt | Rows | Columns | None"  # None: FREE

POINTWISE = frozenset({
    "add", "sub", "mul", "div", "maximum", "minimum", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "recip",
    "cast", "cmp", "move", "set_validshape", "fillpad", "row_expand_add", "row_expand_sub",
    "row_expand_mul", "row_expand_div", "col_expand_add", "col_expand_sub", "col_expand_mul",
    "col_expand_div", "row_expand", "col_expand",
})  # fmt: skip
ROW_STATISTICS = frozenset({"row_sum", "row_max", "row_min"})
COLUMN_STATISTICS = frozenset({"col_sum", "col_max", "col_min"})


def product_layout(let: Let, warps: int = WARPS) -> Layout:
    """The fragments of a product that tensor cores take, else FREE."""
    out, a, b = let.result.type, *(let.arg(n).type for n in ("lhs", "rhs"))  # type: ignore[union-attr]
    assert isinstance(out, TileType) and isinstance(a, TileType) and isinstance(b, TileType)
    rows, columns = out.shape
    depth = a.shape[0 if let.arg("a_trans") else 1]
    if not (a.dtype == b.dtype == BF16 and out.dtype.is_float):
        return None
    if rows % 16 or columns % 8 or depth % 16:
        return None
    layout = Fragment(rows, columns, warps)
    return layout if layout.registers <= MOST else None


def of_the_block(layout: Layout) -> Layout:
    """The layout of what the warps leave of tiles of their own, when it is joined."""
    if isinstance(layout, Rows) and isinstance(layout.of, Fragment):
        return replace(layout.of, warps=WARPS).rows_beside
    return replace(layout, warps=WARPS) if isinstance(layout, Fragment) else None


def join(a: Layout, b: Layout) -> Layout:
    """The layout of a value that is one or the other; FREE values adapt, and rows to a row that is dealt."""
    if isinstance(a, Columns) and isinstance(b, Dealt):
        return b
    if isinstance(a, Dealt) and isinstance(b, Columns):
        return a
    return a if b is None or a == b else b if a is None else None


class Planner:
    """Layouts by variable; ``of(var)`` is FREE for one that it never saw.

    ``uses`` counts readers.  Where no product gives the layout, tiles that are loaded are dealt out.  In the
    loops and branches of ``turns``, by identity, a warp has tiles of its own (turns.py).
    """

    def __init__(self, uses: Mapping[Expr, int], products: bool, turns: Container[int] = frozenset()) -> None:
        self.layouts: dict[Var, Layout] = {}
        self.uses = uses
        self.products = products
        self.turns = turns
        self.warps = WARPS  # that share a tile
        self.longest = 8  # run of what is dealt
        self.beside: Mapping[Var, Beside] = {}  # layouts of loads that tiles need beside them (beside.py)

    def of(self, x: object) -> Layout:
        return self.layouts.get(x) if isinstance(x, Var) else None

    def block(self, body: Block) -> None:
        for s in body:
            if isinstance(s, Let):
                for r in s.results:
                    if isinstance(r.type, TileType):
                        self.layouts[r] = self.let(s, r.type)
            elif isinstance(s, For):
                self.loop(s)
            elif isinstance(s, If):
                self.warps = 1 if id(s) in self.turns else self.warps
                self.block(s.then)
                self.block(s.orelse)
                self.warps = WARPS if id(s) in self.turns else self.warps
                for m in s.merged:
                    if isinstance(m.result.type, TileType):
                        self.layouts[m.result] = join(self.of(m.then), self.of(m.orelse))

    def loop(self, s: For) -> None:
        """What a loop carries lives where its next value does, found by repeating the body."""
        carried = {c.param: c for c in s.carried if isinstance(c.param.type, TileType)}
        if id(s) in self.turns:
            self.warps = 1
            self.settle(s, dict.fromkeys(carried))
            self.warps = WARPS
            self.layouts.update((c.result, of_the_block(self.of(c.param))) for c in carried.values())
            return
        start = {p: self.of(c.init) for p, c in carried.items()}
        found = self.settle(s, start)
        if not self.products and all(x is None or isinstance(x, Dealt | Columns) for x in found.values()):
            widest = max(
                (p.type for p in carried if isinstance(p.type, TileType)),
                key=lambda t: t.elements,
                default=None,
            )
            beside = Dealt.of(widest.shape, self.longest) if widest is not None else None
            if beside is not None:
                dealt: dict[Var, Layout] = {p: placed(p.type, beside) for p in carried}  # type: ignore[arg-type]
                if self.settle(s, dealt) == dealt:
                    found = dealt
        self.settle(s, found)
        for c in carried.values():
            self.layouts[c.result] = self.of(c.param)

    def settle(self, s: For, start: Mapping[Var, Layout]) -> dict[Var, Layout]:
        """The layouts of what the loop carries, from ``start`` on, when another trip changes nothing."""
        now = dict(start)
        tiles = [c for c in s.carried if isinstance(c.param.type, TileType)]
        for _ in range(len(tiles) + 2):
            self.layouts.update(now)
            self.block(s.body)
            after = {c.param: join(self.of(c.next), now[c.param]) for c in tiles}
            if after == now:
                break
            now = after
        self.layouts.update(now)
        return now

    def let(self, s: Let, t: TileType) -> Layout:
        name = s.op.name
        if name in ("matmul", "matmul_acc"):
            return product_layout(s, self.warps)
        if name == "load":
            return None if self.products else self.beside.get(s.result) or Dealt.of(t.shape, self.longest)
        if name in ROW_STATISTICS:
            x = self.of(s.args[0])
            return x.rows_beside if isinstance(x, Fragment) else None
        if name in COLUMN_STATISTICS:
            x = self.of(s.args[0])
            return Columns(x) if isinstance(x, Dealt) and x.stays and t.dtype.is_float else None
        if name not in POINTWISE:
            return None
        first = self.of(s.args[0])
        second = self.of(s.args[1]) if len(s.args) > 1 else None
        if name.startswith("row_expand"):
            if first is None and isinstance(second, Rows):
                return second.of.like(t.shape)
            return first
        if name.startswith("col_expand"):
            if first is None and isinstance(second, Columns):
                return second.of.like(t.shape)
            if first is None and isinstance(second, Dealt) and t.shape == (1, second.columns):
                return second
            return first
        return join(first, second)


def placed(t: TileType, beside: Dealt) -> Layout:
    """The layout of a tile that a loop carries together with one dealt as ``beside``."""
    if t.shape == (beside.rows, beside.columns):
        return beside
    if t.shape == (1, beside.columns) and beside.stays:
        return Columns(beside)
    return Rows(beside) if t.shape == (beside.rows, 1) else None
