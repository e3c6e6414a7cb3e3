"""Random vector regions: loads, elementwise ops, reductions, views, nested loops with carried tiles, ifs."""

from __future__ import annotations

import random
from typing import Any

from pypto_models.ir.expr import Const, Expr, Var
from pypto_models.ir.nodes import (
    Block,
    Carried,
    Direction,
    For,
    Function,
    If,
    Let,
    LoopKind,
    Merged,
    Param,
    Region,
    RegionKind,
    Stmt,
    Unit,
)
from pypto_models.ir.types import BF16, BOOL, FP32, INDEX, ScalarType, TensorType, TileType
from pypto_models.ops import REGISTRY

SHAPES = ((8, 32), (16, 32), (32, 64), (64, 16))


class Maker:
    """Builds one function with one region from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.source = {d: Var(f"t_{d}", TensorType((4096, 64), d)) for d in (FP32, BF16)}
        self.names = 0

    def function(self) -> Function:
        body, live = self.block([], depth=0, statements=self.random.randint(4, 12))
        body = (*body, *(self.store(v) for v in live if self.random.random() < 0.5))
        region = Region(RegionKind.AT, None, None, body, unit=Unit.VEC)
        params = tuple(Param(v, Direction.INOUT) for v in self.source.values())
        return Function("random", params, (region,))

    # ---- statements
    def block(self, scope: list[Var], depth: int, statements: int) -> tuple[Block, list[Var]]:
        """Statements and the tiles in scope after them."""
        live, out = list(scope), []
        for _ in range(statements):
            kind = self.random.random()
            new: list[Stmt]
            if kind < 0.15 and depth < 2:
                new = self.loop(live, depth)
            elif kind < 0.25 and depth < 2:
                new = self.branch(live, depth)
            elif kind < 0.35 and live:
                new = [self.store(self.random.choice(live))]
            else:
                new = [self.op(live)]
            out += new
        return tuple(out), live

    def op(self, live: list[Var]) -> Stmt:
        choice = self.random.choice(
            ("load", "exp", "add", "cast", "row_sum", "row_expand_mul", "transpose", "view")
        )
        x = self.random.choice(live) if live else None
        if x is None or choice == "load" or not isinstance(x.type, TileType):
            return self.load(live)
        t = x.type
        if choice in ("exp", "transpose", "row_sum") and t.shape[1] > 1:
            extra = (0, 1) if choice == "transpose" else ()
            return self.let(live, choice, x, *map(Const, extra))
        if choice == "cast":
            return self.let(live, "cast", x, BF16 if t.dtype == FP32 else FP32, "rint")
        if choice == "view":
            shape = (t.shape[0] // 2, t.shape[1] * 2) if t.shape[0] % 2 == 0 else t.shape
            return self.let(live, "reshape", x, tuple(map(Const, shape)))
        if choice == "row_expand_mul":
            columns = [v for v in live if v.type.shape == (t.shape[0], 1)]  # type: ignore[union-attr]
            return self.let(live, choice, x, self.random.choice(columns)) if columns else self.load(live)
        same = [v for v in live if v.type.shape == t.shape]  # type: ignore[union-attr]
        return self.let(live, "add", x, self.random.choice(same))

    def load(self, live: list[Var]) -> Stmt:
        tensor = self.source[self.random.choice((FP32, BF16))]
        shape = tuple(map(Const, self.random.choice(SHAPES)))
        return self.let(live, "load", tensor, shape, (Const(0), Const(0)), None, None, None, False)

    def let(self, live: list[Var], name: str, *args: Any) -> Let:
        op = REGISTRY[name]
        self.names += 1
        result = Var(f"{name}_{self.names}", op.infer(*args))
        live.append(result)
        return Let((result,), op, args)

    def store(self, v: Var) -> Let:
        assert isinstance(v.type, TileType)
        zero: tuple[Expr, ...] = (Const(0), Const(0))
        return Let((), REGISTRY["store"], (self.source[v.type.dtype], v, zero, "none"))

    def loop(self, live: list[Var], depth: int) -> list[Stmt]:
        inits = self.random.sample(live, k=min(len(live), self.random.randint(0, 3)))
        params = [Var(f"{v.name}_in", v.type) for v in inits]
        body, after = self.block([*live, *params], depth + 1, self.random.randint(1, 6))
        results = [Var(f"{v.name}_out", v.type) for v in inits]
        nexts = [self.random.choice([v for v in reversed(after) if v.type == p.type][:3]) for p in params]
        carried = tuple(Carried(*c) for c in zip(params, inits, nexts, results, strict=True))
        kind = self.random.choice((LoopKind.RANGE, LoopKind.PIPELINE))
        stage = self.random.randint(1, 3) if kind is LoopKind.PIPELINE else 1
        live += results
        trips = Const(self.random.randint(1, 4))
        return [For(kind, Var("i", ScalarType(INDEX)), Const(0), trips, Const(1), carried, body, stage)]

    def branch(self, live: list[Var], depth: int) -> list[Stmt]:
        then, after_then = self.block(live, depth + 1, self.random.randint(1, 4))
        orelse, after_else = self.block(live, depth + 1, self.random.randint(1, 4))
        merged = []
        for _ in range(self.random.randint(0, 2)):
            pairs = [(a, b) for a in after_then[-4:] for b in after_else[-4:] if a.type == b.type]
            if pairs:
                a, b = self.random.choice(pairs)
                merged.append(Merged(Var(f"{a.name}_or", a.type), a, b))
        live += [m.result for m in merged]
        return [If(Var("c", ScalarType(BOOL)), then, orelse, tuple(merged))]
