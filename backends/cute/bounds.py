"""How often a loop runs, as far as its text says."""

from __future__ import annotations

from collections.abc import Mapping

from pypto_models.ir.expr import Binary, Const, Expr
from pypto_models.ir.nodes import For


def at_most_once(s: For, known: Mapping[Expr, int]) -> bool:
    """Whether a loop is a branch: its body needs no barrier to its next trip, and nothing to keep for it.

    ``known`` are the largest values of variables.
    """
    stop = most(s.stop, known)
    if stop is None or not isinstance(s.start, Const) or not isinstance(s.step, Const):
        return False
    return s.step.value > 0 and stop <= s.start.value + s.step.value


def most(x: Expr, known: Mapping[Expr, int]) -> int | None:
    """The largest value of an expression; None if it has no known one."""
    if isinstance(x, Const):
        return int(x.value)
    if isinstance(x, Binary) and x.op == "min":
        ends = (most(side, known) for side in (x.lhs, x.rhs))
        return min((n for n in ends if n is not None), default=None)
    return known.get(x)
