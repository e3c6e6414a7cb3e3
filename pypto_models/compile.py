"""The compile driver: language -> IR -> passes -> task graph and memory plan -> backend.

program = compile(kernel, *example_args, platform="a2a3sim")
program(*args)
"""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .backend import Backend, Compiled, Executable, Progress
from .errors import Diag, UserError, user_error
from .ir.nodes import Function
from .ir.printer import format_function
from .ir.types import TensorType
from .ir.verify import verify
from .language import Kernel, elaborate
from .language.entry import written_params
from .passes import PIPELINE
from .passes.plan_memory import MemoryPlan, plan
from .passes.task_graph import build
from .schedule.domain import describe, region_domains
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


def compile(
    kernel: Kernel,
    *args: Any,
    platform: str = DEFAULT_PLATFORM,
    constants: Mapping[str, Any] | None = None,
    dump_passes: str | Path | None = None,
    check: bool = False,
    backend_options: Mapping[str, Any] | None = None,
) -> Program:
    """Compile a ``@pl.jit`` kernel for a platform.

    ``args`` are example arguments (tensors, numbers) for shapes that the annotations leave open.
    ``platform`` is a target and a backend, such as ``a2a3sim``.  ``constants`` replaces module constants by
    name before parsing.  ``dump_passes`` is a folder for the printed IR after every pass.  ``check`` runs
    the verifier between the passes.  ``backend_options`` are the backend's own: the simulator takes
    ``schedule="random"`` and ``seed``.

    Raises UserError with the place and the fix for mistakes in the kernel or in the arguments.
    """
    target, backend = resolve_platform(platform)
    compiled = lower_for(kernel, args, target, constants, check)
    if dump_passes is not None:
        dump(compiled, Path(dump_passes))
    return Program(compiled, backend.build(compiled, **(backend_options or {})))


def compile_function(
    function: Function, platform: str = DEFAULT_PLATFORM, backend_options: Mapping[str, Any] | None = None
) -> Program:
    """As :func:`compile`, for the IR of a kernel as the front end gives it (or a rewrite of that)."""
    target, backend = resolve_platform(platform)
    compiled = lower_function(function, target)
    return Program(compiled, backend.build(compiled, **(backend_options or {})))


def with_function(program: Program, function: Function, platform: str = DEFAULT_PLATFORM) -> Program:
    """``program`` with another function in place of its own, run as it is: no pass sees it.

    For what no pass may refuse or repair, such as a fault.  The task graph is that of ``function``; the
    memory plan and the stages stay those of the original.
    """
    target, backend = resolve_platform(platform)
    compiled = replace(program.compiled, function=function, graph=build(function, target))
    return Program(compiled, backend.build(compiled))


def lower_for(
    kernel: Kernel,
    args: tuple[Any, ...],
    target: Target,
    constants: Mapping[str, Any] | None = None,
    check: bool = False,
) -> Compiled:
    """Everything up to the backend: the function after all passes, its task graph and its memory plan."""
    started = time.perf_counter()
    lowered = elaborate(kernel, args, dict(constants or {}))
    compiled = lower_function(lowered.function, target, check)
    seconds = time.perf_counter() - started
    return replace(compiled, warnings=(*lowered.warnings, *compiled.warnings), seconds=seconds)


def lower_function(function: Function, target: Target, check: bool = False) -> Compiled:
    """The passes, the task graph, the region domains and the memory plan of a function."""
    started = time.perf_counter()
    stages = list(run_passes(function, target, check))
    final = stages[-1][1]
    graph = build(final, target)
    memory = plan(final, target)
    warnings = [] if memory.checked else [memory.note]
    warnings += [f"hazard: {h.describe()}" for h in graph.hazards]
    domains = region_domains(graph)
    seconds = time.perf_counter() - started
    return Compiled(
        function.name, final, graph, domains, memory, target, tuple(warnings), tuple(stages), seconds
    )


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


def resolve_platform(platform: str) -> tuple[Target, Backend]:
    """``a2a3sim`` -> the target a2a3 and the backend sim."""
    for name, backend in backend_table().items():
        if platform.endswith(name) and platform != name:
            target = load_target(platform.removesuffix(name).rstrip(":"))
            if (reason := backend.unusable()) is not None:
                raise _unknown_platform(f"{platform} ({reason})")
            return target, backend
    raise _unknown_platform(platform)


def _unknown_platform(name: str) -> UserError:
    known = ", ".join(platforms())
    return user_error(Diag.UNKNOWN_TARGET, kind="platform", name=name, known=known)


def platforms() -> list[str]:
    """Every platform name: each target with each backend that covers it."""
    return [f"{t}{b}" for b in backend_table() for t in known_targets()]


def option_names() -> tuple[str, ...]:
    """Keywords of :func:`compile`."""
    kinds = inspect.signature(compile).parameters.values()
    return tuple(p.name for p in kinds if p.kind is inspect.Parameter.KEYWORD_ONLY)
