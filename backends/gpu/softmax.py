"""Loops that keep an online softmax: parts of their trips may run apart and be joined (arXiv:1805.02867).

Such a loop carries a running maximum m and sums x that are relative to it, and a trip makes

    m' = maximum(m, f)        x' = x exp(m - m') + g(m')

where f is nothing that the loop carries and g(m') is linear in exp(s - m').  So g(b) = g(a) exp(a - b), and
what two parts of the trips leave joins to M = maximum(m1, m2) and X = x1 exp(m1 - M) + x2 exp(m2 - M).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

from pypto_models.ir.expr import Var
from pypto_models.ir.nodes import Arg, Bind, Carried, For, If, Let
from pypto_models.ir.types import FP32, TileType
from pypto_models.ops.registry import Effect, OpDef


@dataclass(frozen=True)
class OnlineSoftmax:
    """What such a loop, over ``loop``, carries."""

    loop: Var
    maximum: Carried
    sums: tuple[Carried, ...]


class Role(Enum):
    """What a value of the loop's body is."""

    APART = auto()  # nothing that the loop carries
    OLD = auto()  # m
    NEW = auto()  # m'
    GAP = auto()  # m - m'
    DECAY = auto()  # exp(m - m')
    SHIFTED = auto()  # s - m'
    TERM = auto()  # linear in exp(s - m')
    SUM = auto()  # x
    SCALED = auto()  # x exp(m - m')
    NEXT = auto()  # x'


# What ops of two operands make, in the order of the operands; maximum, add and mul take either order
PAIRS = {
    "maximum": {(Role.OLD, Role.APART): Role.NEW},
    "sub": {(Role.OLD, Role.NEW): Role.GAP, (Role.APART, Role.NEW): Role.SHIFTED},
    "row_expand_sub": {(Role.APART, Role.NEW): Role.SHIFTED},
    "mul": {(Role.SUM, Role.DECAY): Role.SCALED},
    "row_expand_mul": {(Role.SUM, Role.DECAY): Role.SCALED},
    "add": {(Role.SCALED, Role.TERM): Role.NEXT},
    "matmul": {(Role.TERM, Role.APART): Role.TERM},
}
SINGLES = {
    "exp": {Role.GAP: Role.DECAY, Role.SHIFTED: Role.TERM},
    "row_sum": {Role.TERM: Role.TERM},
    "cast": {Role.TERM: Role.TERM},
}
EITHER = ("maximum", "add", "mul")


def online_softmax(s: For) -> OnlineSoftmax | None:
    """What the loop carries, if that is an online softmax and nothing else."""
    if not all(isinstance(c.param.type, TileType) and c.param.type.dtype == FP32 for c in s.carried):
        return None
    made: dict[object, Let] = {r: x for x in s.body if isinstance(x, Let) for r in x.results}
    maxima = [(c, y) for c in s.carried if (y := _new_maximum(c, made)) is not None]
    if len(maxima) != 1:
        return None
    ((maximum, new),) = maxima
    kind = maximum.param.type
    if not isinstance(kind, TileType) or kind.rank != 2 or kind.shape[1] != 1:
        return None
    sums = tuple(c for c in s.carried if c is not maximum)
    roles: dict[object, Role] = dict.fromkeys((c.param for c in sums), Role.SUM)
    roles[maximum.param] = Role.OLD
    sum_of: dict[object, Var] = {c.param: c.param for c in sums}  # of SUM, SCALED and NEXT, whose they are
    for x in s.body:
        if isinstance(x, Bind):
            continue
        if not isinstance(x, Let) or len(x.results) != 1 or _changes(x):
            return None
        role, of = _role(x, roles, sum_of)
        if role is None or (role is Role.NEW and x.op.name == "maximum" and x is not new):
            return None
        roles[x.result] = role
        if of is not None:
            sum_of[x.result] = of
    ends = all(roles.get(c.next) is Role.NEXT and sum_of[c.next] == c.param for c in sums)
    return OnlineSoftmax(s.var, maximum, sums) if ends and roles.get(maximum.next) is Role.NEW else None


def first_step(s: If, loop: For, softmax: OnlineSoftmax) -> OnlineSoftmax | None:
    """What a branch carries, if it makes a step of the online softmax that ``loop`` begins with, or none."""
    if s.orelse or {m.result for m in s.merged} != {c.init for c in loop.carried}:
        return None
    carried = tuple(
        Carried(m.orelse, m.orelse, m.then, m.result) for m in s.merged if isinstance(m.orelse, Var)
    )
    if len({c.param for c in carried}) < len(loop.carried):
        return None
    found = online_softmax(replace(loop, carried=carried, body=s.then))
    return found if found is not None and found.maximum.result == softmax.maximum.init else None


def _changes(x: Let) -> bool:
    """Whether a statement has an effect."""
    assert isinstance(x.op, OpDef)
    return x.op.mutates is not None or any(a.effect is not Effect.READ for a in x.op.access(x))


def _new_maximum(c: Carried, made: dict[object, Let]) -> Let | None:
    """The statement that makes the next value of what a loop carries, if that is a running maximum."""
    let = made.get(c.next)
    while let is not None and let.op.name == "move":
        let = made.get(let.args[0])
    return let if let is not None and let.op.name == "maximum" and c.param in let.args else None


def _role(x: Let, roles: dict[object, Role], sum_of: dict[object, Var]) -> tuple[Role | None, Var | None]:
    """Of a statement's result, and whose sum it is part of; no role is an end of the search."""

    def of(a: Arg) -> Role:
        return roles.get(a, Role.APART) if isinstance(a, Var) else Role.APART

    taken = [of(a) for a in x.args]
    whose = next((sum_of[a] for a in x.args if isinstance(a, Var) and a in sum_of), None)
    if all(r is Role.APART for r in taken):
        return Role.APART, None
    name = x.op.name
    if name == "move":
        return taken[0], whose
    if name == "cast" and not x.result.type.dtype.is_float:  # type: ignore[union-attr]
        return None, None
    if name == "matmul" and x.arg("a_trans"):  # its rows are not those of m
        return None, None
    if name in SINGLES:
        return SINGLES[name].get(taken[0]), whose
    if name not in PAIRS or any(r is not Role.APART for r in taken[2:]):
        return None, None
    rules, (a, b) = PAIRS[name], taken[:2]
    role = rules.get((a, b)) or (rules.get((b, a)) if name in EITHER else None)
    return role, whose
