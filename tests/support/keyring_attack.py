"""An ordinary user who holds the kernel's one lock for linking keyrings.

keyctl_link(2) of a keyring looks through all that is below it, so that there is no circle, and
holds ``keyring_serialise_link_lock`` of the whole kernel meanwhile.  Where each keyring of a
level holds all of the next level that look takes WIDTH to the power of LEVELS - 1 steps, and the
keyrings are few enough for a user's quota (docs/protocol.md 10).

A process in that look cannot be killed.  So the attack is bounded in time by itself, and its
size is chosen so that one look takes less than a second.
"""

from __future__ import annotations

import os
import time
import traceback

from tests.support import keyutils

LEVELS, WIDTH, PROCESSES = 6, 16, 4


class KeyringAttack:
    """A context manager; the attack is on while it is open, for ``seconds`` at most.

    :attr:`looks` has afterwards how many links were made, and :attr:`longest` the seconds of the
    longest.
    """

    def __init__(
        self,
        uid: int,
        seconds: float,
        levels: int = LEVELS,
        width: int = WIDTH,
        processes: int = PROCESSES,
    ) -> None:
        self._shape = levels, width, processes
        self._end = time.monotonic() + seconds
        self._uid = uid
        self.looks, self.longest = 0, 0.0

    def __enter__(self) -> KeyringAttack:
        self._stop_read, self._stop = os.pipe()
        ready, is_ready = os.pipe()
        self._figures, figures = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._stop)
                self._attack(is_ready, figures)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        for each in (is_ready, figures, self._stop_read):
            os.close(each)
        os.read(ready, 1)
        os.close(ready)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stop)
        with os.fdopen(self._figures) as lines:
            for line in lines:
                self.looks += int(line.split()[0])
                self.longest = max(self.longest, float(line.split()[1]))
        os.waitpid(self._pid, 0)

    def _attack(self, is_ready: int, figures: int) -> None:
        levels, width, processes = self._shape
        os.setgroups([])
        os.setresgid(self._uid, self._uid, self._uid)
        os.setresuid(self._uid, self._uid, self._uid)
        keyutils.join_session_keyring()
        top = build(levels, width)
        children = []
        for number in range(processes):
            pid = os.fork()
            if pid == 0:
                try:
                    os.write(figures, b"%d %.6f\n" % self._link_again(top, number, is_ready))
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)

    def _link_again(self, top: list[int], number: int, is_ready: int) -> tuple[int, float]:
        """Link and unlink until the time is over or our user is done."""
        own = keyutils.add_key(b"own%d" % number, b"", keyutils.KEY_SPEC_SESSION_KEYRING, b"keyring")
        os.set_blocking(self._stop_read, False)
        looks, longest = 0, 0.0
        while time.monotonic() < self._end and not self._stopped():
            key = top[looks % len(top)]
            began = time.monotonic()
            keyutils.link(key, own)
            longest = max(longest, time.monotonic() - began)
            keyutils.unlink(key, own)
            looks += 1
            if looks == 1:
                os.write(is_ready, b"1")
        return looks, longest

    def _stopped(self) -> bool:
        try:
            return os.read(self._stop_read, 1) == b""
        except BlockingIOError:
            return False


def build(levels: int, width: int) -> list[int]:
    """Make the keyrings, from above: what is linked is empty then, and nothing is looked through.
    Returns the serials of the topmost ones."""
    above: list[int] = []
    top: list[int] = []
    for level in range(levels):
        holder = above[0] if above else keyutils.KEY_SPEC_SESSION_KEYRING
        made = [keyutils.add_key(b"%d.%d" % (level, each), b"", holder, b"keyring") for each in range(width)]
        for parent in above[1:]:
            for each in made:
                keyutils.link(each, parent)
        above = made
        top = top or made
    return top
