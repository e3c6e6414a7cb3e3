"""Python expressions to values: names, constants, arithmetic, subscripts, attributes, calls."""

from __future__ import annotations

import ast
import builtins
import difflib
from enum import Enum
from types import ModuleType
from typing import Any

from ..errors import Diag
from ..ir.expr import (
    COMPARISONS,
    Const,
    DimVar,
    Expr,
    Var,
    binary,
    convert,
    difference,
    dim_expr,
    index,
    logical_not,
    negate,
)
from ..ir.types import (
    BOOL,
    FP32,
    INDEX,
    ArrayType,
    DType,
    Mem,
    ScalarType,
    SplitMode,
    TaskType,
    TensorType,
    TileType,
)
from ..ops import REGISTRY
from . import annotations, constructs
from .calls import call_op, emit, show, type_of
from .constructs import Intrinsic, Marker, OpMarker, Unsupported
from .context import POISON, Context, Poisoned, Suppressed, Undefined
from .kernel import MISSING, Kernel

_BINARY: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "add"),
    ast.Sub: ("-", "sub"),
    ast.Mult: ("*", "mul"),
    ast.Div: ("/", "div"),
    ast.FloorDiv: ("//", ""),
    ast.Mod: ("%", ""),
    ast.Pow: ("**", ""),
}
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
_BUILTINS = {"min": min, "max": max, "abs": abs, "float": float, "int": int, "range": range, "len": len}


def evaluate(ctx: Context, node: ast.expr, hint: str = "") -> Any:
    """The value of an expression; ``hint`` names the variable if the expression is an op."""
    rule = _RULES.get(type(node))
    if rule is None:
        raise ctx.error(
            Diag.SYNTAX, node, what=f"a Python {type(node).__name__.lower()} expression",
            fix="use names, numbers, arithmetic, comparisons, slices and pl.* calls",
        )  # fmt: skip
    value = rule(ctx, node, hint) if rule in (_call,) else rule(ctx, node)
    if isinstance(value, Poisoned):
        raise Suppressed
    return value


def scalar(ctx: Context, node: ast.expr) -> Expr:
    """An expression that must be a scalar."""
    value = evaluate(ctx, node)
    if isinstance(type_of(value), ScalarType):
        return value  # type: ignore[no-any-return]
    raise ctx.error(Diag.BAD_ARGUMENT, node, op="this expression", why=f"got {show(value)}", fix="expected a scalar")


def lift(value: Any) -> Any:
    """A Python constant as a value of the front end."""
    if isinstance(value, bool):
        return Const(value, BOOL)
    if isinstance(value, int) and not isinstance(value, Enum):
        return Const(value)
    if isinstance(value, float):
        return Const(value, FP32)
    if isinstance(value, list | tuple):
        return tuple(lift(v) for v in value)
    return value


# ------------------------------------------------------------------------------------------ names
def _name(ctx: Context, node: ast.Name) -> Any:
    name = node.id
    if name in ctx.names:
        value = ctx.names[name]
        if isinstance(value, Undefined):
            raise _undefined_use(ctx, value, node)
        return value
    if name in ctx.constants:
        ctx.used_constants.add(name)
        return lift(ctx.constants[name])
    found = ctx.frame.kernel.lookup(name)
    if found is MISSING:
        if name in _BUILTINS:
            return _BUILTINS[name]
        raise _unknown_name(ctx, node)
    return _admit(ctx, node, found)


def _admit(ctx: Context, node: ast.Name, found: Any) -> Any:
    """A global that may be used in a kernel, as a value."""
    if isinstance(found, DimVar):
        raise ctx.error(
            Diag.SYNTAX, node, what=f"the dynamic extent {found.name} as a value",
            fix="read the extent with pl.tensor.dim(tensor, axis)",
        )  # fmt: skip
    allowed = (bool, int, float, str, Enum, DType, Marker, Kernel, ModuleType, list, tuple, type)
    if isinstance(found, (*allowed, constructs.Namespace, constructs.Split, constructs.Slots, constructs.AutoChunk)):
        return lift(found)
    raise ctx.error(
        Diag.NOT_CONSTANT, node, what=f"{node.id!r} (a {type(found).__name__} of the module)",
        fix="kernels read int, float, bool and dtype constants; pass tensors as arguments",
    )  # fmt: skip


def _undefined_use(ctx: Context, value: Undefined, node: ast.Name) -> Exception:
    error = value.error
    error.span = ctx.span(node)
    return error


def _unknown_name(ctx: Context, node: ast.Name) -> Exception:
    known = [*ctx.names, *ctx.frame.kernel.fn.__globals__]
    close = difflib.get_close_matches(node.id, [k for k in known if not hasattr(builtins, k)], 1)
    fix = f"did you mean {close[0]!r}?" if close else "give it a value first, or define it in the module"
    return ctx.error(Diag.UNDEFINED, node, name=node.id, fix=fix)


def _constant(ctx: Context, node: ast.Constant) -> Any:
    value = node.value
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return lift(value)
    raise ctx.error(Diag.SYNTAX, node, what=f"the literal {value!r}", fix="use integers, floats, True or False")


def _tuple(ctx: Context, node: ast.Tuple | ast.List) -> Any:
    return tuple(evaluate(ctx, e) for e in node.elts)


def _attribute(ctx: Context, node: ast.Attribute) -> Any:
    base = evaluate(ctx, node.value)
    kind = type_of(base)
    if isinstance(kind, TensorType | TileType):
        if node.attr == "shape":
            return tuple(dim_expr(d) for d in kind.shape)
        if node.attr == "dtype":
            return kind.dtype
        if node.attr == "bind_dynamic":
            return _BindDynamic(base)
        raise ctx.error(
            Diag.SYNTAX, node, what=f"the attribute .{node.attr} of a tensor", fix="known: .shape, .dtype"
        )  # fmt: skip
    if isinstance(base, ModuleType | constructs.Namespace | type) or base is None or isinstance(base, Marker):
        try:
            return lift(getattr(base, node.attr))
        except AttributeError:
            raise _unknown_attribute(ctx, base, node) from None
    if isinstance(base, Enum | DType):
        raise _unknown_attribute(ctx, base, node)
    return lift(getattr(base, node.attr)) if hasattr(base, node.attr) else _raise(_unknown_attribute(ctx, base, node))


def _raise(error: Exception) -> Any:
    raise error


def _unknown_attribute(ctx: Context, base: Any, node: ast.Attribute) -> Exception:
    shown = ast.unparse(node)
    close = difflib.get_close_matches(node.attr, [a for a in dir(base) if not a.startswith("_")], 1)
    if not close:
        close = difflib.get_close_matches(node.attr, REGISTRY.spellings, 1)
    fix = f"did you mean {ast.unparse(node.value)}.{close[0]}?" if close else "see docs/language.md for the operations"
    return ctx.error(Diag.UNKNOWN_OP, node, name=shown, fix=fix)


# ------------------------------------------------------------------------------------------ arithmetic
def _binop(ctx: Context, node: ast.BinOp) -> Any:
    symbol, op_name = _BINARY.get(type(node.op), ("", ""))
    if not symbol:
        raise ctx.error(
            Diag.SYNTAX, node, what=f"the operator {type(node.op).__name__}", fix="use + - * / // % or **"
        )  # fmt: skip
    lhs, rhs = evaluate(ctx, node.left), evaluate(ctx, node.right)
    return arithmetic(ctx, symbol, op_name, lhs, rhs, node)


def arithmetic(ctx: Context, symbol: str, op_name: str, lhs: Any, rhs: Any, node: ast.AST) -> Any:
    """``lhs symbol rhs``: scalar arithmetic, or the elementwise op where a tile or a tensor takes part."""
    a, b = type_of(lhs), type_of(rhs)
    if isinstance(a, ScalarType) and isinstance(b, ScalarType):
        with ctx.at(node):
            return binary(symbol, lhs, rhs)
    data = TileType | TensorType
    if op_name and isinstance(a, data) and isinstance(b, ScalarType | TileType | TensorType):
        return call_op(ctx, OpMarker(op_name), [lhs, rhs], {}, node, "")
    if op_name in ("add", "mul") and isinstance(b, data) and isinstance(a, ScalarType):
        return call_op(ctx, OpMarker(op_name), [rhs, lhs], {}, node, "")
    raise ctx.error(
        Diag.BAD_ARGUMENT, node, op=f"operator {symbol}", why=f"the operands are {show(lhs)} and {show(rhs)}",
        fix="tiles take + - * / with a tile or a scalar on the right; scalars take all operators",
    )  # fmt: skip


def _unaryop(ctx: Context, node: ast.UnaryOp) -> Any:
    value = evaluate(ctx, node.operand)
    if isinstance(node.op, ast.Not):
        return logical_not(_as_scalar(ctx, value, node))
    if isinstance(node.op, ast.USub):
        if isinstance(type_of(value), TileType):
            return call_op(ctx, OpMarker("neg"), [value], {}, node, "")
        return negate(_as_scalar(ctx, value, node))
    if isinstance(node.op, ast.UAdd):
        return _as_scalar(ctx, value, node)
    raise ctx.error(Diag.SYNTAX, node, what="the operator ~", fix="use `not` for conditions")


def _as_scalar(ctx: Context, value: Any, node: ast.AST) -> Expr:
    if isinstance(type_of(value), ScalarType):
        return value  # type: ignore[no-any-return]
    raise ctx.error(Diag.BAD_ARGUMENT, node, op="operator", why=f"got {show(value)}", fix="expected a scalar")


def _compare(ctx: Context, node: ast.Compare) -> Any:
    if len(node.ops) != 1:
        raise ctx.error(
            Diag.SYNTAX, node, what="a chained comparison", fix="write `a <= b and b < c`"
        )  # fmt: skip
    symbol = _COMPARE.get(type(node.ops[0]))
    lhs, rhs = evaluate(ctx, node.left), evaluate(ctx, node.comparators[0])
    plain = (DType, Enum, str)
    if symbol in ("==", "!=") and isinstance(lhs, plain) and isinstance(rhs, plain):
        return Const((lhs == rhs) == (symbol == "=="), BOOL)
    if symbol is None:
        raise ctx.error(Diag.SYNTAX, node, what="`in` and `is`", fix=f"use {' '.join(COMPARISONS)}")
    return binary(symbol, _as_scalar(ctx, lhs, node), _as_scalar(ctx, rhs, node))


def _boolop(ctx: Context, node: ast.BoolOp) -> Any:
    symbol = "and" if isinstance(node.op, ast.And) else "or"
    values = [_as_scalar(ctx, evaluate(ctx, v), v) for v in node.values]
    result = values[0]
    for v in values[1:]:
        result = binary(symbol, result, v)
    return result


# ------------------------------------------------------------------------------------------ subscripts
def _subscript(ctx: Context, node: ast.Subscript) -> Any:
    base = evaluate(ctx, node.value)
    kind = type_of(base)
    if isinstance(base, type) and base.__module__ == annotations.__name__:
        return base[_annotation_key(ctx, node.slice)]  # type: ignore[index]
    if isinstance(base, tuple):
        at = evaluate(ctx, node.slice)
        if isinstance(at, Const) and -len(base) <= int(at.value) < len(base):
            return base[int(at.value)]
        raise ctx.error(
            Diag.NOT_CONSTANT, node, what="the index of a tuple", fix=f"a constant from 0 to {len(base) - 1}"
        )  # fmt: skip
    if isinstance(kind, ArrayType):
        with ctx.at(node) as span:
            return emit(ctx, REGISTRY["array_get"], (base, (scalar(ctx, node.slice),)), span, f"{base.name}_at")
    if isinstance(kind, TensorType | TileType):
        return _read_subscript(ctx, base, node)
    raise ctx.error(
        Diag.BAD_ARGUMENT, node, op="subscript", why=f"{show(base)} has no elements",
        fix="only tensors, tiles, arrays and tuples do",
    )  # fmt: skip


def _annotation_key(ctx: Context, node: ast.expr) -> Any:
    """``[[dims], dtype]`` of a type annotation: plain Python values, run-time extents allowed."""
    if isinstance(node, ast.Tuple):
        return tuple(_annotation_item(ctx, e) for e in node.elts)
    return _annotation_item(ctx, node)


def _annotation_item(ctx: Context, node: ast.expr) -> Any:
    if isinstance(node, ast.List | ast.Tuple):
        return [_annotation_item(ctx, e) for e in node.elts]
    if isinstance(node, ast.Name) and node.id not in ctx.names:
        found = ctx.frame.kernel.lookup(node.id)
        if isinstance(found, DimVar) and node.id not in ctx.constants:
            return found
    value = evaluate(ctx, node)
    return value.value if isinstance(value, Const) else value


def box(ctx: Context, base: Any, node: ast.Subscript) -> tuple[list[Expr], list[Expr], list[int]]:
    """Sizes, offsets and the axes with a scalar index, of ``base[...]``."""
    shape = type_of(base).shape
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if len(parts) > len(shape):
        raise ctx.error(
            Diag.SHAPE, node, op="subscript", why=f"{len(parts)} indices for {len(shape)} axes", fix="drop some"
        )  # fmt: skip
    sizes: list[Expr] = []
    offsets: list[Expr] = []
    dropped: list[int] = []
    for axis, extent in enumerate(shape):
        part = parts[axis] if axis < len(parts) else ast.Slice()
        if isinstance(part, ast.Slice):
            if part.step is not None:
                raise ctx.error(Diag.SYNTAX, node, what="a slice with a step", fix="slices are lo:hi")
            low = scalar(ctx, part.lower) if part.lower is not None else index(0)
            high = scalar(ctx, part.upper) if part.upper is not None else dim_expr(extent)
            sizes.append(difference(high, low))
            offsets.append(low)
        else:
            sizes.append(index(1))
            offsets.append(scalar(ctx, part))
            dropped.append(axis)
    return sizes, offsets, dropped


def _read_subscript(ctx: Context, base: Any, node: ast.Subscript) -> Any:
    sizes, offsets, dropped = box(ctx, base, node)
    if len(dropped) == len(sizes):
        return call_op(ctx, OpMarker("read"), [base, tuple(offsets)], {}, node, base.name)
    keywords = {"drop_dims": tuple(index(a) for a in dropped)} if dropped else {}
    return call_op(ctx, OpMarker("slice"), [base, tuple(sizes), tuple(offsets)], keywords, node, base.name)


# ------------------------------------------------------------------------------------------ calls
class _BindDynamic:
    """``t.bind_dynamic``: handled when the kernel's parameters are made; a no-op in the body."""

    def __init__(self, tensor: Var) -> None:
        self.tensor = tensor


def _call(ctx: Context, node: ast.Call, hint: str) -> Any:
    fn = evaluate(ctx, node.func)
    if isinstance(fn, _BindDynamic):
        return None
    if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
        raise ctx.error(Diag.SYNTAX, node, what="* and ** in a call", fix="write the arguments out")
    args = [evaluate(ctx, a) for a in node.args]
    keywords = {str(k.arg): evaluate(ctx, k.value) for k in node.keywords}
    if isinstance(fn, Unsupported):
        raise unsupported(ctx, fn, node)
    if isinstance(fn, Kernel):
        return _call_kernel(ctx, fn, args, keywords, node)
    if isinstance(fn, OpMarker):
        return _call_marker(ctx, fn, args, keywords, node, hint)
    if isinstance(fn, Intrinsic):
        return _intrinsic(ctx, fn, args, keywords, node)
    if isinstance(fn, Marker):
        raise ctx.error(
            Diag.SYNTAX, node, what=f"{fn} as an expression", fix=f"use `for ... in {fn}(...)` or `with {fn}(...)`"
        )  # fmt: skip
    if fn in (constructs.split, constructs.cross_core_slot):
        return fn(*[_plain(a) for a in args], **{k: _plain(v) for k, v in keywords.items()})
    if callable(fn) and fn in _BUILTINS.values():
        return _builtin(ctx, fn, args, node)
    raise ctx.error(
        Diag.NOT_A_KERNEL, node, what=f"{ast.unparse(node.func)!r}"
    )  # fmt: skip


def _call_kernel(ctx: Context, fn: Kernel, args: list[Any], keywords: dict[str, Any], node: ast.Call) -> Any:
    from .elaborate import inline  # the two halves of the front end call each other

    if not fn.inline:
        raise ctx.error(
            Diag.MISPLACED, node, what=f"the entry {fn.name}", why="cannot be called from another kernel",
            fix="decorate it with @pl.jit.inline",
        )  # fmt: skip
    return inline(ctx, fn, args, keywords, node)


def unsupported(ctx: Context, fn: Unsupported, node: ast.AST) -> Exception:
    return ctx.error(Diag.UNSUPPORTED, node, name=str(fn), why=fn.why, fix=fn.fix)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Const) else value


_SCALAR_OPS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "maximum": "max", "minimum": "min"}


def _call_marker(
    ctx: Context, fn: OpMarker, args: list[Any], keywords: dict[str, Any], node: ast.Call, hint: str
) -> Any:
    first = args[0] if args else next(iter(keywords.values()), None)
    if isinstance(type_of(first), ScalarType) and fn.name in ("cast", *_SCALAR_OPS):
        if fn.name == "cast":
            to = args[1] if len(args) > 1 else keywords.get("target_type")
            if not isinstance(to, DType):
                raise ctx.error(Diag.BAD_CALL, node, op="pl.cast", why="missing target_type", signature="pl.cast(x, pl.INDEX)")
            return convert(args[0], to)
        if len(args) == 2 and isinstance(type_of(args[1]), ScalarType):
            return binary(_SCALAR_OPS[fn.name], args[0], args[1])
    return call_op(ctx, fn, args, keywords, node, hint)


def _intrinsic(ctx: Context, fn: Intrinsic, args: list[Any], keywords: dict[str, Any], node: ast.Call) -> Any:
    if keywords:
        raise ctx.error(
            Diag.UNKNOWN_KEYWORD, node, op=str(fn), keyword=next(iter(keywords)), known="positional arguments only"
        )  # fmt: skip
    if fn.name in ("min", "max"):
        return _fold(ctx, fn.name, args, node)
    if fn.name == "const":
        if len(args) == 2 and isinstance(args[0], Const) and isinstance(args[1], DType):
            return Const(args[0].value, args[1])
        raise ctx.error(Diag.BAD_CALL, node, op=str(fn), why="got other arguments", signature="pl.const(value, dtype)")
    if fn.name == "dim":
        return _dim(ctx, fn, args, node)
    if ctx.place.block is None:
        raise ctx.error(
            Diag.MISPLACED, node, what=str(fn), why="is outside of a pl.spmd grid", fix="use it in a pl.spmd body"
        )  # fmt: skip
    return ctx.place.block


def _dim(ctx: Context, fn: Intrinsic, args: list[Any], node: ast.Call) -> Any:
    kind = type_of(args[0]) if len(args) == 2 else None
    if not isinstance(kind, TensorType | TileType) or not isinstance(args[1], Const):
        raise ctx.error(
            Diag.BAD_CALL, node, op=str(fn), why="needs a tensor and a constant axis",
            signature="pl.tensor.dim(tensor, axis)",
        )  # fmt: skip
    axis = int(args[1].value)
    if not -kind.rank <= axis < kind.rank:
        raise ctx.error(
            Diag.SHAPE, node, op=str(fn), why=f"axis {axis} of {kind.rank} axes", fix="count axes from 0"
        )  # fmt: skip
    return dim_expr(kind.shape[axis])


def _fold(ctx: Context, name: str, args: list[Any], node: ast.AST) -> Expr:
    if len(args) < 2:
        raise ctx.error(Diag.BAD_CALL, node, op=f"pl.{name}", why="needs two scalars", signature=f"pl.{name}(a, b)")
    result = _scalar_only(ctx, name, args[0], node)
    for a in args[1:]:
        result = binary(name, result, _scalar_only(ctx, name, a, node))
    return result


def _scalar_only(ctx: Context, name: str, value: Any, node: ast.AST) -> Expr:
    if isinstance(type_of(value), ScalarType):
        return value  # type: ignore[no-any-return]
    other = {"min": "minimum", "max": "maximum"}[name]
    raise ctx.error(
        Diag.BAD_ARGUMENT, node, op=f"pl.{name}", why=f"got {show(value)}; pl.{name} is for scalars",
        fix=f"the elementwise op is pl.{other}",
    )  # fmt: skip


def _builtin(ctx: Context, fn: Any, args: list[Any], node: ast.Call) -> Any:
    if fn in (min, max):
        return _fold(ctx, fn.__name__, args, node)
    if fn is len and len(args) == 1 and isinstance(args[0], tuple):
        return Const(len(args[0]))
    if fn in (int, float) and len(args) == 1 and isinstance(type_of(args[0]), ScalarType):
        return convert(args[0], INDEX if fn is int else FP32)
    if fn is float and len(args) == 1 and isinstance(args[0], str):
        return Const(float(args[0]), FP32)
    if fn is abs and len(args) == 1 and isinstance(type_of(args[0]), ScalarType):
        return binary("max", args[0], negate(args[0]))
    if fn is abs and len(args) == 1:
        return call_op(ctx, OpMarker("abs"), args, {}, node, "")
    raise ctx.error(
        Diag.SYNTAX, node, what=f"Python's {fn.__name__}() here", fix="use pl.range, pl.min, pl.max, pl.cast"
    )  # fmt: skip


def _listcomp(ctx: Context, node: ast.ListComp) -> Any:
    """``[tids[k] for k in range(N)]``: unrolled at compile time."""
    gen = node.generators[0]
    simple = len(node.generators) == 1 and not gen.ifs and isinstance(gen.target, ast.Name)
    if not simple or not isinstance(gen.iter, ast.Call) or evaluate(ctx, gen.iter.func) is not range:
        raise ctx.error(
            Diag.SYNTAX, node, what="this list comprehension", fix="write [x[k] for k in range(N)] with a constant N"
        )  # fmt: skip
    bounds = [evaluate(ctx, a) for a in gen.iter.args]
    if not all(isinstance(b, Const) for b in bounds):
        raise ctx.error(Diag.NOT_CONSTANT, node, what="the range of a list comprehension", fix="use a constant")
    name = gen.target.id  # type: ignore[attr-defined]
    saved = ctx.names.get(name, POISON)
    out = []
    for k in range(*(int(b.value) for b in bounds)):
        ctx.names[name] = Const(k)
        out.append(evaluate(ctx, node.elt))
    if saved is POISON:
        ctx.names.pop(name, None)
    else:
        ctx.names[name] = saved
    return tuple(out)


_RULES: dict[type[ast.AST], Any] = {
    ast.Name: _name,
    ast.Constant: _constant,
    ast.Tuple: _tuple,
    ast.List: _tuple,
    ast.Attribute: _attribute,
    ast.BinOp: _binop,
    ast.UnaryOp: _unaryop,
    ast.Compare: _compare,
    ast.BoolOp: _boolop,
    ast.Subscript: _subscript,
    ast.Call: _call,
    ast.ListComp: _listcomp,
}
_ = (Mem, SplitMode, TaskType)
