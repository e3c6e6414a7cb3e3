"""The code of device/arrival.py on the CPU: a thread for each CTA, and a word of memory that they share.

One thread runs at a time, from one access of the word to the next; a seed says whose turn it is.  An array
holds what the lanes of a warp have.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import backends.cute.device

SOURCE = Path(backends.cute.device.__file__).with_name("arrival.py")
NAME = "device_on_the_cpu"


class Run:
    """A launch of ``ctas`` CTAs, of which ``room`` run side by side, and what they do of ``tasks``: all, or
    only those in ``wanted``.

    ``done`` holds (CTA, task) in order; ``arrived_at_first`` how many had arrived when the first was done;
    ``looked`` the CTAs that have read the word after they arrived.
    """

    def __init__(
        self,
        seed: int,
        ctas: int,
        tasks: int,
        most: int,
        room: int,
        polls: int,
        wanted: frozenset[int] | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.ctas, self.tasks, self.most, self.room = ctas, tasks, most, room
        self.wanted = None if wanted is None else np.array([t in wanted for t in range(tasks)], bool)
        self.counter = [0]
        self.done: list[tuple[int, int]] = []
        self.looked: set[int] = set()
        self.arrived = 0
        self.arrived_at_first: int | None = None
        self.device = self.load(polls)
        self.turn = [threading.Semaphore(0) for _ in range(ctas)]
        self.back = threading.Semaphore(0)
        self.ended: set[int] = set()
        self.errors: list[BaseException] = []

    def load(self, polls: int) -> Any:
        """The module, with what it takes of the DSL."""
        arch = SimpleNamespace(
            thread_idx=lambda: (0, 0, 0), block_idx=lambda: (self.own(), 0, 0),
            grid_dim=lambda: (self.ctas, 1, 1), lane_idx=lambda: np.arange(32),
            sync_threads=lambda: None, vote_any_sync=np.any,
            atomic_add=self.add, atomic_cas=self.swap, load=self.read,
        )  # fmt: skip
        cute = ModuleType("cutlass.cute")
        vars(cute).update(
            jit=lambda f: f, arch=arch, recast_ptr=lambda p, dtype: p, make_layout=lambda n: n,
            make_tensor=lambda p, layout: p,
        )  # fmt: skip
        cutlass = ModuleType("cutlass")
        vars(cutlass).update(cute=cute, Int32=int, Boolean=bool, const_expr=lambda x: x)
        package = ModuleType(NAME)
        vars(package).update(block=SimpleNamespace(), __path__=[])
        with pytest.MonkeyPatch.context() as patch:
            for module in (cutlass, cute, package):
                patch.setitem(sys.modules, module.__name__, module)
            spec = importlib.util.spec_from_file_location(f"{NAME}.arrival", SOURCE)
            assert spec is not None and spec.loader is not None
            device = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(device)
        vars(device).update(POLLS=polls, min=np.minimum)
        return device

    # --- the word; each access ends a turn
    def add(self, counter: list[int], value: int, sem: str, scope: str) -> int:
        assert (sem, scope) == ("acq_rel", "gpu")
        self.next()
        counter[0] += value
        self.arrived += 1
        return counter[0] - value

    def swap(self, counter: list[int], cmp: int, val: int, sem: str, scope: str) -> int:
        assert (sem, scope) == ("acq_rel", "gpu")
        self.next()
        before = counter[0]
        if before == cmp:
            counter[0] = val
        return before

    def read(self, counter: list[int], kind: type, sem: str, scope: str) -> int:
        assert (sem, scope) == ("acquire", "gpu")
        self.looked.add(self.own())
        self.next()
        return counter[0]

    # --- turns
    def own(self) -> int:
        return int(threading.current_thread().name)

    def next(self) -> None:
        own = self.own()
        self.back.release()
        self.turn[own].acquire()

    def cta(self, own: int) -> None:
        self.turn[own].acquire()
        try:
            asked = None
            if self.wanted is not None:
                asked = self.wanted[self.device.own(self.tasks, self.most)]
            rank, ranks = self.device.arrive(self.counter, [0, 0], self.tasks, self.most, asked)
            if rank >= 0:
                for task in range(rank, self.tasks, ranks):
                    if self.wanted is not None and not self.wanted[task]:
                        continue
                    if not self.done:
                        self.arrived_at_first = self.arrived
                    self.done.append((own, task))
                    self.next()
        except BaseException as error:
            self.errors.append(error)
        self.ended.add(own)
        self.back.release()

    def go(self) -> None:
        """Runs all CTAs to their end.  Raises what one of them raises."""
        threads = [threading.Thread(target=self.cta, args=(i,), name=str(i)) for i in range(self.ctas)]
        started = 0
        running: list[int] = []
        while running or started < self.ctas:
            while started < self.ctas and len(running) < self.room:
                threads[started].start()
                running.append(started)
                started += 1
            own = self.rng.choice(running)
            self.turn[own].release()
            self.back.acquire()
            if own in self.ended:
                running.remove(own)
        if self.errors:
            raise self.errors[0]
