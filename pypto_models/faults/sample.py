"""A few of many faults, spread over classes and over source lines."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from .fault import Fault


def sample(faults: Sequence[Fault], count: int, seed: int = 0) -> list[Fault]:
    """``count`` of the faults in their own order; ``seed`` decides which.

    Classes take turns, and within a class its lines do, so that neither a class nor a line with many sites
    crowds out the others.
    """
    rng = random.Random(seed)
    by_class: dict[str, dict[tuple[str, int], list[Fault]]] = defaultdict(lambda: defaultdict(list))
    for fault in faults:
        by_class[fault.kind.name][fault.span.file, fault.span.line].append(fault)
    shuffled = ([rng.sample(sites, len(sites)) for sites in lines.values()] for lines in by_class.values())
    queues = [_in_turns(lines, rng) for lines in shuffled]
    chosen = {id(f) for f in _in_turns(queues, None)[:count]}
    return [f for f in faults if id(f) in chosen]


def _in_turns(queues: list[list[Fault]], rng: random.Random | None) -> list[Fault]:
    """One of each queue, again and again until all are empty."""
    if rng is not None:
        rng.shuffle(queues)
    longest = max(map(len, queues), default=0)
    return [q[i] for i in range(longest) for q in queues if i < len(q)]
