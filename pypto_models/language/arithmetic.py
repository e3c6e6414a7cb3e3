"""Operators: folded scalar arithmetic, or the elementwise op where a tile or a tensor takes part."""

from __future__ import annotations

import ast
from enum import Enum
from typing import Any

from ..errors import Diag
from ..ir.expr import COMPARISONS, Const, Expr, binary, logical_not, negate
from ..ir.types import BOOL, DType
from .constructs import OpMarker
from .context import Context
from .operations import call_op
from .values import is_data, is_scalar, show

_BINARY: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "add"), ast.Sub: ("-", "sub"), ast.Mult: ("*", "mul"), ast.Div: ("/", "div"),
    ast.FloorDiv: ("//", ""), ast.Mod: ("%", ""), ast.Pow: ("**", ""),
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip


def binop(ctx: Context, node: ast.BinOp, hint: str) -> Any:
    """``lhs op rhs``."""
    symbol, op_name = _BINARY.get(type(node.op), ("", ""))
    if not symbol:
        raise ctx.error(
            Diag.SYNTAX, node, what=f"the operator {type(node.op).__name__}", fix="use + - * / // % or **"
        )
    lhs, rhs = ctx.evaluate(node.left), ctx.evaluate(node.right)
    if is_scalar(lhs) and is_scalar(rhs):
        with ctx.at(node):
            return binary(symbol, lhs, rhs)
    if op_name and is_data(lhs) and (is_scalar(rhs) or is_data(rhs)):
        return call_op(ctx, OpMarker(op_name), [lhs, rhs], {}, node, hint)
    if op_name in ("add", "mul") and is_scalar(lhs) and is_data(rhs):
        return call_op(ctx, OpMarker(op_name), [rhs, lhs], {}, node, hint)
    raise ctx.error(
        Diag.BAD_ARGUMENT, node, op=f"operator {symbol}", why=f"the operands are {show(lhs)} and {show(rhs)}",
        fix="tiles take + - * / with a tile or a scalar on the right; scalars take all operators",
    )  # fmt: skip


def unaryop(ctx: Context, node: ast.UnaryOp, hint: str) -> Any:
    """``-x``, ``+x``, ``not x``."""
    if isinstance(node.op, ast.Invert):
        raise ctx.error(Diag.SYNTAX, node, what="the operator ~", fix="use `not` for conditions")
    value = ctx.evaluate(node.operand)
    if isinstance(node.op, ast.USub) and is_data(value):
        return call_op(ctx, OpMarker("neg"), [value], {}, node, hint)
    x = _scalar(ctx, value, node)
    if isinstance(node.op, ast.Not):
        return logical_not(x)
    return negate(x) if isinstance(node.op, ast.USub) else x


def compare(ctx: Context, node: ast.Compare, hint: str) -> Any:
    """One comparison of scalars; ``==`` and ``!=`` also of dtypes, enums and strings."""
    if len(node.ops) != 1:
        raise ctx.error(Diag.SYNTAX, node, what="a chained comparison", fix="write `a <= b and b < c`")
    symbol = _COMPARE.get(type(node.ops[0]))
    if symbol is None:
        raise ctx.error(Diag.SYNTAX, node, what="`in` and `is`", fix=f"use {' '.join(COMPARISONS)}")
    lhs, rhs = ctx.evaluate(node.left), ctx.evaluate(node.comparators[0])
    constants = (DType, Enum, str)
    if symbol in ("==", "!=") and isinstance(lhs, constants) and isinstance(rhs, constants):
        return Const((lhs == rhs) == (symbol == "=="), BOOL)
    return binary(symbol, _scalar(ctx, lhs, node.left), _scalar(ctx, rhs, node.comparators[0]))


def boolop(ctx: Context, node: ast.BoolOp, hint: str) -> Any:
    """``and`` and ``or``; both sides are evaluated."""
    symbol = "and" if isinstance(node.op, ast.And) else "or"
    result, *others = (_scalar(ctx, ctx.evaluate(v), v) for v in node.values)
    for v in others:
        result = binary(symbol, result, v)
    return result


def _scalar(ctx: Context, value: Any, node: ast.AST) -> Expr:
    if is_scalar(value):
        return value
    fix = "compare tiles with pl.cmp(lhs, rhs, cmp_type)" if is_data(value) else "expected a scalar"
    raise ctx.error(Diag.BAD_ARGUMENT, node, op="this operator", why=f"got {show(value)}", fix=fix)
