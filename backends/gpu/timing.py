"""A timing build: kernels note when their CTAs start, have waited, have their first data, and end.

The times go to a further output of the program, `stamps` [launches, STAMPED, EVENTS], in ns of the GPU's
clock, which all SMs share.  Zero: no such CTA, or the event does not happen in this kernel.
"""

from __future__ import annotations

STAMPS = "stamps"  # the name of the output
STAMPED = 8192  # CTAs of a launch whose times are kept; as in device/block.py
START, WAITED, ARRIVED, END = range(4)
EVENTS = 4
