"""The read ceiling: the best of several kernels that only read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl

from models.common.step_time import Call, Device
from tools.gpu_bench.measure import time_calls
from tools.gpu_bench.report import Ceiling

GIB = 2**30
SIZES = (4 * GIB, 8 * GIB)
FLAT = ((4096, 4), (8192, 4), (8192, 8), (16384, 8))  # elements of a block, warps
SWEEP = ((4096, 4, 2, 6), (8192, 8, 2, 4), (8192, 8, 1, 6))  # the same, blocks per SM, loads in flight


@triton.jit
def _flat(data, sums, BLOCK: tl.constexpr):
    """The sum of one block of 4-byte elements: a thread's loads of 16 bytes are all under way at once."""
    at = tl.program_id(0).to(tl.int64)
    values = tl.load(data + at * BLOCK + tl.arange(0, BLOCK))
    tl.store(sums + at, tl.sum(values, 0))


@triton.jit
def _sweep(data, sums, count, BLOCK: tl.constexpr, AHEAD: tl.constexpr):
    """The sum of every n-th block of the data, loaded ahead into shared memory."""
    first = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.int32)
    for i in tl.range(first, count, tl.num_programs(0), num_stages=AHEAD):
        total += tl.load(data + i.to(tl.int64) * BLOCK + tl.arange(0, BLOCK))
    tl.store(sums + first, tl.sum(total, 0))


def read_ceiling(device: Device, note: Callable[[str], None], sizes: tuple[int, ...] = SIZES) -> Ceiling:
    """Measure it.

    Every kernel sums all that it reads, and the sum is compared with torch's.  One that fails is noted and
    left out.

    Raises:
        RuntimeError: all of them fail.
    """
    best, how, plain = 0.0, "", 0.0
    data = device.moved(torch.zeros(1)).new_empty(max(sizes) // 4, dtype=torch.int32).random_()
    for size in sizes:
        part = data[: size // 4]
        want = int(part.sum(dtype=torch.int64))
        plain = max(plain, _rate(device, part.view(torch.float32).sum, size))
        for name, call, sums in _kernels(part):
            try:
                rate = _checked(device, call, sums, want, size)
            except Exception as error:
                note(f"the read kernel of {name} is left out: {error}")
                continue
            if rate > best:
                best, how = rate, f"{size // GIB} GiB, {name}"
    if not best:
        raise RuntimeError("no read kernel works here")
    return Ceiling(best, how, plain)


def _checked(device: Device, call: Call, sums: torch.Tensor, want: int, size: int) -> float:
    """Bytes per second of a kernel that reads `size` bytes; RuntimeError if their sum is not `want`."""
    call()
    if (int(sums.sum(dtype=torch.int64)) - want) % 2**32:
        raise RuntimeError("it has not read every byte once")
    return _rate(device, call, size)


def _rate(device: Device, call: Call, size: int) -> float:
    return size / time_calls(device, [call], least=2, replays=10).us * 1e6


def _kernels(data: torch.Tensor) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """What each is called, a call of it, and the partial sums that it writes."""
    for block, warps in FLAT:
        count = data.numel() // block
        sums = torch.zeros(count, dtype=torch.int32, device=data.device)
        run = partial(_flat[(count,)], data, sums, BLOCK=block, num_warps=warps)
        yield f"blocks of {block // 256} KiB, {warps} warps", run, sums
    sms = torch.cuda.get_device_properties(data.device).multi_processor_count
    for block, warps, per_sm, ahead in SWEEP:
        sums = torch.zeros(sms * per_sm, dtype=torch.int32, device=data.device)
        count = data.numel() // block
        run = partial(_sweep[(sums.numel(),)], data, sums, count, BLOCK=block, AHEAD=ahead, num_warps=warps)
        yield f"{per_sm} x {warps} warps per SM, {ahead} x {block // 256} KiB ahead", run, sums
