"""How a streamed product is divided between the CTAs of a kernel, their warps and a ring in shared memory."""

from __future__ import annotations

from dataclasses import dataclass

from pypto_models.ir.expr import Const
from pypto_models.target import Target

from .matching import UNIT, Product

ELEMENT = 2  # bytes of a weight
RESERVED = 1024  # bytes of shared memory that the system keeps per block
REGISTERS = 140  # accumulators that a thread holds besides its addresses
LINE = 64


@dataclass(frozen=True)
class Plan:
    """How a product is divided; see device/stream.py."""

    ctas: int
    warps_n: int
    warps_k: int
    chunk: int
    stages: int
    columns: int  # of the result: weight rows of one accumulator
    accumulators: int
    m_tiles: int  # rows of the batch / 16

    @property
    def tiles(self) -> int:
        """MMA tiles of a CTA; the last of its columns may fill one in part."""
        return -(-self.columns // (self.ctas * UNIT)) * self.accumulators

    @property
    def threads(self) -> int:
        return 32 * self.warps_n * self.warps_k

    @property
    def shared_bytes(self) -> int:
        stage = (self.tiles * UNIT + 16 * self.m_tiles) * self.chunk * ELEMENT
        return max(self.stages * stage, self.warps_k * self.m_tiles * self.tiles * 512)


def plan(product: Product, target: Target, limit: int | None = None) -> Plan:
    """The default plan: a CTA per core, the longest K pieces that leave three stages in shared memory.

    Where the accumulators of a CTA's share would not fit its registers, more CTAs take turns.
    """
    assert isinstance(product.blocks, Const)
    columns = int(product.blocks.value) * product.width
    units = -(-columns // UNIT)
    accumulators = len(product.results)
    m_tiles = product.rows // 16
    most = max(
        1, 8 * (REGISTERS // (4 * m_tiles)) // accumulators
    )  # units of a CTA, eight warps side by side
    waves = -(-units // (target.cores * most))
    ctas = min(units, target.cores * waves)
    room = (limit or max(s.bytes for s in target.spaces.values() if s.align == 16)) - RESERVED
    per_cta = -(-columns // (ctas * UNIT))
    best: Plan | None = None
    for warps_k in (8, 4, 2, 1):
        warps_n = 8 // warps_k
        chunk = LINE * warps_k
        if product.depth % chunk or -(-per_cta * accumulators // warps_n) * 4 * m_tiles > REGISTERS:
            continue
        stage = (per_cta * accumulators * UNIT + product.rows) * chunk * ELEMENT
        stages = min(room // stage, 8)
        made = Plan(ctas, warps_n, warps_k, chunk, stages, columns, accumulators, m_tiles)
        if made.shared_bytes > room:
            continue
        if stages >= 3:
            return made
        if stages >= 2 and best is None:
            best = made
    if best is None:
        raise ValueError(f"no plan fits {room} bytes of shared memory")
    return best
