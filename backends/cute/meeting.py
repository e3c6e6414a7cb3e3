"""Where the threads of a block must meet because of what they do to global memory.

A write waits until the other threads have read, or written before, what it changes; a read waits for writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pypto_models.ir.expr import Var
from pypto_models.ir.nodes import Block, For, If, Let

from ..gpu.scan import sources_of
from .text import BARRIER, Text

_LOOP = re.compile(r" *(for .* in cutlass\.range\(|while )")


def met(t: Text, names: Iterable[str]) -> bool:
    """Whether all threads have met since the last line that names one of these pointers.

    Goes back over the lines before: a barrier in a branch or a loop that has ended is none, and the beginning
    of a loop is the end of its last trip.
    """
    used = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    depth = t.depth
    for line in reversed(t.lines):
        here = (len(line) - len(line.lstrip(" "))) // 4
        if here < depth:
            if _LOOP.match(line):
                return False
            depth = here
        if here == depth and line.strip() == BARRIER:
            return True
        if used.search(line):
            return False
    return False


def read_behind(body: Block) -> dict[int, frozenset[Var]]:
    """For each write, by identity: the tensors and views that statements behind it read, or that the next
    trip of a loop around it reads.
    """
    found: dict[int, frozenset[Var]] = {}

    def walk(block: Block, later: frozenset[Var]) -> None:
        """``later`` is read behind the block."""
        for s in reversed(block):
            own = frozenset(sources_of((s,)))
            if isinstance(s, For):
                walk(s.body, later | own)
            elif isinstance(s, If):
                walk(s.then, later)
                walk(s.orelse, later)
            elif isinstance(s, Let) and s.op.name in ("store", "write_tensor"):
                found[id(s)] = later
            later |= own

    walk(body, frozenset())
    return found
