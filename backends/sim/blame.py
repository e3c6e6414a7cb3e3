"""From an exception in the emitted program to an error at the user's line.

The traceback holds the frames of the program's functions.  The innermost one names the statement (by line)
and still has its variables, so that the error can say which tile, which block and which trip of a loop,
and the run itself pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from pypto_models.errors import NOWHERE, Diag, InternalError, PyptoError, UserError, user_error
from pypto_models.ir.expr import Expr, Number, Var, evaluate
from pypto_models.ir.nodes import For, Let, Stmt
from pypto_models.ir.rewrite import exits, operands
from pypto_models.ir.types import ScalarType
from pypto_models.ops.registry import OpDef
from pypto_models.ops.value import TileValue

from .emit import KERNEL, Line, Program

_OF_OPS = (Diag.BOUNDS, Diag.UNINITIALISED, Diag.INVALID_READ)
_INT_DIVISION = "ZeroDivisionError"  # how torch words a zero divisor in an integer tensor


def blame(error: Exception, program: Program, filename: str) -> PyptoError:
    """The error to raise in place of ``error``."""
    frames = [
        (name, program.lines[line], values)
        for name, line, values in _frames(error.__traceback__, filename)
        if line in program.lines
    ]
    if not frames:
        return error if isinstance(error, PyptoError) else InternalError(f"the simulator failed: {error!r}")
    _, line, values = frames[-1]
    found = _as_user_error(error, line.stmt, program, values)
    where = _where(frames, program)
    if found is None:
        what = line.stmt.op.name if isinstance(line.stmt, Let) else type(line.stmt).__name__
        return InternalError(f"{line.stmt.span}: simulating {what} failed{where}: {error}")
    if found.span is NOWHERE:
        found.span = line.stmt.span
    if isinstance(line.stmt, Let):
        _name_op(found, line, program, values)
    if where:
        found.notes.append(where.strip())
    return found


def _frames(tb: TracebackType | None, filename: str) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    while tb is not None:
        code = tb.tb_frame.f_code
        if code.co_filename == filename:
            yield code.co_name, tb.tb_lineno, tb.tb_frame.f_locals
        tb = tb.tb_next


def _as_user_error(
    error: Exception, stmt: Stmt, program: Program, values: Mapping[str, Any]
) -> UserError | None:
    """The user mistake behind an exception; None if it is a bug of the simulator."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ArithmeticError):
        return _arithmetic(error, stmt, program, values)
    if isinstance(error, ValueError) and isinstance(stmt, For):  # range() refuses nothing else
        op = f"pl.{stmt.kind.value}"
        return user_error(Diag.ARITHMETIC, op=op, why="the step is 0", fix="step by 1 or more")
    if isinstance(error, RuntimeError) and _INT_DIVISION in str(error):
        return user_error(
            Diag.ARITHMETIC, op="pl.div", why="an element of the integer divisor is 0",
            fix="bound the divisor with pl.maximum(x, 1)",
        )  # fmt: skip
    return None


def _arithmetic(error: ArithmeticError, stmt: Stmt, program: Program, values: Mapping[str, Any]) -> UserError:
    """The scalar that failed, found by evaluating the statement's expressions once more, one by one."""

    def lookup(x: Expr) -> Number:
        found: Number = values[program.names[x][0]]
        return found

    for x in (*operands(stmt), *exits(stmt)):
        if isinstance(x, Var) and not isinstance(x.type, ScalarType):
            continue
        try:
            evaluate(x, lookup)
        except UserError as found:
            return found
        except (ArithmeticError, KeyError):  # KeyError: a loop's next value before its first trip
            continue
    return user_error(Diag.ARITHMETIC, op="a scalar expression", why=str(error), fix="bound the operands")


def _name_op(error: UserError, line: Line, program: Program, values: Mapping[str, Any]) -> None:
    """Fill in what a reference cannot know: how the op is spelled and which operand is at fault."""
    let = line.stmt
    culprit = error.fields.pop("operand", None)
    if not isinstance(let, Let) or not isinstance(let.op, OpDef) or error.diag not in _OF_OPS:
        return
    if error.fields.get("op") != "subscript":
        namespace = "" if "" in let.op.namespaces else f"{let.op.namespaces[0]}."
        error.fields["op"] = f"pl.{namespace}{let.op.spelling}"
    for param, arg in zip(let.op.param_names, let.args, strict=True):
        names = program.names.get(arg) if isinstance(arg, Var) else None
        value = values.get(names[min(line.lane or 0, len(names) - 1)]) if names else None
        if not isinstance(value, TileValue) or not isinstance(arg, Var):
            continue
        if value is culprit:
            error.fields["tensor"] = arg.name
        if error.diag is Diag.INVALID_READ:
            error.notes.append(f"{param}: {arg.name} {list(value.shape)}, valid {list(value.valid)}")


def _where(frames: list[tuple[str, Line, Mapping[str, Any]]], program: Program) -> str:
    """`` in block 3 of region 'q_proj' with kb = 2``; empty outside of regions and loops."""
    parts = []
    trips = []
    for function, line, values in frames:
        region = program.regions.get(function)
        if function != KERNEL and region is not None:
            block = f"block {values['block']} of " if region.count is not None else ""
            parts.append(f" in {block}region {region.name!r}")
        for loop in line.loops:
            name = program.names[loop.var][0]
            if name in values:
                trips.append(f"{loop.var.name} = {values[name]}")
        if line.lane is not None:
            trips.append(f"vector lane {line.lane}")
    return "".join(parts) + (f" with {', '.join(trips)}" if trips else "")
