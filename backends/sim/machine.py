"""The simulator proper: a function compiled once to Python, run on CPU tensors, errors placed.

    simulate(fn, {"x": x, "out": out})        # mutates Out and InOut tensors

Every op runs through its OpDef reference.  Blocks and tasks run one by one, in program order or in a random
legal one (:mod:`.launch`, :mod:`.order`), memory checks itself (:mod:`.memory`), unordered accesses that
meet are found (:mod:`.watch`), and a failure is turned into an error at the user's line (:mod:`.blame`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any

import torch

from pypto_models.backend import Progress
from pypto_models.errors import InternalError, PyptoError
from pypto_models.ir.expr import Expr, Number
from pypto_models.ir.graph import TaskGraph
from pypto_models.ir.nodes import Function, Region
from pypto_models.ir.types import ScalarType
from pypto_models.language.entry import written_params
from pypto_models.passes.grid import suspects
from pypto_models.passes.residency import must_be_resident, require_room
from pypto_models.target import Target

from .binding import bind
from .blame import blame
from .emit import KERNEL, emit
from .launch import Launcher, RegionFacts, count_blocks
from .memory import View, create
from .order import shuffled
from .watch import Watch

SCHEDULES = ("program", "random")


class Machine:
    """A compiled function; :meth:`run` may be called any number of times."""

    def __init__(
        self,
        function: Function,
        graph: TaskGraph | None = None,
        schedule: str = "program",
        seed: int = 0,
        target: Target | None = None,
        checks: bool = True,
    ) -> None:
        """``graph`` is the task graph of ``function``: with it, races and hazards are watched for.

        With a ``target``, a grid that must be resident may not have more blocks than it runs at once.

        ``schedule="random"`` runs blocks and independent regions in an order drawn from ``seed``.
        Without ``checks``, nothing is asked of an access to global memory: not where it lies, not whether
        what it reads was written, not who else touches it.
        """
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule is {schedule!r}; use one of {', '.join(SCHEDULES)}")
        self.graph = graph
        self.target = target
        self.checks = checks
        self.seed = seed if schedule == "random" else None
        self.suspects = suspects(graph) if graph is not None else {}
        if graph is not None and schedule == "random":
            function = shuffled(function, graph, seed)
        self.function = function
        self.program = emit(function, self.suspects)
        self.filename = f"<simulation of {function.name}>"
        self.written = written_params(function)
        self.regions = {name: self._facts(region) for name, region in self.program.regions.items()}
        namespace = {**self.program.namespace, "create": partial(create, checked=checks)}
        exec(compile(self.program.text, self.filename, "exec"), namespace)
        self.kernel: Callable[..., Any] = namespace[KERNEL]  # type: ignore[assignment]

    def run(
        self, args: Mapping[str, Any], progress: Progress | None = None
    ) -> tuple[torch.Tensor | Number, ...]:
        """Run once; gives what the function returns.

        ``args`` maps every parameter to a contiguous CPU tensor or a number.
        ``progress(done, total, label)`` counts blocks, at most 20 times a second and once at the end;
        ``total`` grows where the number of blocks depends on data.
        """
        binding = bind(self.function, args, self.written, self.checks)
        values: dict[Expr, Number] = dict(binding.dims)
        for p, value in zip(self.function.params, binding.values, strict=True):
            if isinstance(p.var.type, ScalarType) and not isinstance(value, View):
                values[p.var] = value
        known = count_blocks(self.function.body, self.program.region_names, values)
        watch = None
        if self.graph is not None and self.checks:
            watch = Watch(self.program, self.filename, self.graph.target, self.graph.hazards)
        rng = None if self.seed is None else Random(self.seed)
        launch = Launcher(self.regions, known, progress, watch, rng)
        # Extents that no region reads have no name in the program
        dims = {self.program.names[d][0]: n for d, n in binding.dims.items() if d in self.program.names}
        failure: PyptoError | None = None
        cause: Exception | None = None
        results: tuple[Any, ...] | None = None
        with torch.inference_mode(), one_thread():
            try:
                results = self.kernel(launch, *binding.values, **dims)
            except Exception as error:
                failure = blame(error, self.program, self.filename)
                cause = error if isinstance(failure, InternalError) else None
        if failure is not None:
            # The frames hold every live tile, and the error says what matters of them
            raise failure.with_traceback(None) from cause
        launch.report()
        return tuple(self._returned(r, binding.values, args) for r in results or ())

    def _facts(self, region: Region) -> RegionFacts:
        room = None
        if self.target is not None and must_be_resident(region):
            room = partial(require_room, region, self.target)
        if self.graph is None:
            return RegionFacts(region.name, require_room=room)
        task = next(t.index for t in self.graph.tasks if t.region is region)
        tensors = self.suspects.get(region.block, frozenset()) if region.block is not None else frozenset()
        return RegionFacts(region.name, task, frozenset(t.name for t in tensors), room)

    def _returned(self, value: Any, bound: tuple[View | Number, ...], args: Mapping[str, Any]) -> Any:
        """A returned tensor: the caller's own where it is an argument as a whole, else a copy."""
        if not isinstance(value, View):
            return value
        for p, b in zip(self.function.params, bound, strict=True):
            if isinstance(b, View) and b.buffer is value.buffer and b.shape == value.shape:
                own = args[p.name]
                return own if own.data_ptr() == value.buffer.data.data_ptr() else value.tensor().clone()
        return value.tensor().clone()


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiles are too small to share: threads gain nothing, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def simulate(
    function: Function, args: Mapping[str, Any], progress: Progress | None = None
) -> tuple[torch.Tensor | Number, ...]:
    """Run ``function`` once on ``args`` and give what it returns.  See :meth:`Machine.run`."""
    return Machine(function).run(args, progress)
