"""Emitted kernels on the CPU: a Python thread for each thread of a block, and the DSL's names in NumPy.

It covers what kernels block by block of fp32 and bf16 tiles are written with, without products and copies.
Shared memory begins as NaN, so that whatever is read before it is written shows.
"""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

THREADS = 256
DEVICE = Path(__file__).parents[3] / "backends" / "cute" / "device"


class Pointer:
    def __init__(self, array: Any, at: int = 0) -> None:
        self.array, self.at = array, at

    def __add__(self, n: int) -> Pointer:
        return Pointer(self.array, self.at + int(n))

    def __getitem__(self, n: int) -> Any:
        assert 0 <= self.at + n < len(self.array), "outside of the tensor"
        return self.array[self.at + n]

    def __setitem__(self, n: int, value: Any) -> None:
        assert 0 <= self.at + n < len(self.array), "outside of the tensor"
        self.array[self.at + n] = value


class Registers(list[Any]):
    def fill(self, value: Any) -> None:
        self[:] = [value] * len(self)


def bfloat16(x: Any = 0.0) -> Any:
    """Rounded to nearest even."""
    bits = int(np.float32(x).view(np.uint32))
    return np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def move(pointer: Pointer, registers: Registers, at: int, count: int, load: bool) -> None:
    assert pointer.at % count == 0, "a run that is not aligned"
    for i in range(count):
        if load:
            registers[at + i] = pointer[i]
        else:
            pointer[i] = registers[at + i]


class Block:
    """One block of threads that meet at barriers."""

    def __init__(self) -> None:
        self.own = threading.local()
        self.barrier = threading.Barrier(THREADS)
        self.barriers = 0  # that thread 0 has come to
        self.warps = [threading.Barrier(32) for _ in range(THREADS // 32)]
        self.given: list[Any] = [None] * THREADS
        self.shared = np.full(1 << 14, np.nan, np.float32)

    def meet(self) -> None:
        self.barriers += self.own.tid == 0
        self.barrier.wait()

    def shuffle(self, value: Any, distance: int) -> Any:
        tid, warp = self.own.tid, self.warps[self.own.tid // 32]
        self.given[tid] = value
        warp.wait()
        other = self.given[tid ^ distance]
        warp.wait()
        return other

    def names(self) -> dict[str, Any]:
        """What the emitted text and the device code call."""
        arch = SimpleNamespace(
            thread_idx=lambda: (self.own.tid, 0, 0),
            block_idx=lambda: (self.own.cta, 0, 0),
            lane_idx=lambda: self.own.tid % 32,
            make_warp_uniform=lambda x: x,
            sync_threads=self.meet,
            shuffle_sync_bfly=self.shuffle,
            griddepcontrol_wait=lambda: None,
            griddepcontrol_launch_dependents=lambda: None,
        )
        cute = SimpleNamespace(
            arch=arch, kernel=lambda f: f, jit=lambda f: f, Pointer=Pointer, Tensor=Registers,
            make_layout=lambda n: n, make_rmem_tensor=lambda n, _: Registers([np.float32(np.nan)] * n),
            recast_ptr=lambda p, dtype: Pointer(p.array, p.at // 4),
        )  # fmt: skip
        cutlass = SimpleNamespace(
            range=lambda a, b, step=1, unroll=1: range(a, b, step), range_constexpr=range, Constexpr=int,
            const_expr=lambda x: x,
        )  # fmt: skip
        block = SimpleNamespace(
            THREADS=THREADS, element=lambda p, at: p + at,
            load_run=lambda p, r, at, n: move(p, r, at, n, True),
            store_run=lambda p, r, at, n: move(p, r, at, n, False),
            larger=lambda a, b: b if b > a else a, smaller=lambda a, b: b if b < a else a,
        )  # fmt: skip
        memory = SimpleNamespace(allocate_tensor=lambda *_: SimpleNamespace(iterator=Pointer(self.shared)))
        names: dict[str, Any] = {
            "cute": cute, "cutlass": cutlass, "block": block, "Any": Any,
            "utils": SimpleNamespace(SmemAllocator=lambda: memory),
            "select_": lambda condition, a, b: a if condition else b,
            "Float32": np.float32, "BFloat16": bfloat16, "Int8": int, "Int32": int, "Int64": int,
        }  # fmt: skip
        device = dict(names)
        exec(re.sub(r"^(import|from) .*$", "", (DEVICE / "across.py").read_text(), flags=re.M), device)
        return {**names, "across": SimpleNamespace(**device)}


def run(text: str, name: str, blocks: int, *arguments: Any) -> int:
    """Run the kernel ``name`` on flat arrays, which it changes, and scalars; the barriers of a thread."""
    block = Block()
    names = block.names()
    exec(text, names)
    kernel: Callable[..., None] = names[name]
    given = [Pointer(x) if isinstance(x, np.ndarray) else x for x in arguments]
    errors: list[str] = []

    def thread(tid: int) -> None:
        block.own.tid = tid
        try:
            for cta in range(blocks):
                block.own.cta = cta
                kernel(*given)
                block.barrier.wait()
        except threading.BrokenBarrierError:  # another thread failed
            pass
        except Exception:
            errors.append(traceback.format_exc())
            for barrier in (block.barrier, *block.warps):
                barrier.abort()

    threads = [threading.Thread(target=thread, args=(tid,)) for tid in range(THREADS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors[0]
    return block.barriers
