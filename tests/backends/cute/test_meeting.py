"""Where the threads of a block meet because of what they read and write in global memory."""

from __future__ import annotations

import re
import textwrap

import pytest

import pypto_models.language as pl
from backends.cute.lower import lower
from backends.cute.meeting import met
from backends.cute.text import BARRIER, Text
from pypto_models.compile import lower_function
from pypto_models.target import load_target

HEAD = """import pypto_models.language as pl

@pl.jit
def kernel(
    n: pl.Tensor[[4], pl.INT32],
    a: pl.Tensor[[64, 64], pl.FP32],
    x: pl.InOut[pl.Tensor[[64, 64], pl.FP32]],
    y: pl.InOut[pl.Tensor[[64, 64], pl.FP32]],
):
    for b in pl.spmd(1, name_hint='block'):
"""
A = "t = pl.slice(a, [32, 64], [0, 0])\n"
LOAD = "t = pl.slice(x, [32, 64], [0, 0])\n"
LOAD_AGAIN = "u = pl.slice(x, [32, 64], [16, 0])\n"
SUM = "v = pl.col_sum(t)\npl.assemble(y, v, [40, 0])\n"
STORE = "pl.assemble(x, t, [1, 0])\n"
STORE_Y = "pl.assemble(y, t, [0, 0])\n"
STORE_AGAIN = "pl.assemble(y, u, [0, 0])\n"
LOOP = "for j in pl.range(pl.cast(pl.read(n, [0]), pl.INDEX)):\n"


def inside(head: str, *parts: str) -> str:
    return head + textwrap.indent("".join(parts), "    ")


def events(*parts: str) -> str:
    """What one thread does with tiles, in order: L loads, S stores, | meets the others, ( begins a loop."""
    source = HEAD + textwrap.indent("".join(parts), "        ")
    function = lower_function(pl.parse(source, "kernel"), load_target("h200")).function
    (kernel,) = lower(function, load_target("h200")).kernels
    found = re.findall(
        r"for \w+ in cutlass\.range\(Int32|block\.load_run|block\.store_run|sync_threads", kernel.text
    )
    return "".join(
        {"block.load_run": "L", "block.store_run": "S", "sync_threads": "|"}.get(x, "(") for x in found
    )


@pytest.mark.parametrize(
    ("parts", "expected"),
    {
        "nobody has read": ((A, STORE), "LS"),
        "others have read": ((LOAD, STORE), "L|S"),
        "they have met since": ((LOAD, SUM, STORE), "L|SS"),
        "read behind": ((A, STORE, LOAD_AGAIN, STORE_AGAIN), "L|S|LS"),
        "others have written": ((LOAD, SUM, STORE, STORE_Y), "L|SS|S"),
        "the next trip writes, too": ((A, inside(LOOP, STORE)), "L(|S"),
        "the next trip reads": ((inside(LOOP, LOAD, STORE),), "(L|S|"),
        "the trip has met": ((A, inside(LOOP, SUM, STORE)), "L(||SS"),
    }.values(),
)
def test_threads_meet_where_one_might_see_what_another_writes(parts: tuple[str, ...], expected: str) -> None:
    assert events(*parts) == expected


def written(*lines: str) -> Text:
    text = Text()
    for line in lines:
        text.lines.append(line)
    return text


@pytest.mark.parametrize(
    ("lines", "depth", "expected"),
    [
        (("    v = x[0]", f"    {BARRIER}"), 1, True),
        (("    v = x[0]", f"    {BARRIER}", "    w = x[1]"), 1, False),
        (("    v = x[0]", f"    {BARRIER}", "    w = x_2[1]"), 1, True),
        (("    v = x[0]", "    if a:", f"        {BARRIER}"), 1, False),
        (("    v = x[0]", f"    {BARRIER}", "    if a:", "        b = 1"), 2, True),
        (("    v = x[0]", f"    {BARRIER}", "    for i in cutlass.range(0, n):", "        b = 1"), 2, False),
        (("    for i in cutlass.range(0, n):", f"        {BARRIER}", "        b = 1"), 2, True),
        ((f"    {BARRIER}", "    if a:", "        v = x[0]", "    else:", "        b = 1"), 2, False),
        (("    b = 1",), 1, False),
    ],
)
def test_a_barrier_counts_where_every_thread_has_passed_it(
    lines: tuple[str, ...], depth: int, expected: bool
) -> None:
    text = written(*lines)
    text.depth = depth
    assert met(text, {"x"}) == expected
