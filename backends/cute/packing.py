"""Where the tiles of a kernel lie in shared memory: those that are never needed together share a place.

Read from the emitted text.  A tile lives from the first line that names it, or a pointer into it, to the
last.  One that a loop names lives as long as the loop does, unless each trip makes it anew: all lines that
name it are inside, in one block, and the barrier that ends the work of the first ones is in that block too,
not in a branch.  They find no value in the first trip, so they write it, in this as in every trip.

Another may take its place behind a barrier that every run passes which needs the first, or every run which
needs the other: the threads that still read the first have then passed.  If both live in trips of one loop,
such a barrier must also lie between the second and the first in the next trip.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

from .text import BARRIER

ALIGNMENT = 128
NAME = re.compile(r"[A-Za-z_]\w*")
POINTER = re.compile(r"\s*([A-Za-z_]\w*) = (.*)")  # unless only elements are read
ELEMENT = re.compile(r"block\.element\([^\[\]]*\)\[0\]")


@dataclass(frozen=True)
class Life:
    """Lines of the text, both ends included; the tile is first named in line ``begun``, and always in the
    blocks that the lines ``around`` open.  Each trip of the loops ``trips``, outermost first, makes it anew.
    """

    first: int
    last: int
    begun: int
    around: tuple[int, ...]
    trips: tuple[int, ...] = ()


def packed(lines: Sequence[str], sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """The place of each tile, by name, and the bytes of all; ``sizes`` in bytes."""
    heads = headers(lines)
    barriers = [i for i, line in enumerate(lines) if line.strip() == BARRIER]
    ends = loops(lines, heads)
    found = lifetimes(lines, heads, ends, barriers, sizes)
    lives = {n: life for n, life in found.items() if life is not None}

    def barrier(first: int, last: int, *needed: Life) -> bool:
        """Whether one in between is passed wherever one of the tiles is needed."""
        between = [heads[i] for i in barriers if first < i < last]
        return any(x.around[: len(h)] == h for h in between for x in needed)

    def apart(a: Life, b: Life) -> bool:
        """Whether b begins behind a barrier behind the end of a, and so does a in a next trip, behind b."""
        both = [loop for loop in a.trips if loop in b.trips]
        again = not both or barrier(b.last, ends[both[-1]] + 1, b) or barrier(both[-1], a.begun, a)
        return barrier(a.last, b.begun, a, b) and again

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
    lines: Sequence[str],
    heads: Sequence[tuple[int, ...]],
    ends: dict[int, int],
    barriers: Sequence[int],
    names: dict[str, int],
) -> dict[str, Life | None]:
    """The lines that name each tile or a pointer into it; None if no line does."""
    of: dict[str, set[str]] = {n: {n} for n in names}  # the tiles that a name may point into
    seen: dict[str, list[int]] = {n: [] for n in names}
    pointers = [POINTER.fullmatch(line) for line in lines]
    written = Counter(x[1] for x in pointers if x)
    kept: set[str] = set()  # tiles of pointers that a loop may carry

    def tiles(text: str) -> set[str]:
        return {tile for x in NAME.findall(text) for tile in of.get(x, ())}

    for i, (line, assigned) in enumerate(zip(lines, pointers, strict=True)):
        right = assigned[2] if assigned else line
        for tile in tiles(right):
            seen[tile].append(i)
        if assigned and not right.endswith("[0]"):
            into = tiles(ELEMENT.sub("", right))
            of[assigned[1]] = into | ({assigned[1]} & set(names))
            kept |= into if written[assigned[1]] > 1 else set()
    out: dict[str, Life | None] = dict.fromkeys(names)
    for n, found in seen.items():
        if found:
            around = tuple(commonprefix([heads[i] for i in found]))
            behind = next((heads[i] for i in barriers if i > found[0]), None)
            anew = behind == around and n not in kept
            out[n] = whole(found, heads, ends, tuple(h for h in around if h in ends and anew))
    return out


def loops(lines: Sequence[str], heads: Sequence[tuple[int, ...]]) -> dict[int, int]:
    """The last line of each loop, by its first."""
    ends: dict[int, int] = {}
    for i, around in enumerate(heads):
        for head in around:
            if lines[head].lstrip().startswith(("for ", "while ")):
                ends[head] = i
    return ends


def whole(
    found: Sequence[int], heads: Sequence[tuple[int, ...]], ends: dict[int, int], trips: tuple[int, ...]
) -> Life:
    """From the first line to the last, and to the ends of the loops around any of them but ``trips``."""
    again = {head for i in found for head in heads[i] if head in ends and head not in trips}
    first, last = min((found[0], *again)), max((found[-1], *(ends[h] for h in again)))
    return Life(first, last, found[0], tuple(commonprefix([heads[i] for i in found])), trips)


def up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
