"""The pace of a uid whose upcalls wait in a queue: their fronts go on one after the other.

The front's Python starts at ordinary priority.  Eight loops that only requested keys kept both
processors of a machine busy with that: root's context took 7 times its quiet time, and another
user's 25 times.  A loop is blocked as long as its front is, so a front that waits slows the loop
down.  This module is loaded only while the uid has a queue (more than 16 upcalls).
"""

from __future__ import annotations

import fcntl
import os
import time

INTERVAL = 0.03
"""Seconds between two fronts of such a uid."""
LONGEST_WAIT = 5.0
"""Seconds that one front waits: far less than its --timeout."""
NICE = 10


def wait(path: str) -> None:
    """Wait for this front's turn.  ``path`` is the uid's file, which has the moment (of
    time.monotonic()) at which the next front may go on."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # held for no longer than these lines take
            now = time.monotonic()
            moment = min(max(now, _number(os.read(file, 64))), now + LONGEST_WAIT)
            os.pwrite(file, b"%.6f\n" % (moment + INTERVAL), 0)
        finally:
            os.close(file)
        time.sleep(moment - now)
    except OSError:
        pass  # without the file it goes on at once


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0  # new, or damaged
