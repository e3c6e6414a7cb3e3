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
    "needed in a loop": ("put(a)\nfor i in r:\n    use(a)\n    |\n    put(b)", False),
    "needed in an outer loop": (
        "put(a)\nfor i in r:\n    use(a)\n    for j in r:\n        |\n        put(b)\n    |", False
    ),
    "behind the loop": ("for i in r:\n    put(a)\nput(b)", False),
    "behind the loop that needs it": ("put(a)\nfor i in r:\n    use(a)\n    |\nput(b)", False),
    "behind the loop with a barrier": ("for i in r:\n    put(a)\n    |\nput(b)", True),
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


def trips(*inside: str) -> str:
    return "for i in r:\n" + "\n".join(f"    {line}" for line in inside)


CASES |= {
    "in one trip": (trips("put(a)", "|", "put(b)", "|"), True),
    "in one trip, a barrier before": (trips("|", "put(a)", "|", "put(b)", "|", "use(b)"), True),
    "in one trip, none before the next": (trips("put(a)", "|", "put(b)", "|", "use(b)"), False),
    "in one trip, none in between": (trips("|", "put(a)", "put(b)", "|"), False),
    "in one trip, by some threads": (
        trips("if t == 0:", "    put(a)", "|", "use(a)", "|", "put(b)", "|"), True
    ),
    "in one trip of two loops": (trips("for j in r:", "    put(a)", "    |", "    put(b)", "    |"), True),
    "in some trips": (trips("if c:", "    put(a)", "    |", "use(a)", "|", "put(b)", "|"), False),
    "behind it, in some trips": (
        trips("put(a)", "|", "if c:", "    put(b)", "    |", "use(b)", "|"), False
    ),
    "in one trip and an inner loop": (
        trips("put(a)", "|", "use(a)", "for j in r:", "    |", "    put(b)", "    |", "|"), True
    ),
    "kept over an inner loop": (
        trips("put(a)", "|", "for j in r:", "    use(a)", "    |", "    put(b)", "    |", "|"), False
    ),
    "a barrier behind it in an arm": (trips("put(a)", "|", "if c:", "    put(b)", "    |"), True),
    "a barrier behind it in another arm": (
        trips("put(a)", "|", "put(b)", "if c:", "    |", "use(x)"), False
    ),
    "a pointer that the trips carry": (
        "p = x\n" + trips("use(p)", "put(a)", "|", "p = a + 8", "|", "put(b)", "|"), False
    ),
    "a sum of its elements": (
        trips("put(a)", "|", "v = block.element(a, 0)[0]", "v = larger(v, block.element(a, 1)[0])",
              "|", "put(b)", "|"), True
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

    A tile is made in any block, and used there and in blocks within.  What makes it may leave out threads,
    and ends with a barrier.  Nothing here is read from the text: `run` walks the statements that it was
    written from.
    """

    draw: random.Random
    unmade: list[str]
    lines: list[str] = field(default_factory=list)
    count: int = 0

    def block(self, depth: int, known: dict[str, str]) -> list[tuple[object, ...]]:
        """Writes statements; ``known``: names in scope and their tiles."""
        known = dict(known)
        out: list[tuple[object, ...]] = []
        indent = "    " * depth
        for _ in range(self.draw.randint(2, 5 if depth else 7)):
            kind = self.draw.choice((*("use",) * 4, *("make",) * 3, "pointer", "value", "barrier", "barrier",
                                     *(("loop", "loop", "branch") if depth < 3 else ())))  # fmt: skip
            self.count += 1
            if kind == "make" and self.unmade:
                name = self.unmade.pop()
                some = self.draw.choice(("", f"if lane == {self.count}:", f"for e{self.count} in r:"))
                self.lines += [indent + some] if some else []
                self.lines.append(f"{indent}{'    ' if some else ''}block.put({name}, {self.count})")
                self.lines.append(indent + BARRIER)
                out += [("put", name), ("barrier",)]
                known[name] = name
            elif kind == "barrier":
                self.lines.append(indent + BARRIER)
                out.append(("barrier",))
            elif kind == "loop":
                self.lines.append(f"{indent}for i{self.count} in cutlass.range(n, unroll=1):")
                out.append(("loop", self.block(depth + 1, known)))
            elif kind == "branch":
                self.lines.append(f"{indent}if c{self.count} == 0:")
                then = self.block(depth + 1, known)
                other: list[tuple[object, ...]] = []
                if self.draw.random() < 0.6:
                    self.lines.append(f"{indent}else:")
                    other = self.block(depth + 1, known)
                out.append(("branch", then, other))
            elif known:
                name = self.draw.choice([*known])
                out.append(("use", known[name]))
                if kind == "pointer":
                    self.lines.append(f"{indent}p{self.count} = {name} + {self.count}")
                    known[f"p{self.count}"] = known[name]
                elif kind == "value":
                    self.lines.append(f"{indent}v{self.count} = block.element({name}, 0)[0]")
                else:
                    self.lines.append(f"{indent}block.touch({name}, {self.count})")
        if not out:
            self.lines.append(f"{indent}pass")
        return out


def run(block: list[tuple[object, ...]], draw: random.Random) -> Iterator[str]:
    """The tiles that one run touches, in order, "+" before one that is made, and "|" for barriers."""
    for s in block:
        if s[0] == "use":
            yield str(s[1])
        elif s[0] == "put":
            yield f"+{s[1]}"
        elif s[0] == "barrier":
            yield "|"
        elif s[0] == "loop":
            for _ in range(draw.randrange(4)):
                yield from run(s[1], draw)  # type: ignore[arg-type]
        else:
            yield from run(s[draw.choice((1, 2))], draw)  # type: ignore[arg-type]


def clash(events: list[str], a: str, b: str) -> bool:
    """Whether a run would see two tiles of one place disturb each other."""
    mine = [(i, e) for i, e in enumerate(events) if e.lstrip("+") in (a, b)]
    turns = [(i, j) for (i, e), (j, f) in itertools.pairwise(mine) if e.lstrip("+") != f.lstrip("+")]
    return any("|" not in events[i:j] or not events[j].startswith("+") for i, j in turns)


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_tiles_of_one_place_never_meet_in_any_run(seed: int, names: int) -> None:
    draw = random.Random(seed)
    sizes = {f"t{i}": draw.choice((4, 128, 300, 1000)) for i in range(names)}
    writer = Writer(draw, [*sizes])
    body = writer.block(0, {})
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
        assert {e.lstrip("+") for e in events} - {"|"} <= set(places)
        for a, b in together:
            assert not clash(events, a, b), f"{a} and {b} share a place: {events}\n{text}"
