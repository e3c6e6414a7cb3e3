"""Region domains in, Schedule records out: how a region is blocked on a target without block-sized tiles."""

from __future__ import annotations

from .domain import RegionDomain, describe, region_domain, region_domains

__all__ = ["RegionDomain", "describe", "region_domain", "region_domains"]
