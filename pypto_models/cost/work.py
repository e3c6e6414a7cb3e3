"""The work of a program: tasks with their blocks, blocks with their operations, for given inputs.

The walk interprets the scalars of a function and records what its tile operations cost.  A block is a list of
operations in program order; ``after`` are positions of earlier ones that must be complete.  The rules:

* an operation waits for those that make its operands, a load for the block's last store to its tensor;
* a pipelined loop has ``stage`` trips in flight: trip i starts when trip i - stage is complete.  Any other
  loop is one with stage 1, so that its trips do not overlap;
* vector operations take OpDef.cost elements (of one lane if the tile is split), matrix products OpDef.cost
  flops, loads and stores the bytes of their valid rectangle.  Views and moves within a core are free, and
  so are scalars: elements that are read or written one by one count as bytes and take no time, and what a
  region writes so is known to those behind it;
* a tile that crosses between cube and vector unit through global memory is written and read there once each;
* of the loads of one task, a box that is loaded again comes from L2, if the task's distinct boxes of the
  tensor fit there.  Loads share that evenly, whichever is first.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from ..ir.expr import Expr, Var
from ..ir.graph import TaskGraph
from ..ir.nodes import Bind, Block, For, If, Let, LoopKind, Region, Scope
from ..ir.rewrite import arg_exprs, walk
from ..ir.types import ScalarType, TensorType, TileType
from ..ops.registry import Access
from .facts import Facts, facts, place
from .inputs import Inputs, Value, value_of
from .operations import Operation, Operations, Pipe, TaskRun
from .rates import Rates


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


class _Walker:
    def __init__(self, graph: TaskGraph, inputs: Inputs, rates: Rates) -> None:
        self.graph, self.inputs, self.rates = graph, inputs, rates
        self.tasks = {id(t.region): t for t in graph.tasks}
        self.env: dict[Var, Any] = {}
        self.runs: list[TaskRun] = []
        self.by_key: dict[tuple[int, tuple[int, ...]], int] = {}
        self.of_task: dict[int, list[int]] = {}
        self.facts: dict[int, Facts] = {}
        self.timed: dict[int, bool] = {}
        self.elements: dict[Var, dict[tuple[int, ...], Value]] = {}  # written one by one, by tensor
        self.unsure = 0  # depth of branches that may not be taken
        for p in graph.function.params:
            t = p.var.type
            self.env[p.var] = _Buffer(p.var) if isinstance(t, TensorType) else inputs.argument(p.var)

    def run(self) -> None:
        self.orchestration(self.graph.function.body, ())
        for i, run in enumerate(self.runs):
            self.settle(run)
            run.after = tuple(sorted(set(self.waits(i, run))))

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
            self.of_task.setdefault(task.index, []).append(len(self.runs))
            self.runs.append(TaskRun(task, key[1]))
        at = self.by_key[key]
        count = 1 if s.count is None else self.value(s.count)
        if count is None:
            self.note(f"blocks of {task.name} (unknown count): 1")
            count = 1
        for i in range(int(count)):
            if s.block is not None:
                self.env[s.block] = i
            block = _BlockWalker(self)
            block.block(s.body)
            self.runs[at].blocks.append(block.out)

    def waits(self, position: int, run: TaskRun) -> Iterator[int]:
        """Runs before this one that the task graph makes it wait for."""
        mine = _trip(run)
        for d in self.graph.dependencies:
            if d.after != run.task.index:
                continue
            for i in (i for i in self.of_task.get(d.before, []) if i < position):
                theirs = _trip(self.runs[i])
                shared = [v for v in mine if v in theirs]
                if d.carried_by is None:
                    agrees = all(mine[v] == theirs[v] for v in shared)
                else:
                    outer = shared[: shared.index(d.carried_by)]
                    agrees = (
                        all(mine[v] == theirs[v] for v in outer)
                        and theirs[d.carried_by] != mine[d.carried_by]
                    )
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
            self.note(f"trips of {s.var.name} at {place(s)} (unknown bounds): 1")
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
            self.note(f"unknown condition at {place(s)}")
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
            self.env[s.result] = self.element(base.root, at) if known else None
        elif s.op.name == "write_tensor":
            base = self.env[s.args[0]]  # type: ignore[index]
            at = [self.value(x) for x in arg_exprs(s.args[1])]
            self.write(base, at, self.operand(s.args[2]))  # type: ignore[arg-type]
        else:
            for v in s.results:
                self.env[v] = None

    def element(self, tensor: Var, at: list[Value]) -> Value:
        """An element that the program wrote before, or of an argument; None if it is not known."""
        written = self.elements.get(tensor)
        if written is not None and None not in at:
            place = tuple(int(i) for i in at if i is not None)
            if place in written:
                return written[place]
        return self.inputs.element(tensor.name, at)

    def write(self, buffer: _Buffer, at: list[Value], value: Value) -> None:
        """Remember an element; a write to an unknown place, or through a view, forgets the tensor's."""
        written = self.elements.setdefault(buffer.root, {})
        if buffer.view or None in at:
            written.clear()
        else:
            written[tuple(int(i) for i in at if i is not None)] = None if self.unsure else value

    # ---- what is static about an op
    def fact(self, s: Let) -> Facts:
        found = self.facts.get(id(s))
        if found is None:
            found = self.facts[id(s)] = facts(s, self.rates)
        return found

    def is_timed(self, block: Block) -> bool:
        """True if a block holds an op that takes time."""
        key = id(block)
        if key not in self.timed:
            lets = (s for s in walk(block) if isinstance(s, Let))
            self.timed[key] = any(self.fact(s).pipe is not None for s in lets)
        return self.timed[key]

    def settle(self, run: TaskRun) -> None:
        """Now that all boxes are known: what of each load comes from memory, and what again from L2."""
        asked: dict[Var, int] = {}
        boxes: dict[Var, dict[Hashable, int]] = {}
        operations = [o for block in run.blocks for o in block]
        for i, o in enumerate(operations):
            run.flops += o.flops
            if o.pipe is Pipe.LOAD and o.tensor is not None:
                asked[o.tensor] = asked.get(o.tensor, 0) + o.bytes
                boxes.setdefault(o.tensor, {})[i if o.box is None else o.box] = o.bytes
            elif o.pipe is Pipe.STORE:
                run.memory_bytes += o.bytes
        share = {}
        for tensor, n in asked.items():
            distinct = sum(boxes[tensor].values())
            share[tensor] = distinct / n if n and distinct <= self.rates.l2_bytes else 1.0
            run.memory_bytes += distinct if distinct <= self.rates.l2_bytes else n
            run.read_bytes += n
        again = self.rates.memory / self.rates.l2
        for o in operations:
            if o.pipe is Pipe.LOAD and o.tensor is not None:
                o.amount *= share[o.tensor] + (1 - share[o.tensor]) * again
            elif o.pipe is Pipe.CROSS:
                o.amount *= again


def _trip(run: TaskRun) -> dict[Var, int]:
    """The values of the sequential loops around a run."""
    return dict(zip((x.var for x in run.task.loops), run.trip, strict=True))


class _BlockWalker:
    """One block of a region.  The value of a tile is the position of the operation that makes it, or -1."""

    def __init__(self, walker: _Walker) -> None:
        self.w = walker
        self.env = walker.env
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
            after = self.transfer(op, fact, fact.access, after)
        elif fact.pipe is Pipe.CROSS:
            op.bytes, op.amount = fact.crossing, float(fact.crossing)
        op.after = tuple(dict.fromkeys(t for t in (self.gate, *after) if t >= 0))
        token = self.emit(op)
        if fact.pipe is Pipe.STORE and op.tensor is not None:
            self.stored[op.tensor] = token
        for v in s.results:
            self.env[v] = token if isinstance(v.type, TileType) else None

    def transfer(self, op: Operation, fact: Facts, access: Access, after: tuple[int, ...]) -> tuple[int, ...]:
        """Fill in a load or a store; gives what it waits for."""
        buffer: _Buffer = self.env[access.tensor]
        extents = tuple(self.extent(v, d) for v, d in zip(access.valid, access.shape, strict=True))
        op.bytes = fact.element_bytes
        for n in extents:
            op.bytes *= n
        op.amount, op.tensor, op.label = float(op.bytes), buffer.root, f"{op.label} {buffer.root.name}"
        if self.run_bytes(access, extents, fact.element_bytes) < self.w.rates.transfer_bytes:
            op.amount /= self.w.rates.short_share
        offset = tuple(self.w.value(x) for x in access.offset)
        op.box = None if None in offset else (buffer.view, offset, extents)
        return (*after, self.stored.get(buffer.root, -1)) if op.pipe is Pipe.LOAD else after

    def extent(self, valid: Any, shape: Any) -> int:
        for d in (valid, shape):
            n = d if isinstance(d, int) else None if d is None else self.w.value(d)
            if n is not None:
                return max(int(n), 0)
        return 1

    def run_bytes(self, access: Access, box: tuple[int, ...], size: int) -> int:
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
        outer = self.gate
        ends: list[int] = []
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
        self.w.unsure += 1
        for body in (s.then, s.orelse):
            self.env.clear()
            self.env.update(before)
            self.stored = dict(stored)
            del self.out[first:]
            self.block(body)
            cost.append(sum(self.seconds(o) for o in self.out[first:]))
        if cost[0] <= cost[1]:
            self.w.unsure -= 1
            return False
        self.env.clear()
        self.env.update(before)
        self.stored = dict(stored)
        del self.out[first:]
        self.block(s.then)
        self.w.unsure -= 1
        return True

    def seconds(self, o: Operation) -> float:
        return o.amount / self.w.rates.core if o.pipe is not None and o.pipe.is_transfer else o.amount
