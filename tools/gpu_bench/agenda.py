"""What a run does, in order: our programs, then peers that need no compiler, then what takes minutes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tools.gpu_bench import ours, peers
from tools.gpu_bench.catalogue import LAYERS, PROJECTIONS, without
from tools.gpu_bench.report import OURS, TIMED
from tools.gpu_bench.session import LEVEL, RAGGED, Session, subject
from tools.gpu_bench.tasks import Task


def tasks(s: Session, with_peers: bool) -> Iterator[Task]:
    """All that the bundles of a session allow."""
    yield from _ours(s)
    if with_peers:
        for peer in peers.MODES:
            yield from _peer(s, peer)


def _ours(s: Session) -> Iterator[Task]:
    layers = [(p, s.find(without(n))) for n in LAYERS if (p := s.find(n)) is not None]
    for program, bare in layers:
        for batch in s.batches:
            case = s.case(program, batch)
            yield Task(subject(case), OURS, partial(ours.measure_layer, s, case, program, bare))
    for name in PROJECTIONS:
        if (program_or_none := s.find(name)) is not None:
            yield Task(name, OURS, partial(ours.measure_product, s, program_or_none))
    for name in LAYERS:
        if (timed := s.find(name, timing=True)) is not None:
            for batch in s.batches:
                case = s.case(timed, batch)
                yield Task(subject(case), TIMED, partial(ours.measure_regions, s, case, timed))
    for program, bare in layers:
        for label in (LEVEL, RAGGED) if bare is not None else ():
            case = s.case(program, max(s.batches), label)
            run = partial(ours.measure_layer, s, case, program, bare, keep=False)
            yield Task(subject(case), OURS, run)


def _peer(s: Session, peer: str) -> Iterator[Task]:
    for name in LAYERS:
        if (program := s.find(name)) is not None:
            for batch in s.batches:
                case = s.case(program, batch)
                yield Task(subject(case), peer, partial(peers.measure_layer, s, case, peer))
    for name in PROJECTIONS:
        if (program := s.find(name)) is not None:
            yield Task(name, peer, partial(peers.measure_product, s, program, peer))
