"""docs/language.md is what the OpDefs say today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pypto_models.language as pl
from pypto_models import docs
from pypto_models.ir.nodes import Region
from pypto_models.ir.rewrite import walk
from pypto_models.ir.types import DTYPES
from pypto_models.language.names import UNSUPPORTED, UNSUPPORTED_JIT, UNSUPPORTED_SYSTEM
from pypto_models.ops import REGISTRY

PAGE = Path(__file__).parent.parent / "docs" / "language.md"
TEXT = docs.render_language_reference()


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == TEXT, f"{PAGE.name} is stale: run `make docs`"


def test_every_op_is_on_the_page() -> None:
    assert sorted(o.name for _, _, ops in docs.FAMILIES for o in ops) == sorted(REGISTRY.by_name)
    for o in REGISTRY:
        space = "" if "" in o.namespaces else f"{o.namespaces[0]}."
        assert f"#### `pl.{space}{o.spelling}({', '.join(o.signature.partition('(')[2:])}" in TEXT
        assert o.doc.split()[0] in TEXT


def test_every_type_and_every_unsupported_name_is_on_the_page() -> None:
    names = [f"pl.{n}" for n in UNSUPPORTED] + [f"pl.system.{n}" for n in UNSUPPORTED_SYSTEM]
    names += [f"pl.jit.{n}" for n in UNSUPPORTED_JIT] + [f"pl.{d}" for d in DTYPES]
    assert [n for n in names if f"`{n}`" not in TEXT] == []


@pytest.mark.parametrize(
    ("signature", "facts"),
    [
        ("pl.add(lhs, rhs)", "Inside of regions; vector unit; numbers; splits by rows and columns"),
        ("pl.exp(x)", "Inside of regions; vector unit; floats; splits by rows and columns"),
        ("pl.row_sum(x)", "Inside of regions; vector unit; floats; splits by rows"),
        ("pl.col_max(x)", "Inside of regions; vector unit; floats; splits by columns"),
        ("pl.transpose(x, axis1, axis2)", "Inside of regions; vector unit; all types; does not split"),
        ("pl.array.create(size, dtype)", "Anywhere; no unit"),
        ("pl.matmul(", "Inside of regions; cube unit, whole tiles; floats, INT8, INT16, INT32, UINT8"),
    ],
)
def test_facts(signature: str, facts: str) -> None:
    """Worked out by hand for a few ops."""
    (entry,) = re.findall(rf"^#### `{re.escape(signature)}.*?(?=^###)", TEXT, re.DOTALL | re.MULTILINE)
    assert f"*{facts}" in entry


def test_the_example_compiles() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    fn = pl.parse(example)
    assert [s.options.name_hint for s in walk(fn.body) if isinstance(s, Region)] == ["scale"]


def test_names_in_the_text_exist() -> None:
    """Every `pl.x` in code outside of the table of unsupported names is a member of the language."""
    supported = TEXT[: TEXT.index("## Names of pypto")]
    for chain in set(re.findall(r"\bpl((?:\.[A-Za-z_]\w*)+)", supported)):
        value: object = pl
        for name in chain[1:].split("."):
            value = getattr(value, name, None)
        assert value is not None, f"pl{chain}"
