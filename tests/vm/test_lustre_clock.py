"""The machine's clock jumps by an hour while an upcall is at work.

Nobody waits longer for that, and no context is lost: what is measured here is by a clock
that does not jump.
"""

from __future__ import annotations

import errno
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from lustre import ALICE, ask, configure, established, failed, parameter
from server import LustreServer
from testmod import Report, TokenRequest

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("testmod_loaded", "nothing_left")]

HOUR = 3600.0
LATER_AND_EARLIER = pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["later", "earlier"])
# What an upcall of this machine's needs beside its limits; seconds.
OVERHEAD = 15.0


@pytest.fixture
def turn_clock() -> Iterator[Callable[[float], None]]:
    """Turn the real-time clock by so many seconds; it is right again afterwards."""
    difference = time.time() - time.monotonic()

    def turn(seconds: float) -> None:
        time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)

    yield turn
    time.clock_settime(time.CLOCK_REALTIME, time.monotonic() + difference)


class Upcall(threading.Thread):
    """One that is asked for in a thread, with the seconds it took."""

    def __init__(self, uid: int = 0) -> None:
        super().__init__()
        self.uid = uid
        self.report: Report | None = None
        self.seconds = 0.0
        self.start()

    def run(self) -> None:
        started = time.monotonic()
        self.report = ask(self.uid, flags="" if self.uid else "r")
        self.seconds = time.monotonic() - started

    def result(self) -> Report:
        self.join()
        assert self.report is not None
        return self.report


@LATER_AND_EARLIER
def test_between_instantiation_and_the_servers_answer(
    turn_clock: Callable[[float], None], jump: float
) -> None:
    accepted, go = threading.Event(), threading.Event()

    def hold(request: TokenRequest) -> None:
        accepted.set()
        go.wait(60)

    with LustreServer(after=hold) as server:
        upcall = Upcall()
        try:
            assert accepted.wait(60)
            turn_clock(jump)
            time.sleep(2)
        finally:
            go.set()
        established(server, upcall.result())
    assert upcall.seconds < 2 + 2 * OVERHEAD


@LATER_AND_EARLIER
def test_while_the_server_is_silent(turn_clock: Callable[[float], None], jump: float) -> None:
    """Two tries of 5 s."""
    got = threading.Event()

    def silent(request: TokenRequest) -> int:
        got.set()
        time.sleep(6)
        return 0

    with parameter("answer_limit_ms", 5000), LustreServer(before=silent) as server:
        upcall = Upcall()
        assert got.wait(60)
        turn_clock(jump)
        failed(upcall.result(), errno.ETIMEDOUT, "acceptor-silent")
        assert len(server.requests) == 2
    assert 9 < upcall.seconds < 10 + OVERHEAD


@LATER_AND_EARLIER
def test_while_the_limit_for_the_server_runs(turn_clock: Callable[[float], None], jump: float) -> None:
    configure("[lustre]\nreply_timeout = 6\n")
    got = threading.Event()

    def silent(request: TokenRequest) -> int:
        got.set()
        time.sleep(12)
        return 0

    with LustreServer(before=silent):
        upcall = Upcall()
        assert got.wait(60)
        turn_clock(jump)
        failed(upcall.result(), errno.ETIMEDOUT, "limit")
    assert 5 < upcall.seconds < 6 + OVERHEAD


def signal_kdc(name: str) -> None:
    subprocess.run(["systemctl", "kill", "-s", name, "krb5-kdc"], check=True)


@LATER_AND_EARLIER
def test_while_the_kdc_is_silent(ticket: None, turn_clock: Callable[[float], None], jump: float) -> None:
    """A user's request: it is instantiated at once, whatever the KDC does."""
    configure("[upcall]\ntimeout = 8\n")
    signal_kdc("STOP")
    try:
        with LustreServer() as server:
            upcall = Upcall(ALICE)
            time.sleep(4)
            turn_clock(jump)
            assert "no answer within 8 s" in failed(upcall.result(), errno.ETIMEDOUT, "limit")
            assert not server.requests
    finally:
        signal_kdc("CONT")
    assert 7 < upcall.seconds < 8 + OVERHEAD
