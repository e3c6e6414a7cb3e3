"""What makes machine code of emitted source: the part of a GPU backend that needs a vendor's compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pypto_models.backend import Progress
from pypto_models.errors import NOWHERE, Diag, InternalError, user_error

from .module import KernelSource


@dataclass(frozen=True)
class Resources:
    """What a launch of a kernel takes.

    * ``threads`` and bytes of shared memory, of a block.
    * ``registers`` and bytes of local memory, which it spills to or indexes, of a thread.
    * ``extra_pointers``: so many null pointers stand behind the kernel's own arguments.
    * ``overlaps``: the kernel itself waits, where it must, for those before it, and so may be launched early.
    """

    threads: int
    shared_bytes: int
    registers: int
    local_bytes: int
    extra_pointers: int = 0
    overlaps: bool = False


@dataclass(frozen=True)
class MachineCode:
    """One compiled kernel: the file that a driver loads, its assembly, and its name in the file."""

    binary: bytes
    text: str
    symbol: str
    resources: Resources


@dataclass(frozen=True)
class Unit:
    """Emitted source, and those of its kernels that are wanted."""

    source: str
    kernels: Sequence[KernelSource]


@dataclass(frozen=True)
class Refusal:
    """What the compiler said to a kernel that it did not compile."""

    kernel: str
    message: str


Results = list[dict[str, MachineCode] | Refusal]
"""For each unit its kernels by name, or what was wrong with the first that failed."""


class Toolchain(Protocol):
    """A compiler of device code.  Nothing of it needs a GPU.

    ``name`` is its folder in the cache, and the extra of this project that installs ``package``.
    """

    name: str
    package: str

    def missing(self) -> str | None:
        """Why nothing can be compiled here, or None."""
        ...

    def versions(self) -> Mapping[str, str]:
        """What the machine code depends on besides all that is of this project."""
        ...

    def key_parts(self) -> Mapping[str, object]:
        """What it depends on of this project besides emitted source: device code, the way of compiling."""
        ...

    def suffix(self, arch: str) -> str:
        """Of a file of machine code."""
        ...

    def compile_units(self, units: Sequence[Unit], arch: str, progress: Progress | None = None) -> Results:
        """The kernels of every unit, all in one go; ``progress`` counts kernels.

        Raises a user error where :meth:`missing` says why.
        """
        ...


def require(toolchain: Toolchain, what: str) -> None:
    """Raises the user error if ``what`` cannot be compiled here."""
    if toolchain.missing() is not None:
        raise user_error(
            Diag.MISSING_EXTRA, NOWHERE, what=what, package=toolchain.package, extra=toolchain.name
        )


def compile_unit(
    toolchain: Toolchain, unit: Unit, arch: str, progress: Progress | None = None
) -> dict[str, MachineCode]:
    """The kernels of one unit.  Raises InternalError if one is refused: what is lowered must compile."""
    (out,) = toolchain.compile_units([unit], arch, progress)
    if isinstance(out, Refusal):
        raise InternalError(
            f"{toolchain.package} refused {out.kernel}, which this backend emitted:\n{out.message}"
        )
    return out
