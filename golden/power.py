"""Can a comparison fail?  Put faults into a kernel, one at a time, and count those that it notices.

    report = measure_power(partial(load_cases, path, "tiny"))
    print(report.summary())

A fault is *caught* if the comparison fails in one of the cases (such as fp32 and bf16), or if the simulator
refuses the run.  It is *equivalent* if it changes no bit on five further inputs of each case and a reason is
known why.  All others are *missed*: the comparison passes a kernel that is wrong.

This is mutation testing (DeMillo, Lipton and Sayward, "Hints on Test Data Selection", 1978) of comparisons.
"""

from __future__ import annotations

import linecache
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from golden.bench import EQUAL_RUNS, Bench, Case, Check
from golden.power_report import Outcome, PowerReport
from golden.program import Progress
from pypto_models.compile import DEFAULT_PLATFORM
from pypto_models.errors import Diag, Span, UserError
from pypto_models.faults import SCORED, Fault, sample
from pypto_models.foreign import load_module

__all__ = ["Case", "Check", "Outcome", "PowerReport", "load_cases", "measure_power", "subjects_in"]

PROTOCOL = "power_cases"
"""The function of a model file that gives its cases: ``power_cases(config: str) -> Sequence[Case]``."""

Source = Callable[[], Sequence[Case]]
Key = tuple[str, int, str]

_CHUNK = 6  # faults that a worker takes at a time


def load_cases(path: Path, config: str, subject: str | None = None) -> Sequence[Case]:
    """The cases that a model file declares with ``power_cases(config)``: all, or those of one subject.

    Raises:
        UserError: the file does not load, or declares none.
    """
    module = load_module(path)
    maker = getattr(module, PROTOCOL, None)
    if maker is None:
        raise UserError(
            Diag.UNDEFINED, Span(str(path), 1),
            {"name": PROTOCOL, "fix": f"define {PROTOCOL}(config): it returns a list of golden.power.Case"},
        )  # fmt: skip
    return [case for case in maker(config) if subject in (None, case.subject)]


def subjects_in(cases: Sequence[Case]) -> list[str]:
    """The kernels and variants of some cases, in order.  Power is measured of one at a time."""
    return list(dict.fromkeys(case.subject for case in cases))


def measure_power(
    source: Source | Sequence[Case],
    *,
    count: int | None = None,
    seed: int = 0,
    workers: int = 0,
    platform: str = DEFAULT_PLATFORM,
    name: str = "",
    progress: Progress | None = None,
) -> PowerReport:
    """Run every fault through every case until one of them catches it.

    Args:
        source: the cases of one kernel, or a callable that gives them.  Workers call it themselves, so with
            ``workers`` it must be picklable: a function of a module, or a ``functools.partial`` of one.
        count: at most this many faults, spread over classes and lines by ``seed``; None for all.
        workers: processes beside this one; 0 runs everything here.
        platform: the simulator to run on.
        progress: called as ``progress(done, total, label)``.

    Raises:
        ValueError: without any fault a comparison fails or shows nothing, or there is no fault to try.
        UserError: a kernel does not compile.
    """
    started = time.perf_counter()
    if workers and not callable(source):
        raise ValueError("workers need a callable source: they make their own cases")
    benches = _benches(source() if callable(source) else source, platform)
    for bench in benches:
        for run in range(bench.case.runs):
            bench.round(run)  # a comparison that fails by itself is found before the faults are
    faults = _all_faults(benches)
    chosen = list(faults.values()) if count is None else sample(list(faults.values()), count, seed)
    if not chosen:
        raise ValueError("no fault applies to this kernel: its power cannot be measured")
    keys = [f.key for f in chosen]
    outcomes: dict[Key, Outcome] = {}
    if workers and callable(source):
        results = _spread(source, platform, keys, workers)
    else:
        results = _here(benches, keys)
    for outcome in results:
        outcomes[outcome.key] = outcome
        if progress is not None:
            caught = sum(o.status == "caught" for o in outcomes.values())
            progress(len(outcomes), len(keys), f"faults, {caught} caught")
    seconds = time.perf_counter() - started
    title = name or benches[0].case.subject
    return PowerReport(title, tuple(b.case.name for b in benches), tuple(outcomes[k] for k in keys), seconds)


def _benches(cases: Sequence[Case], platform: str) -> list[Bench]:
    names = [c.name for c in cases]
    if not cases or len(set(names)) != len(names):
        raise ValueError(f"the cases are named {names}: give at least one, each with its own name")
    return [Bench(case, platform) for case in cases]


def _all_faults(benches: Sequence[Bench]) -> dict[Key, Fault]:
    """The faults of all cases; one key is one mistake in the source, at every element type."""
    faults: dict[Key, Fault] = {}
    for bench in benches:
        for key, fault in bench.faults.items():
            faults.setdefault(key, fault)
    return faults


# ---------------------------------------------------------------------------------------------- one fault
def judge_fault(benches: Sequence[Bench], key: Key) -> Outcome:
    """What becomes of one fault."""
    where = [(b, b.faults[key]) for b in benches if key in b.faults]
    fault = where[0][1]

    def outcome(status: str, detail: str) -> Outcome:
        file, line = fault.span.file, fault.span.line
        return Outcome(fault.kind.name, fault.site, fault.what, file, line, status, detail)

    for bench, its in where:
        if (why := bench.caught(its)) is not None:
            return outcome("caught", why)
    if fault.kind not in SCORED:
        return outcome("missed", "every comparison passes")
    if not all(bench.same_bits(its) for bench, its in where):
        return outcome("missed", "the result changes, and every comparison passes")
    reasons = {text: why for bench, _ in where for text, why in bench.case.reasons.items()}
    line = linecache.getline(fault.span.file, fault.span.line).strip()
    if why_equal := reasons.get(line, fault.note):
        return outcome("equivalent", why_equal)
    unexplained = f"no bit changes on {EQUAL_RUNS} further inputs of each case, but nobody says why"
    return outcome("missed", unexplained)


def _here(benches: Sequence[Bench], keys: Sequence[Key]) -> Iterator[Outcome]:
    for key in keys:
        yield judge_fault(benches, key)


# ---------------------------------------------------------------------------------------------- workers
_worker_benches: list[Bench] = []


def _start(source: Source, platform: str) -> None:
    torch.set_num_threads(1)
    _worker_benches[:] = _benches(source(), platform)


def _work(keys: Sequence[Key]) -> list[Outcome]:
    return list(_here(_worker_benches, keys))


def _spread(source: Source, platform: str, keys: Sequence[Key], workers: int) -> Iterator[Outcome]:
    """Outcomes as they come from fresh processes: nothing of this one is shared but the source."""
    context = multiprocessing.get_context("spawn")
    chunks = [keys[i : i + _CHUNK] for i in range(0, len(keys), _CHUNK)]
    with ProcessPoolExecutor(workers, context, _start, (source, platform)) as pool:
        try:
            for future in as_completed([pool.submit(_work, chunk) for chunk in chunks]):
                yield from future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
