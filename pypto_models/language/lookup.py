"""Names, attributes and literals: local values, module constants, members of ``pl``."""

from __future__ import annotations

import ast
import builtins
import difflib
from enum import Enum
from types import FunctionType, ModuleType
from typing import Any

from ..errors import Diag, UserError
from ..ir.expr import DimVar, Expr, dim_expr
from ..ir.types import DType, TensorType, TileType
from . import annotations as types
from .constructs import AutoChunk, Marker, Namespace, Slots, Split, Unsupported
from .context import Context, Undefined
from .kernel import MISSING, Kernel
from .values import is_data, lift, type_of

BUILTINS = {"min": min, "max": max, "abs": abs, "float": float, "int": int, "range": range, "len": len}
LANGUAGE = __package__

_ADMITTED = (
    bool, int, float, str, Enum, DType, Marker, Kernel, ModuleType, list, tuple, type, FunctionType,
    Namespace,
    Split, Slots, AutoChunk, type(types.RUNTIME),
    types.TensorAnnotation, types.TileAnnotation, types.ScalarAnnotation, types.ArrayAnnotation,
    types.Directed,
)  # fmt: skip


class BindDynamic:
    """``t.bind_dynamic``: handled when the kernel's parameters are made; a no-op in the body."""


def name(ctx: Context, node: ast.Name, hint: str) -> Any:
    """A name: a local, an overridden constant, a global of the kernel's module, a builtin."""
    if node.id in ctx.names:
        value = ctx.names[node.id]
        if isinstance(value, Undefined):
            raise value.read_at(ctx.span(node))
        return value
    if node.id in ctx.constants:
        return lift(ctx.constants[node.id])
    found = ctx.frame.kernel.lookup(node.id)
    if found is not MISSING:
        return _admit(ctx, node, found)
    if node.id in BUILTINS:
        return BUILTINS[node.id]
    known = [*ctx.names, *ctx.frame.kernel.fn.__globals__]
    close = difflib.get_close_matches(node.id, [k for k in known if not hasattr(builtins, k)], 1)
    fix = f"did you mean {close[0]!r}?" if close else "give it a value first, or define it in the module"
    raise ctx.error(Diag.UNDEFINED, node, name=node.id, fix=fix)


def attribute(ctx: Context, node: ast.Attribute, hint: str) -> Any:
    """``pl.X``, ``module.CONSTANT``, ``Enum.member``, ``tensor.shape``."""
    base = ctx.evaluate(node.value)
    if is_data(base):
        return _tensor_attribute(ctx, base, node)
    if isinstance(base, Unsupported):
        return base
    if isinstance(base, ModuleType) and not _is_language(base) and node.attr in ctx.constants:
        return lift(ctx.constants[node.attr])
    holder = isinstance(base, ModuleType | Namespace) or (isinstance(base, type) and issubclass(base, Enum))
    found = getattr(base, node.attr, MISSING) if holder else MISSING
    if found is not MISSING and not (_is_language(base) and isinstance(found, ModuleType)):
        return _admit(ctx, node, found)
    raise _unknown_attribute(ctx, base, node)


def _tensor_attribute(ctx: Context, base: Expr, node: ast.Attribute) -> Any:
    kind = type_of(base)
    if node.attr == "shape" and isinstance(kind, TensorType | TileType):
        return tuple(dim_expr(d) for d in kind.shape)
    if node.attr == "dtype" and isinstance(kind, TensorType | TileType):
        return kind.dtype
    if node.attr == "bind_dynamic":
        return BindDynamic()
    raise ctx.error(
        Diag.SYNTAX,
        node,
        what=f"the attribute .{node.attr} of a tensor",
        fix="known: .shape, .dtype, .bind_dynamic",
    )


def constant(ctx: Context, node: ast.Constant, hint: str) -> Any:
    """A literal."""
    value = node.value
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return lift(value)
    raise ctx.error(
        Diag.SYNTAX, node, what=f"the literal {value!r}", fix="use integers, floats, True or False"
    )


def resolve(ctx: Context, node: ast.AST) -> Any:
    """The Python object behind a global name or ``module.name``, run-time extents included; else MISSING.

    A local name or an overridden constant hides the global.
    """
    first = node
    while isinstance(first, ast.Attribute):
        first = first.value
    if isinstance(first, ast.Name) and first.id in ctx.names:
        return MISSING
    last = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
    return MISSING if last in ctx.constants else find_global(ctx.frame.kernel, node)


def find_global(kernel: Kernel, node: ast.AST) -> Any:
    """What a name or ``module.name`` means to a kernel's module or closure; MISSING for anything else."""
    if isinstance(node, ast.Name):
        return kernel.lookup(node.id)
    if isinstance(node, ast.Attribute):
        base = find_global(kernel, node.value)
        return getattr(base, node.attr, MISSING) if isinstance(base, ModuleType) else MISSING
    return MISSING


def is_language_member(kernel: Kernel, node: ast.AST) -> bool:
    """True for ``pl.X``."""
    return isinstance(node, ast.Attribute) and _is_language(find_global(kernel, node.value))


def _admit(ctx: Context, node: ast.expr, found: Any) -> Any:
    """A global that may be used in a kernel, as a value."""
    if isinstance(found, DimVar):
        raise ctx.error(
            Diag.SYNTAX, node, what=f"the dynamic extent {found.name} as a value",
            fix="read the extent with pl.tensor.dim(tensor, axis)",
        )  # fmt: skip
    if isinstance(found, _ADMITTED):
        return lift(found)
    raise ctx.error(
        Diag.NOT_CONSTANT, node, what=f"{ast.unparse(node)!r} (a {type(found).__name__} of the module)",
        fix="kernels read int, float, bool and dtype constants; pass tensors as arguments",
    )  # fmt: skip


def _is_language(base: Any) -> bool:
    return isinstance(base, ModuleType) and base.__name__ == LANGUAGE


def _unknown_attribute(ctx: Context, base: Any, node: ast.Attribute) -> UserError:
    shown, prefix = ast.unparse(node), ast.unparse(node.value)
    members = list(base.members) if isinstance(base, Namespace) else [a for a in dir(base) if a[0] != "_"]
    close = difflib.get_close_matches(node.attr, members, 1)
    if _is_language(base) or isinstance(base, Namespace):
        fix = f"did you mean {prefix}.{close[0]}?" if close else "docs/language.md lists the operations"
        return ctx.error(Diag.UNKNOWN_OP, node, name=shown, fix=fix)
    fix = f"did you mean {prefix}.{close[0]}?" if close else "use a constant of the module"
    return ctx.error(Diag.UNDEFINED, node, name=shown, fix=fix)
