"""The front end's two dispatchers: which rule elaborates which kind of syntax node.

Names bound at a statement that has an error are poisoned, so that with ``collect`` one mistake is one error.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from ..errors import Diag, UserError
from . import arithmetic, calls, lookup, subscripts
from . import statements as stmts
from .context import POISON, Context, Poisoned, Rules, Suppressed
from .inlining import inline
from .loops import assigned_names, for_
from .regions import with_


def _tuple(ctx: Context, node: ast.Tuple | ast.List, hint: str) -> Any:
    return tuple(ctx.evaluate(e) for e in node.elts)


_EXPRESSIONS: dict[type[ast.expr], Callable[[Context, Any, str], Any]] = {
    ast.Name: lookup.name,
    ast.Constant: lookup.constant,
    ast.Attribute: lookup.attribute,
    ast.Tuple: _tuple,
    ast.List: _tuple,
    ast.BinOp: arithmetic.binop,
    ast.UnaryOp: arithmetic.unaryop,
    ast.Compare: arithmetic.compare,
    ast.BoolOp: arithmetic.boolop,
    ast.Subscript: subscripts.read,
    ast.Call: calls.call,
    ast.ListComp: calls.listcomp,
}

_STATEMENTS: dict[type[ast.stmt], Callable[[Context, Any], None]] = {
    ast.Assign: stmts.assign,
    ast.AnnAssign: stmts.annotated,
    ast.Expr: stmts.expression,
    ast.Pass: stmts.pass_,
    ast.Return: stmts.return_,
    ast.If: stmts.if_,
    ast.For: for_,
    ast.With: with_,
}

_REFUSED_EXPRESSIONS: dict[type[ast.expr], tuple[str, str]] = {
    ast.IfExp: ("a conditional expression", "use an if statement"),
    ast.Lambda: ("a lambda", "write a @pl.jit.inline kernel"),
    ast.NamedExpr: ("the walrus", "assign on a line of its own"),
    ast.JoinedStr: ("an f-string", "write the string out"),
    ast.Dict: ("a dict", "use tuples and names"),
    ast.Set: ("a set", "use tuples and names"),
    ast.GeneratorExp: ("a generator", "write [x[k] for k in range(N)]"),
    ast.Starred: ("a starred expression", "write the values out"),
    ast.Slice: ("a slice here", "slices stand in t[lo:hi]"),
    ast.Await: ("await", "kernels are straight code"),
}

_REFUSED_STATEMENTS: dict[type[ast.stmt], tuple[str, str]] = {
    ast.While: ("a while loop", "use pl.range with a trip count"),
    ast.AugAssign: ("an augmented assignment", "write x = x + ..."),
    ast.Break: ("break", "guard the rest of the body with an if"),
    ast.Continue: ("continue", "use an if"),
    ast.FunctionDef: ("a nested function", "define it outside and decorate it with @pl.jit.inline"),
    ast.ClassDef: ("a class", "define it outside"),
    ast.Try: ("try", "kernels do not raise"),
    ast.Raise: ("raise", "kernels do not raise"),
    ast.Assert: ("assert", "check sizes where the kernel is called"),
    ast.Import: ("an import", "import at the top of the module"),
    ast.ImportFrom: ("an import", "import at the top of the module"),
    ast.Global: ("global", "pass tensors as arguments"),
    ast.Nonlocal: ("nonlocal", "pass tensors as arguments"),
    ast.Delete: ("del", "leave the name alone"),
    ast.Match: ("match", "use if and elif"),
}


def evaluate(ctx: Context, node: ast.expr, hint: str = "") -> Any:
    """The value of an expression; ``hint`` names the variable if the expression is an op."""
    rule = _EXPRESSIONS.get(type(node))
    if rule is None:
        what, fix = _REFUSED_EXPRESSIONS.get(
            type(node),
            (f"this {type(node).__name__}", "use names, numbers, arithmetic, slices and pl.* calls"),
        )
        raise ctx.error(Diag.SYNTAX, node, what=what, fix=fix)
    value = rule(ctx, node, hint)
    if isinstance(value, Poisoned):
        raise Suppressed
    return value


def statements(ctx: Context, body: list[ast.stmt]) -> None:
    """Elaborate statements in order into the current block."""
    for node in body:
        try:
            _statement(ctx, node)
        except UserError as error:
            _poison_targets(ctx, node)
            ctx.report(error)
        except Suppressed:
            _poison_targets(ctx, node)


def _statement(ctx: Context, node: ast.stmt) -> None:
    rule = _STATEMENTS.get(type(node))
    if rule is None:
        what, fix = _REFUSED_STATEMENTS.get(
            type(node), (f"the statement {type(node).__name__}", "use assignments, for, if, with and calls")
        )
        raise ctx.error(Diag.SYNTAX, node, what=what, fix=fix)
    rule(ctx, node)


def _poison_targets(ctx: Context, node: ast.stmt) -> None:
    for name in assigned_names([node]):
        ctx.names[name] = POISON


RULES = Rules(evaluate, statements, inline)
