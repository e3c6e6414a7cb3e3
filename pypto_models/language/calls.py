"""Calls of operations: choose the overload, bind and convert the arguments, infer types, emit."""

from __future__ import annotations

import ast
import difflib
import math
from enum import Enum
from typing import Any

from ..errors import Diag, Span, user_error
from ..ir.expr import Const, Expr, Var, dim_expr, index
from ..ir.nodes import Unit
from ..ir.types import FP32, INDEX, ArrayType, DType, Mem, ScalarType, TaskType, TensorType, TileType
from ..ops import REGISTRY
from ..ops.common import describe
from ..ops.registry import Kind, OpDef, OpParam
from .constructs import OpMarker
from .context import Context, Undefined

KERNEL_ONLY = "kernel"


def type_of(value: Any) -> Any:
    """The IR type of a value; None for compile-time objects."""
    if isinstance(value, Var):
        return value.type
    if isinstance(value, Expr):
        return ScalarType(value.dtype)
    return None


def call_op(
    ctx: Context, marker: OpMarker, args: list[Any], keywords: dict[str, Any], node: ast.AST, hint: str
) -> Any:
    """Elaborate ``pl.<op>(*args, **keywords)``; the result is its variable, or the target of a store."""
    overloads = REGISTRY.overloads(marker.namespace, marker.name)
    op_def = _choose(ctx, marker, overloads, args, keywords, node)
    with ctx.at(node) as span:
        bound = bind(ctx, op_def, args, keywords, node)
        return emit(ctx, op_def, bound, span, hint)


def emit(ctx: Context, op_def: OpDef, bound: tuple[Any, ...], span: Span, hint: str = "") -> Any:
    """Emit one op on converted arguments."""
    result = op_def.infer(*bound)
    types = () if result is None else (result,)
    let = ctx.let(op_def, bound, types, hint or op_def.spelling, span)
    if op_def.mutates is not None:
        ctx.rebind(bound[op_def.index(op_def.mutates)], let.result)
    return let.result if types else bound[0]


def _choose(
    ctx: Context, marker: OpMarker, overloads: list[OpDef], args: list[Any], keywords: dict[str, Any], node: ast.AST
) -> OpDef:
    first_name = overloads[0].params[0].name if overloads[0].params else ""
    first = args[0] if args else keywords.get(first_name)
    for o in overloads:
        if not args and o.params and o.params[0].name in keywords:
            first = keywords[o.params[0].name]
    kind, inside = type_of(first), ctx.place.region is not None
    for o in overloads:
        if o.accepts is None or o.accepts(kind, inside):
            if not inside and not o.outside:
                raise _misplaced(ctx, marker, node)
            return o
    if any(o.accepts is not None and o.accepts(kind, not inside) for o in overloads):
        raise _misplaced(ctx, marker, node)
    raise ctx.error(
        Diag.BAD_ARGUMENT, node, op=str(marker), why=f"the first argument is {show(first)}",
        fix="expected a tensor" + (" or a tile" if len(overloads) > 1 else ""),
    )  # fmt: skip


def _misplaced(ctx: Context, marker: OpMarker, node: ast.AST) -> Exception:
    return ctx.error(
        Diag.MISPLACED, node, what=f"{marker} computes on a core, and this call", why="is outside of any region",
        fix="put it into `with pl.at(level=pl.Level.CORE_GROUP):` or a pl.spmd body",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ arguments
def bind(ctx: Context, op_def: OpDef, args: list[Any], keywords: dict[str, Any], node: ast.AST) -> tuple[Any, ...]:
    """Arguments in parameter order, each converted to what its :class:`Kind` says."""
    name = f"pl.{op_def.spelling}"
    params = op_def.params
    if len(args) > len(params):
        raise ctx.error(
            Diag.BAD_CALL, node, op=name, why=f"{len(args)} arguments, it takes at most {len(params)}",
            signature=op_def.signature,
        )  # fmt: skip
    given: dict[str, Any] = {p.name: a for p, a in zip(params, args, strict=False)}
    for key, value in keywords.items():
        if key not in op_def.param_names:
            close = difflib.get_close_matches(key, op_def.param_names, 1)
            error = ctx.error(
                Diag.UNKNOWN_KEYWORD, node, op=name, keyword=key, known=", ".join(op_def.param_names) or "nothing"
            )
            if close:
                error.notes.append(f"did you mean {close[0]!r}?")
            raise error
        if key in given:
            raise ctx.error(
                Diag.BAD_CALL, node, op=name, why=f"{key!r} is given twice", signature=op_def.signature
            )  # fmt: skip
        given[key] = value
    missing = [p.name for p in params if p.required and p.name not in given]
    if missing:
        raise ctx.error(
            Diag.BAD_CALL, node, op=name, why=f"missing {', '.join(missing)}", signature=op_def.signature
        )  # fmt: skip
    return tuple(_convert(ctx, op_def, p, given[p.name]) if p.name in given else p.default for p in params)


def _convert(ctx: Context, op_def: OpDef, param: OpParam, value: Any) -> Any:
    name = f"pl.{op_def.spelling}"
    if isinstance(value, Undefined):
        raise value.error
    if value is None and param.default is None:
        return None
    kind = param.kind
    if kind in (Kind.TILE, Kind.TILE_OR_SCALAR) and isinstance(type_of(value), TensorType):
        return load_whole(ctx, value, name)
    if kind is Kind.TILE_OR_SCALAR and isinstance(type_of(value), ScalarType):
        return _scalar(value)
    if kind in (Kind.TILE, Kind.TILE_OR_SCALAR):
        return _expect(name, param, value, TileType)
    if kind is Kind.TENSOR:
        return _expect(name, param, value, TensorType)
    if kind is Kind.ARRAY:
        return _expect(name, param, value, ArrayType)
    if kind is Kind.SCALAR:
        if isinstance(type_of(value), TaskType) or isinstance(type_of(value), ScalarType):
            return _scalar(value)
        raise _wrong(name, param, value, "a scalar")
    if kind is Kind.INDEX:
        return tuple(_index(name, param, v) for v in _sequence(name, param, value))
    if kind is Kind.STATIC:
        values = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(v, Const) for v in values):
            raise _wrong(name, param, value, "a list of constants")
        return tuple(int(v.value) for v in values)
    if kind is Kind.TASKS:
        return tuple(v for v in _sequence(name, param, value) if v is not None)
    if kind is Kind.DTYPE:
        if isinstance(value, DType) and value.name != "TASK_ID" or op_def.name == "array_create":
            return value
        raise _wrong(name, param, value, "a dtype such as pl.FP32")
    if kind is Kind.MEM:
        if isinstance(value, Mem):
            return value
        raise _wrong(name, param, value, "a memory space such as pl.Mem.Vec")
    if kind is Kind.BOOL:
        if isinstance(value, Const):
            return bool(value.value)
        raise _wrong(name, param, value, "a constant True or False")
    if kind is Kind.PAD:
        return _pad(name, param, value)
    return _choice(name, param, value)


def _choice(name: str, param: OpParam, value: Any) -> Any:
    plain = value.value if isinstance(value, Enum | Const) else value
    if param.name == "mode" and isinstance(plain, int) and not isinstance(plain, bool) and 0 <= plain < len(param.choices):
        plain = param.choices[plain]
    if plain in param.choices:
        return plain
    raise user_error(
        Diag.BAD_ARGUMENT, op=name, why=f"{param.name}={plain!r} is not a choice",
        fix=f"one of {', '.join(map(repr, param.choices))}",
    )  # fmt: skip


def _pad(name: str, param: OpParam, value: Any) -> Any:
    if isinstance(value, Enum) and value.value in ("zero", "min", "max"):
        return value.value
    if isinstance(value, Const) and (value.value == 0 or math.isinf(value.value)):
        return float(value.value) if math.isinf(value.value) else "zero"
    raise _wrong(name, param, value, "pl.PadValue.zero, min or max, or 0 or +-inf")


def _expect(name: str, param: OpParam, value: Any, wanted: type) -> Any:
    if isinstance(type_of(value), wanted):
        return value
    what = {TileType: "a tile", TensorType: "a tensor", ArrayType: "an array"}[wanted]
    raise _wrong(name, param, value, what)


def _wrong(name: str, param: OpParam, value: Any, wanted: str) -> Exception:
    return user_error(
        Diag.BAD_ARGUMENT, op=name, why=f"{param.name} is {show(value)}", fix=f"expected {wanted}"
    )  # fmt: skip


def _sequence(name: str, param: OpParam, value: Any) -> tuple[Any, ...]:
    if isinstance(value, tuple):
        return value
    if param.kind is Kind.INDEX and isinstance(type_of(value), ScalarType):
        return (value,)
    raise _wrong(name, param, value, "a list such as [16, 128]")


def _index(name: str, param: OpParam, value: Any) -> Expr:
    if isinstance(value, Undefined):
        raise value.error
    t = type_of(value)
    if isinstance(t, ScalarType) and t.dtype.is_integer:
        return _scalar(value)
    raise _wrong(name, param, value, "integers or index scalars")


def _scalar(value: Any) -> Expr:
    return value if isinstance(value, Expr) else Const(value, FP32 if isinstance(value, float) else INDEX)


def load_whole(ctx: Context, tensor: Var, name: str) -> Var:
    """A tensor used as a tile operand is loaded whole."""
    t = tensor.type
    if not isinstance(t, TensorType) or not all(isinstance(d, int) for d in t.shape):
        raise user_error(
            Diag.NOT_CONSTANT, what=f"the shape of the tensor {tensor.name!r}, which {name} needs whole on chip,",
            fix=f"slice a tile of it: pl.slice({tensor.name}, [rows, cols], [row, col])",
        )  # fmt: skip
    load = REGISTRY["load"]
    shape = tuple(dim_expr(d) for d in t.shape)
    args = (tensor, shape, tuple(index(0) for _ in shape), None, None, None, False)
    result = load.infer(*args)
    return ctx.let(load, args, (result,), tensor.name, user_error(Diag.SYNTAX).span).result


def show(value: Any) -> str:
    """A value for messages."""
    t = type_of(value)
    if isinstance(t, TensorType):
        return f"the tensor {value.name} {describe(t)}"
    if isinstance(t, TileType):
        return f"the tile {value.name} {describe(t)}"
    if isinstance(value, Const):
        return repr(value.value)
    if isinstance(t, ScalarType):
        return f"a {t.dtype} scalar"
    if isinstance(t, TaskType):
        return "a task id"
    if isinstance(t, ArrayType):
        return "an array"
    if isinstance(value, Undefined):
        return "an undefined name"
    return "nothing" if value is None else repr(value)


def needs_region(op_def: OpDef) -> bool:
    return not op_def.outside and op_def.unit in (Unit.VEC, Unit.CUBE, Unit.NONE)
