"""Functions built by hand, for what the front end gives only after passes: tiles split over two lanes.

    b = Builder("kernel")
    x = b.param("x", TensorType((16, 32), FP32))
    out = b.param("out", TensorType((16, 32), FP32), Direction.OUT)
    with b.region(count=2) as block:
        t = b.vec("load", x, (8, 32), (calc("*", block, 8), 0))
        b("store", out, b.vec("exp", t), (calc("*", block, 8), 0))
    fn = b.function()

With ``Builder(split=SplitMode.UP_DOWN)`` the results of ``b.vec`` and of moves to Vec are split, as the split
pass would do; without, the same calls give the unsplit function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pypto_models.errors import NOWHERE, Span, located
from pypto_models.ir.expr import Const, Expr, Var, binary
from pypto_models.ir.nodes import (
    Carried,
    Direction,
    For,
    Function,
    Let,
    LoopKind,
    Param,
    Region,
    RegionKind,
    RegionOptions,
    Stmt,
)
from pypto_models.ir.types import FP32, INDEX, ScalarType, SplitMode, TaskType, TileType, Type
from pypto_models.ops import REGISTRY
from pypto_models.ops.registry import REQUIRED, Kind


def expr(x: Any) -> Expr:
    """Python numbers as constants."""
    if isinstance(x, Expr):
        return x
    return Const(x, FP32) if isinstance(x, float) else Const(x)


def calc(op: str, a: Any, b: Any) -> Expr:
    return binary(op, expr(a), expr(b))


@dataclass
class Loop:
    """A loop under construction: ``values`` are the carried variables, ``next`` what they become."""

    var: Var
    values: tuple[Var, ...]
    next: tuple[Any, ...] = ()
    results: tuple[Var, ...] = ()


class Builder:
    def __init__(self, name: str = "kernel", split: SplitMode = SplitMode.NONE) -> None:
        self.name = name
        self.split = split
        self.params: list[Param] = []
        self.stmts: list[Stmt] = []

    def param(self, name: str, type: Type, direction: Direction = Direction.IN) -> Var:
        var = Var(name, type)
        self.params.append(Param(var, direction))
        return var

    def span(self, line: int) -> Span:
        return Span("kernel.py", line) if line else NOWHERE

    def vec(self, op: str, *args: Any, **keywords: Any) -> Any:
        """Append an op whose result lives on the vector side."""
        return self(op, *args, lanes=True, **keywords)

    def __call__(
        self, op: str, *args: Any, name: str = "", line: int = 0, lanes: bool = False, **keywords: Any
    ) -> Any:
        """Append an op; gives its result variable, or None."""
        definition = REGISTRY[op]
        full: list[Any] = []
        for i, p in enumerate(definition.params):
            value = args[i] if i < len(args) else keywords.pop(p.name, p.default)
            assert value is not REQUIRED, f"{op} needs {p.name}"
            if value is not None and p.kind is Kind.INDEX:
                value = tuple(expr(v) for v in value)
            elif value is not None and p.kind in (Kind.SCALAR, Kind.TILE_OR_SCALAR):
                value = expr(value)
            full.append(value)
        assert not keywords, keywords
        with located(self.span(line)):
            type = definition.infer(*full)
        axis = self.split.axis
        if isinstance(type, TileType):
            halved = lanes and axis is not None and type.rank > axis and type.shape[axis] > 1
            type = type.with_(split=self.split if halved else SplitMode.NONE)
        results = () if type is None else (Var(name or op, type),)
        self.stmts.append(Let(results, definition, tuple(full), self.span(line)))
        return results[0] if results else None

    @contextmanager
    def _inside(self) -> Iterator[list[Stmt]]:
        outer, self.stmts = self.stmts, []
        inner = self.stmts
        yield inner
        self.stmts = outer

    @contextmanager
    def region(self, count: Any = None, name: str = "work", line: int = 0) -> Iterator[Any]:
        """``pl.at``, or ``pl.spmd`` where ``count`` is given; gives the block index."""
        block = None if count is None else Var("block", ScalarType(INDEX))
        with self._inside() as body:
            yield block
        kind = RegionKind.AT if count is None else RegionKind.SPMD
        size = None if count is None else expr(count)
        task = Var("tid", TaskType())
        options = RegionOptions(name_hint=name, split=self.split)
        self.stmts.append(Region(kind, block, size, tuple(body), options, tid=task, span=self.span(line)))

    @contextmanager
    def loop(
        self, stop: Any, *, start: Any = 0, step: Any = 1, init: Sequence[Any] = (), name: str = "k",
        kind: LoopKind = LoopKind.RANGE, line: int = 0,
    ) -> Iterator[Loop]:  # fmt: skip
        inits = [expr(x) for x in init]
        types = [x.type if isinstance(x, Var) else ScalarType(x.dtype) for x in inits]
        made = Loop(Var(name, ScalarType(INDEX)), tuple(Var(f"carried_{i}", t) for i, t in enumerate(types)))
        made.results = tuple(Var(f"after_{i}", t) for i, t in enumerate(types))
        with self._inside() as body:
            yield made
        carried = tuple(
            Carried(p, i, expr(n), r)
            for p, i, n, r in zip(made.values, inits, made.next, made.results, strict=True)
        )
        bounds = expr(start), expr(stop), expr(step)
        self.stmts.append(For(kind, made.var, *bounds, carried, tuple(body), span=self.span(line)))

    def function(self) -> Function:
        return Function(self.name, tuple(self.params), tuple(self.stmts))
