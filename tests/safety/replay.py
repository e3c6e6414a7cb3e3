"""Launching one compiled program again and again must give what a fresh program gives at each launch.

What a launch may depend on is its arguments.  A captured graph replays the device's work alone: a counter
that the host resets, a number of rows that it read once, or a workspace that it zeroed are then those of
the first launch for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, equal, uint8

from pypto_models.compile import PROGRAMS, Program

Arguments = Mapping[str, Tensor]


def first_difference(make: Callable[[], Program], launches: Iterable[Callable[[], Arguments]]) -> str | None:
    """Where one program, launched with each of ``launches`` in turn, first differs by a bit from fresh ones.

    ``make`` compiles the program; each of ``launches`` makes arguments by parameter name.  None if no written
    tensor ever differs.
    """
    kept = fresh_program(make)
    for n, arguments in enumerate(launches):
        again = arguments()
        once = {name: x.clone() for name, x in again.items()}
        launch(kept, again)
        launch(fresh_program(make), once)
        for name in sorted(kept.written):
            if not equal(bits(again[name]), bits(once[name])):
                return f"launch {n}: {name} is not what a fresh program gives"
    return None


def fresh_program(make: Callable[[], Program]) -> Program:
    PROGRAMS.clear()
    return make()


def launch(program: Program, arguments: Arguments) -> None:
    program(*(arguments[p.name] for p in program.params))


def bits(x: Tensor) -> Tensor:
    """The bytes, so that NaN equals NaN and 0.0 is not -0.0."""
    return x.contiguous().view(-1).view(uint8)
