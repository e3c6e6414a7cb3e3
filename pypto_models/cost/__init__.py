"""An estimate of the time of a program: its work, run on the pipes and the bandwidth of a target."""

from __future__ import annotations

from .estimate import CAVEAT, Estimate, estimate
from .inputs import from_arguments
from .rates import Rates, rates
from .trace import trace_events

__all__ = ["CAVEAT", "Estimate", "Rates", "estimate", "from_arguments", "rates", "trace_events"]
