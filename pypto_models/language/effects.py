"""What a whole kernel does to its tensors, and the mistakes that only show there."""

from __future__ import annotations

import ast

from ..errors import Diag, UserError
from ..ir.expr import Expr, Var
from ..ir.nodes import Block, Direction, For, Function, If, Let, Region
from ..ir.rewrite import children, walk
from ..ir.types import TensorType
from ..ops.registry import Effect, OpDef
from .context import Context
from .kernel import Kernel


def roots(function: Function) -> dict[Var, frozenset[Var]]:
    """For every tensor variable, the parameters and created tensors that it may name."""
    found: dict[Var, frozenset[Var]] = {p.var: frozenset((p.var,)) for p in function.params}

    def of(x: Expr) -> frozenset[Var]:
        return found.get(x, frozenset((x,))) if isinstance(x, Var) else frozenset()

    def visit(block: Block) -> None:
        for s in block:
            if isinstance(s, Let) and s.results and isinstance(s.result.type, TensorType):
                base = s.arg(s.op.alias) if isinstance(s.op, OpDef) and s.op.alias else s.result
                found[s.result] = (
                    of(base) if base is not s.result and isinstance(base, Var) else frozenset((s.result,))
                )
            elif isinstance(s, For):
                for c in s.carried:
                    found[c.param] = of(c.init) | found.get(c.param, frozenset())
            for inner in children(s):
                visit(inner)
            if isinstance(s, For):
                for c in s.carried:
                    found[c.param] = found[c.result] = of(c.init) | of(c.next) - {c.param}
            elif isinstance(s, If):
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


def check_effects(ctx: Context, kernel: Kernel, function: Function) -> None:
    """Report unwritten Out parameters and mixed writes; warn of writes that the caller never sees."""
    written = written_params(function)
    for p in function.params:
        if p.direction is Direction.OUT and p.var not in written:
            ctx.report(_out_not_written(ctx, kernel, p.var))
        if p.direction is Direction.IN and p.var in written:
            ctx.warn(
                f"{p.var.span}: the kernel writes {p.name!r}, which is not declared pl.Out or pl.InOut: "
                "the caller does not see the change"
            )
    _check_mixed_writes(ctx, function)


def _out_not_written(ctx: Context, kernel: Kernel, out: Var) -> UserError:
    """At the statement that rebinds the name, if there is one: that is where the user meant to write."""
    for node in ast.walk(kernel.node):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Name) and t.id == out.name for t in targets):
            return ctx.error(Diag.OUT_NOT_WRITTEN, node, name=out.name)
    return UserError(Diag.OUT_NOT_WRITTEN, out.span, {"name": out.name})


def _check_mixed_writes(ctx: Context, function: Function) -> None:
    """A bulk store and scalar writes to one tensor do not mix in a region."""
    table = roots(function)
    for region in walk(function.body):
        if not isinstance(region, Region):
            continue
        first: dict[Var, Let] = {}
        for s in walk(region.body):
            if not isinstance(s, Let) or s.op.name not in ("store", "write_tensor"):
                continue
            target = s.args[0]
            for root in sorted(table.get(target, ()) if isinstance(target, Var) else (), key=lambda v: v.uid):
                other = first.setdefault(root, s)
                if other.op is not s.op:
                    fields = {
                        "what": f"pl.{s.op.spelling} to {root.name!r}",
                        "why": f"mixes with pl.{other.op.spelling} on line {other.span.line} in one region",
                        "fix": "use one kind of write per tensor and region",
                    }
                    ctx.report(UserError(Diag.MISPLACED, s.span, dict(fields)))
