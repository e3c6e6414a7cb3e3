"""What is the same in every execution of an op: its pipe and its time, from the OpDef and the rates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from ..errors import InternalError
from ..ir.expr import Var
from ..ir.nodes import Let, Stmt, Unit
from ..ir.rewrite import arg_exprs
from ..ir.types import SplitMode, TensorType, TileType
from ..ops import OpDef
from ..ops.registry import Access
from ..target import CROSSINGS
from .operations import Pipe
from .rates import Rates


@dataclass(frozen=True)
class Facts:
    """``pipe`` is None for an op without time: its result is as ready as its ``operands``, which are tiles.

    ``access`` is that of a load or a store, of elements of ``element_bytes``; ``crossing`` the bytes of a
    move through global memory.
    """

    pipe: Pipe | None
    operands: tuple[Var, ...]
    place: str
    seconds: float = 0.0
    flops: int = 0
    access: Access | None = None
    element_bytes: int = 1
    crossing: int = 0


def facts(s: Let, rates: Rates) -> Facts:
    op, where = s.op, place(s)
    if not isinstance(op, OpDef):
        raise InternalError(f"{op.name} at {s.span} is not in the registry")
    tiles = tuple(
        x for a in s.args for x in arg_exprs(a) if isinstance(x, Var) and isinstance(x.type, TileType)
    )
    types = [t for v in (*tiles, *s.results) if isinstance(t := v.type, TileType)]
    if op.name in ("load", "store"):
        (access,) = op.access(s)
        t = access.tensor.type
        size = t.dtype.bytes if isinstance(t, TensorType) else 1
        pipe = Pipe.LOAD if op.name == "load" else Pipe.STORE
        return Facts(pipe, tiles, where, access=access, element_bytes=size)
    if op.unit is Unit.CUBE:
        flops = op.cost(s).flops
        passes = rates.fp32_passes if _is_wide(s) else 1
        return Facts(Pipe.CUBE, tiles, where, flops * passes / rates.cube, flops)
    if op.unit is Unit.VEC and op.alias is None and types:
        flops = op.cost(s).flops or max(t.elements for t in types)  # an op that only moves elements
        lanes = 2 if any(t.split is not SplitMode.NONE for t in types) else 1
        return Facts(Pipe.VECTOR, tiles, where, flops / lanes / rates.vector, flops)
    if op.name == "move" and rates.ring_in_memory and (types[0].space, types[-1].space) in CROSSINGS:
        return Facts(Pipe.CROSS, tiles, where, crossing=2 * types[0].bytes)
    return Facts(None, tiles, where)


def _is_wide(s: Let) -> bool:
    """True for a product of fp32 operands."""
    lhs = s.arg("lhs")
    return (
        isinstance(lhs, Var)
        and isinstance(lhs.type, TileType)
        and lhs.type.dtype.is_float
        and lhs.type.dtype.bytes > 2
    )


def place(s: Stmt) -> str:
    return f"{PurePath(s.span.file).name}:{s.span.line}"
