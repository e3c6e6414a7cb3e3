"""What a run does, in order: our programs, then peers that need no compiler, then what takes minutes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tools.gpu_bench import ours, peers
from tools.gpu_bench.catalogue import LAYERS, PROJECTIONS, SLICED, without
from tools.gpu_bench.report import TIMED, ours_on
from tools.gpu_bench.session import LEVEL, RAGGED, Program, Session, subject
from tools.gpu_bench.tasks import Task


def tasks(s: Session, with_peers: bool) -> Iterator[Task]:
    """All that the bundles of a session allow."""
    for backend in s.backends:
        yield from _ours(s, backend)
    if with_peers:
        for peer in peers.MODES:
            yield from _peer(s, peer)


def _ours(s: Session, backend: str) -> Iterator[Task]:
    def find(name: str, timing: bool = False) -> Program | None:
        return s.find(name, timing, backend)

    name_of, timed_of = ours_on(backend), ours_on(backend, TIMED)
    layers = [(p, find(without(n))) for n in LAYERS if (p := find(n)) is not None]
    for program, bare in layers:
        for batch in s.batches:
            case = s.case(program, batch)
            yield Task(subject(case), name_of, partial(ours.measure_layer, s, case, program, bare))
    for name in (*PROJECTIONS, *SLICED):
        if (program_or_none := find(name)) is not None:
            yield Task(name, name_of, partial(ours.measure_product, s, program_or_none))
    for name in LAYERS:
        if (timed := find(name, timing=True)) is not None:
            for batch in s.batches:
                case = s.case(timed, batch)
                yield Task(subject(case), timed_of, partial(ours.measure_regions, s, case, timed))
    for program, bare in layers:
        for label in (LEVEL, RAGGED) if bare is not None else ():
            case = s.case(program, max(s.batches), label)
            run = partial(ours.measure_layer, s, case, program, bare, keep=False)
            yield Task(subject(case), name_of, run)


def _peer(s: Session, peer: str) -> Iterator[Task]:
    for name in LAYERS:
        if (program := s.find(name)) is not None:
            for batch in s.batches:
                case = s.case(program, batch)
                yield Task(subject(case), peer, partial(peers.measure_layer, s, case, peer))
    for name in PROJECTIONS:
        if (program := s.find(name)) is not None:
            yield Task(name, peer, partial(peers.measure_product, s, program, peer))
