"""The text of one kernel under construction: lines, names, shared buffers."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_RESERVED = {
    "cutlass", "cute", "block", "stream", "utils", "tid", "lane", "warp", "smem", "env", "min", "max",
    "range", "BFloat16", "Float16", "Float32", "Int8", "Int16", "Int32", "Int64", "Uint8", "Uint16",
    "Uint32", "Boolean",
}  # fmt: skip


BARRIER = "cute.arch.sync_threads()"


@dataclass
class Text:
    """Lines at an indentation; names are unique in the kernel, values found once per run of lines."""

    lines: list[str] = field(default_factory=list)
    depth: int = 1
    taken: set[str] = field(default_factory=lambda: set(_RESERVED))
    known: dict[object, str] = field(default_factory=dict)

    def unique(self, wanted: str) -> str:
        base = re.sub(r"\W", "_", wanted).strip("_") or "x"
        if base[0].isdigit() or keyword.iskeyword(base):
            base = f"x_{base}"
        name, n = base, 1
        while name in self.taken:
            n += 1
            name = f"{base}_{n}"
        self.taken.add(name)
        return name

    def line(self, text: str) -> None:
        line = "    " * self.depth + text
        if text != BARRIER or not self.lines or self.lines[-1] != line:
            self.lines.append(line)

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
    def nested(self, head: str) -> Iterator[None]:
        """``head`` and an indented block: what is found in it is not known behind it."""
        self.line(head)
        before, outer = len(self.lines), self.known
        self.known = dict(outer)
        self.depth += 1
        yield
        if len(self.lines) == before:
            self.line("pass")
        self.depth -= 1
        self.known = outer
