"""What a random program is made of, while it is written: source lines on one side, torch on the other.

Every step appends lines of the kernel's text and, independently of it, a closure that computes the same on
whole tensors (:mod:`.blocks`).  Closures run in order on an :class:`Env`, once for each set of extents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from .blocks import Blocks
from .facts import Facts

X = TypeVar("X")
Choose = Callable[[int], int]  # a number below n; 0 is the simplest choice

NAMES = {
    torch.float32: "FP32", torch.bfloat16: "BF16", torch.float16: "FP16", torch.int32: "INT32",
    torch.int16: "INT16", torch.int8: "INT8", torch.uint8: "UINT8",
}  # fmt: skip
F32, BF16, F16, I32, I8 = torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int8


class Env:
    """One run of the torch side: tensors in global memory by name, tiles and scalars by identity."""

    def __init__(self, extents: dict[str, int], arguments: dict[str, Any]) -> None:
        self.extents = extents
        self.memory: dict[str, Tensor] = {n: a for n, a in arguments.items() if isinstance(a, Tensor)}
        self.numbers: dict[str, float] = {n: a for n, a in arguments.items() if not isinstance(a, Tensor)}
        self.written: dict[str, Tensor] = {}
        self.tiles: dict[Tile, Blocks] = {}
        self.scalars: dict[Scalar, Tensor] = {}


class Context:
    """A place in the program: the loops and grids around it.  Each axis multiplies the blocks."""

    def __init__(self, parent: Context | None = None, trips: Callable[[Env], int] | None = None) -> None:
        self.parent = parent
        self.trips = trips

    def blocks(self, env: Env) -> int:
        n = self.trips(env) if self.trips else 1
        return n * self.parent.blocks(env) if self.parent else n

    def path(self, source: Context) -> list[Context]:
        """The axes between ``source`` and here, outermost first."""
        axes: list[Context] = []
        at: Context = self
        while at is not source:
            axes.append(at)
            if at.parent is None:
                raise AssertionError("a value is read outside of its context")
            at = at.parent
        return axes[::-1]

    def lift(self, env: Env, x: Any, source: Context) -> Any:
        """A value of an outer context as this one sees it."""
        for axis in self.path(source):
            n = axis.trips(env) if axis.trips else 1
            x = x.repeated(n) if isinstance(x, Blocks) else x.repeat_interleave(n, 0)
        return x


@dataclass(eq=False, frozen=True)
class Scalar:
    """An index or a number: its text, and its value in every block of a context."""

    text: str
    context: Context
    value: Callable[[Env], Tensor]
    constant: int | None = None

    def at(self, env: Env, context: Context) -> Tensor:
        if self not in env.scalars:
            env.scalars[self] = self.value(env)
        return context.lift(env, env.scalars[self], self.context)


@dataclass(eq=False)
class Tile:
    """A tile of the kernel.  ``valid`` has a scalar for an axis with a tail.  A ``home`` tile has the extents
    and the tails of the block's own part of [rows, columns] tensors."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    context: Context
    facts: Facts
    valid: tuple[Scalar | None, ...]
    home: bool = False
    frozen: bool = False  # something was derived from its storage, or it must not be changed in place
    used: bool = False  # something was computed from it

    @property
    def full(self) -> bool:
        return all(v is None for v in self.valid)

    @property
    def is_float(self) -> bool:
        return self.dtype.is_floating_point

    def at(self, env: Env, context: Context) -> Blocks:
        blocks: Blocks = context.lift(env, env.tiles[self], self.context)
        return blocks


@dataclass(eq=False)
class Memory:
    """A tensor in global memory.  ``rows`` says that its first axis is the program's row extent."""

    name: str
    dims: tuple[Scalar, ...]
    dtype: torch.dtype
    facts: Facts
    kind: str = "in"  # in, inout, out, scratch
    annotation: str = ""
    rows: bool = False
    stage: int = -1  # that wrote it last
    read: bool = False
    readable: bool = True

    @property
    def extents(self) -> tuple[int | None, ...]:
        return tuple(d.constant for d in self.dims)

    def shape(self, env: Env) -> tuple[int, ...]:
        return tuple(int(d.value(env)[0]) for d in self.dims)


Make = Callable[[dict[str, int], torch.Generator], Any]  # an argument, from the run-time extents


@dataclass(frozen=True)
class Parameter:
    name: str
    annotation: str
    make: Make
    out: Memory | None = None  # compared after the run


@dataclass(frozen=True)
class Program:
    """A random program.  ``extents`` has one entry for each run."""

    source: str
    parameters: tuple[Parameter, ...]
    steps: tuple[Callable[[Env], None], ...]
    extents: tuple[dict[str, int], ...]

    def __repr__(self) -> str:
        runs = " and ".join(
            ", ".join(f"{k} = {v}" for k, v in e.items()) or "no run-time extent" for e in self.extents
        )
        return f"# runs: {runs}\n{self.source}"

    def arguments(self, run: int, seed: int = 0) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        return {p.name: p.make(self.extents[run], generator) for p in self.parameters}

    def expected(self, run: int, arguments: dict[str, Any]) -> Env:
        """The direct evaluation; Out tensors start unwritten."""
        copies = {n: a.clone() if isinstance(a, Tensor) else a for n, a in arguments.items()}
        env = Env(self.extents[run], copies)
        for step in self.steps:
            step(env)
        return env


@dataclass
class Writer:
    """Collects a program.  All choices come from ``choose``."""

    choose: Choose
    wild: bool = False  # extents that scratchpad targets cannot hold
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    helpers: list[str] = field(default_factory=list)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    memory: list[Memory] = field(default_factory=list)
    steps: list[Callable[[Env], None]] = field(default_factory=list)
    names: int = 0  # in this stage
    tensors: int = 0
    stage: int = 0

    def __post_init__(self) -> None:
        self.root = Context()

    # ------------------------------------------------------------------------------------ choices
    def pick(self, options: Sequence[X]) -> X:
        return options[self.choose(len(options))] if len(options) > 1 else options[0]

    def chance(self, percent: int) -> bool:
        return self.choose(100) >= 100 - percent

    # ------------------------------------------------------------------------------------ text
    def fresh(self, prefix: str) -> str:
        """A name that is new in this stage; stages share names, as functions that grow do."""
        self.names += 1
        return f"{prefix}{self.names}"

    def fresh_tensor(self, prefix: str) -> str:
        """A name that nothing else in the program has."""
        self.tensors += 1
        return f"{prefix}_{self.tensors}"

    def next_stage(self, number: int) -> None:
        self.stage, self.names = number, 0

    def line(self, text: str) -> None:
        """A line, or several, where the writer stands."""
        self.lines += ["    " * self.depth + x for x in text.split("\n")]

    @contextmanager
    def indented(self) -> Iterator[None]:
        self.depth += 1
        before = len(self.lines)
        yield
        if len(self.lines) == before:
            self.line("pass")
        self.depth -= 1

    def do(self, step: Callable[[Env], None]) -> None:
        self.steps.append(step)

    # ------------------------------------------------------------------------------------ scalars
    def const(self, value: int) -> Scalar:
        return Scalar(str(value), self.root, lambda env: torch.tensor([value]), value)

    def derive(self, context: Context, text: str, fn: Callable[..., Tensor], *parts: Scalar) -> Scalar:
        """``text`` with {} for each part; folded where all parts are constants."""
        constants = [p.constant for p in parts]
        if None not in constants:
            return self.const(int(fn(*(torch.tensor([c]) for c in constants))[0]))
        shown = text.format(*(p.text for p in parts))
        return Scalar(shown, context, lambda env: fn(*(p.at(env, context) for p in parts)))

    def named(self, prefix: str, x: Scalar) -> Scalar:
        """The scalar under a name of its own."""
        if x.constant is not None or x.text.isidentifier():
            return x
        name = self.fresh(prefix)
        self.line(f"{name} = {x.text}")
        return Scalar(name, x.context, x.value)

    # ------------------------------------------------------------------------------------ memory
    def declare(
        self, dims: Sequence[Scalar], dtype: torch.dtype, annotation: Sequence[str], kind: str = "in",
        rows: bool = False, smooth: bool = False, prefix: str = "x",
    ) -> Memory:  # fmt: skip
        """A parameter, filled with multiples of 1/4 (or anything, if ``smooth``) in [-2, 2]."""
        name = self.fresh_tensor(prefix)
        facts = Facts(2.0, 0.0, None if smooth else 2) if dtype.is_floating_point else Facts(9.0, 0.0, 0)
        facts = facts.rounded(dtype)
        text = f"pl.Tensor[[{', '.join(annotation)}], pl.{NAMES[dtype]}]"
        m = Memory(name, tuple(dims), dtype, facts, kind, text, rows)
        self.add_parameter(m, smooth)
        return m

    def add_parameter(self, m: Memory, smooth: bool = False) -> None:
        wrapped = {"out": f"pl.Out[{m.annotation}]", "inout": f"pl.InOut[{m.annotation}]"}
        shown = wrapped.get(m.kind, m.annotation)

        def make(extents: dict[str, int], generator: torch.Generator) -> Tensor:
            shape = m.shape(Env(extents, {}))
            if m.kind == "out":
                return unwritten(shape, m.dtype)
            if not m.dtype.is_floating_point:
                low = 0 if m.dtype == torch.uint8 else -9
                return torch.randint(low, 10, shape, generator=generator).to(m.dtype)
            if smooth:
                return torch.randn(shape, generator=generator).clamp(-2, 2).to(m.dtype)
            return (torch.randint(-8, 9, shape, generator=generator) / 4).to(m.dtype)

        self.parameters[m.name] = Parameter(m.name, shown, make, m if m.kind != "in" else None)
        if m not in self.memory:
            self.memory.append(m)

    def input(self, dtype: torch.dtype, *extents: int) -> Memory:
        """A parameter of constant extents."""
        return self.declare([self.const(n) for n in extents], dtype, [str(n) for n in extents])

    def output(self, dtype: torch.dtype, *extents: int) -> Memory:
        """A tensor of constant extents for the program to write."""
        return self.scratch([self.const(n) for n in extents], dtype, [str(n) for n in extents])

    def finished(self, m: Memory, facts: Facts, fn: Callable[[Env], Tensor], readable: bool = False) -> None:
        """A stage has written all of ``m``; ``fn`` gives it."""
        m.facts, m.stage, m.readable = facts, self.stage, readable

        def write(env: Env) -> None:
            env.memory[m.name] = fn(env).to(m.dtype)
            if m.name in env.written:
                env.written[m.name].fill_(True)

        self.do(write)

    def number(self) -> str:
        """The kernel's integer argument, from 0 to 6; declared at its first use."""

        def make(extents: dict[str, int], generator: torch.Generator) -> int:
            return int(torch.randint(0, 7, (), generator=generator))

        self.parameters.setdefault("n", Parameter("n", "pl.Scalar[pl.INT32]", make))
        return "n"

    def scratch(
        self, dims: Sequence[Scalar], dtype: torch.dtype, annotation: Sequence[str], rows: bool = False,
        init: int | None = None,
    ) -> Memory:  # fmt: skip
        """A tensor that the program writes: created in the kernel, or in the end an Out parameter."""
        name = self.fresh_tensor("t")
        shown = ", ".join(d.text for d in dims)
        zero = "" if init is None else f", init_value={init}"
        self.line(f"{name} = pl.create_tensor([{shown}], dtype=pl.{NAMES[dtype]}{zero})")
        text = f"pl.Tensor[[{', '.join(annotation)}], pl.{NAMES[dtype]}]"
        m = Memory(name, tuple(dims), dtype, Facts(0.0), "scratch", text, rows)
        m.readable = False
        self.memory.append(m)

        def create(env: Env) -> None:
            if m.kind == "out":
                env.written[m.name] = torch.zeros(m.shape(env), dtype=torch.bool)
                return
            env.memory[m.name] = (
                unwritten(m.shape(env), dtype)
                if init is None
                else torch.full(m.shape(env), init, dtype=dtype)
            )

        self.do(create)
        return m


def unwritten(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan") if dtype.is_floating_point else 77, dtype=dtype)
