"""IR to Python: a function becomes the text of one Python function per region and one for the orchestration.

    def q_proj(block, hidden, wq):                         # one block of a region
        acc = create_tile((16, 256), FP32, 'ND', False, None)
        for k in range(0, 5120, 256):
            x = load(hidden, (16, 256), (0, k), None, None, None, False)
            ...

    def kernel(launch, hidden, wq, out):                   # the orchestration
        launch(q_proj, 20, hidden, wq)

Op names are the OpDef references themselves, variables are Python locals, and scalar expressions are Python
expressions, so that an op costs one call.  Nothing in the text handles errors: every line is mapped to its
statement, and :mod:`.blame` reads the rest from the frame that failed.
"""

from __future__ import annotations

import keyword
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pypto_models.errors import Diag, InternalError, user_error
from pypto_models.ir.expr import Binary, Const, DimVar, Expr, Unary, Var
from pypto_models.ir.nodes import (
    Arg,
    Bind,
    Block,
    For,
    Function,
    If,
    Let,
    LoopKind,
    Region,
    Return,
    Scope,
    Stmt,
)
from pypto_models.ir.rewrite import defs, uses
from pypto_models.ops import REGISTRY, memory
from pypto_models.ops.registry import OpDef
from pypto_models.ops.value import torch_dtype

from .lanes import LANES, is_split, join_tile, lane_let, split_axis, split_tile
from .memory import create


@dataclass(frozen=True)
class Line:
    """What a line of the text came from: ``loops`` are those around it in its function."""

    stmt: Stmt
    loops: tuple[For, ...]
    lane: int | None = None


@dataclass(frozen=True)
class Program:
    """The text, what its global names stand for, and the way back from a line to the IR."""

    text: str
    namespace: dict[str, object]
    lines: dict[int, Line]
    names: dict[Expr, tuple[str, ...]]  # of a variable: two for a tile that is split
    regions: dict[str, Region]
    region_names: dict[int, str]  # by id() of the region, which the function keeps alive


KERNEL = "kernel"
_RESERVED = (
    KERNEL, "launch", "block", "create", "split_tile", "join_tile",
    "bool", "float", "int", "max", "min", "range",
)  # fmt: skip


def emit(function: Function, suspects: Mapping[Var, frozenset[Var]] | None = None) -> Program:
    """The program of a function, before or after any pass.

    ``suspects`` gives, for a parallel loop variable, the tensors that its iterations may share.
    """
    return _Emitter(function, suspects or {}).program()


@dataclass
class _Def:
    """A Python function under construction: inside a region, names from outside become parameters."""

    name: str
    region: Region | None
    known: set[str] = field(default_factory=set)
    captured: dict[str, None] = field(default_factory=dict)
    body: list[tuple[str, Line | None]] = field(default_factory=list)
    loops: tuple[For, ...] = ()
    depth: int = 1


class _Emitter:
    def __init__(self, function: Function, suspects: Mapping[Var, frozenset[Var]]) -> None:
        self.function = function
        self.suspects = suspects
        self.namespace: dict[str, object] = {
            "create": create, "split_tile": split_tile, "join_tile": join_tile,
        }  # fmt: skip
        self.taken = {*_RESERVED, *keyword.kwlist, *REGISTRY.by_name}
        self.names: dict[Expr, tuple[str, ...]] = {}
        self.constants: dict[tuple[type, object], str] = {}
        self.regions: dict[str, Region] = {}
        self.region_names: dict[int, str] = {}
        self.finished: list[_Def] = []
        self.uses = Counter(uses(function.body))
        self.out = _Def(KERNEL, None)

    def program(self) -> Program:
        head = ["launch"]
        for p in self.function.params:
            head += self.define(p.var)
        self.block(self.function.body)
        # Run-time extents are arguments by their name, so that they need no order.
        dims = [name for key, (name, *_) in self.names.items() if isinstance(key, DimVar)]
        self.finish(self.out, [*head, *(["*", *dims] if dims else [])])
        rows: list[str] = []
        lines: dict[int, Line] = {}
        for d in self.finished:
            for text, line in d.body:
                rows.append(text)
                if line is not None:
                    lines[len(rows)] = line
        text = "\n".join(rows) + "\n"
        return Program(text, self.namespace, lines, self.names, self.regions, self.region_names)

    def finish(self, d: _Def, params: Iterable[str]) -> None:
        if len(d.body) == 0:
            d.body.append(("    pass", None))
        d.body.insert(0, (f"def {d.name}({', '.join(params)}):", None))
        d.body.append(("", None))
        self.finished.append(d)

    # ------------------------------------------------------------------------------------------ names
    def unique(self, wanted: str) -> str:
        base = re.sub(r"\W", "_", wanted) or "x"
        base = base if not base[0].isdigit() else f"x{base}"
        name, n = base, 1
        while name in self.taken:
            n += 1
            name = f"{base}_{n}"
        self.taken.add(name)
        return name

    def define(self, var: Var) -> tuple[str, ...]:
        """Python names of a variable that the current function defines."""
        if var not in self.names:
            suffixes = [f"_lane{i}" for i in LANES] if is_split(var) else [""]
            self.names[var] = tuple(self.unique(var.name + s) for s in suffixes)
        self.out.known.update(self.names[var])
        return self.names[var]

    def share(self, var: Var, names: tuple[str, ...]) -> None:
        """Give a variable the names of another that is dead by then."""
        self.names[var] = names
        self.out.known.update(names)

    def read(self, x: Expr, lane: int = 0) -> str:
        names = self.names.get(x)
        if names is None:
            if not isinstance(x, DimVar):
                raise InternalError(f"{x!r} is read before it is defined")
            names = self.names[x] = (self.unique(x.name),)
        name = names[lane if len(names) > 1 else 0]
        if name not in self.out.known:
            self.out.captured.setdefault(name)
        return name

    def constant(self, value: object, wanted: str) -> str:
        key = (type(value), value)
        if key not in self.constants:
            self.constants[key] = self.unique(wanted)
            self.namespace[self.constants[key]] = value
        return self.constants[key]

    # ------------------------------------------------------------------------------------------ lines
    def line(self, text: str, stmt: Stmt | None, lane: int | None = None) -> None:
        row = None if stmt is None else Line(stmt, self.out.loops, lane)
        self.out.body.append(("    " * self.out.depth + text, row))

    @contextmanager
    def indented(self) -> Iterator[None]:
        self.out.depth += 1
        yield
        self.out.depth -= 1

    def assign(self, to: list[str], values: list[str], stmt: Stmt) -> None:
        """One simultaneous assignment, without the parts that assign a name to itself."""
        pairs = [(t, v) for t, v in zip(to, values, strict=True) if t != v]
        if pairs:
            self.line(f"{', '.join(t for t, _ in pairs)} = {', '.join(v for _, v in pairs)}", stmt)

    # ------------------------------------------------------------------------------------------ values
    def scalar(self, x: Expr) -> str:
        if isinstance(x, Const):
            if isinstance(x.value, float) and not math.isfinite(x.value):
                return self.constant(x.value, "inf")
            return repr(x.value) if x.value >= 0 else f"({x.value!r})"
        if isinstance(x, Binary):
            a, b = self.scalar(x.lhs), self.scalar(x.rhs)
            if x.op in ("min", "max"):
                return f"{x.op}({a}, {b})"
            if x.op in ("and", "or"):  # both sides are evaluated: the language does not short-circuit
                return f"(bool({a}) {'&' if x.op == 'and' else '|'} bool({b}))"
            return f"({a} {x.op} {b})"
        if isinstance(x, Unary):
            a = self.scalar(x.operand)
            if x.op == "cast":
                return f"{'float' if x.dtype.is_float else 'int'}({a})"
            return f"({x.op} {a})"
        return self.read(x)

    def arg(self, a: Arg, lane: int = 0) -> str:
        if isinstance(a, Var):
            return self.read(a, lane)
        if isinstance(a, Expr):
            return self.scalar(a)
        if isinstance(a, tuple):
            return f"({', '.join(self.arg(x) for x in a)}{',' if len(a) == 1 else ''})"
        if a is None or isinstance(a, bool | int | str):
            return repr(a)
        if isinstance(a, float):
            return self.scalar(Const(a))
        return self.constant(a, getattr(a, "name", "constant"))

    def all_lanes(self, values: Iterable[tuple[Var, Expr]]) -> tuple[list[str], list[str]]:
        """Names and values of an assignment to variables, per lane where they are split."""
        to: list[str] = []
        what: list[str] = []
        for var, value in values:
            if is_split(var) != is_split(value):
                raise InternalError(f"{var} becomes {value}, and only one of them is split")
            for lane, name in enumerate(self.define(var)):
                to.append(name)
                what.append(self.arg(value, lane))
        return to, what

    # ------------------------------------------------------------------------------------------ statements
    def block(self, block: Block) -> None:
        before = len(self.out.body)
        for stmt in block:
            self.stmt(stmt)
        if len(self.out.body) == before and self.out.depth > 1:
            self.line("pass", None)

    def stmt(self, s: Stmt) -> None:
        if isinstance(s, Let):
            self.let(s)
        elif isinstance(s, Bind):
            value = self.scalar(s.value)
            self.assign([*self.define(s.var)], [value], s)
        elif isinstance(s, For):
            self.loop(s)
        elif isinstance(s, If):
            self.branch(s)
        elif isinstance(s, Region):
            self.region(s)
        elif isinstance(s, Scope):
            for inner in s.body:
                self.stmt(inner)
        elif isinstance(s, Return):
            self.line(f"return ({''.join(f'{self.scalar(v)}, ' for v in s.values)})", s)

    def let(self, s: Let) -> None:
        op = s.op
        if not isinstance(op, OpDef):
            raise InternalError(f"{op!r} at {s.span} is not an OpDef")
        if op is memory.CREATE:
            shape, dtype, init = (s.arg(n) for n in ("shape", "dtype", "init_value"))
            element = self.constant(torch_dtype(dtype), f"torch_{dtype}")  # type: ignore[arg-type]
            (name,) = self.define(s.result)
            args = f"{s.result.name!r}, {self.arg(shape)}, {element}, {self.arg(init)}"
            self.line(f"{name} = create({args})", s)
            return
        axis = split_axis(s)
        if axis is None:
            self.call(s, op, 0)
        elif op is memory.MOVE and not is_split(s.args[0]):
            low, high = self.define(s.result)
            self.line(f"{low}, {high} = split_tile({self.arg(s.args[0])}, {axis})", s)
        elif op is memory.MOVE and not is_split(s.result):
            low, high = (self.arg(s.args[0], lane) for lane in LANES)
            (name,) = self.define(s.result)
            self.line(f"{name} = join_tile({low}, {high}, {axis})", s)
        else:
            for lane in LANES:
                self.call(lane_let(s, axis, lane), op, lane, s)

    def call(self, s: Let, op: OpDef, lane: int, origin: Let | None = None) -> None:
        if op.reference is None:
            raise InternalError(f"{op.name} has no reference")
        args = ", ".join(self.arg(a, lane) for a in s.args)
        results = ", ".join(self.define(r)[lane] for r in s.results)
        self.namespace[op.name] = op.reference
        text = f"{op.name}({args})"
        self.line(f"{results} = {text}" if results else text, origin or s, None if origin is None else lane)

    def loop(self, s: For) -> None:
        bounds = ", ".join(self.scalar(x) for x in (s.start, s.stop, s.step))
        self.assign(*self.all_lanes((c.param, c.init) for c in s.carried), s)
        (var,) = self.define(s.var)
        trips = f"range({bounds})"
        if s.kind is LoopKind.PARALLEL:
            label = f"the parallel loop on line {s.span.line}"
            tensors = frozenset(t.name for t in self.suspects.get(s.var, ()))
            trips = f"launch.parallel({trips}, {label!r}, {self.constant(tensors, 'suspects')})"
        self.line(f"for {var} in {trips}:", s)
        outer, self.out.loops = self.out.loops, (*self.out.loops, s)
        with self.indented():
            self.block(s.body)
            self.assign(*self.all_lanes((c.param, c.next) for c in s.carried), s)
        self.out.loops = outer
        for c in s.carried:
            self.share(c.result, self.names[c.param])

    def branch(self, s: If) -> None:
        for head, block, values in (
            (f"if {self.scalar(s.cond)}:", s.then, [(m.result, m.then) for m in s.merged]),
            ("else:", s.orelse, [(m.result, m.orelse) for m in s.merged]),
        ):
            if head == "else:" and not block and not values:
                break
            self.line(head, s)
            with self.indented():
                self.block(block)
                self.assign(*self.all_lanes(values), s)

    def region(self, s: Region) -> None:
        inside = Counter(uses(s.body))
        live = [v for x in s.body for v in defs(x) if self.uses[v] > inside[v]]
        if live and s.count is not None:
            raise user_error(
                Diag.SPILL, s.span, name=live[0].name,
                fix="store it into a tensor, and read the tensor in the later region",
            )  # fmt: skip
        outer = self.out
        name = self.unique(s.name)
        self.regions[name], self.region_names[id(s)] = s, name
        self.out = inner = _Def(name, s, known={"block"})
        if s.block is not None:
            self.share(s.block, ("block",))
        self.block(s.body)
        results = [n for v in live for n in self.names[v]]
        if results:
            self.line(f"return ({''.join(f'{n}, ' for n in results)})", None)
        self.out = outer
        self.finish(inner, ["block", *inner.captured])
        for captured in inner.captured:  # read here, so a parameter of this function's own if need be
            if captured not in outer.known:
                outer.captured.setdefault(captured)
        outer.known.update(results)
        call = ", ".join([name, "None" if s.count is None else self.scalar(s.count), *inner.captured])
        given = f"({''.join(f'{n}, ' for n in results)}) = " if results else ""
        self.line(f"{given}launch({call})", s)
        if s.tid is not None:
            (task,) = self.define(s.tid)
            self.line(f"{task} = launch.task()", s)


