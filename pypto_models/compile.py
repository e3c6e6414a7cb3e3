"""The compile driver: language -> IR -> passes -> task graph and memory plan -> backend.

program = compile(kernel, *example_args, platform="a2a3sim")
program(*args)
"""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .backend import Backend, Bundles, Compiled, Executable, OnDevice, Progress, Saved
from .cache import Key, MemoryStore, NoStableText, make_key, tool_versions
from .errors import NOWHERE, Diag, UserError, user_error
from .ir.nodes import Function, Region
from .ir.printer import format_function
from .ir.rewrite import walk
from .ir.types import TensorType
from .ir.verify import verify
from .language import Kernel, elaborate
from .language.entry import written_params
from .passes import PIPELINE, residency
from .passes.grid import certain_races
from .passes.plan_memory import MemoryPlan, plan
from .passes.task_graph import build
from .schedule import Override
from .schedule.domain import describe, region_domains
from .schedule.overrides import load
from .target import Target, known_targets, load_target

DEFAULT_PLATFORM = "a2a3sim"


@dataclass(frozen=True)
class ParamInfo:
    """A parameter as callers see it: ``kind`` tensor or scalar, ``direction`` in, out or inout."""

    name: str
    kind: str
    direction: str


@dataclass(frozen=True)
class Program:
    """A compiled kernel, ready to run: ``program(*args)`` in parameter order."""

    compiled: Compiled
    executable: Executable

    @property
    def params(self) -> tuple[ParamInfo, ...]:
        return tuple(
            ParamInfo(p.name, "tensor" if isinstance(p.var.type, TensorType) else "scalar", p.direction.value)
            for p in self.compiled.function.params
        )

    @property
    def written(self) -> frozenset[str]:
        """Names of the parameters that the kernel may change."""
        return frozenset(v.name for v in written_params(self.compiled.function))

    @property
    def device(self) -> str:
        """Where the tensors of a call must be, as torch names it."""
        return self.executable.device if isinstance(self.executable, OnDevice) else "cpu"

    def cannot_run(self) -> str | None:
        """Why it cannot run on this machine, such as for want of a GPU; None if it can."""
        return self.executable.cannot_run() if isinstance(self.executable, OnDevice) else None

    def save(self, folder: str | Path) -> None:
        """Write it as a bundle, which ``compile(..., backend_options={"bundle": folder})`` loads.

        Raises UserError for a program of a backend that makes no bundles.
        """
        if not isinstance(self.executable, Saved):
            raise user_error(
                Diag.ARGUMENT, NOWHERE, name=str(folder),
                why=f"{self.compiled.name} cannot be kept as a bundle",
                fix="compile it for a GPU, such as h200",
            )  # fmt: skip
        self.executable.save(Path(folder))

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.compiled.warnings

    def __call__(self, *args: Any, progress: Progress | None = None) -> Any:
        names = [p.name for p in self.compiled.function.params]
        if len(args) != len(names):
            raise user_error(
                Diag.BAD_CALL, self.compiled.function.span, op=self.compiled.name,
                why=f"{len(args)} arguments for {len(names)} parameters",
                signature=f"{self.compiled.name}({', '.join(names)})",
            )  # fmt: skip
        return self.executable(dict(zip(names, args, strict=True)), progress)


PROGRAMS: MemoryStore[Program] = MemoryStore()
"""What this process has compiled: a program is built once, however many layers or threads ask for it."""


def compile(
    kernel: Kernel,
    *args: Any,
    platform: str | None = None,
    target: str | None = None,
    backend: str | None = None,
    constants: Mapping[str, Any] | None = None,
    dump_passes: str | Path | None = None,
    check: bool = False,
    backend_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    schedules: Mapping[str, Override] | None = None,
) -> Program:
    """Compile a ``@pl.jit`` kernel for a platform.

    ``args`` are example arguments (tensors, numbers) for shapes that the annotations leave open.
    ``platform`` is a target and a backend, such as ``a2a3sim`` (the default) or ``h200``; ``target="gb10",
    backend="cute"`` is another way to say it.  ``constants`` replaces module constants by name before
    parsing.  ``dump_passes`` is a folder for the printed IR after every pass.  ``check`` runs the verifier
    between the passes.  ``backend_options`` are the backend's own: the simulator takes ``schedule="random"``
    and ``seed``.  ``progress`` is told of every kernel that a toolchain has compiled.
    ``schedules`` fixes parts of the schedules on a GPU, by region; by default what the tiling file beside the
    kernel's file says (:func:`tiling_name`).  What names no region of the kernel is left out: one file serves
    several kernels, and ``pypto-models check`` finds what no kernel has.

    A kernel whose IR was compiled before, for the same target, backend and options, is not compiled again:
    see :mod:`.cache`.

    Raises UserError with the place and the fix for mistakes in the kernel or in the arguments.
    """
    started = time.perf_counter()
    on, by = _asked(platform, target, backend)
    lowered = elaborate(kernel, args, dict(constants or {}))
    given = _overrides(kernel, on, by) if schedules is None else schedules
    program = _cached(lowered.function, on, by, backend_options or {}, check, progress, given)
    if dump_passes is not None:
        dump(program.compiled, Path(dump_passes))
    seconds = time.perf_counter() - started
    warnings = (*lowered.warnings, *program.warnings)
    return replace(program, compiled=replace(program.compiled, warnings=warnings, seconds=seconds))


def compile_function(
    function: Function, platform: str = DEFAULT_PLATFORM, backend_options: Mapping[str, Any] | None = None
) -> Program:
    """As :func:`compile`, for the IR of a kernel as the front end gives it (or a rewrite of that)."""
    target, backend = resolve_platform(platform)
    return _cached(function, target, backend, backend_options or {}, check=False)


def tiling_name(target: Target, backend: Backend | None = None) -> str:
    """How the tiling file of a target is called for a backend: ``tiling/<name>.yaml`` beside a kernel's file.

    The target's own name for the backend that its bare name means, and for the simulator, which shows what
    that one does.  Schedules chosen for one backend say nothing about another: ``h200.triton``.
    """
    if backend is None or not backend.native or backend is default_backend(target):
        return target.name
    return f"{target.name}.{backend.name}"


def schedule_overrides(path: Path, target: Target, backend: Backend | None = None) -> dict[str, Override]:
    """What the tiling file of a target and a backend, beside a kernel file, fixes of the schedules on a GPU.

    Raises a user error for a mistake in that file.
    """
    if target.gpu is None:
        return {}
    return load(path.parent / "tiling" / f"{tiling_name(target, backend)}.yaml")


def _overrides(kernel: Kernel, target: Target, backend: Backend | None) -> dict[str, Override]:
    path = Path(kernel.file)
    return schedule_overrides(path, target, backend) if path.is_file() else {}  # none of one from a string


def _of_program(given: Mapping[str, Override], function: Function) -> dict[str, Override]:
    """Those that name a region of the function."""
    names = {s.name for s in walk(function.body) if isinstance(s, Region)}
    return {name: given[name] for name in given if name in names}


def program_key(
    function: Function,
    target: Target,
    backend: Backend,
    options: Mapping[str, Any],
    check: bool = False,
    given: Mapping[str, Override] | None = None,
) -> Key:
    """What names the program of a front-end function: see :mod:`.cache`.

    Raises :class:`~.cache.NoStableText` where something in it cannot be told from something else.
    """
    return make_key(
        function=function, target=target, backend=backend.name, options=options, check=check,
        tools=tool_versions(backend),
        schedules={name: o.values for name, o in _of_program(given or {}, function).items()},
    )  # fmt: skip


def _cached(
    function: Function,
    target: Target,
    backend: Backend,
    options: Mapping[str, Any],
    check: bool,
    progress: Progress | None = None,
    given: Mapping[str, Override] | None = None,
) -> Program:
    def build(*warnings: str) -> Program:
        compiled = lower_function(function, target, check, given)
        unplanned = () if compiled.plan.checked or backend.native else (compiled.plan.note,)
        compiled = replace(compiled, warnings=(*unplanned, *compiled.warnings, *warnings))
        if isinstance(backend, Bundles):
            return Program(compiled, backend.bundle(compiled, progress, **options))
        return Program(compiled, backend.build(compiled, **options))

    try:
        key = program_key(function, target, backend, options, check, given)
    except NoStableText as error:
        return build(f"compiled without the cache: {error}")
    return PROGRAMS.get_or_build(key, build)


def with_function(program: Program, function: Function, platform: str = DEFAULT_PLATFORM) -> Program:
    """``program`` with another function, as the front end gives it, in place of its own.

    The passes run as for any kernel, so that regions with a split run split.  No budget or hazard is checked:
    a fault is for a comparison to find.  The memory plan stays that of the original.
    """
    target, backend = resolve_platform(platform)
    stages = tuple(run_passes(function, target))
    final = stages[-1][1]
    compiled = replace(program.compiled, function=final, graph=build(final, target), stages=stages)
    return Program(compiled, backend.build(compiled))


def lower_for(
    kernel: Kernel,
    args: tuple[Any, ...],
    target: Target,
    constants: Mapping[str, Any] | None = None,
    check: bool = False,
    schedules: Mapping[str, Override] | None = None,
    backend: Backend | None = None,
) -> Compiled:
    """Everything up to the backend: the function after all passes, its task graph and its memory plan.

    ``schedules`` as for :func:`compile`; ``backend`` says which tiling file holds, by default the target's.
    """
    started = time.perf_counter()
    lowered = elaborate(kernel, args, dict(constants or {}))
    given = _overrides(kernel, target, backend) if schedules is None else schedules
    compiled = lower_function(lowered.function, target, check, given)
    seconds = time.perf_counter() - started
    return replace(compiled, warnings=(*lowered.warnings, *compiled.warnings), seconds=seconds)


def lower_function(
    function: Function, target: Target, check: bool = False, given: Mapping[str, Override] | None = None
) -> Compiled:
    """The passes, the task graph, the region domains and the memory plan of a function.

    ``given`` fixes parts of its schedules; what names no region of it is left out.
    """
    started = time.perf_counter()
    stages = list(run_passes(function, target, check))
    final = stages[-1][1]
    residency.check(final, target)
    graph = build(final, target)
    memory = plan(final, target)
    warnings = [f"race: {r.describe()}" for r in certain_races(graph)]
    warnings += [f"hazard: {h.describe()}" for h in graph.hazards]
    domains = region_domains(graph)
    seconds = time.perf_counter() - started
    return Compiled(
        function.name, final, graph, domains, memory, target, tuple(warnings), tuple(stages),
        _of_program(given or {}, final), seconds,
    )  # fmt: skip


def run_passes(function: Function, target: Target, check: bool = False) -> Iterator[tuple[str, Function]]:
    """The function after the front end and after every pass, with the pass names."""
    if check:
        verify(function)
    yield "front_end", function
    for p in PIPELINE:
        function = p.run(function, target)
        if check:
            verify(function)
        yield p.name, function


def dump(compiled: Compiled, folder: Path) -> None:
    """Write the printed IR of every stage, numbered, and the facts of the task graph."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, function) in enumerate(compiled.stages):
        (folder / f"{i:02d}_after_{name}.py").write_text(format_function(function))
    (folder / "task_graph.txt").write_text(compiled.graph.describe())
    (folder / "region_domains.txt").write_text(describe(compiled.domains))
    (folder / "memory_plan.txt").write_text(memory_table(compiled.plan))


def memory_table(memory: MemoryPlan) -> str:
    """The memory plan as text: one line for each region and memory space."""
    if not memory.checked:
        return memory.note + "\n"
    lines = [f"{'region':<20} {'unit':<6} {'split':<10} {'space':<6} {'peak':>8} {'limit':>8}  share"]
    for region, unit, mode, space, peak, limit, share in memory.table():
        lines.append(f"{region:<20} {unit:<6} {mode:<10} {space:<6} {peak:>8} {limit:>8} {share:>6.1%}")
    return "\n".join(lines) + "\n"


def backend_table() -> Mapping[str, Backend]:
    """The backends of this installation.  The one place where the compiler reaches them, by name only."""
    module = importlib.import_module("backends")
    table: Mapping[str, Backend] = module.BACKENDS
    return table


def default_backend(target: Target) -> Backend | None:
    """What the name of the target alone means: the first native backend of the table that covers it."""
    return next((b for b in backend_table().values() if b.native and b.covers(target) is None), None)


def platform_name(target: Target, backend: Backend) -> str:
    """The shortest platform that means the pair: ``h200``, ``h200:triton``, ``h200sim``."""
    if not backend.native:
        return f"{target.name}{backend.name}"
    return target.name if backend is default_backend(target) else f"{target.name}:{backend.name}"


def platforms() -> list[str]:
    """Every platform name: each backend with each target that it covers."""
    targets = [load_target(name) for name in known_targets()]
    return [platform_name(t, b) for b in backend_table().values() for t in targets if b.covers(t) is None]


def resolve_platform(platform: str, backend: str | None = None) -> tuple[Target, Backend]:
    """``h200:triton`` -> the target h200 and the backend triton; ``h200sim`` needs no colon.

    A target alone, ``h200``, means its :func:`default_backend`, unless ``backend`` names another.

    Raises UserError: an unknown name, a backend that does not cover the target, or two backends.
    """
    name, spelled = _apart(platform)
    if backend is not None and spelled not in (None, backend):
        raise user_error(
            Diag.ARGUMENT, NOWHERE, name="backend",
            why=f"it is {backend}, and the platform {platform} says {spelled}", fix="leave one of them out",
        )  # fmt: skip
    wanted = spelled if backend is None else backend
    table = backend_table()
    if wanted is None:
        found = default_backend(load_target(name)) if name in known_targets() else None
        if found is None:
            raise _unknown("platform", platform, platforms())
        return load_target(name), found
    if wanted not in table:
        raise _unknown("backend", wanted, table)
    target, chosen = load_target(name), table[wanted]
    if (why := chosen.covers(target)) is not None:
        known = ", ".join(platform_name(target, b) for b in table.values() if b.covers(target) is None)
        raise user_error(
            Diag.NOT_COVERED, NOWHERE, backend=chosen.name, target=target.name, why=why, known=known
        )
    return target, chosen


def _apart(platform: str) -> tuple[str, str | None]:
    """The target and the backend that a platform names."""
    target, colon, backend = platform.partition(":")
    if colon:
        return target, backend
    if platform not in known_targets():
        for name in backend_table():
            if platform.endswith(name) and platform != name:
                return platform.removesuffix(name), name
    return platform, None


def _asked(platform: str | None, target: str | None, backend: str | None) -> tuple[Target, Backend]:
    """What the keywords of :func:`compile` say."""
    if target is not None and platform is None:
        return resolve_platform(load_target(target).name, backend)
    if target is not None or backend is not None:
        why = "there is no target with it" if platform is None else f"platform={platform!r} is there too"
        raise user_error(
            Diag.ARGUMENT, NOWHERE, name="backend" if target is None else "target", why=why,
            fix="give platform='gb10:cute', or target='gb10' and backend='cute'",
        )  # fmt: skip
    return resolve_platform(platform or DEFAULT_PLATFORM)


def _unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    return user_error(Diag.UNKNOWN_TARGET, NOWHERE, kind=kind, name=name, known=", ".join(known))


def option_names() -> tuple[str, ...]:
    """Keywords of :func:`compile`."""
    kinds = inspect.signature(compile).parameters.values()
    return tuple(p.name for p in kinds if p.kind is inspect.Parameter.KEYWORD_ONLY)
