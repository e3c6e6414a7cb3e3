"""The planner: region domains and a target in, one Schedule per region out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..target import Target
from .check import gpu_of
from .contraction import Contraction, contraction
from .domain import RegionDomain, Step
from .overrides import FORMS, NONE, Override, check_names
from .record import Schedule
from .stream import Accepts, plan_stream
from .walk import plan_walk


def plan(
    domain: RegionDomain, target: Target, override: Override = NONE, accepts: Accepts | None = None
) -> Schedule:
    """The schedule of one region on a GPU.

    A contraction that may be re-blocked gets the form ``stream``; any other region runs as written, and
    ``fixed_by`` holds the ops that forbade more.  Equal arguments give equal schedules.  ``accepts`` is asked
    for each stream: a backend that cannot emit it says why, and the next best is taken.

    Raises:
        UserError: the override names a key that this form does not have, or leaves no legal schedule; a
            region whose tiles fit in no CTA.
        ValueError: the target is no GPU.
    """
    gpu_of(target)
    facts = contraction(domain)
    if isinstance(facts, Contraction):
        _check_keys(domain, override, "stream")
        line = domain.task.span.line
        override = override.at(-(-facts.rows // 16) * 16, facts.n, facts.k)
        found = plan_stream(domain.name, line, facts, target, override, accepts or _anything)
        if isinstance(found, Schedule):
            return found
        if override.values:
            raise override.error(
                f"{domain.name} has no legal schedule: {found}", "leave out some of its keys"
            )
        facts = (Step("region", domain.task.span, f"as a stream {found}"),)
    schedule = plan_walk(domain, target, override, facts)
    _check_keys(domain, override, schedule.form)
    return schedule


def plan_all(
    domains: Iterable[RegionDomain],
    target: Target,
    given: Mapping[str, Override] | None = None,
    accepts: Accepts | None = None,
) -> tuple[Schedule, ...]:
    """The schedules of a program, in program order; ``given`` holds overrides by region name."""
    regions = tuple(domains)
    fixed = given or {}
    check_names(fixed, (d.name for d in regions))
    return tuple(plan(d, target, fixed.get(d.name, NONE), accepts) for d in regions)


def _check_keys(domain: RegionDomain, override: Override, form: str) -> None:
    unknown = [k for k, _ in override.values if k not in FORMS[form]]
    if unknown:
        raise override.error(
            f"{domain.name} has the form {form}, which has no key {unknown[0]!r}",
            f"known: {', '.join(FORMS[form])}",
        )


def _anything(schedule: Schedule) -> str | None:
    return None
