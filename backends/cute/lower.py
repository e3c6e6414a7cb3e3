"""A function as kernels and a launch list: what the host does is a list, what depends on data is in kernels.

orchestration.py walks what is between the regions; here a region becomes a kernel, or several that share a
launch do (sharing.py).  A condition around it guards the kernel's body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pypto_models.ir.expr import Expr, Var, index
from pypto_models.ir.graph import expr_text
from pypto_models.ir.nodes import Function, Let, Region
from pypto_models.ir.types import FP32, INT64, TensorType
from pypto_models.language.entry import written_params
from pypto_models.schedule import Override
from pypto_models.schedule.overrides import NONE
from pypto_models.target import Target

from ..gpu.grouping import Group, grouped, large
from ..gpu.host import Stale, at_least_one
from ..gpu.manifest import Workspace
from ..gpu.matching import Product, match
from ..gpu.module import Argument, KernelSource, Launch, Module, nested
from ..gpu.names import Names
from ..gpu.orchestration import Around, Orchestration, State, extents_in
from ..gpu.plans import RESERVED, Plan
from ..gpu.plans import plan as plan_stream
from ..gpu.recompute import recomputed
from ..gpu.refusal import named
from ..gpu.row_statistic import fused, norm_bytes
from ..gpu.slices import sliced
from ..gpu.tensors import View
from ..gpu.timing import EVENTS, STAMPED, STAMPS
from ..gpu.unroll import unrolled
from . import casts as casts  # registers its handlers
from . import reductions as reductions
from . import serial as serial
from .handlers import HANDLERS
from .kernel import THREADS, Kernel
from .module import launcher, signature
from .order import BEFORE, LATE, Ahead, placed
from .places import allocated
from .rules import refused
from .sharing import PLACE, Share, crowded, first_blocks, joint, next_blocks, own_blocks
from .streaming import Norm, emit
from .tail import Head, clearing, clears, resident, tail_blocks, tailed
from .text import Text
from .turns import Together
from .wanted import Wanted, unwritten, work


@dataclass(frozen=True)
class Part:
    """A region to be lowered, and how."""

    around: Around
    state: State
    ahead: Ahead
    product: Product | str
    how: Plan | str

    @property
    def region(self) -> Region:
        return self.around.region


class Lowering(Orchestration):
    def __init__(
        self,
        function: Function,
        target: Target,
        timing: bool = False,
        kept: frozenset[int] = frozenset(),
        given: Mapping[str, Override] | None = None,
        scratch: frozenset[Var] = frozenset(),
    ) -> None:
        super().__init__(function, kept, Text())
        self.scratch = scratch  # tensors that prologues write
        self.timing = timing
        self.given = given or {}
        self.target = target
        self.kernels: list[KernelSource] = []
        tensors = (p.var for p in function.params if isinstance(p.var.type, TensorType))
        self.parameters = frozenset(tensors)
        self.constants: frozenset[Var] = frozenset()  # parameters that no region writes
        self.limit = max(s.bytes for s in target.spaces.values() if s.align == 16)
        self.early: set[Var] = set()  # what kernels read before they wait
        self.touched: set[Var] = set()  # what launches so far write
        self.norms_before: dict[int, Norm] = {}  # of regions by identity
        self.norms_behind: dict[int, Norm] = {}
        self.gone: set[int] = set()  # regions that others do
        self.head: Head | None = None  # the last launch, where a tail may join it

    def module(self) -> Module:
        views = {p.var: View.whole(p.var) for p in self.function.params if isinstance(p.var.type, TensorType)}
        for p in self.function.params:
            self.names[p.var] = p.name
            self.text.taken.add(p.name)
            self.text.taken |= {x.name for d in getattr(p.var.type, "shape", ()) for x in extents_in(d)}
        self.constants = constants(self.function)
        self.fuse_norms()
        self.block(self.function.body, State(views, [], alias=self.roots))
        kernels, fenced = triggered(self.kernels, self.unsure)
        source = module_source(self.function.name, self.target, kernels)
        early = tuple(p.name for p in self.function.params if p.var in self.early)
        return Module(
            self.function.name, self.target.name, tuple(kernels), nested(self.launches, self.repeats),
            tuple(self.workspaces), source, early, fenced,
        )  # fmt: skip

    def ahead(self, state: State) -> Ahead:
        """What the next kernel may read before it waits, if it runs block by block."""
        untouched = self.constants if self.repeating else self.parameters - self.touched
        scratch = frozenset(state.views[v].base for v in self.scratch if v in state.views)
        return Ahead(self.constants, self.last, bool(self.launches), untouched, scratch)

    def unsettled(self, kernel: Kernel) -> set[Var]:
        """The parameters that a kernel reads ahead though programs before this one may still run."""
        return set() if kernel.ahead.all_but is not None else kernel.early & self.parameters

    # ------------------------------------------------------------------------------------------ regions
    def region(self, s: Region, state: State) -> None:
        if id(s) in self.gone:
            return
        part = self.part(s, state)
        self.scalars.check(part.around.again, part.region.body)
        if self.as_tail(part):
            return
        name = self.unique(s.name)
        if isinstance(part.how, Plan):
            assert isinstance(part.product, Product)
            self.streamed(part.around, name, part.product, part.how, state)
            return
        kernel = self.by_blocks(part)
        blocks = self.blocks(part)
        buffers = kernel.buffers
        body = [*("    " + x for x in (*allocated(buffers.bytes), *buffers.lines)), *kernel.text.lines]
        shared, grid = buffers.bytes, expr_text(blocks)
        self.add(kernel, name, part.region, body, "", THREADS, shared, part.how, grid, state)
        if name not in self.unsure and not state.guards and not self.repeating:
            self.head = Head(
                kernel, blocks, lambda: self.share(part, name, self.by_blocks(part, first_blocks))
            )

    def as_tail(self, p: Part) -> bool:
        """Runs a region in the launch before it, where that can be (tail.py)."""
        head, at = self.head, clearing(self.kernels, self.unsure)
        apart = isinstance(p.how, Plan) or p.state.guards or self.repeating or large(p.region)
        own = self.given.get(p.region.name, NONE).get("launch") == "own"
        if head is None or at is None or apart or own:
            return False
        if not head.pays(self.blocks(p), self.target):
            return False
        kernel = self.by_blocks(p, tail_blocks)
        if not head.takes(kernel):
            return False
        counter = self.unique("arrivals")
        self.workspaces.append(Workspace(counter, "int32", ("1",)))
        self.kernels[at], self.launches[at] = clears(self.kernels[at], self.launches[at], counter)
        self.kernels.pop()
        self.launches.pop()
        shares = first, second = head.share(), self.share(p, self.unique(p.region.name), kernel)
        name = self.unique(f"{first.region.name}_then_{second.region.name}")
        wanted = self.wanted(p, f"{second.function}_wanted", head.kernel, kernel)
        made = tailed(name, first, second, counter, self.target, self.stamps(), wanted)
        how = f"{first.why}; its tail {second.region.name}: {second.why}"
        self.note(name, written_by(shares), True)
        region = f"{first.region.name} then {second.region.name}"
        line, shared = first.region.span.line, made.shared_bytes
        here = resident(shared, self.target)
        self.launch(name, region, line, made.text, THREADS, shared, how, made.arguments, made.grid, here)
        return True

    def wanted(self, p: Part, name: str, head: Kernel, tail: Kernel) -> Wanted | None:
        """What tells blocks of a launch before they are done whether those of its tail do anything."""
        blocks, views = self.blocks(p), p.state.views
        prelude, body = p.around.statements(p.state)
        found = work((*prelude, *body), views, unwritten(self.names, head, tail))
        if found is None or not at_least_one(blocks):
            return None
        kernel = Kernel(views, HANDLERS, ahead=head.ahead, alias=p.state.alias)
        tail_blocks(kernel, p.region.block)
        value, early = found.write(kernel)
        self.early |= self.unsettled(kernel)
        arguments = super().arguments(kernel, p.region, p.state)  # it notes no times
        return Wanted(self.unique(name), p.region, kernel, arguments, blocks, "", value, early)

    def group(self, s: Group, state: State) -> None:
        """Regions in one launch; in launches of their own where shared memory is short."""
        parts = [self.part(r, state) for r in s.regions]
        kernels = [self.by_blocks(p, next_blocks if i else first_blocks) for i, p in enumerate(parts)]
        if crowded([p.region for p in parts], kernels, self.limit):
            for r in s.regions:
                self.region(r, state)
            return
        for p in parts:
            self.scalars.check(p.around.again, p.region.body)
        shares = [self.share(p, self.unique(p.region.name), k) for p, k in zip(parts, kernels, strict=True)]
        name = self.unique("_and_".join(r.name for r in s.regions))
        self.early |= {v for k in kernels for v in self.unsettled(k)}
        how = "; ".join(f"{x.region.name}: {x.why}" for x in shares)
        sure = any(at_least_one(x.blocks) for x in shares)
        self.note(name, written_by(shares), sure)
        made = joint(name, shares, THREADS)
        region = " and ".join(r.name for r in s.regions)
        line, shared = s.span.line, made.shared_bytes
        self.launch(name, region, line, made.text, THREADS, shared, how, made.arguments, made.grid)

    def blocks(self, p: Part) -> Expr:
        """Of the launch of a region, as the launcher knows it."""
        count = p.region.count
        return index(1) if count is None else self.host(count, p.state, p.region)

    def share(self, p: Part, name: str, kernel: Kernel) -> Share:
        """A region as a function in a kernel."""
        assert isinstance(p.how, str)
        arguments = self.arguments(kernel, p.region, p.state)
        return Share(name, p.region, kernel, arguments, self.blocks(p), p.how)

    def part(self, s: Region, state: State) -> Part:
        """The region with what its kernel begins with, and how it runs."""
        around = self.around(s, state, self.target.cores)
        s, needed = around.region, around.needed
        matched = match(s) if not state.guards else "it runs under a condition"
        ahead = self.ahead(state)
        if any(v in needed for v in state.views if state.views[v].base not in self.names):
            matched, ahead = "a condition or a loop chooses a tensor of it", replace(ahead, all_but=None)
        return Part(around, state, ahead, matched, self.plan_for(s, matched))

    def by_blocks(self, p: Part, begin: Callable[[Kernel, Var | None], None] = own_blocks) -> Kernel:
        """The region with one block of the GPU for each of its own."""
        # What the tiles leave of shared memory goes to loads that run ahead: first see what that is
        together: frozenset[Var] = frozenset()
        while True:
            trial = guarded(p, 1 << 40, self.stamps(), begin, together)
            fixed = trial.buffers.bytes - trial.ring_bytes
            room = self.limit - RESERVED - fixed
            half = self.limit // 2 - RESERVED - fixed
            if trial.stage_bytes and half // trial.stage_bytes >= 3:
                room = half  # two blocks share a core, and one computes while the other waits
            kernel = guarded(p, room, self.stamps(), begin, trial.together)
            # Loops that have no room for turns, or not beside others: their tiles are others
            left = kernel.together - trial.together
            if not left and kernel.buffers.bytes > self.limit - RESERVED:
                left = frozenset([x.loop for x in kernel.turns.values()][:1])
            if not left:
                break
            together = trial.together | left
        if kernel.buffers.bytes > self.limit - RESERVED:
            took, room = kernel.buffers.bytes, self.limit - RESERVED
            why = f"its tiles take {took} bytes of shared memory, and a block has {room}"
            raise refused(p.region.span, f"region {p.region.name}", why, "use smaller tiles")
        return kernel

    def fuse_norms(self) -> None:
        """Finds the norms that streamed products do, and gives their partial sums a place."""

        def streams(s: Region) -> tuple[Product, Plan] | None:
            found = match(s)
            how = self.plan_for(s, found)
            return (found, how) if isinstance(found, Product) and isinstance(how, Plan) else None

        for f in fused(self.function, self.constants, lambda s: (streams(s) or (None,))[0]):
            made, taken = streams(f.producer), streams(f.consumer)
            assert made is not None and taken is not None
            if taken[1].shared_bytes + norm_bytes(f.statistic, taken[1]) > self.limit - RESERVED:
                continue
            rows, parts = made[0].rows, made[1].ctas
            sums = Var(f"{f.statistic.source.name}_sums", TensorType((rows, parts), FP32))
            self.names[sums] = self.unique(sums.name)
            self.workspaces.append(Workspace(self.names[sums], "float32", (str(rows), str(parts))))
            norm = Norm(f.statistic, sums, parts)
            self.norms_behind[id(f.producer)] = self.norms_before[id(f.consumer)] = norm
            self.gone.add(id(f.statistic.region))

    def stamps(self) -> str:
        """Where the next launch notes its times, `[launch, CTA, event]`, in a timing build."""
        if not self.timing:
            return ""
        return f"{STAMPS} + {len(self.launches) * STAMPED * EVENTS}"

    def plan_for(self, s: Region, matched: Product | str) -> Plan | str:
        """How a region's product is divided, or why it is none."""
        given = self.given.get(s.name, NONE)
        if isinstance(matched, Product):
            return plan_stream(matched, self.target, s.name, s.span.line, given)
        if any(key != "launch" for key, _ in given.values) and not given.sized:
            raise given.error(f"{s.name} is no streamed product: {matched}", "leave it out")
        return matched

    def streamed(self, around: Around, name: str, product: Product, plan: Plan, state: State) -> None:
        s, prelude = around.region, around.prelude
        source = id(around.source)
        before, behind = self.norms_before.get(source), self.norms_behind.get(source)
        views = dict(state.views)
        views |= {n.sums: View.whole(n.sums) for n in (before, behind) if n is not None}
        parts = emit(name, product, views, around.bindings() + prelude, before, behind)
        kernel = parts.kernel
        # Weights that no kernel writes are copied before this kernel may read what others do
        weights = state.views[product.weights[0].args[0]].base  # type: ignore[index]
        reads = any(isinstance(x, Let) and x.op.name == "read_tensor" for x in product.before)
        early = weights in self.constants and not prelude and not reads
        if early:
            self.early.add(weights)
            if before is not None and before.of.columns is not None:
                self.early.add(before.of.columns.args[0])  # type: ignore[arg-type]
        wait = [] if early else ["    cute.arch.griddepcontrol_wait()"]
        inner: list[str] = []
        unpack = f"    {', '.join(parts.env)}, = env"
        for fn, args, lines in parts.functions:
            inner += ["@cute.jit", f"def {name}_{fn}({', '.join(args)}):", unpack, *lines, "", ""]
        rows = product.x.args[0] if before is None else before.of.source
        x_pitch, w_pitch = (state.views[v].strides[0] for v in (rows, product.weights[0].args[0]))  # type: ignore[index]
        fields = (
            f"k={product.depth}, x_pitch={expr_text(x_pitch)}, w_pitch={expr_text(w_pitch)}, "
            f"columns={plan.columns}, accumulators={plan.accumulators}, ctas={plan.ctas}, "
            f"slices={product.slices}, slice_pitch={product.slice_columns}, warps_n={plan.warps_n}, "
            f"warps_k={plan.warps_k}, chunk={plan.chunk}, stages={plan.stages}, burst={plan.burst}, "
            f"m_tiles={plan.m_tiles}, late={LATE}, "
            f"weight_row={name}_weight_row, finish={name}_finish"
        )
        if before is not None:
            fields += f", scale={name}_scale, operand={name}_operand"
        fields = ", ".join((fields, *parts.fields))
        env = f"({', '.join(parts.env)},)"
        arguments = (parts.x, parts.w, f"Int32({parts.rows})", env)
        stamps = (f"stamps={self.stamps()}",) if self.timing else ()
        run = f"    stream.Stream({fields}).run({', '.join((*arguments, *stamps, *parts.arguments))})"
        self.add(
            kernel,
            name,
            s,
            [*wait, *kernel.text.lines, run],
            "\n".join(inner),
            plan.block_threads,
            plan.shared_bytes + (0 if before is None else norm_bytes(before.of, plan)),
            "stream",
            str(plan.ctas),
            state,
        )

    def add(
        self,
        kernel: Kernel,
        name: str,
        s: Region,
        body: list[str],
        head: str,
        threads: int,
        shared: int,
        how: str,
        grid: str,
        state: State,
    ) -> None:
        self.early |= self.unsettled(kernel)
        sure = how == "stream" or s.count is None or at_least_one(self.host(s.count, state, s))
        self.note(name, frozenset(changed(kernel)) if not kernel.chosen else None, sure)
        arguments = self.arguments(kernel, s, state)
        # A ring of a stream leaves room for one, and a warp that takes trips holds what it sums in registers
        here = int(how == "stream" or bool(kernel.turns))
        text = head + kernel_text(name, s, [(a.name, a.kind) for a in arguments], body, threads, how, here)
        self.launch(name, s.name, s.span.line, text, threads, shared, how, arguments, grid, here)

    def note(self, name: str, written: frozenset[Var] | None, sure: bool) -> None:
        """What the next kernel may count on: what this one writes, if known, and whether it surely runs."""
        if not sure:
            self.unsure.add(name)
        self.last = written if sure else None
        if written is None:
            self.touched |= self.parameters
        else:
            self.touched |= {x for v in written for x in self.roots.get(v, (v,))}

    def arguments(self, kernel: Names, s: Region, state: State) -> tuple[Argument, ...]:
        out = super().arguments(kernel, s, state)
        if self.timing:
            out = (*out, Argument(STAMPS, f"pointer:{INT64.name}", ("pointer", STAMPS)))
        return out

    def launch(
        self,
        name: str,
        region: str,
        line: int,
        text: str,
        threads: int,
        shared: int,
        how: str,
        arguments: tuple[Argument, ...],
        grid: str,
        here: int = 0,
    ) -> None:
        parameters = tuple((a.name, a.kind) for a in arguments)
        self.kernels.append(KernelSource(name, region, line, text, threads, shared, how, parameters, here))
        self.launches.append(Launch(name, grid, tuple(a.passed for a in arguments)))
        self.head = None


def changed(kernel: Kernel) -> set[Var]:
    """What others may read that a kernel writes: not what each block writes for itself."""
    return kernel.written - kernel.ahead.scratch


def written_by(shares: Sequence[Share]) -> frozenset[Var] | None:
    """What the regions of a launch write; None if that is only known at run time."""
    kernels = [s.kernel for s in shares]
    return None if any(k.chosen for k in kernels) else frozenset(v for k in kernels for v in changed(k))


def guarded(
    p: Part,
    room: int,
    stamps: str,
    begin: Callable[[Kernel, Var | None], None],
    together: frozenset[Var] = frozenset(),
) -> Kernel:
    """The region block by block, under the conditions around it, each behind the statements under it."""
    state = p.state
    prelude, body = p.around.statements(state)
    while True:
        kernel = Kernel(state.views, HANDLERS, room, p.ahead, stamps, state.alias, together)
        begin(kernel, p.region.block)
        try:
            kernel.run(prelude, body)
        except Together as found:
            together |= {found.loop}
        else:
            return kernel


# -------------------------------------------------------------------------------------------------- text
def kernel_text(
    name: str,
    s: Region,
    parameters: list[tuple[str, str]],
    body: list[str],
    threads: int,
    how: str,
    here: int,
) -> str:
    head = [
        "@cute.kernel",
        signature(name, parameters),
        f'    """Line {s.span.line}: {how if how == "stream" else "block by block, since " + how}."""',
    ]
    if how != "stream":
        head += [
            *PLACE,
            f"    {BEFORE}",
        ]
    return "\n".join([*head, *body, *launcher(name, parameters, threads, here)]) + "\n"


def triggered(kernels: list[KernelSource], unsure: set[str]) -> tuple[list[KernelSource], bool]:
    """The kernels with their triggers, and whether one that is sure to run triggers after its wait.

    A streamed product should be resident early, to ask for its weights; a kernel that runs block by block
    gains more from knowing that all but the one before it is complete.
    """
    out = []
    fenced = False
    for k, following in zip(kernels, (*kernels[1:], None), strict=True):
        late = following is not None and following.how != "stream"
        fenced = fenced or (late and k.name not in unsure)
        out.append(replace(k, text=placed(k.text, late)))
    return out, fenced


def module_source(name: str, target: Target, kernels: list[KernelSource]) -> str:
    head = f'''"""{name} for {target.name} ({target.arch}), written by the compiler: one kernel per launch."""

import cutlass
import cutlass.cute as cute
import cutlass.utils as utils
from cutlass import BFloat16, Boolean, Float16, Float32, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32

from backends.cute.device import across, arrival, block, fragments, stream
'''
    return "\n\n".join([head, *(k.text for k in kernels)])


def constants(function: Function) -> frozenset[Var]:
    """The parameters that no region writes."""
    written = written_params(function)
    return frozenset(p.var for p in function.params if p.var not in written)


def norms(function: Function) -> tuple[Region, ...]:
    """The norms that products may do, if there is room."""

    def product(s: Region) -> Product | None:
        found = match(s)
        return found if isinstance(found, Product) else None

    return tuple(f.statistic.region for f in fused(function, constants(function), product))


def lower(
    function: Function, target: Target, timing: bool = False, given: Mapping[str, Override] | None = None
) -> Module:
    """The kernels and launches of a function; with ``timing`` they note in a further output when they ran.

    ``given`` fixes parts of the schedules of streamed products, by region name.
    """
    with named("cute"):
        function = sliced(unrolled(function), given or {})
        function, scratch = recomputed(function)
        function = grouped(function, frozenset(map(id, norms(function))))
        kept: frozenset[int] = frozenset()
        while True:
            try:
                return Lowering(function, target, timing, kept, given, scratch).module()
            except Stale as stale:
                kept |= {stale.let}
