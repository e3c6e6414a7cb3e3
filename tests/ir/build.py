"""IR built by hand, for tests of what no kernel text gives: broken programs, and programs after a pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pypto_models.errors import Span
from pypto_models.ir.expr import Const, Expr, Var
from pypto_models.ir.expr import index as lift
from pypto_models.ir.nodes import (
    Block,
    Direction,
    Function,
    Let,
    Param,
    Region,
    RegionKind,
    RegionOptions,
    Stmt,
)
from pypto_models.ir.rewrite import Rewriter
from pypto_models.ir.types import FP32, INDEX, DType, ScalarType, TensorType, TileType
from pypto_models.ops import REGISTRY

HERE = Span("kernel.py", 7, 4)


def scalar(name: str, dtype: DType = INDEX) -> Var:
    return Var(name, ScalarType(dtype))


def tensor(name: str, *shape: int | Expr, dtype: DType = FP32) -> Var:
    return Var(name, TensorType(shape, dtype))


def ints(*values: int | Expr) -> tuple[Expr, ...]:
    return tuple(lift(v) for v in values)


def let(result: str, op: str, *args: Any, **keywords: Any) -> Let:
    """One op on converted arguments; its result gets the inferred type and the name ``result``."""
    o = REGISTRY[op]
    given = dict(zip(o.param_names, args, strict=False)) | keywords
    bound = tuple(given.get(p.name, p.default) for p in o.params)
    t = o.infer(*bound)
    return Let(() if t is None else (Var(result, t),), o, bound, HERE)


def full(name: str, value: float = 0.0, shape: tuple[int, int] = (16, 16)) -> Let:
    return let(name, "full", ints(*shape), FP32, Const(value, FP32))


def load(name: str, source: Var, row: int | Expr = 0) -> Let:
    return let(name, "load", source, ints(16, 16), ints(row, 0))


def store(target: Var, source: Var, row: int | Expr = 0) -> Let:
    return let("", "store", target, source, ints(row, 0))


def placed(stmt: Let, **changes: Any) -> Let:
    """``stmt`` with a space or a split on its result, as passes leave it."""
    v = stmt.result
    assert isinstance(v.type, TileType)
    return replace(stmt, results=(Var(v.name, v.type.with_(**changes)),))


def at(*body: Stmt, **options: Any) -> Region:
    return Region(RegionKind.AT, None, None, body, RegionOptions(**options), span=HERE)


def function(body: Block, *params: Var, name: str = "kernel") -> Function:
    """A kernel whose tensors are InOut."""
    kinds = (Direction.INOUT if isinstance(p.type, TensorType) else Direction.IN for p in params)
    return Function(name, tuple(Param(p, d) for p, d in zip(params, kinds, strict=True)), body, HERE)


class _Rename(Rewriter):
    def var(self, v: Var) -> Var:
        new = Var(f"v{len(self.env)}", self.type(v.type))
        self.env[v] = new
        return new

    def type(self, t: Any) -> Any:
        if isinstance(t, TileType):
            return replace(t, valid=tuple(self.expr(d) if isinstance(d, Expr) else d for d in t.valid))
        if isinstance(t, TensorType):
            return replace(t, shape=tuple(self.expr(d) if isinstance(d, Expr) else d for d in t.shape))
        return t


def renamed(fn: Function) -> Function:
    """The same program with new variables, called v0, v1, ... in order of definition."""
    rename = _Rename()
    params = tuple(Param(rename.var(p.var), p.direction) for p in fn.params)
    return replace(fn, params=params, body=rename.block(fn.body))
