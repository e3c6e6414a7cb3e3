"""One run of the bench: its device and programs, and the data and references that its tasks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.common.harness import LayerKind
from models.common.step_time import COPIES, Call, Device
from tools.gpu_bench.attention import Candidate
from tools.gpu_bench.catalogue import ENTRIES, Entry, Found
from tools.gpu_bench.check import References, layer_references
from tools.gpu_bench.data import Case, Layers, Products, level, make_layers, make_products, spread
from tools.gpu_bench.report import Ceiling, Report

RAGGED, LEVEL = "ragged", "level"
"""Contexts of unlike lengths, and as many tokens in contexts of one length."""


@dataclass(frozen=True, eq=False)
class Program:
    """A bundle that can be called.

    Args:
        found: which program it is.
        backend: which made it.
        dtypes: of its parameters, in order.
        call: with the tensors by name.
        launches: kernels in the order in which it launches them, each with the tensors that it is given.
        apart: gives its launches with the tensors by name, to be made one by one.
    """

    found: Found
    dtypes: Mapping[str, torch.dtype]
    call: Callable[[Mapping[str, Any]], object]
    launches: tuple[tuple[str, tuple[str, ...]], ...] = ()
    backend: str = "cute"
    apart: Callable[[Mapping[str, Any]], Sequence[Call]] | None = None

    def calls(self, layers: Sequence[Mapping[str, Tensor]]) -> list[Call]:
        """Calls with the tensors of each of the layers."""
        return [partial(self.call, {n: t[n] for n in self.dtypes}) for t in layers]


@dataclass(eq=False)
class Session:
    """What the tasks of a run work with."""

    device: Device
    report: Report
    ceiling: Ceiling
    programs: Sequence[Program]
    batches: Sequence[int] = (16, 1)
    copies: int = COPIES
    attends: dict[Case, tuple[Candidate, Candidate]] = field(default_factory=dict)
    _layers: dict[Case, Layers] = field(default_factory=dict)
    _references: dict[tuple[Case, bool], References] = field(default_factory=dict)

    @property
    def backends(self) -> tuple[str, ...]:
        """Those that have made a bundle, CuTe DSL first."""
        return tuple(sorted({p.backend for p in self.programs}, key=lambda b: (b != "cute", b)))

    def find(self, name: str, timing: bool = False, backend: str | None = None) -> Program | None:
        """The bundle of the program `name`, if it is there; of any backend where none is named."""
        for p in self.programs:
            if (p.found.entry.name, p.found.timing) == (name, timing) and backend in (None, p.backend):
                return p
        return None

    def case(self, program: Program, batch: int, label: str = "") -> Case:
        """A step of `batch` sequences: contexts as long as the model allows, or `RAGGED`, or `LEVEL`."""
        longest = program.found.config.max_seq
        lengths: tuple[int, ...] = (longest,) * batch
        if label:
            lengths = spread(longest, batch)
            lengths = level(lengths) if label == LEVEL else lengths
        return Case(program.found.entry.kind, program.found.size, label or str(longest), lengths)

    def layers(self, case: Case) -> Layers:
        """The data of a case, kept for its peers."""
        if case not in self._layers:
            self.report.note(f"making {self.copies} layers for {subject(case)}")
            self._layers[case] = make_layers(case, self.copies, self.device)
        return self._layers[case]

    def references(self, case: Case, without_attention: bool = False) -> References:
        """What the first layer of a case gives."""
        key = case, without_attention
        if key not in self._references:
            self._references[key] = layer_references(self.layers(case), without_attention)
        return self._references[key]

    def forget(self, case: Case) -> None:
        """Give the memory of a case back."""
        self._layers.pop(case, None)
        for bare in (False, True):
            self._references.pop((case, bare), None)

    def products(self, program: Program) -> Products:
        """The data of a projection."""
        config, name = program.found.config, program.found.entry.projection
        out = program.dtypes["out"]
        return make_products(name, config, max(self.batches), self.copies, out, self.device)


def kind_name(kind: LayerKind) -> str:
    """How a kind of layer is called, such as `qwen3_14b/full`."""
    return f"{kind.model}/{kind.name}"


def subject(case: Case) -> str:
    """How a case is called, such as `qwen3_14b/full b16 4096`."""
    return f"{kind_name(case.kind)} b{case.batch} {case.label}"


def entry_of(case: Case) -> Entry:
    """The layer that a case is for."""
    return ENTRIES[kind_name(case.kind)]
