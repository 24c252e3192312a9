"""Faulty TCP peers on loopback, for an initiator's bad day."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator


class Peer:
    """Listens on a free port and treats each connection by :meth:`serve`; a context
    manager that ends it.  This one accepts and says nothing."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._connections.append(connection)
            # A fault's connection may break in any way.
            with contextlib.suppress(OSError):
                self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        """What happens to a connection."""

    def close(self) -> None:
        """Close the listener and all connections."""
        # shutdown wakes the accept(2) of the thread; close alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for connection in self._connections:
            connection.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Silent(Peer):
    """Accepts, and never answers."""


class Closing(Peer):
    """Reads a call and closes in the middle of its answer."""

    def serve(self, connection: socket.socket) -> None:
        """Announce 100 bytes, send 10."""
        connection.settimeout(5)
        connection.recv(1 << 16)
        connection.sendall(struct.pack(">I", 1 << 31 | 100) + bytes(10))
        connection.close()


class Garbage(Peer):
    """Answers with a well-marked record of random bytes behind the right xid."""

    def serve(self, connection: socket.socket) -> None:
        """Read a call, answer nonsense."""
        connection.settimeout(5)
        call = connection.recv(1 << 16)
        body = call[4:8] + b"\xff" * 4 + os.urandom(60)
        connection.sendall(struct.pack(">I", 1 << 31 | len(body)) + body)


class HugeRecord(Peer):
    """Announces a record of 2 GiB - 1 and begins to send it."""

    def serve(self, connection: socket.socket) -> None:
        """Read a call, announce too much."""
        connection.settimeout(5)
        connection.recv(1 << 16)
        connection.sendall(struct.pack(">I", 0xFFFFFFFF) + bytes(4096))


@contextlib.contextmanager
def unused_port() -> Iterator[int]:
    """A port that refuses connections and that nobody else can take meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        yield port


def lingering(seconds: int) -> tuple[socket.socket, socket.socket]:
    """A connection whose closing waits: unsent data, SO_LINGER of so many seconds; and the
    listener behind it, which must be kept."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1)
    sender = socket.create_connection(listener.getsockname())
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    sender.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sender.send(bytes(1 << 16))
    return sender, listener
