"""The orchestration of a function: what is between its regions becomes a list of launches.

A loop whose trips the launcher can count is a loop of the list; one that only the device can count, or that
hands a tensor from trip to trip, is one kernel (serial.py).  Scalars are worked out at the start of each
kernel that needs them, from tensors too: nothing waits for the host.  Where something writes what they read
before their last use, a kernel of one block keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pypto_models.ir.expr import (
    Binary,
    Const,
    DimVar,
    Expr,
    Var,
    binary,
    convert,
    dim_expr,
    free_vars,
    index,
    substitute,
)  # fmt: skip
from pypto_models.ir.graph import expr_text
from pypto_models.ir.nodes import (
    Bind,
    Block,
    Carried,
    For,
    Function,
    If,
    Let,
    Region,
    RegionKind,
    RegionOptions,
    Return,
    Scope,
    Stmt,
)  # fmt: skip
from pypto_models.ir.rewrite import Rewriter, defs, uses, walk
from pypto_models.ir.types import BOOL, INDEX, INT32, INT64, DType, ScalarType, TensorType
from pypto_models.language.effects import roots
from pypto_models.ops import REGISTRY

from .choices import ANYWHERE, chosen_view
from .grouping import Group
from .host import Scalars, host_value, slice_of, with_places
from .manifest import Launch, Repeat, Workspace
from .module import Argument
from .names import Names
from .refusal import Refused
from .scan import VIEWS, indices
from .serial import CHUNK, FILL, KEEP, KEPT, in_turn, is_task, one_block, strided
from .tensors import View, viewed
from .text import Text
from .unroll import has_region


@dataclass
class State:
    views: dict[Var, View]
    prelude: list[Stmt]  # scalar statements so far, in order; under a condition, those under it
    env: dict[Var, Expr] = field(default_factory=dict)  # scalars known to the host
    guards: list[tuple[Expr, bool, list[Stmt]]] = field(default_factory=list)  # with the statements under it
    arrays: dict[Var, dict[int, Expr]] = field(default_factory=dict)
    alias: Mapping[Var, frozenset[Var]] = field(default_factory=dict)  # what a base tensor may be

    def __post_init__(self) -> None:
        self.outer = self.prelude  # under no condition


@dataclass(frozen=True)
class Around:
    """A region, as it stands in the ``source``, with what its kernel must work out again: ``prelude`` is that
    under no condition, ``bodies`` that under each of the conditions around it, ``again`` both; ``known`` are
    scalars that are constant, and ``needed`` all that the region and these depend on."""

    source: Region
    region: Region
    prelude: Block
    bodies: list[list[Stmt]]
    again: Block
    known: dict[Var, Expr]
    needed: set[Expr]

    def bindings(self) -> Block:
        """The constants as statements."""
        return tuple(Bind(v, e) for v, e in self.known.items())

    def statements(self, state: State) -> tuple[Block, Block]:
        """What a kernel of the region begins with, and its body under the conditions around it."""
        s = self.region
        body: Block = s.body
        for (cond, wanted, _), inside in zip(reversed(state.guards), reversed(self.bodies), strict=True):
            both = (*inside, *body)
            body = (If(cond, both if wanted else (), () if wanted else both, (), s.span),)
        needed = with_places(uses((*self.prelude, *body)), state.views)
        bound = tuple(Bind(v, e) for v, e in self.known.items() if v in needed)
        return bound + self.prelude, body


class Elements(Rewriter):
    """``at[i]`` in a region, of an array whose elements the host keeps apart."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state

    def stmt(self, s: Stmt) -> Stmt | Block:
        if isinstance(s, Let) and s.op.name == "array_get" and s.arg("array") in self.state.arrays:
            return Bind(s.result, element(s, self.state), s.span)
        return self.descend(s)


def element(s: Let, state: State) -> Expr:
    """What ``at[i]`` is."""
    return state.arrays[s.arg("array")][place_in(s, state)]  # type: ignore[index]


def place_in(s: Let, state: State) -> int:
    (at,) = indices(s, "index")
    place = substitute(at, state.env)
    if s.arg("array") not in state.arrays or not isinstance(place, Const):
        fix = "keep the array's values in a tensor"
        raise Refused(s.span, s.op.name, "its place is not constant", fix)
    return int(place.value)


class Orchestration:
    """Walks a function; :meth:`region` makes a kernel of a region and a launch of it."""

    def __init__(self, function: Function, kept: frozenset[int], text: Text) -> None:
        self.function = function
        self.roots = dict(roots(function))  # what a tensor variable may name
        self.host_vars = {p.var for p in function.params if isinstance(p.var.type, ScalarType)}
        self.launches: list[Launch] = []
        self.repeats: list[tuple[int, int, Repeat]] = []  # from launch to launch, inner ones first
        self.workspaces: list[Workspace] = []
        self.names: dict[Var, str] = {}
        self.text = text  # for the names of the emitted source and of the manifest
        self.unsure: set[str] = set()  # kernels that may not run
        self.last: frozenset[Var] | None = None  # what the last launch writes; None if it may not have run
        self.repeating = 0  # loops around, whose trips the launcher counts
        self.scalars = Scalars(self.roots, kept)

    def region(self, s: Region, state: State) -> None:
        raise NotImplementedError

    def group(self, s: Group, state: State) -> None:
        """Regions that may share a launch."""
        raise NotImplementedError

    def around(self, s: Region, state: State, cores: int) -> Around:
        """What surrounds a region; a grid whose extent the host does not know becomes one of ``cores``."""
        source, known = s, {v: e for v, e in state.env.items() if not any(True for _ in free_vars(e))}
        if state.arrays:
            s = replace(s, body=Elements(state).block(s.body))
        if s.count is not None and host_value(substitute(s.count, state.env), self.host_vars) is None:
            s = strided(s, cores)
        needed = with_places(uses(s.body), state.views)
        bodies = [list(inside) for _, _, inside in state.guards]
        for (cond, _, _), inside in zip(reversed(state.guards), reversed(bodies), strict=True):
            inside[:] = slice_of(inside, needed, state.views)
            needed |= with_places({*uses(tuple(inside)), *free_vars(cond)}, state.views)
        prelude = slice_of(state.outer, needed, state.views)
        needed |= with_places(uses(prelude), state.views)
        again = (*prelude, *(x for inside in bodies for x in inside))
        return Around(source, s, prelude, bodies, again, known, needed)

    def arguments(self, kernel: Names, s: Region, state: State) -> tuple[Argument, ...]:
        """What a kernel takes."""
        out = []
        for base, text in kernel.pointers.items():
            assert isinstance(base.type, TensorType)
            out.append(Argument(text, f"pointer:{base.type.dtype.name}", ("pointer", self.names[base])))
        for extent, text in kernel.extents.items():
            out.append(Argument(text, "Int32", ("extent", extent)))
        for var, text in kernel.captured.items():
            value = expr_text(self.host(var, state, s)) if var not in self.names else self.names[var]
            out.append(Argument(text, "Float32" if var.dtype.is_float else "Int32", ("scalar", value)))
        return tuple(out)

    def unique(self, wanted: str) -> str:
        return self.text.unique(wanted)

    # ------------------------------------------------------------------------------------------ walk
    def block(self, body: Block, state: State) -> None:
        for s in body:
            self.stmt(s, state)

    def stmt(self, s: Stmt, state: State) -> None:
        if isinstance(s, Region):
            self.region(s, state)
        elif isinstance(s, Group):
            self.group(s, state)
        elif isinstance(s, Scope):
            self.block(s.body, state)
        elif isinstance(s, Let):
            self.let(s, state)
        elif isinstance(s, Bind):
            state.env[s.var] = substitute(s.value, state.env)
            self.scalar(s, state)
        elif isinstance(s, For):
            self.loop(s, state)
        elif isinstance(s, If):
            self.branch(s, state)
        elif isinstance(s, Return) and s.values:
            why, fix = "a program of kernels returns nothing", "write the result into an Out tensor"
            raise Refused(s.span, "return", why, fix)

    def let(self, s: Let, state: State) -> None:
        if s.op.name == "create":
            self.create(s, state)
            if s.arg("init_value") is not None:
                self.fill(s, state)
        elif s.op.name in VIEWS:
            state.views[s.result] = viewed(s, state.views)
        elif s.op.name == "read_tensor":
            self.scalar(s, state)
        elif s.op.name == "task_dummy" or any(map(is_task, s.results)):
            return  # kernels run in program order
        elif s.op.name.startswith("array_"):
            self.array(s, state)
        else:
            raise Refused(s.span, s.op.name, "it is outside of a region", "move it into a region")

    def create(self, s: Let, state: State, places: int = 1) -> None:
        """Workspace for a tensor, or for as many as loops may hold at one time."""
        kind = s.result.type
        assert isinstance(kind, TensorType)
        name = self.unique(s.result.name)
        base = Var(s.result.name, kind)  # of its own for every trip of an unrolled loop
        self.names[base] = name
        self.roots[base] = frozenset((s.result,))
        shape = tuple(str(d) if isinstance(d, int) else expr_text(self.host(d, state, s)) for d in kind.shape)
        if places > 1:
            count = " * ".join(f"({x})" for x in shape) or "1"
            shape = (f"{places} * (({count} + 127) // 128 * 128)",)
        self.workspaces.append(Workspace(name, kind.dtype.torch_name or "", shape))
        state.views[s.result] = View.whole(base)

    def cell(self, name: str, dtype: DType, state: State) -> Var:
        """Workspace for one element."""
        dtype = {INDEX: INT64, BOOL: INT32}.get(dtype, dtype)
        cell = Var(f"{name}_cell", TensorType((1,), dtype))
        self.names[cell] = self.unique(cell.name)
        self.workspaces.append(Workspace(self.names[cell], dtype.torch_name or "", ("1",)))
        state.views[cell] = View.whole(cell)
        return cell

    def fill(self, s: Let, state: State) -> None:
        """A kernel that sets a tensor to its first value."""
        count: Expr = index(1)
        for d in state.views[s.result].shape:
            count = binary("*", count, dim_expr(d))
        grid = binary("//", binary("+", count, index(CHUNK - 1)), index(CHUNK))
        block = Var("block", ScalarType(INDEX))
        body = (Let((), FILL, (s.result, s.arg("init_value"), block), s.span),)
        options = RegionOptions(f"fill_{s.result.name}")
        self.region(Region(RegionKind.SPMD, block, grid, body, options, span=s.span), state)

    def array(self, s: Let, state: State) -> None:
        """Arrays of scalars, of which the host knows every place."""
        if s.op.name == "array_create":
            state.arrays[s.result] = {}
            return
        if s.op.name == "array_set":
            value = Var(s.result.name, ScalarType(s.arg("value").dtype))  # type: ignore[union-attr]
            place = place_in(s, state)
            self.stmt(Bind(value, s.arg("value"), s.span), state)  # type: ignore[arg-type]
            state.arrays[s.result] = state.arrays[s.arg("array")] | {place: value}  # type: ignore[index]
        else:
            self.stmt(Bind(s.result, element(s, state), s.span), state)

    def scalar(self, s: Stmt, state: State) -> None:
        """A statement that kernels repeat, or one whose results are kept, since what it reads is written."""
        if not self.scalars.keeps(s):
            self.scalars.note(s)
            state.prelude.append(s)
            return
        cells = {v: self.cell(v.name, v.dtype, state) for v in defs(s)}
        self.region(one_block(s, (s, *(kept(v, cell) for v, cell in cells.items()))), state)
        self.recall(cells, state)

    def recall(self, cells: dict[Var, Var], state: State) -> None:
        """Scalars from where a kernel kept them."""
        for v, cell in cells.items():
            read = Var(v.name, ScalarType(cell.type.dtype))  # type: ignore[union-attr]
            value = Binary("!=", read, Const(0, INT32)) if v.dtype == BOOL else convert(read, v.dtype)
            state.prelude.append(Let((read,), REGISTRY["read_tensor"], (cell, (index(0),))))
            state.prelude.append(Bind(v, value))

    def host(self, x: Expr, state: State, s: Stmt) -> Expr:
        """An expression of run-time extents and scalar arguments only."""
        out = host_value(substitute(x, state.env), self.host_vars)
        if out is None:
            why = f"it depends on {next(free_vars(substitute(x, state.env))).name}, which is device data"
            fix = "launch for the largest extent and test inside of the region"
            raise Refused(s.span, "the launch", why, fix)
        return out

    def loop(self, s: For, state: State) -> None:
        if not has_region(s.body):
            self.scalar(s, state)
            for c in s.carried:
                if isinstance(c.result.type, TensorType):
                    state.views[c.result] = carried_view(c, state.views)
            return
        bounds = [host_value(substitute(x, state.env), self.host_vars) for x in (s.start, s.stop, s.step)]
        if None in bounds or any(not is_task(c.param) for c in s.carried):
            self.serial(s, state)
        else:
            self.repeat(s, [b for b in bounds if b is not None], state)

    def repeat(self, s: For, bounds: list[Expr], state: State) -> None:
        """A loop whose trips the launcher counts.  All use one workspace: kernels run in order."""
        var = Var(self.unique(s.var.name), s.var.type)
        self.host_vars.add(var)
        state.env[s.var] = var
        self.last = None  # what runs before the first kernel of a trip is not known
        self.repeating += 1
        first, since = len(self.launches), self.scalars.enter()
        self.block(s.body, state)
        self.scalars.leave(since)
        self.repeating -= 1
        self.last = None
        self.unsure |= {x.kernel for x in self.launches[first:]}
        if len(self.launches) > first:
            start, stop, step = map(expr_text, bounds)
            self.repeats.append((first, len(self.launches), Repeat(var.name, start, stop, step, ())))

    def serial(self, s: For, state: State) -> None:
        """A loop that only the device can count, or that hands on tensors: one block runs all of it."""
        (loop,) = in_turn((s,))
        assert isinstance(loop, For)
        self.places(loop, 1, state)
        cells: dict[Var, Var] = {}
        tensors: dict[Var, Var] = {}
        for c in loop.carried:
            v = c.result
            if isinstance(v.type, TensorType):
                tensors[v] = self.cell(v.name, INT64, state)
                state.views[v] = carried_view(c, state.views)
            else:
                cells[v] = self.cell(v.name, v.dtype, state)
        ends = (
            *(kept(v, cell) for v, cell in cells.items()),
            *(Let((), KEEP, (cell, v), s.span) for v, cell in tensors.items()),
        )
        self.region(one_block(s, (loop, *ends)), state)
        self.recall(cells, state)
        state.prelude.extend(Let((v,), KEPT, (cell, v), s.span) for v, cell in tensors.items())

    def places(self, s: For, copies: int, state: State) -> None:
        """Workspace for what is created inside of a loop that one block runs."""
        copies += sum(isinstance(c.param.type, TensorType) for c in s.carried)
        for x in s.body:
            self.places_in(x, copies, state)

    def places_in(self, x: Stmt, copies: int, state: State) -> None:
        if isinstance(x, For):
            self.places(x, copies, state)
        elif isinstance(x, If):
            for y in (*x.then, *x.orelse):
                self.places_in(y, copies, state)
        elif isinstance(x, Let) and x.op.name == "create":
            self.create(x, state, copies)

    def branch(self, s: If, state: State) -> None:
        if not has_region((s,)):
            self.scalar(s, state)
            for x in walk((s,)):
                if isinstance(x, Let) and isinstance(x.results[0].type if x.results else None, TensorType):
                    self.let(x, state)
        else:
            sides: list[Block] = []
            for body, wanted in ((s.then, True), (s.orelse, False)):
                inside: list[Stmt] = []
                around, state.prelude = state.prelude, inside
                state.guards.append((s.cond, wanted, inside))
                self.block(body, state)
                state.guards.pop()
                state.prelude = around
                sides.append(tuple(inside))
            merged = tuple(m for m in s.merged if isinstance(m.result.type, ScalarType | TensorType))
            state.prelude.append(replace(s, then=sides[0], orelse=sides[1], merged=merged))
        for m in s.merged:
            if isinstance(m.result.type, TensorType):
                a, b = state.views[m.then], state.views[m.orelse]  # type: ignore[index]
                state.views[m.result] = a if a == b else chosen_view(m.result, (a, b), s)


def kept(v: Var, cell: Var) -> Let:
    """A scalar into its cell."""
    assert isinstance(cell.type, TensorType)
    return Let((), REGISTRY["write_tensor"], (cell, (index(0),), convert(v, cell.type.dtype)))


def carried_view(c: Carried, views: Mapping[Var, View]) -> View:
    """What a loop leaves of a tensor that it carries: its address is known to kernels only."""
    init = views[c.init]  # type: ignore[index]
    return View(c.result, init.shape, init.strides, ((ANYWHERE, Const(1)),))


def extents_in(x: object) -> list[DimVar]:
    """The run-time extents in a dimension."""
    if isinstance(x, DimVar):
        return [x]
    return extents_in(x.lhs) + extents_in(x.rhs) if isinstance(x, Binary) else []
