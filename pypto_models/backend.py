"""The contract between the compiler and its backends: what a backend is given and what it builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from .ir.graph import TaskGraph
from .ir.nodes import Function
from .passes.plan_memory import MemoryPlan
from .schedule import Contraction, Override, RegionDomain, Schedule, plan_all
from .target import Target

Progress = Callable[[int, int, str], None]
"""``progress(done, total, label)``, called now and then while a program runs."""


@dataclass(frozen=True)
class Compiled:
    """Everything the compiler knows of one kernel: what a backend takes.

    ``overrides`` fix parts of the schedules of its regions on a GPU, by their names.
    """

    name: str
    function: Function
    graph: TaskGraph
    domains: tuple[RegionDomain, ...]
    plan: MemoryPlan
    target: Target
    warnings: tuple[str, ...]
    stages: tuple[tuple[str, Function], ...]
    overrides: Mapping[str, Override] = field(default_factory=dict)
    seconds: float = field(compare=False, default=0.0)

    def schedules(
        self,
        given: Mapping[str, Override] | None = None,
        accepts: Callable[[Schedule], str | None] | None = None,
    ) -> tuple[Schedule, ...]:
        """How the regions run on a GPU, in program order.

        ``given`` fixes parts of it by region name, by default the program's ``overrides``; ``accepts`` says
        why a backend cannot emit a stream, or None, and then the next best is taken.

        Raises UserError for a region that fits in no block, and for an override that cannot be.
        """
        return plan_all(self.domains, self.target, self.overrides if given is None else given, accepts)


class Executable(Protocol):
    """What a backend builds.  Mutates the tensors of Out and InOut parameters; gives the returned values."""

    def __call__(self, args: Mapping[str, Any], progress: Progress | None = None) -> Any: ...


@runtime_checkable
class OnDevice(Executable, Protocol):
    """An executable whose tensors are elsewhere than on the CPU, at ``device``, such as ``"cuda"``."""

    device: str

    def cannot_run(self) -> str | None:
        """Why it cannot run on this machine, or None."""
        ...


@dataclass(frozen=True)
class KernelRow:
    """One kernel of a bundle.

    ``how`` the region at ``line`` was lowered; bytes of shared memory of a block; registers and bytes of
    local memory (spills) of a thread; bytes of the file.
    """

    name: str
    region: str
    line: int
    how: str
    threads: int
    shared_bytes: int
    registers: int
    local_bytes: int
    code_bytes: int


@runtime_checkable
class Saved(Executable, Protocol):
    """An executable that can be kept in a folder and loaded where nothing can be compiled."""

    @property
    def kernels(self) -> tuple[KernelRow, ...]: ...

    def save(self, folder: Path) -> None: ...


class Backend(Protocol):
    """One folder of ``backends/``.

    ``native``: its programs are for the target itself.  The name of a target alone, as a platform, means the
    first native backend of the table that covers it.
    """

    name: str
    native: bool

    def covers(self, target: Target) -> str | None:
        """Why it builds nothing for ``target``, or None."""
        ...

    def unusable(self) -> str | None:
        """Why it builds nothing on this machine, or None."""
        ...

    def build(self, compiled: Compiled, *args: Any, **options: Any) -> Executable:
        """``options`` are the backend's own; one that it does not know is a TypeError.

        Raises a user error where the machine lacks what it takes.
        """
        ...


@runtime_checkable
class Supports(Protocol):
    """A backend that says of every op what becomes of it; docs/backends.md shows it."""

    def support(self, op: str) -> str:
        """Of an op by its IR name: ``rule``, ``decomposition`` (other ops stand in its place), or
        ``unsupported: why``.  A rule may still refuse element types or forms of the op, by name and line."""
        ...


@runtime_checkable
class Emits(Protocol):
    """A backend that writes source text, which is there to be read.  It takes no toolchain and no device."""

    def emit(self, compiled: Compiled) -> str: ...


@runtime_checkable
class Bundles(Protocol):
    """A backend whose programs can be kept.

    ``progress`` counts the kernels that are compiled; ``options`` are those of ``build``, and one of them is
    ``bundle``, the folder of a program to be loaded.
    """

    def bundle(self, compiled: Compiled, progress: Progress | None = None, **options: Any) -> Saved: ...


@runtime_checkable
class Plans(Protocol):
    """A backend that emits schedules of contractions other than those that the planner ranks first."""

    def schedules(self, region: str, line: int, found: Contraction, target: Target) -> Sequence[Schedule]:
        """What it can emit for a contraction, its default first."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A backend that compiles many programs in less time at once than one by one."""

    def prepare(self, programs: Sequence[Compiled], progress: Progress | None = None) -> None:
        """Afterwards ``bundle`` finds what it needs.  Says nothing of programs that do not compile."""
        ...


@runtime_checkable
class Reopens(Protocol):
    """A backend whose kept programs run where nothing can be compiled."""

    def open(self, folder: Path) -> Executable:
        """The program of a folder, for the device at hand.  Raises ValueError if it cannot run there."""
        ...
