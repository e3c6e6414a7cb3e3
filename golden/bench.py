"""One kernel on a few sets of inputs, run again and again with one fault at a time."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from golden.execute import Call, Golden, GoldenFn, prepare, run_golden
from golden.memory import bits, poisoned
from golden.program import Program
from golden.roles import TensorRole, bind
from golden.spec import ScalarSpec, Spec
from golden.verdict import CompareFn, Rules, judge, vacuous
from pypto_models.compile import compile, with_function
from pypto_models.errors import InternalError, UserError
from pypto_models.faults import Fault, faults_in

EQUAL_RUNS = 5
"""Further inputs on which a fault must not change a bit to count as equivalent."""

TIME_LIMIT_S = 20.0


@dataclass(frozen=True)
class Check:
    """One set of inputs and what a run on it is compared with; the fields are those of ``run_jit``."""

    specs: Sequence[Spec]
    golden_fn: GoldenFn
    compare_fn: CompareFn | None = None
    rtol: float = 1e-5
    atol: float = 1e-5


@dataclass(frozen=True)
class Case:
    """A kernel with its comparisons.

    Args:
        name: what sets it apart from the other cases of a run, such as its element type.
        kernel: a ``@pl.jit`` kernel.
        check: ``check(seed)`` gives a set of inputs with its golden; another seed gives other values and,
            where the kernel takes them, other extents and lengths.
        options: keywords of ``pypto_models.compile.compile``.
        reasons: why faults on a source line (its text, without indentation) can leave every result as it is.
            A fault that changes no bit is only called equivalent for such a reason.
        variant: what sets the kernel apart from the same kernel compiled otherwise, which has other faults.
        runs: the comparison runs the seeds ``0 .. runs - 1``.  The next five seeds are for faults that no
            comparison noticed: those that change no bit there either are equivalent.
    """

    name: str
    kernel: Any
    check: Callable[[int], Check]
    options: Mapping[str, Any] = field(default_factory=dict)
    runs: int = 1
    reasons: Mapping[str, str] = field(default_factory=dict)
    variant: str = ""

    @property
    def subject(self) -> str:
        """What is measured: the kernel, and ``@`` its variant."""
        return f"{self.kernel.name}@{self.variant}" if self.variant else str(self.kernel.name)


class Timeout(BaseException):
    """A run did not end; not an Exception, so that nothing on the way takes it for a finding."""


class Bench:
    """A compiled case, its faults, and the goldens of its inputs, which are computed once."""

    def __init__(self, case: Case, platform: str) -> None:
        self.case = case
        self.platform = platform
        specs = case.check(0).specs
        args = [s.number if isinstance(s, ScalarSpec) else s.placeholder() for s in specs]
        self.program = compile(case.kernel, *args, platform=platform, **case.options)
        self.function = self.program.compiled.stages[0][1]
        self.faults: dict[tuple[str, int, str], Fault] = {f.key: f for f in faults_in(self.function)}
        self.rounds: dict[int, _Round] = {}

    def round(self, seed: int) -> _Round:
        """The inputs of one seed.

        Raises ValueError if the comparison fails, or shows nothing, without any fault.
        """
        if seed not in self.rounds:
            sound = with_function(self.program, self.function, self.platform)
            self.rounds[seed] = _Round(self.case, seed, sound)
        return self.rounds[seed]

    def caught(self, fault: Fault) -> str | None:
        """Which of the case's comparisons notices a fault, and how; None if none does."""
        try:
            wrong = with_function(self.program, fault.apply(), self.platform)
        except UserError as error:
            return f"{self.case.name}: the compiler: {_first_line(error)}"
        for seed in range(self.case.runs):
            if (why := self.round(seed).finding(wrong)) is not None:
                return f"{self.case.name}, inputs {seed}: {why}"
        return None

    def same_bits(self, fault: Fault) -> bool:
        """Whether a fault leaves every bit as it is on inputs that no comparison used."""
        wrong = with_function(self.program, fault.apply(), self.platform)
        first = self.case.runs
        return all(self.round(seed).unchanged(wrong) for seed in range(first, first + EQUAL_RUNS))


class _Round:
    """One seed: inputs, golden, rules, and the bits that the kernel gives without a fault."""

    def __init__(self, case: Case, seed: int, sound: Program) -> None:
        check = case.check(seed)
        self.rules = Rules(check.compare_fn, check.rtol, check.atol)
        self.roles = bind(sound, check.specs)
        self.compared: dict[str, TensorRole] = {n: r for n, r in self.roles.items() if r.role != "input"}
        self.rules.check(self.compared)
        self.call = prepare(check.specs, self.roles, seed, None, quiet=True)
        self.inputs = {n: v for n, v in self.call.by_name().items() if n not in self.compared}
        self.golden: Golden = run_golden(check.golden_fn, self.call, self.compared)
        written = self.golden.written.__contains__
        self.reasons = vacuous(
            self.compared, self.call.tensors, self.golden.expected, written, self.rules, self.inputs
        )
        where = f"{case.name}, inputs {seed}"
        if self.reasons:
            name, why = next(iter(self.reasons.items()))
            raise ValueError(f"{where}: the comparison of {name!r} shows nothing: {why}")
        tensors = self.run(sound)
        if (why_not := self.judged(tensors)) is not None:
            raise ValueError(f"{where}: the comparison fails without any fault: {why_not}")
        self.sound = {name: tensors[name] for name in self.compared}

    def run(self, program: Program) -> dict[str, Tensor]:
        """The tensors after a run on fresh copies of what the kernel may change."""
        tensors = dict(self.call.tensors)
        for name, role in self.compared.items():
            if role.role == "output":
                want = self.golden.expected[name]
                tensors[name] = poisoned(tuple(role.spec.shape), role.spec.dtype, want)
            elif role.root == name:
                tensors[name] = tensors[name].clone()
        for name, role in self.compared.items():
            if role.root != name:
                tensors[name] = tensors[role.root]
        call = Call(self.call.specs, tensors, self.call.checksums)
        with torch.no_grad(), time_limit(TIME_LIMIT_S):
            program(*call.by_name().values())
        return tensors

    def finding(self, program: Program) -> str | None:
        """What the run or the comparison says against a program; None if nothing."""
        try:
            tensors = self.run(program)
        except UserError as error:
            return f"the simulator: {_first_line(error)}"
        except Timeout:
            return f"no end within {TIME_LIMIT_S:g} s"
        return self.judged(tensors)

    def judged(self, tensors: Mapping[str, Tensor]) -> str | None:
        for name, role in self.compared.items():
            report = judge(role, tensors, self.golden.expected, None, self.rules, self.inputs)
            if report.status != "PASS":
                detail = report.detail.splitlines() or [report.rule]
                return f"{name!r}: {detail[0]}"
        changed = Call(self.call.specs, dict(tensors), self.call.checksums).changed()
        return f"{changed[0]!r} changed, which the kernel only reads" if changed else None

    def unchanged(self, program: Program) -> bool:
        """Whether a run leaves the bits that the kernel without a fault leaves."""
        try:
            tensors = self.run(program)
        except (UserError, Timeout):
            return False
        return all(
            torch.equal(bits(tensors[name].contiguous()), bits(want.contiguous()))
            for name, want in self.sound.items()
        )


def _first_line(error: UserError | InternalError) -> str:
    return str(error).splitlines()[0]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`Timeout` in the main thread after ``seconds``; without effect in any other thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise Timeout

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
