"""What the harness needs to know of a compiled kernel, and nothing more."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Progress = Callable[[int, int, str], None]
"""``progress(done, total, label)``, called by a program while it runs."""


class Param(Protocol):
    """One parameter of a kernel."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str:
        """``'tensor'`` or ``'scalar'``."""

    @property
    def direction(self) -> str:
        """``'in'``, ``'out'`` or ``'inout'``, as declared."""


class Program(Protocol):
    """A compiled kernel. Calling it with tensors and python scalars, in parameter order, writes them in
    place."""

    @property
    def params(self) -> Sequence[Param]: ...
    @property
    def written(self) -> Collection[str]:
        """Names of the parameters that the kernel may change, from its effects rather than its
        annotations."""

    @property
    def warnings(self) -> Sequence[str]: ...
    def __call__(self, *args: Any) -> Any: ...


def is_program(candidate: object) -> bool:
    """Whether it is compiled already."""
    return callable(candidate) and all(hasattr(candidate, name) for name in ("params", "written", "warnings"))


def cannot_run(program: object) -> str | None:
    """Why a program cannot run on this machine, if it can tell; else None."""
    ask: Callable[[], str | None] | None = getattr(program, "cannot_run", None)
    return None if ask is None else ask()


def launch(program: Program, args: Sequence[Any], progress: Progress) -> None:
    """Call the program; one that can report its progress does so to ``progress``.

    A program of a device, by its attribute ``device``, gets copies of the tensors there.  All of them are
    copied back, also those that it may only read: whether it changed them is for the caller to see.
    """
    device = torch.device(getattr(program, "device", "cpu"))
    there = {id(a): a.to(device) for a in args if isinstance(a, Tensor)}  # one copy of what is passed twice
    given = [there[id(a)] if isinstance(a, Tensor) else a for a in args]
    if _takes_progress(program):
        call: Callable[..., Any] = program
        call(*given, progress=progress)
    else:
        program(*given)
    for a, b in zip(args, given, strict=True):
        if a is not b:
            a.copy_(b)  # waits for the program


def _takes_progress(program: Program) -> bool:
    parameters = inspect.signature(program.__call__).parameters.values()
    return any(p.name == "progress" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
