"""Measuring the variants of a tuning: each is checked first, then timed as a chain over rotating tensors."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .data import Argument, differences, make
from .device import Device
from .records import Part, Plan, Result, Results, Variant

COPIES = 6  # sets of tensors in turn, at least
L2_SHARE = 4  # of the L2 cache that they fill, at least
CALLS = 24  # of one graph, at least
REPLAYS = 30
MEMORY_SHARE = 0.8  # of the free memory

Say = Callable[[str], None]


class DeviceLost(RuntimeError):
    """A variant has left the process without a device: another process can go on."""


def run(folder: Path, device: Device, say: Say = print) -> Results:
    """Measure what has no result yet; every result is kept as soon as it is there.

    Raises:
        UserError: the folder holds no tuning.
        DeviceLost: a kernel broke the device of this process; the variant counts as failed.
        ValueError: the tensors of a part do not fit into the device's memory.
    """
    plan, results = Plan.read(folder), Results.read(folder)
    for part in plan.parts:
        todo = [v for v in part.variants if results.of(part, v) is None]
        if not todo:
            say(f"{part.name}: all {len(part.variants)} variants are measured")
            continue
        sets = [_arguments(part, device) for _ in range(_copies(part, device))]
        expected = torch.load(folder / part.reference, weights_only=True)
        for variant in todo:
            results.start(part, variant)
            result = measure(folder, part, variant, sets, expected, device)
            results.add(result)
            say(line(part, variant, result))
            if result.status == "failed" and not device.alive():
                raise DeviceLost(f"{variant.name} broke the device: run the same command again to go on")
        del sets
    return results


def line(part: Part, variant: Variant, r: Result) -> str:
    """What is said of a result."""
    values = ", ".join(f"{k} {v}" for k, v in variant.values.items())
    rate = f"{r.us:.2f} us, {part.bytes / r.us * 1e-6:.3f} TB/s" if r.us else ""
    what = rate if r.status == "ok" else f"{r.status}: {r.why}"
    return f"{variant.name}{' (default)' if variant.default else ''}: {what} [{values}]"


def _copies(part: Part, device: Device) -> int:
    """So many sets of tensors that none is in the L2 cache when its turn comes."""
    each = max(part.bytes, 1)
    wanted = max(COPIES, -(-L2_SHARE * device.l2_bytes // each))
    fit = int(device.free_bytes * MEMORY_SHARE) // each
    if fit < 2:
        raise ValueError(f"{part.name} takes {each / 2**30:.1f} GiB, and two copies of that do not fit")
    return min(wanted, fit, 4 * CALLS)


def _arguments(part: Part, device: Device) -> dict[str, Any]:
    return {a.name: make(a, device.torch_name) for a in part.arguments}


def measure(
    folder: Path,
    part: Part,
    variant: Variant,
    sets: list[dict[str, Any]],
    expected: Mapping[str, torch.Tensor],
    device: Device,
) -> Result:
    """Check one variant and time it."""

    def result(status: str, why: str = "", times: list[float] | None = None) -> Result:
        us = [t * 1e6 for t in times or [0.0]]
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        return Result(
            part.name, variant.name, variant.folder, status, why, statistics.median(us), min(us), max(us),
            device.name, date,
        )  # fmt: skip

    try:
        program = device.load(folder / variant.folder)
        for values in (sets[0], sets[-1]):  # twice, so that what a first run leaves behind shows
            renew(part.arguments, values)
            program(values)
            found = {name: values[name] for name in expected}
            if wrong := next(differences(found, expected), None):
                return result("wrong", wrong)
        calls = [lambda own=own: program(own) for own in sets] * -(-CALLS // len(sets))
        times = [t / len(calls) for t in device.seconds(calls, REPLAYS)]
    except (RuntimeError, ValueError) as error:  # the driver's, torch's and the loader's
        return result("failed", f"{type(error).__name__}: {error}".splitlines()[0][:300])
    return result("ok", times=times)


def renew(arguments: tuple[Argument, ...], values: dict[str, Any]) -> None:
    """What is written is as it was before the first call."""
    for a in arguments:
        if a.direction != "in":
            values[a.name].copy_(make(a, values[a.name].device))


def outcome(plan: Plan, results: Results) -> Iterator[tuple[Part, list[tuple[Variant, Result]]]]:
    """The results of every part, those that are right first and the fastest of them at the head."""
    for part in plan.parts:
        pairs = [(v, r) for v in part.variants if (r := results.of(part, v)) is not None]
        yield part, sorted(pairs, key=lambda p: (p[1].status != "ok", p[1].us))
