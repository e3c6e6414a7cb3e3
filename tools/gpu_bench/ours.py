"""Our programs: layers, layers without attention and what lies between, projections, timing builds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backends.gpu.timing import EVENTS, STAMPED, STAMPS
from models.common.step_time import Call
from tools.gpu_bench.check import compare, product_references
from tools.gpu_bench.data import Case, Layers
from tools.gpu_bench.measure import Timing, time_calls
from tools.gpu_bench.report import Row, ours_on
from tools.gpu_bench.session import LEVEL, RAGGED, Program, Session, entry_of, subject
from tools.gpu_bench.stamps import Launch, timeline

PRODUCTS = 48  # calls in a graph of projections
REPLAYS = 5  # of a timing build


def measure_layer(s: Session, case: Case, ours: Program, bare: Program | None, keep: bool = True) -> None:
    """A layer; if there is one without attention, also that, and the attention as the difference.

    Without `keep` the data of the case are given back.
    """
    whole = _layer(s, case, ours, subject(case))
    if bare is not None:
        rest = _layer(s, case, bare, f"{subject(case)} without attention")
        if whole.timing is not None and rest.timing is not None:
            s.report.add(_difference(s, case, ours_on(ours.backend), whole.timing, rest.timing))
    if not keep:
        s.forget(case)


def _layer(s: Session, case: Case, program: Program, name: str) -> Row:
    layers, bare = s.layers(case), program.found.entry is not entry_of(case)
    references = s.references(case, bare)
    layers.reset()
    first, calls = layers.tensors[0], program.calls(layers.tensors)
    first["next_hidden"].fill_(torch.nan)
    calls[0]()
    verdicts = tuple(compare(references, first))
    once = first["next_hidden"].clone()
    timing = time_calls(s.device, calls)
    repeats = "state" in program.dtypes or torch.equal(once, first["next_hidden"])
    why = "" if repeats else "a replay of the graph differs from the first run"
    moved = layers.bytes(list(program.dtypes))
    count = moved.weights if bare else moved.total
    return s.report.add(
        Row(
            name,
            ours_on(program.backend),
            timing,
            count,
            s.ceiling.us(count),
            verdicts,
            why,
            failed=not repeats,
        )
    )


def _difference(s: Session, case: Case, program: str, whole: Timing, rest: Timing) -> Row:
    """The attention, merge included: the layer's time with minus without it."""
    us = whole.us - rest.us
    timing = Timing(us, whole.least - rest.most, whole.most - rest.least)
    count = s.layers(case).bytes(["k_cache"]).kv
    why = "the layer minus the layer without it"
    if case.label == RAGGED:
        level = Case(case.kind, case.size, LEVEL, case.lengths)
        even = s.report.find(f"{subject(level)} attention", program)
        if even is not None and even.timing is not None and even.timing.us > 0:
            why += f"; {us / even.timing.us:.2f} of the time for level contexts"
    return Row(f"{subject(case)} attention", program, timing, count, s.ceiling.us(count), why=why)


def measure_product(s: Session, ours: Program) -> None:
    """A projection, in a chain of itself; if nobody before it has left the sums of its norm, so that they are
    a launch ahead of it, then also its own launch in a chain of itself, as a layer has it.
    """
    products = s.products(ours)
    name, count = ours.found.entry.name, products.bytes
    references = product_references(products)

    def measured(subject: str, calls: Sequence[Call]) -> None:
        products.tensors[0]["out"].fill_(torch.nan)
        calls[0]()
        verdicts = tuple(compare(references, products.tensors[0]))
        timing = time_calls(s.device, calls, least=PRODUCTS)
        s.report.add(Row(subject, ours_on(ours.backend), timing, count, s.ceiling.us(count), verdicts))

    measured(name, ours.calls(products.tensors))
    streams_last = len(ours.launches) > 1 and "weight" in ours.launches[-1][1]
    if streams_last and ours.apart is not None:
        steps = [ours.apart(t) for t in products.tensors]
        for step in steps:
            for launch in step[:-1]:
                launch()
        measured(f"{name}, its own launch", [step[-1] for step in steps])


def measure_regions(s: Session, case: Case, timed: Program) -> None:
    """The launches of a timing build, from a few replays of one graph."""
    layers = s.layers(case)
    shape = (len(timed.launches), STAMPED, EVENTS)
    stamped = [{**t, STAMPS: t["next_hidden"].new_zeros(shape, dtype=torch.int64)} for t in layers.tensors]
    samples = []
    for _ in range(REPLAYS):
        s.device.seconds(timed.calls(stamped), 1)
        samples.append([t[STAMPS].cpu() for t in stamped])
    floors = [Launch(name, s.ceiling.us(_moved(layers, timed, given))) for name, given in timed.launches]
    name = ours_on(timed.backend, subject(case))
    regions, gap = timeline(name, floors, samples)
    s.report.add_regions(name, regions, gap)


def _moved(layers: Layers, timed: Program, given: Sequence[str]) -> int:
    """What a launch that is given these tensors must move: weights, KV if it looks up pages, and states."""
    skipped = () if "block_table" in given else ("k_cache", "v_cache")
    return layers.bytes([n for n in given if n in timed.dtypes and n not in (STAMPS, *skipped)]).total
