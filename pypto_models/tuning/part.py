"""Regions of a program as a program of their own, to be run and timed alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from ..cost.inputs import extents_of
from ..errors import Diag, user_error
from ..ir.expr import DimVar, Expr, Var
from ..ir.nodes import Block, Direction, Function, Let, Param, Region, Return, Scope, Stmt
from ..ir.rewrite import Rewriter, defs, uses, walk
from ..ir.types import TensorType
from ..language.effects import roots
from ..ops.registry import Effect, OpDef

Roots = Mapping[Var, frozenset[Var]]


def part_of(function: Function, regions: Collection[str], name: str) -> Function:
    """The named regions of a front-end function, with the scalars and views that they take.

    A tensor that only they use stays inside; what they share with other regions is a parameter, as their own
    parameters are.

    Raises:
        UserError: a region is missing, stands in a loop or under a condition, or takes indices that another
            region has computed.
    """
    body = tuple(_flat(function.body))
    names = list(dict.fromkeys(s.name for s in body if isinstance(s, Region)))
    for wanted in regions:
        if wanted not in names:
            deeper = any(isinstance(s, Region) and s.name == wanted for s in walk(function.body))
            why = "it runs in a loop or under a condition" if deeper else "the program has no such region"
            fix = f"tune one of {', '.join(names)}"
            raise user_error(Diag.ARGUMENT, function.span, name=wanted, why=why, fix=fix)
    table = roots(function)
    shared = _shared(body, regions, table)
    kept, needed = _slice(body, regions, shared)
    read, written = _effects(kept, table)
    params = [p.var for p in function.params if p.var in needed]
    made = sorted(shared & (read | written), key=[v for s in body for v in defs(s)].index)
    for v in made:
        if v in read and v not in written and not _type(v).dtype.is_float:
            why = f"it takes {v.name}, indices that another region computes"
            raise user_error(Diag.ARGUMENT, function.span, name=name, why=why, fix="tune both as one part")
    params += _extent_givers(function, kept, params, made)
    taken = {v.name for v in params}
    fresh: dict[Var, Expr] = {}
    for v in made:
        free = (n for n in (v.name, *(f"{v.name}_{i}" for i in range(len(body)))) if n not in taken)
        new = Var(next(free), v.type, v.span)
        taken.add(new.name)
        fresh[v] = new
    found = [Param(v, _direction(v in read, v in written)) for v in params]
    found += [Param(new, _direction(v in read, v in written)) for v, new in fresh.items()]  # type: ignore[arg-type]
    return Function(name, tuple(found), Rewriter(fresh).block(kept), function.span)


def _flat(block: Block) -> Iterator[Stmt]:
    """The statements without their scopes: a part runs in program order."""
    for s in block:
        if isinstance(s, Scope):
            yield from _flat(s.body)
        else:
            yield s


def _shared(body: Block, regions: Collection[str], table: Roots) -> set[Var]:
    """Tensors that are created for regions of the part and for others."""
    created = {v for s in body if isinstance(s, Let) and s.op.name == "create" for v in s.results}
    other = tuple(
        s for s in body
        if any(isinstance(x, Region) and x.name not in regions for x in walk((s,)))
    )  # fmt: skip
    return created & {r for v in uses(other) for r in table.get(v, frozenset((v,)))}


def _slice(body: Block, regions: Collection[str], shared: set[Var]) -> tuple[Block, set[Var]]:
    """The statements that the part needs, and all that they use."""
    kept: list[Stmt] = []
    needed: set[Var] = set()
    for s in reversed(body):
        if isinstance(s, Region) and s.name in regions:
            s = replace(s, tid=None, deps=())
        elif isinstance(s, Region | Return) or needed.isdisjoint(defs(s)) or not shared.isdisjoint(defs(s)):
            continue
        kept.append(s)
        needed |= set(uses((s,)))
    return tuple(reversed(kept)), needed


def _effects(kept: Block, table: Roots) -> tuple[set[Var], set[Var]]:
    """The tensors that the statements read and write."""
    read: set[Var] = set()
    written: set[Var] = set()
    for s in walk(kept):
        if isinstance(s, Let) and isinstance(s.op, OpDef):
            for a in s.op.access(s):
                whole = table.get(a.tensor, frozenset((a.tensor,)))
                read |= whole if a.effect is not Effect.WRITE else set()
                written |= whole if a.effect is not Effect.READ else set()
    return read, written


def _direction(read: bool, written: bool) -> Direction:
    return Direction.IN if not written else Direction.INOUT if read else Direction.OUT


def _extent_givers(function: Function, kept: Block, params: list[Var], made: list[Var]) -> list[Var]:
    """Further parameters, whose shapes say how large the run-time extents are that the part uses."""
    wanted = set(extents_of(Function("", tuple(Param(v, Direction.IN) for v in (*params, *made)), kept)))
    wanted -= _axes([*params, *made])
    found = []
    for p in function.params:
        if p.var not in params and isinstance(p.var.type, TensorType) and wanted & _axes([p.var]):
            found.append(p.var)
            wanted -= _axes([p.var])
    return found


def _axes(tensors: list[Var]) -> set[str]:
    """Run-time extents that are an axis of one of these by themselves."""
    types = (v.type for v in tensors if isinstance(v.type, TensorType))
    return {d.name for t in types for d in t.shape if isinstance(d, DimVar)}


def _type(v: Var) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type
