"""A user's worker is never open to that user's other processes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, Upcalls, user_callout

from .answers import established
from .credentials import kinit, messages
from .waiting import pace

FILES = 900
PTRACE_SEIZE = 0x4206
WALL = 0x40000000


class Tracer:
    """A process of ``uid`` that tries to trace all others of that uid, and to open their memory,
    again and again until it is asked for the :meth:`result`."""

    def __init__(self, uid: int) -> None:
        reader, writer = os.pipe()
        self._result = os.fdopen(reader)
        self._end = False
        before = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        self._pid = os.fork()
        if self._pid == 0:
            try:
                signal.signal(signal.SIGTERM, self._stop)
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                os.write(writer, b"started\n")
                seen = self._attack(uid, before | {os.getpid()})
                os.write(writer, repr(seen).encode())
            finally:
                os._exit(0)
        os.close(writer)
        assert self._result.readline() == "started\n"

    def _stop(self, *_: object) -> None:
        self._end = True

    def _attack(self, uid: int, ignored: set[int]) -> dict[str, int]:
        libc = ctypes.CDLL(None, use_errno=True)
        seen = {"tried": 0, "traced": 0, "opened": 0}
        while not self._end:
            try:
                # Else a traced process that has ended would be kept from its parent.
                os.waitpid(-1, os.WNOHANG | WALL)
            except ChildProcessError:
                pass
            for name in os.listdir("/proc"):
                if not name.isdigit() or int(name) in ignored:
                    continue
                try:
                    status = Path(f"/proc/{name}/status").read_text()
                except OSError:
                    continue
                if f"\nUid:\t{uid}\t{uid}\t" not in status:
                    continue
                seen["tried"] += 1
                if libc.ptrace(PTRACE_SEIZE, int(name), None, None) == 0:
                    seen["traced"] += 1
                    ignored.add(int(name))
                try:
                    os.close(os.open(f"/proc/{name}/mem", os.O_RDWR))
                    seen["opened"] += 1
                except OSError:
                    pass
        return seen

    def result(self) -> dict[str, int]:
        """How often it tried, and with what success."""
        os.kill(self._pid, signal.SIGTERM)
        text = self._result.read()
        os.waitpid(self._pid, 0)
        found: dict[str, int] = eval(text)
        return found


@pytest.fixture
def crowd(site: Site) -> Iterator[None]:
    """As many caches of the user's own in /tmp as make the worker look for long."""
    first = Path(f"/tmp/krb5cc_{time.monotonic_ns()}")
    kinit(site, site.population.user_keytab, "alice", first)
    paths = [first, *(first.with_name(f"{first.name}_{number}") for number in range(FILES - 1))]
    for path in paths:
        path.write_bytes(first.read_bytes())
        path.chmod(0o600)
        os.chown(path, USER_UID, USER_UID)
    site.realm.ccache_of(USER_UID).unlink(missing_ok=True)
    yield
    for path in paths:
        path.unlink()


def test_no_process_of_the_user_traces_its_worker(site: Site, upcalls: Upcalls, crowd: None) -> None:
    """Not while the files in /tmp are looked at, either: a traced worker would run the user's
    code outside of the limits (cgroup, memory, processes) that hold for the user."""
    with Requestor(USER_UID) as user:
        tracer = Tracer(USER_UID)
        try:
            for _ in range(3):
                established(user.ask(upcalls.name(), user_callout(), wait=pace(20)))
        finally:
            result = tracer.result()
    assert "; using /tmp/krb5cc_" in messages(upcalls)
    assert result["tried"] > 20
    assert (result["traced"], result["opened"]) == (0, 0)


def test_a_process_that_can_be_traced_is_found(site: Site) -> None:
    """Else the test above would prove nothing."""
    tracer = Tracer(USER_UID)
    words = ["setpriv", "--reuid", str(USER_UID), "--regid", str(USER_UID), "--clear-groups", "sleep", "0.5"]
    subprocess.run(words, check=True, timeout=20)
    result = tracer.result()
    assert result["traced"] >= 1 and result["opened"] >= 1
