"""What the blocks of a task load in one launch: bytes by tensor, for the accounting of a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..ir.graph import TaskGraph
from ..ir.nodes import Block, Let, Region, Stmt
from ..ir.rewrite import children, walk, with_children
from ..target import Target
from .inputs import Inputs
from .operations import Pipe
from .rates import rates
from .work import work_of


def loads_by_block(
    graph: TaskGraph, target: Target, given: Mapping[str, Any], task: str
) -> tuple[dict[str, int], ...]:
    """For each block of ``task`` that a launch with ``given`` has, the bytes that it loads of each tensor.

    ``given`` is that of :func:`~.estimate.estimate`: run-time extents, numbers, contents of index tensors.
    Elements that control flow reads one by one are not counted.
    """
    index = graph.task(task).index
    runs = work_of(_without_others(graph, index), Inputs.of(graph.function, given), rates(target))
    found = []
    for block in (b for run in runs if run.task.index == index for b in run.blocks):
        sizes: dict[str, int] = {}
        for o in block:
            if o.pipe is Pipe.LOAD and o.tensor is not None:
                sizes[o.tensor.name] = sizes.get(o.tensor.name, 0) + o.bytes
        found.append(sizes)
    return tuple(found)


def _writes_elements(body: Block) -> bool:
    return any(isinstance(s, Let) and s.op.name == "write_tensor" for s in walk(body))


def _without_others(graph: TaskGraph, index: int) -> TaskGraph:
    """The program with every other region empty: a launch of the one costs no walk of the rest.

    Regions that write single elements stay: what they write may decide what the one does.
    """
    others = (t.region for t in graph.tasks if t.index != index)
    empty = {id(r): replace(r, body=()) for r in others if not _writes_elements(r.body)}

    def block(body: Block) -> Block:
        return tuple(map(statement, body))

    def statement(s: Stmt) -> Stmt:
        if isinstance(s, Region):
            return empty.get(id(s), s)
        inner = children(s)
        return with_children(s, tuple(map(block, inner))) if inner else s

    tasks = tuple(replace(t, region=empty.get(id(t.region), t.region)) for t in graph.tasks)
    return replace(graph, function=replace(graph.function, body=block(graph.function.body)), tasks=tasks)
