"""The epilogue of a streamed product: what it reads comes ahead of the product where nobody writes it."""

from __future__ import annotations

import re

import pytest

import pypto_models.language as pl
from backends.cute.streaming import used

from .epilogue_kernels import added, copied, counted, cut, epilogues
from .support import module_of
from .tail_sources import functions


def test_what_an_epilogue_reads_is_gathered_ahead() -> None:
    parts = functions(module_of(epilogues))
    assert parts["apart_gather"].count("block.element(") == 3  # bias, scale and residual
    assert "gathered=(Float32, Float32, BFloat16,)" in parts["apart"]
    assert "= block.element(" not in re.sub(r"block.element\(y,.*", "", parts["apart_finish"])
    assert all(f"held[{i}]" in parts["apart_finish"] for i in range(3))


def test_what_it_writes_is_read_before_it_is_written() -> None:
    parts = functions(module_of(epilogues))
    assert "in_place_gather" not in parts and "gather" not in parts["in_place"]
    finish = parts["in_place_finish"]
    assert finish.count("= block.element(summed") == 1
    assert finish.index("= block.element(summed") < finish.index("        block.element(summed")


def test_values_are_computed_without_a_branch() -> None:
    lines = functions(module_of(epilogues))["apart_finish"].splitlines()
    (guard,) = (i for i, x in enumerate(lines) if x.strip().startswith("if "))
    (stored,) = (x for x in lines[guard + 1 :] if x.startswith("        "))
    assert "block.element(y" in stored


def test_lines_that_nothing_reads_go() -> None:
    lines = ["    a = 1", "    b = a", "    c = b", "    x[0] = b"]
    assert used(lines) == ["    a = 1", "    b = a", "    x[0] = b"]
    assert "first" not in functions(module_of(epilogues))["apart_finish"]


def test_sums_are_added_once_for_each_element() -> None:
    lines = functions(module_of(added))["added_finish"].splitlines()
    (guard,) = (i for i, x in enumerate(lines) if x.strip().startswith("if "))
    (atomic,) = (i for i, x in enumerate(lines) if "cute.arch.atomic_add(y" in x)
    assert atomic == guard + 1 and "live" in lines[guard]


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (counted, "it adds to what others store, and not in fp32"),
        (copied, "it stores a tile of another shape"),
        (cut, "extract is not elementwise"),
    ],
)
def test_what_is_no_epilogue_runs_block_by_block(kernel: pl.Kernel, why: str) -> None:
    (made,) = module_of(kernel).kernels
    assert made.how.endswith(why)
