"""What a target is: its memory spaces, the moves between them, its units, and what its run time orders.

One YAML file per target in ``targets/``.  A ``scratchpad`` target gives every tile an address, so that
memory plans are checked against ``spaces``; on a ``gpu`` target Mat, Left and Right are shared memory, Acc
and Vec are registers, and the plan comes with the schedule.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from .errors import NOWHERE, Diag, InternalError, Span, user_error
from .ir.types import Mem

FOLDER = Path(__file__).parent / "targets"
KINDS = ("scratchpad", "gpu")
HANDOFFS = ("gm", "onchip")
CONFLICTS = ("RAW", "WAW", "WAR")

# The two crossings of a mixed region, from the cube to the vector part and back.  Where the hardware has no
# direct path they run through a ring of slots (Target.handoff), so they are legal on every target.
CROSSINGS = ((Mem.Acc, Mem.Vec), (Mem.Vec, Mem.Mat))


@dataclass(frozen=True)
class SpaceSpec:
    """``bytes`` of one core's memory (Vec: of one vector lane's) and the alignment of addresses in it."""

    bytes: int
    align: int


@dataclass(frozen=True)
class Fractal:
    """The smallest block of a matrix operand: ``rows`` rows of ``row_bytes`` bytes."""

    rows: int
    row_bytes: int


@dataclass(frozen=True)
class Figures:
    """Measured, published or assumed figures for cost models, None where absent.  Units are in the names."""

    nominal_bytes_per_s: float | None = None  # global memory, data sheet
    read_bytes_per_s: float | None = None  # global memory, best measured read
    clock_hz: float | None = None
    l2_bytes: int | None = None
    l2_line_bytes: int | None = None
    transfer_bytes: int | None = None  # transfers with shorter contiguous runs are slow
    grid_barrier_s: float | None = None
    fp32_mma_passes: int | None = None  # passes of an fp32 product, where a half-precision one takes one
    cube_flops_per_cycle: float | None = None  # of one core, half-precision operands
    vector_elements_per_cycle: float | None = None  # of one vector lane, any elementwise op
    l2_bytes_per_s: float | None = None  # what is read again, all cores together
    core_bytes_per_s: float | None = None  # the most that one transfer of one core draws
    load_latency_s: float | None = None  # from the last byte of a load to its use
    launch_s: float | None = None  # from the end of what a task waits for to its first block
    short_transfer_share: float | None = None  # of the bandwidth, where runs are below transfer_bytes


@dataclass(frozen=True)
class Gpu:
    """What schedules are planned with.  A core is an SM, a block a CTA; ``spaces`` is of a block.

    ``in_flight_bytes``: what an SM must have asked for at any time to read at the full bandwidth.
    ``warp_threads``: 64 where a warp is a wave of AMD.  Schedules count warps, and their estimates of
    registers take a warp for 32 threads, which is half of what a wave has.
    """

    sm_shared_bytes: int
    block_reserve_bytes: int
    registers: int
    thread_registers: int
    block_threads: int
    line_bytes: int
    in_flight_bytes: int
    warp_threads: int = 32


@dataclass(frozen=True)
class Target:
    """One kind of device.

    * ``cores`` run one block each; a core has one cube unit and ``vector_lanes`` vector lanes.
    * ``moves`` are the pairs (from, to) with a data path; global memory is ``Mem.DDR``.
    * ``handoff`` says how a value crosses between the units of a mixed region: through a ring in global
      memory (``gm``) or on chip.  Either way the consumer's side holds ``slots`` slots, or more on demand.
    * ``tile_align_bytes``: rows of a Vec tile are multiples of it.  ``fractal``: so are matmul operands.
    * ``orders``: the conflicts between tasks (RAW, WAW, WAR) that the run time turns into dependencies.
    * ``gpu`` is there for the kind ``gpu`` alone.
    * ``assumed`` names the ``figures`` that no source gives: round numbers for estimates.
    """

    name: str
    description: str
    kind: str
    cores: int
    vector_lanes: int
    spaces: Mapping[Mem, SpaceSpec] = field(hash=False)
    moves: frozenset[tuple[Mem, Mem]]
    handoff: str
    orders: frozenset[str]
    slots: int = 2
    fractal: Fractal | None = None
    tile_align_bytes: int | None = None
    arch: str | None = None  # what a compiler for the target calls it
    gpu: Gpu | None = None
    figures: Figures = Figures()
    assumed: frozenset[str] = frozenset()

    @property
    def is_scratchpad(self) -> bool:
        return self.kind == "scratchpad"

    def can_move(self, source: Mem, dest: Mem) -> bool:
        """True if a tile can get from ``source`` to ``dest``, directly or as a crossing of a mixed region."""
        return (source, dest) in self.moves or (source, dest) in CROSSINGS


def known_targets() -> tuple[str, ...]:
    """Names that :func:`load_target` takes, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@functools.cache
def load_target(name: str) -> Target:
    """The target ``name``; raises a user error that lists the known names."""
    if name not in known_targets():
        raise user_error(
            Diag.UNKNOWN_TARGET, NOWHERE, kind="target", name=name, known=", ".join(known_targets())
        )
    path = FOLDER / f"{name}.yaml"
    target = parse_target(path.read_text(encoding="utf-8"), str(path))
    if target.name != name:
        raise InternalError(f"{path} describes the target {target.name!r}")
    return target


def parse_target(text: str, file: str) -> Target:
    """Read a target description; raises a user error that names the key that is wrong."""
    try:
        return _target(yaml.safe_load(text))
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as e:
        why = f"the key {e.args[0]!r} is missing" if type(e) is KeyError else str(e)
        raise user_error(
            Diag.TILING, Span(file, 1), file=file, why=f"this is not a target description: {why}",
            fix="compare it with the files of the known targets",
        ) from e  # fmt: skip


def _target(data: dict[str, Any]) -> Target:
    known = {f.name for f in fields(Target)}
    if unknown := sorted(set(data) - known):
        raise ValueError(f"unknown keys {unknown}; known: {sorted(known)}")
    values = dict(data)
    values["spaces"] = MappingProxyType({_space(k): SpaceSpec(**v) for k, v in data["spaces"].items()})
    values["moves"] = _moves(data["moves"], tuple(values["spaces"]))
    values["orders"] = frozenset(_one_of("orders", x, CONFLICTS) for x in data["orders"])
    values["kind"] = _one_of("kind", data["kind"], KINDS)
    values["handoff"] = _one_of("handoff", data["handoff"], HANDOFFS)
    if "fractal" in data:
        values["fractal"] = Fractal(**data["fractal"])
    if ("gpu" in data) != (data["kind"] == "gpu"):
        raise ValueError("a target of the kind gpu, and no other, has a part gpu")
    if "gpu" in data:
        values["gpu"] = Gpu(**data["gpu"])
    figures, assumed = data.get("figures", {}), data.get("assumed", {})
    if twice := sorted(set(figures) & set(assumed)):
        raise ValueError(f"{twice} are both figures and assumed")
    values["figures"], values["assumed"] = Figures(**figures, **assumed), frozenset(assumed)
    return Target(**values)


def _moves(data: Any, spaces: tuple[Mem, ...]) -> frozenset[tuple[Mem, Mem]]:
    """``any``, or the destinations by source."""
    if data == "any":
        ends = (Mem.DDR, *spaces)
        return frozenset((a, b) for a in ends for b in ends if a is not b)
    return frozenset((_space(a), _space(b)) for a, ends in data.items() for b in ends)


def _space(name: str) -> Mem:
    return Mem[_one_of("memory space", name, tuple(Mem.__members__))]


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}, one of {', '.join(allowed)} is expected")
    return value
