"""One user's attacks on all the others: requests that stay open, and a storm of requests."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from lgss_keyring.front import keyctl
from tests.support import keyutils
from tests.support.requestor import Requestor
from tests.support.site import Upcalls, machine_callout, user_callout

QUOTA = Path("/proc/sys/kernel/keys")
REQUESTORS = 10
STORM_PROCESSES = 8


@contextlib.contextmanager
def quota(keys: int) -> Iterator[None]:
    """Let each ordinary user have so many keys, of 100 bytes each."""
    files = {QUOTA / "maxkeys": keys, QUOTA / "maxbytes": 100 * keys}
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
def storm(upcalls: Upcalls, uid: int) -> Iterator[None]:
    """Processes of ``uid`` that request contexts in a loop, and wait for none."""
    pids = []
    try:
        for number in range(STORM_PROCESSES):
            pid = os.fork()
            if pid == 0:
                try:
                    _request_for_ever(upcalls, uid, number)
                finally:
                    os._exit(1)
            pids.append(pid)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def _request_for_ever(upcalls: Upcalls, uid: int, number: int) -> None:
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
            keyutils.request_key(b"user", name, callout, keyctl.KEY_SPEC_SESSION_KEYRING)
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


def pss(pids: list[int]) -> int:
    """Bytes of proportional set size of the processes ``pids``."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total
