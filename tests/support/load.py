"""One user's attacks on all the others: requests that stay open, and a storm of requests."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from lgss_keyring.front import keyctl
from tests.support import keyutils
from tests.support.requestor import PLACEHOLDER, Requestor
from tests.support.site import USER_UID, Upcalls, machine_callout, user_callout

QUOTA = Path("/proc/sys/kernel/keys")
REQUESTORS = 10
STORM_PROCESSES = 8
ATTACKER = 200_000 + os.getpid()
"""The uid of attacks.  It is this run's own: the slots of a uid are the machine's."""
OTHER_UID = USER_UID + 17
"""Another user, who suffers from the attack."""


@contextlib.contextmanager
def steady_quota() -> Iterator[None]:
    """Let nobody change the quota of keys meanwhile."""
    with open(QUOTA / "maxkeys", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def quota(keys: int) -> Iterator[None]:
    """Let each ordinary user have so many keys, of 100 bytes each.

    The quota is the whole machine's.  Another run that changes it waits until this one is done.
    """
    files = {QUOTA / "maxkeys": keys, QUOTA / "maxbytes": 100 * keys}
    with open(QUOTA / "maxkeys", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = {file: file.read_text() for file in files}
        try:
            for file, value in files.items():
                file.write_text(str(value))
            yield
        finally:
            for file, text in before.items():
                file.write_text(text)


@contextlib.contextmanager
def held_open(upcalls: Upcalls, uid: int, count: int) -> Iterator[list[int]]:
    """``count`` requests of ``uid``, whose callers go on at once; gives the keys."""
    with contextlib.ExitStack() as stack:
        requestors = [stack.enter_context(Requestor(uid)) for _ in range(REQUESTORS)]
        for number in range(count):
            requestors[number % REQUESTORS].start(upcalls.name(), user_callout(uid), wait=0)
        answers = [requestors[number % REQUESTORS].result() for number in range(count)]
        assert not [answer for answer in answers if answer.error], answers
        yield [answer.key for answer in answers]


@contextlib.contextmanager
def storm(upcalls: Upcalls, uid: int, processes: int = STORM_PROCESSES, wait: bool = False) -> Iterator[None]:
    """Processes of ``uid`` that request contexts in a loop, and ``wait`` for each, or for none."""
    pids = []
    try:
        for number in range(processes):
            pid = os.fork()
            if pid == 0:
                try:
                    _request_for_ever(upcalls, uid, number, wait)
                finally:
                    os._exit(1)
            pids.append(pid)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def _request_for_ever(upcalls: Upcalls, uid: int, number: int, wait: bool) -> None:
    gc.disable()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    callout = user_callout(uid).encode()
    turn = 0
    while True:
        # A new session keyring lets go of the last one's key.
        keyutils.join_session_keyring()
        with contextlib.suppress(OSError):
            name = upcalls.name(f"storm-{number}-{turn}").encode()
            key = keyutils.request_key(b"user", name, callout, keyctl.KEY_SPEC_SESSION_KEYRING)
            while wait and keyutils.read_key(key) == PLACEHOLDER:
                time.sleep(0.005)
        turn += 1


def contexts(upcalls: Upcalls, uid: int, rounds: int) -> list[tuple[float, float]]:
    """Seconds that each request of ``uid`` (0: for the machine) blocks its caller for, and
    until it has its context."""
    found = []
    callout = user_callout(uid) if uid else machine_callout()
    with Requestor(uid) as requestor:
        for _ in range(rounds):
            answer = requestor.ask(upcalls.name(), callout, wait=30)
            assert not answer.error and answer.updated is not None, answer
            found.append((answer.blocked, answer.updated))
    return found


class Times:
    """Seconds blocked, and until there is a context, of root's and of another user's requests."""

    def __init__(self, upcalls: Upcalls) -> None:
        self._upcalls = upcalls
        self.found: dict[int, list[tuple[float, float]]] = {0: [], OTHER_UID: []}

    def measure(self, rounds: int) -> None:
        """Make so many requests of each, one after the other."""
        for uid, found in self.found.items():
            found += contexts(self._upcalls, uid, rounds)

    def ratios(self, quiet: Times, uid: int) -> tuple[float, float]:
        """Of the medians, to those of a quiet machine."""
        blocked, updated = (
            statistics.median(mine) / statistics.median(theirs)
            for mine, theirs in zip(
                zip(*self.found[uid], strict=True), zip(*quiet.found[uid], strict=True), strict=True
            )
        )
        return blocked, updated


def pss(pids: list[int]) -> int:
    """Bytes of proportional set size of the processes ``pids``."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total


def pids() -> list[int]:
    """All processes of this machine."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
