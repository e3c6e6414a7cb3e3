"""How a streamed product is divided: what `pypto_models.schedule` plans, in the words of device/stream.py.

The planner knows the products of a program as the reports show them; here the same planner is asked for a
product as it was matched, which the backend may have made of several regions.
"""

from __future__ import annotations

from dataclasses import dataclass

from pypto_models.ir.expr import Const, Expr, Var, as_dim, dim_expr, index, substitute
from pypto_models.ir.nodes import Bind, Let
from pypto_models.ir.types import Dim, TensorType, TileType
from pypto_models.schedule import Contraction, Override, Schedule, ranking, refusal
from pypto_models.schedule.overrides import NONE
from pypto_models.schedule.record import Ring, Stream, Weight
from pypto_models.target import Gpu, Target

from .matching import Product

ELEMENT = 2  # bytes of a weight
RESERVED = 1024  # bytes of shared memory of a block that aligning the rest may take


@dataclass(frozen=True)
class Plan:
    """A schedule of the form ``stream`` with one ring of the CTA, in the words of device/stream.py."""

    schedule: Schedule
    target: Target

    @property
    def gpu(self) -> Gpu:
        assert self.target.gpu is not None
        return self.target.gpu

    @property
    def stream(self) -> Stream:
        assert self.schedule.stream is not None
        return self.schedule.stream

    @property
    def ctas(self) -> int:
        return self.schedule.ctas

    @property
    def warps_n(self) -> int:
        return self.stream.warps_n

    @property
    def warps_k(self) -> int:
        return self.stream.warps_k

    @property
    def chunk(self) -> int:
        """Elements of K in a stage."""
        return self.stream.step

    @property
    def stages(self) -> int:
        assert isinstance(self.schedule.ring, Ring)
        return self.schedule.ring.slots

    @property
    def columns(self) -> int:
        """Of the result: weight rows of one accumulator."""
        return self.stream.n

    @property
    def accumulators(self) -> int:
        return self.stream.accumulators

    @property
    def m_tiles(self) -> int:
        """Rows of the batch / 16."""
        return self.stream.rows // 16

    @property
    def block_threads(self) -> int:
        """With those of the warp that copies the rows of the batch."""
        return (self.schedule.warps + self.schedule.copiers) * self.gpu.warp_threads

    @property
    def burst(self) -> int:
        """Stages of weights that are under way while the ring is filled for the first time, one at least, but
        for its last stage (device/stream.py).

        Half of what an SM must have under way to read at the full bandwidth: while the memory is not yet
        busy its latency is half as long.  Measured on an H200: 28 to 40 KB of an SM do best.
        """
        assert isinstance(self.schedule.ring, Ring)
        rows = self.stream.rows * self.chunk * ELEMENT  # of the batch, not asked for as early
        beside = 2 if self.schedule.resident and self.ctas > self.target.cores else 1  # CTAs of an SM
        stages = self.gpu.in_flight_bytes / 2 / beside / (self.schedule.ring.slot_bytes - rows)
        return max(1, min(self.stages - 1, round(stages)))

    @property
    def shared_bytes(self) -> int:
        return self.schedule.shared_bytes


def plan(
    product: Product, target: Target, region: str = "product", line: int = 1, given: Override = NONE
) -> Plan | str:
    """The plan of a product, or why it cannot be streamed.

    Raises:
        UserError: ``given`` leaves no schedule that this backend can emit.
    """
    ranked = plans(product, target, region, line, given)
    if isinstance(ranked, str):
        if given.values:
            why = f"{region} cannot be streamed like this: {ranked}"
            raise given.error(why, "leave out some of its keys")
        return ranked
    return ranked[0]


def plans(
    product: Product, target: Target, region: str = "product", line: int = 1, given: Override = NONE
) -> tuple[Plan, ...] | str:
    """All plans of a product, the best estimate first, or why there is none."""
    found = facts(product)
    if found is None:
        return "the number of its blocks is only known at run time"
    # A part of a cut product has the schedule that cut it, though its columns may count otherwise
    given = given.at(found.rows, found.n, found.k) if product.slices == 1 else given.of_any_size()
    if (given.number("slices") or 1) != product.slices:
        return "K is cut only of products that run once and always"
    room = max(s.bytes for s in target.spaces.values() if s.align == 16) - RESERVED
    ranked = ranking(region, line, found, target, given)
    fitting = tuple(Plan(s, target) for s in ranked if s.shared_bytes <= room and _alone(s))
    if ranked and not fitting:
        first = ranked[0]
        taken = f"it takes {first.shared_bytes} bytes of shared memory, and a block has {room}"
        return taken if _alone(first) else f"{first.ctas} CTAs walk over {first.grid} units"
    return fitting or refusal(region, line, found, target, given)


def _alone(s: Schedule) -> bool:
    """Whether a CTA has one unit, of one slice."""
    return s.stream is not None and s.grid == s.stream.walkers


def facts(product: Product) -> Contraction | None:
    """What the planner takes of a product, or None if its grid is only known at run time."""
    if not isinstance(product.blocks, Const):
        return None
    weights = []
    for i, w in enumerate(product.weights):
        tensor = w.args[0]
        assert isinstance(tensor, Var) and isinstance(tensor.type, TensorType)
        pitch = tensor.type.shape[1]
        assert isinstance(pitch, int)
        weights.append(Weight(tensor.name, "k", 0, 0, pitch * ELEMENT, i, w.span.line))
    x = product.x.args[0]
    assert isinstance(x, Var)
    return Contraction(
        tuple(weights), x.name, "k", False, product.rows,
        columns(product, int(product.blocks.value) // product.slices),
        product.depth * product.slices, ELEMENT, (),
    )  # fmt: skip


def columns(product: Product, blocks: int) -> int:
    """Of the result: whole blocks, less what the last one leaves out of its weights and of all its stores."""
    whole = blocks * product.width
    limits = {_limit(w) for w in product.weights}
    stored = [s.arg("source") for s in product.epilogue if isinstance(s, Let) and s.op.name == "store"]
    types = [v.type for v in stored if isinstance(v, Var)]
    limits |= {t.valid[1] for t in types if isinstance(t, TileType) and t.valid[1] is not None}
    if len(limits) != 1 or None in limits:
        return whole
    env: dict[Var, Expr] = {}
    for s in product.before:
        if isinstance(s, Bind):
            env[s.var] = substitute(s.value, env)
    (limit,) = limits
    live = substitute(dim_expr(limit), env)  # type: ignore[arg-type]
    *full, last = (as_dim(substitute(live, {product.block: index(i)})) for i in range(blocks))
    exact = all(n == product.width for n in full) and isinstance(last, int) and 0 < last <= product.width
    return whole - product.width + last if exact else whole  # type: ignore[operator]


def _limit(load: Let) -> Dim | None:
    limit = load.arg("valid_shape")
    return as_dim(limit[0]) if isinstance(limit, tuple) else None
