"""docs/errors.md as a table, and the judge that each provoked failure is as it says."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.support.stage import CHECKOUT

DOCUMENT = CHECKOUT / "docs" / "errors.md"
ANY = "…"

asserted: set[str] = set()
"""The kinds that this run has provoked and found as the table says."""


@dataclass(frozen=True)
class Row:
    """One cause: names of errnos ("the kernel's": any), what a user reads, and what the log may say."""

    errnos: set[str]
    any_errno: bool
    user_sees: str
    words: list[re.Pattern[str]]
    advice: str


def rows() -> dict[str, Row]:
    """The rows by kind."""
    found: dict[str, Row] = {}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("| `") or len(cells) != 5:
            continue
        kinds, caller, sees, says, advice = cells
        errnos = set(re.findall(r"\bE[A-Z]{2,}\b", caller))
        words = [
            re.compile(".*".join(re.escape(part) for part in text.split(ANY)))
            for text in re.findall(r"`([^`]+)`", says)
        ]
        row = Row(errnos, not errnos or ANY in caller, sees, words, advice.rstrip(" |"))
        for kind in re.findall(r"`([a-z0-9-]+)`", kinds):
            assert kind not in found, f"{kind} stands twice in {DOCUMENT}"
            found[kind] = row
    return found


ROWS = rows()


def judge(kind: str, errno_name: str, message: str) -> None:
    """Assert that a failure is in the table with that errno and those words."""
    assert kind in ROWS, f"{kind} is not in {DOCUMENT}"
    row = ROWS[kind]
    assert row.any_errno or errno_name in row.errnos, f"{kind}: {errno_name}, the table says {row.errnos}"
    assert any(pattern.search(message) for pattern in row.words), (
        f"{kind}: no words of the table in {message!r}"
    )
    asserted.add(kind)
