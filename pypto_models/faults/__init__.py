"""Semantic faults: small wrong changes of a program, each of which a good comparison must notice.

    for fault in faults_in(function):
        print(fault)
        wrong = fault.apply()

They are made from the IR and the OpDefs alone and know no model.  Every fault is a valid program: what a type
rule refuses is not offered, since no comparison is needed to find it.  (Without the only store to an Out
parameter the front end would complain, too; that fault is offered all the same, as a kernel that never ran.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..ir.nodes import Function
from . import places, rounding, structure, values
from .fault import SCORED, Fault, FaultClass, Outline
from .sample import sample

_MAKERS: tuple[Callable[[Outline], Iterator[Fault]], ...] = (
    structure.drop_regions,
    structure.drop_iterations,
    structure.skip_blocks,
    values.swap_operands,
    values.change_constants,
    places.shift_indices,
    values.misplace_broadcasts,
    values.omit_adds,
    places.wrong_slots,
    structure.reorder_regions,
    structure.forget_updates,
    places.stale_buffers,
    rounding.wrong_roundings,
)


def faults_in(function: Function) -> list[Fault]:
    """Every fault of a function, in a fixed order; each can be applied on its own.

    ``function`` is what the front end gives.  Two lowerings of one kernel at two element types give faults of
    equal ``key`` at equal places.
    """
    outline = Outline(function)
    found: dict[tuple[str, int, str], Fault] = {}
    for maker in _MAKERS:
        for fault in maker(outline):
            found.setdefault(fault.key, fault)
    return list(found.values())


__all__ = ["SCORED", "Fault", "FaultClass", "faults_in", "sample"]
