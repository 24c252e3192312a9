"""Which mistakes are tried: a random sample, evenly over the lines in which one can be made."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from .changes import Change, changes, is_program


class Mutant(NamedTuple):
    """One change of one module, whose ``path`` begins with ``lgss_keyring/``."""

    path: str
    change: Change

    def __str__(self) -> str:
        return f"{self.path}:{self.change.line}: {self.change.kind}"


def modules(root: Path, names: list[str]) -> list[str]:
    """The paths of the package's modules in the checkout ``root`` that ``names`` choose, all of
    them if there are none: each name is the path of a module or folder in the package, with or
    without ``.py``.  ValueError if a name is nobody's."""
    paths = [str(path.relative_to(root)) for path in sorted((root / "lgss_keyring").rglob("*.py"))]
    if not names:
        return paths
    chosen = set()
    for name in names:
        wanted = name.removeprefix("lgss_keyring/").removesuffix(".py").strip("/")
        found = {
            path for path in paths if f"{path.removesuffix('.py')}/".startswith(f"lgss_keyring/{wanted}/")
        }
        if not found:
            raise ValueError(f"lgss_keyring has no module or folder {name}")
        chosen |= found
    return sorted(chosen)


def draw(root: Path, paths: list[str], number: int, seed: int) -> list[Mutant]:
    """``number`` mutants, or one for each line if these are fewer.

    The lines, in the order of ``paths``, are cut into ``number`` equal strips.  One line of each strip
    is drawn, then one kind of mistake that can be made in it, then one of these.  So a share of
    what is noticed is one of all lines, each module and each of its functions has its part, and a line
    with many constants counts as one line.
    """
    lines: list[tuple[str, list[Change]]] = []
    sources = {path: (root / path).read_text() for path in paths}
    for path, source in sources.items():
        by_line = defaultdict(list)
        for change in changes(source):
            by_line[change.line].append(change)
        lines += [(path, by_line[line]) for line in sorted(by_line)]
    chance = random.Random(seed)
    number = min(number, len(lines))
    drawn = []
    for strip in range(number):
        within = lines[strip * len(lines) // number : (strip + 1) * len(lines) // number]
        chance.shuffle(within)
        for path, possible in within:
            if found := _one(sources[path], possible, chance):
                drawn.append(Mutant(path, found))
                break
    return drawn


def record(source: str, mutant: Mutant) -> dict[str, str | int]:
    """What :func:`again` finds it by, for JSON."""
    change = mutant.change
    return {
        "file": mutant.path,
        "line": change.line,
        "column": change.start - source.rfind("\n", 0, change.start),
        "kind": change.kind,
        "text": source.splitlines()[change.line - 1].strip(),
        "old": source[change.start : change.end],
        "new": change.text,
    }


def again(root: Path, records: list[dict[str, str | int]]) -> list[Mutant]:
    """The mutants of these records, as far as their lines still have the same text; a line that has
    moved is the closest one."""
    found = []
    for wanted in records:
        path = root / str(wanted["file"])
        source = path.read_text() if path.exists() else ""
        same = [
            mutant
            for mutant in (Mutant(str(wanted["file"]), change) for change in changes(source))
            if record(source, mutant) | {"line": 0} == wanted | {"line": 0}
        ]
        if same:
            found.append(min(same, key=lambda mutant: abs(mutant.change.line - int(wanted["line"]))))
    return found


def _one(source: str, possible: list[Change], chance: random.Random) -> Change | None:
    """One of a line's changes; none if Python takes none of them."""
    left = list(possible)
    while left:
        kind = chance.choice(sorted({change.kind for change in left}))
        change = chance.choice([change for change in left if change.kind == kind])
        if is_program(source, change):
            return change
        left.remove(change)
    return None
