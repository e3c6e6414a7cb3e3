"""Places of tiles in shared memory: which may share one, by cases and against runs of random texts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.cute.packing import ALIGNMENT, packed
from backends.cute.text import BARRIER

SIZES = {"a": 128, "b": 128}


def lines(text: str) -> list[str]:
    """A text in which `|` stands for a barrier."""
    return [x.replace("|", BARRIER) for x in text.strip("\n").split("\n")]


def shares(text: str) -> bool:
    """Whether a and b have one place."""
    places, total = packed(lines(text), SIZES)
    assert total == max(places.values()) + 128
    return places["a"] == places["b"]


# --------------------------------------------------------------------------------------------------- cases
CASES = {
    "a barrier in between": ("put(a)\n|\nput(b)", True),
    "no barrier": ("put(a)\nput(b)", False),
    "only a barrier before": ("|\nput(a)\nput(b)\n|", False),
    "needed again": ("put(a)\n|\nput(b)\n|\nuse(a)", False),
    "a pointer into it": ("put(a)\np = a + 8\n|\nput(b)\nuse(p)", False),
    "a pointer from a pointer": ("put(a)\np = a + 8\nq = p + 8\n|\nput(b)\nuse(q)", False),
    "a pointer with an end": ("put(a)\np = a + 8\nuse(p)\n|\nput(b)", True),
    "an element of it is a value": ("put(a)\nv = block.element(a, 3)[0]\n|\nput(b)\nuse(v)", True),
    "a longer name": ("put(a)\n|\nput(b)\nuse(a_2, xa)", True),
    "in one loop": ("for i in r:\n    put(a)\n    |\n    put(b)\n    |", False),
    "needed in a loop": ("put(a)\nfor i in r:\n    use(a)\n    |\n    put(b)", False),
    "needed in an outer loop": (
        "put(a)\nfor i in r:\n    use(a)\n    for j in r:\n        |\n        put(b)\n    |", False
    ),
    "behind the loop": ("for i in r:\n    put(a)\n    |\nput(b)", False),
    "behind the loop and a barrier": ("for i in r:\n    put(a)\n|\nput(b)", True),
    "before a loop with a barrier": ("put(a)\nfor i in r:\n    |\n    put(b)", True),
    "a barrier in another loop": ("put(a)\nfor i in r:\n    |\nput(b)", False),
    "a while loop": ("put(a)\nwhile c:\n    use(a)\n    |\n    put(b)", False),
    "both arms": ("if c:\n    put(a)\n    |\nelse:\n    put(b)", True),
    "both arms, no barrier": ("if c:\n    put(a)\nelse:\n    put(b)", False),
    "a barrier in the arm": ("put(a)\nif c:\n    |\n    put(b)", True),
    "a barrier in another arm": ("put(a)\nif c:\n    |\nelse:\n    put(b)", False),
    "a barrier at the end of the arm": ("if c:\n    put(a)\n    |\nput(b)", True),
    "a barrier in an arm in between": ("put(a)\nif c:\n    |\nput(b)", False),
    "a barrier where only the last reader passes": ("put(a)\nif c:\n    use(a)\n    |\nput(b)", False),
    "a barrier before one of two writers": (
        "put(a)\nif c:\n    |\n    put(b)\nelse:\n    put(b)\n|\nuse(b)", False
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_when_two_tiles_share_a_place(case: str) -> None:
    text, expected = CASES[case]
    assert shares(text) is expected


def test_places_are_aligned_and_close() -> None:
    text = lines("put(a, b)\n|\nput(c)\n|\nuse(d)")
    assert packed(text, {"a": 4, "b": 129, "c": 512, "d": 1, "unused": 99}) == (
        {"a": 0, "b": ALIGNMENT, "c": 0, "d": 0}, 512
    )  # fmt: skip
    assert packed(text, {}) == ({}, 0)


def test_a_tile_takes_the_gap_between_two() -> None:
    text = lines("put(a, b, c)\n|\nuse(a, c)\nput(d)\nuse(e)")
    sizes = {"a": 128, "b": 256, "c": 128, "d": 200, "e": 128}
    assert packed(text, sizes) == ({"a": 0, "b": 128, "c": 384, "d": 128, "e": 512}, 640)


# ------------------------------------------------------------------------------------------- random texts
@dataclass
class Writer:
    """A text with tiles, pointers into them, values, barriers, loops and branches, and its runs.

    Nothing here is read from the text: `runs` walks the statements that it was written from.
    """

    draw: random.Random
    names: int
    lines: list[str] = field(default_factory=list)
    count: int = 0

    def block(self, depth: int, known: dict[str, str]) -> list[tuple[object, ...]]:
        """Writes statements; ``known``: names in scope and their tiles."""
        known = dict(known)
        out: list[tuple[object, ...]] = []
        indent = "    " * depth
        for _ in range(self.draw.randint(1, 4 if depth else 7)):
            kind = self.draw.choice(("use", "use", "use", "use", "pointer", "value", "barrier", "barrier",
                                     *(("loop", "branch", "branch") if depth < 3 else ())))  # fmt: skip
            name = self.draw.choice([*known])
            self.count += 1
            if kind == "use":
                self.lines.append(f"{indent}block.touch({name}, {self.count})")
                out.append(("use", known[name]))
            elif kind == "pointer":
                self.lines.append(f"{indent}p{self.count} = {name} + {self.count}")
                out.append(("use", known[name]))
                known[f"p{self.count}"] = known[name]
            elif kind == "value":
                self.lines.append(f"{indent}v{self.count} = block.element({name}, 0)[0]")
                out.append(("use", known[name]))
            elif kind == "barrier":
                self.lines.append(indent + BARRIER)
                out.append(("barrier",))
            elif kind == "loop":
                self.lines.append(f"{indent}for i{self.count} in cutlass.range(n, unroll=1):")
                out.append(("loop", self.block(depth + 1, known)))
            else:
                self.lines.append(f"{indent}if c{self.count} == 0:")
                then = self.block(depth + 1, known)
                other: list[tuple[object, ...]] = []
                if self.draw.random() < 0.6:
                    self.lines.append(f"{indent}else:")
                    other = self.block(depth + 1, known)
                out.append(("branch", then, other))
        return out


def run(block: list[tuple[object, ...]], draw: random.Random) -> Iterator[str]:
    """The tiles that one run touches, in order, and "|" for barriers."""
    for s in block:
        if s[0] == "use":
            yield str(s[1])
        elif s[0] == "barrier":
            yield "|"
        elif s[0] == "loop":
            for _ in range(draw.randrange(3)):
                yield from run(s[1], draw)  # type: ignore[arg-type]
        else:
            yield from run(s[draw.choice((1, 2))], draw)  # type: ignore[arg-type]


def clash(events: list[str], a: str, b: str) -> bool:
    """Whether a run would see two tiles of one place disturb each other."""
    mine = [(i, e) for i, e in enumerate(events) if e in (a, b)]
    turns = [(i, j) for (i, e), (j, f) in itertools.pairwise(mine) if e != f]
    return len(turns) > 1 or any("|" not in events[i:j] for i, j in turns)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_tiles_of_one_place_never_meet_in_any_run(seed: int, names: int) -> None:
    draw = random.Random(seed)
    sizes = {f"t{i}": draw.choice((4, 128, 300, 1000)) for i in range(names)}
    writer = Writer(draw, names)
    body = writer.block(0, {n: n for n in sizes})
    places, total = packed(writer.lines, sizes)
    text = "\n".join(writer.lines)
    assert total == max((at + sizes[n] + -sizes[n] % 128 for n, at in places.items()), default=0)
    assert all(at % 128 == 0 for at in places.values())
    together = [
        (a, b) for a, b in itertools.combinations(places, 2)
        if places[a] < places[b] + sizes[b] and places[b] < places[a] + sizes[a]
    ]  # fmt: skip
    for _ in range(40 if together else 0):
        events = [*run(body, draw)]
        assert set(events) - {"|"} <= set(places)
        for a, b in together:
            assert not clash(events, a, b), f"{a} and {b} share a place: {events}\n{text}"
