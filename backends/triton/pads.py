"""The extents of tiles in Triton: powers of two, and what a product asks for.

Tiles that meet element by element have one extent along each axis.  So the axes of all tiles of a region fall
into classes, and a class has the least power of two that holds its elements and, where a product takes or
gives it, the least that a matrix unit takes.
"""

from __future__ import annotations

from collections.abc import Iterable

from pypto_models.ir.expr import Const, Var
from pypto_models.ir.nodes import Arg, Block, For, If, Let, Stmt
from pypto_models.ir.types import INT8, TileType

LEAST = 16  # rows, columns and depth of a product
LEAST_INT8 = 32  # its depth, for bytes
MOVED = frozenset({"load", "full", "create_tile", "extract", "arange", "reshape"})  # extents of their own

Axis = tuple[Var, int]


class Pads:
    """``of(var)``: the extents of a tile of the statements that :meth:`block` has seen."""

    def __init__(self) -> None:
        self.parent: dict[Axis, Axis] = {}
        self.least: dict[Axis, int] = {}

    def of(self, v: Var) -> tuple[int, ...]:
        assert isinstance(v.type, TileType)
        return tuple(self.extent((v, i), d) for i, d in enumerate(v.type.shape))

    def extent(self, axis: Axis, size: int) -> int:
        return max(power(size), self.least.get(self.find(axis), 1))

    def find(self, axis: Axis) -> Axis:
        while (up := self.parent.get(axis, axis)) != axis:
            self.parent[axis] = axis = self.parent.get(up, up)
        return axis

    def join(self, a: Axis, b: Axis) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            self.parent[b] = a
            self.least[a] = max(self.least.get(a, 1), self.least.get(b, 1))

    def together(self, a: Arg, b: Arg, axes: Iterable[int] | None = None) -> None:
        """Two tiles that meet: along ``axes``, or along all if they have the same shape."""
        if not (is_tile(a) and is_tile(b)):
            return
        if axes is None and a.type.shape != b.type.shape:  # type: ignore[union-attr]
            return
        for i in range(len(a.type.shape)) if axes is None else axes:  # type: ignore[union-attr]
            self.join((a, i), (b, i))  # type: ignore[arg-type]

    def at_least(self, axis: Axis, size: int) -> None:
        axis = self.find(axis)
        self.least[axis] = max(self.least.get(axis, 1), size)

    # ---------------------------------------------------------------------------------------- statements
    def block(self, body: Block) -> None:
        for s in body:
            self.stmt(s)

    def stmt(self, s: Stmt) -> None:
        if isinstance(s, Let):
            self.let(s)
        elif isinstance(s, For):
            for c in s.carried:
                for x in (c.init, c.next, c.result):
                    self.together(c.param, x)
            self.block(s.body)
        elif isinstance(s, If):
            for m in s.merged:
                self.together(m.result, m.then)
                self.together(m.result, m.orelse)
            self.block((*s.then, *s.orelse))

    def let(self, s: Let) -> None:
        name, result = s.op.name, s.results[0] if s.results else None
        if result is None or not is_tile(result) or name in MOVED:
            return
        if name in ("matmul", "matmul_acc"):
            self.product(s, result)
        elif name.startswith(("row_expand", "col_expand")):
            self.together(result, s.args[0])
            self.together(result, s.args[1], (0 if name.startswith("row") else 1,))
        elif name.startswith("row_"):
            self.together(result, s.args[0], (0,))
        elif name.startswith("col_"):
            self.together(result, s.args[0], (1,))
        elif name == "transpose":
            self.turned(s, result)
        else:
            for x in s.args:
                self.together(result, x)

    def turned(self, s: Let, result: Var) -> None:
        x = s.args[0]
        assert isinstance(x, Var) and isinstance(x.type, TileType)
        order = list(range(len(x.type.shape)))
        i, j = swapped(s)
        order[i], order[j] = order[j], order[i]
        for at, axis in enumerate(order):
            self.join((result, at), (x, axis))

    def product(self, s: Let, result: Var) -> None:
        lhs, rhs = s.arg("lhs"), s.arg("rhs")
        assert isinstance(lhs, Var) and isinstance(rhs, Var) and isinstance(lhs.type, TileType)
        m, k = ((lhs, 1), (lhs, 0)) if s.arg("a_trans") else ((lhs, 0), (lhs, 1))
        depth, n = ((rhs, 1), (rhs, 0)) if s.arg("b_trans") else ((rhs, 0), (rhs, 1))
        self.join(m, (result, 0))
        self.join(n, (result, 1))
        self.join(k, depth)
        self.at_least(m, LEAST)
        self.at_least(n, LEAST)
        self.at_least(k, LEAST_INT8 if lhs.type.dtype == INT8 else LEAST)
        if s.op.name == "matmul_acc":
            self.together(result, s.arg("acc"))


def swapped(transpose: Let) -> tuple[int, int]:
    """The axes that a transpose exchanges."""
    i, j = (x.value if isinstance(x, Const) else x for x in map(transpose.arg, ("axis1", "axis2")))
    return int(i), int(j)  # type: ignore[arg-type]


def is_tile(x: object) -> bool:
    return isinstance(x, Var) and isinstance(x.type, TileType)


def power(n: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(n - 1, 0).bit_length()
