"""A lgssd that fails an upcall, at each moment and in each way, through each front: none is lost."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lgss_keyring.formats import payload
from lgss_keyring.front import lgssd_messages
from tests.support import table
from tests.support.fake_lgssd import Connection
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Upcalls, machine_callout, user_callout

from .answers import proven
from .fronts import CONTEXT, Front, send_token
from .fronts import front as front
from .waiting import within

GO, AT_WORK, YOURSELF = lgssd_messages.GO, lgssd_messages.AT_WORK, lgssd_messages.DO_IT_YOURSELF
LONG = b"A" + bytes(lgssd_messages.MESSAGE_LIMIT)
CALLOUTS = pytest.mark.parametrize("callout", [user_callout(), machine_callout()], ids=["user", "machine"])


def by_itself(upcalls: Upcalls, front: Front, callout: str) -> None:
    """A request whose upcall is served without lgssd in the end, within its --timeout."""
    with Requestor(0 if ":r:" in callout else USER_UID) as requestor:
        proven(front.site, requestor.ask(upcalls.name(), callout, wait=30))


@CALLOUTS
@pytest.mark.parametrize("last", [YOURSELF, b"", b"?", b"A", b"T/", LONG], ids=lambda last: str(last[:2]))
def test_instead_of_the_word(front: Front, ticket: int, callout: str, last: bytes) -> None:
    def script(lgssd: Connection) -> None:
        if last:
            lgssd.say(last)

    with front.served(script) as upcalls:
        by_itself(upcalls, front, callout)


@CALLOUTS
@pytest.mark.parametrize("last", [YOURSELF, b"", b"?", b"A", b"T/", LONG], ids=lambda last: str(last[:2]))
def test_behind_the_word(front: Front, ticket: int, callout: str, last: bytes) -> None:
    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        time.sleep(0.05)
        if last:
            lgssd.say(last)

    with front.served(script) as upcalls:
        by_itself(upcalls, front, callout)


@pytest.mark.parametrize("last", [YOURSELF, b"", b"?", LONG], ids=lambda last: str(last[:2]))
def test_behind_a_token(front: Front, ticket: int, last: bytes) -> None:
    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        send_token(lgssd, Path("/dev/null"))
        lgssd.reply()
        if last:
            lgssd.say(last)

    with front.served(script) as upcalls:
        by_itself(upcalls, front, user_callout())


def test_an_end_while_the_token_is_written(front: Front, ticket: int) -> None:
    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        send_token(lgssd, Path("/dev/null"))

    with front.served(script) as upcalls:
        by_itself(upcalls, front, user_callout())


@CALLOUTS
def test_silence_behind_a_sign_of_life(front: Front, ticket: int, callout: str) -> None:
    def script(lgssd: Connection) -> None:
        time.sleep(0.5)
        lgssd.say(AT_WORK)
        lgssd.has_ended(10)

    with front.served(script) as upcalls:
        by_itself(upcalls, front, callout)


@contextmanager
def stopped(path: Path) -> Iterator[None]:
    """A process that listens at ``path`` and is stopped, as by SIGSTOP."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(1)
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    listener.close()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        path.unlink()


@CALLOUTS
def test_a_stopped_lgssd(front: Front, ticket: int, callout: str) -> None:
    path = front.socket()
    with stopped(path), front.upcalls(path, word_ms=50) as upcalls:
        by_itself(upcalls, front, callout)


def test_a_full_lgssd(front: Front, ticket: int) -> None:
    """Its queue of connections is full: nobody waits."""
    path = front.socket()
    with stopped(path), front.upcalls(path, word_ms=50) as upcalls:
        connections = []
        try:
            while True:
                connections.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                connections[-1].setblocking(False)
                connections[-1].connect(str(path))
        except BlockingIOError:
            pass
        by_itself(upcalls, front, user_callout())
        for each in connections:
            each.close()


def test_a_lgssd_that_is_not_roots(front: Front, ticket: int) -> None:
    """It does not learn the request."""
    path = front.socket()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        os.seteuid(USER_UID)  # the peer's uid is that of listen(2)
        listener.listen(5)
        os.seteuid(0)
        with front.upcalls(path) as upcalls:
            by_itself(upcalls, front, user_callout())
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100) == b""


@pytest.mark.parametrize("kind", ["nothing", "file", "folder", "dead", "long"])
def test_no_socket_there(front: Front, ticket: int, kind: str) -> None:
    path = front.socket()
    if kind == "file":
        path.write_text("G")
    elif kind == "folder":
        path.mkdir()
    elif kind == "dead":
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
    elif kind == "long":
        path = path.parent / ("x" * 200)
    with front.upcalls(path) as upcalls:
        by_itself(upcalls, front, user_callout())
        by_itself(upcalls, front, machine_callout())


# Processes that are killed.


@CALLOUTS
def test_a_front_that_is_killed_waiting_for_the_word(front: Front, ticket: int, callout: str) -> None:
    """Its child finds the key rejected by the kernel, and says why."""

    def script(lgssd: Connection) -> None:
        assert within(5, lambda: len(front.pids()) == 3)
        os.kill(front.pids()[0], signal.SIGKILL)
        assert lgssd.has_ended()

    with front.served(script) as upcalls, Requestor(0 if ":r:" in callout else USER_UID) as requestor:
        assert requestor.ask(upcalls.name(), callout).error == errno.ENOKEY
        assert upcalls.log("LGSS_ERROR=")
        assert front.gone()
        (event,) = [event for event in upcalls.log() if "LGSS_ERROR" in event]
    table.judge("killed", event["LGSS_ERRNO"], event["message"])


def served_by(lgssd: Connection, front: Front) -> None:
    """Give the word, and wait until witness and server are all that is left of the upcall."""
    assert within(5, lambda: len(front.pids()) == 3)
    lgssd.say(GO)
    assert within(5, lambda: len(front.pids()) == 2)


def test_a_server_that_is_killed(front: Front, user: Requestor) -> None:
    """Its witness answers, and lgssd sees the end of the connection."""

    def script(lgssd: Connection) -> None:
        served_by(lgssd, front)
        os.kill(front.pids()[-1], signal.SIGKILL)
        assert lgssd.has_ended()

    with front.served(script) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        (event,) = upcalls.log("LGSS_ERROR=")
    assert payload.unpack(answer.data) == payload.FailurePayload(errno.EIO, 0)
    table.judge("killed", event["LGSS_ERRNO"], event["message"])
    assert "signal 9" in event["message"] and event["LGSS_ERROR"] == "killed"


def test_a_server_that_is_killed_before_the_word(front: Front, user: Requestor) -> None:
    def script(lgssd: Connection) -> None:
        assert within(5, lambda: len(front.pids()) == 3)
        os.kill(front.pids()[-1], signal.SIGKILL)
        lgssd.say(GO)
        lgssd.has_ended()

    with front.served(script) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        assert upcalls.log("LGSS_ERROR=killed")
    assert payload.unpack(answer.data) == payload.FailurePayload(errno.EIO, 0)


def test_a_witness_that_is_killed(front: Front, user: Requestor) -> None:
    """The upcall is served without it."""

    def script(lgssd: Connection) -> None:
        served_by(lgssd, front)
        os.kill(front.pids()[0], signal.SIGKILL)
        send_token(lgssd, Path("/dev/null"))
        lgssd.reply()
        assert lgssd.answer(0, CONTEXT) == 0

    with front.served(script) as upcalls:
        assert user.ask(upcalls.name(), user_callout()).data == CONTEXT
