"""A function as kernels and a launch list: what the host does is a list, what depends on data is in kernels.

orchestration.py walks what is between the regions; here a region becomes a kernel.  A condition around it
guards the kernel's body.
"""

from __future__ import annotations

from dataclasses import replace

from pypto_models.ir.expr import Const, Expr, Var, free_vars, substitute
from pypto_models.ir.graph import expr_text
from pypto_models.ir.nodes import Bind, Block, Function, If, Let, Region, Stmt
from pypto_models.ir.rewrite import uses
from pypto_models.ir.types import INT64, TensorType
from pypto_models.language.entry import written_params
from pypto_models.target import Target

from . import casts as casts  # registers its handlers
from . import reductions as reductions
from .handlers import HANDLERS
from .host import Stale, at_least_one, host_value, slice_of, with_places
from .kernel import THREADS, Kernel
from .matching import Product, match
from .module import KernelSource, Launch, Module, nested
from .orchestration import Orchestration, State, extents_in
from .order import BEFORE, Ahead, placed
from .plans import RESERVED, Plan
from .plans import plan as plan_stream
from .rules import refused
from .serial import strided
from .streaming import emit
from .tensors import View
from .timing import EVENTS, STAMPED, STAMPS
from .unroll import unrolled


class Lowering(Orchestration):
    def __init__(
        self, function: Function, target: Target, timing: bool = False, kept: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(function, kept)
        self.timing = timing
        self.target = target
        self.kernels: list[KernelSource] = []
        self.constants: frozenset[Var] = frozenset()  # parameters that no region writes
        self.limit = max(s.bytes for s in target.spaces.values() if s.align == 16)
        self.early: set[Var] = set()  # what kernels read before they wait

    def module(self) -> Module:
        views = {p.var: View.whole(p.var) for p in self.function.params if isinstance(p.var.type, TensorType)}
        for p in self.function.params:
            self.names[p.var] = p.name
            self.taken.add(p.name)
            self.taken |= {x.name for d in getattr(p.var.type, "shape", ()) for x in extents_in(d)}
        written = written_params(self.function)
        self.constants = frozenset(p.var for p in self.function.params if p.var not in written)
        self.block(self.function.body, State(views, [], alias=self.roots))
        kernels, fenced = triggered(self.kernels, self.unsure)
        source = module_source(self.function.name, self.target, kernels)
        early = tuple(p.name for p in self.function.params if p.var in self.early)
        return Module(
            self.function.name, self.target.name, tuple(kernels), nested(self.launches, self.repeats),
            tuple(self.workspaces), source, early, fenced,
        )  # fmt: skip

    def ahead(self) -> Ahead:
        """What the next kernel may read before it waits, if it runs block by block."""
        if not self.launches:
            return Ahead(self.constants, tiles=False)
        if self.last is None or self.last[0] == "stream":
            return Ahead(self.constants)
        return Ahead(self.constants, self.last[1])

    # ------------------------------------------------------------------------------------------ regions
    def region(self, s: Region, state: State) -> None:
        known = {v: e for v, e in state.env.items() if not any(True for _ in free_vars(e))}
        if s.count is not None and host_value(substitute(s.count, state.env), self.host_vars) is None:
            s = strided(s, self.target.cores)
        needed = with_places(uses(s.body), state.views)
        bodies = [list(inside) for _, _, inside in state.guards]
        for (cond, _, _), inside in zip(reversed(state.guards), reversed(bodies), strict=True):
            inside[:] = slice_of(inside, needed, state.views)
            needed |= with_places({*uses(tuple(inside)), *free_vars(cond)}, state.views)
        prelude = slice_of(state.outer, needed, state.views)
        needed |= with_places(uses(prelude), state.views)
        self.scalars.check((*prelude, *(x for inside in bodies for x in inside)), s.body)
        matched = match(s) if not state.guards else "it runs under a condition"
        ahead = self.ahead()
        if any(v in needed for v in state.views if state.views[v].base not in self.names):
            matched, ahead = "a condition or a loop chooses a tensor of it", replace(ahead, all_but=None)
        name = self.unique(s.name)
        if (
            isinstance(matched, Product)
            and isinstance(matched.blocks, Const)
            and self.plan_for(matched) is not None
        ):
            plan = self.plan_for(matched)
            assert plan is not None
            self.streamed(s, name, matched, plan, state, prelude, known)
            return
        why = matched if isinstance(matched, str) else "its product does not fit shared memory"
        # What the tiles leave of shared memory goes to loads that run ahead: first see what that is
        trial = guarded(s, state, prelude, bodies, known, 1 << 40, ahead, self.stamps())
        fixed = trial.buffers.bytes - trial.ring_bytes
        room = self.limit - RESERVED - fixed
        half = self.limit // 2 - RESERVED - fixed
        if trial.stage_bytes and half // trial.stage_bytes >= 3:
            room = half  # two blocks share a core, and one computes while the other waits
        kernel = guarded(s, state, prelude, bodies, known, room, ahead, self.stamps())
        if kernel.buffers.bytes > self.limit - RESERVED:
            took, room = kernel.buffers.bytes, self.limit - RESERVED
            why = f"its tiles take {took} bytes of shared memory, and a block has {room}"
            raise refused(s.span, f"region {s.name}", why, "use smaller tiles")
        grid = "1" if s.count is None else expr_text(self.host(s.count, state, s))
        body = [*("    " + x for x in kernel.buffers.lines), *kernel.text.lines]
        self.add(kernel, name, s, body, "", THREADS, kernel.buffers.bytes, why, grid, state)

    def stamps(self) -> str:
        """Where the next launch notes its times, `[launch, CTA, event]`, in a timing build."""
        if not self.timing:
            return ""
        return f"{STAMPS} + {len(self.launches) * STAMPED * EVENTS}"

    def plan_for(self, product: Product) -> Plan | None:
        try:
            return plan_stream(product, self.target)
        except ValueError:
            return None

    def streamed(
        self,
        s: Region,
        name: str,
        product: Product,
        plan: Plan,
        state: State,
        prelude: Block,
        known: dict[Var, Expr],
    ) -> None:
        parts = emit(product, state.views, bindings(known) + prelude)
        kernel = parts.kernel
        # Weights that no kernel writes are copied before this kernel may read what others do
        weights = state.views[product.weights[0].args[0]].base  # type: ignore[index]
        reads = any(isinstance(x, Let) and x.op.name == "read_tensor" for x in product.before)
        early = weights in self.constants and not prelude and not reads
        if early:
            self.early.add(weights)
        wait = [] if early else ["    cute.arch.griddepcontrol_wait()"]
        inner: list[str] = []
        unpack = f"    {', '.join(parts.env)}, = env"
        for fn, args, lines in parts.functions:
            inner += ["@cute.jit", f"def {name}_{fn}({', '.join(args)}):", unpack, *lines, "", ""]
        x_pitch, w_pitch = (state.views[p.args[0]].strides[0] for p in (product.x, product.weights[0]))  # type: ignore[index]
        fields = (
            f"k={product.depth}, x_pitch={expr_text(x_pitch)}, w_pitch={expr_text(w_pitch)}, "
            f"columns={plan.columns}, accumulators={plan.accumulators}, ctas={plan.ctas}, "
            f"warps_n={plan.warps_n}, warps_k={plan.warps_k}, chunk={plan.chunk}, stages={plan.stages}, "
            f"m_tiles={plan.m_tiles}, weight_row={name}_weight_row, "
            f"finish={name}_finish"
        )
        env = f"({', '.join(parts.env)},)"
        run = f"    stream.Stream({fields}).run({parts.x}, {parts.w}, Int32({parts.rows}), {env}"
        run += f", {self.stamps()})" if self.timing else ")"
        self.add(
            kernel,
            name,
            s,
            [*wait, *kernel.text.lines, run],
            "\n".join(inner),
            plan.threads,
            plan.shared_bytes,
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
        parameters: list[tuple[str, str]] = []
        arguments: list[tuple[str, str]] = []
        for base, text in kernel.pointers.items():
            parameters.append((text, f"pointer:{base.type.dtype.name}"))  # type: ignore[union-attr]
            arguments.append(("pointer", self.names[base]))
        for extent, text in kernel.extents.items():
            parameters.append((text, "Int32"))
            arguments.append(("extent", extent))
        for var, text in kernel.captured.items():
            kind = var.dtype
            parameters.append((text, "Float32" if kind.is_float else "Int32"))
            arguments.append(
                ("scalar", expr_text(self.host(var, state, s)) if var not in self.names else self.names[var])
            )
        if self.timing:
            parameters.append((STAMPS, f"pointer:{INT64.name}"))
            arguments.append(("pointer", STAMPS))
        self.early |= kernel.early & self.constants
        sure = how == "stream" or s.count is None or at_least_one(self.host(s.count, state, s))
        if not sure:
            self.unsure.add(name)
        self.last = (how, frozenset(kernel.written)) if sure and not kernel.chosen else None
        text = head + kernel_text(name, s, parameters, body, threads, how)
        self.kernels.append(
            KernelSource(name, s.name, s.span.line, text, threads, shared, how, tuple(parameters))
        )
        self.launches.append(Launch(name, grid, tuple(arguments)))


def bindings(known: dict[Var, Expr]) -> Block:
    """Scalars that the host knows as constants."""
    return tuple(Bind(v, e) for v, e in known.items())


def guarded(
    s: Region,
    state: State,
    prelude: Block,
    under: list[list[Stmt]],
    known: dict[Var, Expr],
    room: int,
    ahead: Ahead,
    stamps: str = "",
) -> Kernel:
    """The region block by block, under the conditions around it and behind the statements ``under`` each."""
    body: Block = s.body
    for (cond, wanted, _), inside in zip(reversed(state.guards), reversed(under), strict=True):
        both = (*inside, *body)
        body = (If(cond, both if wanted else (), () if wanted else both, (), s.span),)
    needed = with_places(uses((*prelude, *body)), state.views)
    bound = bindings({v: e for v, e in known.items() if v in needed})
    region = replace(s, body=body)
    return blockwise(region, state, bound + prelude, room, ahead, stamps)


def blockwise(
    region: Region, state: State, prelude: Block, room: int, ahead: Ahead, stamps: str = ""
) -> Kernel:
    """A kernel that runs the region block by block, one CTA each."""
    kernel = Kernel(state.views, HANDLERS, room, ahead, stamps, state.alias)
    if region.block is not None:
        kernel.names[region.block] = "cta"
        kernel.text.taken.add("cta")
    kernel.run(prelude, region.body)
    return kernel


# -------------------------------------------------------------------------------------------------- text
def kernel_text(
    name: str, s: Region, parameters: list[tuple[str, str]], body: list[str], threads: int, how: str
) -> str:
    typed = [f"{n}: {'cute.Pointer' if k.startswith('pointer') else k}" for n, k in parameters]
    head = [
        "@cute.kernel",
        f"def {name}({', '.join(typed)}):",
        f'    """Line {s.span.line}: {how if how == "stream" else "block by block, since " + how}."""',
    ]
    if how != "stream":
        head += [
            "    tid, _, _ = cute.arch.thread_idx()",
            "    cta, _, _ = cute.arch.block_idx()",
            "    lane = cute.arch.lane_idx()",
            "    warp = cute.arch.make_warp_uniform(tid // 32)",
            "    smem = utils.SmemAllocator()",
            f"    {BEFORE}",
        ]
    names = ", ".join(n for n, _ in parameters)
    launcher = [
        "",
        "",
        "@cute.jit",
        f"def launch_{name}({', '.join(typed)}):",
        f"    {name}({names}).launch(grid=[1, 1, 1], block=[{threads}, 1, 1], use_pdl=True)",
    ]
    return "\n".join([*head, *body, *launcher]) + "\n"


def triggered(kernels: list[KernelSource], unsure: set[str]) -> tuple[list[KernelSource], bool]:
    """The kernels with their triggers, and whether one that is sure to run triggers after its wait.

    A streamed product should be resident early, to ask for its weights; a kernel that runs block by block
    gains more from knowing that all but the one before it is complete.
    """
    out = []
    fenced = False
    for k, following in zip(kernels, (*kernels[1:], None), strict=True):
        late = k.how != "stream" and following is not None and following.how != "stream"
        fenced = fenced or (late and k.name not in unsure)
        out.append(k if k.how == "stream" else replace(k, text=placed(k.text, late)))
    return out, fenced


def module_source(name: str, target: Target, kernels: list[KernelSource]) -> str:
    head = f'''"""{name} for {target.name} ({target.arch}), written by the compiler: one kernel per region."""

import cutlass
import cutlass.cute as cute
import cutlass.utils as utils
from cutlass import BFloat16, Boolean, Float16, Float32, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32

from backends.cute.device import block, stream
'''
    return "\n\n".join([head, *(k.text for k in kernels)])


def lower(function: Function, target: Target, timing: bool = False) -> Module:
    """The kernels and launches of a function; with ``timing`` they note in a further output when they ran."""
    function = unrolled(function)
    kept: frozenset[int] = frozenset()
    while True:
        try:
            return Lowering(function, target, timing, kept).module()
        except Stale as stale:
            kept |= {stale.let}
