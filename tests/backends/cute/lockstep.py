"""Emitted kernels on the CPU: a Python thread for each thread of a block, and the DSL's names in NumPy.

It covers what kernels block by block of fp32 and bf16 tiles are written with.  Shared memory and registers
begin as NaN, and an asynchronous copy is made when its thread waits for it, so that whatever is read before
it is there shows.
"""

from __future__ import annotations

import operator
import re
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

THREADS = 256
DEVICE = Path(__file__).parents[3] / "backends" / "cute" / "device"


class Pointer:
    """An element lies where its first byte does: ``size`` places for each, one outside of shared memory."""

    dtype = np.float32

    def __init__(self, array: Any, at: int = 0, size: int = 1) -> None:
        self.array, self.at, self.size = array, at, size

    def __add__(self, n: int) -> Pointer:
        return Pointer(self.array, self.at + int(n) * self.size, self.size)

    def __getitem__(self, n: int) -> Any:
        return self.array[self.place(n)]

    def __setitem__(self, n: int, value: Any) -> None:
        self.array[self.place(n)] = value

    def place(self, n: int) -> int:
        at = self.at + n * self.size
        assert 0 <= at < len(self.array), "outside of the tensor"
        return at

    def aligned(self, count: int) -> bool:
        return self.at % (count * self.size) == 0


class Registers(list[Any]):
    def fill(self, value: Any) -> None:
        self[:] = [value] * len(self)

    @property
    def iterator(self) -> Pointer:
        return Pointer(self)


class Pairs:
    """Registers of two elements each."""

    def __init__(self, registers: Registers) -> None:
        self.registers = registers

    def __setitem__(self, n: int, value: tuple[Any, Any]) -> None:
        self.registers[2 * n : 2 * n + 2] = value


def bfloat16(x: Any = 0.0) -> Any:
    """Rounded to nearest even."""
    bits = int(np.float32(x).view(np.uint32))
    return np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


BYTES = {np.float32: 4, bfloat16: 2}


def move(pointer: Pointer, registers: Registers, at: int, count: int, load: bool) -> None:
    assert pointer.aligned(count), "a run that is not aligned"
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
        self.shared = np.full(1 << 18, np.nan, np.float32)  # by bytes

    def meet(self) -> None:
        self.barriers += self.own.tid == 0
        self.barrier.wait()

    def exchange(self, value: Any) -> list[Any]:
        """What the threads of a warp give."""
        tid = self.own.tid
        first, warp = tid // 32 * 32, self.warps[tid // 32]
        self.given[tid] = value
        warp.wait()
        found = self.given[first : first + 32]
        warp.wait()
        return found

    def shuffle(self, value: Any, distance: int) -> Any:
        return self.exchange(value)[self.own.tid % 32 ^ distance]

    # --- asynchronous copies
    def copy_16(self, source: Pointer, to: Pointer, live: int) -> None:
        count = 16 // to.size
        assert source.aligned(count) and to.aligned(count), "a copy that is not aligned"
        self.own.asked.append((source, to, count, live))

    def commit(self) -> None:
        self.own.groups.append(self.own.asked)
        self.own.asked = []

    def wait(self, most: int) -> None:
        while len(self.own.groups) > most:
            for source, to, count, live in self.own.groups.pop(0):
                for i in range(count):
                    to[i] = source[i] if live else 0.0

    # --- tensor cores, as the PTX manual deals their matrices to lanes
    def load_matrices(self, count: int, trans: bool, pointer: Pointer) -> list[tuple[Any, Any]]:
        """ldmatrix: lane i gives row i % 8 of matrix i // 8 and gets two elements of each."""
        assert pointer.aligned(8), "a row that is not aligned"
        rows, (g, t) = self.exchange(pointer), divmod(self.own.tid % 32, 4)
        if trans:
            return [(rows[8 * n + 2 * t][g], rows[8 * n + 2 * t + 1][g]) for n in range(count)]
        return [(rows[8 * n + g][2 * t], rows[8 * n + g][2 * t + 1]) for n in range(count)]

    def multiply(self, _: Any, to: Pointer, a: Pointer, b: Pointer, sums: Pointer) -> None:
        """mma.m16n8k16."""
        given = self.exchange(([a[i] for i in range(8)], [b[i] for i in range(4)]))
        g, t = divmod(self.own.tid % 32, 4)
        depth = [(h, s, e) for h in range(2) for s in range(4) for e in range(2)]  # 8 h + 2 s + e
        for i in range(4):
            row = [float(given[4 * g + s][0][4 * h + 2 * (i // 2) + e]) for h, s, e in depth]
            column = [float(given[4 * (2 * t + i % 2) + s][1][2 * h + e]) for h, s, e in depth]
            to[i] = np.float32(sums[i] + sum(map(operator.mul, row, column)))

    def names(self) -> dict[str, Any]:
        """What the emitted text and the device code call."""
        arch = SimpleNamespace(
            thread_idx=lambda: (self.own.tid, 0, 0),
            block_idx=lambda: (self.own.cta, 0, 0),
            lane_idx=lambda: self.own.tid % 32,
            make_warp_uniform=lambda x: x,
            sync_threads=self.meet,
            sync_warp=lambda: self.exchange(None),
            cp_async_commit_group=self.commit,
            cp_async_wait_group=self.wait,
            shuffle_sync_bfly=self.shuffle,
            rcp_approx=lambda x: np.float32(1) / x,
            griddepcontrol_wait=lambda: None,
            griddepcontrol_launch_dependents=lambda: None,
        )
        math = SimpleNamespace(
            exp=lambda x, fastmath=False: np.exp(x), sqrt=np.sqrt,
            rsqrt=lambda x, fastmath: np.float32(1) / np.sqrt(x),
            fma=lambda a, b, c: np.float32(np.float64(a) * b + c), absf=abs,
        )  # fmt: skip
        cute = SimpleNamespace(
            arch=arch, kernel=lambda f: f, jit=lambda f: f, math=math,
            make_layout=lambda shape, stride=None: shape,
            make_rmem_tensor=lambda n, _: Registers([np.float32(np.nan)] * n),
            make_tensor=lambda p, _: p, recast_tensor=lambda r, _: Pairs(r),
            recast_ptr=lambda p, dtype: Pointer(p.array, p.at, BYTES[dtype]),
            make_mma_atom=lambda _: None, gemm=self.multiply,
            nvgpu=SimpleNamespace(warp=SimpleNamespace(MmaF16BF16Op=lambda *_: None)),
        )  # fmt: skip
        cutlass = SimpleNamespace(
            range=lambda *ends, unroll=1: range(*ends), range_constexpr=range, Constexpr=int,
            const_expr=lambda x: x,
        )  # fmt: skip
        memory = SimpleNamespace(allocate_tensor=lambda *_: SimpleNamespace(iterator=Pointer(self.shared)))
        names: dict[str, Any] = {
            "cute": cute, "cutlass": cutlass,
            "utils": SimpleNamespace(SmemAllocator=lambda: memory),
            "select_": lambda condition, a, b: a if condition else b,
            "Float32": np.float32, "BFloat16": bfloat16, "Int8": int, "Int32": int, "Int64": int,
        }  # fmt: skip
        written = {
            "element": lambda p, at: p + at,
            "_move_run": move,
            "copy_16": self.copy_16,
            "load_matrix_4": partial(self.load_matrices, 4, False),
            "load_matrix_4_trans": partial(self.load_matrices, 4, True),
        }
        block = device("block", names, written)
        other = {**vars(block), "block": block}
        return {**names, "block": block, **{n: device(n, other, {}) for n in ("across", "fragments")}}


def device(module: str, names: dict[str, Any], ptx: dict[str, Any]) -> SimpleNamespace:
    """A module of device code with ``names`` in place of its imports, and ``ptx`` of its functions in PTX."""
    text = re.sub(r"^(import|from) .*$", "", (DEVICE / f"{module}.py").read_text(), flags=re.M)
    found = dict(names)
    exec("from __future__ import annotations\n" + text, found)
    found.update(ptx)
    return SimpleNamespace(**found)


def run(text: str, name: str, blocks: int, *arguments: Any) -> int:
    """Run the kernel ``name`` on flat arrays, which it changes, and scalars; the barriers of a thread."""
    block = Block()
    names = block.names()
    exec(text, names)
    kernel: Callable[..., None] = names[name]
    given = [Pointer(x) if isinstance(x, np.ndarray) else x for x in arguments]
    errors: list[str] = []

    def thread(tid: int) -> None:
        block.own.tid, block.own.asked, block.own.groups = tid, [], []
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
