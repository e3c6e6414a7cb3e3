"""One OpDef per operation: signature, types, effects, reference, cost, split, documentation.

Everything that knows an operation reads it here: the front end binds call arguments to ``params``, the
simulator runs ``reference``, the split pass asks ``split``, the planner asks ``inplace`` and ``alias``, the
docs print ``doc``, and the tests run ``samples`` on every backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from ..errors import InternalError
from ..ir.expr import Expr, Var
from ..ir.nodes import Let, Operation, Unit
from ..ir.types import Dim, DType, Type


class Kind(Enum):
    """What an argument is."""

    TILE = auto()  # a tile; inside a region a tensor is loaded whole
    TILE_OR_SCALAR = auto()
    TENSOR = auto()  # a tensor in global memory
    SCALAR = auto()  # a scalar expression
    INDEX = auto()  # a list of index expressions
    STATIC = auto()  # a list of compile-time integers
    TASKS = auto()  # task ids
    ARRAY = auto()
    DTYPE = auto()
    MEM = auto()
    BOOL = auto()
    CHOICE = auto()  # one of ``choices``
    PAD = auto()  # pl.PadValue, 0 or +-inf


class _Required(Enum):
    REQUIRED = auto()


REQUIRED = _Required.REQUIRED


@dataclass(frozen=True)
class OpParam:
    name: str
    kind: Kind
    default: Any = REQUIRED
    choices: tuple[Any, ...] = ()
    synonyms: tuple[str, ...] = ()  # other keywords for it

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


@dataclass(frozen=True)
class Cost:
    """Work of one execution: ``flops`` on the op's unit, ``bytes`` moved from or to global memory."""

    flops: int = 0
    bytes: int = 0


class Effect(Enum):
    READ = "read"
    WRITE = "write"
    ATOMIC = "atomic"


@dataclass(frozen=True)
class Access:
    """One access to global memory: the box of ``shape`` at ``offset``, of which ``valid`` is touched."""

    tensor: Var
    effect: Effect
    offset: tuple[Expr, ...]
    shape: tuple[Dim, ...]
    valid: tuple[Dim | None, ...]


@dataclass(frozen=True)
class T:
    """A tile operand of a :class:`Sample`: extents, element type, valid rectangle, range of the values."""

    shape: tuple[int, ...]
    dtype: DType
    valid: tuple[int, ...] | None = None
    low: float = -2.0
    high: float = 2.0


@dataclass(frozen=True)
class Sample:
    """Arguments of one call for the op x backend tests; tile operands are :class:`T`."""

    args: tuple[Any, ...] = ()
    keywords: tuple[tuple[str, Any], ...] = ()


def _no_cost(let: Let) -> Cost:
    return Cost()


def _no_access(let: Let) -> tuple[Access, ...]:
    return ()


def _any_split(axis: int, let: Let) -> str | None:
    return None


@dataclass(frozen=True, eq=False, repr=False)
class OpDef(Operation):
    """One operation of the language.

    * ``infer(*args)`` gives the result types, or raises a user error.
    * ``reference(*args)`` computes on :class:`~.value.TileValue`, numbers and global memory views.
    * ``access(let)`` lists the boxes of global memory that the op reads, writes or adds to.
    * ``split(axis, let)`` is None if halving that axis over two lanes keeps the result, else the reason.
    * ``inplace`` names operands whose storage the result may take over; ``alias`` one that it is a view of.
    * ``mutates`` names a tile or array that the op changes in place: every name bound to it sees the result.
    * ``combine`` is the operator of an associative reduction (of a row, or over the trips of a loop).
    """

    params: tuple[OpParam, ...]
    doc: str
    infer: Callable[..., Type | None]
    unit: Unit = Unit.VEC
    reference: Callable[..., Any] | None = None
    access: Callable[[Let], tuple[Access, ...]] = _no_access
    cost: Callable[[Let], Cost] = _no_cost
    split: Callable[[int, Let], str | None] = _any_split
    inplace: tuple[str, ...] = ()
    alias: str | None = None
    mutates: str | None = None
    combine: str | None = None
    accepts: Callable[[Type | None, bool], bool] | None = None  # overload: (first type, in a region)
    outside: bool = False  # legal outside of regions
    namespaces: tuple[str, ...] = ("", "tensor", "tile")
    samples: tuple[Sample, ...] = field(default=())

    @property
    def signature(self) -> str:
        parts = [p.name if p.required else f"{p.name}={_show(p)}" for p in self.params]
        return f"pl.{self.spelling}({', '.join(parts)})"


def _show(p: OpParam) -> str:
    return f"pl.PadValue.{p.default}" if p.kind is Kind.PAD and p.default is not None else repr(p.default)


def op(name: str, *params: OpParam, spelling: str | None = None, **facets: Any) -> OpDef:
    """Make an OpDef; ``spelling`` defaults to the name."""
    return OpDef(name, spelling or name, tuple(p.name for p in params), params=params, **facets)


class Registry:
    """All ops, by IR name and by spelling.  Built once, explicitly, in ``ops/__init__.py``."""

    def __init__(self, ops: Iterable[OpDef]) -> None:
        self.by_name: dict[str, OpDef] = {}
        self.by_spelling: dict[str, list[OpDef]] = {}
        for o in ops:
            if o.name in self.by_name:
                raise InternalError(f"two ops are named {o.name}")
            self.by_name[o.name] = o
            self.by_spelling.setdefault(o.spelling, []).append(o)

    def __getitem__(self, name: str) -> OpDef:
        return self.by_name[name]

    def __iter__(self) -> Iterator[OpDef]:
        return iter(self.by_name.values())

    def overloads(self, namespace: str, spelling: str) -> list[OpDef]:
        """Ops written ``pl.<namespace>.<spelling>``; empty if there is none."""
        return [o for o in self.by_spelling.get(spelling, []) if namespace in o.namespaces]

    @property
    def spellings(self) -> list[str]:
        return sorted(self.by_spelling)
