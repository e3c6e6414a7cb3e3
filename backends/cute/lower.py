"""A function as kernels and a launch list: what the host does is a list, what depends on data is in kernels.

Scalars that the orchestration reads from tensors are computed again at the start of each kernel that needs
them: nothing waits for the host.  A condition on such scalars guards the kernel's body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pypto_models.ir.expr import Const, Expr, Var, free_vars, substitute
from pypto_models.ir.graph import expr_text
from pypto_models.ir.nodes import Bind, Block, For, Function, If, Let, Region, Return, Scope, Stmt
from pypto_models.ir.rewrite import Rewriter, defs, uses, walk
from pypto_models.ir.types import TensorType
from pypto_models.language.entry import written_params
from pypto_models.passes.task_graph import build as build_graph
from pypto_models.schedule import Override, RegionDomain, Schedule, region_domains
from pypto_models.schedule.overrides import NONE, check_names
from pypto_models.target import Target

from . import reductions as reductions  # registers its handlers
from .handlers import HANDLERS
from .kernel import THREADS, Kernel
from .matching import Product, match
from .rules import refused
from .source import kernel_text, module_source
from .streaming import arguments, emit, in_words, schedule_of
from .tensors import View

RESERVED = 1024  # bytes of shared memory that the system keeps per block


@dataclass(frozen=True)
class Launch:
    """One kernel call.  ``grid`` is an expression over run-time extents; ``arguments`` in kernel order."""

    kernel: str
    grid: str
    arguments: tuple[tuple[str, str], ...]  # ("pointer" | "extent" | "scalar", name or expression)


@dataclass(frozen=True)
class KernelSource:
    """One kernel: its text, threads, bytes of shared memory, and how it was lowered.

    ``parameters`` are (name, kind); a stream has a ``schedule``.
    """

    name: str
    region: str
    line: int
    text: str
    threads: int
    shared_bytes: int
    how: str  # "stream", or why it runs block by block
    parameters: tuple[tuple[str, str], ...]
    schedule: Schedule | None = None


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


@dataclass
class _State:
    views: dict[Var, View]
    prelude: list[Stmt]  # scalar statements so far, in order
    env: dict[Var, Expr] = field(default_factory=dict)  # scalars known to the host
    guards: list[tuple[Expr, bool]] = field(default_factory=list)
    written: dict[Var, int] = field(default_factory=dict)  # by a region: how long the prelude was then

    @property
    def known(self) -> dict[Var, Expr]:
        """Scalars without device data."""
        return {v: e for v, e in self.env.items() if not any(True for _ in free_vars(e))}

    def remember(self, s: Stmt) -> None:
        """A scalar statement, as it is in this trip of the loops around it."""
        new = Rewriter(self.known).stmt(s)
        self.prelude += new if isinstance(new, tuple) else (new,)

    def base(self, x: object) -> Var | None:
        """The tensor behind a view."""
        return self.views[x].base if isinstance(x, Var) and x in self.views else None

    def slice(self, needed: set[Expr]) -> Block:
        """The scalar statements that ``needed`` depends on, in order.

        Raises UserError if one of them reads what a region has written since.
        """
        out: list[Stmt] = []
        wanted = set(needed)
        for i, s in reversed(list(enumerate(self.prelude))):
            if wanted.isdisjoint(defs(s)):
                continue
            for read in walk((s,)):
                if not isinstance(read, Let) or read.op.name != "read_tensor":
                    continue
                tensor = self.base(read.args[0])
                if tensor is not None and self.written.get(tensor, -1) > i:
                    name, fix = f"the scalar {defs(s)[0].name}", "read it again after the region"
                    why = f"it is read from {tensor.name} before a region that writes that, and used after it"
                    raise refused(read.span, name, why, fix)
            out.append(s)
            wanted.difference_update(defs(s))
            wanted |= set(uses((s,)))
        return tuple(reversed(out))


class Lowering:
    def __init__(
        self,
        function: Function,
        target: Target,
        domains: Sequence[RegionDomain],
        given: Mapping[str, Override],
    ) -> None:
        self.function = function
        self.target = target
        self.domains = {id(d.task.region): d for d in domains}
        self.given = given
        check_names(given, (d.name for d in domains))
        self.kernels: list[KernelSource] = []
        self.launches: list[Launch] = []
        self.workspaces: list[Workspace] = []
        self.names: dict[Var, str] = {}
        self.taken: set[str] = set()
        self.constants: frozenset[Var] = frozenset()  # parameters that no region writes
        self.limit = max(s.bytes for s in target.spaces.values() if s.align == 16)

    def module(self) -> Module:
        views = {p.var: View.whole(p.var) for p in self.function.params if isinstance(p.var.type, TensorType)}
        for p in self.function.params:
            self.names[p.var] = p.name
            self.taken.add(p.name)
        written = written_params(self.function)
        self.constants = frozenset(p.var for p in self.function.params if p.var not in written)
        self.block(self.function.body, _State(views, []))
        source = module_source(self.function.name, self.target, self.kernels)
        return Module(
            self.function.name, self.target.name, tuple(self.kernels), tuple(self.launches),
            tuple(self.workspaces), source,
        )  # fmt: skip

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
            state.remember(s)
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
            state.remember(s)
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
            state.remember(s)
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
            state.remember(s)
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
        known = state.known
        prelude = state.slice({*uses(s.body), *(v for c, _ in state.guards for v in free_vars(c))})
        matched = match(s) if not state.guards else "it runs under a condition"
        name = self.unique(s.name)
        domain = self.domains[id(s)]
        written = {state.base(a.tensor) for a in domain.task.writes} - {None}
        state.written |= {v: len(state.prelude) for v in written if v is not None}
        given = self.given.get(domain.name, NONE)
        why = matched if isinstance(matched, str) else ""
        if isinstance(matched, Product):
            schedule = schedule_of(domain, self.target, given)
            if isinstance(schedule, Schedule):
                self.streamed(s, name, matched, schedule, state, prelude, known)
                return
            why = schedule
        if given.values:
            hint = "leave the region out of schedule:"
            raise given.error(f"{domain.name} runs block by block on the backend cute: {why}", hint)
        # What the tiles leave of shared memory goes to loads that run ahead: first see what that is
        trial = guarded(s, state, prelude, known, 1 << 40)
        fixed = trial.buffers.bytes - trial.ring_bytes
        room = self.limit - RESERVED - fixed
        half = self.limit // 2 - RESERVED - fixed
        if trial.stage_bytes and half // trial.stage_bytes >= 3:
            room = half  # two blocks share a core, and one computes while the other waits
        kernel = guarded(s, state, prelude, known, room)
        if kernel.buffers.bytes > self.limit - RESERVED:
            took, room = kernel.buffers.bytes, self.limit - RESERVED
            why = f"its tiles take {took} bytes of shared memory, and a block has {room}"
            raise refused(s.span, f"region {s.name}", why, "use smaller tiles")
        grid = "1" if s.count is None else expr_text(self.host(s.count, state, s))
        body = [*("    " + x for x in kernel.buffers.lines), *kernel.text.lines]
        self.add(kernel, name, s, body, "", THREADS, kernel.buffers.bytes, why, grid, state)

    def streamed(
        self,
        s: Region,
        name: str,
        product: Product,
        schedule: Schedule,
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
        wait = [] if early else ["    cute.arch.griddepcontrol_wait()"]
        inner: list[str] = []
        unpack = f"    {', '.join(parts.env)}, = env"
        for fn, args, lines in parts.functions:
            inner += ["@cute.jit", f"def {name}_{fn}({', '.join(args)}):", unpack, *lines, "", ""]
        x_pitch, w_pitch = (state.views[p.args[0]].strides[0] for p in (product.x, product.weights[0]))  # type: ignore[index]
        fields = arguments(product, schedule, expr_text(x_pitch), expr_text(w_pitch), name)
        env = f"({', '.join(parts.env)},)"
        run = f"    stream.Stream({fields}).run({parts.x}, {parts.w}, Int32({parts.rows}), {env})"
        self.add(
            kernel,
            name,
            s,
            [*wait, *kernel.text.lines, run],
            "\n".join(inner),
            schedule.threads,
            schedule.shared_bytes,
            "stream",
            str(schedule.ctas),
            state,
            schedule,
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
        schedule: Schedule | None = None,
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
        words = in_words(schedule) if schedule is not None else []
        text = head + kernel_text(name, s, parameters, body, threads, how, words)
        self.kernels.append(
            KernelSource(name, s.name, s.span.line, text, threads, shared, how, tuple(parameters), schedule)
        )
        self.launches.append(Launch(name, grid, tuple(arguments)))


def bindings(known: dict[Var, Expr]) -> Block:
    """Scalars that the host knows as constants."""
    return tuple(Bind(v, e) for v, e in known.items())


def guarded(s: Region, state: _State, prelude: Block, known: dict[Var, Expr], room: int) -> Kernel:
    """The region block by block, under the conditions around it."""
    needed = (
        set(uses(s.body))
        | {v for st in prelude for v in uses((st,))}
        | {v for c, _ in state.guards for v in free_vars(c)}
    )
    bound = bindings({v: e for v, e in known.items() if v in needed})
    if not state.guards:
        return blockwise(s, state.views, bound + prelude, room)
    body: Block = s.body
    for cond, wanted in reversed(state.guards):
        body = (If(cond, body if wanted else (), () if wanted else body, (), s.span),)
    region = Region(s.kind, s.block, s.count, body, s.options, None, (), s.unit, s.span)
    return blockwise(region, state.views, bound + prelude, room)


def blockwise(region: Region, views: dict[Var, View], prelude: Block, room: int) -> Kernel:
    """A kernel that runs the region block by block, one CTA each."""
    kernel = Kernel(views, HANDLERS, room)
    if region.block is not None:
        kernel.names[region.block] = "cta"
        kernel.text.taken.add("cta")
    kernel.run(prelude, region.body)
    return kernel


def has_region(body: Block) -> bool:
    return any(isinstance(s, Region) for s in walk(body))


def lower(
    function: Function,
    target: Target,
    domains: Sequence[RegionDomain] | None = None,
    given: Mapping[str, Override] | None = None,
) -> Module:
    """The kernels and launches of a function.

    ``domains`` are its regions' as :class:`pypto_models.backend.Compiled` has them, found here if they are
    missing; ``given`` fixes parts of the schedules by region name.

    Raises UserError for an op or a construct without a lowering, and for an override that cannot be.
    """
    if domains is None:
        domains = region_domains(build_graph(function, target))
    return Lowering(function, target, domains, given or {}).module()
