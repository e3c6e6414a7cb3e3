"""From a ``@pl.jit`` entry to an IR function: parameters, elaboration, checks on the whole kernel."""

from __future__ import annotations

import ast
import itertools
import types
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import Diag, Span, UserError
from ..ir.expr import DimVar, Expr, Var
from ..ir.nodes import Block, Direction, For, Function, If, Let, Param, Region, Return, Stmt
from ..ir.rewrite import Rewriter, children, uses, walk
from ..ir.types import DTYPES, INDEX, DType, ScalarType, TensorType
from ..ops.registry import Effect, OpDef
from . import annotations as ann
from .context import Context, Frame, Suppressed
from .elaborate import annotation_of, body_value
from .kernel import Kernel

_FROM_TORCH = {
    getattr(torch, d.torch_name): d for d in DTYPES if d.torch_name and hasattr(torch, d.torch_name) and d != INDEX
}


@dataclass(frozen=True)
class Lowered:
    """A function with what else elaboration found."""

    function: Function
    warnings: tuple[str, ...]
    errors: tuple[UserError, ...]


def lower(kernel: Kernel, *args: Any, constants: dict[str, Any] | None = None) -> Function:
    """The IR of a kernel, everything inlined.

    ``args`` are tensors and numbers in parameter order; they give the shapes that annotations leave open and
    may be left out if there are none.  ``constants`` replaces module constants by name, before parsing, in
    the kernel and in everything it inlines; a name that no kernel reads is an error.
    """
    return elaborate(kernel, args, constants).function


def elaborate(
    kernel: Kernel, args: tuple[Any, ...] = (), constants: dict[str, Any] | None = None, collect: bool = False
) -> Lowered:
    """As :func:`lower`; with ``collect`` all errors are gathered and the function may be incomplete."""
    if not isinstance(kernel, Kernel):
        raise UserError(Diag.NOT_A_KERNEL, Span("<call>", 0), {"what": repr(kernel)})
    ctx = Context(constants, collect)
    ctx.frames.append(Frame(kernel))
    params = _parameters(ctx, kernel, args)
    value: Any = None
    with ctx.new_block() as block:
        try:
            value = body_value(ctx, kernel)
        except Suppressed:
            value = None
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    returned = tuple(v for v in values if isinstance(v, Expr))
    if returned:
        block.append(Return(returned, ctx.span(kernel.node.body[-1])))
    body = drop_dead_joins(tuple(block))
    function = Function(kernel.name, params, body, kernel.span)
    if not ctx.errors:
        _check_effects(ctx, function)
        _check_constants(ctx, kernel)
    return Lowered(function, tuple(ctx.warnings), tuple(ctx.errors))


# ------------------------------------------------------------------------------------------ parameters
def _parameters(ctx: Context, kernel: Kernel, args: tuple[Any, ...]) -> tuple[Param, ...]:
    spec = kernel.node.args
    nodes = [*spec.posonlyargs, *spec.args]
    if args and len(args) != len(nodes):
        raise ctx.error(
            Diag.BAD_CALL, kernel.node, op=kernel.name, why=f"{len(args)} arguments for {len(nodes)} parameters",
            signature=f"{kernel.name}({', '.join(n.arg for n in nodes)})",
        )  # fmt: skip
    dynamic = _dynamic_dims(ctx, kernel)
    params = []
    for node, given in zip(nodes, args or (None,) * len(nodes), strict=True):
        param = _parameter(ctx, node, given, dynamic)
        params.append(param)
        ctx.names[node.arg] = param.var
    return tuple(params)


def _dynamic_dims(ctx: Context, kernel: Kernel) -> dict[tuple[str, int], DimVar]:
    """``x.bind_dynamic(axis, D)`` statements of the body."""
    found: dict[tuple[str, int], DimVar] = {}
    for node in ast.walk(kernel.node):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        base = node.func.value
        if node.func.attr == "bind_dynamic" and isinstance(base, ast.Name) and len(node.args) == 2:
            axis, dim = node.args
            extent = kernel.lookup(dim.id) if isinstance(dim, ast.Name) else None
            if not isinstance(axis, ast.Constant) or not isinstance(extent, DimVar):
                raise ctx.error(
                    Diag.BAD_CALL, node, op="bind_dynamic", why="needs a constant axis and a pl.dynamic extent",
                    signature="tensor.bind_dynamic(axis, D)",
                )  # fmt: skip
            found[base.id, int(axis.value)] = extent  # type: ignore[arg-type]
    return found


def _parameter(ctx: Context, node: ast.arg, given: Any, dynamic: dict[tuple[str, int], DimVar]) -> Param:
    wanted = annotation_of(ctx, node)
    direction = Direction.IN
    if isinstance(wanted, ann.Directed):
        wanted, direction = wanted.inner, wanted.direction
    if wanted is ann.Tensor:
        wanted = ann.TensorAnnotation()
    if wanted is ann.Scalar:
        wanted = ann.ScalarAnnotation()
    span = ctx.span(node)
    if isinstance(wanted, ann.ScalarAnnotation):
        return Param(Var(node.arg, ScalarType(wanted.dtype or INDEX), span), direction)
    if not isinstance(wanted, ann.TensorAnnotation):
        raise ctx.error(
            Diag.ANNOTATION, node, name=node.arg, why="an entry needs to know what it is",
            fix="annotate it: pl.Tensor[[M, N], pl.FP32], pl.Out[...], pl.InOut[...] or pl.Scalar[pl.INT32]",
        )  # fmt: skip
    shape, dtype = _tensor_facts(ctx, node, wanted, given)
    dims = tuple(dynamic.get((node.arg, axis), d) for axis, d in enumerate(shape))
    return Param(Var(node.arg, TensorType(dims, dtype), span), direction)


def _tensor_facts(
    ctx: Context, node: ast.arg, wanted: ann.TensorAnnotation, given: Any
) -> tuple[tuple[Any, ...], DType]:
    actual = tuple(given.shape) if given is not None and hasattr(given, "shape") else None
    actual_dtype = _FROM_TORCH.get(given.dtype) if actual is not None else None
    shape, dtype = wanted.shape, wanted.dtype or actual_dtype
    if shape is None:
        shape = actual
    if shape is None or dtype is None:
        raise ctx.error(
            Diag.ANNOTATION, node, name=node.arg, why="its shape or dtype is not known",
            fix="give it in the annotation, or compile with example arguments",
        )  # fmt: skip
    dims: list[Any] = []
    for axis, d in enumerate(shape):
        if d is ann.RUNTIME:
            dims.append(DimVar(f"{node.arg}_dim{axis}"))
        elif isinstance(d, DimVar) or (isinstance(d, int) and d > 0):
            dims.append(d)
        else:
            raise ctx.error(
                Diag.ANNOTATION, node, name=node.arg, why=f"the extent {d!r} of axis {axis} is not one",
                fix="use a positive constant or pl.dynamic(...)",
            )  # fmt: skip
    _check_actual(ctx, node, tuple(dims), dtype, actual, actual_dtype)
    return tuple(dims), dtype


def _check_actual(
    ctx: Context, node: ast.arg, dims: tuple[Any, ...], dtype: DType, actual: Any, actual_dtype: DType | None
) -> None:
    if actual is None:
        return
    if actual_dtype != dtype:
        raise ctx.error(
            Diag.ANNOTATION, node, name=node.arg, why=f"the argument is {actual_dtype}, the annotation says {dtype}",
            fix="convert the argument",
        )  # fmt: skip
    bad = len(actual) != len(dims) or any(isinstance(d, int) and d != a for d, a in zip(dims, actual, strict=False))
    if bad:
        shown = [d if isinstance(d, int) else d.name for d in dims]
        raise ctx.error(
            Diag.ANNOTATION, node, name=node.arg, why=f"the argument is {list(actual)}, the annotation says {shown}",
            fix="pass a tensor of that shape, or make the extent pl.dynamic",
        )  # fmt: skip


# ------------------------------------------------------------------------------------------ whole kernel
def roots(function: Function) -> dict[Var, frozenset[Var]]:
    """For every tensor variable, the parameters and created tensors that it may name."""
    found: dict[Var, frozenset[Var]] = {p.var: frozenset((p.var,)) for p in function.params}

    def of(x: Expr) -> frozenset[Var]:
        return found.get(x, frozenset((x,))) if isinstance(x, Var) else frozenset()

    def visit(block: Block) -> None:
        for s in block:
            if isinstance(s, Let) and isinstance(s.op, OpDef) and s.op.alias and s.results:
                if isinstance(s.result.type, TensorType):
                    base = s.arg(s.op.alias)
                    found[s.result] = of(base) if isinstance(base, Var) else frozenset()
            if isinstance(s, For):
                for c in s.carried:
                    found[c.param] = of(c.init)
            for inner in children(s):
                visit(inner)
            if isinstance(s, For):
                for c in s.carried:
                    found[c.param] = found[c.result] = of(c.init) | of(c.next) - {c.param}
            if isinstance(s, If):
                for m in s.merged:
                    found[m.result] = of(m.then) | of(m.orelse)

    before: dict[Var, frozenset[Var]] = {}
    while before != found:  # a carried reference may feed views made earlier in the body
        before = dict(found)
        visit(function.body)
    return found


def written_params(function: Function) -> frozenset[Var]:
    """Parameters that some store may write."""
    table = roots(function)
    names = {p.var for p in function.params}
    hit: set[Var] = set()
    for s in walk(function.body):
        if isinstance(s, Let) and isinstance(s.op, OpDef):
            for a in s.op.access(s):
                if a.effect is not Effect.READ:
                    hit |= table.get(a.tensor, frozenset((a.tensor,))) & names
    return frozenset(hit)


def _check_effects(ctx: Context, function: Function) -> None:
    written = written_params(function)
    for p in function.params:
        if p.direction is Direction.OUT and p.var not in written:
            ctx.report(UserError(Diag.OUT_NOT_WRITTEN, p.var.span, {"name": p.name}))
        if p.direction is Direction.IN and p.var in written:
            ctx.warnings.append(
                f"{p.var.span}: the kernel writes {p.name!r}, which is not declared pl.Out or pl.InOut: the caller "
                "does not see the change"
            )
    _check_mixed_writes(ctx, function)


def _check_mixed_writes(ctx: Context, function: Function) -> None:
    """A bulk store and scalar writes to one tensor do not mix in a region."""
    table = roots(function)
    for region in walk(function.body):
        if not isinstance(region, Region):
            continue
        seen: dict[Var, Let] = {}
        for s in walk(region.body):
            if isinstance(s, Let) and isinstance(s.op, OpDef) and s.op.name in ("store", "write_tensor"):
                target = s.args[0]
                for root in table.get(target, frozenset()) if isinstance(target, Var) else ():
                    other = seen.setdefault(root, s)
                    if other.op is not s.op:
                        ctx.report(
                            UserError(
                                Diag.MISPLACED, s.span,
                                {
                                    "what": f"pl.{s.op.spelling} to {root.name!r}",
                                    "why": f"mixes with pl.{other.op.spelling} on line {other.span.line} in one region",
                                    "fix": "use one kind of write per tensor and region",
                                },
                            )
                        )  # fmt: skip


def _check_constants(ctx: Context, kernel: Kernel) -> None:
    for name in ctx.constants.keys() - ctx.used_constants:
        known = ", ".join(sorted(ctx.used_constants)) or "none"
        ctx.report(UserError(Diag.UNUSED_CONSTANT, kernel.span, {"name": name, "known": known}))


class _DropJoins(Rewriter):
    """Drops carried and merged values that nothing reads, and scalars that only they read."""

    def __init__(self, read: frozenset[Var]) -> None:
        super().__init__()
        self.read = read

    def stmt(self, s: Stmt) -> Stmt | Block:
        from dataclasses import replace

        if isinstance(s, If):
            s = replace(s, merged=tuple(m for m in s.merged if m.result in self.read))
        elif isinstance(s, For) and s.carried:
            kept = []
            for c in s.carried:
                others = itertools.chain(uses(s.body), *(uses_of(o.next) for o in s.carried if o is not c))
                if c.result in self.read or c.param in set(others):
                    kept.append(c)
            s = replace(s, carried=tuple(kept))
        return self.descend(s)


def uses_of(x: Expr) -> list[Var]:
    from ..ir.expr import free_vars

    return list(free_vars(x))


def drop_dead_joins(body: Block) -> Block:
    """Remove loop-carried and merged values that are never read; they come from names used as temporaries."""
    while True:
        new = _DropJoins(frozenset(uses(body))).block(body)
        if _same_joins(new, body):
            return new
        body = new


def _same_joins(a: Block, b: Block) -> bool:
    def count(block: Block) -> int:
        return sum(
            len(s.carried) if isinstance(s, For) else len(s.merged) if isinstance(s, If) else 0 for s in walk(block)
        )

    return count(a) == count(b)


def parse(text: str, name: str | None = None) -> Function:
    """The function of a piece of language source, such as the printer's output; its last entry, or ``name``."""
    import linecache

    file = f"<source {next(_parsed_count)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    module = types.ModuleType(file)
    exec(compile(text, file, "exec"), module.__dict__)
    entries = [v for v in module.__dict__.values() if isinstance(v, Kernel) and not v.inline]
    chosen = [k for k in entries if name in (None, k.name)]
    if not chosen:
        raise UserError(Diag.NOT_A_KERNEL, Span(file, 1), {"what": f"the source without {name or 'an entry'}"})
    return lower(chosen[-1])


_parsed_count = itertools.count(1)
