"""One run of a compiled kernel against its golden, from inputs to verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from golden import data
from golden.diff import type_mismatch
from golden.memory import fingerprint, overlap, poisoned
from golden.program import Program, cannot_run, launch
from golden.report import Log, RunResult, Status, TensorReport, progress_bar, say
from golden.roles import TensorRole, bind
from golden.spec import ScalarSpec, Spec
from golden.verdict import CompareFn, Rules, judge, unwritten, vacuous

GoldenFn = Callable[[dict[str, Any]], Any]
"""Gets every argument by name, tensors and python numbers, and writes its results into the tensors."""


def execute_and_compare(
    program: Program,
    specs: Sequence[Spec],
    *,
    golden_fn: GoldenFn | None = None,
    golden_data: str | Path | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    compare_fn: CompareFn | None = None,
    work_dir: Path | None = None,
    save_data: bool = False,
    seed: int = 0,
    log: Log | None = None,
) -> RunResult:
    """Run a compiled kernel on the specs' values and compare what it changed with the golden.

    The kernel and the golden share the memory of what neither may write; a checksum after each shows whether
    it did. Pure outputs start poisoned for the kernel and zeroed for the golden; of everything else that may
    be written the golden gets a copy. ``golden_data`` replaces both the generated inputs and ``golden_fn`` by
    a recorded run.

    A program that says by ``cannot_run()`` that this machine has no device for it is SKIPPED, and why.

    Exceptions of the kernel, the golden and the specs' callables pass through, except ValueError while inputs
    are prepared: that, like every finding, is a result with ``passed`` False.
    """
    log = log or Log()
    if (why := cannot_run(program)) is not None:
        return log.result("SKIPPED", f"not run: {why}", note=why, work_dir=work_dir)
    recorded = None if golden_data is None else Path(golden_data)
    rules = Rules(compare_fn, rtol, atol)
    try:
        roles = bind(program, specs)
        compared = {name: role for name, role in roles.items() if role.role != "input"}
        rules.check(compared)
        golden: Golden | None = None
        with log.stage("generate inputs" if recorded is None else "load inputs and golden"):
            call = prepare(specs, roles, seed, recorded)
            if recorded is not None:
                golden = _load_golden(recorded, compared)
    except ValueError as error:
        return log.result("FAIL", f"inputs: {error}", work_dir=work_dir)
    if not compared:
        why = "the kernel writes none of its parameters"
        return log.result("SKIPPED", why, note=why, work_dir=work_dir)
    if save_data and work_dir is not None and recorded is None:
        scalars = {spec.name: spec.value for spec in specs if isinstance(spec, ScalarSpec)}
        data.save(work_dir / "data" / "in", call.tensors | scalars)
    inputs = {name: value for name, value in call.by_name().items() if name not in compared}

    reasons: dict[str, str] = {}
    if golden is None and golden_fn is not None:
        with log.stage("compute golden"):
            golden = run_golden(golden_fn, call, compared)
    if golden is not None:
        if changed := call.changed():
            names = ", ".join(map(repr, changed))
            fix = "work on a clone, or declare pl.InOut"
            why = f"golden_fn changed {names}, which the kernel only reads: {fix}"
            return log.result("FAIL", why, work_dir=work_dir)
        if not golden.written:
            example = f"tensors[{next(iter(compared))!r}][:] = ..."
            why = f"golden_fn wrote none of {sorted(compared)}: write in place, {example}"
            return log.result("FAIL", why, work_dir=work_dir)
        if save_data and work_dir is not None and recorded is None:
            data.save(work_dir / "data" / "out", golden.expected)
        written = golden.written.__contains__
        reasons = vacuous(compared, call.tensors, golden.expected, written, rules, inputs)

    for name, role in compared.items():
        if role.role == "output":
            want = golden.expected[name] if golden else None
            usable = want is not None and not type_mismatch(role.spec.placeholder(), want)
            call.tensors[name] = poisoned(tuple(role.spec.shape), role.spec.dtype, want if usable else None)
    with log.stage("runtime"):
        _launch(program, call)
    if save_data and work_dir is not None:
        data.save(work_dir / "data" / "actual", {name: call.tensors[name] for name in compared})

    reports = {name: _changed_input(roles[name]) for name in call.changed()}
    with log.stage("validate"):
        for name, role in compared.items():
            if golden is not None:
                reports[name] = judge(role, call.tensors, golden.expected, reasons.get(name), rules, inputs)
            else:
                reports[name] = _without_golden(role, call.tensors[name])
        for report in reports.values():
            say(f"  {report.line()}")
    return _conclude(log, reports, golden is not None, work_dir)


# --- the arguments


@dataclass
class Call:
    """The arguments of the kernel. Pure outputs join ``tensors`` just before the launch."""

    specs: Sequence[Spec]
    tensors: dict[str, Tensor]
    checksums: dict[str, int]

    def by_name(self) -> dict[str, Any]:
        """Every argument that has a value, in parameter order."""
        named: dict[str, Any] = {}
        for spec in self.specs:
            if isinstance(spec, ScalarSpec):
                named[spec.name] = spec.number
            elif spec.name in self.tensors:
                named[spec.name] = self.tensors[spec.name]
        return named

    def changed(self) -> list[str]:
        """The read-only tensors whose bytes are no longer what they were."""
        return [
            name for name, checksum in self.checksums.items() if fingerprint(self.tensors[name]) != checksum
        ]


def prepare(
    specs: Sequence[Spec],
    roles: Mapping[str, TensorRole],
    seed: int,
    recorded: Path | None,
    quiet: bool = False,
) -> Call:
    """The arguments of a call: generated from ``seed``, or those of a recorded run."""
    owners = {name: role for name, role in roles.items() if role.root == name and role.role != "output"}
    if recorded is None:
        if not quiet:
            say(f"  seed={seed}")
        tensors = {name: role.spec.materialize(seed) for name, role in owners.items()}
        if shared := overlap(tensors):
            raise ValueError(
                f"specs {shared[0]!r} and {shared[1]!r} share memory: clone one, or declare it with alias_of"
            )
    else:
        scalars = [spec for spec in specs if isinstance(spec, ScalarSpec)]
        outputs = [name for name, role in roles.items() if role.role != "input"]
        data.check_present(recorded, [*owners, *(spec.name for spec in scalars)], outputs)
        for scalar in scalars:
            data.check_scalar(recorded / "in", scalar)
        tensors = {name: data.load(recorded / "in", role.spec) for name, role in owners.items()}
    for name, role in owners.items():
        if role.role == "inout" and recorded is None:
            tensors[name] = tensors[name].clone()  # it may be the caller's own tensor
    for name, role in roles.items():
        if role.root != name:
            tensors[name] = tensors[role.root]
    checksums = {name: fingerprint(tensors[name]) for name, role in roles.items() if role.role == "input"}
    return Call(specs, tensors, checksums)


def _launch(program: Program, call: Call) -> None:
    with torch.no_grad(), progress_bar() as progress:
        launch(program, list(call.by_name().values()), progress)


# --- the golden


@dataclass(frozen=True)
class Golden:
    """What the compared tensors should hold, and which of them the golden wrote."""

    expected: dict[str, Tensor]
    written: frozenset[str]


def _load_golden(recorded: Path, compared: Mapping[str, TensorRole]) -> Golden:
    expected = {name: data.load(recorded / "out", role.spec) for name, role in compared.items()}
    return Golden(expected, frozenset(expected))


def run_golden(golden_fn: GoldenFn, call: Call, compared: Mapping[str, TensorRole]) -> Golden:
    """What the golden makes of the arguments of a call, on copies of what it may write."""
    own: dict[str, Tensor] = {}
    for name, role in compared.items():
        if role.role == "output":
            own[name] = torch.zeros(tuple(role.spec.shape), dtype=role.spec.dtype)
        else:
            own[name] = own[role.root] if role.root in own else call.tensors[name].clone()
    versions = {name: tensor._version for name, tensor in own.items()}
    known = call.by_name() | own
    arguments = {spec.name: known[spec.name] for spec in call.specs}
    with torch.no_grad():
        golden_fn(arguments)
    expected: dict[str, Tensor] = {}
    written: set[str] = set()
    for name, tensor in own.items():
        result = arguments.get(name)
        if not isinstance(result, Tensor):
            raise TypeError(f"golden_fn left a {type(result).__name__} in place of the tensor {name!r}")
        expected[name] = result.detach().contiguous()
        by_torch = result is not tensor or tensor._version != versions[name]
        if by_torch or _differs(result, call.tensors.get(name)):
            written.add(name)
    return Golden(expected, frozenset(written))


def _differs(result: Tensor, initial: Tensor | None) -> bool:
    """Whether a tensor was written unseen by torch, as through numpy. ``initial`` None means zeros."""
    return fingerprint(result) != fingerprint(torch.zeros_like(result) if initial is None else initial)


# --- the outcome


def _changed_input(role: TensorRole) -> TensorReport:
    why = "the kernel changed it, though it only reads this parameter"
    return _report(role, "FAIL", "must not change", why)


def _without_golden(role: TensorRole, actual: Tensor) -> TensorReport:
    if role.role == "output" and (why := unwritten(actual)):
        return _report(role, "FAIL", "never written", why)
    return _report(role, "SKIPPED", "no golden", "no golden")


def _report(role: TensorRole, status: Status, rule: str, detail: str) -> TensorReport:
    spec = role.spec
    return TensorReport(spec.name, status, role.role, tuple(spec.shape), str(spec.dtype), rule, detail)


def _conclude(
    log: Log, reports: dict[str, TensorReport], has_golden: bool, work_dir: Path | None
) -> RunResult:
    failed = [report for report in reports.values() if report.status == "FAIL"]
    skipped = [report for report in reports.values() if report.status == "SKIPPED"]
    if failed:
        parts = [f"failed: {', '.join(repr(report.name) for report in failed)}"]
        for report in failed:
            parts.append(f"  '{report.name}' FAIL  shape={report.shape} dtype={report.dtype} ({report.rule})")
            parts += [f"    {line}" for line in report.detail.splitlines()]
        return log.result("FAIL", "\n".join(parts), reports=reports, work_dir=work_dir)
    if not has_golden:
        why = "validation skipped: no golden_fn or golden_data"
        return log.result("SKIPPED", why, note=why, reports=reports, work_dir=work_dir)
    if skipped:
        why = "; ".join(f"{report.name!r}: {report.detail}" for report in skipped)
        return log.result("SKIPPED", f"shows nothing: {why}", note=why, reports=reports, work_dir=work_dir)
    return log.result("PASS", reports=reports, work_dir=work_dir)
