"""The work of a program: tasks with their blocks, blocks with their operations, for given inputs.

The walk interprets the scalars of a function and records what its tile operations cost.  A block is a list of
operations in program order; ``after`` are positions of earlier ones that must be complete.  The rules:

* an operation waits for the operations that make its operands, a load for the block's last store to its tensor;
* a pipelined loop has ``stage`` trips in flight: trip i starts when trip i - stage is complete.  Any other
  loop is one with stage 1, so that its trips do not overlap;
* vector operations take OpDef.cost elements (of one lane if the tile is split), matrix products OpDef.cost
  flops, loads and stores the bytes of their valid rectangle.  Views and moves within a core are free, and
  so are scalars: elements that are read or written one by one count as bytes and take no time;
* a tile that crosses between cube and vector unit through global memory is written and read there once each;
* of the loads of one task, a box that is loaded again comes from L2, if the task's distinct boxes of the
  tensor fit there.  Loads share that evenly, whichever is first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import PurePath
from typing import Any

from ..errors import InternalError
from ..ir.expr import Expr, Var
from ..ir.graph import Task, TaskGraph
from ..ir.nodes import Bind, Block, For, If, Let, LoopKind, Region, Scope, Stmt, Unit
from ..ir.rewrite import arg_exprs, walk
from ..ir.types import Mem, ScalarType, SplitMode, TensorType, TileType
from ..ops import OpDef
from ..ops.registry import Access
from ..target import CROSSINGS
from .inputs import Inputs, Value, value_of
from .rates import Rates


class Pipe(IntEnum):
    """What runs at the same time in one core."""

    LOAD = 0
    STORE = 1
    CUBE = 2
    VECTOR = 3
    CROSS = 4  # between cube and vector unit, through global memory


TRANSFERS = (Pipe.LOAD, Pipe.STORE, Pipe.CROSS)


@dataclass(slots=True)
class Operation:
    """``amount`` is in seconds on CUBE and VECTOR, else in bytes as if all came from memory (see Rates).

    ``pipe`` is None for a point that only waits for ``after``.  ``bytes`` and ``flops`` are as counted.
    """

    pipe: Pipe | None
    after: tuple[int, ...]
    amount: float = 0.0
    bytes: int = 0
    flops: int = 0
    label: str = ""
    place: str = ""
    tensor: Var | None = None


Operations = list[Operation]


@dataclass
class TaskRun:
    """One launch of a task: its blocks, and the runs (by position) that must be complete before.

    ``memory_bytes`` is what must come from or go to memory, ``read_bytes`` what the loads ask for.
    """

    task: Task
    trip: tuple[int, ...]
    blocks: list[Operations] = field(default_factory=list)
    after: tuple[int, ...] = ()
    memory_bytes: int = 0
    read_bytes: int = 0
    flops: int = 0

    @property
    def name(self) -> str:
        return self.task.name + "".join(f"[{i}]" for i in self.trip)


def work_of(graph: TaskGraph, inputs: Inputs, rates: Rates) -> list[TaskRun]:
    """The launches of a program in program order."""
    walker = _Walker(graph, inputs, rates)
    walker.run()
    return walker.runs


@dataclass(frozen=True)
class _Buffer:
    """A tensor in global memory: the buffer it is a view of, and what tells this view from others."""

    root: Var
    view: tuple[Any, ...] = ()


@dataclass
class _Footprint:
    """Boxes that one task loads of one tensor: the distinct ones, and the bytes of all."""

    boxes: dict[tuple[Any, ...], int] = field(default_factory=dict)
    unknown: int = 0
    asked: int = 0

    @property
    def distinct(self) -> int:
        return sum(self.boxes.values()) + self.unknown


class _Walker:
    def __init__(self, graph: TaskGraph, inputs: Inputs, rates: Rates) -> None:
        self.graph, self.inputs, self.rates = graph, inputs, rates
        self.tasks = {id(t.region): t for t in graph.tasks}
        self.env: dict[Var, Any] = {}
        self.runs: list[TaskRun] = []
        self.by_key: dict[tuple[int, tuple[int, ...]], int] = {}
        self.footprints: list[dict[Var, _Footprint]] = []
        self.facts: dict[int, _Facts] = {}
        self.timed: dict[int, bool] = {}
        for p in graph.function.params:
            t = p.var.type
            self.env[p.var] = _Buffer(p.var) if isinstance(t, TensorType) else inputs.argument(p.var)

    def run(self) -> None:
        self.orchestration(self.graph.function.body, ())
        for run, footprint in zip(self.runs, self.footprints, strict=True):
            self.settle(run, footprint)
        for i, run in enumerate(self.runs):
            run.after = tuple(sorted(self.waits(i, run)))

    # ---- orchestration
    def orchestration(self, block: Block, trip: tuple[tuple[Var, int], ...]) -> None:
        for s in block:
            if isinstance(s, Region):
                self.region(s, trip)
            elif isinstance(s, For):
                for i in self.trips(s):
                    sequential = s.kind is not LoopKind.PARALLEL
                    self.orchestration(s.body, (*trip, (s.var, i)) if sequential else trip)
            elif isinstance(s, If):
                cond = self.condition(s)
                taken = True if cond is None else bool(cond)
                self.orchestration(s.then if taken else s.orelse, trip)
                self.merge(s, taken)
            elif isinstance(s, Scope):
                self.orchestration(s.body, trip)
            elif isinstance(s, Bind):
                self.env[s.var] = self.value(s.value)
            elif isinstance(s, Let):
                self.scalar_let(s)

    def region(self, s: Region, trip: tuple[tuple[Var, int], ...]) -> None:
        task = self.tasks[id(s)]
        key = (task.index, tuple(i for _, i in trip))
        if key not in self.by_key:
            self.by_key[key] = len(self.runs)
            self.runs.append(TaskRun(task, key[1]))
            self.footprints.append({})
        at = self.by_key[key]
        count = 1 if s.count is None else self.value(s.count)
        if count is None:
            self.note(f"blocks of {task.name} (unknown count): 1")
            count = 1
        for i in range(int(count)):
            if s.block is not None:
                self.env[s.block] = i
            block = _BlockWalker(self, self.footprints[at])
            block.block(s.body)
            self.runs[at].blocks.append(block.out)

    def waits(self, position: int, run: TaskRun) -> Iterator[int]:
        """Runs before this one that the task graph makes it wait for."""
        mine = dict(zip((x.var for x in run.task.loops), run.trip, strict=True))
        for d in self.graph.dependencies:
            if d.after != run.task.index:
                continue
            for i, other in enumerate(self.runs[:position]):
                if other.task.index != d.before:
                    continue
                theirs = dict(zip((x.var for x in other.task.loops), other.trip, strict=True))
                shared = [v for v in mine if v in theirs]
                if d.carried_by is None:
                    agrees = all(mine[v] == theirs[v] for v in shared)
                else:
                    outer = shared[: shared.index(d.carried_by)]
                    agrees = all(mine[v] == theirs[v] for v in outer) and theirs[d.carried_by] != mine[d.carried_by]
                if agrees:
                    yield i

    # ---- scalars
    def note(self, text: str) -> None:
        self.inputs.notes[text] = None

    def value(self, x: Expr) -> Value:
        return value_of(x, self.env, self.inputs)

    def trips(self, s: For) -> Iterator[int]:
        """The values of the loop variable, with the carried values bound for every trip."""
        bounds = [self.value(x) for x in (s.start, s.stop, s.step)]
        if any(b is None for b in bounds) or bounds[2] == 0:
            self.note(f"trips of {s.var.name} at {_place(s)} (unknown bounds): 1")
            trips: range | list[int] = [int(bounds[0] or 0)]
        else:
            start, stop, step = (int(b) for b in bounds if b is not None)
            trips = range(start, stop, step)
        for c in s.carried:
            self.env[c.param] = self.operand(c.init)
        for i in trips:
            self.env[s.var] = i
            yield i
            after = [self.operand(c.next) for c in s.carried]
            for c, v in zip(s.carried, after, strict=True):
                self.env[c.param] = v
        for c in s.carried:
            self.env[c.result] = self.env[c.param]

    def operand(self, x: Expr) -> Any:
        """A value of any type: tiles and tensors are variables."""
        return self.env.get(x) if isinstance(x, Var) else self.value(x)

    def condition(self, s: If) -> Value:
        cond = self.value(s.cond)
        if cond is None:
            self.note(f"unknown condition at {_place(s)}")
        return cond

    def merge(self, s: If, taken: bool) -> None:
        for m in s.merged:
            self.env[m.result] = self.operand(m.then if taken else m.orelse)

    def scalar_let(self, s: Let) -> None:
        """An op without time: views, scalars, arrays."""
        if s.op.name in ("view", "view_reshape"):
            base = self.env[s.args[0]]  # type: ignore[index]
            key = tuple(self.value(x) for a in s.args[1:] for x in arg_exprs(a))
            self.env[s.result] = _Buffer(base.root, (*base.view, s.op.name, key))
        elif s.op.name == "create":
            self.env[s.result] = _Buffer(s.result)
        elif s.op.name == "read_tensor":
            base = self.env[s.args[0]]  # type: ignore[index]
            at = [self.value(x) for x in arg_exprs(s.args[1])]
            known = not base.view and isinstance(s.result.type, ScalarType)
            self.env[s.result] = self.inputs.element(base.root.name, at) if known else None
        else:
            for v in s.results:
                self.env[v] = None

    # ---- what is static about an op
    def fact(self, s: Let) -> _Facts:
        found = self.facts.get(id(s))
        if found is None:
            found = self.facts[id(s)] = _facts(s, self.rates)
        return found

    def is_timed(self, block: Block) -> bool:
        """True if a block holds an op that takes time."""
        key = id(block)
        if key not in self.timed:
            lets = (s for s in walk(block) if isinstance(s, Let))
            self.timed[key] = any(self.fact(s).pipe is not None for s in lets)
        return self.timed[key]

    def settle(self, run: TaskRun, footprint: dict[Var, _Footprint]) -> None:
        """Now that all boxes are known: what of each load comes from memory, and what again from L2."""
        share = {}
        for tensor, f in footprint.items():
            fits = f.distinct <= self.rates.l2_bytes
            share[tensor] = f.distinct / f.asked if fits and f.asked else 1.0
            run.memory_bytes += f.distinct if fits else f.asked
            run.read_bytes += f.asked
        again = self.rates.memory / self.rates.l2
        for block in run.blocks:
            for o in block:
                run.flops += o.flops
                if o.pipe is Pipe.LOAD and o.tensor is not None:
                    first = share[o.tensor]
                    o.amount *= first + (1 - first) * again
                elif o.pipe is Pipe.STORE:
                    run.memory_bytes += o.bytes
                elif o.pipe is Pipe.CROSS:
                    o.amount *= again


@dataclass(frozen=True)
class _Facts:
    """``pipe`` is None for an op without time; then its result is as ready as its operands."""

    pipe: Pipe | None
    seconds: float
    flops: int
    access: Access | None
    element_bytes: int
    crossing_bytes: int
    place: str
    operands: tuple[Var, ...]


def _facts(s: Let, rates: Rates) -> _Facts:
    op = s.op
    if not isinstance(op, OpDef):
        raise InternalError(f"{op.name} at {s.span} is not in the registry")
    tiles = tuple(x for a in s.args for x in arg_exprs(a) if isinstance(x, Var) and isinstance(x.type, TileType))
    pipe, seconds, flops, access, size, crossing = None, 0.0, 0, None, 1, 0
    timed = [t for v in (*tiles, *s.results) if isinstance(t := v.type, TileType)]
    if op.name in ("load", "store"):
        pipe = Pipe.LOAD if op.name == "load" else Pipe.STORE
        (access,) = op.access(s)
        tensor = access.tensor.type
        size = tensor.dtype.bytes if isinstance(tensor, TensorType) else 1
    elif op.unit is Unit.CUBE:
        pipe, flops = Pipe.CUBE, op.cost(s).flops
        wide = any(t.dtype.is_float and t.dtype.bytes > 2 for v in tiles if isinstance(t := v.type, TileType)
                   and v is not s.args[0] or op.name == "matmul")  # fmt: skip
        seconds = flops * (rates.fp32_passes if wide else 1) / rates.cube
    elif op.unit is Unit.VEC and op.alias is None and timed:
        pipe = Pipe.VECTOR
        made = [t.elements for v in s.results if isinstance(t := v.type, TileType)]
        flops = op.cost(s).flops or max(made, default=1)
        lanes = 2 if any(t.split is not SplitMode.NONE for t in timed) else 1
        seconds = flops / lanes / rates.vector
    elif op.name == "move" and rates.ring_in_memory and _ends(s) in CROSSINGS:
        pipe = Pipe.CROSS
        crossing = 2 * timed[0].bytes
    return _Facts(pipe, seconds, flops, access, size, crossing, _place(s), tiles)


def _ends(s: Let) -> tuple[Mem | None, Mem | None]:
    source, dest = (v.type for v in (s.args[0], s.result))  # type: ignore[union-attr]
    if not isinstance(source, TileType) or not isinstance(dest, TileType):
        raise InternalError(f"the move at {s.span} is not of a tile")
    return source.space, dest.space


def _place(s: Stmt) -> str:
    return f"{PurePath(s.span.file).name}:{s.span.line}"


class _BlockWalker:
    """One block of a region.  The value of a tile is the position of the operation that makes it, or -1."""

    def __init__(self, walker: _Walker, footprint: dict[Var, _Footprint]) -> None:
        self.w = walker
        self.env = walker.env
        self.footprint = footprint
        self.out: Operations = []
        self.gate = -1  # what the current trip waits for
        self.stored: dict[Var, int] = {}

    def block(self, block: Block) -> None:
        for s in block:
            if isinstance(s, Let):
                self.let(s)
            elif isinstance(s, Bind):
                self.env[s.var] = self.w.value(s.value)
            elif isinstance(s, For):
                self.loop(s)
            elif isinstance(s, If):
                self.branch(s)
            elif isinstance(s, Scope):
                self.block(s.body)

    def emit(self, op: Operation) -> int:
        self.out.append(op)
        return len(self.out) - 1

    def join(self, tokens: tuple[int, ...]) -> int:
        """A position that is complete when all of ``tokens`` are."""
        distinct = tuple(dict.fromkeys(t for t in tokens if t >= 0))
        if len(distinct) > 1:
            return self.emit(Operation(None, distinct))
        return distinct[0] if distinct else -1

    def let(self, s: Let) -> None:
        fact = self.w.fact(s)
        after = tuple(self.env.get(v, -1) for v in fact.operands)
        if fact.pipe is None:
            if not any(isinstance(v.type, TileType) for v in s.results):
                self.w.scalar_let(s)
            else:
                token = self.join(after)
                for v in s.results:
                    self.env[v] = token
            return
        op = Operation(fact.pipe, (), fact.seconds, 0, fact.flops, s.op.spelling, fact.place)
        if fact.access is not None:
            after = self.transfer(op, fact, after)
        elif fact.crossing_bytes:
            op.bytes = fact.crossing_bytes
            op.amount = float(op.bytes)
        op.after = tuple(dict.fromkeys(t for t in (self.gate, *after) if t >= 0))
        token = self.emit(op)
        if fact.pipe is Pipe.STORE and op.tensor is not None:
            self.stored[op.tensor] = token
        for v in s.results:
            self.env[v] = token if isinstance(v.type, TileType) else None

    def transfer(self, op: Operation, fact: _Facts, after: tuple[int, ...]) -> tuple[int, ...]:
        access = fact.access
        if access is None:
            raise InternalError("a transfer without an access")
        buffer: _Buffer = self.env[access.tensor]
        box = [self.extent(v, d) for v, d in zip(access.valid, access.shape, strict=True)]
        op.bytes = fact.element_bytes
        for n in box:
            op.bytes *= n
        op.amount, op.tensor, op.label = float(op.bytes), buffer.root, f"{op.label} {buffer.root.name}"
        if self.run_bytes(access, box, fact.element_bytes) < self.w.rates.transfer_bytes:
            op.amount /= self.w.rates.short_share
        if op.pipe is Pipe.LOAD:
            f = self.footprint.setdefault(buffer.root, _Footprint())
            f.asked += op.bytes
            offset = tuple(self.w.value(x) for x in access.offset)
            if None in offset:
                f.unknown += op.bytes
            else:
                f.boxes[(buffer.view, offset, tuple(box))] = op.bytes
            return (*after, self.stored.get(buffer.root, -1))
        return after

    def extent(self, valid: Any, shape: Any) -> int:
        for d in (valid, shape):
            n = d if isinstance(d, int) else None if d is None else self.w.value(d)
            if n is not None:
                return max(int(n), 0)
        return 1

    def run_bytes(self, access: Access, box: list[int], size: int) -> int:
        """Contiguous bytes: the last axis, and further ones while the box spans the tensor."""
        t = access.tensor.type
        shape = t.shape if isinstance(t, TensorType) else ()
        run = size
        for n, d in zip(reversed(box), reversed(shape), strict=True):
            run *= n
            if self.extent(None, d) != n:
                break
        return run

    def loop(self, s: For) -> None:
        if not self.w.is_timed(s.body):
            for _ in self.w.trips(s):
                self.block(s.body)
            return
        stage = s.stage if s.kind is LoopKind.PIPELINE else 1
        outer, ends = self.gate, []
        for _ in self.w.trips(s):
            self.gate = self.join((outer, ends[-stage])) if len(ends) >= stage else outer
            first = len(self.out)
            self.block(s.body)
            inside = tuple(range(first, len(self.out)))
            ends.append(self.emit(Operation(None, inside)) if inside else self.gate)
        self.gate = outer

    def branch(self, s: If) -> None:
        cond = self.w.condition(s)
        if cond is None:
            taken = self.dearer(s)
        else:
            taken = bool(cond)
            self.block(s.then if taken else s.orelse)
        self.w.merge(s, taken)

    def dearer(self, s: If) -> bool:
        """Walk both branches of an unknown condition and keep the one with more work."""
        before, first = dict(self.env), len(self.out)
        stored = dict(self.stored)
        cost = []
        for body in (s.then, s.orelse):
            self.env.clear()
            self.env.update(before)
            self.stored = dict(stored)
            del self.out[first:]
            self.block(body)
            cost.append(sum(self.seconds(o) for o in self.out[first:]))
        if cost[0] <= cost[1]:
            return False
        self.env.clear()
        self.env.update(before)
        self.stored = dict(stored)
        del self.out[first:]
        self.block(s.then)
        return True

    def seconds(self, o: Operation) -> float:
        return o.amount / self.w.rates.core if o.pipe in TRANSFERS else o.amount


__all__ = ["Operation", "Operations", "Pipe", "TRANSFERS", "TaskRun", "work_of"]


def total(runs: list[TaskRun], name: str) -> int:
    """The sum of one of the counts of all runs."""
    return sum(int(getattr(r, name)) for r in runs)


Given = Mapping[str, Any]
