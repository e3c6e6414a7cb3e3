"""Markers that the front end recognises by identity: region and loop constructs, hints, enums.

Calling one outside of a kernel is a mistake: kernel bodies are parsed, never executed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..ir.types import SplitMode


class KernelOnly(RuntimeError):
    """Raised when Python itself calls something that only has a meaning inside of a kernel."""


@dataclass(frozen=True)
class Marker:
    """Anything of ``pl`` that a kernel may call; ``namespace`` is "tensor" in ``pl.tensor.dim``, else ""."""

    name: str
    namespace: str = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise KernelOnly(
            f"{self} is part of the kernel language: it is parsed in a @pl.jit function, never executed"
        )

    def __str__(self) -> str:
        return f"pl.{self.namespace}.{self.name}" if self.namespace else f"pl.{self.name}"


class Construct(Marker):
    """A marker with its own rule in the front end: loops, regions, scopes."""


class Intrinsic(Marker):
    """A marker with its own rule in expressions: pl.min, pl.const, pl.tensor.dim, pl.get_block_idx."""


class OpMarker(Marker):
    """A marker that names one or more OpDefs."""


@dataclass(frozen=True)
class Unsupported(Marker):
    """A name of pypto.language that this implementation does not have.  As a decorator it stays in place, so
    that the file imports and the front end reports it where it is used."""

    why: str = ""
    fix: str = ""
    arguments: tuple[Any, ...] = field(default=(), compare=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key: Any) -> Any:
        return self


@dataclass(frozen=True)
class Namespace:
    """``pl.tensor``, ``pl.tile``, ``pl.array``, ``pl.system``."""

    name: str
    members: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        members = object.__getattribute__(self, "members")
        if name in members:
            return members[name]
        raise AttributeError(f"pl.{self.name} has no member {name!r}")


class Level(Enum):
    CORE_GROUP = "CORE_GROUP"
    CORE = "CORE"
    CHIP = "CHIP"
    HOST = "HOST"


class Role(Enum):
    AUTO = "AUTO"
    CUBE = "CUBE"
    VECTOR = "VECTOR"


class PadValue(Enum):
    """Fill values of pl.fillpad: 0, or the most negative or most positive finite value of the type."""

    zero = "zero"
    min = "min"
    max = "max"


class AtomicType(Enum):
    None_ = "none"
    Add = "add"


class TensorLayout(Enum):
    ND = "ND"
    NZ = "NZ"


@dataclass(frozen=True)
class Split:
    """``pl.split(mode, slot_num)`` in ``optimizations=``."""

    mode: SplitMode
    slot_num: int = 2


@dataclass(frozen=True)
class Slots:
    """``pl.cross_core_slot(slot_num=)``: the depth of the ring between the cube and the vector part."""

    slot_num: int


@dataclass(frozen=True)
class AutoChunk:
    """``pl.auto_chunk``: a hint for chunked loops; results do not change."""


def split(mode: SplitMode, slot_num: int = 2) -> Split:
    """Divide the vector part of a mixed region on two lanes.  Results do not change."""
    return Split(mode, slot_num)


def cross_core_slot(slot_num: int) -> Slots:
    """Set the number of slots of the ring between the cube and the vector part."""
    return Slots(slot_num)


LOOPS = ("range", "parallel", "pipeline", "unroll")
REGIONS = ("at", "spmd")
SCOPES = ("scope", "manual_scope")
INTRINSICS = ("min", "max", "const", "dim", "get_block_idx")
