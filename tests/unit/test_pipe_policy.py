"""The pipe policy's connection to lgssd, with a socket that stands in for it."""

from __future__ import annotations

import errno
import itertools
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lgss_keyring.formats import pipe
from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.formats.payload import FailurePayload
from lgss_keyring.sptlrpc import Context, Target
from lgss_keyring.sptlrpc.pipe import ContextTable, PipePolicy

TARGET = Target(1, 1, "target")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """Stands for lgssd's socket, at ``tmp_path`` / socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        listener.settimeout(60)
        yield listener


def policy_of(listener: socket.socket) -> PipePolicy:
    return PipePolicy(listener.getsockname(), upcall_timeout=60)


def serve(listener: socket.socket, *turns: Callable[[socket.socket], None]) -> threading.Thread:
    """Give the first connection to the first of ``turns``, and so on, in a thread."""

    def run() -> None:
        for turn in turns:
            connection, _ = listener.accept()
            with connection:
                turn(connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def vanish(connection: socket.socket) -> None:
    connection.recv(pipe.UPCALL_SIZE)


def refuse(connection: socket.socket) -> None:
    upcall = pipe.Upcall.unpack(connection.recv(pipe.UPCALL_SIZE))
    connection.send(pipe.pack_downcall(upcall.seq, FailurePayload(errno.EPERM, 0).pack()))


def test_connection_that_has_ended_is_not_used_again(listener: socket.socket) -> None:
    """lgssd may be started anew at any time: the next request makes a new connection."""
    thread = serve(listener, vanish, refuse)
    with policy_of(listener) as policy, policy.create_sec(TARGET, "krb5i") as sec:
        for number, kind in ((errno.ECONNRESET, Kind.CONTEXT), (errno.EPERM, Kind.UPCALL)):
            with sec.lookup_ctx(5) as context, pytest.raises(LgssError) as caught:
                context.refresh(60)
            assert (caught.value.errno, caught.value.kind) == (number, kind), caught.value
        thread.join(60)
        assert not thread.is_alive() and policy.alive == 0


def test_malformed_answer_fails_its_context_at_once(listener: socket.socket) -> None:
    """And no other: the connection goes on."""

    def damaged(connection: socket.socket) -> None:
        first, second = (pipe.Upcall.unpack(connection.recv(pipe.UPCALL_SIZE)).seq for _ in range(2))
        connection.send(b"abc")
        connection.send(pipe.pack_downcall(99, b"an answer to nobody"))
        connection.send(pipe.pack_downcall(first, b"no payload"))
        connection.send(pipe.pack_downcall(second, FailurePayload(errno.EPERM, 0).pack()))
        connection.recv(1)

    thread = serve(listener, damaged)
    with policy_of(listener) as policy, policy.create_sec(TARGET, "krb5i") as sec:
        with sec.lookup_ctx(5) as first, sec.lookup_ctx(6) as second:
            for context, number in ((first, errno.EPROTO), (second, errno.EPERM)):
                with pytest.raises(LgssError) as caught:
                    context.refresh(20)
                assert caught.value.errno == number, caught.value
        assert policy.alive == 0
    thread.join(60)
    assert not thread.is_alive()


def test_table_that_has_ended_takes_nothing(listener: socket.socket) -> None:
    """A context that came after the end would wait for ever, as nobody looks at it any more."""
    sec = policy_of(listener).create_sec(TARGET, "krb5i")
    first, second = (Context(sec, uid).get() for uid in (5, 6))
    table = ContextTable(itertools.count(1))
    seq = table.add(first, 1.0)
    assert (first.references, table.late(0.5), table.late(2.0)) == (2, [], [seq])
    assert table.end() == [seq] and table.ended
    assert table.add(second, 1.0) == 0 and second.references == 1
    assert table.take(seq) is first and table.take(seq) is None


def test_thread_that_cannot_be_had_costs_no_descriptor(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    sockets: list[socket.socket] = []
    make = socket.socket

    def remembered(*kind: int) -> socket.socket:
        sockets.append(make(*kind))
        return sockets[-1]

    with policy_of(listener) as policy, policy.create_sec(TARGET, "krb5i") as sec:
        monkeypatch.setattr(threading.Thread, "start", start)
        monkeypatch.setattr(socket, "socket", remembered)
        with pytest.raises(LgssError, match="cannot start a thread") as caught:
            sec.lookup_ctx(5)
        assert caught.value.errno == errno.EAGAIN and policy.alive == 0
        assert [each.fileno() for each in sockets] == [-1]


FORGETFUL = """
import sys
from lgss_keyring import sptlrpc
sec = sptlrpc.create_policy("pipe", path=sys.argv[1]).create_sec(sptlrpc.Target(1, 1, "target"), "krb5i")
print(sec.lookup_ctx(5).state.value)
"""


def test_program_that_closes_nothing_can_end(listener: socket.socket) -> None:
    """The thread that waits for lgssd's answers must not keep it."""
    release = threading.Event()

    def stay(connection: socket.socket) -> None:
        connection.recv(pipe.UPCALL_SIZE)
        release.wait(60)

    thread = serve(listener, stay)
    command = [sys.executable, "-c", FORGETFUL, listener.getsockname()]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30)
        assert (done.returncode, done.stdout) == (0, "new\n")
    finally:
        release.set()
        thread.join(60)
    assert not thread.is_alive()
