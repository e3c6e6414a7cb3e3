"""Give every tile of a region a memory space, and insert the moves between the cube and the vector part.

Needs: regions whose tiles are all defined in them (after spill).
Gives: every tile type has a ``space``; every operand of an op lies where the op reads it.

* Matmul results and accumulators are in Acc, results of vector ops in Vec, an explicit ``move`` is obeyed.
* A load goes where it is read: to Mat for matmul operands, else to Vec; read by both units it is issued once
  for each.  ``create_tile`` (no value) and ``set_validshape`` (no data) follow their readers in the same way.
* A loop-carried or merged value keeps one space: Acc if it accumulates, or if only matmuls assign it; Mat if
  only matmuls read it and only loads assign it; else Vec.
* Any other value read in a second space is moved there once, just before the first statement that needs it
  in the block that defines it.
* Staging of matmul operands in Left and Right is implicit; the memory plan accounts for it.

Raises ``Diag.NO_PATH`` if the target has no data path for a move.  A region that has spaces is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..errors import Diag, InternalError, UserError, user_error
from ..ir.expr import Expr, Var
from ..ir.nodes import Arg, Block, Carried, For, Function, If, Let, Merged, Region, Stmt, Unit
from ..ir.rewrite import Rewriter, children, defs, inner_defs, rewrite_regions, walk
from ..ir.types import Mem, TileType
from ..ops import REGISTRY, OpDef
from ..target import Target

MOVE = REGISTRY["move"]
_LEFT_OF = {"lhs": Mem.Left, "rhs": Mem.Right}


def run(fn: Function, target: Target) -> Function:
    body = rewrite_regions(fn.body, lambda region: infer_region(region, target))
    return fn if body is fn.body else replace(fn, body=body)


def infer_region(region: Region, target: Target) -> Region:
    tiles = [v for s in walk(region.body) for v in (*defs(s), *inner_defs(s)) if is_tile(v)]
    if all(v.type.space is not None for v in tiles):  # type: ignore[union-attr]
        return region
    facts = _Facts.of(region)
    return replace(region, body=_Placer(facts, target).block(region.body))


def is_tile(x: object) -> bool:
    return isinstance(x, Var) and isinstance(x.type, TileType)


# ------------------------------------------------------------------------------------------------ analysis
@dataclass(frozen=True)
class _Need:
    """A read of ``var`` that has to find it in ``space``; ``reader`` names who reads, for messages."""

    var: Var
    space: Mem
    reader: str


@dataclass
class _Facts:
    """Where the tiles of one region are defined and wanted.

    ``source``: the op that defines a tile.  ``phi``: the representative of the web of loop-carried and
    merged variables.  ``space``: where each tile is; a flexible one is in each of its ``issued`` spaces.
    """

    source: dict[Var, Let] = field(default_factory=dict)
    phi: dict[Var, Var] = field(default_factory=dict)
    incoming: dict[Var, list[Var]] = field(default_factory=dict)  # by representative
    readers: dict[Var, list[tuple[Let, str]]] = field(default_factory=dict)
    flows_to: dict[Var, list[Var]] = field(default_factory=dict)  # to phi variables
    space: dict[Var, Mem] = field(default_factory=dict)
    issued: dict[Var, tuple[Mem, ...]] = field(default_factory=dict)

    @staticmethod
    def of(region: Region) -> _Facts:
        facts = _Facts()
        for s in walk(region.body):
            facts._collect(s)
        facts._webs()
        for v in [*facts.phi, *facts.source]:
            facts.home(v)
        return facts

    def _collect(self, s: Stmt) -> None:
        if isinstance(s, Let):
            for v in s.results:
                if is_tile(v):
                    self.source[v] = s
            for name, arg in zip(s.op.param_names, s.args, strict=True):
                if isinstance(arg, Var) and is_tile(arg):
                    self.readers.setdefault(arg, []).append((s, name))
        for web, values in _phis(s):
            for v in web:
                self.phi[v] = self._find(web[0])
            self.incoming.setdefault(web[0], []).extend(values)
            for v in values:
                self.flows_to.setdefault(v, []).append(web[0])

    def _find(self, v: Var) -> Var:
        while self.phi.get(v, v) is not v:
            v = self.phi[v]
        return v

    def _webs(self) -> None:
        """Join webs where the value that one hands on is a variable of another, or a view of one.

        Where that would give one space to values made in several, only webs that feed each other are joined:
        an accumulator that a later loop rebinds with vector ops moves before that loop.
        """
        feeds = {
            root: {self._find(v) for v in map(self.base, values) if v in self.phi}
            for root, values in self.incoming.items()
        }
        reached = {root: _reach(root, feeds) for root in feeds}
        joined: dict[Var, set[Var]] = {root: {root} for root in feeds}
        for root, others in feeds.items():
            for other in others:
                merged = joined[root] | joined[other]
                joined |= dict.fromkeys(merged, merged)
        for root, web in joined.items():
            if len(self._made_in(web)) > 1:
                joined[root] = {r for r in web if r is root or (root in reached[r] and r in reached[root])}
        first = {root: min(web, key=lambda v: v.uid) for root, web in joined.items()}
        self.phi = {v: first[self._find(v)] for v in self.phi}
        incoming: dict[Var, list[Var]] = {}
        for root, values in self.incoming.items():
            home = self.phi[root]
            incoming.setdefault(home, []).extend(v for v in values if self.phi.get(self.base(v)) is not home)
        self.incoming = incoming

    def _made_in(self, web: set[Var]) -> set[Mem]:
        """Where the values that a web takes in are, as far as that is fixed before any space is chosen."""
        found: set[Mem] = set()
        for v in (self.base(v) for root in web for v in self.incoming[root]):
            if v in self.source and self.origin(v) not in ("create_tile", "load"):
                found.add(self._result_space(self.source[v]))
            elif self.origin(v) == "load" and any(name == "acc" for name in self._operand_names(web)):
                found.add(Mem.Vec)
        return found | {Mem.Acc for name in self._operand_names(web) if name == "acc"}

    def _operand_names(self, web: set[Var]) -> Iterator[str]:
        """The operands as which the variables of a web are read, of its own webs only."""
        for u, root in self.phi.items():
            if self._find(root) in web:
                yield from (name for _, name in self.readers.get(u, []))

    def base(self, v: Var) -> Var:
        """The tile of which ``v`` only narrows the valid shape."""
        while v in self.source and self.source[v].op.name == "set_validshape":
            (v,) = (x for x in self.source[v].args if isinstance(x, Var) and is_tile(x))
        return v

    # ---- readers
    def reads(self, v: Var) -> Iterator[tuple[Let, str]]:
        """Who reads ``v`` (or, of a web, any of its variables), through changes of the valid shape."""
        members = [u for u, root in self.phi.items() if root is self.phi[v]] if v in self.phi else [v]
        for u in members:
            for let, name in self.readers.get(u, []):
                if let.op.name == "set_validshape":
                    yield from self.reads(let.result)
                else:
                    yield let, name

    def flexible(self, v: Var) -> bool:
        """True for a tile that can be issued in any space: a load, a placeholder, or a view of one."""
        return self.origin(v) in ("load", "create_tile")

    def origin(self, v: Var) -> str:
        """The op that makes the data of ``v``; empty for a loop-carried or merged variable."""
        let = self.source.get(self.base(v))
        return let.op.name if let is not None else ""

    # ---- spaces
    def home(self, v: Var) -> Mem:
        """The space of ``v``; for a flexible one the first of those it is issued in."""
        if v not in self.space:
            if v in self.phi:
                self.space[v] = self._web_space(self.phi[v])
            elif self.flexible(v):
                self.issued[v] = self._wanted(v)
                self.space[v] = self.issued[v][0]
            else:
                base = self.base(v)
                self.space[v] = self._result_space(self.source[v]) if base is v else self.home(base)
        return self.space[v]

    @staticmethod
    def _result_space(let: Let) -> Mem:
        if let.op.name == "move":
            to = let.arg("target_memory")
            if not isinstance(to, Mem):
                raise InternalError(f"{let.span}: a move needs a memory space, got {to!r}")
            return to
        return Mem.Acc if unit_of(let) is Unit.CUBE else Mem.Vec

    def _web_space(self, root: Var) -> Mem:
        reads = list(self.reads(root))
        if any(name == "acc" for _, name in reads):
            return Mem.Acc
        fixed = {self.home(v) for v in self.incoming[root] if not self.flexible(v)}
        loaded = any(self.origin(v) == "load" for v in self.incoming[root])
        if fixed:
            return fixed.pop() if len(fixed) == 1 and not (loaded and Mem.Acc in fixed) else Mem.Vec
        return Mem.Mat if loaded and reads and all(_reads_matrix(*r) for r in reads) else Mem.Vec

    def _wanted(self, v: Var) -> tuple[Mem, ...]:
        """Spaces in which to issue a flexible tile.  Global memory reaches Vec and Mat only."""
        loaded = self.origin(v) == "load"
        wanted = [self.need(let, name, v) for let, name in self.reads(v)]
        for u in self._views(v):
            wanted += [self.home(web) for web in self.flows_to.get(u, [])]
        found = (Mem.Vec if s is Mem.Acc and loaded else s for s in wanted if s is not None)
        spaces = list(dict.fromkeys(found))
        if loaded and None in wanted:  # a store takes it from Vec
            spaces = [Mem.Vec, *(s for s in spaces if s is not Mem.Vec)]
        base = self.base(v)
        return tuple(spaces) or (Mem.Vec if base is v else self.home(base),)

    def _views(self, v: Var) -> Iterator[Var]:
        yield v
        for let, _ in self.readers.get(v, []):
            if let.op.name == "set_validshape":
                yield from self._views(let.result)

    def need(self, let: Let, name: str, v: Var) -> Mem | None:
        """The space in which ``let`` reads its operand ``name``; None if it takes the tile where it is."""
        kind = let.op.name
        if kind in ("matmul", "matmul_acc"):
            if name == "acc":
                return Mem.Acc
            staged = not self.flexible(v) and self.home(v) is _LEFT_OF[name]
            return None if staged else Mem.Mat
        if kind == "move":
            to = let.arg("target_memory")
            if to in (Mem.Left, Mem.Right, Mem.Bias):
                return Mem.Mat
            return to if self.flexible(v) and isinstance(to, Mem) else None
        if kind == "set_validshape":
            return None
        if kind == "store":  # both units store from where they compute
            stays = not self.flexible(v) and self.home(v) in (Mem.Acc, Mem.Vec)
            return None if stays or self.flexible(v) else Mem.Vec
        return Mem.Vec


def _reach(start: Var, edges: Mapping[Var, set[Var]]) -> set[Var]:
    """Everything that can be reached from ``start`` in one step or more."""
    found: set[Var] = set()
    rest = list(edges[start])
    while rest:
        v = rest.pop()
        if v not in found:
            found.add(v)
            rest += edges[v]
    return found


def unit_of(let: Let) -> Unit:
    return let.op.unit if isinstance(let.op, OpDef) else Unit.NONE


def _reads_matrix(let: Let, name: str) -> bool:
    return name in _LEFT_OF and unit_of(let) is Unit.CUBE


def _phis(s: Stmt) -> Iterator[tuple[tuple[Var, ...], tuple[Var, ...]]]:
    """Webs of tiles that a statement joins: ``(variables, values assigned to them)``."""
    if isinstance(s, For):
        for c in s.carried:
            if is_tile(c.param):
                yield (c.param, c.result), (c.init, c.next)  # type: ignore[misc]
    elif isinstance(s, If):
        for m in s.merged:
            if is_tile(m.result):
                yield (m.result,), (m.then, m.orelse)  # type: ignore[misc]


# ----------------------------------------------------------------------------------------------- placement
class _Placer(Rewriter):
    """Rewrites a region.  ``at`` holds the variable that stands for an old one in a space."""

    def __init__(self, facts: _Facts, target: Target) -> None:
        super().__init__()
        self.facts = facts
        self.target = target
        self.at: dict[tuple[Var, Mem], Var] = {}

    # ---- definitions
    def var(self, v: Var) -> Var:
        return self._place(v, self.facts.space[v]) if is_tile(v) else v

    def _place(self, v: Var, space: Mem, name: str | None = None) -> Var:
        if not isinstance(v.type, TileType):
            raise InternalError(f"{v!r} is not a tile")
        new = Var(name or v.name, v.type.with_(space=space), v.span)
        self.at[v, space] = new
        return new

    # ---- reads
    def _in(self, v: Expr, space: Mem | None) -> Expr:
        if not isinstance(v, Var) or not is_tile(v):
            return self.expr(v)
        return self.at[v, space or self.facts.space[v]]

    def block(self, block: Block) -> Block:
        out: list[Stmt] = []
        for s in block:
            out += self._moves(self._needs(s), s)
            new = self.stmt(s)
            out.extend(new if isinstance(new, tuple) else (new,))
        return tuple(out)

    def stmt(self, s: Stmt) -> Stmt | Block:
        if isinstance(s, Let):
            if len(s.results) == 1 and s.result in self.facts.issued:
                spaces = self.facts.issued[s.result]
                return tuple(self._let(s, space) for space in spaces)
            return self._let(s, None)
        if isinstance(s, For) and any(is_tile(c.param) for c in s.carried):
            return self._for(s)
        if isinstance(s, If) and any(is_tile(m.result) for m in s.merged):
            return self._if(s)
        return self.descend(s)

    def _let(self, s: Let, space: Mem | None) -> Let:
        args: list[Arg] = []
        for name, arg in zip(s.op.param_names, s.args, strict=True):
            if isinstance(arg, Var) and is_tile(arg):
                view = s.op.name == "set_validshape"
                args.append(self._in(arg, space if view else self.facts.need(s, name, arg)))
            else:
                args.append(self.arg(arg))
        if s.op.name == "move":
            self._check_move(s)
        results = tuple(self._place(v, space) if space is not None else self.var(v) for v in s.results)
        return replace(s, args=tuple(args), results=results)

    def _for(self, s: For) -> For:
        start, stop, step = self.expr(s.start), self.expr(s.stop), self.expr(s.step)
        inits = [self._in(c.init, self._phi_space(c.param)) for c in s.carried]
        var, params = self.var(s.var), [self.var(c.param) for c in s.carried]
        body = (*self.block(s.body), *self._moves(self._handed_on(s), s))
        nexts = [self._in(c.next, self._phi_space(c.param)) for c in s.carried]
        carried = tuple(
            Carried(p, i, n, self.var(c.result))
            for p, i, n, c in zip(params, inits, nexts, s.carried, strict=True)
        )
        return replace(s, var=var, start=start, stop=stop, step=step, carried=carried, body=body)

    def _if(self, s: If) -> If:
        cond = self.expr(s.cond)
        bodies = [(*self.block(b), *self._moves(self._handed_on(s), s)) for b in (s.then, s.orelse)]
        merged = tuple(
            Merged(
                self.var(m.result),
                self._in(m.then, self._phi_space(m.result)),
                self._in(m.orelse, self._phi_space(m.result)),
            )
            for m in s.merged
        )
        return replace(s, cond=cond, then=bodies[0], orelse=bodies[1], merged=merged)

    def _phi_space(self, v: Var) -> Mem | None:
        return self.facts.space[v] if is_tile(v) else None

    # ---- moves
    def _needs(self, s: Stmt) -> Iterator[_Need]:
        """Reads of a statement, those of its blocks included."""
        if isinstance(s, Let):
            for name, arg in zip(s.op.param_names, s.args, strict=True):
                if isinstance(arg, Var) and is_tile(arg):
                    space = self.facts.need(s, name, arg)
                    if space is not None:
                        yield _Need(arg, space, f"pl.{s.op.spelling}")
            if len(s.results) == 1 and s.result in self.facts.issued and s.op.name == "set_validshape":
                for space in self.facts.issued[s.result]:
                    yield _Need(s.args[0], space, f"pl.{s.op.spelling}")  # type: ignore[arg-type]
        yield from self._handed_on(s)
        for inner in children(s):
            for t in inner:
                yield from self._needs(t)

    def _handed_on(self, s: Stmt) -> Iterator[_Need]:
        for web, values in _phis(s):
            for v in values:
                yield _Need(v, self.facts.space[web[0]], f"the variable {web[0].name!r}")

    def _moves(self, needs: Iterator[_Need], s: Stmt) -> list[Stmt]:
        """Moves of tiles that are defined by now and not yet in the space that ``s`` needs."""
        out: list[Stmt] = []
        for need in needs:
            v, home = need.var, self.facts.space[need.var]
            if (v, home) not in self.at or (v, need.space) in self.at:
                continue
            if not self.target.can_move(home, need.space):
                raise self._no_path(need, home, s)
            source = self.at[v, home]
            new = self._place(v, need.space, f"{v.name}_{need.space.name.lower()}")
            out.append(Let((new,), MOVE, (source, need.space), s.span))
        return out

    def _check_move(self, s: Let) -> None:
        """A move that the user wrote needs a path too."""
        x, dest = s.args[0], self.facts.space[s.result]
        if isinstance(x, Var):
            source = self.facts.need(s, "x", x) or self.facts.space[x]
            if source is not dest and not self.target.can_move(source, dest):
                raise self._no_path(_Need(x, dest, "pl.move"), source, s)

    def _no_path(self, need: _Need, home: Mem, s: Stmt) -> UserError:
        v, let = need.var, self.facts.source.get(need.var)
        made = f"made by pl.{let.op.spelling}" if let is not None else "assigned in several places"
        if need.space is Mem.Acc:
            fix = (
                "start the accumulation in the loop: declare it with pl.create_tensor and write "
                "`if k == 0: acc = pl.matmul(...)` before `else: acc = pl.matmul_acc(acc, ...)`, "
                "or pass init_cond=(k == 0) to pl.matmul_acc"
            )
        else:
            fix = f"use {v.name!r} before it is moved to {home.name}"
        error = user_error(
            Diag.NO_PATH, let.span if let is not None else s.span,
            what=f"{v.name!r}, {made} and used by {need.reader}", target=self.target.name,
            source=home.name, dest=need.space.name, fix=fix,
        )  # fmt: skip
        error.notes.append(f"the use is at {s.span}")
        return error
