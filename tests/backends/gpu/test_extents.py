"""Integer expressions over run-time extents."""

from __future__ import annotations

import pytest

from backends.gpu.extents import evaluate, parse
from pypto_models.ir.expr import Const, DimVar, Expr, binary
from pypto_models.ir.graph import expr_text
from pypto_models.ir.types import INDEX

ROWS, PAGES = DimVar("ROWS"), DimVar("PAGES")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7), ("ROWS", 33), ("ROWS * PAGES", 165), ("(ROWS + 15) // 16", 3), ("ROWS % 16", 1),
        ("min(ROWS, 16)", 16), ("max(ROWS - 40, 0)", 0), ("-(-ROWS // 16)", 3), ("(PAGES - 8) // 2", -2),
    ],
)  # fmt: skip
def test_values(text: str, value: int) -> None:
    assert evaluate(text, {"ROWS": 33, "PAGES": 5}) == value


def const(value: int) -> Expr:
    return Const(value, INDEX)


@pytest.mark.parametrize("rows", [1, 16, 33])
def test_the_text_of_an_expression_has_its_value(rows: int) -> None:
    """What the lowering writes into a manifest, for every operator that an extent may have."""
    for op, want in {
        "+": rows + 16, "-": rows - 16, "*": rows * 16, "//": rows // 16, "%": rows % 16,
        "min": min(rows, 16), "max": max(rows, 16),
    }.items():  # fmt: skip
        assert evaluate(expr_text(binary(op, ROWS, const(16))), {"ROWS": rows}) == want, op
    nested = binary("//", binary("+", binary("*", ROWS, PAGES), const(15)), const(16))
    assert evaluate(expr_text(nested), {"ROWS": rows, "PAGES": 3}) == (rows * 3 + 15) // 16


def test_a_missing_extent_is_named() -> None:
    with pytest.raises(KeyError, match="PAGES"):
        evaluate("ROWS * PAGES", {"ROWS": 1})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("__import__('os')", "calls something other than min and max"),
        ("abs(ROWS)", "calls something other than min and max"),
        ("ROWS.real", "holds Attribute"), ("ROWS / 2", "holds Div"), ("ROWS * 1.5", "holds Constant"),
        ("True", "holds Constant"), ("ROWS[0]", "holds Subscript"), ("lambda: 1", "holds Lambda"),
        ("ROWS +", "is no integer expression"),
    ],
)  # fmt: skip
def test_what_is_no_integer_expression_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text)
