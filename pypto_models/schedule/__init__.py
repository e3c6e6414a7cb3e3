"""Region domains in, Schedule records out: how a region is blocked on a target without block-sized tiles."""

from __future__ import annotations

from .accounting import Traffic, item_traffic, stream_traffic
from .check import problems
from .contraction import Contraction
from .domain import RegionDomain, describe, region_domain, region_domains
from .overrides import Override
from .plan import plan, plan_all
from .record import Schedule
from .stream import ranking, refusal

__all__ = [
    "Contraction", "Override", "RegionDomain", "Schedule", "Traffic", "describe", "item_traffic", "plan",
    "plan_all", "problems", "ranking", "refusal", "region_domain", "region_domains", "stream_traffic",
]  # fmt: skip
