"""The text of one kernel under construction: lines and names."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass
class Text:
    """Lines at an indentation; names are unique in the kernel, values found once per run of lines.

    ``apart``: a barrier lies between here and the last trip of every loop around, so that a buffer which each
    trip writes anew has no readers left.
    """

    lines: list[str] = field(default_factory=list)
    depth: int = 1
    taken: set[str] = field(default_factory=set)
    known: dict[object, str] = field(default_factory=dict)
    apart: bool = True

    reserved: ClassVar[frozenset[str]] = frozenset()  # names that a kernel must not take
    generated: ClassVar[re.Pattern[str] | None] = None  # what a compiler calls its own variables
    barrier: ClassVar[str] = ""  # the line at which all threads of a block meet

    def unique(self, wanted: str) -> str:
        base = re.sub(r"\W", "_", wanted).strip("_") or "x"
        if base[0].isdigit() or keyword.iskeyword(base):
            base = f"x_{base}"
        if self.generated is not None and self.generated.fullmatch(base):
            base = f"{base}_"
        name, n = base, 1
        while name in self.taken or name in self.reserved:
            n += 1
            name = f"{base.rstrip('_')}_v{n}" if base.endswith("_") else f"{base}_{n}"
        self.taken.add(name)
        return name

    def line(self, text: str) -> None:
        line = "    " * self.depth + text
        if text != self.barrier or not self.lines or self.lines[-1] != line:
            self.lines.append(line)
        if text == self.barrier:
            self.apart = True

    def part(self) -> None:
        """A barrier before a buffer is written that the last trip of a loop may still read."""
        if not self.apart:
            self.line(self.barrier)

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
