"""A lowered function: kernels, the launches that run them, and the tensors in between."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .manifest import Launch, Repeat, Workspace


@dataclass(frozen=True)
class Argument:
    """What a kernel takes: its name there, its kind, and what the launcher passes (`Launch.arguments`)."""

    name: str
    kind: str
    passed: tuple[str, str]


@dataclass(frozen=True)
class KernelSource:
    """One kernel: its text, threads, bytes of shared memory, and how it was lowered."""

    name: str
    region: str
    line: int
    text: str
    threads: int
    shared_bytes: int
    how: str  # "stream", or why it runs block by block
    parameters: tuple[tuple[str, str], ...]  # (name, kind)
    resident: int = 0  # blocks that a core is to have registers for; 0: as many as ptxas finds right
    options: tuple[tuple[str, int], ...] = ()  # (name, value), for the compiler


@dataclass(frozen=True)
class Module:
    """A lowered function."""

    name: str
    target: str
    kernels: tuple[KernelSource, ...]
    launches: tuple[Launch | Repeat, ...]
    workspaces: tuple[Workspace, ...]
    source: str
    early: tuple[str, ...] = ()  # parameters that a kernel reads before it waits for those before it
    fenced: bool = True  # a kernel starts only when all that ran before the program is complete


def nested(launches: list[Launch], repeats: list[tuple[int, int, Repeat]]) -> tuple[Launch | Repeat, ...]:
    """Launches with their loops; ``repeats`` are (first launch, end, loop), inner loops before outer ones."""
    at: list[tuple[int, Launch | Repeat]] = list(enumerate(launches))
    for first, end, loop in repeats:
        inside = [x for i, x in at if first <= i < end]
        before = [(i, x) for i, x in at if i < first]
        at = [*before, (first, replace(loop, body=tuple(inside))), *((i, x) for i, x in at if i >= end)]
    return tuple(x for _, x in at)


def count(launches: tuple[Launch | Repeat, ...]) -> int:
    """How many launches there are, each trip of a loop taken as the same ones."""
    return sum(1 if isinstance(x, Launch) else count(x.body) for x in launches)
