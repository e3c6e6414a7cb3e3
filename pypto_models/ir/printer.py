"""The IR as text.  A function's text is valid source of the language: reading it back gives the function.

:func:`format_function` prints a module with one kernel; :func:`format_block` and :func:`format_stmt` print
fragments for messages and documents.  Carried and merged values share one name (see :mod:`.naming`), so that
the text rebinds names as the user would; where live ranges forbid it, the name is assigned before the loop
and at the ends of bodies and branches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from typing import Any

from ..errors import InternalError
from .expr import COMPARISONS, Binary, Const, DimVar, Expr, Unary, Var, dim_expr, free_vars
from .naming import RESERVED, Names, mutated, unique
from .nodes import (
    Bind,
    Block,
    Direction,
    For,
    Function,
    If,
    Let,
    LoopKind,
    Region,
    RegionKind,
    Scope,
    Stmt,
)
from .rewrite import uses
from .signature import Parameter, definition
from .types import (
    BOOL,
    FP32,
    INDEX,
    ArrayType,
    Dim,
    DType,
    ScalarType,
    SplitMode,
    TaskType,
    TensorType,
    TileType,
    Type,
)

INDENT = "    "
WIDTH = 110


def format_function(fn: Function) -> str:
    """A module that defines the kernel ``fn``."""
    taken = {*RESERVED, fn.name}
    dims: dict[DimVar, str] = {}
    for d in (d for p in fn.params for d in _dim_vars(p.var.type)):
        if d not in dims:
            dims[d] = unique(d.name, taken)
    names = Names(fn.body, [p.var for p in fn.params], taken)
    lines = ["import pypto_models.language as pl", ""]
    lines += [f"{name} = pl.dynamic({_string(d.name)})" for d, name in dims.items()] + [""] * bool(dims)
    lines += ["", "@pl.jit", *_header(fn, _Printer(names, dims))]
    printer = _Printer(names, {**dims, **_extents(fn, names)})
    printer.body(fn.body)
    return "\n".join([*lines, *printer.lines]) + "\n"


def format_block(block: Block) -> str:
    """Statements without a function around them; what they read from outside keeps its name."""
    printer = _Printer(Names(block), {})
    for s in block:
        printer.stmt(s)
    return "\n".join(printer.lines)


def format_stmt(stmt: Stmt) -> str:
    """One statement, with its blocks."""
    return format_block((stmt,))


def format_head(stmt: Stmt) -> str:
    """The statement's own line, without its blocks: for messages."""
    if isinstance(stmt, For):
        stmt = replace(stmt, carried=(), body=())
    elif isinstance(stmt, If):
        stmt = replace(stmt, then=(), orelse=(), merged=())
    elif isinstance(stmt, Region | Scope):
        stmt = replace(stmt, body=())
    lines = format_stmt(stmt).split("\n")
    return lines[-1] if isinstance(stmt, Let) else lines[0]


def format_expr(x: Expr) -> str:
    """A scalar expression; variables print under the names that the user gave them."""
    return _Printer(Names(()), {}).expr(x)


def format_type(t: Type) -> str:
    """A type as an annotation.  A tile's valid rectangle is inferred and not part of it."""
    return _Printer(Names(()), {}).type(t)


def _extents(fn: Function, names: Names) -> dict[DimVar, str]:
    """How the body reads each run-time extent: from the first parameter that has it."""
    found: dict[DimVar, str] = {}
    for p in fn.params:
        for axis, d in enumerate(p.var.type.shape if isinstance(p.var.type, TensorType) else ()):
            if isinstance(d, DimVar):
                found.setdefault(d, f"pl.tensor.dim({names[p.var]}, {axis})")
    return found


def _dim_vars(t: Type) -> Iterator[DimVar]:
    for d in t.shape if isinstance(t, TensorType) else ():
        yield from _dims_of(d)


def _dims_of(d: Dim) -> Iterator[DimVar]:
    if isinstance(d, DimVar):
        yield d
    elif isinstance(d, Binary):
        yield from (*_dims_of(d.lhs), *_dims_of(d.rhs))
    elif isinstance(d, Unary):
        yield from _dims_of(d.operand)


def _header(fn: Function, printer: _Printer) -> list[str]:
    params = []
    for p in fn.params:
        text = printer.type(p.var.type)
        if p.direction is not Direction.IN:
            text = f"pl.{'Out' if p.direction is Direction.OUT else 'InOut'}[{text}]"
        params.append(f"{printer.names[p.var]}: {text}")
    line = f"def {fn.name}({', '.join(params)}):"
    if len(line) <= WIDTH:
        return [line]
    return [f"def {fn.name}(", *(f"{INDENT}{p}," for p in params), "):"]


# How tightly each kind of expression binds; min, max and cast print as calls
_PRECEDENCE = {"or": 1, "and": 2, "not": 3, **dict.fromkeys(COMPARISONS, 4), "+": 5, "-": 5}
_PRECEDENCE |= dict.fromkeys(("*", "/", "//", "%"), 6) | {"negate": 7, "**": 8}
_ATOM = 9


class _Printer:
    """Writes lines.  ``extents`` says how the body reads a run-time extent."""

    def __init__(self, names: Names, extents: dict[DimVar, str]) -> None:
        self.names = names
        self.extents = extents
        self.lines: list[str] = []
        self.depth = 0

    def line(self, text: str) -> None:
        self.lines.append(INDENT * self.depth + text)

    def call(self, before: str, args: list[str], after: str = "") -> None:
        """``before(args)after``, broken over lines if it is too long."""
        if len(INDENT) * self.depth + len(text := f"{before}({', '.join(args)}){after}") <= WIDTH:
            return self.line(text)
        self.line(f"{before}(")
        self.depth += 1
        together = f"{', '.join(args)},"
        fits = len(INDENT) * self.depth + len(together) <= WIDTH
        for text in [together] if fits else [f"{a}," for a in args]:
            self.line(text)
        self.depth -= 1
        return self.line(f"){after}")

    @contextmanager
    def indented(self) -> Iterator[None]:
        """A nested block; one without a line prints ``pass``."""
        self.depth += 1
        before = len(self.lines)
        yield
        if len(self.lines) == before:
            self.line("pass")
        self.depth -= 1

    def body(self, block: Block, ends: Iterable[tuple[Var, Expr]] = ()) -> None:
        with self.indented():
            for s in block:
                self.stmt(s)
            self.assign(ends)

    # ------------------------------------------------------------------------------------ statements
    def stmt(self, s: Stmt) -> None:
        if isinstance(s, Let):
            self.let(s)
        elif isinstance(s, Bind):
            self.line(f"{self.names[s.var]} = {self.expr(s.value)}")
        elif isinstance(s, For):
            self.loop(s)
        elif isinstance(s, If):
            self.branches(s)
        elif isinstance(s, Region):
            self.region(s)
        elif isinstance(s, Scope):
            self.line(f"with pl.{'manual_scope' if s.manual else 'scope'}():")
            self.body(s.body)
        else:
            self.line(f"return {', '.join(self.expr(v) for v in s.values)}".rstrip())

    def let(self, s: Let) -> None:
        if s.op.name == "array_get":
            self.line(f"{self.names[s.result]} = {self.element(s)}")
        elif s.op.name == "array_set":
            target = mutated(s)
            if target is not None:
                self.assign([(s.result, target)])
            self.line(f"{self.names[s.result]}{self.arg(s.args[1])} = {self.arg(s.args[2])}")
        else:
            op = definition(s.op)
            namespace = "" if "" in op.namespaces else f"{op.namespaces[0]}."
            targets = ", ".join(self.names[v] for v in s.results)
            assigned = f"{targets}{self.placement(s.results)} = " if s.results else ""
            self.call(f"{assigned}pl.{namespace}{s.op.spelling}", self.arguments(s))

    def element(self, s: Let) -> str:
        return f"{self.arg(s.args[0])}{self.arg(s.args[1])}"

    def placement(self, results: tuple[Var, ...]) -> str:
        """An annotation if a result has a memory space or a split."""
        placed = [v.type for v in results if isinstance(v.type, TileType) and _placed(v.type)]
        if len(placed) > 1:
            raise InternalError(f"{results[0].name}: several results cannot be annotated in one assignment")
        return f": {self.type(placed[0])}" if placed else ""

    def loop(self, s: For) -> None:
        inits = [(c.param, c.init) for c in s.carried if not self.same_text(c.param, c.init)]
        assigned = {self.names[v] for v, _ in inits}
        read = {v for x in (s.start, s.stop, s.step) for v in free_vars(x)}
        kept = [(v, self.keep(v)) for v in read if self.names[v] in assigned]
        self.assign(inits)
        bounds = [self.expr(s.stop)]
        if s.start != Const(0) or s.step != Const(1):
            bounds.insert(0, self.expr(s.start))
        if s.step != Const(1):
            bounds.append(self.expr(s.step))
        if s.stage != 1 or s.kind is LoopKind.PIPELINE:
            bounds.append(f"stage={s.stage}")
        self.line(f"for {self.names[s.var]} in pl.{s.kind.value}({', '.join(bounds)}):")
        self.restore(kept)
        self.body(s.body, [(c.param, c.next) for c in s.carried])

    def branches(self, s: If, keyword: str = "if") -> None:
        self.line(f"{keyword} {self.expr(s.cond)}:")
        self.body(s.then, [(m.result, m.then) for m in s.merged])
        ends = [(m.result, m.orelse) for m in s.merged if not self.same_text(m.result, m.orelse)]
        if len(s.orelse) == 1 and isinstance(s.orelse[0], If) and not ends:
            self.branches(s.orelse[0], "elif")
        elif s.orelse or ends:
            self.line("else:")
            self.body(s.orelse, ends)

    def region(self, s: Region) -> None:
        with_block = s.block is not None and s.block in uses(s.body)
        as_loop = s.kind is RegionKind.SPMD and s.block is not None and s.tid is None
        args = ["level=pl.Level.CORE_GROUP"] if s.kind is RegionKind.AT else []
        args += [self.expr(s.count)] if s.count is not None else []
        args += self.options(s)
        if as_loop and s.block is not None:
            self.call(f"for {self.names[s.block]} in pl.{s.kind.value}", args, ":")
        else:
            task = f" as {self.names[s.tid]}" if s.tid is not None else ""
            self.call(f"with pl.{s.kind.value}", args, f"{task}:")
        with self.indented():
            if s.block is not None and with_block and not as_loop:
                self.line(f"{self.names[s.block]} = pl.get_block_idx()")
            for inner in s.body:
                self.stmt(inner)

    def options(self, s: Region) -> Iterator[str]:
        o = s.options
        if o.split is not SplitMode.NONE or o.slot_num != 2:
            slots = f", {o.slot_num}" if o.slot_num != 2 else ""
            yield f"optimizations=[pl.split(pl.SplitMode.{o.split.name}{slots})]"
        if s.deps:
            yield f"deps={self.arg(s.deps)}"
        if o.name_hint:
            yield f"name_hint={_string(o.name_hint)}"
        for key, value in o.hints:
            yield f"{key}={self.arg(value)}"

    # ------------------------------------------------------------------------------------ rebinding
    def same_text(self, v: Var, x: Expr) -> bool:
        return isinstance(x, Var) and self.names[x] == self.names[v]

    def assign(self, pairs: Iterable[tuple[Var, Expr]]) -> None:
        """``names = values``, all at once: no name is overwritten while another value still needs it."""
        pending = sorted(
            ((self.names[v], x) for v, x in pairs if not self.same_text(v, x)), key=lambda p: p[0]
        )  # fmt: skip
        kept: list[tuple[Var, str]] = []
        while pending:
            read = [{self.names[u] for u in free_vars(x)} for _, x in pending]
            free = (
                i for i, (name, _) in enumerate(pending)
                if not any(name in names for j, names in enumerate(read) if j != i)
            )  # fmt: skip
            i = next(free, None)
            if i is not None:
                name, x = pending.pop(i)
                self.line(f"{name} = {self.expr(x)}")
                continue
            name = pending[0][0]  # a cycle: keep the value that this name has until now
            u = next(u for _, x in pending for u in free_vars(x) if self.names[u] == name)
            kept.append((u, self.keep(u)))
        self.restore(kept)

    def keep(self, v: Var) -> str:
        """Alias ``v`` by a name of its own, since its name is about to be rebound; returns the old name."""
        old = self.names[v]
        new = self.names.fresh(old)
        self.line(f"{new} = {old}")
        self.names.rename(v, new)
        return old

    def restore(self, kept: list[tuple[Var, str]]) -> None:
        for v, name in kept:
            self.names.rename(v, name)

    # ------------------------------------------------------------------------------------ calls
    def arguments(self, s: Let) -> list[str]:
        """Required arguments by position, the others by keyword where they differ from the default."""
        params = definition(s.op).params
        if len(params) != len(s.args):  # not well formed, but the verifier shows it
            return [self.arg(value) for value in s.args]
        args: list[str] = []
        for param, value in zip(params, s.args, strict=True):
            if param.required:
                args.append(self.value(s, param, value))
            elif type(value) is not type(param.default) or value != param.default:
                args.append(f"{param.name}={self.value(s, param, value)}")
        return args

    def value(self, s: Let, param: Parameter, value: Any) -> str:
        if isinstance(value, str) and param.kind.name == "PAD":
            return f"pl.PadValue.{value}"
        if isinstance(value, str) and param.name == "atomic":
            return f"pl.AtomicType.{'None_' if value == 'none' else value.capitalize()}"
        if s.op.name == "array_create" and param.name == "size":
            return str(value[0])
        return self.arg(value)

    def arg(self, value: Any) -> str:
        if isinstance(value, Expr):
            return self.expr(value)
        if isinstance(value, tuple | list):
            return f"[{', '.join(self.arg(v) for v in value)}]"
        if isinstance(value, DType):
            return f"pl.{value}"
        if isinstance(value, Enum):
            return f"pl.{type(value).__name__}.{value.name}"
        if isinstance(value, float):
            return _number(value)
        return _string(value) if isinstance(value, str) else repr(value)

    def type(self, t: Type) -> str:
        if isinstance(t, ScalarType):
            return f"pl.Scalar[pl.{t.dtype}]"
        if isinstance(t, TaskType):
            return "pl.Scalar[pl.TASK_ID]"
        if isinstance(t, ArrayType):
            return f"pl.Array[{t.size}, pl.{t.elem}]"
        parts = [f"[{', '.join(self.expr(dim_expr(d)) for d in t.shape)}]", f"pl.{t.dtype}"]
        if isinstance(t, TensorType):
            return f"pl.Tensor[{', '.join(parts)}]"
        parts += [f"pl.Mem.{t.space.name}"] if t.space is not None else []
        parts += [f"pl.SplitMode.{t.split.name}"] if t.split is not SplitMode.NONE else []
        return f"pl.Tile[{', '.join(parts)}]"

    # ------------------------------------------------------------------------------------ expressions
    def expr(self, x: Expr, least: int = 0) -> str:
        """The text of ``x``, in parentheses if it binds less tightly than ``least``."""
        text, precedence = self.term(x)
        return text if precedence >= least else f"({text})"

    def term(self, x: Expr) -> tuple[str, int]:
        if isinstance(x, Const):
            text = _constant(x)
            return text, _PRECEDENCE["negate"] if text.startswith("-") else _ATOM
        if isinstance(x, Var):
            return self.names[x], _ATOM
        if isinstance(x, DimVar):
            return self.extents.get(x, x.name), _ATOM
        if isinstance(x, Unary):
            if x.op == "cast":
                return f"pl.cast({self.expr(x.operand)}, pl.{x.dtype})", _ATOM
            level = _PRECEDENCE["not" if x.op == "not" else "negate"]
            return f"{'not ' if x.op == 'not' else '-'}{self.expr(x.operand, level)}", level
        if not isinstance(x, Binary):
            raise InternalError(f"{type(x).__name__} has no text")
        if x.op in ("min", "max"):
            return f"pl.{x.op}({self.expr(x.lhs)}, {self.expr(x.rhs)})", _ATOM
        level = _PRECEDENCE[x.op]
        # a - b - c groups to the left; a ** -b needs no parentheses; comparisons do not chain
        left = level + 1 if x.op in COMPARISONS or x.op == "**" else level
        right = _PRECEDENCE["negate"] if x.op == "**" else level + 1
        return f"{self.expr(x.lhs, left)} {x.op} {self.expr(x.rhs, right)}", level


def _placed(t: TileType) -> bool:
    return t.space is not None or t.split is not SplitMode.NONE


def _constant(x: Const) -> str:
    if x.type == BOOL:
        return str(bool(x.value))
    if x.type == FP32:
        return _number(float(x.value))
    if x.type == INDEX and not isinstance(x.value, float):
        return str(int(x.value))
    value = _number(x.value) if isinstance(x.value, float) else str(int(x.value))
    return f"pl.const({value}, pl.{x.type})"


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _number(value: float) -> str:
    """A float literal; infinities overflow on purpose, since the language has no name for them."""
    if math.isnan(value):
        return "(1e999 - 1e999)"
    if math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return repr(value)
