"""Check a kernel file against a target: all findings at once, the region table, the memory plan."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .backend import Backend
from .compile import backend_table, run_passes, schedule_overrides, tiling_name
from .errors import Diag, Span, UserError
from .kernel_file import KernelFile
from .language import Kernel, elaborate
from .language.constructs import Unsupported
from .passes import residency
from .passes.grid import certain_races
from .passes.plan_memory import MemoryPlan, examine
from .passes.task_graph import TaskGraph, build
from .schedule import Override, Schedule, plan_all, region_domains
from .schedule.overrides import check_names
from .target import Target


@dataclass(frozen=True)
class KernelReport:
    """What the compiler says of one entry; ``graph`` and ``plan`` are None if it did not get that far."""

    name: str
    errors: tuple[UserError, ...]
    warnings: tuple[str, ...]
    graph: TaskGraph | None = None
    plan: MemoryPlan | None = None
    schedules: tuple[Schedule, ...] = ()


@dataclass(frozen=True)
class FileReport:
    """``errors`` are those of the file outside of its entries."""

    file: str
    target: str
    errors: tuple[UserError, ...]
    kernels: tuple[KernelReport, ...] = field(default=())

    @property
    def findings(self) -> list[UserError]:
        """All errors, by line."""
        found = [*self.errors, *(e for k in self.kernels for e in k.errors)]
        return sorted(found, key=lambda e: (e.span.file, e.span.line, e.span.col))

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "target": self.target,
            "findings": [
                {"code": e.code, "file": e.span.file, "line": e.span.line, "column": e.span.col + 1,
                 "message": e.message, "fix": e.fix}
                for e in self.findings
            ],
            "kernels": [
                {
                    "name": k.name,
                    "warnings": list(k.warnings),
                    "regions": k.graph.to_json() if k.graph is not None else None,
                    "memory": [list(row) for row in k.plan.table()] if k.plan is not None else None,
                    "memory_checked": bool(k.schedules) or (k.plan is not None and k.plan.checked),
                    "schedules": [s.to_json() for s in k.schedules],
                }
                for k in self.kernels
            ],
        }  # fmt: skip


def check_file(
    path: Path, target: Target, constants: Mapping[str, Any] | None = None, backend: Backend | None = None
) -> FileReport:
    """Everything the compiler finds in a file, without running it on data.

    ``backend`` says which tiling file holds, by default the target's.  Entries whose shapes come from their
    arguments cannot be checked alone, which is a finding too.
    """
    try:
        loaded = KernelFile.load(path)
    except UserError as error:
        return FileReport(str(path), target.name, (error,))
    file = str(path.resolve())
    errors = _unsupported(loaded.module.__dict__, file)
    if not loaded.entries and not errors:
        where = Span(file, 1)
        errors.append(UserError(Diag.NOT_A_KERNEL, where, {"what": "this file, which has no @pl.jit entry,"}))
    try:
        fixed = schedule_overrides(path, target, backend)
    except UserError as error:
        errors.append(error)
        fixed = {}
    errors += _unread_tiling(path.parent / "tiling", target)
    tiling = tiling_name(target, backend)
    reports = tuple(
        check_kernel(k, target, loaded.constants(k, tiling, constants), fixed) for k in loaded.entries
    )
    errors += unknown_overrides(fixed, reports)
    return FileReport(str(path), target.name, tuple(errors), reports)


def _unread_tiling(folder: Path, target: Target) -> list[UserError]:
    """A finding for each tiling file of the target that is no backend's."""
    names = {tiling_name(target, b) for b in backend_table().values() if b.covers(target) is None}
    known = ", ".join(f"{name}.yaml" for name in sorted(names))
    why, fix = f"no backend reads it for {target.name}", f"its tiling files are {known}"
    return [
        UserError(Diag.TILING, Span(str(file), 1), {"file": file.name, "why": why, "fix": fix})
        for file in sorted(folder.glob(f"{target.name}.*.yaml"))
        if file.stem not in names
    ]


def _unsupported(names: Mapping[str, Any], file: str) -> list[UserError]:
    """Functions and classes under a decorator that this implementation does not have."""
    found = []
    for node in ast.parse(Path(file).read_text(), file).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.decorator_list:
            value = names.get(node.name)
            if isinstance(value, Unsupported):
                at = node.decorator_list[0]
                span = Span(file, at.lineno, at.col_offset, at.end_lineno or 0, at.end_col_offset or 0)
                found.append(
                    UserError(
                        Diag.UNSUPPORTED, span, {"name": str(value), "why": value.why, "fix": value.fix}
                    )
                )
    return found


def check_kernel(
    kernel: Kernel,
    target: Target,
    constants: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Override] | None = None,
) -> KernelReport:
    """The findings of the front end or, if there are none, those of the passes and the memory plan.

    On a GPU memory is planned with the schedules; those of ``fixed`` that name a region of the kernel apply.
    """
    try:
        lowered = elaborate(kernel, (), dict(constants or {}), collect=True)
    except UserError as error:
        return KernelReport(kernel.name, (error,), ())
    if lowered.errors:
        return KernelReport(kernel.name, lowered.errors, lowered.warnings)
    try:
        *_, (_, function) = run_passes(lowered.function, target)
        graph = build(function, target)
    except UserError as error:
        return KernelReport(kernel.name, (error,), lowered.warnings)
    plan, over = examine(function, target)
    found = [f"race: {r.describe()}" for r in certain_races(graph)]
    warnings = (*lowered.warnings, *found, *(f"hazard: {h.describe()}" for h in graph.hazards))
    errors = (*residency.findings(function, target), *over)
    schedules: tuple[Schedule, ...] = ()
    if target.gpu is not None:
        try:
            names = {t.name for t in graph.tasks}
            mine = {n: o for n, o in (fixed or {}).items() if n in names}
            schedules = plan_all(region_domains(graph), target, mine)
        except UserError as error:
            errors = (*errors, error)
    return KernelReport(kernel.name, errors, warnings, graph, plan, schedules)


def unknown_overrides(fixed: Mapping[str, Override], reports: Iterable[KernelReport]) -> list[UserError]:
    """A finding for each override that no kernel of the file has a region for."""
    regions = [t.name for r in reports if r.graph is not None for t in r.graph.tasks]
    try:
        check_names(fixed, regions)
    except UserError as error:
        return [error] if regions else []
    return []
