"""A backend in one file: an interpreter of the IR, made from the contract and the OpDefs alone.

It shows what a backend is given (pypto_models/backend.py) and that this is enough.  Scalars are Python
numbers, tiles the values that the OpDefs' references take and give, tensors torch views.  Regions run in
program order, blocks from 0 up, a split tile whole.  A kept program is its own source: what the printer
writes is language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pypto_models.backend import Compiled, KernelRow, Progress
from pypto_models.errors import Diag, InternalError, user_error
from pypto_models.ir.expr import DimVar, Expr, evaluate
from pypto_models.ir.nodes import (
    Arg,
    Bind,
    Block,
    Direction,
    For,
    Function,
    If,
    Let,
    Operation,
    Region,
    Return,
    Scope,
    Stmt,
)
from pypto_models.ir.printer import format_function
from pypto_models.ir.rewrite import walk
from pypto_models.ir.types import TensorType
from pypto_models.language.entry import parse
from pypto_models.ops import REGISTRY, OpDef
from pypto_models.ops.memory import CREATE
from pypto_models.ops.value import Extents, torch_dtype
from pypto_models.target import Target

SOURCE = "kernel.py"  # of a kept program


@dataclass(frozen=True)
class Memory:
    """A tensor in global memory, or a view of one: ``ops.value.GlobalMemory``."""

    data: torch.Tensor

    @property
    def shape(self) -> Extents:
        return tuple(self.data.shape)

    def load(self, offsets: Extents, extents: Extents) -> torch.Tensor:
        return self._box(offsets, extents).clone()

    def store(self, offsets: Extents, data: torch.Tensor, atomic: bool) -> None:
        box = self._box(offsets, tuple(data.shape))
        if atomic:
            box.add_(data)
        else:
            box.copy_(data)

    def view(self, offsets: Extents, extents: Extents) -> Memory:
        return Memory(self._box(offsets, extents))

    def reshape(self, shape: Extents) -> Memory:
        return Memory(self.data.view(shape))

    def _box(self, offsets: Extents, extents: Extents) -> torch.Tensor:
        if 0 in extents:  # it touches nothing, and may lie anywhere
            return self.data.new_empty(extents)
        box = self.data
        for axis, (offset, extent) in enumerate(zip(offsets, extents, strict=True)):
            box = box.narrow(axis, offset, extent)
        return box


class Run:
    """One run of a function: ``values`` of its variables and run-time extents, as far as it has come."""

    def __init__(self, values: dict[Expr, Any], progress: Progress | None) -> None:
        self.values = values
        self.progress = progress
        self.returned: tuple[Any, ...] = ()

    def block(self, body: Block) -> None:
        for s in body:
            self.stmt(s)

    def stmt(self, s: Stmt) -> None:
        match s:
            case Let():
                self.let(s)
            case Bind(var, value):
                self.values[var] = self.value(value)
            case For():
                self.loop(s)
            case If():
                taken = bool(self.value(s.cond))
                self.block(s.then if taken else s.orelse)
                self.bind((m.result, m.then if taken else m.orelse) for m in s.merged)
            case Region():
                self.region(s)
            case Scope():
                self.block(s.body)
            case Return(values):
                self.returned = tuple(self.value(v) for v in values)

    def let(self, s: Let) -> None:
        args = [self.arg(a) for a in s.args]
        if s.op is CREATE:  # the one op that no reference can do: where memory is, the backend says
            self.values[s.result] = created(**dict(zip(s.op.param_names, args, strict=True)))
            return
        if not isinstance(s.op, OpDef) or s.op.reference is None:
            raise InternalError(f"{s.op.name} was not refused")
        found = s.op.reference(*args)
        for result in s.results:
            self.values[result] = found

    def loop(self, s: For) -> None:
        start, stop, step = map(self.value, (s.start, s.stop, s.step))
        self.bind((c.param, c.init) for c in s.carried)
        for self.values[s.var] in range(start, stop, step):
            self.block(s.body)
            self.bind((c.param, c.next) for c in s.carried)
        self.bind((c.result, c.param) for c in s.carried)

    def region(self, s: Region) -> None:
        count = 1 if s.count is None else self.value(s.count)
        for block in range(count):
            if s.block is not None:
                self.values[s.block] = block
            self.block(s.body)
            if self.progress is not None:
                self.progress(block + 1, count, s.name)
        if s.tid is not None:
            self.values[s.tid] = s.name  # whoever waits for it runs later anyway

    def bind(self, pairs: Iterable[tuple[Expr, Expr]]) -> None:
        """All at once: what a loop carries may change places."""
        self.values.update([(var, self.value(x)) for var, x in pairs])

    def value(self, x: Expr) -> Any:
        return evaluate(x, self.values.__getitem__)

    def arg(self, a: Arg) -> Any:
        """An argument of an op: a number, a tile, a tensor, an array, or what is the same in every run."""
        match a:
            case tuple():
                return tuple(self.arg(x) for x in a)
            case Expr():
                return self.value(a)
            case _:
                return a


def created(shape: Extents, dtype: Any, init_value: float | None, **hints: Any) -> Memory:
    data = torch.zeros(shape, dtype=torch_dtype(dtype))
    return Memory(data if init_value is None else data.fill_(init_value))


@dataclass(frozen=True)
class Interpreter:
    """A function, ready to run and to be kept."""

    function: Function

    def __call__(self, args: Mapping[str, Any], progress: Progress | None = None) -> tuple[Any, ...]:
        values: dict[Expr, Any] = {}
        for p in self.function.params:
            values[p.var] = args[p.name]
            if isinstance(p.var.type, TensorType):
                data = args[p.name]
                extents = zip(p.var.type.shape, data.shape, strict=True)
                values |= {dim: extent for dim, extent in extents if isinstance(dim, DimVar)}
                # The caller sees no change of an In tensor
                values[p.var] = Memory(data.clone() if p.direction is Direction.IN else data)
        run = Run(values, progress)
        with torch.inference_mode():
            run.block(self.function.body)
        return tuple(x.data if isinstance(x, Memory) else x for x in run.returned)

    @property
    def kernels(self) -> tuple[KernelRow, ...]:
        regions = (s for s in walk(self.function.body) if isinstance(s, Region))
        return tuple(KernelRow(r.name, r.name, r.span.line, "interpreted", 1, 0, 0, 0, 0) for r in regions)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SOURCE).write_text(format_function(self.function))


class ToyBackend:
    """Runs any program for any target, on the CPU."""

    name = "toy"
    native = True

    def covers(self, target: Target) -> str | None:
        return None

    def unusable(self) -> str | None:
        return None

    def support(self, op: str) -> str:
        return "rule" if known(REGISTRY[op]) else "unsupported: its OpDef has no reference"

    def build(self, compiled: Compiled) -> Interpreter:
        for s in walk(compiled.function.body):
            if isinstance(s, Let) and not known(s.op):
                raise user_error(
                    Diag.BACKEND_OP, s.span, op=f"pl.{s.op.spelling}", backend=self.name,
                    why="its OpDef has no reference", fix="give it one",
                )  # fmt: skip
        return Interpreter(compiled.function)

    def bundle(self, compiled: Compiled, progress: Progress | None = None) -> Interpreter:
        return self.build(compiled)

    def emit(self, compiled: Compiled) -> str:
        return format_function(compiled.function)

    def open(self, folder: Path) -> Interpreter:
        return Interpreter(parse((folder / SOURCE).read_text()))


def known(op: Operation) -> bool:
    return op is CREATE or (isinstance(op, OpDef) and op.reference is not None)
