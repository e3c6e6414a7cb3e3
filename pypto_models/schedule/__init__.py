"""Region domains in, Schedule records out: how a region is blocked on a target without block-sized tiles."""

from __future__ import annotations

from .accounting import Traffic, item_traffic, stream_traffic
from .check import problems
from .domain import RegionDomain, describe, region_domain, region_domains
from .overrides import Override
from .plan import plan, plan_all
from .record import Schedule

__all__ = [
    "Override", "RegionDomain", "Schedule", "Traffic", "describe", "item_traffic", "plan", "plan_all",
    "problems", "region_domain", "region_domains", "stream_traffic",
]  # fmt: skip
