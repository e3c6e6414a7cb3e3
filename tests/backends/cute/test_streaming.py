"""The epilogue of a streamed product: what it reads comes ahead of the product where nobody writes it."""

from __future__ import annotations

import re

from .epilogue_kernels import epilogues
from .support import module_of


def functions(source: str) -> dict[str, str]:
    """The bodies of the emitted functions by name."""
    parts = re.split(r"^def (\w+)\(", source, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_what_an_epilogue_reads_is_gathered_ahead() -> None:
    parts = functions(module_of(epilogues).source)
    assert parts["apart_gather"].count("block.element(") == 3  # bias, scale and residual
    assert "gathered=(Float32, Float32, BFloat16,)" in parts["apart"]
    reads = [x for x in parts["apart_finish"].splitlines() if "= block.element(" in x]
    assert not reads and all(f"held[{i}]" in parts["apart_finish"] for i in range(3))


def test_what_it_writes_is_read_where_it_is_written() -> None:
    parts = functions(module_of(epilogues).source)
    assert "in_place_gather" not in parts and "gather" not in parts["in_place"]
    finish = parts["in_place_finish"]
    assert finish.index("if live") < finish.index("= block.element(summed")


def test_values_are_computed_without_a_branch_where_nothing_is_read() -> None:
    lines = functions(module_of(epilogues).source)["apart_finish"].splitlines()
    (guard,) = (i for i, x in enumerate(lines) if x.strip().startswith("if "))
    assert all("block.element(y" in x for x in lines[guard + 1 :] if x.startswith("        "))
