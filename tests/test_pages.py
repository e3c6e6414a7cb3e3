"""README.md and docs/architecture.md show what the compiler prints today."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import pages


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: p.name)
def test_page_is_up_to_date(page: Path) -> None:
    assert pages.refreshed(page) == page.read_text(), f"{page.name} is stale: run `make docs`"


def test_a_stale_block_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- begin gate_up.task -->\nold\n<!-- end gate_up.task -->\n")
    assert "gate_up_silu: mixed UP_DOWN" in pages.refreshed(page)


def test_an_unknown_block_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- begin nothing.here -->\n<!-- end nothing.here -->\n")
    with pytest.raises(SystemExit, match="no block is called 'nothing.here'"):
        pages.refreshed(page)


def test_every_block_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in pages.PAGES)
    assert [name for name in pages.BLOCKS if f"<!-- begin {name} -->" not in text] == []
