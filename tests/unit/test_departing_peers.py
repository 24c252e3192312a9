"""How lgssd closes a connection whose queue may hold descriptors: kernels before 6.16."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from collections.abc import Iterator

import pytest

from lgss_keyring.daemon import peers
from lgss_keyring.daemon.peers import Peer, Peers


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Peers, Peer, socket.socket]]:
    """lgssd's connections, of which an ordinary user's is one, and that user's end."""
    monkeypatch.setattr(peers, "refuse_descriptors", lambda end: False)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with selectors.DefaultSelector() as selector, ours, theirs:
        everyone = Peers(selector, lambda peer: None)
        peer = Peer(ours)
        peer.uid = 61350
        everyone.add(peer)
        yield everyone, peer, theirs


def opened() -> set[str]:
    """The sockets and pipes that this process has open, by their inodes: threads that other tests
    have left may still close some."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return {name for name in found if name.startswith(("socket:", "pipe:"))}


def wait_for_closers(everyone: Peers) -> None:
    end = time.monotonic() + 60
    while everyone.reap():
        assert time.monotonic() < end, "a process that closes a connection does not end"
        time.sleep(0.005)


def test_departing_peer_costs_no_descriptor_and_no_process(
    connected: tuple[Peers, Peer, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    fork = os.fork

    def remembered() -> int:
        made.append(fork())
        return made[-1]

    reader, writer = os.pipe()
    everyone, peer, theirs = connected
    before = opened()
    own = os.readlink(f"/proc/self/fd/{peer.connection.fileno()}")
    monkeypatch.setattr(os, "fork", remembered)
    server = os.getpid()
    everyone.drop(peer)
    if os.getpid() != server:
        os.write(writer, b"a second server")
        os._exit(1)
    os.close(writer)
    assert opened() <= before - {own}
    wait_for_closers(everyone)
    with os.fdopen(reader) as told:
        assert told.read() == ""
    (closer,) = made
    with pytest.raises(ChildProcessError):
        os.waitpid(closer, os.WNOHANG)
    # The process that has closed it had the last reference.
    assert theirs.recv(1) == b""


def test_peer_departs_where_no_process_can_be_made(
    connected: tuple[Peers, Peer, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server goes on: what it does must not be what the child does."""

    class ServerEndedError(BaseException):
        pass

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def leave(status: int) -> None:
        raise ServerEndedError

    everyone, peer, theirs = connected
    before = opened()
    own = os.readlink(f"/proc/self/fd/{peer.connection.fileno()}")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", fork)
        patch.setattr(os, "_exit", leave)
        everyone.drop(peer)
    assert opened() <= before - {own}
    assert not everyone.reap() and theirs.recv(1) == b""
