"""The queue keeper of a uid: which requests it takes, and what becomes of those that wait."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring.formats import payload
from lgss_keyring.formats.outcome import Answer
from lgss_keyring.front import arguments
from lgss_keyring.front.arguments import Call
from lgss_keyring.monitor import hand_over, key_answer, limits, priority, queue_keeper, slots
from lgss_keyring.monitor.hand_over import Request
from lgss_keyring.monitor.queue_keeper import QueueKeeper

from .test_identity import in_child

QUEUE = 4711
UPCALL = ["create", "5", "user", "lgss:x", "1:krb5:7:7::i:0:0x1:obd:0x1:0", "7", "7", "0", "0", "0"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a keeper talks to root only")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    notes = tmp_path / "lgss"
    notes.mkdir(0o700)
    opened = os.open(notes, os.O_RDONLY | os.O_DIRECTORY)
    monkeypatch.setattr(arguments, "NOTES", str(notes))
    # A socket's path has at most 107 bytes; that of tmp_path may have more.
    monkeypatch.setattr(slots, "FOLDER", f"/proc/self/fd/{opened}/slots")
    monkeypatch.setattr(priority, "lower_session", lambda nice: None)
    slots.prepare_folder()
    yield
    os.close(opened)


def keep(work: Callable[[QueueKeeper], object]) -> str:
    """What ``work`` gives with the keeper of uid 7, in a process of its own."""

    def whole() -> object:
        signal.alarm(20)
        return work(QueueKeeper("7", os.open("/dev/null", os.O_RDONLY), QUEUE))

    return in_child(whole)


def connected() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(10)
    connection.connect(hand_over.path("7"))
    return connection


def request(*, uid: str = "7", age: float = 0.0, key: int = 5) -> Request:
    words = [*UPCALL[:1], str(key), *UPCALL[2:5], uid, *UPCALL[6:]]
    return Request(
        key, 6, time.monotonic() - age, 77, Call(["--timeout", "10", "--config", "/nonexistent", *words])
    )


def offered(keeper: QueueKeeper, message: bytes) -> bytes:
    """What the keeper answers to a process that sends ``message``."""
    with connected() as connection:
        keeper._accept()
        assert connection.recv(hand_over.SERIAL_LIMIT) == b"%d" % QUEUE
        (descriptor,) = keeper._connections
        connection.send(message)
        keeper._read(descriptor)
        assert not keeper._connections
        return connection.recv(2)


def test_silent_connection_keeps_no_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it keep a place of the 128 that there are for others."""
    monkeypatch.setattr(limits, "HAND_OVER_SECONDS", 0.2)
    monkeypatch.setattr(limits, "QUEUE_LINGERS", 0.1)

    def work(keeper: QueueKeeper) -> object:
        with connected() as silent:
            started = time.monotonic()
            keeper.run()
            served = time.monotonic() - started
            silent.recv(hand_over.SERIAL_LIMIT)
            return silent.recv(1), served > 0.2, os.path.exists(hand_over.path("7"))

    assert keep(work) == "(b'', True, False)"


def test_requests_of_that_uid_are_taken_and_no_others() -> None:
    def work(keeper: QueueKeeper) -> object:
        messages = [hand_over.pack(request(uid="8")), b"nonsense", hand_over.pack(request(key=9))]
        answers = [offered(keeper, message) for message in messages]
        return answers, [each.key for each in keeper._waiting]

    assert keep(work) == "([b'', b'', b'1'], [9])"


def test_keeper_takes_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of connections, and of requests: the others wait in processes of their own."""
    monkeypatch.setattr(queue_keeper, "CONNECTIONS_LIMIT", 2)
    monkeypatch.setattr(limits, "QUEUE_LENGTH", 1)

    def work(keeper: QueueKeeper) -> object:
        said = []
        connections = [connected() for _ in range(3)]
        for connection in connections:
            keeper._accept()
            said.append(connection.recv(hand_over.SERIAL_LIMIT))
        for descriptor in list(keeper._connections):
            keeper._drop(descriptor)
        said.append(offered(keeper, hand_over.pack(request())))
        with connected() as connection:
            keeper._accept()
            said.append(connection.recv(hand_over.SERIAL_LIMIT))
        return said

    assert keep(work) == "[b'4711', b'4711', b'', b'1', b'']"


def test_only_root_may_hand_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_over, "is_root", lambda connection: False)

    def work(keeper: QueueKeeper) -> object:
        with connected() as connection:
            keeper._accept()
            return connection.recv(hand_over.SERIAL_LIMIT), keeper._connections

    assert keep(work) == "(b'', {})"


def test_late_requests_are_answered_and_the_keeper_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """By another process: an answer may take its time."""
    reader, writer = os.pipe()

    def give(key: int, key_type: str, answer: Answer, deadline: float, *_: Any) -> bool:
        failure = payload.unpack(answer.payload)
        assert isinstance(failure, payload.FailurePayload)
        number = errno.errorcode[failure.rpc_error]
        os.write(writer, f"{key} {key_type} {number} {os.getpid() != keeper_pid}\n".encode())
        return False

    keeper_pid = 0

    def work(keeper: QueueKeeper) -> object:
        nonlocal keeper_pid
        keeper_pid = os.getpid()
        keeper._answer_late()
        keeper._waiting.extend([request(age=20, key=1), request(key=2), request(age=20, key=3)])
        keeper._answer_late()
        statuses = os.wait()[1]
        with connected():
            keeper._accept()
        return statuses, [each.key for each in keeper._waiting], len(keeper._connections)

    monkeypatch.setattr(key_answer, "give", give)
    monkeypatch.setattr(queue_keeper, "_forget", lambda keyring, queue: None)
    assert keep(work) == "(0, [2], 1)"
    os.close(writer)
    with os.fdopen(reader) as told:
        assert told.read() == "1 user ETIMEDOUT True\n3 user ETIMEDOUT True\n"


def test_late_requests_wait_on_where_no_process_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(keeper: QueueKeeper) -> object:
        def fork() -> int:
            raise BlockingIOError(errno.EAGAIN, "fork")

        os.fork = fork
        keeper._waiting.append(request(age=20))
        keeper._answer_late()
        keeper._start()
        slot = slots.take("7", 1)[0]
        return len(keeper._waiting), slot

    assert keep(work) == "(1, 0)"


def test_requests_are_served_in_their_order_by_slots_that_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UPCALLS_AT_WORK", 2)

    def attend(keeper: QueueKeeper, request: Request, number: int, slot: int) -> None:
        os.write(writer, f"{request.key} {number}\n".encode())
        os.read(hold, 1)
        os._exit(0)

    reader, writer = os.pipe()
    hold, release = os.pipe()
    monkeypatch.setattr(QueueKeeper, "_attend", attend)

    def work(keeper: QueueKeeper) -> object:
        keeper._waiting.extend(request(key=key) for key in (1, 2, 3))
        keeper._start()
        waiting = [each.key for each in keeper._waiting]
        os.write(release, b"xx")
        for _ in range(2):
            os.wait()
        keeper._start()
        os.write(release, b"x")
        os.wait()
        return waiting, len(keeper._waiting)

    assert keep(work) == "([3], 0)"
    os.close(writer)
    for descriptor in (hold, release):
        os.close(descriptor)
    with os.fdopen(reader) as told:
        assert sorted(told.read().splitlines()[:2]) == ["1 0", "2 1"]
