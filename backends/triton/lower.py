"""A function as Triton kernels and a launch list.

What is between the regions is for gpu/orchestration.py; here a region becomes a kernel, or several that
depend on nothing of each other share one.  A condition around a region guards the kernel's body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pypto_models.errors import NOWHERE, Diag, user_error
from pypto_models.ir.expr import Expr, index
from pypto_models.ir.graph import expr_text
from pypto_models.ir.nodes import Function, Region
from pypto_models.ir.types import INT64, TensorType
from pypto_models.schedule import Override
from pypto_models.schedule.overrides import NONE
from pypto_models.target import Target

from ..gpu.grouping import Group, grouped
from ..gpu.host import Stale, at_least_one, none_if_negative
from ..gpu.matching import Product, match
from ..gpu.module import Argument, KernelSource, Launch, Module, nested
from ..gpu.orchestration import Around, Orchestration, State, extents_in
from ..gpu.refusal import named
from ..gpu.tensors import View
from ..gpu.timing import END, STAMPS, START, WAITED
from ..gpu.unroll import unrolled
from . import casts as casts  # registers its handlers
from . import serial as serial
from .forms import Form, form_of
from .handlers import HANDLERS
from .kernel import Kernel
from .streaming import emit, refusal
from .text import Text

WARPS, LEAST_WARPS, MOST_WARPS = 4, 2, 8
ELEMENTS, PRODUCT_ELEMENTS = 64, 128  # of the largest tile, that a thread holds at most
AHEAD = 256  # elements of a weight row that a stream asks for before it waits
STAGES = 4  # of a loop that runs ahead
SHARE = 0.75  # of shared memory that its loads may take: products and reductions want some, too


@dataclass(frozen=True)
class Part:
    """A region as the body of a function: ``blocks`` of the launch run it."""

    name: str
    region: Region
    kernel: Kernel
    arguments: tuple[Argument, ...]
    blocks: Expr
    sure: bool
    warps: int
    why: str  # "stream", or why it runs block by block
    begun: bool  # whether it says itself where it waits for the kernels before it


class Lowering(Orchestration):
    def __init__(
        self,
        function: Function,
        target: Target,
        given: Mapping[str, Override],
        kept: frozenset[int],
        timing: bool,
    ) -> None:
        super().__init__(function, kept, Text())
        self.target = target
        self.given = given
        self.timing = timing
        self.kernels: list[KernelSource] = []
        self.room = int(SHARE * max(s.bytes for s in target.spaces.values() if s.align == 16))
        self.overlaps = str(target.arch).startswith("sm_")  # programmatic dependent launch
        assert target.gpu is not None
        self.lanes = target.gpu.warp_threads
        if timing and not self.overlaps:
            why, fix = f"no clock of {target.name} is read", "leave it out"
            raise user_error(Diag.ARGUMENT, NOWHERE, name="timing", why=why, fix=fix)

    def module(self) -> Module:
        views = {p.var: View.whole(p.var) for p in self.function.params if isinstance(p.var.type, TensorType)}
        for p in self.function.params:
            self.names[p.var] = p.name
            self.text.taken.add(p.name)
            self.text.taken |= {x.name for d in getattr(p.var.type, "shape", ()) for x in extents_in(d)}
        self.block(self.function.body, State(views, [], alias=self.roots))
        source = module_source(self.function.name, self.target, self.kernels)
        return Module(
            self.function.name, self.target.name, tuple(self.kernels), nested(self.launches, self.repeats),
            tuple(self.workspaces), source, fenced=not self.overlaps,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------ regions
    def region(self, s: Region, state: State) -> None:
        self.add((self.part(s, state),))

    def group(self, s: Group, state: State) -> None:
        self.add([self.part(r, state) for r in s.regions])

    def part(self, s: Region, state: State) -> Part:
        around = self.around(s, state, self.target.cores)
        s, needed = around.region, around.needed
        self.scalars.check(around.again, s.body)
        how = self.form(s, state, needed)
        if isinstance(how, str):
            kernel = by_blocks(around, state, self.room)
            warps, begun = warps_for(kernel, self.lanes), False
        else:
            product, form = how
            ahead, prelude = AHEAD if self.overlaps else 0, (*around.bindings(), *around.prelude)
            kernel = emit(product, state.views, state.alias, prelude, form, BEGIN, ahead)
            s, warps, begun = replace(s, block=None, count=index(form.walkers)), form.warps, True
        blocks = index(1) if s.count is None else self.host(s.count, state, s)
        sure = s.count is None or at_least_one(blocks)
        arguments = self.arguments(kernel, s, state)
        why = how if isinstance(how, str) else "stream"
        return Part(self.unique(s.name), s, kernel, arguments, blocks, sure, warps, why, begun)

    def form(self, s: Region, state: State, needed: set[Expr]) -> tuple[Product, Form] | str:
        """How a region runs as a streamed product, or why it runs block by block."""
        if state.guards:
            return "it runs under a condition"
        if any(v in needed for v in state.views if state.views[v].base not in self.names):
            return "a condition or a loop chooses a tensor of it"
        product = match(s)
        if isinstance(product, str):
            return product
        if (why := refusal(product)) is not None:
            return why
        form = form_of(product, self.target, s.name, s.span.line, self.given.get(s.name, NONE))
        return form if isinstance(form, str) else (product, form)

    def add(self, parts: Sequence[Part]) -> None:
        """A launch of regions that do not depend on each other."""
        name = parts[0].name if len(parts) == 1 else self.unique("_and_".join(p.region.name for p in parts))
        text, arguments, grid = alone(parts[0]) if len(parts) == 1 else joint(name, parts)
        if self.timing:
            stamps = Argument(STAMPS, f"pointer:{INT64.name}", ("pointer", STAMPS))
            arguments = (*arguments, stamps)
        text = self.filled(text)
        region = " and ".join(p.region.name for p in parts)
        warps = max(p.warps for p in parts)
        options = (("num_warps", warps), ("num_stages", 1), *((("launch_pdl", 1),) if self.overlaps else ()))
        parameters = tuple((a.name, a.kind) for a in arguments)
        how = parts[0].why if len(parts) == 1 else "; ".join(f"{p.region.name}: {p.why}" for p in parts)
        line = parts[0].region.span.line
        self.kernels.append(
            KernelSource(name, region, line, text, warps * self.lanes, 0, how, parameters, options=options)
        )
        self.launches.append(Launch(name, grid, tuple(a.passed for a in arguments)))
        if not any(p.sure for p in parts):
            self.unsure.add(name)

    def filled(self, text: str) -> str:
        """The text of a kernel with what stands at its start, behind its wait and at its end."""
        lines = []
        for line in text.split("\n"):
            margin = line[: len(line) - len(line.lstrip())]
            if line.strip() == BEGIN:
                lines += [f"{margin}tile.wait()"] if self.overlaps else []
                lines += self.stamp(WAITED)
            elif line.startswith("def ") and LAST in line:
                lines += [line.replace(LAST, f", {STAMPS}" if self.timing else "")]
            elif line.strip() == FIRST:
                lines += self.stamp(START)
                lines += [f"{margin}tile.trigger()"] if self.overlaps else []
            else:
                lines.append(line)
        return "\n".join([*lines[:-1], *self.stamp(END), ""])

    def stamp(self, event: int) -> list[str]:
        return [f"    tile.stamp({STAMPS}, {len(self.launches)}, {event})"] if self.timing else []


FIRST, LAST = "# first", "# last"  # of a kernel's lines, and of its parameters
BEGIN = "# begin"  # where a kernel waits for those before it


def by_blocks(around: Around, state: State, room: int) -> Kernel:
    """The region with one block of the GPU for each of its own."""
    prelude, body = around.statements(state)
    kernel = Kernel(state.views, HANDLERS, state.alias, STAGES, room)
    block = around.region.block
    if block is not None:
        kernel.names[block] = kernel.text.unique("block")
        kernel.natural.add(block)
    kernel.run(prelude, body)
    return kernel


def warps_for(kernel: Kernel, lanes: int) -> int:
    """Few where a product leaves each thread enough to do, so that more blocks share a core; measured."""
    each, warps = (PRODUCT_ELEMENTS, LEAST_WARPS) if kernel.products else (ELEMENTS, WARPS)
    while warps < MOST_WARPS and kernel.largest > warps * lanes * each:
        warps *= 2
    return warps


# ---------------------------------------------------------------------------------------------------- text
def alone(p: Part) -> tuple[str, tuple[Argument, ...], str]:
    """The text of a kernel of one region, its arguments and its grid."""
    block = [] if p.region.block is None else [f"    {p.kernel.names[p.region.block]} = tl.program_id(0)"]
    head = [
        "@triton.jit",
        f"def {p.name}({', '.join(a.name for a in p.arguments)}{LAST}):",
        f'    """Line {p.region.span.line}: {described(p)}."""',
        f"    {FIRST}",
        *([] if p.begun else [f"    {BEGIN}"]),
    ]
    return "\n".join([*head, *block, *p.kernel.text.lines]) + "\n", p.arguments, expr_text(p.blocks)


def described(p: Part) -> str:
    return p.why if p.why == "stream" else f"block by block, since {p.why}"


def joint(name: str, parts: Sequence[Part]) -> tuple[str, tuple[Argument, ...], str]:
    """Regions that share a launch: each is a function, and a block runs one of them."""
    functions, calls, grids = [], [], []
    arguments: dict[tuple[str, tuple[str, str]], Argument] = {}
    taken: set[str] = set()
    for p in parts:
        block = [] if p.region.block is None else [p.kernel.names[p.region.block]]
        functions += [
            "@triton.jit",
            f"def {p.name}({', '.join([*block, *(a.name for a in p.arguments)])}):",
            f'    """Line {p.region.span.line}: {described(p)}."""',
            *(p.kernel.text.lines or ["    pass"]),
            "",
            "",
        ]
        passed = []
        for a in p.arguments:
            key = (a.kind, a.passed)
            if key not in arguments:
                arguments[key] = Argument(unused(a.name, taken), a.kind, a.passed)
            passed.append(arguments[key].name)
        calls.append((p, passed))
        grids.append(f"({expr_text(none_if_negative(p.blocks))})")
    body = ["    block = tl.program_id(0)"]
    extra: list[Argument] = []
    for i, (p, passed) in enumerate(calls):
        last = i == len(calls) - 1
        count = Argument(unused(f"blocks_{i}", taken), "Int32", ("scalar", " + ".join(grids[: i + 1])))
        before = extra[-1].name if extra else None
        own = [] if p.region.block is None else [f"block - {before}" if before else "block"]
        call = f"{p.name}({', '.join([*own, *passed])})"
        body.append(
            f"    {'else' if last else 'elif' if i else 'if'}{'' if last else f' block < {count.name}'}:"
        )
        body.append(f"        {call}")
        if not last:
            extra.append(count)
    every = (*arguments.values(), *extra)
    head = [
        "@triton.jit",
        f"def {name}({', '.join(a.name for a in every)}{LAST}):",
        f"    {FIRST}",
        f"    {BEGIN}",
    ]
    return "\n".join([*functions, *head, *body]) + "\n", every, " + ".join(grids)


def unused(name: str, taken: set[str]) -> str:
    out, n = name, 1
    while out in taken or out == "block":
        n += 1
        out = f"{name}_{n}"
    taken.add(out)
    return out


def module_source(name: str, target: Target, kernels: Sequence[KernelSource]) -> str:
    head = f'''"""{name} for {target.name} ({target.arch}), written by the compiler: one kernel per launch."""

import triton
import triton.language as tl

from backends.triton.device import tile
'''
    return "\n\n".join([head, *(k.text for k in kernels)])


def lower(
    function: Function, target: Target, timing: bool = False, given: Mapping[str, Override] | None = None
) -> Module:
    """The kernels and launches of a function; ``given`` fixes parts of the schedules of streamed products.

    Raises UserError for what has no lowering.
    """
    with named("triton"):
        function = grouped(unrolled(function))
        kept: frozenset[int] = frozenset()
        while True:
            try:
                return Lowering(function, target, given or {}, kept, timing).module()
            except Stale as stale:
                kept |= {stale.let}
