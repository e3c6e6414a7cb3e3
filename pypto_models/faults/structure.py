"""Faults of structure: what does not run, runs too early, or forgets what it computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ..ir.expr import Binary, Const, Expr, Var, binary
from ..ir.nodes import Bind, Block, For, Function, If, Let, LoopKind, Region, Stmt
from ..ir.rewrite import Rewriter, children, defs, uses, walk
from ..ir.types import TensorType
from ..ops.registry import Access, Effect, OpDef
from .fault import Fault, FaultClass, Outline

_WRITES = (Effect.WRITE, Effect.ATOMIC)


def accesses(s: Stmt) -> tuple[Access, ...]:
    """What one statement itself reads and writes in global memory."""
    return s.op.access(s) if isinstance(s, Let) and isinstance(s.op, OpDef) else ()


def writes(s: Stmt) -> list[Access]:
    return [a for a in accesses(s) if a.effect in _WRITES]


class _WithoutStores(Rewriter):
    def stmt(self, s: Stmt) -> Stmt | Block:
        if writes(s) and not defs(s):
            return ()
        return self.descend(s) if children(s) else s


def drop_regions(o: Outline) -> Iterator[Fault]:
    """A region whose stores never happen, and each store on its own."""
    kind = FaultClass.DROP_REGION
    for s in o.stmts:
        if isinstance(s, Region) and any(writes(x) for x in walk(s.body)):
            body = _WithoutStores().block(s.body)
            yield o.fault(kind, s, f"{s.name} stores nothing", (replace(s, body=body),))
    for let, _ in o.lets():
        if writes(let) and not let.results:
            target = writes(let)[0].tensor.name
            yield o.fault(kind, let, f"the store to {target} never happens", ())


def drop_iterations(o: Outline) -> Iterator[Fault]:
    """A loop without its first or its last trip, or with its first only."""
    for s in o.stmts:
        if not isinstance(s, For):
            continue
        for which, start, stop in (
            ("first", binary("+", s.start, s.step), s.stop),
            ("last", s.start, binary("-", s.stop, s.step)),
        ):
            what = f"the loop over {s.var.name} leaves out its {which} trip"
            yield o.fault(FaultClass.DROP_ITERATION, s, what, (replace(s, start=start, stop=stop),))
        two_trips = binary("+", s.start, binary("*", s.step, Const(2)))
        if s.stop != two_trips:  # there it is the last trip
            once = replace(s, stop=binary("min", s.stop, binary("+", s.start, s.step)))
            what = f"the loop over {s.var.name} ends after one trip"
            yield o.fault(FaultClass.DROP_ITERATION, s, what, (once,))


def skip_blocks(o: Outline) -> Iterator[Fault]:
    """A grid without one of its blocks, or without every block of one residue: a head, say."""
    kind = FaultClass.SKIP_BLOCK
    for s in o.stmts:
        parallel = isinstance(s, For) and s.kind is LoopKind.PARALLEL
        if isinstance(s, Region) and s.block is not None and s.count is not None:
            var, count = s.block, s.count
        elif parallel and isinstance(s, For) and s.start == Const(0) and s.step == Const(1) and not s.carried:
            var, count = s.var, s.stop
        else:
            continue
        for name, index in (
            ("first", Const(0)),
            ("middle", binary("//", count, Const(2))),
            ("last", binary("-", count, Const(1))),
        ):
            cond = binary("!=", var, index)
            what = f"the {name} block does not run"
            yield o.fault(kind, s, what, (_guarded(s, cond),), _idle(s) if name == "last" else "")
        for parity, name in enumerate(("even", "odd")):
            cond = binary("!=", binary("%", var, Const(2)), Const(parity))
            yield o.fault(kind, s, f"no block of an {name} number runs", (_guarded(s, cond),))
        for x in walk(s.body):
            if isinstance(x, Bind) and isinstance(x.value, Binary) and x.value.op == "%":
                divisor = x.value.rhs
                if x.value.lhs is var and isinstance(divisor, Const) and 2 < divisor.value <= 64:
                    for residue in range(int(divisor.value)):
                        cond = binary("!=", x.value, Const(residue))
                        what = f"no block with {x.var.name} = {residue} runs"
                        yield o.fault(kind, s, what, (_guarded(s, cond),))


def _guarded(s: Region | For, cond: Expr) -> Stmt:
    return replace(s, body=(If(cond, s.body, (), (), s.span),))


def _idle(s: Region | For) -> str:
    """Why a block at the end of a grid may have nothing to do."""
    spare = any(isinstance(x, If) and not x.orelse and any(map(writes, walk(x.then))) for x in s.body)
    return "the grid has more blocks than work: a block beyond it stores nothing" if spare else ""


# ---------------------------------------------------------------------------------------------- too early
def roots(o: Outline) -> dict[Var, Var]:
    """The buffer behind each view."""
    root: dict[Var, Var] = {}
    for let, op in o.lets():
        if op.alias is not None and let.results and isinstance(let.result.type, TensorType):
            base = let.arg(op.alias)
            if isinstance(base, Var):
                root[let.result] = root.get(base, base)
    return root


def reorder_regions(o: Outline) -> Iterator[Fault]:
    """A region that runs before the one whose result it reads."""
    root = roots(o)

    def touched(region: Region, effects: tuple[Effect, ...]) -> set[Var]:
        found = [a for x in walk(region.body) for a in accesses(x) if a.effect in effects]
        return {root.get(a.tensor, a.tensor) for a in found}

    for block in _outer_blocks(o.function.body):
        regions = [s for s in block if isinstance(s, Region)]
        for i, late in enumerate(regions):
            for early in regions[i + 1 :]:
                between = block[block.index(late) + 1 : block.index(early) + 1]
                if not touched(late, _WRITES) & touched(early, (Effect.READ,)):
                    continue
                if set(defs(late)) & set(uses(between)):
                    break  # a task id: moving it would make another program
                moved = tuple(s for s in block if s is not late)
                at = moved.index(early) + 1
                order = (*moved[:at], late, *moved[at:])
                what = f"{early.name} runs before {late.name}, whose result it reads"
                yield o.made(FaultClass.STALE, early, what, partial(_with_block, o, block, order))
                break


def _outer_blocks(block: Block) -> Iterator[Block]:
    yield block
    for s in block:
        if not isinstance(s, Region):
            for inner in children(s):
                yield from _outer_blocks(inner)


def _with_block(o: Outline, old: Block, new: Block) -> Function:
    class _Swap(Rewriter):
        def block(self, block: Block) -> Block:
            return new if block is old else super().block(block)

    return replace(o.function, body=_Swap().block(o.function.body))


def forget_updates(o: Outline) -> Iterator[Fault]:
    """A loop-carried value that every trip reads as it was before the loop."""
    for s in o.stmts:
        if isinstance(s, For):
            for c in s.carried:
                if c.next is c.param or isinstance(c.param.type, TensorType):
                    continue
                carried = tuple(replace(x, next=x.param) if x is c else x for x in s.carried)
                what = f"{c.param.name} keeps its value from before the loop over {s.var.name}"
                yield o.fault(FaultClass.STALE, s, what, (replace(s, carried=carried),))
