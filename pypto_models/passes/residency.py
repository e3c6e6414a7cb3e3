"""Grids that must be resident: with ``sync_start=True`` all blocks of a grid run at the same time.

A block that waits for another one never ends if the other cannot start, so such a grid may not have more
blocks than the device runs at once.  Here that number follows from the target alone: a block takes a core,
with its cube unit and its vector lanes, or one vector lane if it has no product.  What a compiled kernel
takes (registers, shared memory) may lower it further, which its backend checks.

A constant number of blocks is checked when compiling, any other at the launch.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import Diag, UserError, user_error
from ..ir.expr import Const
from ..ir.nodes import Function, Region, Unit
from ..ir.rewrite import walk
from ..target import Target

HINT = "sync_start"


def must_be_resident(region: Region) -> bool:
    return region.count is not None and dict(region.options.hints).get(HINT) is True


def resident_blocks(region: Region, target: Target) -> int:
    """The most blocks of a region that run on ``target`` at the same time."""
    return target.cores * (target.vector_lanes if region.unit is Unit.VEC else 1)


def require_room(region: Region, target: Target, blocks: int) -> None:
    """Raise unless ``blocks`` blocks of the region run on ``target`` at the same time."""
    if blocks > resident_blocks(region, target):
        raise _too_large(region, target, blocks)


def findings(function: Function, target: Target) -> Iterator[UserError]:
    """Grids whose constant number of blocks does not fit, in program order."""
    for s in walk(function.body):
        if not isinstance(s, Region) or not must_be_resident(s) or not isinstance(s.count, Const):
            continue
        if s.count.value > resident_blocks(s, target):
            yield _too_large(s, target, int(s.count.value))


def check(function: Function, target: Target) -> None:
    """Raise the first of :func:`findings`."""
    for error in findings(function, target):
        raise error


def _too_large(region: Region, target: Target, blocks: int) -> UserError:
    fit = resident_blocks(region, target)
    lanes = region.unit is Unit.VEC and target.vector_lanes > 1
    each = f"{target.vector_lanes} blocks, one for each vector lane," if lanes else "one block"
    return user_error(
        Diag.RESIDENCY, region.span, region=region.name, blocks=blocks, fit=fit, target=target.name,
        why=f"{each} on each of {target.cores} cores",
    )  # fmt: skip
