"""Where the tiles of a kernel lie in shared memory: those that are never needed together share a place.

Read from the emitted text.  A tile lives from the first line that names it, or a pointer into it, to the
last; one that a loop names lives as long as the loop does.  Another may take its place behind a barrier that
every run passes which needs the first, or every run which needs the other: the threads that still read the
first have then passed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

from .text import BARRIER

ALIGNMENT = 128
NAME = re.compile(r"[A-Za-z_]\w*")
POINTER = re.compile(r"\s*([A-Za-z_]\w*) = (.*)")  # unless it is an element that is read


@dataclass(frozen=True)
class Life:
    """Lines of the text, both ends included; the tile is first named in line ``begun``, and always in the
    blocks that the lines ``around`` open.
    """

    first: int
    last: int
    begun: int
    around: tuple[int, ...]


def packed(lines: Sequence[str], sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """The place of each tile, by name, and the bytes of all; ``sizes`` in bytes."""
    heads = headers(lines)
    barriers = [i for i, line in enumerate(lines) if line.strip() == BARRIER]
    lives = {n: life for n, life in lifetimes(lines, heads, sizes).items() if life is not None}

    def apart(a: Life, b: Life) -> bool:
        """Whether b begins behind a barrier behind the end of a."""
        between = (heads[i] for i in barriers if a.last < i < b.begun)
        return any(x.around[: len(h)] == h for h in between for x in (a, b))

    places: dict[str, int] = {}
    for name in sorted(lives, key=lambda n: lives[n].first):
        size, life = up(sizes[name]), lives[name]
        beside = [n for n in places if not apart(lives[n], life)]
        taken = sorted((places[n], places[n] + up(sizes[n])) for n in beside)
        at = 0
        for start, end in taken:
            if at + size <= start:
                break
            at = max(at, end)
        places[name] = at
    return places, max((places[n] + up(sizes[n]) for n in places), default=0)


def headers(lines: Sequence[str]) -> list[tuple[int, ...]]:
    """Of each line, the lines that open the blocks around it."""
    out: list[tuple[int, ...]] = []
    open_: list[tuple[int, int]] = []  # line, indentation
    for i, line in enumerate(lines):
        depth = len(line) - len(line.lstrip())
        while open_ and open_[-1][1] >= depth:
            open_.pop()
        out.append(tuple(n for n, _ in open_))
        if line.rstrip().endswith(":"):
            open_.append((i, depth))
    return out


def lifetimes(
    lines: Sequence[str], heads: Sequence[tuple[int, ...]], names: dict[str, int]
) -> dict[str, Life | None]:
    """The lines that name each tile or a pointer into it; None if no line does."""
    of: dict[str, set[str]] = {n: {n} for n in names}  # the tiles that a name may point into
    seen: dict[str, list[int]] = {n: [] for n in names}
    for i, line in enumerate(lines):
        assigned = POINTER.fullmatch(line)
        right = assigned[2] if assigned else line
        tiles = {tile for x in NAME.findall(right) for tile in of.get(x, ())}
        if assigned and not right.endswith("[0]"):
            of[assigned[1]] = tiles | ({assigned[1]} & set(names))
        for tile in tiles:
            seen[tile].append(i)
    ends = loops(lines, heads)
    return {n: whole(found, heads, ends) if found else None for n, found in seen.items()}


def loops(lines: Sequence[str], heads: Sequence[tuple[int, ...]]) -> dict[int, int]:
    """The last line of each loop, by its first."""
    ends: dict[int, int] = {}
    for i, around in enumerate(heads):
        for head in around:
            if lines[head].lstrip().startswith(("for ", "while ")):
                ends[head] = i
    return ends


def whole(found: Sequence[int], heads: Sequence[tuple[int, ...]], ends: dict[int, int]) -> Life:
    """From the first line to the last, and to the ends of the loops around any of them."""
    again = {head for i in found for head in heads[i] if head in ends}
    first, last = min((found[0], *again)), max((found[-1], *(ends[h] for h in again)))
    return Life(first, last, found[0], tuple(commonprefix([heads[i] for i in found])))


def up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
