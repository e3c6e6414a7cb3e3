"""Times: the median over replays of one CUDA graph in which the layers take turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from models.common.step_time import REPLAYS, STEPS, Call, Device


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median over replays of a graph, the least and the most."""

    us: float
    least: float
    most: float


def summary(seconds: Sequence[float], calls: int) -> Timing:
    """Of replays that took so many `seconds`, each making so many `calls`."""
    each = [s * 1e6 / calls for s in seconds]
    return Timing(statistics.median(each), min(each), max(each))


def time_calls(device: Device, calls: Sequence[Call], least: int = STEPS, replays: int = REPLAYS) -> Timing:
    """One of the `calls`, which take turns in a graph of at least `least` of them."""
    all_calls = list(calls) * max(1, -(-least // len(calls)))
    return summary(device.seconds(all_calls, replays), len(all_calls))
