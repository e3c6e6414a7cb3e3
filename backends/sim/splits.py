"""A split must not change a result: each region with one runs split and unsplit, on equal arguments.

The rule of an op (``OpDef.split``) says that it may be divided; this is the check that the rule is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from pypto_models.backend import Compiled
from pypto_models.errors import Diag, UserError
from pypto_models.ir.nodes import Function, Region
from pypto_models.ir.rewrite import rewrite_regions, walk

from .machine import Machine


def check_splits(compiled: Compiled, args: Mapping[str, Any]) -> tuple[str, ...]:
    """Run the program with each of its split regions unsplit in turn; gives the names of those regions.

    ``args`` are not changed.  Raises UserError with the region and the tensor if a bit differs.
    """
    names = []
    expected = _run(compiled.function, args)
    for region, function in _unsplit(compiled):
        for name, tensor in _run(function, args).items():
            if not torch.equal(_bits(tensor), _bits(expected[name])):
                at = (_bits(tensor) != _bits(expected[name])).nonzero()[0].tolist()
                fields: dict[str, object] = {
                    "region": region.name,
                    "mode": region.options.split.name,
                    "tensor": name,
                    "index": at,
                }
                raise UserError(Diag.SPLIT_DIFFERS, region.span, fields)
        names.append(region.name)
    return tuple(names)


def _unsplit(compiled: Compiled) -> Iterator[tuple[Region, Function]]:
    """Every region that the split pass changed, with the program in which it alone is as it was before."""
    names = [name for name, _ in compiled.stages]
    before = compiled.stages[names.index("split") - 1][1]
    pairs = zip(_regions(compiled.function), _regions(before), strict=True)
    for split, whole in pairs:
        if split is not whole:

            def swap(region: Region, split: Region = split, whole: Region = whole) -> Region:
                return whole if region is split else region

            yield split, replace(compiled.function, body=rewrite_regions(compiled.function.body, swap))


def _regions(function: Function) -> list[Region]:
    return [s for s in walk(function.body) if isinstance(s, Region)]


def _run(function: Function, args: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors that a run changes, computed on copies."""
    machine = Machine(function)
    own = {p.name: args[p.name] for p in function.params}
    changed = {p.name for p in function.params if p.var in machine.written}
    own |= {n: args[n].clone() for n in changed}
    machine.run(own)
    return {n: own[n] for n in sorted(changed)}


def _bits(x: torch.Tensor) -> torch.Tensor:
    """The elements as integers, so that equal NaN compare equal."""
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
