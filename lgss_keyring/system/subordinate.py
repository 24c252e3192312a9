"""Subordinate uids (subuid(5)): what counts one user's requests must count these as one.

An ordinary user has 65536 of them on most machines, and a user namespace of theirs can be any.
Only the file is read: ranges that a name service gives are not known here.
"""

from __future__ import annotations

PATH = "/etc/subuid"
BYTES = 1 << 18
"""How much of it is read: ten thousand ranges."""


def range_of(uid: int) -> int:
    """The first uid of the range of subordinate uids that has ``uid``, or -1.  Raises nothing."""
    try:
        with open(PATH, "rb") as file:
            lines = file.read(BYTES).split(b"\n")
    except OSError:
        return -1
    for line in lines:
        words = line.split(b":")
        if len(words) == 3 and words[1].isdigit() and words[2].isdigit():
            first = int(words[1][:10])
            if first <= uid < first + int(words[2][:10]):
                return first
    return -1
