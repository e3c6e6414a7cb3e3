"""What a fault is, and how it is put into a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from ..errors import InternalError, Span, UserError, located
from ..ir.expr import Var
from ..ir.nodes import Arg, Block, For, Function, If, Let, Region, Stmt
from ..ir.rewrite import Rewriter, children, walk
from ..ir.types import TensorType, TileType, Type
from ..ops.registry import OpDef


class FaultClass(Enum):
    """Kinds of mistakes.  Values are the names in reports."""

    DROP_REGION = "drop a region or a store"
    DROP_ITERATION = "drop a loop iteration"
    SKIP_BLOCK = "skip a head or a block"
    SWAP_OPERANDS = "swap operands"
    CONSTANT = "change a constant"
    OFF_BY_ONE = "off by one"
    BROADCAST = "wrong row or column broadcast"
    OMIT_ADD = "omit an atomic or an accumulation"
    WRONG_SLOT = "write the wrong slot"
    STALE = "read a stale buffer"
    ROUNDING = "wrong rounding"
    ROUNDING_MODE = "other rounding mode"


SCORED = tuple(c for c in FaultClass if c is not FaultClass.ROUNDING_MODE)
"""The classes that a comparison is judged by: a nearest mode differs in ties only, so modes stand apart."""


@dataclass(frozen=True)
class Fault:
    """One wrong change.  ``site`` numbers the changed statement in walking order; ``what`` says the mistake.

    ``note`` is what a reader must know to judge the fault where no run can tell it from the original.
    """

    kind: FaultClass
    span: Span
    site: int
    what: str
    edit: Callable[[], Function] = field(repr=False, compare=False)
    note: str = field(default="", compare=False)

    @property
    def key(self) -> tuple[str, int, str]:
        """The same for the same fault in another lowering of the kernel, as at another element type."""
        return self.kind.name, self.site, self.what

    def apply(self) -> Function:
        """The function with this one fault."""
        return self.edit()

    def __str__(self) -> str:
        return f"{self.span.file}:{self.span.line}: {self.kind.value}: {self.what}"


class Outline:
    """A function with its statements numbered, and where each of them stands."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.stmts: list[Stmt] = list(walk(function.body))
        self.number = {id(s): i for i, s in enumerate(self.stmts)}
        self.region: dict[int, Region] = {}
        for s in self.stmts:
            if isinstance(s, Region):
                self.region.update({id(inner): s for inner in walk(s.body)})

    def lets(self) -> Iterator[tuple[Let, OpDef]]:
        for s in self.stmts:
            if isinstance(s, Let) and isinstance(s.op, OpDef):
                yield s, s.op

    def within(self, s: Stmt) -> Region | None:
        """The region around a statement."""
        return self.region.get(id(s))

    def replaced(self, site: Stmt, new: Block) -> Function:
        """The function with ``new`` in the place of one statement."""
        body = _Replace(site, new).block(self.function.body)
        return replace(self.function, body=body)

    def fault(self, kind: FaultClass, site: Stmt, what: str, new: Block, note: str = "") -> Fault:
        """The fault that puts ``new`` in the place of ``site``."""
        return self.made(kind, site, what, lambda: self.replaced(site, new), note)

    def made(
        self, kind: FaultClass, site: Stmt, what: str, edit: Callable[[], Function], note: str = ""
    ) -> Fault:
        return Fault(kind, site.span, self.number[id(site)], what, edit, note)


class _Replace(Rewriter):
    def __init__(self, site: Stmt, new: Block) -> None:
        super().__init__()
        self.site, self.new = site, new

    def stmt(self, s: Stmt) -> Stmt | Block:
        if s is self.site:
            return self.new
        return self.descend(s) if children(s) else s


# ------------------------------------------------------------------------------------------------- types
def with_arg(let: Let, name: str, value: Arg) -> Let:
    """The operation with another value of one parameter."""
    i = let.op.index(name)
    return replace(let, args=(*let.args[:i], value, *let.args[i + 1 :]))


def inferred(let: Let) -> Type | None:
    """The type that the op's rule gives for the arguments; raises UserError where it refuses them."""
    if not isinstance(let.op, OpDef):
        raise InternalError(f"{let.op!r} is not an OpDef")
    with located(let.span):
        return let.op.infer(*let.args)


def accepted(let: Let) -> bool:
    """Whether the type rule takes the changed arguments and still gives the type of the result."""
    try:
        found = inferred(let)
    except (UserError, InternalError):  # the latter: an argument of another kind, as a scalar for a tile
        return False
    have = tuple(v.type for v in let.results)
    return [_data(t) for t in have] == ([] if found is None else [_data(found)])


def _data(t: Type) -> object:
    return (t.shape, t.dtype) if isinstance(t, TileType | TensorType) else t


class Maker:
    """Makes new operations at the place of an old one."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.block: list[Stmt] = []

    def let(self, op: OpDef, *args: Any, name: str = "") -> Var:
        """Append ``op(args)``, the remaining parameters at their defaults, and give its result."""
        rest = tuple(p.default for p in op.params[len(args) :])
        draft = Let((), op, (*args, *rest), self.span)
        found = inferred(draft)
        if found is None:
            raise InternalError(f"{op.name} has no result")
        var = Var(name or op.name, found, self.span)
        self.block.append(replace(draft, results=(var,)))
        return var


_MOVES = (
    "load", "extract", "insert", "reshape", "transpose", "set_validshape", "fillpad", "move", "cast",
    "row_expand", "col_expand",
)  # fmt: skip


class Mistyped(Exception):
    """A change of element type does not fit somewhere below."""


class Retype(Rewriter):
    """Replaces variables by others of another element type and infers everything below anew."""

    def __init__(self, env: Iterable[tuple[Var, Var]], dropped: Stmt) -> None:
        super().__init__(dict(env))
        self.dropped = dropped
        self.computes = False  # whether an op that computes has another type now

    def stmt(self, s: Stmt) -> Stmt | Block:
        if s is self.dropped:
            return ()
        if isinstance(s, Let):
            args = tuple(self.arg(a) for a in s.args)
            new = s if all(a is b for a, b in zip(args, s.args, strict=True)) else replace(s, args=args)
            return s if new is s else self.retyped(new)
        new_stmt = self.descend(s)
        pairs: list[tuple[Any, Any]] = []
        if isinstance(new_stmt, For):
            pairs = [(x, c.param) for c in new_stmt.carried for x in (c.init, c.next)]
        elif isinstance(new_stmt, If):
            pairs = [(x, m.result) for m in new_stmt.merged for x in (m.then, m.orelse)]
        for value, var in pairs:
            if isinstance(value, Var) and _data(value.type) != _data(var.type):
                raise Mistyped
        return new_stmt

    def retyped(self, let: Let) -> Let:
        try:
            found = inferred(let)
        except UserError as error:
            raise Mistyped from error
        if not let.results:
            return let
        old = let.result
        if found is None or _data(found) == _data(old.type):
            return let
        new = Var(old.name, found, old.span)
        self.env[old] = new
        self.computes |= let.op.name not in _MOVES
        return replace(let, results=(new,))
