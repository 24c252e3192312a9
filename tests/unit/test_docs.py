"""The documentation keeps up with the code."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from lgss_keyring.formats import config
from lgss_keyring.formats.errors import Kind
from tests.support import citations, table
from tests.support.stage import CHECKOUT, PACKAGE


def test_every_kind_of_error_is_in_errors_md() -> None:
    kinds = {value for name, value in vars(Kind).items() if name.isupper()}
    assert kinds == set(table.ROWS)


def test_kinds_are_named_by_their_constants() -> None:
    """A literal would be a kind that nobody has to document."""
    literal = re.compile(r"""\b(?:kind|error)\s*=\s*["']|\.kind\s*[!=]=\s*["']""")
    for source in PACKAGE.rglob("*.py"):
        assert not literal.search(source.read_text()), source


def plain(lines: list[str]) -> str:
    """The text of lines of a man page, without macros, in one line."""
    texts = []
    for line in lines:
        macro, _, rest = line.partition(" ")
        if macro.startswith("."):
            words = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', rest)]
            # Macros of two letters change the font from word to word, without spaces.
            line = ("" if len(macro) == 3 else " ").join(words)
        texts.append(line.replace("\\", ""))
    return " ".join(texts)


def man_page() -> dict[str, dict[str, str]]:
    """The entries of lgss_keyring.toml(5): their texts by section and setting."""
    sections: dict[str, dict[str, str]] = {}
    part = (CHECKOUT / "man/lgss_keyring.toml.5").read_text().partition("\n.SH EXAMPLE\n")[0]
    for section in part.split("\n.SS ")[1:]:
        heading, *entries = section.split("\n.TP\n.B ")
        sections[heading.splitlines()[0]] = {
            entry.splitlines()[0]: plain(entry.splitlines()[1:]) for entry in entries
        }
    return sections


def written(section: str, name: str, default: object) -> str:
    """A pattern for ``default`` as the man page has it."""
    if default == "":
        return "default empty"
    if (section, name) == ("rpcsec_gss", "program"):
        return f"default {default:#x}\\b"
    value = re.escape(str(default).lower() if isinstance(default, bool) else str(default))
    return rf"\bdefault {value}(?![\w/]|\.\w)|(?<![\w/]){value} \(default\)"


def test_every_setting_is_in_the_man_page() -> None:
    page = man_page()
    assert set(page) == {f"[{section}]" for section in (*config.SECTIONS, "hosts")}
    assert not page["[hosts]"]  # its keys are the site's
    for section, record in config.SECTIONS.items():
        entries = page[f"[{section}]"]
        assert set(entries) == set(record._fields), section
        for name, text in entries.items():
            default, allowed = getattr(record, name), record.allowed.get(name)
            assert re.search(written(section, name, default), text, re.IGNORECASE), (section, name, text)
            if isinstance(allowed, range):
                assert f"{allowed[0]} to {allowed[-1]}" in text, (section, name, text)
            words = allowed if isinstance(allowed, tuple) else ()
            words = ("true", "false") if isinstance(default, bool) else words
            assert not [word for word in words if not re.search(rf"\b{word}\b", text)], (section, name, text)


def test_every_row_of_errors_md_is_whole() -> None:
    assert len(table.ROWS) >= 40
    for kind, row in table.ROWS.items():
        assert row.words and row.advice and row.user_sees, kind
        # What a user reads is what strerror(3) says of the errno, or Lustre's EPERM.
        read = set(re.findall(r"`([^`]+)`", row.user_sees))
        known = {os.strerror(getattr(errno, name)) for name in row.errnos}
        assert read in (known, {os.strerror(errno.EPERM)}, set()), (kind, read, known)


def test_every_test_named_in_security_md_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (CHECKOUT / "docs/security.md").read_text()))
    there = {
        name
        for source in (CHECKOUT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", source.read_text(), re.MULTILINE)
    }
    assert len(named) > 40
    assert named <= there, named - there


def test_every_document_section_and_heading_that_is_cited_exists() -> None:
    # This file and the one that looks have examples of what is wrong.
    own = {Path(__file__).resolve(), Path(citations.__file__).resolve()}
    sources = [source for source in citations.files() if source not in own]
    assert len(sources) > 100
    assert not [
        fault for source in sources for fault in citations.faults(source.read_text(errors="replace"), source)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "see docs/nowhere.md",
        "(docs/protocol.md 99)",
        "(docs/protocol.md 3 and 99)",
        "docs/protocol.md (sections 1, 2, 99)",
        "docs/protocol.md describes it (sections 1, 99)",
        "docs/protocol.md, section 99",
        "# as docs/protocol.md\n    # 99 says",
        " * docs/design-2008.md\n * 5.2.9",
        'docs/security.md, "No such heading"',
        'docs/security.md,\n"No such heading"',
        "docs/security.md 1",
        "as PROTOCOL.md says",
        "(PROTOCOL 7)",
        'LESSONS, "Whom to believe"',
        "vectors in ../shared/vectors",
        "[elsewhere](nowhere.md)",
        "[section](protocol.md#99)",
    ],
)
def test_citation_of_what_is_not_there_is_found(text: str) -> None:
    assert list(citations.faults(text, CHECKOUT / "docs/some.md"))


@pytest.mark.parametrize(
    "text",
    [
        "docs/protocol.md 7: no read for lgssc",
        "docs/protocol.md 2, field 4",
        "docs/protocol.md 3 and 4",
        "docs/design-2008.md 4, 5.1 to 5.8)",
        "(docs/design-2008.md 5.2.1)",
        "Updates (docs/protocol.md 10).  To be",
        "[section 7](protocol.md#7), [design](design-2008.md)",
        "[Lustre](https://jira.whamcloud.com)",
    ],
)
def test_good_citation_is_no_fault(text: str) -> None:
    assert not list(citations.faults(text, CHECKOUT / "docs/some.md"))


@pytest.mark.parametrize("document", ["design-2008.md", "architecture.md"])
def test_every_file_that_is_named_exists(document: str) -> None:
    paths = re.findall(r"`((?:\w+/)*\w+\.py|(?:\w+/)+)`", (CHECKOUT / "docs" / document).read_text())
    assert len(paths) > 30
    assert not [path for path in paths if not (PACKAGE / path).exists() and not (CHECKOUT / path).exists()]


def test_every_function_named_in_the_tour_is_in_its_file() -> None:
    named = re.findall(r"`((?:\w+/)*\w+\.py)`, `(\w+)`", (CHECKOUT / "docs/architecture.md").read_text())
    assert len(named) >= 5
    for path, name in named:
        defined = re.findall(r"^ *(?:def|class) (\w+)", (PACKAGE / path).read_text(), re.MULTILINE)
        assert name in defined, (path, name)


def test_every_test_named_in_the_retold_design_exists() -> None:
    text = (CHECKOUT / "docs/design-2008.md").read_text()
    tests = "".join(source.read_text() for source in (CHECKOUT / "tests/integration").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 15
    assert not [name for name in named if f"def {name}(" not in tests]
