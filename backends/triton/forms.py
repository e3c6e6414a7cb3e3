"""How a streamed product runs in Triton: a schedule of `pypto_models.schedule` that Triton can emit.

A block keeps the weight rows of all its columns in one tile for each accumulator, whose extents are powers
of two; what is more than the columns is masked, and costs shared memory but no bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pypto_models.schedule import Contraction, Override, Schedule, ranking, refusal
from pypto_models.schedule.overrides import NONE
from pypto_models.schedule.record import Ring, Stream
from pypto_models.target import Target

from ..gpu.matching import Product
from ..gpu.plans import facts
from .pads import LEAST, power

WARPS = 4  # measured: 8 are no faster
ROWS = 128  # of all weight tiles of a block: more leave a warp too few registers
STEPS = (256, 128, 64)  # elements of K: longer runs of a row come first
WAVES = (1, 2, 3, 4, 6, 8, 12, 16)  # blocks that share a core, or take turns on it
IN_FLIGHT = 1.25  # of what a core must have asked for, by the target's figures
DEEPEST = 8  # stages
HOPPER = "sm_90"  # the architecture whose products take operands from shared memory


@dataclass(frozen=True)
class Form:
    """A schedule, and what follows from it for Triton's tiles.

    ``weights_first``: the weights are the rows of the product, so that Hopper's tensor cores read them from
    shared memory; measured as the better side for one accumulator.  The other side needs room for one stage
    less, which serves two accumulators more.
    """

    schedule: Schedule
    weights_first: bool = False

    @property
    def stream(self) -> Stream:
        assert self.schedule.stream is not None
        return self.schedule.stream

    @property
    def columns(self) -> int:
        return self.stream.n

    @property
    def walkers(self) -> int:
        """Blocks of the launch: each owns a run of columns."""
        return self.schedule.ctas

    @property
    def pad(self) -> int:
        """Rows of a weight tile."""
        return max(power(-(-self.columns // self.walkers)), LEAST)

    @property
    def step(self) -> int:
        """Elements of K in a stage."""
        return self.stream.step

    @property
    def stages(self) -> int:
        assert isinstance(self.schedule.ring, Ring)
        return self.schedule.ring.slots

    @property
    def warps(self) -> int:
        return self.schedule.warps

    @property
    def exact(self) -> bool:
        """Whether every block has all columns that its tile has room for."""
        return self.columns == self.walkers * self.pad

    @property
    def shared_bytes(self) -> int:
        """Of the stages, with what pads them."""
        rows = self.pad * self.stream.accumulators + self.stream.rows
        held = self.stages if self.weights_first else self.stages - 1
        return held * rows * self.step * self.stream.element_bytes


def form_of(
    product: Product, target: Target, region: str = "product", line: int = 1, given: Override = NONE
) -> Form | str:
    """The form of a product on a target, or why it has none.

    Raises:
        UserError: ``given`` leaves no schedule that Triton can emit.
    """
    found = facts(product)
    if found is None:
        return "the number of its blocks is only known at run time"
    given = given.at(found.rows, found.n, found.k)
    if best := ranked(found, target, region, line, given):
        return best[0]
    if (given.number("slices") or 1) > 1:
        why = "Triton's products take whole K"
    elif ranking(region, line, found, target, given):
        why = (
            "Triton holds no such tiles: powers of two, 256 weight rows at most, in shared memory of a block"
        )
    else:
        why = refusal(region, line, found, target, given)
    if given.values:
        raise given.error(f"{region} cannot be streamed like this: {why}", "leave out some of its keys")
    return why


def ranked(found: Contraction, target: Target, region: str, line: int, given: Override = NONE) -> list[Form]:
    """All forms of a contraction, the best first."""
    return sorted(forms(found, target, region, line, given), key=lambda f: cost(f, target))


def forms(found: Contraction, target: Target, region: str, line: int, given: Override) -> Iterator[Form]:
    """The schedules that fit, with what ``given`` fixes."""
    fixed = dict(given.values)
    assert target.gpu is not None
    for waves in WAVES:
        for step in STEPS:
            walkers = target.cores * waves
            width = -(-found.n // walkers) * len(found.weights)
            asked = IN_FLIGHT * target.gpu.in_flight_bytes / waves
            slots = 1 - int(-asked // (width * step * found.element_bytes))
            wanted = {
                "warps_n": WARPS, "warps_k": 1, "walkers": walkers, "step": step,
                "slots": max(min(slots, DEEPEST, found.k // step), 3),
            }  # fmt: skip
            tried = Override(region, tuple((wanted | fixed).items()), given.file, given.line)
            for schedule in ranking(region, line, found, target, tried):
                form = Form(schedule, len(found.weights) == 1 and str(target.arch).startswith(HOPPER))
                if schedule.grid == schedule.ctas and fits(form, target):
                    yield form


def fits(form: Form, target: Target) -> bool:
    """Whether a block has room for the tiles."""
    room = max(s.bytes for s in target.spaces.values() if s.align == 16)
    rows = form.pad * form.stream.accumulators
    tiles = power(form.step) == form.step and rows <= 2 * ROWS
    return tiles and form.shared_bytes <= room


def cost(form: Form, target: Target) -> tuple[float, ...]:
    """What is to be small: rows beyond ROWS, blocks beyond those at a time on the GPU, shares of the work."""
    assert target.gpu is not None
    rows = form.pad * form.stream.accumulators
    waves = -(-form.walkers // target.cores)
    own = form.shared_bytes + target.gpu.block_reserve_bytes
    turns = -(-waves // max(target.gpu.sm_shared_bytes // own, 1))
    short = form.shared_bytes * form.columns / (form.walkers * form.pad) * min(waves, turns)
    return (max(rows / ROWS, 1.0), turns, waves, -min(form.step, 256), -short)
