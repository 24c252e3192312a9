"""What code, documents, man pages and tests cite of docs/, and whether it is there.

The forms, here with NAME for a document's name:

    docs/NAME.md                            the document
    docs/NAME.md 7    docs/NAME.md 5.2.1    a section, by its ``<a id="7"></a>``
    docs/NAME.md 3 and 4                    several of them; also with "," and "to"
    docs/NAME.md (sections 1, 2 and 7)      the same
    docs/NAME.md, "One upcall"              a heading, by its words
    [words](NAME.md#7)                      a link of Markdown; in documents only
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.stage import CHECKOUT

ENDINGS = {".md", ".py", ".pyi", ".c", ".h", ".toml", ".mk", ".in", ".conf", ".service", ".socket", ".sh", ""}
MADE = {"build", "dist", "node_modules"}

_NUMBER = r"\d+(?:\.\d+)*"
_NUMBERS = rf"{_NUMBER}(?:(?:, and |, | and | or | to ){_NUMBER}(?![\w.]*\w))*"
_DOCUMENT = r"docs/(?P<name>[\w-]+(?:\.[\w-]+)*\.md)\b"
# Comments, text of C and of roff: a line goes on behind its mark.
_LINE_ENDS = re.compile(r"[ \t]*\n[ \t]*(?:(?:#|\*|//|>)(?=[ \t]))?[ \t]*")
_HEADINGS = r'"[^"]{1,80}"(?:(?:, and |, | and | or )"[^"]{1,80}")*'
_CITATION = re.compile(
    rf"{_DOCUMENT}"
    rf"(?:,? (?:sections? )?(?P<numbers>{_NUMBERS})"
    rf"|[\w ]{{0,30}} \((?:sections? )?(?P<listed>{_NUMBERS})\)"
    rf"|, (?P<headings>{_HEADINGS}))?"
)
_LINK = re.compile(r"\]\((?!\w+:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
_GONE = re.compile(
    r"\b(?:PROTOCOL|LESSONS|DESIGN|SK)\.md\b"
    r"|\b(?:PROTOCOL|LESSONS|DESIGN)\b(?=[ ,:)'])"
    r"|\.\./(?:\.\./)*(?:shared|vectors)\b|LGSS_SHARED|/work/"
)


def files() -> list[Path]:
    """All files of the checkout that people write and that may cite a document."""
    found: list[Path] = []
    for place in sorted(CHECKOUT.iterdir()):
        hidden = place.name.startswith(".") and place.name != ".ci"
        if hidden or place.name in MADE or place.name.endswith(".egg-info"):
            continue
        inside = sorted(place.rglob("*")) if place.is_dir() else [place]
        found += [path for path in inside if path.is_file() and _is_text(path)]
    return found


def _is_text(path: Path) -> bool:
    manual = path.suffix[1:].isdigit()
    return "__pycache__" not in path.parts and (path.suffix in ENDINGS or manual)


@cache
def _anchors(document: Path) -> frozenset[str]:
    return frozenset(re.findall(r'<a id="([^"]+)"></a>', document.read_text()))


@cache
def _headings(document: Path) -> frozenset[str]:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return frozenset(re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE))


def _slugs(document: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    return {re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-") for words in _headings(document)}


def faults(text: str, source: Path) -> Iterator[str]:
    """What ``text``, the contents of ``source``, cites that is not there, in words."""
    for gone in _GONE.finditer(text):
        yield f"{source}: {gone.group()} is not in this repository"
    flat = _LINE_ENDS.sub(" ", text.replace("\\-", "-").replace("\\&", ""))
    for cited in _CITATION.finditer(flat):
        document = CHECKOUT / "docs" / cited["name"]
        if not document.is_file():
            yield f"{source}: docs/{cited['name']} does not exist"
            continue
        for number in re.findall(_NUMBER, cited["numbers"] or cited["listed"] or ""):
            if number not in _anchors(document):
                yield f"{source}: docs/{cited['name']} has no section {number}"
        for heading in re.findall(r'"([^"]+)"', cited["headings"] or ""):
            if heading not in _headings(document):
                yield f'{source}: docs/{cited["name"]} has no heading "{heading}"'
    if source.suffix == ".md":
        yield from _dead_links(text, source)


def _dead_links(text: str, source: Path) -> Iterator[str]:
    for link in _LINK.finditer(text):
        target = (source.parent / link["path"]).resolve() if link["path"] else source
        if not target.exists():
            yield f"{source}: {link['path']} does not exist"
        elif link["anchor"] and link["anchor"] not in _anchors(target) | _slugs(target):
            yield f"{source}: {target.name} has no anchor {link['anchor']}"
