"""A lowered function: kernels, the launches that run them, and the tensors in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .manifest import Launch, Repeat, Workspace


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


def typed(name: str, kind: str) -> str:
    """A parameter of a kernel, as its source declares it."""
    return f"{name}: {'cute.Pointer' if kind.startswith('pointer') else kind}"


def signature(name: str, parameters: Sequence[tuple[str, str]]) -> str:
    """The line that a kernel begins with, of its (name, kind)."""
    return f"def {name}({', '.join(typed(*p) for p in parameters)}):"


def launcher(name: str, parameters: Sequence[tuple[str, str]], threads: int, resident: int = 0) -> list[str]:
    """The lines behind a kernel: what is compiled is a launch of it, whose grid the runtime replaces.

    ptxas takes no more registers than a core has for ``resident`` blocks, and spills none to make room for
    more; with 0 it weighs that itself.
    """
    room = f"min_blocks_per_mp={resident}, " if resident else ""
    if resident > 1:  # without a preference the DSL would ask the GPU at hand, and there may be none
        room += "preferred_smem_carveout=100, "
    return [
        "",
        "",
        "@cute.jit",
        signature(f"launch_{name}", parameters),
        f"    {name}({', '.join(n for n, _ in parameters)})"
        f".launch(grid=[1, 1, 1], block=[{threads}, 1, 1], {room}use_pdl=True)",
    ]


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
