"""What there is to choose for a part: schedules of a streamed product, and values of constants."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..backend import Plans
from ..errors import Diag, user_error
from ..schedule import Contraction, Override, RegionDomain, Schedule, ranking, refusal
from ..schedule.contraction import contraction
from ..schedule.overrides import SIZES, overrides
from ..target import Target
from .records import Value

WARPS = ((1, 4), (2, 2), (4, 1), (1, 8), (2, 4), (4, 2), (8, 1), (2, 8), (4, 4))
LINES = (1, 2)  # of a warp in a step
SLOTS = (2, 3, 4, 5, 6, 8)
WAVES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 20)
FAR = 1.2  # of the default's estimate


@dataclass(frozen=True)
class Group:
    """Constants that are chosen together, and the regions that they decide."""

    regions: tuple[str, ...]
    constants: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def choices(self) -> Iterator[dict[str, Value]]:
        for values in itertools.product(*self.constants.values()):
            yield dict(zip(self.constants, values, strict=True))


def groups(given: Mapping[str, object]) -> dict[str, Group]:
    """What a kernel file's ``cli_tuning(target)`` says: `{name: {"regions": [...], CONSTANT: [values]}}`.

    Raises a user error for anything else.
    """
    found = {}
    for name, entry in given.items():
        if not isinstance(entry, Mapping) or not _strings(entry.get("regions")):
            raise _bad(name, "it names no regions")
        constants = {k: v for k, v in entry.items() if k != "regions"}
        for key, values in constants.items():
            if not isinstance(values, Sequence) or not all(type(v) is int for v in values) or not values:
                raise _bad(name, f"{key} has no list of integers")
        found[name] = Group(tuple(entry["regions"]), {k: tuple(v) for k, v in constants.items()})
    return found


def _strings(x: object) -> bool:
    return isinstance(x, Sequence) and bool(x) and all(isinstance(s, str) for s in x)


def _bad(name: str, why: str) -> Exception:
    fix = 'write {"attention": {"regions": ["attention"], "TILE": [32, 64]}}'
    return user_error(Diag.ARGUMENT, None, name=f"cli_tuning: {name}", why=why, fix=fix)


# ------------------------------------------------------------------------------------------- schedules
def values_of(s: Schedule) -> dict[str, Value]:
    """What fixes a schedule with one ring of the CTA."""
    assert s.stream is not None and s.ring is not None
    return {
        "warps_n": s.stream.warps_n, "warps_k": s.stream.warps_k, "step": s.stream.step,
        "slots": s.ring.slots, "walkers": s.stream.walkers,
    }  # fmt: skip


def sizes_of(s: Schedule) -> dict[str, int]:
    """For which product alone it is chosen."""
    assert s.stream is not None
    return dict(zip(SIZES, (s.stream.rows, s.stream.n, s.stream.k), strict=True))


def facts_of(domain: RegionDomain) -> Contraction | None:
    """The product of a region, None if it has none that may be dealt out anew."""
    found = contraction(domain)
    return found if isinstance(found, Contraction) else None


def schedules(domain: RegionDomain, target: Target, most: int, backend: object = None) -> list[Schedule]:
    """Legal schedules of a streamed product, of which the default is the first.

    Those of a backend that plans for itself are what it says; of others, what the planner makes.
    Those that divide the warps and the columns alike are a family, with estimates that differ little and
    depend on what the model knows least.  So the best of each family come first, by their estimates, then the
    second of each, and so on; what is far behind the default is left out.
    """
    facts = facts_of(domain)
    if facts is None:
        return []
    if isinstance(backend, Plans):
        return list(backend.schedules(domain.name, domain.task.span.line, facts, target))[:most]
    given = Override(domain.name, ())
    default = ranking(domain.name, domain.task.span.line, facts, target, given)
    if not default:
        return []
    line = 128 // facts.element_bytes
    found: dict[tuple[Value, ...], Schedule] = {tuple(values_of(default[0]).values()): default[0]}
    for (warps_n, warps_k), lines, waves in itertools.product(WARPS, LINES, WAVES):
        fixed: dict[str, Value] = {
            "warps_n": warps_n, "warps_k": warps_k, "step": line * lines * warps_k,
            "walkers": target.cores * waves,
        }  # fmt: skip
        for slots in SLOTS:
            s = _legal(domain, facts, target, {**fixed, "slots": slots})
            if isinstance(s, Schedule):
                found.setdefault(tuple(values_of(s).values()), s)
    first, *rest = found.values()
    families: dict[tuple[int, int, int], list[Schedule]] = {}
    for s in sorted(rest, key=lambda s: s.estimate_s):
        assert s.stream is not None
        if s.estimate_s <= FAR * first.estimate_s:
            families.setdefault((s.stream.warps_n, s.stream.warps_k, s.ctas), []).append(s)
    rounds = itertools.zip_longest(*families.values())
    return [first, *(s for members in rounds for s in members if s is not None)][:most]


def legal(domain: RegionDomain, target: Target, values: Mapping[str, Value]) -> Schedule | str:
    """The schedule that these values fix, or why there is none."""
    facts = facts_of(domain)
    if facts is None:
        return "it is no product whose columns may be dealt out anew"
    return _legal(domain, facts, target, values)


def _legal(
    domain: RegionDomain, facts: Contraction, target: Target, values: Mapping[str, Value]
) -> Schedule | str:
    given = overrides({domain.name: values})[domain.name]
    found = ranking(domain.name, domain.task.span.line, facts, target, given)
    return found[0] if found else refusal(domain.name, domain.task.span.line, facts, target, given)
