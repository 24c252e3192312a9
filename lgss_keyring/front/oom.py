"""Whom the kernel takes when memory runs out (proc(5), oom_score_adj)."""

from __future__ import annotations

import os

SPARED = -900
"""Witness and monitor answer; so the kernel shall take others before them."""
ORDINARY = 0
"""A worker's end is answered: it is as good as any other process to take."""


def set_score(adjustment: int) -> None:
    """Adjust this process's score, -1000 (never) to 1000 (first); children inherit it."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"%d" % adjustment)
        finally:
            os.close(descriptor)
    except OSError:
        pass  # a container may forbid it, or have no /proc
