"""Legal orders of a program other than its own: what no dependency orders may run either way.

Blocks of a grid and iterations of a parallel loop run in any order.  Statements of the orchestration keep the
order that values, the dependencies of the task graph and orchestration reads demand, and nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from pypto_models.ir.expr import Var, free_vars
from pypto_models.ir.graph import TaskGraph
from pypto_models.ir.nodes import Block, For, Function, If, Let, Region, Return, Scope, Stmt
from pypto_models.ir.rewrite import children, defs, exits, inner_defs, operands, walk, with_children
from pypto_models.ops.registry import OpDef
from pypto_models.passes.affine import definitions


def shuffled(function: Function, graph: TaskGraph, seed: int) -> Function:
    """The function with its orchestration statements in a random legal order."""
    return replace(function, body=_Shuffle(function, graph, Random(seed)).block(function.body))


class _Shuffle:
    def __init__(self, function: Function, graph: TaskGraph, rng: Random) -> None:
        self.rng = rng
        self.tasks = {id(t.region): t.index for t in graph.tasks}
        self.after: dict[int, set[int]] = {}
        for d in graph.dependencies:
            if d.carried_by is None:
                self.after.setdefault(d.after, set()).add(d.before)
        facts = definitions(function)
        self.roots = facts.roots
        self.writes = {t.index: {a.tensor for a in t.writes} for t in graph.tasks}

    def block(self, block: Block) -> Block:
        statements = [s if isinstance(s, Region) else self._inside(s) for s in block]
        before = [self._before(block, i) for i in range(len(block))]
        done: list[int] = []
        while len(done) < len(block):
            ready = [i for i in range(len(block)) if i not in done and before[i] <= set(done)]
            done.append(self.rng.choice(ready))
        return tuple(statements[i] for i in done)

    def _inside(self, s: Stmt) -> Stmt:
        blocks = children(s)
        return with_children(s, tuple(self.block(b) for b in blocks)) if blocks else s

    def _before(self, block: Block, i: int) -> set[int]:
        """Statements of the block that must run before its ``i``-th."""
        if isinstance(block[i], Return):
            return set(range(i))
        return {j for j in range(i) if self._ordered(block[j], block[i])}

    def _ordered(self, first: Stmt, second: Stmt) -> bool:
        made = {v for s in walk((first,)) for v in (*defs(s), *inner_defs(s))}
        used = {v for s in walk((second,)) for x in (*operands(s), *exits(s)) for v in free_vars(x)}
        if made & used:
            return True
        a, b = self._tasks(first), self._tasks(second)
        if any(self.after.get(t, set()) & a for t in b):
            return True
        return self._reads_what(first, b) or self._reads_what(second, a)

    def _tasks(self, s: Stmt) -> set[int]:
        return {self.tasks[id(r)] for r in walk((s,)) if isinstance(r, Region) and id(r) in self.tasks}

    def _reads_what(self, s: Stmt, tasks: set[int]) -> bool:
        """True if the orchestration reads, in ``s``, an element of a tensor that one of the tasks writes."""
        written = {t for i in tasks for t in self.writes[i]}
        return any(root in written for v in _launch_reads(s) for root in self.roots(v))


def _launch_reads(s: Stmt) -> list[Var]:
    """Tensors that orchestration statements read themselves."""
    if isinstance(s, Let):
        if not isinstance(s.op, OpDef):
            return []
        return [a.tensor for a in s.op.access(s)]
    if isinstance(s, For | If | Scope):
        return [v for b in children(s) for inner in b for v in _launch_reads(inner)]
    return []
