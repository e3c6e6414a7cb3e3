"""Names in emitted text."""

from __future__ import annotations

import re
from pathlib import Path

import pypto_models.language as pl
from backends.cute.text import Text

from .support import module_of, needs_cutlass


@needs_cutlass
def test_no_name_is_one_that_the_dsl_generates() -> None:
    """It hoists loop bounds to `start_3`, say, without a look at the kernel's own variables."""
    import cutlass.base_dsl

    folder = Path(cutlass.base_dsl.__file__).parent
    source = "\n".join(f.read_text() for f in folder.glob("*.py"))
    stems = set(re.findall(r'f"(\w+)_\{self\.session_data\.counter\}"', source))
    assert {"start", "stop", "step", "offset", "loop_body", "then_block"} <= stems
    text = Text()
    for stem in stems:
        for wanted in (stem, stem, stem, f"{stem}_2", f"{stem}_2"):
            assert not re.fullmatch(rf"{stem}_\d+", text.unique(wanted))


def test_names_are_unique_and_no_words_of_the_language() -> None:
    text = Text()
    names = [text.unique(n) for n in ("x", "x", "x_2", "for", "2d", "Int32", "a b", "step", "step", "step_2")]
    assert len(set(names)) == len(names)
    assert all(n.isidentifier() for n in names) and "for" not in names and "Int32" not in names


@pl.jit
def odd_names(x: pl.Tensor[[16, 64], pl.FP32], y: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    for b in pl.spmd(16, name_hint="block"):
        pl.assemble(y, pl.neg(pl.slice(x, [1, 64], [b, 0])), [b, 0])
    for b in pl.spmd(16, name_hint="cutlass"):
        pl.assemble(y, pl.neg(pl.slice(y, [1, 64], [b, 0])), [b, 0])
    for b in pl.spmd(16, name_hint="y"):
        pl.assemble(y, pl.neg(pl.slice(y, [1, 64], [b, 0])), [b, 0])


def test_a_region_may_have_the_name_of_a_module_or_of_a_tensor() -> None:
    names = re.findall(r"^def (?!launch_)(\w+)\(", module_of(odd_names).source, flags=re.MULTILINE)
    assert names == ["block_2", "cutlass_2", "y_2", "cutlass_then_y"]
