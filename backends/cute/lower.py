"""A function as kernels and a launch list: what the host does is a list, what depends on data is in kernels.

Scalars that the orchestration reads from tensors are computed again at the start of each kernel that needs
them: nothing waits for the host.  A condition on such scalars guards the kernel's body.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pypto_models.ir.expr import Const, Expr, Var, free_vars, substitute
from pypto_models.ir.graph import expr_text
from pypto_models.ir.nodes import Bind, Block, For, Function, If, Let, Region, Return, Scope, Stmt
from pypto_models.ir.rewrite import uses
from pypto_models.ir.types import INT64, TensorType
from pypto_models.language.entry import written_params
from pypto_models.target import Target

from . import casts as casts  # registers its handlers
from . import reductions as reductions
from .handlers import HANDLERS
from .kernel import THREADS, Kernel
from .matching import Product, match
from .order import BEFORE, Ahead, placed
from .rules import refused
from .streaming import RESERVED, Plan, emit
from .streaming import plan as plan_stream
from .tensors import View
from .timing import EVENTS, STAMPED, STAMPS


@dataclass(frozen=True)
class Launch:
    """One kernel call.  ``grid`` is an expression over run-time extents; ``arguments`` in kernel order."""

    kernel: str
    grid: str
    arguments: tuple[tuple[str, str], ...]  # ("pointer" | "extent" | "scalar", name or expression)


@dataclass(frozen=True)
class KernelSource:
    """One kernel: its text, threads, bytes of shared memory, and how it was lowered."""

    name: str
    region: str
    line: int
    text: str
    threads: int
    shared_bytes: int
    how: str  # "stream", or why it runs block by block
    parameters: tuple[tuple[str, str], ...]  # (name, kind)


@dataclass(frozen=True)
class Workspace:
    """A tensor that the program makes: ``shape`` in run-time extents."""

    name: str
    dtype: str
    shape: tuple[str, ...]


@dataclass(frozen=True)
class Module:
    """A lowered function."""

    name: str
    target: str
    kernels: tuple[KernelSource, ...]
    launches: tuple[Launch, ...]
    workspaces: tuple[Workspace, ...]
    source: str
    early: tuple[str, ...] = ()  # parameters that a kernel reads before it waits for those before it
    fenced: bool = True  # a kernel starts only when all that ran before the program is complete


@dataclass
class _State:
    views: dict[Var, View]
    prelude: list[Stmt]  # scalar statements so far, in order
    env: dict[Var, Expr] = field(default_factory=dict)  # scalars known to the host
    guards: list[tuple[Expr, bool]] = field(default_factory=list)


class Lowering:
    def __init__(self, function: Function, target: Target, timing: bool = False) -> None:
        self.function = function
        self.timing = timing
        self.target = target
        self.kernels: list[KernelSource] = []
        self.launches: list[Launch] = []
        self.workspaces: list[Workspace] = []
        self.names: dict[Var, str] = {}
        self.taken: set[str] = set()
        self.constants: frozenset[Var] = frozenset()  # parameters that no region writes
        self.limit = max(s.bytes for s in target.spaces.values() if s.align == 16)
        self.last: tuple[str, frozenset[Var]] | None = None  # how the last launch runs, and what it writes
        self.early: set[Var] = set()  # what kernels read before they wait

    def module(self) -> Module:
        views = {p.var: View.whole(p.var) for p in self.function.params if isinstance(p.var.type, TensorType)}
        for p in self.function.params:
            self.names[p.var] = p.name
            self.taken.add(p.name)
        written = written_params(self.function)
        self.constants = frozenset(p.var for p in self.function.params if p.var not in written)
        self.block(self.function.body, _State(views, []))
        kernels, fenced = triggered(self.kernels)
        source = module_source(self.function.name, self.target, kernels)
        early = tuple(p.name for p in self.function.params if p.var in self.early)
        return Module(
            self.function.name, self.target.name, tuple(kernels), tuple(self.launches),
            tuple(self.workspaces), source, early, fenced,
        )  # fmt: skip

    def ahead(self) -> Ahead:
        """What the next kernel may read before it waits, if it runs block by block."""
        if not self.launches:
            return Ahead(self.constants, tiles=False)
        if self.last is None or self.last[0] == "stream":
            return Ahead(self.constants)
        return Ahead(self.constants, self.last[1])

    def unique(self, wanted: str) -> str:
        name, n = wanted, 1
        while name in self.taken:
            n += 1
            name = f"{wanted}_{n}"
        self.taken.add(name)
        return name

    # ------------------------------------------------------------------------------------------ walk
    def block(self, body: Block, state: _State) -> None:
        for s in body:
            self.stmt(s, state)

    def stmt(self, s: Stmt, state: _State) -> None:
        if isinstance(s, Region):
            self.region(s, state)
        elif isinstance(s, Scope):
            self.block(s.body, state)
        elif isinstance(s, Let):
            self.let(s, state)
        elif isinstance(s, Bind):
            state.env[s.var] = substitute(s.value, state.env)
            state.prelude.append(s)
        elif isinstance(s, For):
            self.loop(s, state)
        elif isinstance(s, If):
            self.branch(s, state)
        elif isinstance(s, Return) and s.values:
            why, fix = "a program of kernels returns nothing", "write the result into an Out tensor"
            raise refused(s.span, "return", why, fix)

    def let(self, s: Let, state: _State) -> None:
        if s.op.name == "create":
            t = s.result.type
            assert isinstance(t, TensorType)
            name = self.unique(s.result.name)
            base = Var(s.result.name, t)  # of its own for every trip of an unrolled loop
            self.names[base] = name
            shape = tuple(
                str(d) if isinstance(d, int) else expr_text(self.host(d, state, s)) for d in t.shape
            )
            self.workspaces.append(Workspace(name, t.dtype.torch_name or "", shape))
            state.views[s.result] = View.whole(base)
            if s.arg("init_value") is not None:
                why, fix = "init_value is not lowered", "fill the tensor in a region"
                raise refused(s.span, "create_tensor", why, fix)
        elif s.op.name in ("view", "view_reshape"):
            k = Kernel(state.views, HANDLERS)
            k.let(s)
            state.views[s.result] = k.views[s.result]
        elif s.op.name == "read_tensor":
            state.prelude.append(s)
        elif s.op.name in ("task_dummy", "array_create", "array_set", "array_get"):
            return  # kernels run in program order
        else:
            raise refused(s.span, s.op.name, "it is outside of a region", "move it into a region")

    def host(self, x: Expr, state: _State, s: Stmt) -> Expr:
        """An expression of run-time extents only."""
        out = substitute(x, state.env)
        unknown = [v for v in free_vars(out) if v not in self.loop_vars]
        if unknown:
            why = f"it depends on {unknown[0].name}, which is device data"
            fix = "launch for the largest extent and test inside of the region"
            raise refused(s.span, "the launch", why, fix)
        return out

    loop_vars: frozenset[Var] = frozenset()

    def loop(self, s: For, state: _State) -> None:
        if not has_region(s.body):
            state.prelude.append(s)
            return
        bounds = [self.host(x, state, s) for x in (s.start, s.stop, s.step)]
        if not all(isinstance(b, Const) for b in bounds):
            why = "it launches regions a run-time number of times"
            raise refused(s.span, "the loop", why, "make the loop variable the block of a pl.spmd")
        start, stop, step = (int(b.value) for b in bounds)  # type: ignore[attr-defined]
        carried: dict[Var, Expr] = {c.param: c.init for c in s.carried}
        for trip in range(start, stop, step):
            state.env[s.var] = Const(trip)
            self.bind(carried, state)
            self.block(s.body, state)
            carried = {c.param: c.next for c in s.carried}
        self.bind({c.result: carried[c.param] for c in s.carried}, state)

    def bind(self, values: dict[Var, Expr], state: _State) -> None:
        """Names for tensors and scalars that the host knows, all at once."""
        views = {v: state.views[x] for v, x in values.items() if isinstance(x, Var) and x in state.views}
        env = {v: substitute(x, state.env) for v, x in values.items() if v not in views}
        state.views.update(views)
        state.env.update(env)

    def branch(self, s: If, state: _State) -> None:
        if not has_region((s,)):
            state.prelude.append(s)
            for x in walk((s,)):
                if isinstance(x, Let) and isinstance(x.results[0].type if x.results else None, TensorType):
                    self.let(x, state)
        else:
            for body, wanted in ((s.then, True), (s.orelse, False)):
                state.guards.append((s.cond, wanted))
                self.block(body, state)
                state.guards.pop()
        for m in s.merged:
            if isinstance(m.result.type, TensorType):
                a, b = state.views[m.then], state.views[m.orelse]  # type: ignore[index]
                if a != b:
                    why = "a condition chooses one of two tensors under it"
                    fix = "write to one tensor, or move the choice into its indices"
                    raise refused(s.span, f"the name {m.result.name}", why, fix)
                state.views[m.result] = a

    # ------------------------------------------------------------------------------------------ regions
    def region(self, s: Region, state: _State) -> None:
        known = {v: e for v, e in state.env.items() if not any(True for _ in free_vars(e))}
        needed = set(uses(s.body)) | {v for c, _ in state.guards for v in free_vars(c)}
        prelude = slice_of(state.prelude, set(needed))
        matched = match(s) if not state.guards else "it runs under a condition"
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
        trial = guarded(s, state, prelude, known, 1 << 40, self.ahead(), self.stamps())
        fixed = trial.buffers.bytes - trial.ring_bytes
        room = self.limit - RESERVED - fixed
        half = self.limit // 2 - RESERVED - fixed
        if trial.stage_bytes and half // trial.stage_bytes >= 3:
            room = half  # two blocks share a core, and one computes while the other waits
        kernel = guarded(s, state, prelude, known, room, self.ahead(), self.stamps())
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
        state: _State,
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
            f"units={plan.units}, accumulators={plan.accumulators}, ctas={plan.ctas}, "
            f"warps_n={plan.warps_n}, warps_k={plan.warps_k}, chunk={plan.chunk}, stages={plan.stages}, "
            f"m_tiles={plan.m_tiles}, unit_row={name}_unit_row, finish={name}_finish"
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
        state: _State,
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
        self.last = (how, frozenset(kernel.written))
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
    state: _State,
    prelude: Block,
    known: dict[Var, Expr],
    room: int,
    ahead: Ahead,
    stamps: str = "",
) -> Kernel:
    """The region block by block, under the conditions around it."""
    needed = (
        set(uses(s.body))
        | {v for st in prelude for v in uses((st,))}
        | {v for c, _ in state.guards for v in free_vars(c)}
    )
    bound = bindings({v: e for v, e in known.items() if v in needed})
    if not state.guards:
        return blockwise(s, state.views, bound + prelude, room, ahead, stamps)
    body: Block = s.body
    for cond, wanted in reversed(state.guards):
        body = (If(cond, body if wanted else (), () if wanted else body, (), s.span),)
    region = Region(s.kind, s.block, s.count, body, s.options, None, (), s.unit, s.span)
    return blockwise(region, state.views, bound + prelude, room, ahead, stamps)


def blockwise(
    region: Region, views: dict[Var, View], prelude: Block, room: int, ahead: Ahead, stamps: str = ""
) -> Kernel:
    """A kernel that runs the region block by block, one CTA each."""
    kernel = Kernel(views, HANDLERS, room, ahead, stamps)
    if region.block is not None:
        kernel.names[region.block] = "cta"
        kernel.text.taken.add("cta")
    kernel.run(prelude, region.body)
    return kernel


def has_region(body: Block) -> bool:
    return any(isinstance(s, Region) for s in walk(body))


def walk(body: Block) -> Iterator[Stmt]:
    for s in body:
        yield s
        if isinstance(s, For | Scope | Region):
            yield from walk(s.body)
        elif isinstance(s, If):
            yield from walk(s.then)
            yield from walk(s.orelse)


def slice_of(statements: list[Stmt], needed: set[Expr]) -> Block:
    """The statements that ``needed`` depends on, in order."""
    out: list[Stmt] = []
    wanted = set(needed)
    for s in reversed(statements):
        if any(v in wanted for v in results(s)):
            out.append(s)
            wanted |= set(uses((s,)))
            if isinstance(s, Let):
                wanted |= {
                    v
                    for a in s.args
                    if isinstance(a, tuple)
                    for x in a
                    if isinstance(x, Expr)
                    for v in free_vars(x)
                }
    return tuple(reversed(out))


def results(s: Stmt) -> list[Var]:
    if isinstance(s, Let):
        return list(s.results)
    if isinstance(s, Bind):
        return [s.var]
    if isinstance(s, For):
        return [c.result for c in s.carried]
    if isinstance(s, If):
        return [m.result for m in s.merged]
    return []


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


def triggered(kernels: list[KernelSource]) -> tuple[list[KernelSource], bool]:
    """The kernels with their triggers, and whether one of them triggers after its wait.

    A streamed product should be resident early, to ask for its weights; a kernel that runs block by block
    gains more from knowing that all but the one before it is complete.
    """
    out = []
    fenced = False
    for k, following in zip(kernels, (*kernels[1:], None), strict=True):
        late = k.how != "stream" and following is not None and following.how != "stream"
        fenced = fenced or late
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
    return Lowering(function, target, timing).module()
