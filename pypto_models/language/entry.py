"""From a ``@pl.jit`` entry to an IR function: parameters, elaboration, checks on the whole kernel."""

from __future__ import annotations

import itertools
import linecache
import types
from dataclasses import dataclass
from typing import Any

from ..errors import Diag, Span, UserError
from ..ir.expr import Expr
from ..ir.nodes import Function, Param, Return
from .context import Context, Frame
from .effects import check_effects, roots, written_params
from .elaborate import RULES
from .inlining import body_value
from .joins import drop_dead_joins
from .kernel import Kernel
from .parameters import check_constants, parameters
from .values import lift

__all__ = ["Lowered", "elaborate", "lower", "parse", "roots", "written_params"]


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
    ctx = Context(RULES, constants, collect)
    with ctx.in_frame(Frame(kernel)):
        function = _function(ctx, kernel, args)
    return Lowered(function, tuple(ctx.warnings), tuple(ctx.errors))


def _function(ctx: Context, kernel: Kernel, args: tuple[Any, ...]) -> Function:
    check_constants(ctx, kernel)
    params: tuple[Param, ...] = ()
    with ctx.new_block() as block:
        try:
            params = parameters(ctx, kernel, args)
        except UserError as error:
            ctx.report(error)
            return Function(kernel.name, (), (), kernel.span)
        value = body_value(ctx, kernel)
    values = [lift(v) for v in (value if isinstance(value, tuple) else (value,))]
    returned = tuple(v for v in values if isinstance(v, Expr))
    if returned:
        block.append(Return(returned, ctx.span(kernel.node.body[-1])))
    function = Function(kernel.name, params, drop_dead_joins(tuple(block)), kernel.span)
    if not ctx.errors:
        check_effects(ctx, kernel, function)
    return function


_sources = itertools.count(1)


def parse(text: str, name: str | None = None) -> Function:
    """The function of language source, such as the printer's output: its last entry, or ``name``."""
    file = f"<source {next(_sources)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    module = types.ModuleType(file)
    exec(compile(text, file, "exec"), module.__dict__)
    entries = [v for v in module.__dict__.values() if isinstance(v, Kernel) and not v.inline]
    chosen = [k for k in entries if name in (None, k.name)]
    if not chosen:
        raise UserError(
            Diag.NOT_A_KERNEL, Span(file, 1), {"what": f"the source without {name or 'an entry'}"}
        )
    return lower(chosen[-1])
