"""Workers that lgssd has told to end, or killed, and that have not ended."""

from __future__ import annotations

import os
import signal
import time

from lgss_keyring.daemon import limits


class Dying:
    """These processes.  One that was told to end is killed if it does not: any process of its user's may
    have stopped it (SIGSTOP), and one that was taken over may stay on purpose."""

    def __init__(self) -> None:
        self._all: dict[int, tuple[int, float]] = {}
        """Owner, and when it is killed (of time.monotonic()), by pid."""

    def __len__(self) -> int:
        return len(self._all)

    def add(self, pid: int, owner: int) -> None:
        """Wait for the worker ``pid`` of ``owner``."""
        self._all[pid] = owner, time.monotonic() + limits.LEAVING_SECONDS

    def owners(self) -> list[int]:
        """The owner of each."""
        return [owner for owner, _ in self._all.values()]

    def reap(self) -> None:
        """Forget those that have ended, and kill those that should have."""
        now = time.monotonic()
        for pid, (_, end) in list(self._all.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._all[pid]
            elif now > end:
                os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """End them at once."""
        for pid in self._all:
            os.kill(pid, signal.SIGKILL)
