"""A run of random programs, with what it must contain."""

from __future__ import annotations

import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.database import InMemoryExampleDatabase

from pypto_models.ops import REGISTRY

from .check import Counts, Mismatch, check
from .strategy import programs
from .writer import Program

# Parts of the programs that must have a feature
PROPORTIONS = {
    "K loop": 1 / 2, "dependent regions": 1 / 2, "mixed": 1 / 4, "split": 1 / 4,
    "tail and run-time extent": 1 / 3,
}  # fmt: skip
BYTES = 1 << 14  # of randomness for one program: more than any takes
AT_LEAST = 20  # programs with each op, in the large run


def explore(examples: int, seed: int | None = None) -> Counts:
    """Check ``examples`` random programs; the first that fails is shrunk and raised with its source.

    The programs come from random bytes, which hypothesis turns into draws: left to itself it would make most
    of its examples from earlier ones.  A failure goes through its database to its shrinker.
    """
    counts = Counts()
    database = InMemoryExampleDatabase()

    @settings(
        deadline=None, database=database, derandomize=False, phases=(Phase.reuse, Phase.shrink),
        print_blob=False, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(programs())
    def property_(program: Program) -> None:
        check(program, counts)

    source = random.Random(chosen_seed() if seed is None else seed)
    run = property_.hypothesis.fuzz_one_input  # type: ignore[attr-defined]
    while counts.programs < examples:
        try:
            run(source.randbytes(BYTES))
        except Mismatch as error:
            property_()
            raise AssertionError(f"a failure that does not repeat: {error}") from error
    return counts


def chosen_seed() -> int:
    """0, or with ``EXPLORE=1`` another one in every run."""
    return 0 if settings().derandomize else random.getrandbits(32)


def explore_in_parallel(examples: int, workers: int) -> Counts:
    """:func:`explore` in several processes, each with a part of the examples."""
    seed = chosen_seed()
    seeds = [seed + k for k in range(workers)]
    parts = [examples // workers + (k < examples % workers) for k in range(workers)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        found = list(pool.map(_part, parts, seeds))
    failures = [x for x in found if isinstance(x, str)]
    if failures:
        raise AssertionError("\n\n".join(failures))
    total = Counts()
    for c in found:
        if isinstance(c, Counts):
            total.add(c)
    return total


def _part(examples: int, seed: int) -> Counts | str:
    """The counts of one process, or what went wrong."""
    torch.set_num_threads(1)
    try:
        return explore(examples, seed)
    except AssertionError as error:
        return str(error)


def shortcomings(counts: Counts, ops: bool) -> list[str]:
    """What a run lacks: features below their proportion and, with ``ops``, ops that are too rare."""
    n = max(counts.programs, 1)
    missing = [
        f"{name}: {counts.features[name]} of {n} programs, wanted {part:.0%}"
        for name, part in PROPORTIONS.items() if counts.features[name] < part * n
    ]  # fmt: skip
    if ops:
        missing += [
            f"op {o.name}: in {counts.ops[o.name]} programs, wanted {AT_LEAST}"
            for o in REGISTRY if counts.ops[o.name] < AT_LEAST
        ]  # fmt: skip
    return missing
