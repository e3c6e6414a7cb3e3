"""Checks and type rules shared by the op families.  Types come in as argument variables."""

from __future__ import annotations

from ..errors import Diag, InternalError, user_error
from ..ir.expr import Const, DimVar, Expr, Var, index
from ..ir.nodes import Let
from ..ir.types import BOOL, FP8E8M0, UINT64, Dim, DType, TensorType, TileType, promote
from .registry import Cost


def tile_type(x: object) -> TileType:
    if not isinstance(x, Var) or not isinstance(x.type, TileType):
        raise InternalError(f"expected a tile, got {x!r}")
    return x.type


def tensor_type(x: object) -> TensorType:
    if not isinstance(x, Var) or not isinstance(x.type, TensorType):
        raise InternalError(f"expected a tensor, got {x!r}")
    return x.type


def is_tile(x: object) -> bool:
    return isinstance(x, Var) and isinstance(x.type, TileType)


def is_tensor(x: object) -> bool:
    return isinstance(x, Var) and isinstance(x.type, TensorType)


def result_of(let: Let) -> TileType:
    return tile_type(let.result)


def operand_tiles(let: Let) -> list[TileType]:
    return [tile_type(a) for a in let.args if is_tile(a)]


def describe(t: TileType | TensorType) -> str:
    """``[16, 256] FP32`` for messages."""
    return f"[{', '.join(show_dim(d) for d in t.shape)}] {t.dtype}"


def show_dim(d: Dim | None) -> str:
    if d is None:
        return "?"
    return str(d) if isinstance(d, int) else d.name if isinstance(d, DimVar) else "?"


def require(condition: bool, diag: Diag, op: str, why: str, fix: str) -> None:
    if not condition:
        raise user_error(diag, op=op, why=why, fix=fix)


def require_rank2(op: str, *tiles: TileType) -> None:
    for t in tiles:
        require(
            t.rank == 2, Diag.SHAPE, f"pl.{op}", f"needs two axes, got {describe(t)}",
            "reshape it with pl.reshape(x, [rows, cols])",
        )  # fmt: skip


def require_float(op: str, *tiles: TileType) -> None:
    for t in tiles:
        require(
            t.dtype.is_float and t.dtype != FP8E8M0, Diag.DTYPE, f"pl.{op}",
            f"needs a float tile, got {describe(t)}", "cast it first: pl.cast(x, pl.FP32)",
        )  # fmt: skip


def require_number(op: str, *tiles: TileType) -> None:
    """Refuse element types that have no arithmetic: truth values, scales, and integers wider than int64."""
    for t in tiles:
        require(
            t.dtype not in (BOOL, UINT64, FP8E8M0), Diag.DTYPE, f"pl.{op}",
            f"{t.dtype} has no arithmetic, got {describe(t)}", "cast it first, to pl.INT32 or pl.FP32",
        )  # fmt: skip


def require_scalar(op: str, dtype: DType, value: Expr) -> None:
    """Refuse a scalar that elements of ``dtype`` cannot hold: a fraction, or an integer out of range."""
    require(
        dtype.is_float or not value.dtype.is_float, Diag.DTYPE, f"pl.{op}",
        f"a float scalar where the elements are {dtype}", f"pl.cast(value, pl.{dtype}), or use a float type",
    )  # fmt: skip
    if isinstance(value, Const):
        low, high = integer_range(dtype)
        require(
            dtype.is_float or low <= value.value <= high, Diag.DTYPE, f"pl.{op}",
            f"{value.value} does not fit {dtype}, which holds {low} to {high}", "use a wider type",
        )  # fmt: skip


def integer_range(dtype: DType) -> tuple[int, int]:
    """The least and the greatest integer of an integer type."""
    if dtype.kind == "bool":
        return 0, 1
    half = 2 ** (dtype.bits - 1)
    return (0, 2 * half - 1) if dtype.kind == "uint" else (-half, half - 1)


def common_dtype(op: str, a: DType, b: DType) -> DType:
    """The type that operands of two types compute in and give: see :func:`~..ir.types.promote`."""
    require(
        a == b or not (a.is_float and b.is_float and a.bits == b.bits), Diag.DTYPE, f"pl.{op}",
        f"{a} and {b} are equally wide, and neither holds the other", "cast one: pl.cast(x, pl.FP32)",
    )  # fmt: skip
    return promote(a, b)


def static_shape(op: str, shape: tuple[Expr, ...]) -> tuple[int, ...]:
    """Extents of a tile: compile-time positive integers."""
    out = []
    for d in shape:
        if not isinstance(d, Const):
            raise user_error(
                Diag.NOT_CONSTANT, what=f"every extent of the tile that pl.{op} makes",
                fix="give a constant shape and put the run-time extent into valid_shape=",
            )  # fmt: skip
        require(
            int(d.value) > 0, Diag.SHAPE, f"pl.{op}", f"the extent {d.value} is not positive",
            "every extent of a tile is at least 1",
        )  # fmt: skip
        out.append(int(d.value))
    return tuple(out)


def smaller(a: Dim, b: Dim) -> bool:
    """True if ``a`` and ``b`` are known and a < b."""
    return isinstance(a, int) and isinstance(b, int) and a < b


def same_dim(a: Dim | None, b: Dim | None) -> bool:
    return a is not None and b is not None and index(a) == index(b)


def singleton(t: TileType, axis: int) -> bool:
    """True if the tile has one element on ``axis``, so that a split leaves it whole."""
    return t.rank <= axis or t.shape[axis] == 1


def elements_cost(let: Let) -> Cost:
    return Cost(flops=max((t.elements for t in [*operand_tiles(let), result_of(let)]), default=0))
