"""Which process the kernel ends first when memory runs out (proc(5), oom_score_adj)."""

from __future__ import annotations

import os

SPARED = -900
"""For witness and monitor, which have to answer the key: the kernel takes others before them."""
ORDINARY = 0
"""For workers: if one is ended, its monitor answers the key."""


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
