"""The text of one kernel under construction: lines, names, shared buffers."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_RESERVED = {
    "cutlass", "cute", "arrival", "block", "stream", "utils", "tid", "lane", "warp", "smem", "shared",
    "env", "min", "max", "range", "BFloat16", "Float16", "Float32", "Int8", "Int16", "Int32", "Int64",
    "Uint8", "Uint16", "Uint32", "Boolean",
}  # fmt: skip


# What CuTe DSL calls its own variables when it rewrites loops and branches, with a number behind.  It does
# not look whether the name is taken: a kernel's variable of that name would change its value.
_GENERATED = re.compile(
    r"(start|stop|step|offset|isNegative|(start|stop|step)_ori|loop_carried_var|loop_body|(if|elif|while)_region"
    r"|(ifexp_)?(then|else)_block|while_(before|after)_block|_pyir_\w+)(_\d+)?"
)

BARRIER = "cute.arch.sync_threads()"


@dataclass
class Text:
    """Lines at an indentation; names are unique in the kernel, values found once per run of lines.

    ``apart``: a barrier lies between here and the last trip of every loop around, so that a buffer which each
    trip writes anew has no readers left.
    """

    lines: list[str] = field(default_factory=list)
    depth: int = 1
    taken: set[str] = field(default_factory=lambda: set(_RESERVED))
    known: dict[object, str] = field(default_factory=dict)
    apart: bool = True

    def unique(self, wanted: str) -> str:
        base = re.sub(r"\W", "_", wanted).strip("_") or "x"
        if base[0].isdigit() or keyword.iskeyword(base):
            base = f"x_{base}"
        if _GENERATED.fullmatch(base):
            base = f"{base}_"
        name, n = base, 1
        while name in self.taken:
            n += 1
            name = f"{base.rstrip('_')}_v{n}" if base.endswith("_") else f"{base}_{n}"
        self.taken.add(name)
        return name

    def line(self, text: str) -> None:
        line = "    " * self.depth + text
        if text != BARRIER or not self.lines or self.lines[-1] != line:
            self.lines.append(line)
        if text == BARRIER:
            self.apart = True

    def part(self) -> None:
        """A barrier before a buffer is written that the last trip of a loop may still read."""
        if not self.apart:
            self.line(BARRIER)

    def let(self, wanted: str, value: str) -> str:
        """A new name for ``value``."""
        name = self.unique(wanted)
        self.line(f"{name} = {value}")
        return name

    def once(self, key: object, wanted: str, value: str) -> str:
        """The name of ``value`` in this run of lines, written the first time that ``key`` is asked for."""
        if key not in self.known:
            self.known[key] = self.let(wanted, value)
        return self.known[key]

    @contextmanager
    def nested(self, head: str, loop: bool = False) -> Iterator[None]:
        """``head`` and an indented block: what is found in it is not known behind it."""
        self.line(head)
        before, outer, apart = len(self.lines), self.known, self.apart
        self.known = dict(outer)
        self.apart = apart and not loop
        self.depth += 1
        yield
        self.apart = apart
        if len(self.lines) == before:
            self.line("pass")
        self.depth -= 1
        self.known = outer
