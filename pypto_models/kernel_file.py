"""A kernel file as the commands take it: its entries, and what it may define for the command line.

    def cli_constants(target: str) -> dict          values for `compile(constants=...)`, as with `--set`
    def cli_arguments(target: str, given: dict) -> dict
                                                    extents, scalar arguments and contents of index tensors,
                                                    for an estimate, as with `--extent`

    def cli_tuning(target: str) -> dict             constants that `tune` may choose, and the regions they
                                                    decide: {"part": {"regions": [...], "TILE": [32, 64]}}

All are optional.  ``target`` is the name of the target, such as ``a2a3``, in ``cli_constants`` and
``cli_tuning`` that of its tiling file: ``h200.triton`` for a backend that is not the default of ``h200``.
``given`` is what the user gave, so that one extent can follow from another.  What the user gives comes before
what the file says.  A constant that an entry does not read is left out for that entry, so that one function
serves all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import Diag, Span, UserError
from .foreign import load_module
from .language import Kernel
from .language.parameters import constant_names


@dataclass(frozen=True)
class KernelFile:
    path: Path
    module: ModuleType
    entries: tuple[Kernel, ...]

    @staticmethod
    def load(path: Path) -> KernelFile:
        """Import the file; raises a user error if it is missing, no Python, or fails to import."""
        module = load_module(path)
        file = str(path.resolve())
        kernels = (v for v in vars(module).values() if isinstance(v, Kernel))
        return KernelFile(path, module, tuple(k for k in kernels if k.file == file and not k.inline))

    def entry(self, name: str | None) -> Kernel:
        """The entry of that name, by default the first."""
        known = [k.name for k in self.entries]
        where = Span(str(self.path.resolve()), 1)
        if not known:
            raise UserError(Diag.NOT_A_KERNEL, where, {"what": "this file, which has no @pl.jit entry,"})
        if name is not None and name not in known:
            fields = {
                "name": "--kernel",
                "why": f"no entry is called {name!r}",
                "fix": f"known: {', '.join(known)}",
            }
            raise UserError(Diag.ARGUMENT, Span(where.file, 0), dict(fields))
        return self.entries[0 if name is None else known.index(name)]

    def constants(
        self, kernel: Kernel, target: str, given: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Constants for one entry: those of ``cli_constants`` that it reads, and ``given``."""
        hook = getattr(self.module, "cli_constants", None)
        values = self._mapping("cli_constants", hook(target)) if hook is not None else {}
        read = constant_names(kernel) if values else set()
        return {**{n: v for n, v in values.items() if n in read}, **(given or {})}

    def arguments(self, target: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """What an estimate starts from: ``cli_arguments`` and ``given``."""
        hook = getattr(self.module, "cli_arguments", None)
        values = self._mapping("cli_arguments", hook(target, dict(given))) if hook is not None else {}
        return {**values, **given}

    def tuning(self, target: str) -> Mapping[str, Any]:
        """What may be chosen besides schedules: ``cli_tuning``."""
        hook = getattr(self.module, "cli_tuning", None)
        return self._mapping("cli_tuning", hook(target)) if hook is not None else {}

    def _mapping(self, hook: str, value: object) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            return value
        raise UserError(
            Diag.ARGUMENT, Span(str(self.path.resolve()), 0),
            {"name": hook, "why": f"the function gives {type(value).__name__}", "fix": "return a dict"},
        )  # fmt: skip
