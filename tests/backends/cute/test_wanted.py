"""What tells blocks of a launch whether those of its tail do anything: the functions, and where they are."""

from __future__ import annotations

import random
import textwrap
from types import SimpleNamespace
from typing import Any

import pytest

from backends.cute.lower import lower
from backends.gpu.module import Module
from models.qwen3_14b.config import FULL
from models.qwen3_14b.constants import constants
from models.qwen3_14b.decode_layer import decode_layer
from pypto_models.compile import lower_for

from .support import module_of
from .tail_kernels import halves_where_asked
from .tail_sources import H200, functions, parsed, row, rows


def body(module: Module, name: str) -> list[str]:
    """The statements of a function of the emitted source."""
    lines = functions(module)[name].split("\n")[2:]
    return [x[4:] for x in lines[: next(i for i, x in enumerate(lines) if not x.startswith("    "))]]


def told(module: Module, name: str, task: int, *arguments: Any) -> bool:
    """What an emitted function gives for a task, of arrays and scalars."""
    text = module.source
    start = text.index(f"def {name}(")
    end = text.index("\n@cute", start)
    elements = SimpleNamespace(element=lambda array, at: array[at:])
    names: dict[str, Any] = {"Int32": int, "Int64": int, "Boolean": bool, "block": elements}
    exec("from __future__ import annotations\n" + text[start:end], names)
    return bool(names[name](*arguments, task))


# -------------------------------------------------------------------------------------------- whole kernels
def test_the_function_tells_which_blocks_write() -> None:
    """For all kinds of three rows: a kind of 0 means both halves, one of 2 the first half of its opposite."""
    module = module_of(halves_where_asked)
    for code in range(27):
        kinds = [code % 3, code // 3 % 3, code // 9]
        found = {t for t in range(6) if told(module, "halves_asked_wanted", t, kinds, 3)}
        whole = {2 * r + h for r in range(3) if kinds[r] == 0 for h in range(2)}
        first = {2 * (2 - r) for r in range(3) if kinds[r] == 2}
        assert found == whole | first, kinds


def test_it_is_asked_of_the_tasks_of_a_block_and_told_on_arrival() -> None:
    parts = functions(module_of(halves_where_asked))
    kernel = parts["totals_then_halves_asked"]
    asked = "    wanted = halves_asked_wanted(kinds, ROWS, arrival.own(tail_blocks, 264))\n"
    assert "    totals(doubled, sums, shared)\n" + asked + "    rank, ranks = arrival.arrive(" in kernel
    assert "arrival.arrive(arrivals, shared, tail_blocks, 264, wanted)" in kernel
    assert "if (read == 0):" in parts["halves_asked"]  # blocks of a rank may differ


def test_the_merge_of_attention_runs_where_there_is_something_to_merge() -> None:
    """Of heads that read no row, of one run, and of more; the table is there before the head waits."""
    given = constants(FULL, "h200")
    module = lower(lower_for(decode_layer, (), H200, given).function, H200)
    kernel = functions(module)["attention_then_attention_merge"]
    assert kernel.index("attention_merge_wanted(") < kernel.index("attention(run_table")
    lines = body(module, "attention_merge_wanted")
    assert not any(x.startswith("if ") for x in lines) and sum("row_table" in x for x in lines) == 2
    heads, table = FULL.kv_heads, [0, 0, 0, 3, 1, 0, 4, 2, 0]  # first run, runs, row of its sequence
    found = [told(module, "attention_merge_wanted", t, table) for t in range(3 * heads)]
    assert found == [True] * heads + [False] * heads + [True] * heads


def test_a_timing_build_asks_the_same() -> None:
    lowered = lower_for(halves_where_asked, (), H200, {}).function
    plain, timed = (functions(lower(lowered, H200, timing=t))["halves_asked_wanted"] for t in (False, True))
    assert plain == timed


# --------------------------------------------------------------------------------------------- what is known
E = "m = pl.reshape(n, [2, 2])\n" + rows("e", row("x"), "w") + "    pl.write(k, [i], i)\n"
A = rows("a", row("w"), "y")
STORE = f"pl.assemble(z, pl.neg({row('y')}), [i % 16, 0])"


def tail(text: str, blocks: str = "8") -> str:
    return f"for i in pl.spmd({blocks}, name_hint='b'):\n" + textwrap.indent(text + "\n", "    ")


def when(condition: str, then: str = STORE) -> str:
    return f"if {condition}:\n" + textwrap.indent(then, "    ")


N, K = "pl.read(n, [i % 4])", "pl.read(k, [i])"
MADE = f"c = 1\n{when(f'{N} > 0', 'c = i')}\n{when('c == 3')}"
LOOPED = f"c = 0\nfor t in pl.range(i):\n    c = c + pl.read(n, [t % 4])\n{when('c > 2')}"

# What the function gives of n, k and i; None where there is none.  Then whether it stands before the head
CASES: dict[str, tuple[str, Any, bool]] = {
    "an input": (when(f"{N} > 0"), lambda n, k, i: n[i % 4] > 0, True),
    "the block": (when("i == 3"), lambda n, k, i: i == 3, True),
    "what the launch before the head writes": (when(f"{K} > 2"), lambda n, k, i: k[i] > 2, False),
    "one of both": (when(f"{N} > 0 or {K} > 2"), lambda n, k, i: n[i % 4] > 0 or k[i] > 2, False),
    "two branches": (
        when(f"{N} > 0") + "\n" + when("i == 5"), lambda n, k, i: n[i % 4] > 0 or i == 5, True
    ),
    "one in the other": (
        when("i > 2", when(f"{N} > 0")), lambda n, k, i: i > 2 and n[i % 4] > 0, True
    ),
    "one in the other, of what is known before": (
        f"c = {N}\n" + when("i > 2", when("c > 0")), lambda n, k, i: i > 2 and n[i % 4] > 0, True
    ),
    "the other arm": (
        when("i > 2", "c = i") + "\nelse:\n    " + STORE, lambda n, k, i: i <= 2, True
    ),
    "an arm that surely writes": (
        when("i > 2", when(f"{N} > 0")) + "\nelse:\n    " + STORE,
        lambda n, k, i: i <= 2 or n[i % 4] > 0, True
    ),
    "a scalar of a branch": (MADE, lambda n, k, i: (i if n[i % 4] > 0 else 1) == 3, True),
    "a loop with a store": (
        when(f"{N} > 0", f"for t in pl.range(2):\n    {STORE}"), lambda n, k, i: n[i % 4] > 0, True
    ),
    "an input as a view": (when("pl.read(m, [1, i % 2]) > 0"), lambda n, k, i: n[2 + i % 2] > 0, True),
    "a branch that needs more, under another": (
        when(f"{N} > 0", when("pl.read(y, [i, 0]) > 0.0")), lambda n, k, i: n[i % 4] > 0, True
    ),
    "a branch that needs more, without effect": (
        when("pl.read(y, [i, 0]) > 0.0", "c = i") + "\n" + when("i == 3"), lambda n, k, i: i == 3, True
    ),
    "no branch": (STORE, None, False),
    "a store beside a branch": (when(f"{N} > 0") + "\n" + STORE, None, False),
    "a store in both arms": (when(f"{N} > 0") + "\nelse:\n    " + STORE, None, False),
    "what the head writes": (when("pl.read(y, [i, 0]) > 0.0"), None, False),
    "what the tail writes": (
        when("pl.read(o, [i, 0]) > 0.0", f"{STORE}\npl.assemble(o, {row('y')}, [i % 16, 0])"), None, False
    ),
    "a scalar of a loop": (LOOPED, None, False),
    "a branch in a loop": (
        "for t in pl.range(2):\n" + textwrap.indent(when("i + t > 3"), "    "), None, False
    ),
    "a scalar of a branch that writes": (
        f"c = 1\n{when(f'{N} > 0', f'{STORE}{chr(10)}c = 2')}\n{when('c == i')}", None, False
    ),
    "a scalar that needs more in one arm": (
        "c = 1.0\n" + when(f"{N} > 0", "c = pl.read(y, [i, 0])") + "\n" + when("c == 3.0"), None, False
    ),
    "a scalar that needs more": (
        "c = 1\n" + when("pl.read(y, [i, 0]) > 0.0", "c = i") + "\n" + when("c == 3"), None, False
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_known_before_the_tail(case: str) -> None:
    text, expected, early = CASES[case]
    module = lower(parsed(E, A, tail(text)), H200)
    parts = functions(module)
    assert "a_then_b" in parts
    assert ("b_wanted" in parts) == (expected is not None)
    kernel = parts["a_then_b"]
    if expected is None:
        assert "wanted" not in kernel and "arrival.own" not in kernel
        return
    assert (kernel.index("b_wanted(") < kernel.index("    a(")) == early
    taken = [x.split(":")[0] for x in parts["b_wanted"].split(")")[0].split(", ")][:-1]
    rng = random.Random(case)
    for _ in range(20):
        arrays = {"n": [rng.randint(-1, 1) for _ in range(4)], "k": [rng.randint(0, 5) for _ in range(8)]}
        for i in range(8):
            assert told(module, "b_wanted", i, *(arrays[x] for x in taken)) == expected(**arrays, i=i)


def test_a_tail_that_may_have_no_blocks_has_none_to_ask_for() -> None:
    module = lower(parsed(E, A, tail(when(f"{N} > 0"), "pl.tensor.dim(v, 0) - 1")), H200)
    assert "a_then_b" in functions(module) and "wanted" not in module.source


def test_an_input_that_may_be_read_before_the_wait_is_noted() -> None:
    """The launch before the head may have no blocks: then nothing says that the programs before are done."""
    head = rows("c", row("w"), "o", "pl.tensor.dim(v, 0) - 1") + rows("a", row("o"), "y")
    plain, asking = (lower(parsed(E, head, tail(x)), H200) for x in (STORE, when(f"{N} > 0")))
    assert "a_then_b" in functions(plain) and "b_wanted(n, " in functions(asking)["a_then_b"]
    assert set(asking.early) - set(plain.early) == {"n"}
