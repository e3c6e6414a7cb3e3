"""Reading and writing one element of a tensor or a tile as a scalar."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import Diag, user_error
from ..ir.expr import Expr, Var
from ..ir.nodes import Let, Unit
from ..ir.types import ScalarType, TensorType, TileType
from .boxes import Index, accepts, check_in_bounds, check_rank, move_cost
from .common import describe, require_scalar, tensor_type, tile_type
from .registry import Access, Effect, Kind, OpDef, OpParam, op
from .slicing import insert_reference
from .value import GlobalMemory, TileValue, filled

_AT = OpParam("index", Kind.INDEX)


def _read_infer(t: Expr, at: Index) -> ScalarType:
    base: Any = t.type if isinstance(t, Var) else None
    check_rank("read", len(base.shape), "the index", at)
    check_in_bounds("read", tuple(base.shape), at, (1,) * len(at))
    return ScalarType(base.dtype)


def _read_tensor_reference(t: GlobalMemory, at: Any) -> Any:
    return t.load(at, (1,) * len(at)).item()


def _read_tile_reference(t: TileValue, at: Any) -> Any:
    if any(not 0 <= i < d for i, d in zip(at, t.valid, strict=True)):
        raise user_error(
            Diag.INVALID_READ, op="pl.read", tensor="a tile",
            why=f"element {list(at)} of the valid {list(t.valid)}", fix="guard the index",
        )  # fmt: skip
    return t.read()[at].item()


def _element(effect: Effect, name: str) -> Any:
    def access(let: Let) -> tuple[Access, ...]:
        at: Any = let.arg("index")
        one = (1,) * len(at)
        tensor: Any = let.arg(name)
        return (Access(tensor, effect, at, one, one),)

    return access


def _no_element_split(axis: int, let: Let) -> str | None:
    t = tile_type(let.args[0])
    if t.rank <= axis or t.shape[axis] == 1:
        return None
    return f"one element of {describe(t)} lives in one lane only"


READ = op(
    "read_tensor", OpParam("t", Kind.TENSOR), _AT, spelling="read",
    doc="One element of a tensor as a scalar; ``t[i, j]`` is sugar.", infer=_read_infer, unit=Unit.NONE,
    reference=_read_tensor_reference, access=_element(Effect.READ, "t"), cost=move_cost, outside=True,
    accepts=lambda first, inside: isinstance(first, TensorType), namespaces=("", "tensor"),
)  # fmt: skip
READ_TILE = op(
    "read_tile", OpParam("t", Kind.TILE), _AT, spelling="read", doc="One element of a tile as a scalar.",
    infer=_read_infer, reference=_read_tile_reference, accepts=accepts(True, TileType),
    split=_no_element_split,
)  # fmt: skip


def _write_infer(t: Expr, at: Index, value: Expr) -> None:
    base = tensor_type(t)
    require_scalar("write", base.dtype, value)
    check_rank("write", base.rank, "the index", at)
    check_in_bounds("write", base.shape, at, (1,) * len(at))


def _write_reference(t: GlobalMemory, at: Any, value: Any) -> None:
    t.store(at, torch.tensor(value).reshape((1,) * len(at)), False)


WRITE = op(
    "write_tensor", OpParam("t", Kind.TENSOR), _AT, OpParam("value", Kind.SCALAR), spelling="write",
    doc="Write one element of a tensor.  A bulk store and a scalar write to one tensor do not mix in a "
    "region.",
    infer=_write_infer, unit=Unit.VEC, reference=_write_reference, access=_element(Effect.WRITE, "t"),
    cost=move_cost, accepts=accepts(True, TensorType), namespaces=("", "tensor"),
)  # fmt: skip


def _write_tile_infer(t: Expr, at: Index, value: Expr) -> TileType:
    base = tile_type(t)
    require_scalar("write", base.dtype, value)
    check_rank("write", base.rank, "the index", at)
    check_in_bounds("write", base.shape, at, (1,) * len(at))
    return TileType(base.shape, base.dtype, base.valid)


def _write_tile_reference(t: TileValue, at: Any, value: Any) -> TileValue:
    one = filled("pl.write", (1,) * len(at), value, t.data.dtype)
    return insert_reference(t, TileValue(one, (1,) * len(at)), at, "none")


WRITE_TILE = op(
    "write_tile", OpParam("t", Kind.TILE), _AT, OpParam("value", Kind.SCALAR), spelling="write",
    doc="Write one element of a tile.", infer=_write_tile_infer, reference=_write_tile_reference,
    accepts=accepts(True, TileType), split=_no_element_split, inplace=("t",), mutates="t",
)  # fmt: skip

OPS: tuple[OpDef, ...] = (READ, READ_TILE, WRITE, WRITE_TILE)
