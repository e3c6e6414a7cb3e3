"""Happens-before on executed accesses: what the compiler could not prove apart is watched while it runs.

Two kinds of pairs are watched.  Members of one *scope* (the blocks of a grid, the iterations of a parallel
loop) are unordered: if two of them touch an element and one writes it, that is a race.  Two tasks whose
conflict the target's run time does not order (a hazard of the task graph) must not really meet.  An access is
a strided box of a buffer with the line of the emitted program that made it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from pypto_models.errors import Diag, Span, UserError
from pypto_models.ir.graph import Conflict

from .emit import Program
from .memory import Buffer

ANY_WRITE = ("write", "atomic")


@dataclass(frozen=True)
class Touch:
    """One access: who (the member of every open scope, outer first), what, and by which emitted line."""

    members: tuple[int, ...]
    task: int
    launch: int
    effect: str
    start: int
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    line: int

    @property
    def end(self) -> int:
        """One past the last position of the box in the buffer."""
        return self.start + 1 + sum((e - 1) * s for e, s in zip(self.extents, self.strides, strict=True))

    def positions(self) -> np.ndarray:
        """Every position of the box, sorted if rows do not overlap."""
        at = np.array([self.start])
        for e, s in zip(self.extents, self.strides, strict=True):
            at = (at[:, None] + np.arange(e) * s).reshape(-1)
        return at


@dataclass(frozen=True)
class Scope:
    """A grid or a parallel loop that runs now."""

    label: str
    unit: str  # what a member is called: block, iteration
    tensors: frozenset[str]


class Watch:
    """Records the accesses to watched buffers; :meth:`close` compares the members of a scope."""

    def __init__(self, program: Program, filename: str, target: str, hazards: Sequence[Conflict]) -> None:
        self.program = program
        self.filename = filename
        self.target = target
        self.hazards = hazards
        self.suspected = frozenset(h.tensor.name for h in hazards)
        self.scopes: list[Scope] = []
        self.members: list[int] = []
        self.task = -1
        self.launch = 0
        self.touches: dict[int, list[Touch]] = {}
        self.buffers: dict[int, Buffer] = {}

    # ------------------------------------------------------------------------------------------ recording
    def follows(self, buffer: Buffer) -> bool:
        """True if accesses to the buffer are to be recorded now."""
        return buffer.name in self.suspected or any(buffer.name in s.tensors for s in self.scopes)

    def note(
        self, buffer: Buffer, effect: str, start: int, extents: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        if 0 in extents or not self.follows(buffer):
            return
        frame = sys._getframe(2)
        while frame.f_code.co_filename != self.filename and frame.f_back is not None:
            frame = frame.f_back
        who = (tuple(self.members), self.task, self.launch)
        touch = Touch(*who, effect, start, tuple(extents), strides, frame.f_lineno)
        self.buffers[id(buffer)] = buffer
        known = self.touches.setdefault(id(buffer), [])
        if self.suspected:
            self._check_hazards(buffer, known, touch)
        known.append(touch)

    def open(self, scope: Scope) -> None:
        self.scopes.append(scope)
        self.members.append(-1)

    def close(self) -> None:
        """End the innermost scope: two of its members that touched one element are a race."""
        depth = len(self.scopes) - 1
        scope = self.scopes[depth]
        for key, touches in self.touches.items():
            buffer = self.buffers[key]
            if buffer.name in scope.tensors:
                for a, b in _meetings(touches, depth):
                    raise self._race(scope, depth, buffer, a, b)
        self.scopes.pop()
        self.members.pop()
        if not self.scopes and not self.suspected:
            self.touches.clear()
            self.buffers.clear()
        elif self.scopes:
            self._forget(depth)

    def _forget(self, depth: int) -> None:
        """Accesses of an inner scope belong to the member of the outer one from now on."""
        for touches in self.touches.values():
            for i, t in enumerate(touches):
                if len(t.members) > depth:
                    touches[i] = replace(t, members=t.members[:depth])

    # ------------------------------------------------------------------------------------------ findings
    def _check_hazards(self, buffer: Buffer, known: Sequence[Touch], touch: Touch) -> None:
        for h in self.hazards:
            if h.second != touch.task or h.tensor.name != buffer.name:
                continue
            if h.carried_by is not None and h.first < h.second:
                continue  # nothing tells an access of an earlier trip from one of this trip
            for earlier in known:
                if earlier.task != h.first or earlier.launch == touch.launch or not _clash(earlier, touch):
                    continue
                if (at := meet(earlier, touch)) is not None:
                    raise self._error(
                        Diag.HAZARD, buffer, at, earlier, touch,
                        {"kind": h.kind, "target": self.target,
                         "first": f"region {h.names[0]!r}", "second": f"region {h.names[1]!r}"},
                    )  # fmt: skip

    def _race(self, scope: Scope, depth: int, buffer: Buffer, a: Touch, b: Touch) -> UserError:
        at = meet(a, b)
        first, second = (f"{scope.unit} {t.members[depth]} ({_VERB[t.effect]})" for t in (a, b))
        fields = {"first": first, "second": second, "scope": scope.label}
        return self._error(Diag.RACE, buffer, at if at is not None else a.start, a, b, fields)

    def _error(
        self, diag: Diag, buffer: Buffer, at: int, a: Touch, b: Touch, fields: Mapping[str, object]
    ) -> UserError:
        index = buffer.place(at)
        error = UserError(diag, self._span(b), {**fields, "tensor": buffer.name, "index": index})
        for t in (a, b):
            block = f" in block {t.members[-1]}" if t.members else ""
            error.notes.append(f"{_VERB[t.effect]} {self._box(buffer, t)}{block} at {self._span(t)}")
        return error

    def _box(self, buffer: Buffer, t: Touch) -> str:
        first, last = buffer.place(t.start), buffer.place(t.end - 1)
        return f"{buffer.name}{first} to {last}, {prod(t.extents)} elements"

    def _span(self, t: Touch) -> Span:
        return self.program.lines[t.line].stmt.span


_VERB = {"read": "reads", "write": "writes", "atomic": "adds to"}


def _clash(a: Touch, b: Touch) -> bool:
    """True if the order of the two accesses matters."""
    effects = {a.effect, b.effect}
    return effects != {"read"} and effects != {"atomic"}


def _meetings(touches: Sequence[Touch], depth: int) -> Iterator[tuple[Touch, Touch]]:
    """Pairs of accesses by different members of the scope at ``depth`` that share an element."""
    live: list[Touch] = []
    for t in sorted((t for t in touches if len(t.members) > depth), key=lambda t: t.start):
        live = [other for other in live if other.end > t.start]
        for other in live:
            apart = other.members[depth] == t.members[depth] or other.members[:depth] != t.members[:depth]
            if not apart and _clash(other, t) and meet(other, t) is not None:
                yield other, t
        live.append(t)


def meet(a: Touch, b: Touch) -> int | None:
    """A position that both boxes hold, or None."""
    if a.end <= b.start or b.end <= a.start:
        return None
    common = np.intersect1d(a.positions(), b.positions())
    return int(common[0]) if len(common) else None
