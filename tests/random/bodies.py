"""Random bodies: the table of all steps, drawn from again and again."""

from __future__ import annotations

from collections.abc import Callable

from .body import Body
from .control import branch, carried, each_column, index_number, powers, ramp
from .inlining import inlined_step
from .nesting import either, loop
from .products import tile_product
from .shapes import STEPS
from .steps import load


def some_steps(b: Body, most: int) -> None:
    """Random steps; fewer are simpler."""
    for _ in range(most):
        if not b.w.chance(80):
            break
        b.pinned.clear()
        step = b.w.pick(_WITH_PRODUCTS if b.cube else _WITHOUT)
        if b.w.chance(8):
            step = inlined_step(step)
        if not step(b):
            load(b)
    b.pinned.clear()


def random_loop(b: Body) -> bool:
    return loop(b, some_steps)


def random_if(b: Body) -> bool:
    return either(b, some_steps)


_WEIGHTS: dict[Callable[[Body], bool], int] = {
    **STEPS, carried: 5, each_column: 4, branch: 6, powers: 3, index_number: 5, ramp: 3, random_loop: 8,
    random_if: 8,
}  # fmt: skip
_WITHOUT = tuple(step for step, weight in _WEIGHTS.items() for _ in range(weight))
_WITH_PRODUCTS = (*_WITHOUT, *(tile_product,) * 16)
