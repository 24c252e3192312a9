"""The documentation keeps up with the code."""

from __future__ import annotations

import re

from lgss_keyring.formats import config
from lgss_keyring.formats.errors import Kind
from tests.support import table
from tests.support.stage import CHECKOUT, PACKAGE


def test_every_kind_of_error_is_in_errors_md() -> None:
    kinds = {value for name, value in vars(Kind).items() if name.isupper()}
    assert kinds == set(table.ROWS)


def test_kinds_are_named_by_their_constants() -> None:
    """A literal would be a kind that nobody has to document."""
    literal = re.compile(r"""\b(?:kind|error)\s*=\s*["']|\.kind\s*[!=]=\s*["']""")
    for source in PACKAGE.rglob("*.py"):
        assert not literal.search(source.read_text()), source


def test_every_setting_is_in_the_man_page() -> None:
    page = (CHECKOUT / "man/lgss_keyring.toml.5").read_text().replace("\\", "")
    for section in config.Config._fields:
        assert f"[{section}]" in page
    for record in config.SECTIONS.values():
        for name in record._fields:
            assert name in page, name


def test_every_row_of_errors_md_is_whole() -> None:
    assert len(table.ROWS) >= 40
    for kind, row in table.ROWS.items():
        assert row.words and row.advice, kind


def test_every_test_named_in_security_md_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (CHECKOUT / "docs/security.md").read_text()))
    there = {
        name
        for source in (CHECKOUT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", source.read_text(), re.MULTILINE)
    }
    assert len(named) > 40
    assert named <= there, named - there
