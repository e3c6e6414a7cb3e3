"""PyTorch on the same data: of every layer and projection the fastest way to write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.common.step_time import Call
from tools.gpu_bench import stock
from tools.gpu_bench.attention import Attend, Candidate, candidates, contiguous, exact
from tools.gpu_bench.catalogue import BenchError
from tools.gpu_bench.check import PEER_LIMITS, Wanted, compare, product_references
from tools.gpu_bench.data import Case, Tensors
from tools.gpu_bench.measure import time_calls
from tools.gpu_bench.ours import PRODUCTS
from tools.gpu_bench.report import FAIL, Row
from tools.gpu_bench.session import Program, Session, entry_of, subject
from tools.gpu_bench.tasks import TooLong, short

EAGER, COMPILED, TUNED = "torch eager", "torch.compile", "torch.compile max-autotune"
MODES = {EAGER: None, COMPILED: "default", TUNED: "max-autotune-no-cudagraphs"}
"""Peers by name, and how torch compiles them; the bench captures graphs itself."""

CUBLAS = "cuBLAS alone"
SCORES = 1.6  # standard deviation of q: scores like those of the layers' inputs


def made(step: Callable[..., Any], peer: str) -> Callable[..., Any]:
    """`step` as the peer runs it, with nothing left of what was compiled before."""
    mode = MODES[peer]
    if mode is None:
        return step
    torch._dynamo.reset()
    run: Callable[..., Any] = torch.compile(step, mode=mode, fullgraph=True, dynamic=False)
    return run


# ------------------------------------------------------------------------------------------------- layers
def measure_layer(s: Session, case: Case, peer: str) -> None:
    """A layer in PyTorch; of the ways to write it the fastest becomes the row."""
    rows = [_layer(s, case, peer, way, step) for way, step in _ways(s, case, peer).items()]
    s.report.add(min(rows, key=lambda row: row.timing.us if row.timing else float("inf")))


def _ways(s: Session, case: Case, peer: str) -> dict[str, stock.Step]:
    if case.kind.name != "gdn":
        best = attends(s, case)[peer != EAGER]
        return {best.name: stock.attention_step(case.config, best.attend)}
    rules = list(stock.RULES)
    if peer == TUNED:  # minutes each: only what the plain mode prefers
        found = s.report.find(subject(case), COMPILED)
        rules = [r for r in rules if found is None or found.why == r] or rules
    return {rule: stock.delta_step(case.config, rule) for rule in rules}


def _layer(s: Session, case: Case, peer: str, way: str, step: stock.Step) -> Row:
    layers, references = s.layers(case), s.references(case)
    given = stock.delta_inputs(layers) if case.kind.name == "gdn" else stock.attention_inputs(layers)
    run = made(step, peer)
    with torch.no_grad():
        hidden = [layers.tensors[0]["hidden"]]
        for tensors in given:
            hidden.append(run(hidden[-1], tensors))
        verdicts = tuple(compare(references, {"next_hidden": hidden[1]}, PEER_LIMITS))
        timing = time_calls(s.device, [partial(run, x, t) for x, t in zip(hidden, given, strict=False)])
    count = layers.bytes(entry_of(case).parameters).total
    return Row(subject(case), peer, timing, count, s.ceiling.us(count), verdicts, way)


# ---------------------------------------------------------------------------------------------- attention
def attends(s: Session, case: Case) -> tuple[Candidate, Candidate]:
    """The fastest attention for eager peers and for compiled ones; every candidate becomes a row.

    Raises:
        BenchError: none works.
    """
    if case not in s.attends:
        with torch.no_grad():
            s.attends[case] = _choose(s, case)
    return s.attends[case]


def _choose(s: Session, case: Case) -> tuple[Candidate, Candidate]:
    layers, c = s.layers(case), case.config
    given = stock.attention_inputs(layers)
    k, v = given[0]["k"], given[0]["v"]
    q = (torch.randn((case.batch, c.q_heads, c.head_dim), device=k.device) * SCORES).to(k.dtype)
    wanted = Wanted(exact(q, k, v, torch.float64), exact(q, k, v, torch.float32).to(k.dtype))
    measure = partial(_attention, s, case, wanted)
    times: list[tuple[float, Candidate]] = []
    for one in candidates(c, case.batch, case.lengths[0]):
        attend = made(one.attend, COMPILED) if one.compiled_only else one.attend
        us = measure(one.name, [partial(attend, q, t["k"], t["v"]) for t in given])
        if us is not None:
            times.append((us, one))
    times.sort(key=lambda pair: pair[0])
    eager = [one for _, one in times if not one.compiled_only]
    if not eager:
        raise BenchError("no attention of PyTorch works here, so that its layers cannot be measured")
    pages = -(-case.lengths[0] // c.page)
    calls = [partial(_gathered, eager[0].attend, q, t, t["block_table"][:, :pages].long(), c)
             for t in layers.tensors]  # fmt: skip
    measure(f"{eager[0].name}, pages gathered", calls)
    return eager[0], times[0][1]


def _gathered(attend: Attend, q: Tensor, t: Tensors, table: Tensor, config: Any) -> Tensor:
    return attend(q, contiguous(t["k_cache"], table, config), contiguous(t["v_cache"], table, config))


def _attention(s: Session, case: Case, wanted: Wanted, name: str, calls: Sequence[Call]) -> float | None:
    """Microseconds of one way to attend; None for one that raises or is wrong, which its row says."""
    label, count = f"{subject(case)} attention", s.layers(case).bytes(["k_cache"]).kv
    try:
        out = calls[0]()
        assert isinstance(out, Tensor)
        verdicts = tuple(compare({"out": wanted}, {"out": out}, PEER_LIMITS))
        timing = time_calls(s.device, calls)
    except TooLong:
        raise
    except Exception as error:
        s.report.add(Row(label, name, why=short(error)))
        return None
    row = s.report.add(Row(label, name, timing, count, s.ceiling.us(count), verdicts))
    return None if row.status == FAIL else timing.us


# -------------------------------------------------------------------------------------------- projections
def measure_product(s: Session, ours: Program, peer: str) -> None:
    """A projection in PyTorch: with all that belongs to it and, eagerly, cuBLAS alone."""
    products, name = s.products(ours), ours.found.entry.name
    given = [stock.product_inputs(t, products.config) for t in products.tensors]
    run = made(stock.product_step(products.name, products.config.eps), peer)
    count = products.bytes
    floor = s.ceiling.us(count)
    with torch.no_grad():
        if peer == EAGER:
            alone = time_calls(s.device, [partial(stock.product, t) for t in given], least=PRODUCTS)
            s.report.add(Row(name, CUBLAS, alone, count, floor))
        verdicts = tuple(compare(product_references(products), {"out": run(given[0])}, PEER_LIMITS))
        timing = time_calls(s.device, [partial(run, t) for t in given], least=PRODUCTS)
    s.report.add(Row(name, peer, timing, count, floor, verdicts))
