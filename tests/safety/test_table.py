"""docs/safety.md lists all 21 failures, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "safety.md"
FAILURES = 21


def rows(text: str) -> dict[int, list[str]]:
    """Tests named in the last column of the table, by the number of the failure."""
    found: dict[int, list[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"\| (\d+) \|.*\|([^|]*)\|$", line):
            number = int(match[1])
            if number in found:
                raise ValueError(f"the table has two rows {number}")
            found[number] = re.findall(r"`([^`]+)`", match[2])
    return found


def problems(text: str, root: Path = ROOT) -> list[str]:
    table = rows(text)
    found = [f"{n}: no row" for n in range(1, FAILURES + 1) if n not in table]
    for number, tests in table.items():
        if not tests:
            found.append(f"{number}: names no test")
        for test in tests:
            file, _, name = test.partition("::")
            if not file.startswith("tests/") or not (root / file).is_file():
                found.append(f"{number}: {file} is not a file of tests")
            elif not name or name not in defined(root / file):
                found.append(f"{number}: {file} has no test {name!r}")
    return found


def defined(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


def test_every_failure_has_a_test_that_exists() -> None:
    assert problems(PAGE.read_text(encoding="utf-8")) == []


LAST = "`tests/safety/test_table.py::test_every_failure_has_a_test_that_exists`"
GOOD = "\n".join(f"| {n} | what | how | {LAST} |" for n in range(1, FAILURES + 1))


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("| 7 | what | how |", "| seven | what | how |", "7: no row"),
        (f"| 3 | what | how | {LAST} |", "| 3 | what | how | later |", "3: names no test"),
        (
            "_that_exists` |\n| 2 |",
            "` |\n| 2 |",
            "1: tests/safety/test_table.py has no test 'test_every_fail",
        ),
        (
            "| 9 | what | how | `tests/safety/test_table.py",
            "| 9 | what | how | `tests/no.py",
            "9: tests/no.py is",
        ),
        (
            "| 9 | what | how | `tests/safety",
            "| 9 | what | how | `docs/safety",
            "9: docs/safety/test_table.py is",
        ),
    ],
)
def test_a_wrong_table_is_noticed(old: str, new: str, found: str) -> None:
    assert problems(GOOD) == []
    assert GOOD.count(old) == 1
    (problem,) = problems(GOOD.replace(old, new))
    assert problem.startswith(found)


def test_a_second_row_of_one_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="two rows 4"):
        problems(GOOD + f"\n| 4 | what | how | {LAST} |")
