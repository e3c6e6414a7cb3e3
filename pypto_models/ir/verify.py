"""The verifier: what must hold of a function before and after every pass.

A violation is a bug of the compiler, so it raises :class:`InternalError`, with the statement and the user's
line.  Checked are

* SSA: one definition per variable; reads, also those of run-time extents in types, come after it, in scope;
* types: op results against the op's own type rule, carried and merged values, conditions and bounds;
* placement: computation and stores inside of regions only, regions not nested, ``pl.pipeline`` inside and
  ``pl.parallel`` outside of them, fresh tensors outside, ``return`` at the end;
* in-place changes of tiles and arrays: nobody reads the old value afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..errors import InternalError, Span, UserError, located
from .expr import Binary, Const, DimVar, Expr, Unary, Var, free_vars
from .liveness import liveness
from .naming import mutated
from .nodes import (
    Bind,
    Block,
    For,
    Function,
    If,
    Let,
    LoopKind,
    Region,
    RegionKind,
    Return,
    Scope,
    Stmt,
)
from .printer import format_expr, format_head, format_type
from .rewrite import defs, inner_defs, operands
from .signature import definition
from .types import BOOL, INDEX, TASK_ID, ArrayType, ScalarType, TaskType, TensorType, TileType, Type


def verify(fn: Function) -> None:
    """Raise :class:`InternalError` if the function is not well formed."""
    _Verifier(fn).run()


class _Verifier:
    def __init__(self, fn: Function) -> None:
        self.fn = fn
        self.live = liveness(fn.body, [p.var for p in fn.params])
        self.defined: set[Var] = set()  # anywhere
        self.scope: set[Var] = set()  # and readable here
        self.dims = {d for p in fn.params if isinstance(p.var.type, TensorType) for d in p.var.type.shape}
        self.region: Region | None = None
        self.stmt: Stmt | None = None

    def run(self) -> None:
        for p in self.fn.params:
            self.define(p.var)
        self.block(self.fn.body)

    def fail(self, why: str) -> InternalError:
        span: Span = self.stmt.span if self.stmt is not None else self.fn.span
        what = f"`{format_head(self.stmt)}`" if self.stmt is not None else self.fn.name
        return InternalError(f"{span}: {self.fn.name}: {what}: {why}")

    def require(self, condition: bool, why: str) -> None:
        if not condition:
            raise self.fail(why)

    @contextmanager
    def within(self, s: Stmt) -> Iterator[None]:
        """Blame ``s``; on the way out of its blocks, blame the statement around it again."""
        outer, self.stmt = self.stmt, s
        yield
        self.stmt = outer

    # ------------------------------------------------------------------------------------ variables
    def define(self, v: Var) -> None:
        self.require(v not in self.defined, f"{v.name} is defined twice")
        if isinstance(v.type, TensorType | TileType):
            for d in (*v.type.shape, *(v.type.valid if isinstance(v.type, TileType) else ())):
                if isinstance(d, Expr):
                    self.read(d)
        self.defined.add(v)
        self.scope.add(v)

    def read(self, x: Expr) -> None:
        for v in free_vars(x):
            if v not in self.scope:
                why = "out of its scope" if v in self.defined else "before its definition"
                raise self.fail(f"{v.name} is read {why}")
        self.extents(x)

    def extents(self, x: Expr) -> None:
        if isinstance(x, DimVar):
            self.require(x in self.dims, f"the run-time extent {x.name} belongs to no parameter")
        elif isinstance(x, Binary):
            self.extents(x.lhs)
            self.extents(x.rhs)
        elif isinstance(x, Unary):
            self.extents(x.operand)

    # ------------------------------------------------------------------------------------ types
    def joins(self, what: str, value: Expr, wanted: Type) -> None:
        """``value`` becomes a joined value; one whose memory space is still open takes a tile of any."""
        if isinstance(value, Var) and isinstance(value.type, TileType) and isinstance(wanted, TileType):
            wanted = wanted if wanted.space is not None else replace(wanted, space=value.type.space)
        self.agree(what, value, wanted)

    def agree(self, what: str, value: Expr, wanted: Type) -> None:
        """``value`` has the type ``wanted``; a literal adapts to any integer type."""
        got = value.type if isinstance(value, Var) else ScalarType(value.dtype)
        if isinstance(got, ScalarType) and isinstance(wanted, ScalarType):
            integers = got.dtype.is_integer and wanted.dtype.is_integer
            if got.dtype == wanted.dtype or (integers and INDEX in (got.dtype, wanted.dtype)):
                return
        if _plain(got) != _plain(wanted):
            raise self.fail(f"{what} is {format_type(got)}, not {format_type(wanted)}")

    def scalar(self, what: str, x: Expr, boolean: bool = False) -> None:
        self.read(x)
        t = x.type if isinstance(x, Var) else ScalarType(x.dtype)
        fits = isinstance(t, ScalarType) and (t.dtype == BOOL or not boolean) and t.dtype.is_integer
        if not fits:
            raise self.fail(f"{what} is {format_type(t)}, not {'a condition' if boolean else 'an integer'}")

    # ------------------------------------------------------------------------------------ statements
    def block(self, block: Block) -> None:
        for s in block:
            with self.within(s):
                if isinstance(s, Return):
                    last = block is self.fn.body and s is block[-1]
                    self.require(last, "a return stands before the end of the function")
                self.one(s)

    def one(self, s: Stmt) -> None:
        for x in operands(s):
            self.read(x)
        if isinstance(s, Let):
            self.let(s)
        elif isinstance(s, Bind):
            self.agree(f"the value of {s.var.name}", s.value, s.var.type)
        elif isinstance(s, For):
            self.loop(s)
        elif isinstance(s, If):
            self.branches(s)
        elif isinstance(s, Region):
            self.in_region(s)
        elif isinstance(s, Scope):
            self.require(self.region is None, "a scope stands inside of a region")
            self.block(s.body)
        for v in defs(s):
            self.define(v)

    def let(self, s: Let) -> None:
        op = definition(s.op)
        self.require(len(s.args) == len(s.op.param_names), f"{len(s.args)} arguments for {s.op.name}")
        self.require(op.outside or self.region is not None, f"{s.op.name} stands outside of any region")
        with located(s.span):
            try:
                inferred = op.infer(*s.args)
            except (UserError, InternalError) as error:
                raise self.fail(f"{s.op.name} does not accept its arguments: {error}") from error
        wanted = () if inferred is None else (inferred,)
        self.require(len(wanted) == len(s.results), f"{s.op.name} has {len(wanted)} results")
        for v, t in zip(s.results, wanted, strict=True):
            if _data(v.type) != _data(t):
                raise self.fail(f"{v.name} is {format_type(v.type)}, and {s.op.name} gives {format_type(t)}")
            fresh = isinstance(t, TensorType) and op.alias is None
            self.require(not fresh or self.region is None, f"{s.op.name} makes a tensor inside of a region")
        old = mutated(s)
        if old is not None and self.live.live_after_definition_of(s.result, old):
            raise self.fail(f"{s.op.name} changes {old.name} in place, and its old value is read afterwards")

    def loop(self, s: For) -> None:
        inside = self.region is not None
        self.require(s.kind is not LoopKind.PARALLEL or not inside, "pl.parallel stands inside of a region")
        self.require(s.kind is not LoopKind.PIPELINE or inside, "pl.pipeline stands outside of any region")
        for what, x in (("the start", s.start), ("the stop", s.stop), ("the step", s.step)):
            self.scalar(what, x)
        if isinstance(s.step, Const):
            self.require(s.step.value > 0, f"the step is {s.step.value}")
        self.require(s.stage > 0, f"the number of stages is {s.stage}")
        for c in s.carried:
            self.joins(f"the initial value of {c.param.name}", c.init, c.param.type)
            self.agree(f"the result {c.result.name}", c.result, c.param.type)
        before = set(self.scope)
        for v in inner_defs(s):
            self.define(v)
        self.block(s.body)
        for c in s.carried:
            self.read(c.next)
            self.joins(f"the next value of {c.param.name}", c.next, c.param.type)
        self.scope = before

    def branches(self, s: If) -> None:
        self.scalar("the condition", s.cond, boolean=True)
        before = set(self.scope)
        for name, block, values in (
            ("then", s.then, [m.then for m in s.merged]),
            ("else", s.orelse, [m.orelse for m in s.merged]),
        ):
            self.block(block)
            for m, value in zip(s.merged, values, strict=True):
                self.read(value)
                self.joins(f"the {name} value of {m.result.name}", value, m.result.type)
            self.scope = set(before)

    def in_region(self, s: Region) -> None:
        self.require(self.region is None, "a region stands inside of a region")
        grid = s.kind is RegionKind.SPMD
        self.require((s.count is not None) == grid, "pl.spmd has a block count, pl.at has none")
        self.require(s.block is None or grid, "only pl.spmd has a block index")
        if s.count is not None:
            self.scalar("the block count", s.count)
        for d in s.deps:
            t = d.type if isinstance(d, Var) else None
            tasks = isinstance(t, TaskType) or (isinstance(t, ArrayType) and t.elem == TASK_ID)
            self.require(tasks, f"the dependency {format_expr(d)} is not a task id")
        if s.tid is not None:
            self.agree(f"the task id {s.tid.name}", s.tid, TaskType())
        for v in inner_defs(s):
            self.define(v)
        self.region = s
        self.block(s.body)  # what a region defines may be read by later ones, until it is spilled
        self.region = None


def _plain(t: Type) -> object:
    """What carried and merged values share; valid rectangles may differ."""
    if isinstance(t, TileType):
        return (TileType, t.shape, t.dtype, t.space, t.split)
    return t


def _data(t: Type) -> object:
    """What an op's type rule decides: space and split come from passes, valid extents may be widened."""
    return (TileType, t.shape, t.dtype) if isinstance(t, TileType) else t
