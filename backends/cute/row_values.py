"""What is made of a row's sum or extreme alone, such as the scale of a norm, is worked out once for each row.

A column is a composition like any tile, and what reads it beside whole rows would repeat it for each element.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pypto_models.ir.expr import Expr, Var
from pypto_models.ir.nodes import Block, Let
from pypto_models.ir.types import TileType

from ..gpu.scan import lets
from .layouts import Planner
from .rules import BINARY, REDUCE, UNARY
from .text import BARRIER, Text

OF_ELEMENTS = (*UNARY, *BINARY, "cast")


@dataclass
class Chains:
    """Statements by identity: for a statistic of several rows those that follow from it alone, each the only
    reader of the one before; and the statements that are ``made`` with a statistic.

    ``ended``: where the last statistic ended, with a barrier, and what it left in shared memory.
    """

    behind: dict[int, tuple[Let, ...]] = field(default_factory=dict)
    made: set[int] = field(default_factory=set)
    ended: tuple[int, str] = (0, "")

    def end(self, t: Text, began: int, name: str) -> None:
        """All threads meet behind a statistic.  They need not before it, if it follows upon another, whose
        result it does not take.
        """
        at, other = self.ended
        if at == began and not any(re.search(rf"\b{other}\b", line) for line in t.lines[began:]):
            del t.lines[began - 1]
        t.line(BARRIER)
        self.ended = len(t.lines), name


def chains(body: Block, count: Mapping[Expr, int], plan: Planner) -> Chains:
    """Those of a block whose columns are in nobody's registers.  ``count``: how often each value is read."""
    readers = {x: s for s in lets(body) for x in s.args if isinstance(x, Var)}
    found = Chains()
    for s in lets(body):
        axis, how = REDUCE.get(s.op.name, (0, ""))
        if axis != 1 or how == "argmax" or not _column(s.result) or plan.of(s.result) is not None:
            continue
        chain: list[Let] = []
        last = s.result
        while count[last] == 1 and (r := readers.get(last)) is not None and _alone(r, last):
            chain.append(r)
            last = r.result
        if chain and all(plan.of(r.result) is None for r in chain):
            found.behind[id(s)] = tuple(chain)
            found.made |= set(map(id, chain))
    return found


def _column(x: Var) -> bool:
    """Whether it is a tile of several rows and one column."""
    return isinstance(x.type, TileType) and x.type.rank == 2 and x.type.shape[1] == 1 < x.type.shape[0]


def _alone(s: Let, x: Var) -> bool:
    """Whether a statement makes a column of a column and of scalars, with the same rows live."""
    tiles = [a for a in s.args if isinstance(a, Var) and isinstance(a.type, TileType)]
    return s.op.name in OF_ELEMENTS and tiles == [x] and _column(s.result)
