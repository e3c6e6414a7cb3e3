"""Loops that no launch list can hold, as one kernel of one block of threads: regions run in turn.

The trip count is device data, or the loop hands a tensor from trip to trip.  A grid whose extent is device
data needs less: its launch has a fixed number of blocks, which take the grid's blocks in turn.
"""

from __future__ import annotations

from dataclasses import replace

from pypto_models.ir.expr import Const, Expr, Var, index
from pypto_models.ir.nodes import (
    Block,
    For,
    If,
    Let,
    LoopKind,
    Operation,
    Region,
    RegionKind,
    RegionOptions,
    Scope,
    Stmt,
)  # fmt: skip
from pypto_models.ir.types import INDEX, TASK_ID, ArrayType, ScalarType, TaskType

from .refusal import Refused

CHUNK = 4096  # elements that a block fills
FILL = Operation("fill_tensor", "create_tensor", ("t", "value", "block"))
KEEP = Operation("keep_address", "create_tensor", ("cell", "t"))
KEPT = Operation("kept_tensor", "create_tensor", ("cell", "like"))


def is_task(x: Expr) -> bool:
    """A task id or an array of them: kernels run in order, so nobody asks."""
    t = x.type if isinstance(x, Var) else None
    return isinstance(t, TaskType) or (isinstance(t, ArrayType) and t.elem == TASK_ID)


def in_turn(body: Block) -> Block:
    """Statements of the orchestration as those of one kernel: a grid is a loop over its blocks."""
    out: list[Stmt] = []
    for s in body:
        if isinstance(s, Scope):
            out += in_turn(s.body)
        elif isinstance(s, Region):
            out += in_turn(s.body) if s.block is None else (blocks(s, index(0), index(1)),)
        elif isinstance(s, For):
            kept = tuple(c for c in s.carried if not is_task(c.param))
            if any(isinstance(c.param.type, ArrayType) for c in kept):
                raise Refused(
                    s.span, "the loop", "its trip count is not constant and it hands on an array",
                    "keep the array's values in a tensor",
                )  # fmt: skip
            out.append(replace(s, carried=kept, body=in_turn(s.body), kind=plain(s.kind)))
        elif isinstance(s, If):
            merged = tuple(m for m in s.merged if not is_task(m.result))
            out.append(replace(s, merged=merged, then=in_turn(s.then), orelse=in_turn(s.orelse)))
        elif not (isinstance(s, Let) and (s.op.name == "task_dummy" or any(map(is_task, s.results)))):
            out.append(s)
    return tuple(out)


def plain(kind: LoopKind) -> LoopKind:
    return LoopKind.RANGE if kind is LoopKind.PARALLEL else kind


def blocks(s: Region, first: Expr, step: Expr) -> For:
    """The blocks of a grid from ``first`` on, each ``step``-th."""
    assert s.block is not None
    count = index(1) if s.count is None else s.count
    return For(LoopKind.RANGE, s.block, first, count, step, (), in_turn(s.body), 1, s.span)


def strided(s: Region, width: int) -> Region:
    """A grid whose extent the host does not know, as ``width`` blocks that take its blocks in turn."""
    first = Var("first", ScalarType(INDEX))
    return replace(s, block=first, count=Const(width), body=(blocks(s, first, Const(width)),))


def one_block(s: Stmt, body: Block) -> Region:
    return Region(RegionKind.AT, None, None, body, RegionOptions(f"loop_line{s.span.line}"), span=s.span)
