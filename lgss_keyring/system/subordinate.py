"""Subordinate uids (subuid(5)): what counts one user's requests must count these as one.

An ordinary user has 65536 of them on most machines, and a user namespace of theirs can be any.
Only the file is read: ranges that a name service gives are not known here.
"""

from __future__ import annotations

from lgss_keyring.system import fingerprint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PATH = "/etc/subuid"
BYTES = 1 << 18
"""How much of it is read: ten thousand ranges."""
ANSWERS = 4096
"""How many answers are kept; to look through ten thousand ranges takes milliseconds."""

_seen = ""
"""What the file was when it was read."""
_ranges: list[tuple[int, int]] = []
_answers: dict[int, int] = {}


def range_of(uid: int) -> int:
    """The first uid of the range of subordinate uids that has ``uid``, or -1.  Raises nothing."""
    _look()
    return _range_of(uid)


def of_range(first: int, uids: Iterable[int]) -> list[int]:
    """Those of ``uids`` whose range begins with ``first``."""
    _look()
    return [uid for uid in uids if _range_of(uid) == first]


def _range_of(uid: int) -> int:
    answer = _answers.get(uid)
    if answer is None:
        answer = next((first for first, end in _ranges if first <= uid < end), -1)
        if len(_answers) >= ANSWERS:
            _answers.clear()
        _answers[uid] = answer
    return answer


def _look() -> None:
    """Read the file, if it has changed."""
    global _seen, _ranges
    seen = fingerprint.of(PATH)
    if seen == _seen:
        return
    try:
        with open(PATH, "rb") as file:
            lines = file.read(BYTES).split(b"\n")
    except OSError:
        seen, lines = "", []  # look again at the next question
    _seen, _ranges = seen, []
    _answers.clear()
    for line in lines:
        words = line.split(b":")
        if len(words) == 3 and words[1].isdigit() and words[2].isdigit():
            first = int(words[1][:10])
            _ranges.append((first, first + int(words[2][:10])))
